//! An authenticator: makes codes that change with time (RFC 6238), apart from the product's own.

use std::time::{Duration, SystemTime};

use ring::hmac;

/// What somebody has on their phone.
pub struct Authenticator(Vec<u8>);

/// The step it is now, with some seconds left in it: codes that are made now are looked at in the same step.
pub fn step() -> u64 {
    loop {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let left = 30 - now.as_secs() % 30;
        if left > 6 {
            return now.as_secs() / 30;
        }
        std::thread::sleep(Duration::from_secs(left));
    }
}

impl Authenticator {
    /// Of a secret as people type it.
    pub fn new(secret: &str) -> Self {
        let plain: String = secret.chars().filter(|c| !c.is_whitespace()).collect();
        Self(data_encoding::BASE32_NOPAD.decode(plain.as_bytes()).unwrap())
    }

    /// The code of a step.
    pub fn code(&self, step: u64) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &self.0);
        let tag = hmac::sign(&key, &step.to_be_bytes());
        let at = usize::from(tag.as_ref()[19] & 15);
        let number = u32::from_be_bytes(tag.as_ref()[at..at + 4].try_into().unwrap()) & 0x7fff_ffff;
        format!("{:06}", number % 1_000_000)
    }
}
