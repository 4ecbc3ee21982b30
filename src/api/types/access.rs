//! What the API says of second factors, and of what the cluster asks of who comes in.

use serde::{Deserialize, Serialize};
use toft_model::second_factor::AccessSettings;
use utoipa::ToSchema;

use crate::control::ops::{FactorOffer, FactorView};

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
}

impl From<AccessSettings> for Access {
    fn from(settings: AccessSettings) -> Self {
        Self { second_factor_for_admins: settings.second_factor_for_admins }
    }
}
