//! What keeps an instance off a node: the filter that says no, its numbers, and what would change its mind.

use std::fmt;

use crate::{
    name::Name,
    node::{Subnet, Taint},
    units::format_bytes,
    workload::{Isolation, Protocol, Rule},
};

/// Why a node does not take an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// The specification names another node.
    Pinned {
        /// The one that it names.
        node: Name,
    },
    /// The node said that it will be back in a moment.
    Away,
    /// The node has not been heard of for a moment.
    Unreachable,
    /// The node is lost.
    Down,
    /// The node takes nothing new.
    Cordoned,
    /// The node is being drained.
    Draining,
    /// A taint that the workload does not put up with.
    Taint {
        /// The taint.
        taint: Taint,
    },
    /// A constraint that does not hold.
    Constraint {
        /// The rule.
        rule: Rule,
        /// What the node has instead.
        has: String,
    },
    /// A workload that wants to be alone is there.
    KeptOff {
        /// The workload that wants no instance of this one beside it.
        workload: Name,
        /// Its constraint.
        rule: Rule,
    },
    /// As many copies are there as may be.
    MaxPerNode {
        /// How many may be there.
        most: u32,
    },
    /// A volume's data lies on another node.
    Volume {
        /// The volume.
        volume: Name,
        /// Where it lies.
        node: String,
    },
    /// A volume is being moved, and nobody uses it meanwhile.
    VolumeMoves {
        /// The volume.
        volume: Name,
        /// Where to.
        node: String,
    },
    /// The limit is more than the node has.
    MemoryLimit {
        /// What an instance may use, in bytes.
        wanted: u64,
        /// What the node has, in bytes.
        has: u64,
    },
    /// Too little CPU is left to be reserved, in thousandths of a core.
    Cpu {
        /// To be reserved.
        wanted: u64,
        /// Left.
        left: u64,
    },
    /// Too little memory is left to be reserved, in bytes.
    Memory {
        /// To be reserved.
        wanted: u64,
        /// Left.
        left: u64,
    },
    /// The node lacks a container runtime.
    Isolation {
        /// The runtime.
        wanted: Isolation,
        /// What it has.
        has: String,
    },
    /// The node's cards cannot be given.
    Gpus {
        /// Why, card by card.
        why: String,
    },
    /// The node has no container network.
    NoNetwork,
    /// Every address is given.
    Addresses {
        /// Of this network.
        subnet: Subnet,
    },
    /// The host port is given.
    HostPort {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// Every host port that could be chosen is given.
    NoHostPort,
}

impl Obstacle {
    /// One word for the filter that says no.
    pub fn filter(&self) -> &'static str {
        match self {
            Self::Pinned { .. } => "node",
            Self::Away | Self::Unreachable | Self::Down => "health",
            Self::Cordoned | Self::Draining => "availability",
            Self::Taint { .. } => "taints",
            Self::Constraint { .. } => "constraints",
            Self::KeptOff { .. } | Self::MaxPerNode { .. } => "apart",
            Self::Volume { .. } | Self::VolumeMoves { .. } => "volumes",
            Self::Cpu { .. } => "cpu",
            Self::Memory { .. } | Self::MemoryLimit { .. } => "memory",
            Self::Isolation { .. } => "isolation",
            Self::Gpus { .. } => "gpus",
            Self::NoNetwork | Self::Addresses { .. } => "network",
            Self::HostPort { .. } | Self::NoHostPort => "ports",
        }
    }

    /// What would make an instance of `workload` fit on `node`.
    pub fn remedy(&self, workload: &Name, node: &Name) -> String {
        match self {
            Self::Pinned { node: pinned } => format!("let {workload} run on {node}: it names {pinned}"),
            Self::Away | Self::Unreachable | Self::Down => format!("{node} within reach again"),
            Self::Cordoned | Self::Draining => format!("toft node uncordon {node}"),
            Self::Taint { taint } => {
                format!("toft node taint {node} {}:{}-, or a toleration `{taint}`", taint.key, taint.effect.as_str())
            }
            Self::Constraint { rule, .. } => {
                format!("a node for which `{rule}` holds, or {workload} without this constraint")
            }
            Self::KeptOff { workload: other, rule } => format!("{other} elsewhere, or without its constraint `{rule}`"),
            Self::MaxPerNode { most } => format!("another node, or more than {most} on a node"),
            Self::Volume { volume, node: home } => format!("room on {home}, or volume `{volume}` on {node}"),
            Self::VolumeMoves { volume, node } => format!("volume `{volume}` on {node}, where it will be in a while"),
            Self::MemoryLimit { has, .. } => format!("a memory limit of at most {}", format_bytes(*has)),
            Self::Cpu { wanted, left } => format!("{} cores more free, or reserved less", cores(wanted - left)),
            Self::Memory { wanted, left } => format!("{} more free, or reserved less", format_bytes(wanted - left)),
            Self::Isolation { wanted, .. } => format!("the runtime `{wanted}` on {node}"),
            Self::Gpus { .. } => "such cards free, or a smaller request".into(),
            Self::NoNetwork => format!("`toft doctor` on {node} says why; the network `host` does without"),
            Self::Addresses { .. } => "fewer instances there, or a larger network".into(),
            Self::HostPort { port, protocol } => format!("port {port}/{protocol} free there, or another host port"),
            Self::NoHostPort => "fewer published ports there".into(),
        }
    }
}

fn cores(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned { .. } => f.write_str("the specification names another node"),
            Self::Away => f.write_str("toft is restarted there"),
            Self::Unreachable => f.write_str("it has not been heard of for a moment"),
            Self::Down => f.write_str("it is down"),
            Self::Cordoned => f.write_str("it is cordoned"),
            Self::Draining => f.write_str("it is being drained"),
            Self::Taint { taint } => write!(f, "it has the taint `{taint}`"),
            Self::Constraint { rule, has } => write!(f, "`{rule}` does not hold ({has})"),
            Self::KeptOff { workload, rule } => write!(f, "`{workload}` is there and says `{rule}`"),
            Self::MaxPerNode { most: 1 } => f.write_str("a copy is there, and more may not be"),
            Self::MaxPerNode { most } => write!(f, "{most} copies are there, and more may not be"),
            Self::Volume { volume, node } => write!(f, "volume `{volume}` lies on {node}"),
            Self::VolumeMoves { volume, node } => write!(f, "volume `{volume}` is being moved to {node}"),
            Self::MemoryLimit { wanted, has } => {
                write!(f, "{} of memory are wanted and it has {}", format_bytes(*wanted), format_bytes(*has))
            }
            Self::Cpu { wanted, left } => {
                write!(f, "{} cores are to be reserved and {} are left", cores(*wanted), cores(*left))
            }
            Self::Memory { wanted, left } => {
                let (wanted, left) = (format_bytes(*wanted), format_bytes(*left));
                write!(f, "{wanted} of memory are to be reserved and {left} are left")
            }
            Self::Isolation { wanted, has } => write!(f, "it has no runtime `{wanted}` (it has {has})"),
            Self::Gpus { why } => f.write_str(why),
            Self::NoNetwork => f.write_str("it has no container network"),
            Self::Addresses { subnet } => write!(f, "every address of {subnet} is in use"),
            Self::HostPort { port, protocol } => write!(f, "host port {port}/{protocol} is in use"),
            Self::NoHostPort => f.write_str("no host port is free"),
        }
    }
}
