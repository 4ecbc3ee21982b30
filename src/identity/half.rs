//! Sign-ins of which the first half is done: the password was right, and a code is asked for. In memory of one node, bound to
//! an address, short, and few.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use toft_model::{
    identity::{PasswordHash, UserName},
    token::{Digest, TokenId},
};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::secret::{Bearer, NoRandom};

/// How long somebody may take for the second half.
const LONGEST: Duration = Duration::from_secs(5 * 60);
/// Codes that may be tried, beside what the brake allows.
const TRIES: u32 = 5;
/// Most at a time; the oldest makes room.
const MOST: usize = 1_024;

/// Sign-ins that wait for a code.
#[derive(Default)]
pub struct Halves(Mutex<HashMap<TokenId, Half>>);

struct Half {
    secret: Digest,
    user: UserName,
    password: Option<PasswordHash>,
    from: Option<IpAddr>,
    until: Instant,
    tries: u32,
}

/// Who waits to show a code.
pub struct Waiting {
    /// What it is found by.
    pub id: TokenId,
    /// Who it is.
    pub user: UserName,
    /// What their password was then: with another one they begin again.
    pub password: Option<PasswordHash>,
}

impl Halves {
    fn lock(&self) -> MutexGuard<'_, HashMap<TokenId, Half>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that somebody at that address has shown the first half; gives what their browser is to bring along.
    pub fn open(
        &self,
        user: UserName,
        password: Option<PasswordHash>,
        from: Option<IpAddr>,
    ) -> Result<Zeroizing<String>, NoRandom> {
        let bearer = Bearer::make()?;
        let now = Instant::now();
        let mut halves = self.lock();
        halves.retain(|_, half| now < half.until);
        if halves.len() >= MOST
            && let Some(oldest) = halves.iter().min_by_key(|(_, half)| half.until).map(|(id, _)| id.clone())
        {
            halves.remove(&oldest);
        }
        let half = Half { secret: bearer.digest(), user, password, from, until: now + LONGEST, tries: 0 };
        halves.insert(bearer.id.clone(), half);
        Ok(bearer.cookie())
    }

    /// Who brings this from there, and now tries a code; nobody when it is too late, from elsewhere, or tried too often.
    pub fn attempt(&self, text: &str, from: Option<IpAddr>) -> Option<Waiting> {
        let shown = Bearer::from_cookie(text)?;
        let mut halves = self.lock();
        let half = halves.get_mut(&shown.id)?;
        if !half.secret.is(&shown.digest()) || half.from != from || Instant::now() >= half.until {
            return None;
        }
        half.tries += 1;
        if half.tries > TRIES {
            halves.remove(&shown.id);
            return None;
        }
        Some(Waiting { id: shown.id, user: half.user.clone(), password: half.password.clone() })
    }

    /// Forgets it: it is whole, or of no use.
    pub fn close(&self, id: &TokenId) {
        self.lock().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));

    fn ann() -> UserName {
        "ann".parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_bound_to_an_address_and_a_short_time() {
        let halves = Halves::default();
        let text = halves.open(ann(), None, HERE).unwrap();
        assert!(halves.attempt(&text, None).is_none());
        assert!(halves.attempt(&text, Some("192.0.2.2".parse().unwrap())).is_none());
        let forged = format!("{}.{}", &text[..10], "0".repeat(64));
        for bad in ["", "x", &forged, &text[..text.len() - 1]] {
            assert!(halves.attempt(bad, HERE).is_none(), "{bad}");
        }
        let waiting = halves.attempt(&text, HERE).unwrap();
        assert_eq!(waiting.user, ann());
        tokio::time::advance(LONGEST).await;
        assert!(halves.attempt(&text, HERE).is_none());
        let text = halves.open(ann(), None, HERE).unwrap();
        assert_eq!(halves.lock().len(), 1, "what is too old is swept");
        halves.close(&halves.attempt(&text, HERE).unwrap().id);
        assert!(halves.attempt(&text, HERE).is_none(), "it is whole once");
    }

    #[tokio::test(start_paused = true)]
    async fn few_codes_are_tried_and_few_are_remembered() {
        let halves = Halves::default();
        let text = halves.open(ann(), None, HERE).unwrap();
        for _ in 0..TRIES {
            assert!(halves.attempt(&text, HERE).is_some());
        }
        assert!(halves.attempt(&text, HERE).is_none() && halves.attempt(&text, HERE).is_none());
        for _ in 0..MOST + 10 {
            halves.open(ann(), None, HERE).unwrap();
        }
        assert_eq!(halves.lock().len(), MOST);
    }
}
