//! Keeps the ways back open: calls the other members while no leader is heard of, so that they can call back.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

use super::{
    super::{
        leader::is_known,
        types::{MemberId, Raft},
    },
    back::Pipe,
    peers::Peers,
    server::members_now,
};

/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(500);
/// Time without a leader after which others are called: an election is over by then.
const LOST: Duration = Duration::from_secs(3);
/// How long a way back that nobody takes is kept after the leader was heard.
const IDLE: Duration = Duration::from_secs(60);
/// Most members that are called at a time, and time between two calls of one.
const MOST: usize = 8;
const AGAIN: Duration = Duration::from_secs(2);

/// A member, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Its number.
    pub member_id: MemberId,
    /// `HOST:PORT`.
    pub address: String,
}

/// Calls others whenever no leader is heard of, and hands what comes back to the door of this member at `own`. While no
/// members are known, `contact` is called.
pub(in super::super) async fn call_others(raft: Raft, peers: Arc<Peers>, own: SocketAddr, contact: Option<Contact>) {
    let mut calls: JoinSet<MemberId> = JoinSet::new();
    let mut under_way: BTreeMap<MemberId, Option<Instant>> = BTreeMap::new();
    let mut lost: Option<Instant> = None;
    let me = raft.metrics().borrow().id;
    if let Some(Contact { member_id, address }) = contact.clone() {
        // It was reached there; the address that it told the cluster may be behind a wall.
        peers.also_at([(member_id, vec![address])]);
    }
    loop {
        tokio::time::sleep(PERIOD).await;
        while let Some(ended) = calls.try_join_next() {
            if let Ok(id) = ended {
                under_way.insert(id, Some(Instant::now() + AGAIN));
            }
        }
        under_way.retain(|_, until| until.is_none_or(|until| Instant::now() < until));
        if peers.is_removed() || peers.is_going() || is_known(&raft, &peers).await {
            lost = None;
            continue;
        }
        if lost.get_or_insert_with(Instant::now).elapsed() < LOST {
            continue;
        }
        let mut others: Vec<(MemberId, String)> =
            members_now(&raft).into_iter().map(|(id, member)| (id, member.address)).collect();
        if others.is_empty() {
            others.extend(contact.clone().map(|contact| (contact.member_id, contact.address)));
        }
        for (id, address) in others {
            if id == me || address.is_empty() || calls.len() >= MOST || under_way.contains_key(&id) {
                continue;
            }
            under_way.insert(id, None);
            let (raft, peers) = (raft.clone(), Arc::clone(&peers));
            calls.spawn(async move {
                match peers.call_back(id, &address).await {
                    Ok(pipe) => speak(&raft, &peers, pipe, own).await,
                    Err(error) => tracing::debug!(%error, "member {id} could not be called for a way back"),
                }
                id
            });
        }
    }
}

/// Waits until somebody speaks through the pipe, and hands that to this member's own door.
async fn speak(raft: &Raft, peers: &Peers, mut pipe: Pipe, own: SocketAddr) {
    let mut first = [0; 4 << 10];
    let length = loop {
        match tokio::time::timeout(IDLE, pipe.read(&mut first)).await {
            Ok(Ok(length)) if length > 0 => break length,
            Ok(_) => return,
            Err(_) if is_known(raft, peers).await => return,
            Err(_) => {}
        }
    };
    tracing::debug!("another member speaks with this one through the way back");
    let passed = async {
        let mut door = TcpStream::connect(own).await?;
        door.set_nodelay(true)?;
        door.write_all(&first[..length]).await?;
        copy_bidirectional(&mut pipe, &mut door).await
    };
    if let Err(error) = passed.await {
        tracing::debug!(%error, "a way back has ended");
    }
}
