//! What waits to be sent to one end of a relay. It never blocks who puts something in, and holds so much and no more: what does
//! not fit is dropped, as networks do.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use toft_model::ids::NodeId;
use tokio::sync::Notify;

use crate::wire::relay::{Carried, Datagram, Present};

/// Most bytes that wait, with what each datagram costs besides.
const MOST_BYTES: usize = 1 << 20;
const EACH: usize = 128;
/// Most bytes in one message.
const MESSAGE: usize = 128 << 10;
/// Largest datagram: the largest packet of the mesh, and what WireGuard adds.
pub(super) const LARGEST: usize = 9_216;

/// The queue.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Default)]
struct Waiting {
    datagrams: VecDeque<Datagram>,
    bytes: usize,
    present: Option<Present>,
    ping: Option<u64>,
    pong: Option<u64>,
    closed: bool,
}

impl Queue {
    fn with<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        let changed = change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.news.notify_one();
        changed
    }

    /// Puts a datagram in, about `node`. False when there is no room for it.
    pub(super) fn push(&self, node: NodeId, content: Vec<u8>) -> bool {
        let cost = content.len() + EACH;
        self.with(|waiting| {
            if waiting.closed || content.len() > LARGEST || waiting.bytes + cost > MOST_BYTES {
                return false;
            }
            waiting.bytes += cost;
            waiting.datagrams.push_back(Datagram { node: node.0.as_bytes().to_vec(), content });
            true
        })
    }

    /// Says who is there; what was to be said of it before is not said any more.
    pub(super) fn tell(&self, present: Present) {
        self.with(|waiting| waiting.present = Some(present));
    }

    /// Asks the other end.
    pub(super) fn ping(&self, number: u64) {
        self.with(|waiting| waiting.ping = Some(number));
    }

    /// Answers the other end.
    pub(super) fn pong(&self, number: u64) {
        self.with(|waiting| waiting.pong = Some(number));
    }

    /// Nothing is sent any more.
    pub(super) fn close(&self) {
        self.with(|waiting| *waiting = Waiting { closed: true, ..Waiting::default() });
    }

    /// The next message, once there is something to say; nothing when the queue was closed.
    pub(super) async fn next(&self) -> Option<Carried> {
        loop {
            let news = self.news.notified();
            {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if waiting.closed {
                    // Whoever else waits is to hear it too.
                    self.news.notify_one();
                    return None;
                }
                if let Some(message) = waiting.take() {
                    return Some(message);
                }
            }
            news.await;
        }
    }

    /// Bytes that wait.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

impl Waiting {
    fn take(&mut self) -> Option<Carried> {
        let (mut datagrams, mut bytes) = (Vec::new(), 0);
        while bytes < MESSAGE
            && let Some(datagram) = self.datagrams.pop_front()
        {
            let cost = datagram.content.len() + EACH;
            (bytes, self.bytes) = (bytes + cost, self.bytes - cost);
            datagrams.push(datagram);
        }
        let (present, ping, pong) = (self.present.take(), self.ping.take(), self.pong.take());
        let silent = datagrams.is_empty() && present.is_none() && ping.is_none() && pong.is_none();
        let numbers = (ping.unwrap_or(0), pong.unwrap_or(0));
        (!silent).then_some(Carried { datagrams, present, ping: numbers.0, pong: numbers.1 })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId(Uuid::from_u128(number))
    }

    #[tokio::test]
    async fn what_was_put_in_comes_out_in_order_and_together() {
        let queue = Queue::default();
        for number in 0..3 {
            assert!(queue.push(node(7), vec![number; 100]));
        }
        queue.ping(5);
        queue.ping(6);
        queue.pong(7);
        let message = queue.next().await.unwrap();
        let contents: Vec<u8> = message.datagrams.iter().map(|datagram| datagram.content[0]).collect();
        assert_eq!((contents, message.ping, message.pong), (vec![0, 1, 2], 6, 7));
        assert_eq!(queue.bytes(), 0);
        let waits = tokio::time::timeout(std::time::Duration::from_millis(20), queue.next());
        assert!(waits.await.is_err(), "nothing is to be said");
        queue.close();
        assert!(queue.next().await.is_none() && queue.next().await.is_none());
        assert!(!queue.push(node(7), vec![0]));
    }

    #[tokio::test]
    async fn whoever_takes_nothing_costs_so_much_and_no_more() {
        let queue = Queue::default();
        let taken = (0..100_000).filter(|_| queue.push(node(7), vec![0; 1_400])).count();
        assert!((500..MOST_BYTES / 1_400).contains(&taken), "{taken}");
        let tiny = Queue::default();
        assert!((0..100_000).filter(|_| tiny.push(node(7), Vec::new())).count() <= MOST_BYTES / EACH);
        assert!(!Queue::default().push(node(7), vec![0; LARGEST + 1]));
        assert!(queue.bytes() <= MOST_BYTES);
        // A message is bounded too, and room comes back with it.
        let message = queue.next().await.unwrap();
        assert!(message.datagrams.len() <= MESSAGE / 1_400 + 1);
        assert!(queue.push(node(7), vec![0; 1_400]));
    }
}
