//! Places for connections: so many in all, and so many for one address. When none is free, the connection that has rested
//! longest gives way, so that whoever holds many open and asks nothing keeps nobody out.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub connections: usize,
    /// From one address, or one IPv6 /64.
    pub per_address: usize,
}

/// The places. Clones share them.
#[derive(Clone)]
pub(super) struct Places(Arc<Mutex<Inner>>);

struct Inner {
    limits: Limits,
    next: u64,
    taken: HashMap<u64, Taken>,
    of_address: HashMap<IpAddr, usize>,
}

struct Taken {
    from: Option<IpAddr>,
    /// Requests that are being answered.
    asked: usize,
    /// Whether nothing was ever asked.
    is_new: bool,
    /// Since when none is.
    rests_since: Instant,
    leave: CancellationToken,
}

impl Places {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Inner { limits, next: 0, taken: HashMap::new(), of_address: HashMap::new() })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from there; `None` when all are taken by connections that are being answered.
    pub(super) fn take(&self, from: Option<IpAddr>) -> Option<Place> {
        let from = from.map(network);
        let mut inner = self.inner();
        if let Some(from) = from
            && inner.of_address.get(&from).is_some_and(|count| *count >= inner.limits.per_address)
        {
            inner.make_room(Some(from)).then_some(())?;
        }
        if inner.taken.len() >= inner.limits.connections {
            let most = inner.of_address.iter().max_by_key(|(_, count)| **count).map(|(address, _)| *address);
            (inner.make_room(most) || inner.make_room(None)).then_some(())?;
        }
        let id = inner.next;
        inner.next += 1;
        let leave = CancellationToken::new();
        let taken = Taken { from, asked: 0, is_new: true, rests_since: Instant::now(), leave: leave.clone() };
        inner.taken.insert(id, taken);
        if let Some(from) = from {
            *inner.of_address.entry(from).or_default() += 1;
        }
        drop(inner);
        Some(Place { places: self.clone(), id, leave })
    }
}

impl Inner {
    /// Lets the connection go that has rested longest, of one address if it is named; whether there was one.
    fn make_room(&mut self, of: Option<IpAddr>) -> bool {
        let resting = self.taken.iter().filter(|(_, taken)| taken.asked == 0 && (of.is_none() || taken.from == of));
        let longest = resting.min_by_key(|(_, taken)| taken.rests_since).map(|(id, _)| *id);
        longest.is_some_and(|id| self.free(id))
    }

    fn free(&mut self, id: u64) -> bool {
        let Some(taken) = self.taken.remove(&id) else { return false };
        taken.leave.cancel();
        if let Some(from) = taken.from
            && let Some(count) = self.of_address.get_mut(&from)
        {
            *count -= 1;
            if *count == 0 {
                self.of_address.remove(&from);
            }
        }
        true
    }
}

/// A connection's place, for as long as it is there.
pub(super) struct Place {
    places: Places,
    id: u64,
    leave: CancellationToken,
}

impl Place {
    /// Ends when the connection is to give way.
    pub(super) fn given_away(&self) -> WaitForCancellationFuture<'_> {
        self.leave.cancelled()
    }

    /// Ends when nothing has been asked for so long: the first time, and since the last.
    pub(super) async fn rested(&self, first: Duration, later: Duration) {
        loop {
            let now = Instant::now();
            let due = match self.places.inner().taken.get(&self.id) {
                Some(Taken { asked: 0, is_new: true, rests_since, .. }) => *rests_since + first,
                Some(Taken { asked: 0, rests_since, .. }) => *rests_since + later,
                Some(_) | None => now + first.min(later),
            };
            if due <= now {
                return;
            }
            sleep_until(due).await;
        }
    }

    /// Notes that something is asked, until what is given is dropped.
    pub(super) fn asked(self: &Arc<Self>) -> Asked {
        if let Some(taken) = self.places.inner().taken.get_mut(&self.id) {
            taken.asked += 1;
            taken.is_new = false;
        }
        Asked(Arc::clone(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.inner().free(self.id);
    }
}

/// A request that is being answered.
pub(super) struct Asked(Arc<Place>);

impl Asked {
    /// Counts for as long as the connection is there: it is no longer one of requests and answers.
    pub(super) fn for_good(self) {
        if let Some(taken) = self.0.places.inner().taken.get_mut(&self.0.id) {
            taken.asked += 1;
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(taken) = self.0.places.inner().taken.get_mut(&self.0.id) {
            taken.asked = taken.asked.saturating_sub(1);
            taken.rests_since = Instant::now();
        }
    }
}

/// The network an address counts as: one customer has a whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn who_rests_longest_gives_way_and_who_is_answered_does_not() {
        let places = Places::new(Limits { connections: 3, per_address: 2 });
        let one = Arc::new(places.take(at("192.0.2.1")).unwrap());
        let asked = one.asked();
        tokio::time::advance(Duration::from_secs(1)).await;
        let two = places.take(at("192.0.2.1")).unwrap();
        // A third of the same address: the first is being answered.
        let three = places.take(at("192.0.2.1")).unwrap();
        assert!(two.leave.is_cancelled() && !one.leave.is_cancelled() && !three.leave.is_cancelled());
        drop(two);
        let other = places.take(at("192.0.2.2")).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(asked);
        // All are taken: whoever has most loses the one that rests longest.
        let last = places.take(at("192.0.2.3")).unwrap();
        assert!(three.leave.is_cancelled() && !one.leave.is_cancelled() && !other.leave.is_cancelled());
        drop((one, three, other, last));
        assert!(places.inner().taken.is_empty() && places.inner().of_address.is_empty());
    }

    #[tokio::test]
    async fn where_all_are_answered_there_is_no_place() {
        let places = Places::new(Limits { connections: 2, per_address: 2 });
        let held: Vec<_> = (0..2).map(|_| Arc::new(places.take(at("2001:db8::1")).unwrap()).asked()).collect();
        assert!(places.take(at("2001:db8::2")).is_none(), "a /64 is one");
        assert!(places.take(at("2001:db8:0:1::1")).is_none() && places.take(None).is_none());
        drop(held);
        let socket = Arc::new(places.take(None).unwrap());
        socket.asked().for_good();
        assert_eq!(places.inner().taken[&socket.id].asked, 1, "an upgraded connection is never at rest");
    }

    #[tokio::test(start_paused = true)]
    async fn rest_is_counted_from_the_last_answer() {
        let places = Places::new(Limits { connections: 2, per_address: 2 });
        let place = Arc::new(places.take(None).unwrap());
        let begun = Instant::now();
        let asked = place.asked();
        let later = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(100)).await;
            drop(asked);
        });
        place.rested(Duration::from_secs(15), Duration::from_secs(60)).await;
        later.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 160);
        let silent = places.take(None).unwrap();
        let begun = Instant::now();
        silent.rested(Duration::from_secs(15), Duration::from_secs(60)).await;
        assert_eq!(begun.elapsed().as_secs(), 15, "who asks nothing at all is waited for less long");
    }
}
