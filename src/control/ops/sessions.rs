//! Operations on sessions.

use toft_model::{
    identity::UserName,
    state::{Command, SessionRow},
    token::TokenId,
};

use super::{Ops, now_ms};
use crate::control::{
    ControlError, ErrorKind,
    actor::{self, Way},
};

/// Uses that one command tells of, at most.
const AT_ONCE: usize = 256;

/// A session as its owner and admins see it.
#[derive(Debug, Clone)]
pub struct SessionView {
    /// The session.
    pub row: SessionRow,
    /// Whether it is the one that asks.
    pub is_this: bool,
}

impl Ops {
    /// Sessions that have not ended: those of a user, or of all. Who is no admin sees their own.
    pub async fn sessions(&self, user: Option<UserName>) -> Result<Vec<SessionView>, ControlError> {
        let asks = actor::current();
        let own = asks.as_ref().filter(|asks| !asks.is_admin()).map(|asks| asks.user.clone());
        let user = match own {
            None => user,
            Some(None) => return Ok(Vec::new()),
            Some(own) if user.is_none() || user == own => own,
            Some(_) => {
                return Err(ControlError::new(ErrorKind::Forbidden, "these are the sessions of somebody else")
                    .hint("only admins see them"));
            }
        };
        let read = self.state.read(move |connection| match user {
            Some(user) => SessionRow::of(connection, &user),
            None => SessionRow::all(connection),
        });
        let (now_ms, gate) = (now_ms(), self.gate.clone());
        let this = asks.as_ref().and_then(|asks| match &asks.way {
            Way::Session(id) => Some(id),
            Way::Socket | Way::Token(_) | Way::Signed { .. } | Way::Provider | Way::Passkey | Way::Password => None,
        });
        let rows = read.await?.into_iter().map(|mut row| {
            let used = gate.as_ref().and_then(|gate| gate.session_used(&row.session.id));
            row.seen_at_ms = row.seen_at_ms.max(used.unwrap_or(i64::MIN));
            row
        });
        Ok(rows
            .filter(|row| !row.has_ended(now_ms))
            .map(|row| SessionView { is_this: this == Some(&row.session.id), row })
            .collect())
    }

    /// Ends a session: one of one's own, or as an admin anybody's.
    pub async fn end_session(&self, session_id: TokenId) -> Result<(), ControlError> {
        let asked = session_id.clone();
        let found = self.state.read(move |connection| SessionRow::by_id(connection, &asked)).await?;
        let asks = actor::current();
        // Whoever may not end it learns nothing of it.
        let may = |row: &SessionRow| {
            asks.as_ref().is_none_or(|asks| asks.is_admin() || asks.user.as_ref() == Some(&row.session.user))
        };
        if !found.as_ref().is_some_and(may) {
            return Err(ControlError::new(ErrorKind::NotFound, format!("there is no session `{session_id}`"))
                .hint("it may have ended; `toft user sessions` lists those there are"));
        }
        self.submit(Command::EndSession { session_id, at_ms: now_ms() }).await?;
        Ok(())
    }

    /// Ends the session that asks.
    pub async fn sign_out(&self) -> Result<(), ControlError> {
        match actor::current().map(|asks| asks.way.clone()) {
            Some(Way::Session(id)) => self.end_session(id).await,
            Some(Way::Socket | Way::Token(_) | Way::Signed { .. } | Way::Provider | Way::Passkey | Way::Password)
            | None => Ok(()),
        }
    }

    /// Tells the others which sessions and tokens were used here; gives whether there was something to tell.
    pub async fn tell_uses(&self) -> Result<bool, ControlError> {
        let gate = self.gate()?;
        let used = gate.uses(AT_ONCE);
        if used.sessions.is_empty() && used.tokens.is_empty() {
            return Ok(false);
        }
        let (sessions, tokens) = (used.sessions.clone(), used.tokens.clone());
        self.state.propose(Command::NoteUses { sessions, tokens }).await?;
        gate.told(&used);
        Ok(true)
    }
}
