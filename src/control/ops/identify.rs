//! Finds out who somebody is, from what they show.
//!
//! Whoever shows something that proves nothing is told the same, whatever is wrong with it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use toft_model::{
    identity::{NewSession, Rights, UserName},
    name::Name,
    state::{ApiTokenRow, Command, SessionRow, UserRow, query_workload},
};
use zeroize::Zeroizing;

use super::{Ops, now_ms};
use crate::{
    control::{
        ControlError, ErrorKind,
        actor::{self, Actor, Way},
    },
    identity::{Bearer, Gate},
};

/// How old what is known of a use may get before it is told, in milliseconds.
const COARSE_MS: i64 = 10 * 60 * 1_000;
/// Time between two looks at whether somebody has been shut out.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Longest password somebody may try, in bytes.
const LONGEST_PASSWORD: usize = 1_024;

/// Who has signed in just now.
pub struct SignedIn {
    /// The value of the session's cookie; nobody can read it again.
    pub cookie: Zeroizing<String>,
    /// Who it is.
    pub actor: Actor,
}

fn unknown() -> ControlError {
    ControlError::new(ErrorKind::Unauthenticated, "name and password do not fit each other")
        .hint("mind capital letters; whoever forgot it asks an admin, or root on a node: `toft user passwd NAME`")
}

fn throttled(left: Duration) -> ControlError {
    let seconds = left.as_secs() + 1;
    let left = if seconds < 120 { format!("{seconds} seconds") } else { format!("{} minutes", seconds.div_ceil(60)) };
    ControlError::new(ErrorKind::Throttled, format!("too many attempts have failed; there may be another in {left}"))
        .hint("wait; who is signed in already, tokens and the unix socket are not affected")
}

/// What a user's row gives. The first user is an admin before there is a row.
fn rights_of(name: &UserName, row: Option<&UserRow>) -> Option<Rights> {
    match row {
        Some(row) => (!row.disabled).then(|| row.rights.clone()),
        None => name.is_first().then(Rights::all),
    }
}

impl Ops {
    pub(super) fn gate(&self) -> Result<&Arc<Gate>, ControlError> {
        let absent = || ControlError::new(ErrorKind::Unavailable, "nobody can sign in at this node now");
        self.gate.as_ref().ok_or_else(absent)
    }

    /// Who has a session with this cookie; nobody when it is none, or has ended.
    pub async fn identify_session(&self, cookie: &str, from: Option<IpAddr>) -> Result<Option<Actor>, ControlError> {
        let (Some(shown), gate) = (Bearer::from_cookie(cookie), self.gate()?) else { return Ok(None) };
        let id = shown.id.clone();
        let read = self.state.read(move |connection| {
            let Some(session) = SessionRow::by_id(connection, &id)? else { return Ok(None) };
            let user = UserRow::named(connection, &session.session.user)?;
            Ok(Some((session, user)))
        });
        let Some((mut row, user)) = read.await? else { return Ok(None) };
        let told_ms = row.seen_at_ms;
        row.seen_at_ms = told_ms.max(gate.session_used(&shown.id).unwrap_or(i64::MIN));
        let now_ms = now_ms();
        if !row.session.secret.is(&shown.digest()) || row.has_ended(now_ms) {
            return Ok(None);
        }
        let name = row.session.user;
        let Some(rights) = rights_of(&name, user.as_ref()) else { return Ok(None) };
        // A short session is told of more often, so that other nodes do not end it.
        if now_ms.saturating_sub(told_ms) >= COARSE_MS.min(row.session.idle_ms / 4) {
            gate.use_session(&shown.id, now_ms);
        }
        let is_first = user.is_none();
        Ok(Some(Actor { user: Some(name), rights, way: Way::Session(shown.id), from, is_first }))
    }

    /// Whose API token this is; nobody when it is none, has expired or was revoked.
    pub async fn identify_token(&self, text: &str, from: Option<IpAddr>) -> Result<Option<Actor>, ControlError> {
        let (Some(shown), gate) = (Bearer::from_api_token(text), self.gate()?) else { return Ok(None) };
        let id = shown.id.clone();
        let read = self.state.read(move |connection| {
            let Some(token) = ApiTokenRow::by_id(connection, &id)? else { return Ok(None) };
            let user = UserRow::named(connection, &token.token.user)?;
            Ok(Some((token, user)))
        });
        let Some((row, Some(user))) = read.await? else { return Ok(None) };
        let now_ms = now_ms();
        if !row.token.secret.is(&shown.digest()) || row.has_expired(now_ms) || user.disabled {
            return Ok(None);
        }
        if now_ms.saturating_sub(row.used_at_ms.unwrap_or(0)) >= COARSE_MS {
            gate.use_token(&shown.id, now_ms);
        }
        // The owner may have less now than when the token was made.
        let rights = row.token.rights.and(&user.rights);
        Ok(Some(Actor { user: Some(user.name), rights, way: Way::Token(shown.id), from, is_first: false }))
    }

    /// Who has this name and password. Attempts that fail are counted, and cost time.
    pub async fn identify_password(
        &self,
        name: &str,
        password: Zeroizing<String>,
        from: Option<IpAddr>,
    ) -> Result<Actor, ControlError> {
        let gate = self.gate()?;
        let shown: String = name.chars().take(UserName::MAX_BYTES).collect();
        // What can be no name has no row, and costs the same.
        let name = name.parse::<UserName>().ok();
        let asked = name.clone();
        let read = self.state.read(move |connection| match asked {
            Some(name) => UserRow::named(connection, &name),
            None => Ok(None),
        });
        let row = read.await?;
        let hash = row.as_ref().filter(|row| !row.disabled).and_then(|row| row.password.as_ref());
        let first = gate.first().filter(|_| row.is_none() && name.as_ref().is_some_and(UserName::is_first));
        let actor = |name: &UserName| {
            let rights = rights_of(name, row.as_ref())?;
            Some(Actor { user: Some(name.clone()), rights, way: Way::Password, from, is_first: row.is_none() })
        };
        // It is random and long: nobody guesses it, and nobody keeps its owner out.
        if first.is_some_and(|first| first.is(&password))
            && let Some(actor) = name.as_ref().and_then(actor)
        {
            return Ok(actor);
        }
        // Counted before anything is compared: what was right a short while ago costs nothing to guess.
        let attempt = gate.brake.begin(&shown, from).map_err(throttled)?;
        let knows = name.as_ref().zip(hash).is_some_and(|(name, hash)| gate.passwords.knows(name, hash, &password));
        if knows && let Some(actor) = name.as_ref().and_then(actor) {
            attempt.passed();
            return Ok(actor);
        }
        let turn = gate.passwords.turn().await;
        let fits = password.len() <= LONGEST_PASSWORD;
        let nobody = UserName::first();
        let hash = hash.filter(|_| fits);
        let password = if fits { password } else { Zeroizing::default() };
        let right = gate.passwords.verify(turn, name.as_ref().unwrap_or(&nobody), hash, password).await;
        match name.as_ref().filter(|_| right).and_then(actor) {
            Some(actor) => {
                attempt.passed();
                Ok(actor)
            }
            None => {
                tracing::warn!(from = ?from, "somebody could not prove who they are");
                Err(unknown())
            }
        }
    }

    /// Opens a session for whoever has this name and password. `agent` is what the browser calls itself.
    pub async fn sign_in(
        &self,
        name: &str,
        password: Zeroizing<String>,
        from: Option<IpAddr>,
        agent: String,
    ) -> Result<SignedIn, ControlError> {
        let mut actor = self.identify_password(name, password, from).await?;
        let Some(user) = actor.user.clone() else { return Err(unknown()) };
        let lengths = self.gate()?.lengths();
        let bearer = Bearer::make().map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?;
        let at_ms = now_ms();
        let ms = |length: Duration| i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
        let session = NewSession {
            id: bearer.id.clone(),
            secret: bearer.digest(),
            user,
            expires_at_ms: at_ms.saturating_add(ms(lengths.whole)),
            idle_ms: ms(lengths.idle),
            came_from: from.map(|from| from.to_canonical().to_string()),
            agent,
        };
        actor.way = Way::Session(bearer.id.clone());
        let command = Command::OpenSession { session: Box::new(session), at_ms };
        actor::act(Arc::new(actor.clone()), self.submit(command)).await?;
        Ok(SignedIn { cookie: bearer.cookie(), actor })
    }

    /// Returns when whoever asks now has been shut out: their session or token is gone, or they may less than when they came. What
    /// lasts is ended then.
    pub fn until_shut_out(&self) -> impl Future<Output = ()> + Send + 'static {
        let (ops, asks) = (self.clone(), actor::current());
        async move {
            let Some(asks) = asks.filter(|asks| asks.user.is_some()) else { return std::future::pending().await };
            loop {
                tokio::time::sleep(LOOK_AGAIN).await;
                // While the state cannot be read nobody is shut out.
                if let Ok(rights) = ops.rights_now(&asks).await
                    && !rights.is_some_and(|rights| asks.rights.within(&rights))
                {
                    return;
                }
            }
        }
    }

    /// What somebody may now who came in before; nothing when they would come in no more.
    async fn rights_now(&self, asks: &Actor) -> Result<Option<Rights>, ControlError> {
        let Some(name) = asks.user.clone() else { return Ok(Some(asks.rights.clone())) };
        let (way, now_ms) = (asks.way.clone(), now_ms());
        let read = self.state.read(move |connection| {
            let user = UserRow::named(connection, &name)?;
            let Some(rights) = rights_of(&name, user.as_ref()) else { return Ok(None) };
            Ok(match way {
                Way::Socket | Way::Password => Some(rights),
                Way::Session(id) => {
                    let lives =
                        SessionRow::by_id(connection, &id)?.is_some_and(|row| now_ms < row.session.expires_at_ms);
                    lives.then_some(rights)
                }
                Way::Token(id) => ApiTokenRow::by_id(connection, &id)?
                    .filter(|row| !row.has_expired(now_ms))
                    .map(|row| row.token.rights.and(&rights)),
            })
        });
        Ok(read.await?)
    }

    /// The deployment of a workload, or its own name when it belongs to none or is not there.
    pub async fn deployment_of_workload(&self, name: &Name) -> Result<Name, ControlError> {
        let asked = name.clone();
        let found = self.state.read(move |connection| query_workload(connection, &asked)).await?;
        Ok(found.and_then(|found| found.row.spec.deployment).unwrap_or_else(|| name.clone()))
    }

    /// The deployment of an instance's workload; nothing when there is no such instance.
    pub async fn deployment_of_instance(&self, name: &str) -> Result<Option<Name>, ControlError> {
        match self.instance_called(name).await {
            Ok(instance) => Ok(Some(self.deployment_of_workload(&instance.workload).await?)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
