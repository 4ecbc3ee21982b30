//! Whether the cluster's leader hears of this node, which is what exclusive instances may run by.
//!
//! A lease counts from before the leader was asked, by this machine's steady clock, and only an answer renews it. The leader lets
//! another start [`FENCED`](crate::control::loops::node_health::FENCED) after it heard of this node last: later than the lease's
//! end and the time it takes to stop.

use std::time::Duration;

use toft_model::instance::AssignmentSet;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::tasks::Tasks;
use crate::{agent::keeper::Lease, consensus::Handle};

/// How long an answer counts.
const LEASE: Duration = Duration::from_secs(10);
/// How long what ran before this start of the daemon goes on without an answer.
const AT_START: Duration = Duration::from_secs(4);
/// Time between two questions.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Keeps asking for as long as there is something exclusive, and says whether it may run.
pub(super) fn keep(
    state: Handle,
    assignments: watch::Receiver<Option<AssignmentSet>>,
    (tasks, cancel): (&mut Tasks, &CancellationToken),
) -> watch::Receiver<Lease> {
    let (sender, lease) = watch::channel(Lease::Awaited);
    let cancel = cancel.clone();
    tasks.spawn("lease", async move {
        let asking = ask(state, assignments, sender);
        let _ = cancel.run_until_cancelled(asking).await;
    });
    lease
}

fn is_needed(set: Option<&AssignmentSet>) -> bool {
    set.is_some_and(|set| set.assignments.iter().any(|order| order.container.exclusive))
}

async fn ask(state: Handle, mut assignments: watch::Receiver<Option<AssignmentSet>>, lease: watch::Sender<Lease>) {
    let mut until = Instant::now() + AT_START;
    let mut answered = false;
    loop {
        if !is_needed(assignments.borrow_and_update().as_ref()) {
            // What comes later is asked for then.
            if assignments.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        }
        let asked = Instant::now();
        let heard = async { state.stands_alone() || state.is_heard().await };
        let patience = ANSWER.min(until.saturating_duration_since(asked).max(Duration::from_millis(200)));
        if tokio::time::timeout(patience, heard).await.unwrap_or(false) {
            (until, answered) = (asked + LEASE, true);
        }
        let now = Instant::now();
        let is = match (now < until, answered) {
            (true, true) => Lease::Held,
            (true, false) => Lease::Awaited,
            (false, _) => Lease::Over,
        };
        if lease.send_if_modified(|was| std::mem::replace(was, is) != is) && is == Lease::Over {
            tracing::warn!("the leader has not heard of this node for too long: what is exclusive stops here");
        }
        let next = if is == Lease::Held { (now + PERIOD).min(until) } else { now + Duration::from_millis(500) };
        tokio::time::sleep_until(next).await;
    }
}
