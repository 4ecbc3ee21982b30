//! What the API says of second factors, of what the cluster asks of who comes in, and of signed tokens.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use toft_model::{
    identity::{Role, UserName},
    name::Name,
    second_factor::AccessSettings,
    state::PasskeyRow,
};
use utoipa::ToSchema;

use super::time;
use crate::control::ops::{FactorOffer, FactorView, Jwk};

/// How whoever asks stands with their second factor.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SecondFactor {
    /// Whether it is on.
    pub on: bool,
    /// Recovery codes that were not used.
    pub recovery_codes: usize,
    /// Whether the cluster asks for one, and it is missing.
    pub missing: bool,
}

impl From<FactorView> for SecondFactor {
    fn from(view: FactorView) -> Self {
        Self { on: view.on, recovery_codes: view.recovery_codes, missing: view.missing }
    }
}

/// A secret for an authenticator, which counts once a code of it was sent.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct SecondFactorOffer {
    /// The secret, in base32.
    pub secret: String,
    /// The same as an `otpauth:` address, for a QR code.
    pub address: String,
    /// To be sent back with a first code, for a quarter of an hour.
    pub offer: String,
}

impl From<FactorOffer> for SecondFactorOffer {
    fn from(offer: FactorOffer) -> Self {
        Self { secret: offer.secret.to_string(), address: offer.address.to_string(), offer: offer.offer }
    }
}

/// A second factor to be turned on.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecondFactorRequest {
    /// What was offered.
    pub offer: String,
    /// A code of it.
    pub code: String,
    /// The password of whoever asks.
    pub password: String,
}

/// Recovery codes, which are told once. Each opens once without the authenticator.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct RecoveryCodes {
    /// The codes.
    pub recovery_codes: Vec<String>,
}

/// A second factor to be turned off.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecondFactorRemoval {
    /// A code of it, or a recovery code.
    pub code: String,
    /// The password of whoever asks.
    pub password: String,
}

/// What the cluster asks of who comes in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Access {
    /// Whether admins who sign in may no more than look until they have a second factor.
    pub second_factor_for_admins: bool,
    /// The domain that passkeys made at a name in it belong to; absent when each name has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passkey_domain: Option<String>,
}

impl From<AccessSettings> for Access {
    fn from(settings: AccessSettings) -> Self {
        Self {
            second_factor_for_admins: settings.second_factor_for_admins,
            passkey_domain: settings.passkey_domain.map(String::from),
        }
    }
}

/// A passkey, which somebody shows instead of password and second factor.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Passkey {
    /// Its id.
    pub id: String,
    /// What its owner calls it.
    pub label: String,
    /// The name at which it works, and in which others lie.
    pub domain: String,
    /// Whether it is kept elsewhere too: `never`, `possible` or `done`.
    pub backup: String,
    /// When it was added.
    pub created_at: String,
    /// When it opened a session last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<String>,
}

impl From<PasskeyRow> for Passkey {
    fn from(row: PasskeyRow) -> Self {
        Self {
            id: row.passkey.id.to_string(),
            label: row.passkey.label,
            domain: row.passkey.domain.into(),
            backup: row.passkey.backup.as_str().to_owned(),
            created_at: time(row.created_at_ms),
            used_at: row.used_at_ms.map(time),
        }
    }
}

/// A token to be signed.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SignedTokenRequest {
    /// Whom it is to speak of, when root asks; otherwise it is whoever asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub user: Option<UserName>,
    /// To whom: `toft`, which is this cluster's own doors, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// What it may: `viewer` (when absent), `operator` or `admin`, at most its user's.
    pub role: Role,
    /// Deployments in which it is an operator, at most its user's.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub grants: BTreeSet<Name>,
    /// How long it is valid: `15m` when absent, `1h` at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

/// A token that was signed just now. Nobody keeps it.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct SignedToken {
    /// The token: a JWT.
    pub token: String,
    /// What it is called in the audit trail.
    pub id: String,
    /// Whom it speaks of.
    pub user: String,
    /// To whom.
    pub audience: String,
    /// Until when it is valid.
    pub expires_at: String,
}

impl From<crate::control::ops::SignedToken> for SignedToken {
    fn from(signed: crate::control::ops::SignedToken) -> Self {
        Self {
            token: signed.text.to_string(),
            id: signed.claims.jti.to_string(),
            user: signed.claims.sub.to_string(),
            audience: signed.claims.aud,
            expires_at: time(signed.claims.exp.saturating_mul(1_000)),
        }
    }
}

/// Public keys (JWKS).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Keys {
    /// The keys, the newest first.
    pub keys: Vec<Key>,
}

/// A public key (JWK).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Key {
    /// `OKP`.
    pub kty: String,
    /// `Ed25519`.
    pub crv: String,
    /// What tokens call it.
    pub kid: String,
    /// `EdDSA`.
    pub alg: String,
    /// `sig`.
    #[serde(rename = "use")]
    pub usage: String,
    /// The key, base64url.
    pub x: String,
}

impl From<Jwk> for Key {
    fn from(key: Jwk) -> Self {
        Self {
            kty: key.kty,
            crv: key.crv.unwrap_or_default(),
            kid: key.kid.unwrap_or_default(),
            alg: key.alg.unwrap_or_default(),
            usage: key.usage.unwrap_or_default(),
            x: key.x.unwrap_or_default(),
        }
    }
}
