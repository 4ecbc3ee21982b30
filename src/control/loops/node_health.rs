//! Says which nodes are heard of, and which are lost. Only the leader knows, because it asks all members all the time.
//!
//! What is said goes through the log only when it changes. Silence counts by this machine's own steady clock; nobody's wall clock
//! takes part, so clocks that differ change nothing.

use std::{collections::BTreeMap, time::Duration};

use toft_model::{
    ids::NodeId,
    node::NodeHealth,
    state::{Command, NodeRow},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    consensus::{Handle, types::MemberId},
    control::ops::now_ms,
    observe::chain,
};

/// Time between two looks of the leader.
const PERIOD: Duration = Duration::from_millis(100);
/// The same of others, who only remember whom they heard.
const PERIOD_OF_OTHERS: Duration = Duration::from_millis(500);
/// Silence after which a node gets nothing new. Members that vote are asked five times a second, others at least once.
const UNREACHABLE: Duration = Duration::from_millis(1_500);
/// Silence after which a node is lost.
const DOWN: Duration = Duration::from_millis(2_500);
/// The same where so many are silent at the same time that a cause of all is more likely: a switch, a power cut, or processors
/// that are all too busy to answer. To start what ran on all of them elsewhere would make that worse.
const DOWN_OF_MANY: Duration = Duration::from_secs(30);
/// How many nodes may be silent before they are so many: this many, or that part of all if it is more.
const FEW: usize = 8;
const PART: usize = 8;
/// Silence after which a node is lost that said it would be back.
const AWAY: Duration = Duration::from_secs(60);
/// Least time between two notes that say of nobody that it is lost, for each node there is, and at most: every note goes to
/// all nodes, and where many have no time to answer it would take more of it.
const PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Silence after which what is exclusive has stopped on a node that was only cut off: its lease, the time it takes to stop, and
/// something for clocks that run at different speeds.
pub const FENCED: Duration = Duration::from_secs(18);

/// After what silence a node is lost while so many of all are silent.
fn patience(silent: usize, all: usize) -> Duration {
    if silent > FEW.max(all / PART) { DOWN_OF_MANY } else { DOWN }
}

/// What follows from how long a node has been silent. `leads`: how long this member has led; before, it did not ask.
/// `patience`: after what silence it is lost.
fn judge(known: NodeHealth, silence: Duration, leads: Duration, patience: Duration) -> NodeHealth {
    // It was asked, and answered.
    let answered = silence < leads;
    match known {
        NodeHealth::Away if silence >= AWAY => NodeHealth::Down,
        // It says itself when it is back.
        NodeHealth::Away => NodeHealth::Away,
        _ if answered && silence < UNREACHABLE => NodeHealth::Ready,
        NodeHealth::Fenced => NodeHealth::Fenced,
        NodeHealth::Down | NodeHealth::Unreachable | NodeHealth::Ready => {
            let lost = known == NodeHealth::Down || silence >= patience;
            // What was granted under another leader ends after what this one began with.
            if lost && silence.min(leads) >= FENCED {
                NodeHealth::Fenced
            } else if lost {
                NodeHealth::Down
            } else if silence >= UNREACHABLE || known == NodeHealth::Unreachable {
                NodeHealth::Unreachable
            } else {
                NodeHealth::Ready
            }
        }
    }
}

/// Whether what changed of so many nodes is said now, so long after what was said last.
fn is_said(news: &[(NodeId, NodeHealth)], nodes: usize, since: Duration) -> bool {
    let pause = (PAUSE * u32::try_from(nodes).unwrap_or(u32::MAX)).min(LONGEST_PAUSE);
    news.iter().any(|(_, is)| is.is_down()) || !news.is_empty() && since >= pause
}

/// What one lead knows.
struct Lead {
    since: Instant,
    /// The one who led before, and when it was heard of last: its silence began before this lead.
    before: Option<(MemberId, Instant)>,
    known: BTreeMap<NodeId, NodeHealth>,
    /// Those who were lost a moment ago, and when.
    lost: BTreeMap<NodeId, Instant>,
    /// Whether it is told already that too many are silent.
    waits: bool,
    /// When it was said last how nodes are.
    said: Option<Instant>,
    /// Index of the newest command that may have changed it.
    known_at: Option<u64>,
}

impl Lead {
    /// How long a member has been silent: since it answered, since this member asks, or since it led.
    fn silence(&self, state: &Handle, id: MemberId, now: Instant) -> Duration {
        let led = self.before.filter(|(before, _)| *before == id).map(|(_, at)| at);
        let since = match state.heard(id).max(led) {
            Some(at) if led.is_some() || at > self.since => at,
            _ => self.since,
        };
        now.saturating_duration_since(since)
    }

    /// What is news.
    fn news(&mut self, state: &Handle) -> Vec<(NodeId, NodeHealth)> {
        let (members, now) = (state.nodes(), Instant::now());
        let leads = now.saturating_duration_since(self.since);
        let nodes = members.into_iter().filter_map(|(id, node, itself)| {
            let silence = if itself { Duration::ZERO } else { self.silence(state, id, now) };
            Some((node, *self.known.get(&node)?, itself, silence))
        });
        let nodes: Vec<_> = nodes.collect();
        self.lost.retain(|_, at| now.saturating_duration_since(*at) < DOWN_OF_MANY);
        let falls_silent = |(node, known, _, silence): &&(NodeId, NodeHealth, bool, Duration)| {
            let was_there = matches!(known, NodeHealth::Ready | NodeHealth::Unreachable);
            was_there && *silence >= UNREACHABLE && !self.lost.contains_key(node)
        };
        let silent = nodes.iter().filter(falls_silent).count() + self.lost.len();
        let patience = patience(silent, nodes.len());
        let waits = patience > DOWN;
        if waits && !self.waits {
            let seconds = DOWN_OF_MANY.as_secs();
            tracing::warn!(
                "{silent} of {} nodes fell silent at the same time: they count as lost after {seconds} s",
                nodes.len()
            );
        }
        self.waits = waits;
        let mut news = Vec::new();
        for (node, known, itself, silence) in nodes {
            let is = if itself { NodeHealth::Ready } else { judge(known, silence, leads, patience) };
            if is != known {
                news.push((node, is));
            }
            if is.is_down() && !known.is_down() {
                self.lost.insert(node, now);
            }
        }
        news
    }
}

/// Runs until `cancel`.
pub async fn run(state: Handle, cancel: CancellationToken) {
    let mut lead: Option<Lead> = None;
    let mut leader: Option<(MemberId, Instant)> = None;
    let mut applied = state.watch_schedule();
    loop {
        let wait = async {
            // A node that stands alone has nobody to hear of, and is not woken for it.
            if !state.has_others() {
                drop(applied.changed().await);
            }
            tokio::time::sleep(if lead.is_some() { PERIOD } else { PERIOD_OF_OTHERS }).await;
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = wait => {}
        }
        if !state.leads() {
            lead = None;
            if let (Some(id), Some(heard)) = (state.leader(), state.leader_heard().await) {
                leader = Some((id, heard));
            }
            continue;
        }
        let now = match lead.take() {
            Some(lead) => lead,
            None => Lead {
                since: Instant::now(),
                before: leader.take(),
                known: BTreeMap::new(),
                lost: BTreeMap::new(),
                waits: false,
                said: None,
                known_at: None,
            },
        };
        let index = *applied.borrow_and_update();
        lead = Some(round(&state, now, index).await);
    }
}

/// Looks once.
async fn round(state: &Handle, mut lead: Lead, index: u64) -> Lead {
    if lead.known_at != Some(index) {
        match state.read(NodeRow::healths).await {
            Ok(known) => (lead.known, lead.known_at) = (known, Some(index)),
            Err(error) => {
                tracing::error!(error = chain(&error), "what is known of the nodes could not be read");
                return lead;
            }
        }
    }
    let nodes = lead.news(state);
    if !is_said(&nodes, lead.known.len(), lead.said.map_or(Duration::MAX, |at| at.elapsed())) {
        return lead;
    }
    lead.said = Some(Instant::now());
    if let Err(error) = state.propose(Command::NoteNodes { nodes, at_ms: now_ms() }).await {
        tracing::warn!(
            error = chain(&error),
            "which nodes are heard of could not be written down and will be tried again"
        );
    }
    lead
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(f64) -> Duration = Duration::from_secs_f64;

    #[track_caller]
    fn check(known: NodeHealth, silence: f64, leads: f64, expected: NodeHealth) {
        assert_eq!(judge(known, S(silence), S(leads), DOWN), expected);
    }

    #[test]
    fn where_many_fall_silent_at_once_they_are_waited_for() {
        use NodeHealth::{Down, Fenced, Ready, Unreachable};
        for (silent, all, expected) in
            [(1, 2, DOWN), (8, 9, DOWN), (9, 9, DOWN_OF_MANY), (25, 200, DOWN), (26, 200, DOWN_OF_MANY)]
        {
            assert_eq!(patience(silent, all), expected, "{silent} of {all}");
        }
        let judged = |known, silence| judge(known, S(silence), S(100.0), DOWN_OF_MANY);
        assert_eq!(judged(Ready, 2.6), Unreachable);
        assert_eq!(judged(Unreachable, 29.9), Unreachable, "its exclusive instances do not start elsewhere either");
        assert_eq!(judged(Unreachable, 30.1), Fenced);
        assert_eq!(judged(Down, 3.0), Down, "who was lost before stays so");
        assert_eq!(judged(Unreachable, 0.1), Ready);
    }

    #[test]
    fn where_there_are_many_little_is_said_at_a_time_but_a_loss_at_once() {
        use NodeHealth::{Down, Fenced, Ready, Unreachable};
        let said = |is: &[NodeHealth], nodes, since| {
            let news: Vec<_> = is.iter().map(|is| (NodeId(uuid::Uuid::nil()), *is)).collect();
            is_said(&news, nodes, S(since))
        };
        assert!(!said(&[], 3, 100.0));
        assert!(said(&[Unreachable], 3, 0.1) && said(&[Ready], 20, 0.1));
        assert!(!said(&[Ready, Unreachable], 200, 0.9) && said(&[Ready, Unreachable], 200, 1.0));
        assert!(said(&[Ready], 5_000, 1.0));
        assert!(said(&[Ready, Down], 200, 0.0) && said(&[Fenced], 200, 0.0));
    }

    #[test]
    fn silence_makes_a_node_unreachable_then_down_then_fenced_and_an_answer_ready() {
        use NodeHealth::{Down, Fenced, Ready, Unreachable};
        check(Ready, 1.4, 100.0, Ready);
        check(Ready, 1.6, 100.0, Unreachable);
        check(Unreachable, 2.6, 100.0, Down);
        check(Ready, 2.6, 100.0, Down);
        check(Down, 17.9, 100.0, Down);
        check(Down, 18.1, 100.0, Fenced);
        for known in [Unreachable, Down, Fenced] {
            check(known, 0.1, 100.0, Ready);
        }
    }

    #[test]
    fn a_new_leader_believes_what_is_known_until_it_asked() {
        use NodeHealth::{Down, Fenced, Ready, Unreachable};
        for known in [Ready, Unreachable, Down, Fenced] {
            check(known, 0.5, 0.5, known);
        }
        // The one before has been silent for longer; the leases it granted, nobody knows.
        check(Ready, 2.6, 1.0, Down);
        check(Down, 30.0, 17.0, Down);
        check(Down, 30.0, 18.0, Fenced);
    }

    #[test]
    fn who_said_that_it_comes_back_is_waited_for() {
        use NodeHealth::{Away, Down};
        check(Away, 0.1, 100.0, Away);
        check(Away, 59.0, 100.0, Away);
        check(Away, 60.0, 100.0, Down);
    }
}
