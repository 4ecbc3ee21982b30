//! Eight digits instead of a token. Both sides know them, and SPAKE2 makes a key of that which nobody else has: neither who
//! listens nor who stands in between, and whoever guesses can try only as often as the member lets it. Over that key the
//! joiner is given the token, and joins with it as always.

use std::{
    fmt, io,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce, aead::Aead};
use sha2::Digest as _;
use spake2::{Ed25519Group, Identity, Password, Spake2};
use toft_model::token::Digest;
use tokio::{sync::watch, time::Instant};
use zeroize::Zeroizing;

use super::Token;

/// Digits of a PIN.
const DIGITS: usize = 8;
/// How often it may be tried.
const TRIES: u8 = 3;
/// How long it is valid.
const VALID: Duration = Duration::from_secs(5 * 60);
/// How long a joiner may take between its two messages.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest message of a joiner, in bytes.
const LONGEST: usize = 64;
/// Bytes of the number of an attempt.
const ATTEMPT: usize = 16;

/// The digits.
#[derive(Clone)]
#[cfg_attr(test, derive(PartialEq, Eq))]
pub struct Pin(Zeroizing<String>);

impl Pin {
    /// Any of all, each as likely as the others.
    pub fn make() -> io::Result<Self> {
        const MOST: u32 = 10_u32.pow(DIGITS as u32);
        loop {
            let random = super::random_key()?;
            let number = u32::from_ne_bytes([random[0], random[1], random[2], random[3]]);
            // The last part of the range is not a whole one.
            if number < u32::MAX / MOST * MOST {
                return Ok(Self(Zeroizing::new(format!("{:08}", number % MOST))));
            }
        }
    }

    /// As people read it: `1234-5678`.
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}-{}", &self.0[..DIGITS / 2], &self.0[DIGITS / 2..]))
    }

    fn password(&self) -> Password {
        Password::new(self.0.as_bytes())
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin")
    }
}

/// A text that is no PIN.
#[derive(Debug, thiserror::Error)]
#[error("this is no PIN; one has eight digits, as `toft token create --pin` prints it on a member")]
pub struct NoPin;

impl FromStr for Pin {
    type Err = NoPin;

    fn from_str(text: &str) -> Result<Self, NoPin> {
        if text.len() > LONGEST {
            return Err(NoPin);
        }
        let digits: Zeroizing<String> = Zeroizing::new(text.chars().filter(|c| !matches!(c, '-' | ' ')).collect());
        let whole = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        if whole { Ok(Self(digits)) } else { Err(NoPin) }
    }
}

fn joiner() -> Identity {
    Identity::new(b"toft joiner")
}

/// A member of the cluster with this authority: who stands in between shows another one, or cannot speak for this one.
fn member(authority: &[u8; 32]) -> Identity {
    Identity::new(&[b"toft member of ", &authority[..]].concat())
}

/// A key for one purpose, of the key that both have.
fn key_for(purpose: &str, key: &[u8]) -> [u8; 32] {
    sha2::Sha256::new().chain_update(purpose).chain_update([0]).chain_update(key).finalize().into()
}

fn proof(key: &[u8]) -> Digest {
    Digest(key_for("toft pin: the joiner knows it", key))
}

fn cipher(key: &[u8]) -> ChaCha20Poly1305 {
    ChaCha20Poly1305::new(Key::from_slice(&key_for("toft pin: the token", key)))
}

/// The joiner's side, between its two messages, and the authority of who answers.
pub struct Asking(Spake2<Ed25519Group>, [u8; 32]);

/// Who answers does not know the PIN, is of another cluster than it showed, or what it says is no answer.
#[derive(Debug, thiserror::Error)]
#[error("who answers does not know the PIN")]
pub struct Stranger;

impl Asking {
    /// Begins with a member of the cluster whose authority's certificate has this SHA-256; gives what is to be sent.
    pub fn begin(pin: &Pin, authority: [u8; 32]) -> (Self, Vec<u8>) {
        let (state, message) = Spake2::<Ed25519Group>::start_a(&pin.password(), &joiner(), &member(&authority));
        (Self(state, authority), message)
    }

    /// Takes the member's answer; gives what proves that this side knows the PIN, and what opens the token.
    pub fn proceed(self, answer: &[u8]) -> Result<([u8; 32], Opening), Stranger> {
        let key = Zeroizing::new(self.0.finish(answer).map_err(|_| Stranger)?);
        Ok((proof(&key).0, Opening(key, self.1)))
    }
}

/// What opens the token, and the authority it has to name.
pub struct Opening(Zeroizing<Vec<u8>>, [u8; 32]);

impl Opening {
    /// The token, if who sealed it knows the PIN.
    pub fn open(self, sealed: &[u8]) -> Result<Token, Stranger> {
        let text = cipher(&self.0).decrypt(&Nonce::default(), sealed).map_err(|_| Stranger)?;
        let text = Zeroizing::new(String::from_utf8(text).map_err(|_| Stranger)?);
        let token: Token = text.parse().map_err(|_| Stranger)?;
        if token.authority == self.1 { Ok(token) } else { Err(Stranger) }
    }
}

/// The PIN that is valid on this node, if any. It is nowhere else, and gone when the daemon ends.
#[derive(Default)]
pub struct Pins {
    open: Mutex<Option<Open>>,
    until: watch::Sender<Option<Instant>>,
}

struct Open {
    pin: Pin,
    token: Zeroizing<String>,
    authority: [u8; 32],
    until: Instant,
    left: u8,
    begun: Vec<([u8; ATTEMPT], Zeroizing<Vec<u8>>, Instant)>,
}

impl Open {
    /// Whether nobody can get anything for it any more.
    fn is_void(&self, now: Instant) -> bool {
        now >= self.until || self.left == 0 && self.begun.iter().all(|(_, _, until)| now >= *until)
    }
}

/// What a joiner is told who has no right PIN.
const NONE: &str = "no PIN is valid here";

impl Pins {
    /// Makes a PIN that gives `token` once; one from before is not valid any more.
    pub fn make(&self, token: &Token) -> io::Result<Pin> {
        let pin = Pin::make()?;
        self.put(pin.clone(), token, Instant::now() + VALID);
        Ok(pin)
    }

    fn put(&self, pin: Pin, token: &Token, until: Instant) {
        let (authority, token) = (token.authority, token.text());
        let open = Open { pin, token, authority, until, left: TRIES, begun: Vec::new() };
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(open);
        self.until.send_replace(Some(until));
    }

    /// Until when a PIN is valid.
    pub fn watch(&self) -> watch::Receiver<Option<Instant>> {
        self.until.subscribe()
    }

    fn with<T>(&self, now: Instant, act: impl FnOnce(&mut Option<Open>) -> T) -> T {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.as_ref().is_some_and(|open| open.is_void(now)) {
            *open = None;
        }
        let done = act(&mut open);
        if open.is_none() {
            self.until.send_if_modified(|until| until.take().is_some());
        }
        done
    }

    /// A joiner's first message: gives the answer and the number of the attempt. Each costs a try, whatever follows.
    pub fn greet(&self, message: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
        let now = Instant::now();
        let attempt = super::random_key().map_err(|error| format!("there is no randomness: {error}"))?;
        self.with(now, |held| {
            let open = held.as_mut().ok_or(NONE)?;
            let Some(left) = open.left.checked_sub(1) else { return Err(NONE.to_owned()) };
            open.left = left;
            if message.len() > LONGEST {
                return Err("the message is too long".into());
            }
            let (password, member) = (open.pin.password(), member(&open.authority));
            let (state, answer) = Spake2::<Ed25519Group>::start_b(&password, &joiner(), &member);
            let key = state.finish(message).map_err(|_| "the message is none of SPAKE2")?;
            let mut number = [0; ATTEMPT];
            number.copy_from_slice(&attempt[..ATTEMPT]);
            open.begun.push((number, Zeroizing::new(key), now + PATIENCE));
            Ok((answer, number.to_vec()))
        })
    }

    /// A joiner's second message: gives the sealed token to who knows the PIN, once.
    pub fn prove(&self, attempt: &[u8], given: &[u8]) -> Result<Vec<u8>, String> {
        let now = Instant::now();
        self.with(now, |held| {
            let open = held.as_mut().ok_or(NONE)?;
            let begun = open.begun.iter().position(|(number, _, until)| number[..] == *attempt && now < *until);
            let Some(begun) = begun else { return Err("there is no such attempt".to_owned()) };
            let (_, key, _) = open.begun.swap_remove(begun);
            let is_right = <[u8; 32]>::try_from(given).is_ok_and(|given| proof(&key).is(&Digest(given)));
            if !is_right {
                let left = open.left;
                if left == 0 {
                    *held = None;
                    return Err("the PIN is wrong, and was tried too often: it is not valid any more".into());
                }
                let tries = if left == 1 { "try is" } else { "tries are" };
                return Err(format!("the PIN is wrong; {left} {tries} left"));
            }
            let sealed = cipher(&key).encrypt(&Nonce::default(), open.token.as_bytes());
            *held = None;
            sealed.map_err(|_| "the token could not be sealed".to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: [u8; 32] = [7; 32];

    fn token() -> Token {
        Token::make(HERE).unwrap()
    }

    fn right(pins: &Pins, pin: &Pin) -> Result<Token, String> {
        let (asking, first) = Asking::begin(pin, HERE);
        let (answer, attempt) = pins.greet(&first)?;
        let (proof, opening) = asking.proceed(&answer).map_err(|error| error.to_string())?;
        opening.open(&pins.prove(&attempt, &proof)?).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pin_is_eight_digits_however_they_are_written() {
        let pin: Pin = "0123-4567".parse().unwrap();
        assert_eq!(*pin.text(), "0123-4567");
        for same in ["01234567", "0123 4567", " 01-23-45-67 "] {
            assert!(same.parse::<Pin>().unwrap() == pin, "{same}");
        }
        for bad in ["", "1234567", "123456789", "1234-567a", "１２３４５６７８", &"1".repeat(100)] {
            assert!(bad.parse::<Pin>().is_err(), "{bad}");
        }
        let made: Vec<Pin> = (0..20).map(|_| Pin::make().unwrap()).collect();
        assert!(made.windows(2).any(|two| two[0] != two[1]));
        assert!(!format!("{pin:?}").contains("0123"));
    }

    #[test]
    fn the_right_pin_gives_the_token_once() {
        let (pins, token) = (Pins::default(), token());
        let watch = pins.watch();
        let pin = pins.make(&token).unwrap();
        assert!(watch.borrow().is_some());
        assert_eq!(right(&pins, &pin).unwrap().text(), token.text());
        assert_eq!(right(&pins, &pin).err().unwrap(), NONE);
        assert!(watch.borrow().is_none());
    }

    #[test]
    fn a_wrong_pin_counts_and_after_three_there_is_none() {
        let (pins, token) = (Pins::default(), token());
        let pin = pins.make(&token).unwrap();
        let wrong: Pin = if *pin.text() == "0000-0000" { "11111111" } else { "00000000" }.parse().unwrap();
        assert!(right(&pins, &wrong).err().unwrap().contains("2 tries are left"));
        assert!(right(&pins, &wrong).err().unwrap().contains("1 try is left"));
        assert!(right(&pins, &wrong).err().unwrap().contains("not valid any more"));
        assert_eq!(right(&pins, &pin).err().unwrap(), NONE);
        // Beginning alone counts too, so nobody has more guesses than tries.
        let pin = pins.make(&token).unwrap();
        for _ in 0..TRIES {
            pins.greet(&Asking::begin(&pin, HERE).1).unwrap();
        }
        assert_eq!(pins.greet(&Asking::begin(&pin, HERE).1).err().unwrap(), NONE);
    }

    #[test]
    fn a_pin_expires_and_a_newer_one_takes_its_place() {
        let (pins, token) = (Pins::default(), token());
        let pin: Pin = "12345678".parse().unwrap();
        pins.put(pin.clone(), &token, Instant::now());
        assert_eq!(right(&pins, &pin).err().unwrap(), NONE);
        pins.put(pin.clone(), &token, Instant::now() + VALID);
        pins.put("87654321".parse().unwrap(), &token, Instant::now() + VALID);
        assert!(right(&pins, &pin).is_err());
    }

    #[test]
    fn many_at_once_have_three_tries_together() {
        let pins = Pins::default();
        let pin = pins.make(&token()).unwrap();
        let begun = std::thread::scope(|scope| {
            let greet = || (0..50).filter(|_| pins.greet(&Asking::begin(&pin, HERE).1).is_ok()).count();
            let all: Vec<_> = (0..8).map(|_| scope.spawn(greet)).collect();
            all.into_iter().map(|one| one.join().unwrap()).sum::<usize>()
        });
        assert_eq!(begun, usize::from(TRIES));
    }

    #[test]
    fn a_pin_is_void_after_five_minutes_and_when_nobody_goes_on_with_the_last_try() {
        let (pins, token) = (Pins::default(), token());
        let watch = pins.watch();
        let change = |act: fn(&mut Open)| act(pins.open.lock().unwrap().as_mut().unwrap());
        let (before, pin) = (Instant::now(), pins.make(&token).unwrap());
        let until = watch.borrow().unwrap();
        assert!(until >= before + VALID && until <= Instant::now() + VALID);
        let (asking, first) = Asking::begin(&pin, HERE);
        let (answer, attempt) = pins.greet(&first).unwrap();
        let (proof, _) = asking.proceed(&answer).unwrap();
        change(|open| open.until = Instant::now());
        assert_eq!(pins.prove(&attempt, &proof).err().unwrap(), NONE, "five minutes are over");
        let pin = pins.make(&token).unwrap();
        for _ in 0..TRIES {
            pins.greet(&Asking::begin(&pin, HERE).1).unwrap();
        }
        assert!(pins.greet(&first).is_err() && watch.borrow().is_some(), "somebody may be at it");
        change(|open| open.begun.iter_mut().for_each(|(_, _, until)| *until = Instant::now()));
        assert_eq!(pins.greet(&first).err().unwrap(), NONE);
        assert!(watch.borrow().is_none(), "it is told of no more");
    }

    #[test]
    fn who_shows_another_authority_than_the_member_has_gets_nothing() {
        let (pins, token) = (Pins::default(), token());
        let pin = pins.make(&token).unwrap();
        // The joiner speaks with somebody else, who hands on all that is said to the member and back.
        let (asking, first) = Asking::begin(&pin, [8; 32]);
        let (answer, attempt) = pins.greet(&first).unwrap();
        let (proof, opening) = asking.proceed(&answer).unwrap();
        assert!(pins.prove(&attempt, &proof).err().unwrap().contains("the PIN is wrong"));
        assert!(opening.open(&[0; 200]).is_err());
        // A member that gives a token of a cluster that it does not show.
        let (asking, first) = Asking::begin(&pin, HERE);
        let (answer, attempt) = pins.greet(&first).unwrap();
        let (proof, Opening(key, _)) = asking.proceed(&answer).unwrap();
        let sealed = pins.prove(&attempt, &proof).unwrap();
        assert!(Opening(key, [8; 32]).open(&sealed).is_err());
    }

    #[test]
    fn what_was_overheard_is_of_no_use() {
        let (pins, token) = (Pins::default(), token());
        let pin: Pin = "12345678".parse().unwrap();
        pins.put(pin.clone(), &token, Instant::now() + VALID);
        let (asking, first) = Asking::begin(&pin, HERE);
        let (answer, attempt) = pins.greet(&first).unwrap();
        let (proof, opening) = asking.proceed(&answer).unwrap();
        // Somebody else sends the first message again, and then the proof of the one who knows the PIN.
        let (other_answer, other_attempt) = pins.greet(&first).unwrap();
        assert!(other_answer != answer && other_attempt != attempt);
        assert!(pins.prove(&other_attempt, &proof).is_err(), "it proves nothing for another attempt");
        let sealed = pins.prove(&attempt, &proof).unwrap();
        assert_eq!(pins.prove(&attempt, &proof).err().unwrap(), NONE);
        assert!(!sealed.windows(8).any(|part| token.text().as_bytes().windows(8).any(|text| text == part)));
        let (_, other) = Asking::begin(&pin, HERE).0.proceed(&answer).unwrap();
        assert!(other.open(&sealed).is_err(), "it is sealed for one attempt");
        assert!(opening.open(&sealed).is_ok());
    }

    proptest! {
        #[test]
        fn whatever_bytes_come_nothing_breaks_and_nothing_is_given(first in proptest::collection::vec(any::<u8>(), 0..100),
            attempt in proptest::collection::vec(any::<u8>(), 0..40), given in proptest::collection::vec(any::<u8>(), 0..40)) {
            let pins = Pins::default();
            let pin = pins.make(&token()).unwrap();
            drop(pins.greet(&first));
            prop_assert!(pins.prove(&attempt, &given).is_err());
            let (asking, message) = Asking::begin(&pin, HERE);
            let (answer, number) = pins.greet(&message).unwrap();
            prop_assert!(pins.prove(&number, &given).is_err());
            drop(Asking::begin(&pin, HERE).0.proceed(&first));
            let (_, opening) = asking.proceed(&answer).unwrap();
            prop_assert!(opening.open(&given).is_err());
        }
    }
}
