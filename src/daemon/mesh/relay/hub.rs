//! The relay that this node is for others: hands each what others send to it. It reads nothing of it; WireGuard has
//! encrypted it from end to end.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{Stream, stream};
use toft_model::ids::NodeId;
use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, interval},
};
use tonic::{Request, Response, Status, Streaming};

use super::{id, queue::Queue};
use crate::{
    consensus::network::Caller,
    wire::relay::{Attached, Carried, Present, relay_server::Relay},
};

/// Time between two questions how far away somebody is.
const ASK: Duration = Duration::from_secs(3);
/// Silence after which somebody is gone: the questions are answered.
const SILENCE: Duration = Duration::from_secs(10);
/// Calls of one node at once, and one more each so often.
const CALLS: u32 = 10;
const EACH: Duration = Duration::from_secs(1);
/// Most nodes that are carried for.
const MOST: usize = 1_024;

/// Everybody who is carried for.
#[derive(Default)]
pub(in super::super) struct Hub {
    seats: Mutex<HashMap<NodeId, Place>>,
    /// By node, when it may call as often as it likes again.
    calls: Mutex<HashMap<NodeId, Instant>>,
    /// Counts who comes and goes.
    changed: watch::Sender<u64>,
}

struct Place {
    queue: Arc<Queue>,
    round_trip: Option<Duration>,
}

impl Hub {
    fn seats(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, Place>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries for `node` from now on; nothing when there is no room for one more.
    pub(super) fn seat(self: &Arc<Self>, node: NodeId, round_trip: Option<Duration>) -> Option<Seat> {
        let queue = Arc::new(Queue::default());
        {
            let mut seats = self.seats();
            if seats.len() >= MOST && !seats.contains_key(&node) {
                return None;
            }
            let place = Place { queue: Arc::clone(&queue), round_trip };
            if let Some(former) = seats.insert(node, place) {
                former.queue.close();
            }
        }
        self.changed.send_modify(|count| *count += 1);
        Some(Seat { hub: Arc::clone(self), node, queue })
    }

    /// Hands a datagram on; false when the node is not there or has no room.
    pub(super) fn pass(&self, from: NodeId, to: NodeId, content: Vec<u8>) -> bool {
        let queue = self.seats().get(&to).map(|place| Arc::clone(&place.queue));
        queue.is_some_and(|queue| queue.push(from, content))
    }

    /// Who is there, and how far away, as far as that is known.
    pub(super) fn present(&self) -> BTreeMap<NodeId, Duration> {
        self.seats().iter().filter_map(|(node, place)| Some((*node, place.round_trip?))).collect()
    }

    /// Changes when somebody comes or goes.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn present_but(&self, me: NodeId) -> Present {
        let others = self.present().into_iter().filter(|(node, _)| *node != me);
        let attached = |(node, round_trip): (NodeId, Duration)| Attached {
            node: node.0.as_bytes().to_vec(),
            round_trip_us: u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX),
        };
        Present { nodes: others.map(attached).collect() }
    }

    /// Whether a node may call once more now.
    fn may_call(&self, node: NodeId, now: Instant) -> bool {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.len() > MOST {
            calls.retain(|_, full| *full > now);
        }
        let full = calls.entry(node).or_insert(now);
        let next = (*full).max(now) + EACH;
        let fits = next <= now + EACH * CALLS;
        if fits {
            *full = next;
        }
        fits
    }
}

/// A place in the hub; it is given up with this.
pub(super) struct Seat {
    hub: Arc<Hub>,
    pub(super) node: NodeId,
    pub(super) queue: Arc<Queue>,
}

impl Seat {
    fn is_at(&self, round_trip: Duration) {
        let mut seats = self.hub.seats();
        let mine = seats.get_mut(&self.node).filter(|place| Arc::ptr_eq(&place.queue, &self.queue));
        let first = mine.is_some_and(|place| place.round_trip.replace(round_trip).is_none());
        drop(seats);
        if first {
            self.hub.changed.send_modify(|count| *count += 1);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.queue.close();
        let mut seats = self.hub.seats();
        if seats.get(&self.node).is_some_and(|place| Arc::ptr_eq(&place.queue, &self.queue)) {
            seats.remove(&self.node);
        }
        drop(seats);
        self.hub.changed.send_modify(|count| *count += 1);
    }
}

/// Answers members that want to be carried for.
pub(in super::super) struct Counter(pub(in super::super) Arc<Hub>);

/// One call.
struct Visit {
    seat: Seat,
    inward: Streaming<Carried>,
    changed: watch::Receiver<u64>,
    asks: Interval,
    /// The number of the question that is under way, and since when.
    asked: (u64, Instant),
    heard: Instant,
}

impl Visit {
    /// What is to be said next; nothing at the end.
    async fn next(&mut self) -> Option<Result<Carried, Status>> {
        loop {
            tokio::select! {
                message = self.seat.queue.next() => return message.map(Ok),
                message = self.inward.message() => match message {
                    Ok(Some(message)) => self.take(message),
                    Ok(None) | Err(_) => return None,
                },
                _ = self.changed.changed() => self.seat.queue.tell(self.seat.hub.present_but(self.seat.node)),
                _ = self.asks.tick() => {
                    if self.heard.elapsed() > SILENCE {
                        return None;
                    }
                    self.asked = (self.asked.0 + 1, Instant::now());
                    self.seat.queue.ping(self.asked.0);
                    self.seat.queue.tell(self.seat.hub.present_but(self.seat.node));
                }
            }
        }
    }

    fn take(&mut self, message: Carried) {
        self.heard = Instant::now();
        for datagram in message.datagrams {
            if let Some(to) = id(&datagram.node) {
                self.seat.hub.pass(self.seat.node, to, datagram.content);
            }
        }
        if message.ping != 0 {
            self.seat.queue.pong(message.ping);
        }
        if message.pong != 0 && message.pong == self.asked.0 {
            self.seat.is_at(self.asked.1.elapsed());
        }
    }
}

#[tonic::async_trait]
impl Relay for Counter {
    type CarryStream = Pin<Box<dyn Stream<Item = Result<Carried, Status>> + Send>>;

    async fn carry(&self, request: Request<Streaming<Carried>>) -> Result<Response<Self::CarryStream>, Status> {
        let Some(Caller { node_id: node, .. }) = request.extensions().get::<Caller>().copied() else {
            return Err(Status::unauthenticated("a certificate of the cluster is needed"));
        };
        if !self.0.may_call(node, Instant::now()) {
            return Err(Status::resource_exhausted("this node calls too often"));
        }
        let Some(seat) = self.0.seat(node, None) else {
            return Err(Status::resource_exhausted("so many are carried for that there is no room for one more"));
        };
        let mut asks = interval(ASK);
        asks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        let visit =
            Visit { changed: self.0.watch(), seat, inward: request.into_inner(), asks, asked: (0, now), heard: now };
        let messages = stream::unfold(Some(visit), async |visit| {
            let mut visit = visit?;
            let message = visit.next().await?;
            let goes_on = message.is_ok();
            Some((message, goes_on.then_some(visit)))
        });
        Ok(Response::new(Box::pin(messages)))
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
    async fn each_is_handed_what_is_for_it_and_knows_from_whom() {
        let hub = Arc::new(Hub::default());
        let (one, two) = (hub.seat(node(1), None).unwrap(), hub.seat(node(2), Some(Duration::ZERO)).unwrap());
        assert!(hub.pass(node(1), node(2), b"hello".to_vec()));
        assert!(!hub.pass(node(1), node(3), b"nobody".to_vec()));
        let message = two.queue.next().await.unwrap();
        assert_eq!(id(&message.datagrams[0].node), Some(node(1)));
        assert_eq!(message.datagrams[0].content, b"hello");
        assert_eq!(hub.present().into_keys().collect::<Vec<_>>(), [node(2)], "whose distance is known");
        one.is_at(Duration::from_millis(3));
        assert_eq!(hub.present_but(node(2)).nodes[0].round_trip_us, 3_000);
        // Who comes again takes its place; the former end of it changes nothing any more.
        let again = hub.seat(node(1), Some(Duration::ZERO)).unwrap();
        assert!(one.queue.next().await.is_none());
        drop(one);
        assert!(hub.pass(node(2), node(1), Vec::new()));
        drop(again);
        assert!(!hub.pass(node(2), node(1), Vec::new()));
    }

    #[test]
    fn who_calls_again_and_again_waits() {
        let (hub, now) = (Hub::default(), Instant::now());
        assert_eq!((0..100).filter(|_| hub.may_call(node(7), now)).count(), 10);
        assert!(hub.may_call(node(8), now), "another is not in its way");
        assert!(hub.may_call(node(7), now + EACH));
        assert!(!hub.may_call(node(7), now + EACH));
    }

    #[test]
    fn no_more_than_so_many_are_carried_for() {
        let hub = Arc::new(Hub::default());
        let seats: Vec<_> = (0..2_000).filter_map(|number| hub.seat(node(number), None)).collect();
        assert_eq!(seats.len(), MOST);
        assert!(hub.seat(node(0), None).is_some(), "one of them may come again");
    }
}
