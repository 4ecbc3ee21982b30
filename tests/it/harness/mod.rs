//! What the tests run against.

use std::sync::atomic::{AtomicBool, Ordering};

pub mod appliance;
pub mod browser;
pub mod census;
pub mod containerd;
pub mod dice;
pub mod http;
pub mod image;
pub mod machine;
pub mod person;
pub mod prober;
pub mod proxy;
pub mod registry;
pub mod terminal;
pub mod trio;

/// Whether the proofs shall run at their full length.
pub fn full() -> bool {
    std::env::var("TOFT_TEST_FULL").is_ok_and(|full| full == "1")
}

/// Sets a flag at the end of its scope, also when the test fails in there: whoever waits for it can end.
pub struct SetAtTheEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
