//! Codes that change with time (TOTP, RFC 6238): SHA-1, 30 seconds, six digits, which every authenticator knows. And recovery codes.

use std::fmt;

use data_encoding::BASE32_NOPAD;
use ring::hmac;
use sha2::{Digest as _, Sha256};
use toft_model::{identity::UserName, second_factor::STEP_MS, token::Digest};
use zeroize::Zeroizing;

use super::secret::{NoRandom, random};

/// Bytes of a secret: the length of a SHA-1, as RFC 4226 recommends.
const SECRET: usize = 20;
/// Digits of a code.
const DIGITS: usize = 6;
/// Steps before and after the present one whose codes count: clocks differ, and people type slowly.
const WINDOW: u64 = 1;
/// Bytes of a recovery code: 80 bits are not guessed, also by whoever reads its digest.
const RECOVERY: usize = 10;
/// Characters between two dashes of a recovery code.
const GROUP: usize = 4;
/// Longest text that is looked at as a code, in bytes.
const LONGEST: usize = 64;

/// The secret that codes are made of.
pub struct TotpSecret(Zeroizing<Vec<u8>>);

impl TotpSecret {
    /// A new one.
    pub fn make() -> Result<Self, NoRandom> {
        Ok(Self(Zeroizing::new(random::<SECRET>()?.to_vec())))
    }

    /// Of these bytes, which were sealed.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The bytes, to be sealed.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As people type it into an authenticator.
    pub fn base32(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE32_NOPAD.encode(&self.0))
    }

    /// As authenticators read it from a picture. `issuer` and `user` hold nothing that needs to be escaped but what is escaped here.
    pub fn address(&self, issuer: &str, user: &UserName) -> Zeroizing<String> {
        let escaped = |text: &str| -> String {
            text.bytes()
                .map(|byte| match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
                    byte => format!("%{byte:02X}"),
                })
                .collect()
        };
        let (issuer, user) = (escaped(issuer), escaped(user.as_str()));
        let secret = self.base32();
        Zeroizing::new(format!("otpauth://totp/{issuer}:{user}?secret={}&issuer={issuer}", *secret))
    }

    /// The code of a step.
    fn code(&self, step: u64) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &self.0);
        let tag = hmac::sign(&key, &step.to_be_bytes());
        let tag = tag.as_ref();
        let at = usize::from(tag[tag.len() - 1] & 15);
        let number = u32::from_be_bytes([tag[at] & 0x7f, tag[at + 1], tag[at + 2], tag[at + 3]]);
        format!("{:0DIGITS$}", number % 10_u32.pow(DIGITS as u32))
    }

    /// The step whose code this is, at that time; nothing when it is none that counts, or one up to `after`. Time does not tell how
    /// much of it was right.
    pub fn step_of(&self, text: &str, now_ms: i64, after: u64) -> Option<u64> {
        let typed: String = text.chars().filter(|c| !c.is_whitespace()).take(DIGITS + 1).collect();
        let now = u64::try_from(now_ms / STEP_MS).ok()?;
        let mut found = None;
        for step in now.saturating_sub(WINDOW)..=now + WINDOW {
            let same = is_same(self.code(step).as_bytes(), typed.as_bytes());
            if same && step > after {
                found = Some(step);
            }
        }
        found
    }
}

impl fmt::Debug for TotpSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TotpSecret(..)")
    }
}

fn is_same(one: &[u8], other: &[u8]) -> bool {
    let differs = one.iter().zip(other).fold(0, |differs, (one, other)| differs | (one ^ other));
    one.len() == other.len() && std::hint::black_box(differs) == 0
}

/// Whether a text can be a code of an authenticator; else it may be a recovery code.
pub fn is_code(text: &str) -> bool {
    let typed = || text.chars().filter(|c| !c.is_whitespace());
    text.len() <= LONGEST && typed().count() == DIGITS && typed().all(|c| c.is_ascii_digit())
}

/// New recovery codes: `abcd-efgh-ijkl-mnop`.
pub fn recovery_codes(count: usize) -> Result<Vec<Zeroizing<String>>, NoRandom> {
    let code = || {
        let letters = Zeroizing::new(BASE32_NOPAD.encode(&random::<RECOVERY>()?).to_ascii_lowercase());
        let mut code = Zeroizing::new(String::with_capacity(letters.len() + letters.len() / GROUP));
        for (at, letter) in letters.chars().enumerate() {
            if at > 0 && at.is_multiple_of(GROUP) {
                code.push('-');
            }
            code.push(letter);
        }
        Ok(code)
    };
    (0..count).map(|_| code()).collect()
}

/// What the state keeps of a user's recovery code, however it is written.
pub fn recovery_digest(user: &UserName, code: &str) -> Digest {
    let typed = code.chars().filter(|c| c.is_ascii_alphanumeric()).take(LONGEST).map(|c| c.to_ascii_lowercase());
    let typed = Zeroizing::new(typed.collect::<String>());
    let digest = Sha256::new().chain_update(b"toft recovery code\0").chain_update(user.as_str());
    Digest(digest.chain_update([0]).chain_update(typed.as_bytes()).finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_the_standard() {
        // RFC 6238, appendix B: eight digits there, of which these are the last six.
        let secret = TotpSecret::from_bytes(b"12345678901234567890");
        for (seconds, code) in [
            (59_u64, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(secret.code(seconds / 30), code);
            assert_eq!(secret.step_of(code, seconds as i64 * 1_000, 0), Some(seconds / 30));
        }
        assert_eq!(*secret.base32(), "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
        let address = secret.address("toft home", &"ann@example.org".parse().unwrap());
        assert_eq!(
            *address,
            "otpauth://totp/toft%20home:ann%40example.org?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=toft%20home"
        );
        assert!(!format!("{secret:?}").contains("123"));
    }

    #[test]
    fn a_code_counts_for_three_steps_and_once() {
        let secret = TotpSecret::make().unwrap();
        let (step, now_ms) = (1_000_000, 1_000_000 * STEP_MS + 12_345);
        for (of, counts) in [(step - 2, false), (step - 1, true), (step, true), (step + 1, true), (step + 2, false)] {
            // Codes of two steps may happen to be the same.
            let found = secret.step_of(&secret.code(of), now_ms, 0);
            assert!(found.is_some() == counts || secret.code(of) == secret.code(step), "{of}");
        }
        let code = secret.code(step);
        assert_eq!(secret.step_of(&format!(" {} {} ", &code[..3], &code[3..]), now_ms, 0), Some(step));
        assert_eq!(secret.step_of(&code, now_ms, step + 1), None, "what was used is of no use");
        for bad in ["", "1", &code[..5], &format!("{code}0"), "abcdef", "\u{0661}23456", &"1".repeat(100_000)] {
            assert_eq!(secret.step_of(bad, now_ms, 0), None, "{}", bad.len());
        }
        assert_eq!(secret.step_of(&code, i64::MIN, 0), None);
    }

    #[test]
    fn recovery_codes_are_long_and_read_however_they_are_written() {
        let (ann, bob): (UserName, UserName) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let codes = recovery_codes(10).unwrap();
        assert_eq!((codes.len(), codes[0].len()), (10, 19));
        let digest = recovery_digest(&ann, &codes[0]);
        for written in [codes[0].to_uppercase(), codes[0].replace('-', ""), format!("  {} ", *codes[0])] {
            assert!(recovery_digest(&ann, &written).is(&digest), "{written}");
        }
        assert!(!recovery_digest(&bob, &codes[0]).is(&digest) && !recovery_digest(&ann, &codes[1]).is(&digest));
        assert!(is_code("123 456") && is_code("000000"));
        for other in ["12345", "1234567", "12345a", &codes[0], "", &" ".repeat(100_000)] {
            assert!(!is_code(other), "{other}");
        }
    }
}
