//! How states, times and ports are written for people. Every text a page shows beside the user's own comes from here or
//! from a template.

use std::collections::BTreeSet;

use jiff::Timestamp;
use toft_model::{
    instance::{Desired, Exit, InstanceState, NetworkOrder, PublishedPort},
    node::{Availability, NodeHealth},
    state::{EventLevel, EventRow, InstanceView, NodeRow, WorkloadView},
    workload::{Health, Protocol, Rollout},
};

use super::request::ReachedAs;

/// Most ports shown in a table row.
const PORTS_SHOWN: usize = 3;

/// A state as a word on a coloured ground; the word alone says it all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pill {
    /// `ok`, `busy`, `warn`, `bad` or `idle`.
    pub(super) tone: &'static str,
    pub(super) word: &'static str,
}

impl Pill {
    /// For [`WorkloadView::status`].
    pub(super) fn of_workload(workload: &WorkloadView) -> Self {
        let failed = workload.instances.iter().any(|instance| failed(&instance.state()));
        match workload.status() {
            "finished" if failed => Self { tone: "bad", word: "failed" },
            word => Self::of_word(word),
        }
    }

    pub(super) fn of_instance(instance: &InstanceView) -> Self {
        let state = instance.state();
        if instance.row.desired == Desired::Removed && !instance.row.lost {
            return Self { tone: "busy", word: "removing" };
        }
        let known = instance.row.report.as_ref().filter(|_| !instance.row.lost);
        match known.and_then(|report| report.health) {
            Some(Health::Unhealthy) => return Self { tone: "bad", word: "unhealthy" },
            Some(Health::Starting) => return Self { tone: "busy", word: "running, not yet healthy" },
            Some(Health::Healthy) | None => {}
        }
        if failed(&state) { Self { tone: "bad", word: "failed" } } else { Self::of_word(state.as_str()) }
    }

    /// Of a node; `trouble`: its containers' runtime does not answer.
    pub(super) fn of_node(node: &NodeRow, trouble: bool) -> Self {
        Self::of_lost(node).unwrap_or(match node.settings.availability {
            _ if trouble => Self { tone: "bad", word: "runtime down" },
            Availability::Active => Self { tone: "ok", word: "ready" },
            Availability::Cordoned => Self { tone: "warn", word: "cordoned" },
            Availability::Draining => Self { tone: "busy", word: "draining" },
        })
    }

    /// Of a node that is not there.
    pub(super) fn of_lost(node: &NodeRow) -> Option<Self> {
        match node.health {
            NodeHealth::Ready => None,
            NodeHealth::Away => Some(Self { tone: "busy", word: "restarting" }),
            NodeHealth::Unreachable => Some(Self { tone: "warn", word: "unreachable" }),
            NodeHealth::Down | NodeHealth::Fenced => Some(Self { tone: "bad", word: "down" }),
        }
    }

    pub(super) fn of_rollout(rollout: &Rollout) -> Self {
        match rollout {
            Rollout::Rolling => Self { tone: "busy", word: "rolling out" },
            Rollout::Done => Self { tone: "ok", word: "done" },
            Rollout::Failed { .. } => Self { tone: "bad", word: "failed" },
        }
    }

    fn of_word(word: &'static str) -> Self {
        match word {
            "running" => Self { tone: "ok", word },
            "unknown" => Self { tone: "bad", word },
            "pending" => Self { tone: "warn", word: "waiting" },
            "back_off" => Self { tone: "warn", word: "backing off" },
            "assigned" | "starting" | "stopping" | "removing" => Self { tone: "busy", word },
            word => Self { tone: "idle", word },
        }
    }
}

fn failed(state: &InstanceState) -> bool {
    matches!(state, InstanceState::Finished { exit, .. } if exit.code != Some(0))
}

/// A point in time: exact for machines and the curious, short for the eye.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moment {
    /// RFC 3339.
    pub(super) iso: String,
    /// To the second, with its zone.
    pub(super) full: String,
    /// How long ago, or the time of day.
    pub(super) text: String,
}

impl Moment {
    /// How long before `now_ms`.
    pub(super) fn age(at_ms: i64, now_ms: i64) -> Self {
        Self::with(at_ms, age(now_ms - at_ms))
    }

    /// `5m ago`.
    pub(super) fn ago(at_ms: i64, now_ms: i64) -> Self {
        let span = now_ms - at_ms;
        Self::with(at_ms, if span < 60_000 { "just now".into() } else { format!("{} ago", age(span)) })
    }

    /// The time of day.
    pub(super) fn clock(at_ms: i64) -> Self {
        let mut moment = Self::with(at_ms, String::new());
        moment.text = format!("{} UTC", moment.full.get(11..19).unwrap_or_default());
        moment
    }

    /// Date and time of day.
    pub(super) fn dated(at_ms: i64) -> Self {
        let mut moment = Self::with(at_ms, String::new());
        moment.text.clone_from(&moment.full);
        moment
    }

    fn with(at_ms: i64, text: String) -> Self {
        let at = Timestamp::from_millisecond(at_ms).unwrap_or(Timestamp::UNIX_EPOCH);
        Self { iso: at.to_string(), full: at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(), text }
    }
}

/// Coarse on purpose: a page whose state rests does not change every second.
fn age(ms: i64) -> String {
    let minutes = ms.max(0) / 60_000;
    match minutes {
        0 => "<1m".into(),
        1..60 => format!("{minutes}m"),
        60..2_880 => format!("{}h", minutes / 60),
        _ => format!("{}d", minutes / 1_440),
    }
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortLine {
    /// `18080 → 8080`.
    pub(super) text: String,
    /// Where it answers, for TCP.
    pub(super) link: Option<String>,
}

/// The ports at which instances answer, and how many more there are than a row shows.
pub(super) fn ports<'a>(
    instances: impl IntoIterator<Item = &'a InstanceView>,
    reached: &ReachedAs,
) -> (Vec<PortLine>, usize) {
    let published: BTreeSet<PublishedPort> = instances
        .into_iter()
        .filter(|instance| instance.row.desired != Desired::Removed)
        .flat_map(|instance| match &instance.row.container.network {
            NetworkOrder::Bridge { ports, .. } => ports.as_slice(),
            NetworkOrder::Host | NetworkOrder::None => &[],
        })
        .copied()
        .collect();
    let more = published.len().saturating_sub(PORTS_SHOWN);
    (published.into_iter().take(PORTS_SHOWN).map(|port| port_line(port, reached)).collect(), more)
}

fn port_line(port: PublishedPort, reached: &ReachedAs) -> PortLine {
    let PublishedPort { host, container, protocol } = port;
    match protocol {
        Protocol::Tcp => PortLine {
            text: format!("{host} → {container}"),
            link: reached.0.as_ref().map(|name| format!("http://{name}:{host}")),
        },
        Protocol::Udp => PortLine { text: format!("{host} → {container}/udp"), link: None },
    }
}

/// An amount of bytes that was measured, and so may have fractions.
pub(super) fn amount(bytes: f32) -> String {
    toft_model::units::format_bytes(bytes.max(0.0) as u64)
}

/// How a process ended, in words.
pub(super) fn exit(exit: Exit) -> String {
    match exit.code {
        _ if exit.gpu_out_of_memory => "more GPU memory than its share".into(),
        _ if exit.out_of_memory => "out of memory".into(),
        None => "its process vanished without telling".into(),
        Some(code @ 129..=192) => format!("exit code {code} (signal {})", code - 128),
        Some(code) => format!("exit code {code}"),
    }
}

/// A message as a sentence: a capital letter, unless it begins with a name, and a full stop.
pub(super) fn sentence(message: impl AsRef<str>) -> String {
    let mut chars = message.as_ref().chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    format!("{}{}.", first.collect::<String>(), chars.as_str().trim_end_matches('.'))
}

/// One entry of the story.
pub(super) struct EventLine {
    pub(super) seq: i64,
    pub(super) at: Moment,
    pub(super) warning: bool,
    pub(super) subject: String,
    pub(super) link: Option<String>,
    pub(super) message: String,
}

impl EventLine {
    pub(super) fn of(row: EventRow, now_ms: i64) -> Self {
        let (kind, name) = row.subject.split_once('/').unwrap_or(("", &row.subject));
        let workload = match kind {
            "workload" => Some(name),
            "instance" => name.rsplit_once('-').map(|(workload, _)| workload),
            _ => None,
        };
        let link = match kind {
            "secret" => Some("/secrets".to_owned()),
            "volume" => Some("/volumes".to_owned()),
            "node" => Some(format!("/nodes/{name}")),
            _ => workload.map(|workload| format!("/workloads/{workload}")),
        };
        Self {
            seq: row.seq,
            at: Moment::ago(row.at_ms, now_ms),
            warning: row.level == EventLevel::Warning,
            link,
            subject: name.to_owned(),
            message: row.message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_coarse() {
        for (ms, want) in [(-5, "<1m"), (59_999, "<1m"), (60_000, "1m"), (7_200_000, "2h"), (172_800_000, "2d")] {
            assert_eq!(age(ms), want);
        }
        let moment = Moment::clock(1_700_000_000_000);
        assert_eq!((moment.text.as_str(), moment.iso.as_str()), ("22:13:20 UTC", "2023-11-14T22:13:20Z"));
    }

    #[test]
    fn signals_are_named() {
        assert_eq!(exit(Exit::new(Some(137), 0)), "exit code 137 (signal 9)");
        assert_eq!(exit(Exit::new(Some(1), 0)), "exit code 1");
    }
}
