//! What the tests run against.

use std::{
    io::Write as _,
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
};

pub mod appliance;
pub mod authenticator;
pub mod axe;
pub mod browser;
pub mod census;
pub mod containerd;
pub mod dev;
pub mod dice;
pub mod http;
pub mod id_provider;
pub mod image;
pub mod lan;
pub mod machine;
pub mod made_up;
pub mod mounts;
pub mod nat;
pub mod nvml;
pub mod outage;
pub mod person;
pub mod prober;
pub mod proxy;
pub mod registry;
pub mod socket;
pub mod soft_key;
pub mod terminal;
pub mod trio;

/// Whether the proofs shall run at their full length.
pub fn full() -> bool {
    std::env::var("TOFT_TEST_FULL").is_ok_and(|full| full == "1")
}

/// How many times slower than others this machine is: what must have come by some time may come so much later.
pub fn slowness() -> u32 {
    std::env::var("TOFT_TEST_SLOWNESS").map_or(1, |times| times.parse().expect("TOFT_TEST_SLOWNESS is a number"))
}

/// Tells what fails when it fails, and not only at the end of all tests: a run that is cut short has said why.
pub fn tell_failures_at_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            usual(panic);
            let thread = std::thread::current();
            // Past what the test harness keeps for the end.
            let _ = writeln!(std::io::stderr(), "{} fails: {panic}", thread.name().unwrap_or("a thread of a test"));
        }));
    });
}

/// Sets a flag at the end of its scope, also when the test fails in there: whoever waits for it can end.
pub struct SetAtTheEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs tests against the fake and against containerd: by functions `on_fake` and `on_containerd` of the module that asks.
macro_rules! conformance {
    ($($test:ident),* $(,)?) => {
        mod fake {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::on_fake(super::$test).await;
            })*
        }
        mod containerd {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::on_containerd(super::$test).await;
            })*
        }
    };
}
pub(crate) use conformance;
