//! Numbers that a seed determines.

use std::time::{SystemTime, UNIX_EPOCH};

/// Throws them (xorshift).
pub struct Dice(u64);

impl Dice {
    /// Of `TOFT_TEST_SEED`, or of the time.
    pub fn new() -> Self {
        let given = std::env::var("TOFT_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let dice = Self::of(given.unwrap_or_else(now));
        println!("TOFT_TEST_SEED={}", dice.0);
        dice
    }

    pub fn of(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Others, that go their own way.
    pub fn split(&mut self) -> Self {
        Self::of(self.below(u64::MAX))
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
