//! Operations on second factors: turning one on and off, and what the cluster asks of admins.
//!
//! A secret is made and sealed here. It is shown before it is in the state: what is offered is sealed and goes to the browser and
//! back, so that looking at the page writes nothing.

use data_encoding::BASE64URL_NOPAD;
use toft_model::{
    identity::{Role, UserName},
    second_factor::{AccessChanges, AccessSettings, FactorProof, NewSecondFactor, RECOVERY_CODES, ShownCode},
    state::{Command, SecondFactorRow, access_settings, query_standing},
};
use zeroize::Zeroizing;

use super::{Ops, now_ms, users::no_user};
use crate::{
    control::{ControlError, ErrorKind, actor},
    identity::{TotpSecret, is_code, recovery_codes, recovery_digest},
    seal::{ClusterKey, Place},
};

/// What a secret in the state is sealed as, and one that is offered.
const KIND: &str = "second-factor";
const OFFER: &str = "second-factor-offer";
/// How long an offer can be taken up, in milliseconds.
const OFFERED_MS: i64 = 15 * 60 * 1_000;
/// Longest offer that is looked at, in bytes.
const LONGEST_OFFER: usize = 512;
/// What authenticators call us.
const ISSUER: &str = "toft";

/// A secret for an authenticator, which nobody has taken up yet.
pub struct FactorOffer {
    /// The secret, as people type it.
    pub secret: Zeroizing<String>,
    /// The same as an address (`otpauth:`), for a picture.
    pub address: Zeroizing<String>,
    /// The same sealed, to be brought back with a first code.
    pub offer: String,
}

/// How whoever asks stands with their second factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FactorView {
    /// Whether it is on.
    pub on: bool,
    /// Recovery codes that were not used.
    pub recovery_codes: usize,
    /// Whether the cluster asks for one, and it is missing.
    pub missing: bool,
    /// Whether they can have one: it stands beside a password of their own.
    pub possible: bool,
}

pub(super) fn wrong_code() -> ControlError {
    ControlError::new(ErrorKind::Unauthenticated, "the code is wrong, or was used before")
        .hint("wait for the next code; the clock of the device must be right")
        .field("code")
}

fn internal(error: impl ToString) -> ControlError {
    ControlError::new(ErrorKind::Internal, error.to_string())
}

fn refused(wrong: ControlError) -> ControlError {
    ControlError { kind: ErrorKind::Invalid, ..wrong }
}

fn stale_offer() -> ControlError {
    ControlError::new(ErrorKind::Stale, "the secret was offered too long ago, or to somebody else")
        .hint("begin again, with the new secret that is shown")
        .field("offer")
}

impl Ops {
    pub(super) fn sealing_key(&self) -> Result<&ClusterKey, ControlError> {
        let absent = || ControlError::new(ErrorKind::Unavailable, "this node has no key to seal secrets with");
        self.cluster_key.as_deref().ok_or_else(absent)
    }

    /// The user who asks, signed in, with a password of their own, beside which `what` stands.
    pub(super) async fn who_has_password(&self, what: &str) -> Result<UserName, ControlError> {
        // Not forbidden: nobody gives a token that.
        let asks = self.who_signed_in().map_err(|error| ControlError { kind: ErrorKind::Conflict, ..error })?;
        let user = asks.user.clone().ok_or_else(no_user)?;
        let asked = user.clone();
        let standing = self.state.read(move |connection| query_standing(connection, &asked)).await?;
        if standing.is_some_and(|standing| standing.row.password.is_some()) {
            return Ok(user);
        }
        Err(ControlError::new(ErrorKind::Conflict, format!("{what} stands beside a password of one's own"))
            .hint("choose a password first"))
    }

    /// How whoever asks stands.
    pub async fn second_factor(&self) -> Result<FactorView, ControlError> {
        let nothing = FactorView { on: false, recovery_codes: 0, missing: false, possible: false };
        let Some(asks) = actor::current() else { return Ok(nothing) };
        let Some(user) = asks.user.clone() else { return Ok(nothing) };
        let signed_in = self.who_signed_in().is_ok();
        let by_passkey = self.opened_by().await?.is_some();
        let read = self
            .state
            .read(move |connection| Ok((query_standing(connection, &user)?, SecondFactorRow::of(connection, &user)?)));
        let (standing, row) = read.await?;
        Ok(FactorView {
            on: row.is_some(),
            recovery_codes: row.map_or(0, |row| row.0.recovery.len()),
            // Who came in with a passkey misses nothing.
            missing: standing.as_ref().is_some_and(|standing| standing.lacks_factor) && !by_passkey,
            possible: signed_in && standing.is_some_and(|standing| standing.row.password.is_some()),
        })
    }

    /// A new secret for whoever asks. It counts once [`Self::turn_on_second_factor`] brings a code of it.
    pub async fn offer_second_factor(&self) -> Result<FactorOffer, ControlError> {
        let user = self.who_has_password("a second factor").await?;
        let secret = TotpSecret::make().map_err(internal)?;
        let until = now_ms().saturating_add(OFFERED_MS);
        let place = Place { kind: OFFER, name: user.as_str(), version: until.unsigned_abs() };
        let sealed = self.sealing_key()?.seal(place, &secret.as_bytes().to_vec().into()).map_err(internal)?;
        let offer = BASE64URL_NOPAD.encode(&[&until.to_be_bytes()[..], &sealed].concat());
        Ok(FactorOffer { secret: secret.base32(), address: secret.address(ISSUER, &user), offer })
    }

    /// The same offer again, for whoever mistyped the code.
    pub async fn offered_second_factor(&self, offer: &str) -> Result<FactorOffer, ControlError> {
        let user = self.who_has_password("a second factor").await?;
        let secret = self.opened(&user, offer)?;
        Ok(FactorOffer { secret: secret.base32(), address: secret.address(ISSUER, &user), offer: offer.to_owned() })
    }

    fn opened(&self, user: &UserName, offer: &str) -> Result<TotpSecret, ControlError> {
        let fits = offer.len() <= LONGEST_OFFER;
        let bytes = BASE64URL_NOPAD.decode(offer.as_bytes()).ok().filter(|_| fits).ok_or_else(stale_offer)?;
        let (until, sealed) = bytes.split_first_chunk().ok_or_else(stale_offer)?;
        let until = i64::from_be_bytes(*until);
        if until < now_ms() {
            return Err(stale_offer());
        }
        let place = Place { kind: OFFER, name: user.as_str(), version: until.unsigned_abs() };
        let secret = self.sealing_key()?.open(place, sealed).map_err(|_| stale_offer())?;
        Ok(TotpSecret::from_bytes(secret.as_bytes()))
    }

    /// Turns the second factor of whoever asks on: they tell their password again and a code of what was offered. Gives the recovery
    /// codes; nobody can read them again.
    pub async fn turn_on_second_factor(
        &self,
        password: Zeroizing<String>,
        offer: &str,
        code: &str,
    ) -> Result<Vec<Zeroizing<String>>, ControlError> {
        let user = self.who_has_password("a second factor").await?;
        let from = actor::current().and_then(|asks| asks.from);
        let secret = self.opened(&user, offer)?;
        self.prove_present_password(&user, password, from).await?;
        let at_ms = now_ms();
        let step = secret.step_of(code, at_ms, 0).ok_or_else(|| refused(wrong_code()))?;
        let version = at_ms.unsigned_abs();
        let place = Place { kind: KIND, name: user.as_str(), version };
        let sealed = self.sealing_key()?.seal(place, &secret.as_bytes().to_vec().into()).map_err(internal)?;
        let codes = recovery_codes(RECOVERY_CODES).map_err(internal)?;
        let recovery = codes.iter().map(|code| recovery_digest(&user, code)).collect();
        let factor = NewSecondFactor { user, version, sealed: sealed.into(), step, recovery };
        self.submit(Command::PutSecondFactor { factor: Box::new(factor), at_ms }).await?;
        Ok(codes)
    }

    /// Turns the second factor of whoever asks off, who tells their password and a code again.
    pub async fn turn_off_second_factor(&self, password: Zeroizing<String>, code: &str) -> Result<(), ControlError> {
        let user = self.who_has_password("a second factor").await?;
        let from = actor::current().and_then(|asks| asks.from);
        self.prove_present_password(&user, password, from).await?;
        let attempt = self.begin_code(&user, from)?;
        let proof = self.factor_proof(&user, code).await?.ok_or_else(|| refused(wrong_code()))?;
        let command = Command::RemoveSecondFactor { name: user, proof: Some(proof), at_ms: now_ms() };
        self.submit(command).await.map_err(ControlError::from).map_err(|error| match error.kind {
            ErrorKind::Stale => refused(wrong_code()),
            _ => error,
        })?;
        attempt.passed();
        Ok(())
    }

    /// Takes somebody's second factor away, who has lost it.
    pub async fn reset_second_factor(&self, name: UserName) -> Result<(), ControlError> {
        self.submit(Command::RemoveSecondFactor { name, proof: None, at_ms: now_ms() }).await?;
        Ok(())
    }

    /// What a code proves of that user, as far as this node knows; the state looks again when it is spent.
    pub(super) async fn factor_proof(&self, user: &UserName, code: &str) -> Result<Option<FactorProof>, ControlError> {
        let asked = user.clone();
        let row = self.state.read(move |connection| SecondFactorRow::of(connection, &asked)).await?;
        let Some(SecondFactorRow(factor)) = row else { return Ok(None) };
        let version = factor.version;
        if !is_code(code) {
            let digest = recovery_digest(user, code);
            let known = factor.recovery.iter().fold(false, |known, one| known | one.is(&digest));
            return Ok(known.then_some(FactorProof { version, shown: ShownCode::Recovery { code: digest } }));
        }
        let place = Place { kind: KIND, name: user.as_str(), version };
        let secret = self.sealing_key()?.open(place, factor.sealed.as_bytes()).map_err(|error| {
            ControlError::new(ErrorKind::Unavailable, format!("the second factor of `{user}` cannot be read: {error}"))
                .hint("use a recovery code, or ask root on a node: `toft user second-factor reset`")
        })?;
        let step = TotpSecret::from_bytes(secret.as_bytes()).step_of(code, now_ms(), factor.step);
        Ok(step.map(|step| FactorProof { version, shown: ShownCode::Step { step } }))
    }

    /// What the cluster says about who comes in.
    pub async fn access_settings(&self) -> Result<AccessSettings, ControlError> {
        Ok(self.state.read(access_settings).await?)
    }

    /// Changes it, and gives it as it then is. Whoever asks admins for a second factor has one.
    pub async fn configure_access(&self, changes: AccessChanges) -> Result<AccessSettings, ControlError> {
        if changes.second_factor_for_admins == Some(true)
            && let Some(user) = actor::current().and_then(|asks| asks.user.clone())
        {
            let asked = user.clone();
            let standing = self.state.read(move |connection| query_standing(connection, &asked)).await?;
            let has_one = standing.is_some_and(|standing| {
                standing.has_factor || standing.row.password.is_none() && standing.row.rights.role == Role::Admin
            }) || self.opened_by().await?.is_some();
            if !has_one {
                return Err(ControlError::new(ErrorKind::Conflict, "this would ask you for a second factor too")
                    .hint("turn your own on first: /account/second-factor; or sign in with a passkey")
                    .field("second_factor_for_admins"));
            }
        }
        self.submit(Command::ConfigureAccess { changes, at_ms: now_ms() }).await?;
        self.access_settings().await
    }
}
