//! Sign-ins that went to the provider and have not come back. In memory of one node, each for one browser, few and short.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};
use toft_model::token::{Digest, TokenId};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::identity::{Bearer, NoRandom};

/// How long somebody may take at the provider.
const LONGEST: Duration = Duration::from_secs(10 * 60);
/// Most at a time, and of one address; the oldest makes room.
const MOST: usize = 1_024;
const MOST_OF_ONE: usize = 16;

/// A sign-in that comes back.
pub struct Begun {
    /// What the provider's answer must hold.
    pub nonce: String,
    /// What proves that whoever has the code is who asked for it.
    pub verifier: Zeroizing<String>,
    /// Where they were going.
    pub next: String,
}

/// A sign-in that begins.
pub struct Start {
    /// What the browser keeps meanwhile, as a cookie.
    pub cookie: Zeroizing<String>,
    /// What goes to the provider and comes back.
    pub state: String,
    /// What its answer must hold.
    pub nonce: String,
    /// The digest of what will prove who asked.
    pub challenge: String,
}

struct Waiting {
    secret: Digest,
    state: Digest,
    begun: Begun,
    from: Option<IpAddr>,
    until: Instant,
}

/// Sign-ins that have not come back.
#[derive(Default)]
pub struct Beginnings(Mutex<HashMap<TokenId, Waiting>>);

fn fresh() -> Result<Zeroizing<String>, NoRandom> {
    Ok(Zeroizing::new(Bearer::make()?.cookie()[TokenId::CHARS + 1..].to_owned()))
}

impl Beginnings {
    fn lock(&self) -> MutexGuard<'_, HashMap<TokenId, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one.
    pub fn begin(&self, next: String, from: Option<IpAddr>) -> Result<Start, NoRandom> {
        let (bearer, state, nonce, verifier) = (Bearer::make()?, fresh()?, fresh()?, fresh()?);
        let now = Instant::now();
        let mut waiting = self.lock();
        waiting.retain(|_, one| now < one.until);
        let of_one = waiting.values().filter(|one| one.from == from).count() >= MOST_OF_ONE;
        if of_one || waiting.len() >= MOST {
            let oldest = waiting.iter().filter(|(_, one)| !of_one || one.from == from).min_by_key(|(_, one)| one.until);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                waiting.remove(&oldest);
            }
        }
        let challenge = BASE64URL_NOPAD.encode(&Sha256::digest(verifier.as_bytes()));
        let begun = Begun { nonce: nonce.to_string(), verifier, next };
        let one = Waiting { secret: bearer.digest(), state: digest(&state), begun, from, until: now + LONGEST };
        waiting.insert(bearer.id.clone(), one);
        Ok(Start { cookie: bearer.cookie(), state: state.to_string(), nonce: nonce.to_string(), challenge })
    }

    /// The one that this browser began, with what came back from the provider. It comes back once, whatever it brings.
    pub fn take(&self, cookie: &str, state: &str) -> Option<Begun> {
        let shown = Bearer::from_cookie(cookie)?;
        let mut waiting = self.lock();
        if !waiting.get(&shown.id)?.secret.is(&shown.digest()) {
            return None;
        }
        let one = waiting.remove(&shown.id)?;
        (Instant::now() < one.until && one.state.is(&digest(state))).then_some(one.begun)
    }
}

fn digest(text: &str) -> Digest {
    Digest(Sha256::digest(text.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_comes_back_once_to_the_browser_that_began_it() {
        let beginnings = Beginnings::default();
        let begin = || beginnings.begin("/nodes".into(), None).unwrap();
        let (one, other) = (begin(), begin());
        assert!(beginnings.take(&other.cookie, &one.state).is_none(), "the state of another browser");
        assert!(beginnings.take(&other.cookie, &other.state).is_none(), "that was its turn");
        assert!(beginnings.take("", &one.state).is_none() && beginnings.take("x.y", &one.state).is_none());
        let forged = format!("{}.{}", &one.cookie[..10], "0".repeat(64));
        assert!(beginnings.take(&forged, &one.state).is_none());
        let begun = beginnings.take(&one.cookie, &one.state).unwrap();
        assert_eq!((begun.next.as_str(), begun.nonce), ("/nodes", one.nonce));
        assert_eq!(BASE64URL_NOPAD.encode(&Sha256::digest(begun.verifier.as_bytes())), one.challenge);
        assert!(beginnings.take(&one.cookie, &one.state).is_none());
        let late = begin();
        tokio::time::advance(LONGEST).await;
        assert!(beginnings.take(&late.cookie, &late.state).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_begins_many_keeps_nobody_else_out() {
        let beginnings = Beginnings::default();
        let here: IpAddr = "192.0.2.1".parse().unwrap();
        let mine = beginnings.begin("/".into(), Some(here)).unwrap();
        for _ in 0..3 * MOST {
            beginnings.begin("/".into(), None).unwrap();
        }
        assert!(beginnings.lock().len() <= MOST_OF_ONE + 1);
        assert!(beginnings.take(&mine.cookie, &mine.state).is_some());
    }
}
