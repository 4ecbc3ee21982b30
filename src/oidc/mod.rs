//! Signing in at a provider (OpenID Connect): the way there, the exchange of what it gives back, and the proof of what it says.
//!
//! The authorization code flow with PKCE, state and nonce. Knows no state and no user of ours: what it gives is who the provider says
//! somebody is, and what the groups of that give. docs/access.md tells the whole.

mod begun;
mod http;
mod proof;

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use serde::Deserialize;
use toft_model::identity::{Role, UserName};
use tokio::{sync::Mutex, time::Instant};
use zeroize::Zeroizing;

pub use begun::{Beginnings, Begun, Start};
use http::Http;
pub use proof::Person;

use crate::identity::Jwks;

/// How long what the provider publishes about itself counts.
const KNOWN_FOR: Duration = Duration::from_secs(60 * 60);
/// Longest wait for what somebody else is asking it already.
const PATIENCE: Duration = Duration::from_secs(10);
/// Least time between two readings of its keys.
const KEYS_AGAIN: Duration = Duration::from_secs(10);

/// A provider, and what its groups give.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// What people call it.
    pub name: String,
    /// What it calls itself: an address without what follows `?`.
    pub issuer: String,
    /// What it calls us.
    pub client_id: String,
    /// What proves that we are it; public clients have none.
    pub client_secret: Option<Zeroizing<String>>,
    /// What we ask for, `openid` among it.
    pub scopes: Vec<String>,
    /// The claim that names somebody's groups.
    pub groups_claim: String,
    /// The claim that names somebody.
    pub name_claim: String,
    /// What groups give; `*` is everybody.
    pub roles: BTreeMap<String, Role>,
    /// Certificates to trust beside the system's (PEM).
    pub ca_file: Option<PathBuf>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Settings({} as {})", self.issuer, self.client_id)
    }
}

/// Why somebody cannot be signed in by the provider.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// It cannot be asked, or answers something that makes no sense.
    #[error("the provider `{0}` cannot be asked: {1}")]
    Away(String, String),
    /// What it says cannot be proved.
    #[error("what the provider says cannot be proved: {0}")]
    Unproved(&'static str),
    /// It refuses.
    #[error("the provider refused: {0}")]
    Refused(String),
}

/// What a provider publishes about itself.
#[derive(Debug, Clone, Deserialize)]
struct Discovery {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
}

struct Known {
    about: Discovery,
    keys: Jwks,
    read: Instant,
    keys_read: Instant,
}

/// What it gives for a code.
#[derive(Deserialize)]
struct Given {
    id_token: Zeroizing<String>,
}

/// A provider.
pub struct Oidc {
    settings: Settings,
    http: Http,
    known: Mutex<Option<Known>>,
}

impl Oidc {
    /// One with these settings. Reads certificates, so it blocks.
    pub fn new(settings: Settings) -> Result<Self, OidcError> {
        let http = Http::new(settings.ca_file.as_deref()).map_err(|why| OidcError::Away(settings.name.clone(), why))?;
        Ok(Self { settings, http, known: Mutex::default() })
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    fn away(&self, why: impl ToString) -> OidcError {
        OidcError::Away(self.settings.name.clone(), why.to_string())
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, address: &str) -> Result<T, OidcError> {
        let (status, body) = self.http.get(address).await.map_err(|why| self.away(why))?;
        if status != 200 {
            return Err(self.away(format!("it answered {status}")));
        }
        serde_json::from_slice(&body).map_err(|_| self.away("its answer cannot be read"))
    }

    /// What it says of itself, and its keys: those that are known, or read anew when `keys_read` is the time they were read.
    async fn known(&self, keys_read: Option<Instant>) -> Result<(Discovery, Jwks, Instant), OidcError> {
        let lock = tokio::time::timeout(PATIENCE, self.known.lock()).await;
        let mut known = lock.map_err(|_| self.away("it has not answered others either"))?;
        let now = Instant::now();
        if let Some(known) = known.as_mut().filter(|known| now < known.read + KNOWN_FOR) {
            if keys_read == Some(known.keys_read) && now >= known.keys_read + KEYS_AGAIN {
                known.keys = self.read(&known.about.jwks_uri).await?;
                known.keys_read = now;
            }
            return Ok((known.about.clone(), known.keys.clone(), known.keys_read));
        }
        let address = format!("{}/.well-known/openid-configuration", self.settings.issuer.trim_end_matches('/'));
        let about: Discovery = self.read(&address).await?;
        if about.issuer != self.settings.issuer {
            return Err(OidcError::Unproved("it calls itself otherwise than `issuer`"));
        }
        for endpoint in [&about.authorization_endpoint, &about.token_endpoint, &about.jwks_uri] {
            http::allowed(endpoint).map_err(|why| self.away(why))?;
        }
        let keys: Jwks = self.read(&about.jwks_uri).await?;
        *known = Some(Known { about: about.clone(), keys: keys.clone(), read: now, keys_read: now });
        Ok((about, keys, now))
    }

    /// Where the browser goes to sign in. `back` is where it comes back to.
    pub async fn address(&self, start: &Start, back: &str) -> Result<String, OidcError> {
        let (about, ..) = self.known(None).await?;
        let asked = [
            ("response_type", "code"),
            ("client_id", &self.settings.client_id),
            ("redirect_uri", back),
            ("scope", &self.settings.scopes.join(" ")),
            ("state", &start.state),
            ("nonce", &start.nonce),
            ("code_challenge", &start.challenge),
            ("code_challenge_method", "S256"),
        ];
        let asked = serde_urlencoded::to_string(asked).map_err(|error| self.away(error))?;
        let between = if about.authorization_endpoint.contains('?') { '&' } else { '?' };
        Ok(format!("{}{between}{asked}", about.authorization_endpoint))
    }

    /// Who came back with a code.
    pub async fn person(&self, begun: &Begun, code: &str, back: &str) -> Result<Person, OidcError> {
        let (about, keys, keys_read) = self.known(None).await?;
        let fields = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", back),
            ("client_id", &self.settings.client_id),
            ("code_verifier", &begun.verifier),
        ];
        let body = Zeroizing::new(serde_urlencoded::to_string(fields).map_err(|error| self.away(error))?);
        let login = self.settings.client_secret.as_ref().map(|secret| (self.settings.client_id.as_str(), secret));
        let (status, answer) =
            self.http.post(&about.token_endpoint, &body, login).await.map_err(|why| self.away(why))?;
        if status != 200 {
            return Err(OidcError::Refused(http::reason(status, &answer)));
        }
        let given: Given = serde_json::from_slice(&answer).map_err(|_| self.away("its answer holds no id_token"))?;
        let now_s = jiff::Timestamp::now().as_second();
        match proof::person(&self.settings, &keys, &given.id_token, &begun.nonce, now_s) {
            // Its keys change.
            Err(OidcError::Unproved(proof::UNKNOWN_KEY)) => {
                let (_, keys, _) = self.known(Some(keys_read)).await?;
                proof::person(&self.settings, &keys, &given.id_token, &begun.nonce, now_s)
            }
            other => other,
        }
    }
}

impl Settings {
    /// The highest role that the groups give; nothing when they give none.
    fn role_of(&self, groups: &[String]) -> Option<Role> {
        let of_groups = groups.iter().filter_map(|group| self.roles.get(group));
        of_groups.chain(self.roles.get("*")).max().copied()
    }
}

/// The name of a user for what the provider calls somebody; nothing when there is none to make of it.
fn user_name(text: &str) -> Option<UserName> {
    text.trim().to_ascii_lowercase().parse().ok()
}
