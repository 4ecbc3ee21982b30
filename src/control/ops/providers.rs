//! Signing in by way of a provider.

use std::net::IpAddr;

use toft_model::{
    identity::{ExternalUser, UserName},
    state::{Command, ExternalUserRow, query_standing},
};
use zeroize::Zeroizing;

use super::{Ops, SignIn, identify::rights_of, now_ms};
use crate::{
    control::{
        ControlError, ErrorKind,
        actor::{self, Actor, Way},
    },
    oidc::{Beginnings, Oidc, OidcError, Person},
};

/// A provider, and who went there.
pub struct Provider {
    oidc: Oidc,
    beginnings: Beginnings,
}

/// A sign-in that goes to the provider.
pub struct ToProvider {
    /// Where.
    pub address: String,
    /// What the browser keeps meanwhile.
    pub cookie: Zeroizing<String>,
}

/// A sign-in that came back.
pub struct FromProvider {
    /// How it went on.
    pub sign_in: SignIn,
    /// Where they were going.
    pub next: String,
}

/// What came back with the browser.
pub struct CameBack<'a> {
    /// What it kept.
    pub cookie: &'a str,
    /// What the provider gave it.
    pub state: &'a str,
    /// The same: what is exchanged for the proof.
    pub code: &'a str,
    /// Where the provider sent it: the same address that it was told.
    pub back: &'a str,
}

impl From<OidcError> for ControlError {
    fn from(error: OidcError) -> Self {
        let (kind, hint) = match &error {
            OidcError::Away(..) => (ErrorKind::Unavailable, "try again; the log of this node tells more"),
            OidcError::Unproved(_) => (ErrorKind::Unauthenticated, "sign in again; an admin looks at `[access.oidc]`"),
            OidcError::Refused(_) => (ErrorKind::Unauthenticated, "sign in again"),
        };
        Self::new(kind, error.to_string()).hint(hint)
    }
}

impl Provider {
    /// One to which nobody went yet.
    pub fn new(oidc: Oidc) -> Self {
        Self { oidc, beginnings: Beginnings::default() }
    }
}

impl Ops {
    fn provider(&self) -> Result<&Provider, ControlError> {
        self.provider.as_deref().ok_or_else(|| {
            ControlError::new(ErrorKind::NotFound, "no provider is known here to sign in at")
                .hint("`[access.oidc]` in the configuration names one")
        })
    }

    /// What people call the provider, if there is one.
    pub fn provider_name(&self) -> Option<&str> {
        self.provider.as_deref().map(|provider| provider.oidc.name())
    }

    /// Sends somebody to the provider, who was going to `next`. `back` is where they come back to.
    pub async fn begin_at_provider(
        &self,
        next: String,
        back: &str,
        from: Option<IpAddr>,
    ) -> Result<ToProvider, ControlError> {
        let provider = self.provider()?;
        let begun = provider.beginnings.begin(next, from);
        let start = begun.map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?;
        let address = provider
            .oidc
            .address(&start, back)
            .await
            .inspect_err(|error| tracing::warn!(%error, "nobody can be sent to sign in"))?;
        Ok(ToProvider { address, cookie: start.cookie })
    }

    /// Signs somebody in who came back from the provider.
    pub async fn sign_in_by_provider(
        &self,
        came: CameBack<'_>,
        from: Option<IpAddr>,
        agent: String,
    ) -> Result<FromProvider, ControlError> {
        let provider = self.provider()?;
        let begun = provider.beginnings.take(came.cookie, came.state).ok_or_else(|| {
            ControlError::new(ErrorKind::Unauthenticated, "this browser has not begun to sign in, or took too long")
                .hint("begin again")
        })?;
        let person = provider.oidc.person(&begun, came.code, came.back).await;
        let person = person.inspect_err(|error| tracing::warn!(%error, "somebody came back and was not signed in"))?;
        let user = self.accept(person).await?;
        let asked = user.clone();
        let standing = self.state.read(move |connection| query_standing(connection, &asked)).await?;
        let rights = rights_of(&user, standing.as_ref()).ok_or_else(|| {
            ControlError::new(ErrorKind::Forbidden, format!("the user `{user}` is disabled")).hint("ask an admin")
        })?;
        let (has_factor, lacks_factor) =
            standing.as_ref().map_or((false, false), |standing| (standing.has_factor, standing.lacks_factor));
        let sign_in = if has_factor {
            let password = standing.and_then(|standing| standing.row.password);
            let half = self.gate()?.halves.open(user, password, from);
            half.map(SignIn::Half).map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?
        } else {
            let actor = Actor { user: Some(user), rights, way: Way::Provider, from, is_first: false, lacks_factor };
            SignIn::In(Box::new(self.open_session(actor, None, agent).await?))
        };
        Ok(FromProvider { sign_in, next: begun.next })
    }

    /// Who somebody of the provider is here: they become a user, or have by now what their groups give.
    async fn accept(&self, person: Person) -> Result<UserName, ControlError> {
        let Person { issuer, subject, name, role } = person;
        let known = |issuer: String, subject: String| {
            self.state.read(move |connection| ExternalUserRow::user_of(connection, &issuer, &subject))
        };
        let before = known(issuer.clone(), subject.clone()).await?;
        let nothing = || {
            ControlError::new(ErrorKind::Forbidden, "your groups at the provider give you nothing here")
                .hint("ask an admin; `roles` in `[access.oidc]` says what groups give")
        };
        if before.is_none() && role.is_none() {
            return Err(nothing());
        }
        let called = before.clone().or(name.clone());
        let user = Box::new(ExternalUser { issuer: issuer.clone(), subject: subject.clone(), name, role });
        let command = Command::AcceptUser { user, at_ms: now_ms() };
        // What happens is theirs: nobody else has asked for it.
        let actor = Actor { user: called, way: Way::Provider, ..Actor::root() };
        actor::act(std::sync::Arc::new(actor), self.submit(command)).await?;
        if role.is_none() {
            return Err(nothing());
        }
        known(issuer, subject).await?.ok_or_else(|| {
            ControlError::new(ErrorKind::Unavailable, "this node does not know of you yet").hint("sign in again")
        })
    }
}
