//! Slows down who guesses passwords: for each name and for each address, attempts that fail in a row cost more and more time.
//!
//! An attempt counts when it begins and is taken back when it succeeds, so that many at once are no way around. Names that do not
//! exist count like others. What is remembered is bounded; who was not heard of for longest is forgotten first.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Attempts on a name that cost nothing, and from an address.
const FREE_OF_NAME: u32 = 4;
const FREE_OF_ADDRESS: u32 = 19;
/// The first lock, which doubles with each attempt, and the longest.
const FIRST_LOCK: Duration = Duration::from_secs(10);
const LONGEST_LOCK: Duration = Duration::from_secs(15 * 60);
/// After so long without an attempt all is forgotten.
const MEMORY: Duration = Duration::from_secs(60 * 60);
/// Most names, and most addresses.
const MOST: usize = 4_096;

/// Counts attempts.
#[derive(Debug, Clone, Default)]
pub struct Brake(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    names: HashMap<String, Tries>,
    addresses: HashMap<IpAddr, Tries>,
}

#[derive(Debug, Clone, Copy)]
struct Tries {
    failed: u32,
    last: Instant,
    locked_until: Instant,
}

/// An attempt under way, which has failed unless it is told otherwise.
#[must_use]
#[derive(Debug)]
pub struct Attempt {
    brake: Brake,
    name: String,
    from: Option<IpAddr>,
}

impl Brake {
    /// Begins an attempt; the error is the time for which there may be none.
    pub fn begin(&self, name: &str, from: Option<IpAddr>) -> Result<Attempt, Duration> {
        let now = Instant::now();
        let from = from.map(network);
        let mut counts = self.lock();
        let of_address = from.and_then(|from| left(&counts.addresses, &from, now));
        let of_name = left(&counts.names, name, now);
        if let Some(left) = of_address.max(of_name) {
            return Err(left);
        }
        count(&mut counts.names, name.to_owned(), FREE_OF_NAME, now);
        if let Some(from) = from {
            count(&mut counts.addresses, from, FREE_OF_ADDRESS, now);
        }
        Ok(Attempt { brake: self.clone(), name: name.to_owned(), from })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt {
    /// It was right.
    pub fn passed(self) {
        let mut counts = self.brake.lock();
        counts.names.remove(&self.name);
        // An address that knows one password may still be guessing others.
        if let Some(tries) = self.from.and_then(|from| counts.addresses.get_mut(&from)) {
            tries.failed = tries.failed.saturating_sub(1);
            tries.locked_until = tries.last;
        }
    }
}

/// How long it is until the next attempt, if it is not now.
fn left<K: Hash + Eq + std::borrow::Borrow<Q>, Q: Hash + Eq + ?Sized>(
    tries: &HashMap<K, Tries>,
    key: &Q,
    now: Instant,
) -> Option<Duration> {
    let left = tries.get(key)?.locked_until.saturating_duration_since(now);
    (!left.is_zero()).then_some(left)
}

fn count<K: Hash + Eq + Clone>(tries: &mut HashMap<K, Tries>, key: K, free: u32, now: Instant) {
    if tries.len() >= MOST && !tries.contains_key(&key) {
        tries.retain(|_, known| now.saturating_duration_since(known.last) < MEMORY);
        // Those that are locked are forgotten last: otherwise a flood of names would open them.
        if tries.len() >= MOST
            && let Some(oldest) = tries.iter().min_by_key(|(_, tries)| (tries.locked_until > now, tries.last))
        {
            let oldest = oldest.0.clone();
            tries.remove(&oldest);
        }
    }
    let known = tries.entry(key).or_insert(Tries { failed: 0, last: now, locked_until: now });
    if now.saturating_duration_since(known.last) >= MEMORY {
        known.failed = 0;
    }
    known.failed = known.failed.saturating_add(1);
    known.last = now;
    let beyond = known.failed.saturating_sub(free);
    if beyond > 0 {
        known.locked_until = now + FIRST_LOCK.saturating_mul(1 << (beyond - 1).min(10)).min(LONGEST_LOCK);
    }
}

/// The network an address counts as: one customer has a whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[tokio::test(start_paused = true)]
    async fn a_name_is_locked_for_longer_and_longer_and_opened_by_success() {
        let brake = Brake::default();
        for _ in 0..4 {
            drop(brake.begin("ann", None).unwrap());
        }
        brake.begin("ann", None).unwrap().passed();
        for _ in 0..5 {
            drop(brake.begin("ann", None).unwrap());
        }
        assert_eq!(brake.begin("ann", None).unwrap_err(), FIRST_LOCK);
        assert!(brake.begin("bob", None).is_ok(), "others go on");
        tokio::time::advance(FIRST_LOCK).await;
        drop(brake.begin("ann", None).unwrap());
        assert_eq!(brake.begin("ann", None).unwrap_err(), 2 * FIRST_LOCK);
        for _ in 0..20 {
            tokio::time::advance(LONGEST_LOCK).await;
            drop(brake.begin("ann", None).unwrap());
        }
        assert_eq!(brake.begin("ann", None).unwrap_err(), LONGEST_LOCK);
        tokio::time::advance(MEMORY).await;
        for _ in 0..5 {
            drop(brake.begin("ann", None).unwrap());
        }
        assert_eq!(brake.begin("ann", None).unwrap_err(), FIRST_LOCK, "all is forgotten after a while");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_locked_whatever_names_it_tries() {
        let brake = Brake::default();
        for i in 0..20 {
            drop(brake.begin(&format!("user{i}"), Some(HERE)).unwrap());
        }
        assert_eq!(brake.begin("another", Some(HERE)).unwrap_err(), FIRST_LOCK);
        assert_eq!(brake.begin("another", Some("::ffff:192.0.2.1".parse().unwrap())).unwrap_err(), FIRST_LOCK);
        assert!(brake.begin("another", Some("192.0.2.2".parse().unwrap())).is_ok());
        for i in 0..20 {
            drop(brake.begin(&format!("v6-{i}"), Some(format!("2001:db8::{i}").parse().unwrap())).unwrap());
        }
        assert!(brake.begin("x", Some("2001:db8::ffff".parse().unwrap())).is_err(), "a /64 is one");
        assert!(brake.begin("x", Some("2001:db8:0:1::1".parse().unwrap())).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_at_once_are_counted_before_they_end() {
        let brake = Brake::default();
        let under_way: Vec<_> = (0..100).filter_map(|_| brake.begin("ann", None).ok()).collect();
        assert_eq!(under_way.len(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_names_takes_no_memory_and_opens_nothing() {
        let brake = Brake::default();
        for _ in 0..5 {
            drop(brake.begin("ann", None).unwrap());
        }
        for i in 0..3 * MOST {
            drop(brake.begin(&format!("n{i}"), None));
        }
        assert!(brake.lock().names.len() <= MOST);
        assert!(brake.begin("ann", None).is_err(), "who is locked stays so");
    }
}
