//! What the API says of users, sessions, API tokens and the audit trail.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use toft_model::{
    identity::{Rights, Role, UserName},
    name::Name,
    state::{ApiTokenRow, AuditRow},
};
use utoipa::ToSchema;

use super::time;
use crate::control::ops::{MadeApiToken, SessionView, UserView, now_ms};

/// A user.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// What they are called.
    pub name: String,
    /// `viewer`, `operator` or `admin`.
    pub role: String,
    /// Deployments, and workloads that belong to none, in which they are operators.
    #[serde(default)]
    pub grants: Vec<String>,
    /// Whether they have a password. The first user may have none of its own yet.
    pub has_password: bool,
    /// Whether they have a second factor.
    #[serde(default)]
    pub second_factor: bool,
    /// How many passkeys they have.
    #[serde(default)]
    pub passkeys: usize,
    /// Whether they are kept out.
    pub disabled: bool,
    /// When they were made known; absent for the first user before it has a password of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// When something about them changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<String>,
}

fn words(rights: &Rights) -> (String, Vec<String>) {
    (rights.role.as_str().to_owned(), rights.grants.iter().map(ToString::to_string).collect())
}

impl From<UserView> for User {
    fn from(user: UserView) -> Self {
        let (role, grants) = words(&user.rights);
        Self {
            name: user.name.to_string(),
            role,
            grants,
            has_password: user.has_password,
            second_factor: user.has_factor,
            passkeys: user.passkeys,
            disabled: user.disabled,
            created_at: user.created_at_ms.map(time),
            changed_at: user.changed_at_ms.map(time),
        }
    }
}

/// A user to be made known.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserRequest {
    /// What they are called: 1 to 63 characters of `a-z`, `0-9`, `.`, `_`, `@`, `+` and `-`.
    #[schema(value_type = String, example = "ann")]
    pub name: UserName,
    /// `viewer` (when absent), `operator` or `admin`.
    #[serde(default)]
    pub role: Role,
    /// Deployments, and workloads that belong to none, in which they are operators; at most 100.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub grants: BTreeSet<Name>,
    /// Their password, at least 10 characters; who has none has tokens only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

/// What is new about a user; what is absent stays.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UserChange {
    /// Their role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// All their grants.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub grants: Option<BTreeSet<Name>>,
    /// Whether they are kept out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Their password; their sessions end with the old one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

/// The certificate of the cluster's authority, which signs those of its nodes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Authority {
    /// The certificate (PEM).
    pub pem: String,
    /// SHA-256 of it (of its DER form), hexadecimal.
    pub sha256: String,
}

/// Whoever asks.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Me {
    /// What they are called; `root` at the socket.
    pub name: String,
    /// `viewer`, `operator` or `admin`.
    pub role: String,
    /// Deployments in which they are operators.
    #[serde(default)]
    pub grants: Vec<String>,
    /// How they came: `socket`, `session ID`, `token ID`, `signed token ID`, `provider`, `passkey` or `password`.
    pub way: String,
}

impl Me {
    /// Of whoever asks now.
    pub fn now() -> Option<Self> {
        let actor = crate::control::actor::current()?;
        let (role, grants) = words(&actor.rights);
        Some(Self { name: actor.name().to_owned(), role, grants, way: actor.author().way })
    }
}

/// Another password for whoever asks.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordChange {
    /// The present one.
    #[serde(default)]
    pub present: String,
    /// The new one, at least 10 characters.
    pub new: String,
}

/// Somebody who is signed in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// Whether it is the one that asks.
    pub this: bool,
    /// The address it was opened from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What the browser called itself.
    pub agent: String,
    /// When it was opened.
    pub opened_at: String,
    /// When it was used last, to some minutes.
    pub seen_at: String,
    /// When it ends at the latest.
    pub expires_at: String,
}

impl From<SessionView> for Session {
    fn from(view: SessionView) -> Self {
        let row = view.row;
        Self {
            id: row.session.id.to_string(),
            user: row.session.user.to_string(),
            this: view.is_this,
            from: row.session.came_from,
            agent: row.session.agent,
            opened_at: time(row.opened_at_ms),
            seen_at: time(row.seen_at_ms),
            expires_at: time(row.session.expires_at_ms),
        }
    }
}

/// An API token, which a program shows instead of a password. Its secret is told once, when it is made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiToken {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// What it is for.
    pub label: String,
    /// What it may at most: `viewer`, `operator` or `admin`.
    pub role: String,
    /// Deployments in which it is an operator.
    #[serde(default)]
    pub grants: Vec<String>,
    /// Whether it has expired.
    pub expired: bool,
    /// When it was made.
    pub created_at: String,
    /// Until when it is valid.
    pub expires_at: String,
    /// When it was used last, to some minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<String>,
}

impl From<ApiTokenRow> for ApiToken {
    fn from(row: ApiTokenRow) -> Self {
        let (role, grants) = words(&row.token.rights);
        Self {
            expired: row.has_expired(now_ms()),
            id: row.token.id.to_string(),
            user: row.token.user.to_string(),
            label: row.token.label,
            role,
            grants,
            created_at: time(row.created_at_ms),
            expires_at: time(row.token.expires_at_ms),
            used_at: row.used_at_ms.map(time),
        }
    }
}

/// An API token to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApiTokenRequest {
    /// Whose it is to be, when root asks; otherwise it is whose who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub user: Option<UserName>,
    /// What it is for, at most 100 characters.
    pub label: String,
    /// What it may: `viewer` (when absent), `operator` or `admin`, at most its owner's.
    pub role: Role,
    /// Deployments in which it is an operator, at most its owner's.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub grants: BTreeSet<Name>,
    /// How long it is valid: `1h`, `30d`; 90 days when absent, 366 at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

/// An API token that was made just now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NewApiToken {
    /// What it is.
    #[serde(flatten)]
    pub about: ApiToken,
    /// The token; it is not told again.
    pub token: String,
}

impl From<MadeApiToken> for NewApiToken {
    fn from(made: MadeApiToken) -> Self {
        Self { about: made.row.into(), token: made.text.to_string() }
    }
}

/// An entry of the audit trail.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Position in the trail.
    pub seq: i64,
    /// When.
    pub at: String,
    /// Who: a user, or `root`.
    pub user: String,
    /// How they came: `socket`, `session ID`, `token ID`, `signed token ID`, `provider` or `password`.
    pub way: String,
    /// The address they came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What was done.
    pub action: String,
    /// To what.
    pub subject: String,
    /// What of it was otherwise before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub before: Option<Box<RawValue>>,
    /// The same afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub after: Option<Box<RawValue>>,
}

impl From<AuditRow> for AuditEntry {
    fn from(row: AuditRow) -> Self {
        let json = |text: Option<String>| text.and_then(|text| RawValue::from_string(text).ok());
        Self {
            seq: row.seq,
            at: time(row.author.at_ms),
            user: row.author.name,
            way: row.author.way,
            from: row.author.came_from,
            action: row.action,
            subject: row.subject,
            before: json(row.before),
            after: json(row.after),
        }
    }
}
