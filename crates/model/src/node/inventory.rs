//! What a node observed of itself.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;

/// An IPv4 network in CIDR form; the host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    /// First address.
    pub base: Ipv4Addr,
    /// Prefix length, 8 to 30.
    pub prefix: u8,
}

impl Subnet {
    /// Number of addresses, the network's and the broadcast address included.
    pub fn size(self) -> u32 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The address `offset` places after the base, if it lies inside.
    pub fn nth(self, offset: u32) -> Option<Ipv4Addr> {
        (offset < self.size()).then(|| Ipv4Addr::from(u32::from(self.base) + offset))
    }

    /// The bridge's own address, the first usable one.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + 1)
    }

    /// Whether `address` lies inside.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & !(self.size() - 1) == u32::from(self.base)
    }

    /// Whether two networks share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

impl FromStr for Subnet {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let shown: String = text.chars().take(40).collect();
        let bad =
            |why: &str| Invalid::value(format!("`{shown}` is no network: {why}"), "write it like `10.210.0.0/16`");
        let (base, prefix) = text.split_once('/').ok_or_else(|| bad("there is no `/`"))?;
        let base: Ipv4Addr = base.parse().map_err(|_| bad("the address is malformed"))?;
        let prefix: u8 = prefix.parse().map_err(|_| bad("the prefix length is no number"))?;
        if !(8..=30).contains(&prefix) {
            return Err(bad("the prefix length is not from 8 to 30"));
        }
        let subnet = Self { base, prefix };
        if !subnet.contains(base) || u32::from(base) & (subnet.size() - 1) != 0 {
            return Err(bad("bits of the address behind the prefix are set"));
        }
        Ok(subnet)
    }
}

impl TryFrom<String> for Subnet {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// What a node has and is, as it told when it last registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Inventory {
    /// Logical CPUs.
    pub cpus: u32,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Distribution, as people call it.
    pub os: String,
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// Version of toft.
    pub version: String,
    /// Version of the container runtime, empty while it is away.
    pub runtime: String,
    /// The network its containers live in; absent when the node can make no bridge.
    #[schema(value_type = Option<String>, example = "10.210.0.0/24")]
    pub subnet: Option<Subnet>,
    /// Names of the container runtimes that `isolation` can ask for; empty when the node does not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolation: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_parse_and_compare() {
        let a: Subnet = "10.210.0.0/16".parse().unwrap();
        let b: Subnet = "10.210.3.0/24".parse().unwrap();
        assert!(a.overlaps(b) && b.overlaps(a));
        assert_eq!(b.gateway().to_string(), "10.210.3.1");
        assert_eq!(b.nth(255).unwrap().to_string(), "10.210.3.255");
        assert_eq!(b.nth(256), None);
        assert!(!b.overlaps("10.211.0.0/16".parse().unwrap()));
        for bad in ["", "10.0.0.0", "10.0.0.1/24", "10.0.0.0/7", "10.0.0.0/31", "300.0.0.0/8", "a/8"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }
}
