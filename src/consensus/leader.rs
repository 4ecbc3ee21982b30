//! Whether anybody leads, as far as this member can tell, and since when nobody does.

use std::{sync::Arc, time::Duration};

use openraft::RaftMetrics;
use tokio::{sync::watch, time::Instant};

use super::{
    network::Peers,
    types::{Member, MemberId, Raft},
};

/// Silence after which a leader counts as lost: nobody it can reach is a majority, or it is not heard of.
pub(super) const SILENCE: Duration = Duration::from_secs(2);
/// Time without a leader after which nobody is kept waiting for one. An election takes about a second.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(250);

/// Since when nobody leads; none while somebody does.
type Lost = Option<Instant>;

/// Who leads.
pub(super) enum Leader {
    /// This member.
    Me,
    /// Another one.
    Other(MemberId, Member),
}

/// What is known about the leader.
#[derive(Clone)]
pub(super) struct Leadership {
    raft: Raft,
    peers: Arc<Peers>,
    lost: Arc<watch::Receiver<Lost>>,
}

impl Leadership {
    /// With the task that keeps it right.
    pub(super) fn new(raft: &Raft, peers: &Arc<Peers>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, lost) = watch::channel(None);
        let watching = keep(raft.clone(), Arc::clone(peers), sender);
        (Self { raft: raft.clone(), peers: Arc::clone(peers), lost: Arc::new(lost) }, watching)
    }

    /// Whom to hand requests to.
    pub(super) fn now(&self) -> Option<Leader> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let id = leader(&metrics, &self.peers)?;
        if id == metrics.id {
            return Some(Leader::Me);
        }
        let member = metrics.membership_config.membership().get_node(&id)?;
        Some(Leader::Other(id, member.clone()))
    }

    /// Ends when `id` does not lead any more.
    pub(super) async fn left(&self, id: MemberId) {
        let mut metrics = self.raft.server_metrics();
        drop(metrics.wait_for(|now| now.current_leader.is_some_and(|leader| leader != id)).await);
    }

    /// Ends when this member has no room to lead others on.
    pub(super) async fn yielded(&self) {
        self.peers.until_short().await;
        if votes_alone(&self.raft.metrics().borrow()) {
            std::future::pending().await
        }
    }

    /// Whether nobody has led for so long that waiting is no use.
    pub(super) async fn is_given_up(&self) -> bool {
        let long_lost = self.lost.borrow().is_some_and(|since| since.elapsed() >= PATIENCE);
        // The note is a moment old.
        long_lost && !is_known(&self.raft, &self.peers).await
    }

    /// Ends when nobody has led for so long.
    pub(super) async fn given_up(&self) {
        let mut lost = watch::Receiver::clone(&self.lost);
        loop {
            let since = *lost.borrow_and_update();
            let over = async {
                match since {
                    Some(since) => tokio::time::sleep_until(since + PATIENCE).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => {
                    if self.is_given_up().await {
                        return;
                    }
                    tokio::time::sleep(PERIOD).await;
                }
                changed = lost.changed() => {
                    if changed.is_err() {
                        // Consensus ends, and says so itself.
                        return std::future::pending().await;
                    }
                }
            }
        }
    }
}

/// Notes when the leader is lost and when there is one again.
async fn keep(raft: Raft, peers: Arc<Peers>, lost: watch::Sender<Lost>) {
    loop {
        let known = is_known(&raft, &peers).await;
        lost.send_if_modified(|lost| {
            let moved = lost.is_some() == known;
            *lost = if known { None } else { lost.or_else(|| Some(Instant::now())) };
            moved
        });
        tokio::time::sleep(PERIOD).await;
    }
}

/// Whether somebody leads and was heard of lately.
pub(super) async fn is_known(raft: &Raft, peers: &Peers) -> bool {
    // Consensus may be held up by the disk, and answer nobody.
    if peers.is_short() && !votes_alone(&raft.metrics().borrow()) {
        return peers.leader_heard(SILENCE).is_some();
    }
    let heard = raft.with_raft_state(|state| state.vote_last_modified()).await.ok().flatten();
    let silent = heard.is_none_or(|heard| heard.elapsed() > SILENCE);
    let metrics = raft.metrics();
    let metrics = metrics.borrow();
    leader(&metrics, peers).is_some_and(|id| id == metrics.id || !silent)
}

/// Who leads. A leader that no majority answers any more may have been replaced, and cannot do anything anyway. One without room
/// does not lead on, and knows only from the calls that reach it who does.
pub(super) fn leader(metrics: &RaftMetrics<MemberId, Member>, peers: &Peers) -> Option<MemberId> {
    let alone = votes_alone(metrics);
    if peers.is_short() && !alone {
        return peers.leader_heard(SILENCE).filter(|id| *id != metrics.id);
    }
    let answered = metrics.millis_since_quorum_ack.is_some_and(|ms| Duration::from_millis(ms) < SILENCE);
    metrics.current_leader.filter(|leader| *leader != metrics.id || alone || answered)
}

fn votes_alone(metrics: &RaftMetrics<MemberId, Member>) -> bool {
    metrics.membership_config.voter_ids().eq([metrics.id])
}
