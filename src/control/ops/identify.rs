//! Finds out who somebody is, from what they show.
//!
//! Whoever shows something that proves nothing is told the same, whatever is wrong with it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use toft_model::{
    identity::{NewSession, PasswordHash, Rights, UserName},
    name::Name,
    passkey::PasskeyUse,
    second_factor::FactorProof,
    state::{ApiTokenRow, Command, SessionRow, SigningKeyRow, UserRow, UserStanding, query_standing, query_workload},
};
use zeroize::Zeroizing;

use super::{Ops, now_ms, second_factors::wrong_code};
use crate::{
    control::{
        ControlError, ErrorKind,
        actor::{self, Actor, Way},
    },
    identity::{Attempt, Bearer, Company, Gate},
};

/// How old what is known of a use may get before it is told, in milliseconds.
const COARSE_MS: i64 = 10 * 60 * 1_000;
/// Time between two looks at whether somebody has been shut out.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Longest wait for what the others know, when somebody shows what this node does not know.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest password somebody may try, in bytes.
const LONGEST_PASSWORD: usize = 1_024;

/// How a sign-in went on.
pub enum SignIn {
    /// They are in.
    In(Box<SignedIn>),
    /// The password was right, and a code of their second factor is asked for. What it holds is brought along with the code.
    Half(Zeroizing<String>),
}

impl SignIn {
    fn whole(signed_in: SignedIn) -> Self {
        Self::In(Box::new(signed_in))
    }
}

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

/// What a user's row gives whoever signs in. The first user is an admin before there is a row; who lacks a second factor that is asked
/// for only looks until they have one.
pub(super) fn rights_of(name: &UserName, standing: Option<&UserStanding>) -> Option<Rights> {
    match standing {
        Some(standing) if standing.row.disabled => None,
        Some(standing) if standing.lacks_factor => Some(Rights::default()),
        Some(standing) => Some(standing.row.rights.clone()),
        None => name.is_first().then(Rights::all),
    }
}

/// How whoever has a session stands in it.
fn standing_of(connection: &rusqlite::Connection, session: &SessionRow) -> rusqlite::Result<Option<UserStanding>> {
    let standing = query_standing(connection, &session.session.user)?;
    Ok(if session.passkey.is_some() { standing.map(UserStanding::with_passkey) } else { standing })
}

/// Who has shown a right password.
pub(super) struct Proved {
    /// Who it is.
    pub(super) actor: Actor,
    /// How they stand; nothing for the first user before it has a row.
    pub(super) standing: Option<UserStanding>,
}

impl Ops {
    pub(super) fn gate(&self) -> Result<&Arc<Gate>, ControlError> {
        let absent = || ControlError::new(ErrorKind::Unavailable, "nobody can sign in at this node now");
        self.gate.as_ref().ok_or_else(absent)
    }

    /// What the state has, or else what it has when this node knows all that the others know: it may have been made at another
    /// node a moment ago.
    async fn find<T: Send + 'static>(
        &self,
        look: impl Fn(&rusqlite::Connection) -> rusqlite::Result<Option<T>> + Clone + Send + 'static,
    ) -> Result<Option<T>, ControlError> {
        let found = self.state.read(look.clone()).await?;
        if found.is_some() || !self.gate()?.may_look_again() {
            return Ok(found);
        }
        match tokio::time::timeout(PATIENCE, self.state.catch_up()).await {
            Ok(Ok(())) => Ok(self.state.read(look).await?),
            // Nobody to ask: what is here has to do.
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// Who has a session with this cookie; nobody when it is none, or has ended.
    pub async fn identify_session(&self, cookie: &str, from: Option<IpAddr>) -> Result<Option<Actor>, ControlError> {
        let (Some(shown), gate) = (Bearer::from_cookie(cookie), self.gate()?) else { return Ok(None) };
        let id = shown.id.clone();
        let found = self.find(move |connection| {
            let Some(session) = SessionRow::by_id(connection, &id)? else { return Ok(None) };
            let standing = standing_of(connection, &session)?;
            Ok(Some((session, standing)))
        });
        let Some((mut row, standing)) = found.await? else { return Ok(None) };
        let told_ms = row.seen_at_ms;
        row.seen_at_ms = told_ms.max(gate.session_used(&shown.id).unwrap_or(i64::MIN));
        let now_ms = now_ms();
        if !row.session.secret.is(&shown.digest()) || row.has_ended(now_ms) {
            return Ok(None);
        }
        let name = row.session.user;
        let Some(rights) = rights_of(&name, standing.as_ref()) else { return Ok(None) };
        // A short session is told of more often, so that other nodes do not end it.
        if now_ms.saturating_sub(told_ms) >= COARSE_MS.min(row.session.idle_ms / 4) {
            gate.use_session(&shown.id, now_ms);
        }
        let is_first = standing.is_none();
        let lacks_factor = standing.is_some_and(|standing| standing.lacks_factor);
        Ok(Some(Actor { user: Some(name), rights, way: Way::Session(shown.id), from, is_first, lacks_factor }))
    }

    /// Whose API token or signed token this is; nobody when it is none, has expired or was revoked.
    pub async fn identify_token(&self, text: &str, from: Option<IpAddr>) -> Result<Option<Actor>, ControlError> {
        let (Some(shown), gate) = (Bearer::from_api_token(text), self.gate()?) else {
            return self.identify_signed(text, from).await;
        };
        let id = shown.id.clone();
        let found = self.find(move |connection| {
            let Some(token) = ApiTokenRow::by_id(connection, &id)? else { return Ok(None) };
            let user = UserRow::named(connection, &token.token.user)?;
            Ok(Some((token, user)))
        });
        let Some((row, Some(user))) = found.await? else { return Ok(None) };
        let now_ms = now_ms();
        if !row.token.secret.is(&shown.digest()) || row.has_expired(now_ms) || user.disabled {
            return Ok(None);
        }
        if now_ms.saturating_sub(row.used_at_ms.unwrap_or(0)) >= COARSE_MS {
            gate.use_token(&shown.id, now_ms);
        }
        // The owner may have less now than when the token was made.
        let rights = row.token.rights.and(&user.rights);
        let way = Way::Token(shown.id);
        Ok(Some(Actor { user: Some(user.name), rights, way, from, is_first: false, lacks_factor: false }))
    }

    /// Who sends this name and password along with a request. Who has a second factor is refused: a password alone does not
    /// prove them, and there is no place for a code.
    pub async fn identify_password(
        &self,
        name: &str,
        password: Zeroizing<String>,
        from: Option<IpAddr>,
    ) -> Result<Actor, ControlError> {
        let proved = self.prove_password(name, password, from).await?;
        if proved.standing.is_some_and(|standing| standing.has_factor) {
            return Err(ControlError::new(
                ErrorKind::Forbidden,
                "a password alone is not enough for who has a second factor",
            )
            .hint("show an API token: make one on the account page, and send it as `Authorization: Bearer`"));
        }
        Ok(proved.actor)
    }

    /// Who has this name and password. Attempts that fail are counted, and cost time.
    pub(super) async fn prove_password(
        &self,
        name: &str,
        password: Zeroizing<String>,
        from: Option<IpAddr>,
    ) -> Result<Proved, ControlError> {
        let gate = self.gate()?;
        let shown: String = name.chars().take(UserName::MAX_BYTES).collect();
        // What can be no name has no row, and costs the same.
        let name = name.parse::<UserName>().ok();
        let asked = name.clone();
        let read = self.state.read(move |connection| match asked {
            Some(name) => query_standing(connection, &name),
            None => Ok(None),
        });
        let standing = read.await?;
        let row = standing.as_ref().map(|standing| &standing.row);
        let hash = row.filter(|row| !row.disabled).and_then(|row| row.password.clone());
        let first = gate.first().filter(|_| row.is_none() && name.as_ref().is_some_and(UserName::is_first));
        // It is random and long: nobody guesses it, and nobody keeps its owner out.
        let is_first_password = first.is_some_and(|first| first.is(&password));
        let proved = || {
            let name = name.clone()?;
            let rights = rights_of(&name, standing.as_ref())?;
            let is_first = standing.is_none();
            let lacks_factor = standing.as_ref().is_some_and(|standing| standing.lacks_factor);
            let actor = Actor { user: Some(name), rights, way: Way::Password, from, is_first, lacks_factor };
            Some(Proved { actor, standing: standing.clone() })
        };
        if is_first_password && let Some(proved) = proved() {
            return Ok(proved);
        }
        let right = loop {
            match gate.passwords.join(&shown, hash.as_ref(), &password).await {
                Company::First(first) => {
                    let right = self.try_password((&shown, name.as_ref()), hash.as_ref(), &password, from).await?;
                    first.tell(right);
                    break right;
                }
                Company::Told(Some(right)) => break right,
                // Whoever was first gave up.
                Company::Told(None) => {}
            }
        };
        proved().filter(|_| right).ok_or_else(|| {
            tracing::warn!(from = ?from, "somebody could not prove who they are");
            unknown()
        })
    }

    /// Whether a password is right, as an attempt that counts.
    async fn try_password(
        &self,
        (shown, name): (&str, Option<&UserName>),
        hash: Option<&PasswordHash>,
        password: &str,
        from: Option<IpAddr>,
    ) -> Result<bool, ControlError> {
        let gate = self.gate()?;
        // Counted before anything is compared: what was right a short while ago costs nothing to guess.
        let attempt = gate.brake.begin(shown, from).map_err(throttled)?;
        let knows = name.zip(hash).is_some_and(|(name, hash)| gate.passwords.knows(name, hash, password));
        let right = if knows {
            true
        } else {
            let turn = gate.passwords.turn().await;
            let fits = password.len() <= LONGEST_PASSWORD;
            let password = Zeroizing::new(if fits { password.to_owned() } else { String::new() });
            let nobody = UserName::first();
            gate.passwords.verify(turn, name.unwrap_or(&nobody), hash.filter(|_| fits), password).await
        };
        if right {
            attempt.passed();
        }
        Ok(right)
    }

    /// Opens a session for whoever has this name and password, or asks who has a second factor for a code. `agent` is what the
    /// browser calls itself.
    pub async fn sign_in(
        &self,
        name: &str,
        password: Zeroizing<String>,
        from: Option<IpAddr>,
        agent: String,
    ) -> Result<SignIn, ControlError> {
        let Proved { actor, standing } = self.prove_password(name, password, from).await?;
        let Some(known) = standing else { return self.open_session(actor, None, agent).await.map(SignIn::whole) };
        if known.has_factor {
            return self.ask_for_code(known.row, from);
        }
        match self.open_session(actor, None, agent).await {
            Err(error) if error.kind == ErrorKind::Stale => {
                // A second factor that was turned on at another node, a moment ago.
                self.catch_up().await?;
                let name = known.row.name.clone();
                let now = self.state.read(move |connection| query_standing(connection, &name)).await?;
                let now =
                    now.filter(|now| now.has_factor && !now.row.disabled && now.row.password == known.row.password);
                self.ask_for_code(now.ok_or(error)?.row, from)
            }
            opened => opened.map(SignIn::whole),
        }
    }

    fn ask_for_code(&self, row: UserRow, from: Option<IpAddr>) -> Result<SignIn, ControlError> {
        let half = self.gate()?.halves.open(row.name, row.password, from);
        half.map(SignIn::Half).map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))
    }

    /// The second half of a sign-in: a code, or a recovery code. An error that is no [`ErrorKind::Unauthenticated`] or
    /// [`ErrorKind::Throttled`] asks for the first half again.
    pub async fn sign_in_with_code(
        &self,
        half: &str,
        code: &str,
        from: Option<IpAddr>,
        agent: String,
    ) -> Result<SignedIn, ControlError> {
        let gate = self.gate()?;
        let over = || {
            ControlError::new(ErrorKind::Stale, "the sign-in took too long, or too many codes were tried")
                .hint("begin again with name and password")
        };
        let waiting = gate.halves.attempt(half, from).ok_or_else(over)?;
        let name = waiting.user.clone();
        let standing = self.state.read(move |connection| query_standing(connection, &name)).await?;
        let same = standing.filter(|standing| standing.row.password == waiting.password && !standing.row.disabled);
        let Some(standing) = same.filter(|standing| standing.has_factor) else { return Err(over()) };
        let attempt = self.begin_code(&waiting.user, from)?;
        let Some(proof) = self.factor_proof(&waiting.user, code).await? else {
            tracing::warn!(from = ?from, "somebody could not prove who they are");
            return Err(wrong_code());
        };
        let rights = rights_of(&waiting.user, Some(&standing)).ok_or_else(over)?;
        let user = Some(waiting.user.clone());
        let actor = Actor { user, rights, way: Way::Password, from, is_first: false, lacks_factor: false };
        let signed_in = self.open_session(actor, Some(proof), agent).await.map_err(|error| match error.kind {
            // Another node has just seen the same code.
            ErrorKind::Stale => wrong_code(),
            _ => error,
        })?;
        attempt.passed();
        gate.halves.close(&waiting.id);
        Ok(signed_in)
    }

    /// Codes are counted by name too, and apart from passwords: a right password takes no wrong code back. What they are counted as is
    /// longer than any name that somebody can type.
    pub(super) fn begin_code(&self, user: &UserName, from: Option<IpAddr>) -> Result<Attempt, ControlError> {
        self.gate()?.brake.begin(&format!("{user}\0{:64}", "code"), from).map_err(throttled)
    }

    /// The same of passkeys, under a name that nobody can type.
    pub(super) fn begin_passkey(&self, name: &str, from: Option<IpAddr>) -> Result<Attempt, ControlError> {
        self.gate()?.brake.begin(name, from).map_err(throttled)
    }

    /// Opens a session for somebody who has proved who they are.
    pub(super) async fn open_session(
        &self,
        actor: Actor,
        proof: Option<FactorProof>,
        agent: String,
    ) -> Result<SignedIn, ControlError> {
        self.open_session_with(actor, (proof, None), agent).await
    }

    /// Opens a session for somebody whose passkey has signed.
    pub(super) async fn open_session_by(
        &self,
        actor: Actor,
        used: PasskeyUse,
        agent: String,
    ) -> Result<SignedIn, ControlError> {
        self.open_session_with(actor, (None, Some(used)), agent).await
    }

    async fn open_session_with(
        &self,
        mut actor: Actor,
        (proof, passkey): (Option<FactorProof>, Option<PasskeyUse>),
        agent: String,
    ) -> Result<SignedIn, ControlError> {
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
            came_from: actor.from.map(|from| from.to_canonical().to_string()),
            agent,
        };
        actor.way = Way::Session(bearer.id.clone());
        let command = Command::OpenSession { session: Box::new(session), proof, passkey, at_ms };
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
        let (way, asked_rights, now_ms) = (asks.way.clone(), asks.rights.clone(), now_ms());
        let read = self.state.read(move |connection| {
            let standing = query_standing(connection, &name)?;
            let Some(rights) = rights_of(&name, standing.as_ref()) else { return Ok(None) };
            Ok(match way {
                Way::Socket | Way::Provider | Way::Passkey | Way::Password => Some(rights),
                Way::Session(id) => match SessionRow::by_id(connection, &id)? {
                    Some(row) if now_ms < row.session.expires_at_ms => {
                        rights_of(&name, standing_of(connection, &row)?.as_ref())
                    }
                    _ => None,
                },
                Way::Signed { key, until_ms, .. } => {
                    let lives = now_ms < until_ms && SigningKeyRow::by_id(connection, &key)?.is_some();
                    lives.then(|| asked_rights.and(&standing.map_or(rights, |standing| standing.row.rights)))
                }
                Way::Token(id) => ApiTokenRow::by_id(connection, &id)?
                    .filter(|row| !row.has_expired(now_ms))
                    .map(|row| row.token.rights.and(&standing.map_or(rights, |standing| standing.row.rights))),
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
