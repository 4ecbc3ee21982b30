//! The life of an instance as its node observes it.
//!
//! ```text
//!  Assigned --StartRequested--> Starting --Started--> Running --StopRequested--> Stopping
//!     ^                          |  ^  |                 |                          |
//!     |                StartFailed  |  +----Exited----+--+----------Exited----------+
//!     |                          v  |                 |                             |
//!     |                        BackOff <--(restart)---+---(stay down)--> Finished   |
//!     |                          |                                        |         v
//!     +--- Reset (a newer epoch) +------------- StopRequested -------> Stopped <----+
//! ```

use serde::{Deserialize, Serialize};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Exit {
    /// Exit code, 128 + signal for a signal; `None` when the process vanished without telling (a power cut).
    pub code: Option<i32>,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// Whether the kernel killed it, or a process beside it, for want of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
    /// Whether toft ended it because it held more memory of a GPU than its share.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gpu_out_of_memory: bool,
}

impl Exit {
    /// The reason of an end for too much memory of a GPU.
    pub const GPU_OUT_OF_MEMORY: &str = "GpuOutOfMemory: it held more memory of a GPU than its share";

    /// An end with that code at that time.
    pub const fn new(code: Option<i32>, at_ms: i64) -> Self {
        Self { code, at_ms, out_of_memory: false, gpu_out_of_memory: false }
    }

    /// The end in words: `exited with code 1`, `out of memory`.
    pub fn reason(&self) -> String {
        match self.code {
            _ if self.gpu_out_of_memory => Self::GPU_OUT_OF_MEMORY.to_owned(),
            _ if self.out_of_memory => "out of memory".to_owned(),
            Some(code) => format!("exited with code {code}"),
            None => "its process vanished".to_owned(),
        }
    }
}

/// Where an instance stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum InstanceState {
    /// A node has the order and has not begun.
    Assigned,
    /// Image, container and network are being prepared.
    Starting,
    /// The process runs.
    Running {
        /// Process id on the node.
        pid: u32,
        /// Since when, in milliseconds since 1970.
        since_ms: i64,
    },
    /// The stop signal was sent.
    Stopping,
    /// Down because that is wanted.
    Stopped {
        /// How the last process ended, if one ran.
        exit: Option<Exit>,
    },
    /// Down, to be started again later.
    BackOff {
        /// When the next try is due, in milliseconds since 1970.
        until_ms: i64,
        /// Why it is down.
        reason: String,
    },
    /// Ended, and the restart policy leaves it so.
    Finished {
        /// How it ended.
        exit: Exit,
        /// Why its program never ran, when that is so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Its node is lost, and what became of it is not known. No node reports that.
    Unknown,
}

/// What can happen to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The node begins to start it.
    StartRequested,
    /// The process runs.
    Started {
        /// Process id on the node.
        pid: u32,
        /// When.
        at_ms: i64,
    },
    /// It could not be started, or ended and shall run again: the next try is due at `until_ms`.
    RetryAt {
        /// When the next try is due.
        until_ms: i64,
        /// Why it is down.
        reason: String,
    },
    /// The node begins to stop it.
    StopRequested,
    /// It is down as wanted.
    Stopped {
        /// How the process ended, if one ran.
        exit: Option<Exit>,
    },
    /// The process ended and the policy leaves it down.
    Finished {
        /// How it ended.
        exit: Exit,
        /// Why its program never ran, when that is so.
        reason: Option<String>,
    },
    /// A newer epoch was ordered: the story begins again.
    Reset,
}

/// A move the drawing does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an instance that is {from} cannot see {event:?}")]
pub struct IllegalMove {
    /// State before.
    pub from: &'static str,
    /// What was to happen.
    pub event: Event,
}

impl InstanceState {
    /// The word for people, metrics and SQLite.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Assigned => "assigned",
            Self::Starting => "starting",
            Self::Running { .. } => "running",
            Self::Stopping => "stopping",
            Self::Stopped { .. } => "stopped",
            Self::BackOff { .. } => "back_off",
            Self::Finished { .. } => "finished",
            Self::Unknown => "unknown",
        }
    }

    /// The state after `event`.
    pub fn advance(self, event: Event) -> Result<Self, IllegalMove> {
        use InstanceState as S;
        match (self, event) {
            (S::Assigned | S::BackOff { .. }, Event::StartRequested) => Ok(S::Starting),
            // A daemon that starts anew finds processes already running.
            (S::Assigned | S::Starting, Event::Started { pid, at_ms }) => Ok(S::Running { pid, since_ms: at_ms }),
            (S::Assigned | S::Starting | S::Running { .. }, Event::RetryAt { until_ms, reason }) => {
                Ok(S::BackOff { until_ms, reason })
            }
            (S::Starting | S::Running { .. }, Event::StopRequested) => Ok(S::Stopping),
            (S::Assigned | S::Stopping | S::BackOff { .. }, Event::Stopped { exit }) => Ok(S::Stopped { exit }),
            (S::Finished { exit, .. }, Event::Stopped { .. }) => Ok(S::Stopped { exit: Some(exit) }),
            (S::Assigned | S::Starting | S::Running { .. }, Event::Finished { exit, reason }) => {
                Ok(S::Finished { exit, reason })
            }
            (S::Assigned | S::Stopped { .. } | S::BackOff { .. } | S::Finished { .. }, Event::Reset) => Ok(S::Assigned),
            (from, event) => Err(IllegalMove { from: from.as_str(), event }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        let exit = Exit::new(Some(1), 5);
        prop_oneof![
            Just(Event::StartRequested),
            Just(Event::Started { pid: 7, at_ms: 1 }),
            Just(Event::RetryAt { until_ms: 9, reason: "x".into() }),
            Just(Event::StopRequested),
            Just(Event::Stopped { exit: Some(exit) }),
            Just(Event::Finished { exit, reason: None }),
            Just(Event::Reset),
        ]
    }

    proptest! {
        /// No process is forgotten: running ends only through a stop, an exit or a retry.
        #[test]
        fn a_running_process_never_becomes_assigned_or_stopped_at_once(events in proptest::collection::vec(event(), 0..40)) {
            let mut state = InstanceState::Assigned;
            for event in events {
                let was_running = matches!(state, InstanceState::Running { .. });
                if let Ok(next) = state.clone().advance(event) {
                    if was_running {
                        let skipped = matches!(next, InstanceState::Assigned | InstanceState::Stopped { .. } | InstanceState::Starting);
                        prop_assert!(!skipped, "a running process was forgotten");
                    }
                    state = next;
                }
            }
        }
    }

    #[test]
    fn an_end_without_a_reason_reads_and_writes_as_it_always_did() {
        let text = r#"{"state":"finished","exit":{"code":3,"at_ms":7}}"#;
        let state: InstanceState = serde_json::from_str(text).unwrap();
        assert_eq!(state, InstanceState::Finished { exit: Exit::new(Some(3), 7), reason: None });
        assert_eq!(serde_json::to_string(&state).unwrap(), text);
    }

    #[test]
    fn the_usual_life() {
        let exit = Exit::new(Some(0), 3);
        let mut state = InstanceState::Assigned;
        for (event, word) in [
            (Event::StartRequested, "starting"),
            (Event::Started { pid: 1, at_ms: 1 }, "running"),
            (Event::RetryAt { until_ms: 2, reason: "exited with code 1".into() }, "back_off"),
            (Event::StartRequested, "starting"),
            (Event::Started { pid: 2, at_ms: 2 }, "running"),
            (Event::StopRequested, "stopping"),
            (Event::Stopped { exit: Some(exit) }, "stopped"),
            (Event::Reset, "assigned"),
        ] {
            state = state.advance(event).unwrap();
            assert_eq!(state.as_str(), word);
        }
    }
}
