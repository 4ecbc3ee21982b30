//! Operations on passkeys: adding and removing them, and signing in with one.
//!
//! What is asked is in memory of the node that asked it; what was proved travels with the command that opens the session, and the
//! state looks again.

use std::{net::IpAddr, sync::Arc};

use toft_model::{
    identity::UserName,
    passkey::{MAX_PASSKEYS, NewPasskey, check_label},
    state::{Command, PasskeyRow, SessionRow, access_settings, query_standing},
    token::TokenId,
};
use zeroize::Zeroizing;

use super::{
    Ops,
    audit::Noted,
    identify::{SignedIn, rights_of},
    now_ms,
    users::no_user,
};
use crate::{
    control::{
        ControlError, ErrorKind,
        actor::{self, Actor, Way},
    },
    identity::{PasskeyError, PasskeyWish, Passkeys, Shown, Site, new_token_id, unknown_name},
};

/// What tells of a copy in the audit trail.
const REFUSED: &str = "refuse_passkey";

impl From<PasskeyError> for ControlError {
    fn from(error: PasskeyError) -> Self {
        let message = error.to_string();
        match error {
            PasskeyError::NotAsked => Self::new(ErrorKind::Stale, "it took too long, or was begun elsewhere")
                .hint("begin again, on this page"),
            PasskeyError::Unreadable(_) => {
                Self::new(ErrorKind::Invalid, message).hint("load the page again, and begin anew").field("answer")
            }
            PasskeyError::Unproved(_) => {
                Self::new(ErrorKind::Invalid, message).hint("try again, or use another passkey").field("answer")
            }
            PasskeyError::Counter => Self::new(ErrorKind::Unauthenticated, message)
                .hint("sign in with your password, remove the passkey, and add it again"),
            PasskeyError::Unusable(_) => Self::new(ErrorKind::Internal, message),
        }
    }
}

fn opens_nothing() -> ControlError {
    ControlError::new(ErrorKind::Unauthenticated, "this passkey opens nothing here")
        .hint("it may have been removed; sign in with your password, and add it again on the account page")
}

impl Ops {
    /// The page that somebody is at, by what their browser says of it (`Origin`). Refused when passkeys cannot belong to it.
    pub async fn passkey_site(&self, origin: Option<&str>) -> Result<Site, ControlError> {
        let shared = self.state.read(access_settings).await?.passkey_domain;
        let refused = |message: &str, hint: &str| ControlError::new(ErrorKind::Conflict, message).hint(hint);
        let Some(origin) = origin else {
            return Err(refused(
                "the browser did not say which page asks",
                "open the dashboard in a browser; behind a proxy, it must pass `Origin` on",
            ));
        };
        Site::of(origin, shared.as_ref()).ok_or_else(|| {
            refused(
                "passkeys belong to a name, and this page was opened by an address",
                "open it by a name of this node, such as `NAME.local`",
            )
        })
    }

    /// Whether anybody has a passkey.
    pub async fn passkeys_are_there(&self) -> Result<bool, ControlError> {
        Ok(self.state.read(PasskeyRow::are_there).await?)
    }

    /// The passkeys of a user, the oldest first.
    pub async fn passkeys(&self, user: UserName) -> Result<Vec<PasskeyRow>, ControlError> {
        self.user(&user).await?;
        Ok(self.state.read(move |connection| PasskeyRow::of(connection, &user)).await?)
    }

    /// Those of whoever asks; root has none.
    pub async fn own_passkeys(&self) -> Result<Vec<PasskeyRow>, ControlError> {
        let Some(user) = actor::current().and_then(|asks| asks.user.clone()) else { return Ok(Vec::new()) };
        Ok(self.state.read(move |connection| PasskeyRow::of(connection, &user)).await?)
    }

    /// The passkey that opened the session of whoever asks.
    pub async fn opened_by(&self) -> Result<Option<TokenId>, ControlError> {
        let asks = actor::current();
        let Some(Way::Session(id)) = asks.as_ref().map(|asks| asks.way.clone()) else { return Ok(None) };
        let row = self.state.read(move |connection| SessionRow::by_id(connection, &id)).await?;
        Ok(row.and_then(|row| row.passkey))
    }

    /// Whether whoever asks can add one: they are signed in, and have a password of their own.
    pub async fn may_add_passkey(&self) -> bool {
        self.who_has_password("a passkey").await.is_ok()
    }

    /// Begins a new passkey for whoever asks, who tells their password again. Gives what the page hands to the browser; nothing is in
    /// the state before [`Self::add_passkey`].
    pub async fn offer_passkey(
        &self,
        label: &str,
        password: Zeroizing<String>,
        site: Site,
    ) -> Result<String, ControlError> {
        let user = self.who_has_password("a passkey").await?;
        let from = actor::current().and_then(|asks| asks.from);
        let label = label.trim().to_owned();
        check_label(&label)?;
        let known = self.own_passkeys().await?;
        if known.iter().any(|row| row.passkey.label == label) {
            return Err(ControlError::new(ErrorKind::Conflict, format!("you have a passkey `{label}` already"))
                .hint("choose another name for the new one")
                .field("label"));
        }
        if known.len() >= MAX_PASSKEYS {
            return Err(ControlError::new(
                ErrorKind::Conflict,
                format!("you have {MAX_PASSKEYS} passkeys, and no more fit"),
            )
            .hint("remove one that you do not use any more"));
        }
        self.prove_present_password(&user, password, from).await?;
        let handle = known.first().map(|row| row.passkey.handle.clone());
        let here = |row: &PasskeyRow| row.passkey.domain == site.domain;
        let known: Vec<NewPasskey> = known.into_iter().filter(here).map(|row| row.passkey).collect();
        let wish = PasskeyWish { user: &user, label, handle, known: &known };
        Ok(self.gate()?.passkeys.ask_new(wish, site, from)?)
    }

    /// Adds the passkey that a browser brings for whoever asks.
    pub async fn add_passkey(&self, answer: &str, site: &Site) -> Result<(), ControlError> {
        let user = self.who_has_password("a passkey").await?;
        let from = actor::current().and_then(|asks| asks.from);
        let id = new_token_id().map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?;
        let passkey = self.gate()?.passkeys.new_passkey((&user, id), answer, site, from)?;
        self.submit(Command::PutPasskey { passkey: Box::new(passkey), at_ms: now_ms() }).await?;
        Ok(())
    }

    /// Removes a passkey of a user, and ends the sessions that it opened.
    pub async fn remove_passkey(&self, name: UserName, passkey_id: TokenId) -> Result<(), ControlError> {
        self.submit(Command::RemovePasskey { name, passkey_id, at_ms: now_ms() }).await?;
        Ok(())
    }

    /// The same of one's own.
    pub async fn remove_own_passkey(&self, passkey_id: TokenId) -> Result<(), ControlError> {
        // Not forbidden: nobody gives a token that.
        let asks = self.who_signed_in().map_err(|error| ControlError { kind: ErrorKind::Conflict, ..error })?;
        let user = asks.user.clone().ok_or_else(no_user)?;
        self.remove_passkey(user, passkey_id).await
    }

    /// Begins a sign-in with a passkey. Gives what the page hands to the browser.
    pub async fn ask_passkey(&self, site: Site, from: Option<IpAddr>) -> Result<String, ControlError> {
        Ok(self.gate()?.passkeys.ask_known(site, from)?)
    }

    /// Opens a session for whoever's passkey has answered what [`Self::ask_passkey`] asked. It stands for password and second factor.
    /// Attempts that fail are counted as wrong passwords are.
    pub async fn sign_in_with_passkey(
        &self,
        answer: &str,
        site: &Site,
        from: Option<IpAddr>,
        agent: String,
    ) -> Result<SignedIn, ControlError> {
        let gate = self.gate()?;
        let shown = Shown::read(answer)?;
        let turn = gate.passkeys.turn(&shown, site, from)?;
        let credential = shown.credential();
        let asked = credential.clone();
        let read = self.state.read(move |connection| {
            let Some(row) = PasskeyRow::called(connection, &asked)? else { return Ok(None) };
            let standing = query_standing(connection, &row.passkey.user)?;
            Ok(standing.map(|standing| (row.passkey, standing.with_passkey())))
        });
        let Some((passkey, standing)) = read.await? else {
            // Counted under what nobody is called, and by the address.
            let _counted = self.begin_passkey(&unknown_name(&credential), from)?;
            tracing::warn!(from = ?from, "somebody could not prove who they are");
            return Err(opens_nothing());
        };
        let user = passkey.user.clone();
        let attempt = self.begin_passkey(&format!("{user}\0{:64}", "passkey"), from)?;
        let actor = |rights| {
            let user = Some(user.clone());
            Actor { user, rights, way: Way::Passkey, from, is_first: false, lacks_factor: false }
        };
        let used = match Passkeys::prove(turn, &shown, &passkey) {
            Ok(used) => used,
            Err(error) => {
                tracing::warn!(from = ?from, %error, "somebody could not prove who they are");
                return Err(match error {
                    PasskeyError::Counter => {
                        self.note_copy(actor(Default::default()), &passkey).await;
                        error.into()
                    }
                    PasskeyError::Unproved(_) => opens_nothing(),
                    _ => error.into(),
                });
            }
        };
        // Only whoever has proved who they are learns that they are kept out.
        let rights = rights_of(&user, Some(&standing)).ok_or_else(|| {
            ControlError::new(ErrorKind::Forbidden, format!("the user `{user}` is disabled")).hint("ask an admin")
        })?;
        let counts = used.counter > 0;
        let signed_in = match self.open_session_by(actor(rights), used, agent).await {
            Ok(signed_in) => signed_in,
            Err(error) => {
                // Another node has seen a later signature in the meantime.
                if error.kind == ErrorKind::Stale && counts {
                    self.note_copy(actor(Default::default()), &passkey).await;
                }
                return Err(error);
            }
        };
        attempt.passed();
        Ok(signed_in)
    }

    /// Tells the audit trail of a passkey that somebody may have a copy of. Nobody can make it do so without the key.
    async fn note_copy(&self, actor: Actor, passkey: &NewPasskey) {
        let subject = format!("user/{}/passkey/{}", passkey.user, passkey.label);
        actor::act(Arc::new(actor), self.note(Noted { action: REFUSED, subject })).await;
    }
}
