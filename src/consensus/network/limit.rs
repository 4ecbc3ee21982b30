//! How often strangers may ask: so often for each address, and so often for all. What is remembered is bounded.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Calls of one address at once, and one more each so many milliseconds.
const ONE: Rate = Rate { burst: 20, each: Duration::from_millis(500) };
/// The same for all addresses together.
const ALL: Rate = Rate { burst: 200, each: Duration::from_millis(50) };
/// Addresses that are remembered.
const REMEMBERED: usize = 1_024;

#[derive(Clone, Copy)]
struct Rate {
    burst: u32,
    each: Duration,
}

/// A bucket that fills by and by: the time at which it is full again.
#[derive(Clone, Copy)]
struct Bucket(Instant);

impl Bucket {
    /// Takes one, or says how long there is none.
    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let full = self.0.max(now) + rate.each;
        match full.checked_duration_since(now + rate.each * rate.burst) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                self.0 = full;
                Ok(())
            }
        }
    }
}

/// Who asked how often.
pub(super) struct Limits {
    all: Bucket,
    each: HashMap<IpAddr, Bucket>,
}

impl Limits {
    pub(super) fn new() -> Self {
        Self { all: Bucket(Instant::now()), each: HashMap::new() }
    }

    /// Whether a call may be answered, or how long it has to wait.
    pub(super) fn take(&mut self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        let from = network(from);
        if self.each.len() >= REMEMBERED && !self.each.contains_key(&from) {
            self.each.retain(|_, bucket| bucket.0 > now);
            // Whoever has so many addresses meets the limit for all.
            if self.each.len() >= REMEMBERED {
                self.each.clear();
            }
        }
        self.each.entry(from).or_insert(Bucket(now)).take(ONE, now)?;
        self.all.take(ALL, now)
    }
}

/// An address, or the network that one machine has for itself.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_use_up_what_others_have() {
        let (mut limits, now) = (Limits::new(), Instant::now());
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert_eq!((0..100).filter(|_| limits.take(one, now).is_ok()).count(), 20);
        assert!(limits.take(one, now).unwrap_err() <= ONE.each);
        assert_eq!(limits.take(other, now), Ok(()));
        assert!(limits.take("::ffff:192.0.2.1".parse().unwrap(), now).is_err(), "the same machine");
        assert_eq!(limits.take(one, now + ONE.each), Ok(()));
        assert!(limits.take(one, now + ONE.each).is_err());
    }

    #[test]
    fn many_addresses_meet_the_limit_for_all_and_are_not_all_remembered() {
        let (mut limits, now) = (Limits::new(), Instant::now());
        let addresses = (0..100_000u32).map(|number| IpAddr::from(number.to_be_bytes()));
        assert_eq!(addresses.filter(|address| limits.take(*address, now).is_ok()).count(), 200);
        assert!(limits.each.len() <= REMEMBERED);
        let six = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        let later = now + Duration::from_secs(60);
        assert_eq!((0..100).filter(|last| limits.take(six(*last), later).is_ok()).count(), 20, "one network");
    }
}
