//! What a node remembers of who comes in: shared by all its doors.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use toft_model::token::TokenId;

use super::{Brake, FirstPassword, Halves, NoRandom, Passkeys, Passwords};

/// Uses that were not told yet, at most.
const MOST_USES: usize = 4_096;

/// Least time between two looks for what this node does not know: words that strangers made up cost the cluster no more.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long sessions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// At most.
    pub whole: Duration,
    /// Without being used.
    pub idle: Duration,
}

impl Default for Lengths {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self { whole: DAY * 30, idle: DAY * 7 }
    }
}

/// What was used, and when, in milliseconds since 1970.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Sessions.
    pub sessions: Vec<(TokenId, i64)>,
    /// API tokens.
    pub tokens: Vec<(TokenId, i64)>,
}

/// Passwords, brakes, and uses that were not told yet.
pub struct Gate {
    /// Hashes and compares passwords.
    pub passwords: Passwords,
    /// Slows down who guesses.
    pub brake: Brake,
    /// Sign-ins that wait for a code.
    pub halves: Halves,
    /// Passkeys that were asked for.
    pub passkeys: Passkeys,
    first: OnceLock<FirstPassword>,
    lengths: OnceLock<Lengths>,
    sessions: Mutex<HashMap<TokenId, i64>>,
    tokens: Mutex<HashMap<TokenId, i64>>,
    looked: Mutex<Option<Instant>>,
}

impl Gate {
    /// Nobody has come yet, and there is no first password.
    pub fn new() -> Result<Arc<Self>, NoRandom> {
        Ok(Arc::new(Self {
            passwords: Passwords::new()?,
            brake: Brake::default(),
            halves: Halves::default(),
            passkeys: Passkeys::default(),
            first: OnceLock::new(),
            lengths: OnceLock::new(),
            sessions: Mutex::default(),
            tokens: Mutex::default(),
            looked: Mutex::default(),
        }))
    }

    /// Sets the first password, once.
    pub fn set_first(&self, password: FirstPassword) {
        drop(self.first.set(password));
    }

    /// The first password of this node.
    pub fn first(&self) -> Option<&FirstPassword> {
        self.first.get()
    }

    /// Sets how long sessions are, once.
    pub fn set_lengths(&self, lengths: Lengths) {
        let _ = self.lengths.set(lengths);
    }

    /// How long sessions are that are opened here.
    pub fn lengths(&self) -> Lengths {
        self.lengths.get().copied().unwrap_or_default()
    }

    /// Whether the others may be asked for a session or token that this node does not know: not too often.
    pub fn may_look_again(&self) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let may = looked.is_none_or(|at| at.elapsed() >= LOOK_AGAIN);
        if may {
            *looked = Some(Instant::now());
        }
        may
    }

    /// Notes that a session is used.
    pub fn use_session(&self, id: &TokenId, at_ms: i64) {
        note(&self.sessions, id, at_ms);
    }

    /// When a session was used last, if that was not told yet.
    pub fn session_used(&self, id: &TokenId) -> Option<i64> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    /// Notes that an API token is used.
    pub fn use_token(&self, id: &TokenId, at_ms: i64) {
        note(&self.tokens, id, at_ms);
    }

    /// At most so many uses of each kind that were not told yet.
    pub fn uses(&self, most: usize) -> Used {
        Used { sessions: some(&self.sessions, most), tokens: some(&self.tokens, most) }
    }

    /// Forgets uses that were told, unless there are newer ones.
    pub fn told(&self, used: &Used) {
        forget(&self.sessions, &used.sessions);
        forget(&self.tokens, &used.tokens);
    }
}

fn note(uses: &Mutex<HashMap<TokenId, i64>>, id: &TokenId, at_ms: i64) {
    let mut uses = uses.lock().unwrap_or_else(PoisonError::into_inner);
    if uses.len() < MOST_USES || uses.contains_key(id) {
        uses.insert(id.clone(), at_ms);
    }
}

fn some(uses: &Mutex<HashMap<TokenId, i64>>, most: usize) -> Vec<(TokenId, i64)> {
    let uses = uses.lock().unwrap_or_else(PoisonError::into_inner);
    uses.iter().take(most).map(|(id, at_ms)| (id.clone(), *at_ms)).collect()
}

fn forget(uses: &Mutex<HashMap<TokenId, i64>>, told: &[(TokenId, i64)]) {
    let mut uses = uses.lock().unwrap_or_else(PoisonError::into_inner);
    for (id, at_ms) in told {
        if uses.get(id) == Some(at_ms) {
            uses.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_known_until_it_was_told_and_newer_ones_stay() {
        let gate = Gate::new().unwrap();
        let [one, other] = [1, 2].map(|byte| TokenId::of([byte; 10]));
        gate.use_session(&one, 5);
        gate.use_session(&other, 6);
        gate.use_token(&one, 7);
        let used = gate.uses(10);
        assert_eq!((used.sessions.len(), used.tokens.len()), (2, 1));
        gate.use_session(&one, 8);
        gate.told(&used);
        assert_eq!((gate.session_used(&one), gate.session_used(&other)), (Some(8), None));
        for i in 0..2 * MOST_USES as u32 {
            let bytes = i.to_be_bytes().map(|byte| [byte >> 4, byte & 15]).concat();
            gate.use_session(&TokenId::of([&bytes[..], &[0, 0]].concat().try_into().unwrap()), 1);
        }
        assert!(gate.uses(usize::MAX).sessions.len() <= MOST_USES);
    }
}
