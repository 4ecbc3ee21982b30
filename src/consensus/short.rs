//! A member whose disk has no room takes no part in leading: it falls silent as a leader, does not stand for election, and does
//! not trust its own consensus to say who leads, which may wait for the disk as well. It comes back by itself.
//!
//! ```text
//! taking part --a write has waited for a while--> short --the write found room--> taking part
//! ```
//!
//! A member that has just begun takes no part either, until a leader spoke to it or has had the time to: standing at once would end
//! the term of a leader that is well, and openraft makes a member that lost an election wait longer in the next one, which
//! would be the one that counts.
//!
//! Handing the lead over in order would not do: the others stay true to a leader for as long as anything of it reaches them, and
//! what is proposed meanwhile goes to them. So nothing goes out (`network::Way`), and they elect one of them after the time in
//! which they elect anyway. What was acknowledged is on the disks of a majority, and whoever is elected has it.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    network::Peers,
    types::{Member, MemberId, Raft},
};

/// How long a write may wait for room before this member takes no part. A shorter want of room is a disk that is slow.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a member that has just begun waits to hear of a leader before it may stand for election.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// Follows whether the writer of the log, or that of the state, waits for room.
pub(super) async fn keep(raft: Raft, peers: Arc<Peers>, mut waits: [watch::Receiver<bool>; 2]) {
    drop(tokio::time::timeout(FIRST_WORD, peers.until_led()).await);
    raft.runtime_config().elect(true);
    loop {
        until_one_waits(&mut waits).await;
        if tokio::time::timeout(PATIENCE, until_none_waits(&mut waits)).await.is_ok() {
            continue;
        }
        let led = leads_others(&raft.metrics().borrow());
        peers.set_short(true);
        raft.runtime_config().elect(false);
        if led {
            tracing::warn!("this member led, and its disk has no room: it falls silent, so that another one leads");
        }
        until_none_waits(&mut waits).await;
        raft.runtime_config().elect(true);
        peers.set_short(false);
        tracing::info!("this member takes part in leading again");
    }
}

fn leads_others(metrics: &openraft::RaftMetrics<MemberId, Member>) -> bool {
    metrics.current_leader == Some(metrics.id) && metrics.membership_config.voter_ids().any(|id| id != metrics.id)
}

async fn until_one_waits([log, state]: &mut [watch::Receiver<bool>; 2]) {
    tokio::select! {
        () = until(log, true) => {}
        () = until(state, true) => {}
    }
}

async fn until_none_waits([log, state]: &mut [watch::Receiver<bool>; 2]) {
    while *log.borrow() || *state.borrow() {
        until(log, false).await;
        until(state, false).await;
    }
}

async fn until(waits: &mut watch::Receiver<bool>, wanted: bool) {
    if waits.wait_for(|waits| *waits == wanted).await.is_err() {
        // The writer has ended, and whoever keeps it says so.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn either_writer_is_waited_for_and_both_until_they_have_room() {
        let (log, state) = (watch::Sender::new(false), watch::Sender::new(false));
        let mut waits = [log.subscribe(), state.subscribe()];
        let soon = Duration::from_secs(1);
        assert!(tokio::time::timeout(soon, until_one_waits(&mut waits)).await.is_err(), "nobody waits");
        assert!(tokio::time::timeout(soon, until_none_waits(&mut waits)).await.is_ok());
        for one in [&log, &state] {
            one.send_replace(true);
            assert!(tokio::time::timeout(soon, until_one_waits(&mut waits)).await.is_ok());
        }
        log.send_replace(false);
        assert!(tokio::time::timeout(soon, until_none_waits(&mut waits)).await.is_err(), "the other still waits");
        state.send_replace(false);
        assert!(tokio::time::timeout(soon, until_none_waits(&mut waits)).await.is_ok());
        drop((log, state));
        assert!(tokio::time::timeout(soon, until_one_waits(&mut waits)).await.is_err(), "their end is no want of room");
    }
}
