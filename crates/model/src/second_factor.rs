//! Second factors: codes that change with time (TOTP, RFC 6238), and codes for when the device that makes them is lost.

use serde::{Deserialize, Serialize};

use crate::{identity::UserName, invalid::Invalid, passkey::Domain, secret::Sealed, token::Digest};

/// Recovery codes that come with a second factor. Each opens once.
pub const RECOVERY_CODES: usize = 10;
/// How long a code is the one that counts, in milliseconds.
pub const STEP_MS: i64 = 30_000;
/// Longest sealed secret, in bytes.
const MAX_SEALED_BYTES: usize = 256;

/// A second factor on the way into the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSecondFactor {
    /// Whose it is.
    pub user: UserName,
    /// Tells it from others of the same user, earlier and later: when it was turned on, in milliseconds since 1970.
    pub version: u64,
    /// The secret that codes are made of, sealed for this user and version.
    pub sealed: Sealed,
    /// The step of the code that proved it; no code of this or an earlier step counts again.
    pub step: u64,
    /// SHA-256 of each recovery code.
    pub recovery: Vec<Digest>,
}

impl NewSecondFactor {
    /// Checks it against the rules.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.sealed.as_bytes().is_empty() || self.sealed.as_bytes().len() > MAX_SEALED_BYTES {
            let hint = format!("use at most {MAX_SEALED_BYTES} bytes");
            return Err(Invalid::value("the sealed secret does not fit", hint).at("sealed"));
        }
        if self.recovery.len() > RECOVERY_CODES {
            let hint = format!("use at most {RECOVERY_CODES}");
            return Err(Invalid::value("there are too many recovery codes", hint).at("recovery"));
        }
        Ok(())
    }
}

/// That a code was shown which nobody has shown before. It is spent by the command that carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactorProof {
    /// Of which second factor.
    pub version: u64,
    /// What was shown.
    #[serde(flatten)]
    pub shown: ShownCode,
}

/// What was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "shown")]
pub enum ShownCode {
    /// The code of a step.
    Step {
        /// Which: steps of [`STEP_MS`] since 1970.
        step: u64,
    },
    /// A recovery code.
    Recovery {
        /// SHA-256 of it.
        code: Digest,
    },
}

/// What the whole cluster says about who comes in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AccessSettings {
    /// Whether admins who sign in may no more than look until they have a second factor.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub second_factor_for_admins: bool,
    /// The domain that passkeys made at a name in it belong to; at other names, and when absent, they belong to that name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passkey_domain: Option<Domain>,
}

/// What is new about it; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AccessChanges {
    /// Whether admins who sign in may no more than look until they have a second factor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_factor_for_admins: Option<bool>,
    /// The domain that passkeys made at a name in it belong to; empty when each name has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passkey_domain: Option<String>,
}

impl AccessSettings {
    /// The same with the changes.
    pub fn with(&self, changes: &AccessChanges) -> Result<Self, Invalid> {
        let passkey_domain = match changes.passkey_domain.as_deref() {
            None => self.passkey_domain.clone(),
            Some("") => None,
            Some(text) => Some(text.parse::<Domain>().map_err(|invalid| invalid.at("passkey_domain"))?),
        };
        let second_factor_for_admins = changes.second_factor_for_admins.unwrap_or(self.second_factor_for_admins);
        Ok(Self { second_factor_for_admins, passkey_domain })
    }
}
