//! Who people are to a cluster, and what they may.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    invalid::Invalid,
    name::Name,
    text::shown,
    token::{Digest, MAX_TTL_MS, MIN_TTL_MS, TokenId},
    workload::{NetworkMode, WorkloadSpec},
};

/// The first user. It is there before anybody has chosen a password, and cannot be removed.
pub const FIRST_USER: &str = "admin";
/// What the unix socket's users are called; no user can have this name.
pub const ROOT: &str = "root";
/// Most users of a cluster.
pub const MAX_USERS: usize = 500;
/// Most grants of a user or a token.
pub const MAX_GRANTS: usize = 100;
/// Most sessions of a user; the one that was not used for longest makes room.
pub const MAX_SESSIONS: usize = 50;
/// Most API tokens of a user.
pub const MAX_API_TOKENS: usize = 100;
/// Longest label of an API token, and longest name of a browser, in characters.
pub const MAX_LABEL_CHARS: usize = 100;
/// Longest name that a provider has for itself or for somebody, in bytes.
const MAX_EXTERNAL_BYTES: usize = 1_024;
/// Longest hash of a password, in bytes.
const MAX_HASH_BYTES: usize = 256;

/// What somebody may in the whole cluster.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    #[default]
    Viewer,
    /// Runs, changes and removes workloads and what they use.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// The word for people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "operator" => Ok(Self::Operator),
            "admin" => Ok(Self::Admin),
            _ => Err(Invalid::value(format!("`{}` is no role", shown(text)), "use viewer, operator or admin")),
        }
    }
}

/// What a user is called: 1 to 63 characters of `a-z`, `0-9`, `.`, `_`, `@`, `+` and `-`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

impl UserName {
    /// Longest name, in bytes.
    pub const MAX_BYTES: usize = 63;

    /// The first user.
    pub fn first() -> Self {
        Self(FIRST_USER.to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the first user's.
    pub fn is_first(&self) -> bool {
        self.0 == FIRST_USER
    }
}

impl FromStr for UserName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let hint = "use 1 to 63 characters of a-z, 0-9, `.`, `_`, `@`, `+` and `-`, beginning with a letter or digit";
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._@+-".contains(&b);
        let begins = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !begins || text.len() > Self::MAX_BYTES || !text.bytes().all(good) {
            return Err(Invalid::value(format!("`{}` is no name of a user", shown(text)), hint));
        }
        if text == ROOT {
            let message = format!("`{ROOT}` is whoever uses the socket");
            return Err(Invalid::value(message, "choose another name"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for UserName {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<UserName> for String {
    fn from(name: UserName) -> Self {
        name.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A role, and the deployments in which somebody is an operator beyond it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// In the whole cluster.
    pub role: Role,
    /// Deployments, and workloads that belong to none, by name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub grants: BTreeSet<Name>,
}

impl Rights {
    /// Everything.
    pub fn all() -> Self {
        Self { role: Role::Admin, grants: BTreeSet::new() }
    }

    /// Whether they are an operator of that deployment.
    pub fn operates(&self, deployment: &Name) -> bool {
        self.role >= Role::Operator || self.grants.contains(deployment)
    }

    /// What both have.
    pub fn and(&self, other: &Self) -> Self {
        let mut grants = BTreeSet::new();
        grants.extend(self.grants.iter().filter(|name| other.operates(name)).cloned());
        grants.extend(other.grants.iter().filter(|name| self.operates(name)).cloned());
        Self { role: self.role.min(other.role), grants }
    }

    /// Whether these are at most `other`.
    pub fn within(&self, other: &Self) -> bool {
        self.role <= other.role && self.grants.iter().all(|name| other.operates(name))
    }

    /// Checks them against the rules.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.grants.len() > MAX_GRANTS {
            let message = format!("{} grants are too many", self.grants.len());
            return Err(Invalid::value(message, format!("use at most {MAX_GRANTS}")).at("grants"));
        }
        Ok(())
    }
}

/// The deployment a workload belongs to; its own name when it belongs to none.
pub fn deployment_of(spec: &WorkloadSpec) -> &Name {
    spec.deployment.as_ref().unwrap_or(&spec.name)
}

/// What a specification asks of the machine or of others beyond the one that is there, as the field that does: what a grant does not
/// give. `None` when nothing does.
pub fn asks_for_more(wanted: &WorkloadSpec, is: Option<&WorkloadSpec>) -> Option<&'static str> {
    let fresh = WorkloadSpec::new(wanted.name.clone(), wanted.image.clone());
    let is = is.unwrap_or(&fresh);
    let (new, old) = (&wanted.process, &is.process);
    let more = [
        ("secrets", wanted.secrets.iter().any(|secret| !is.secrets.iter().any(|known| known.name == secret.name))),
        ("mounts", wanted.mounts.iter().any(|mount| !is.mounts.contains(mount))),
        ("network", wanted.network == NetworkMode::Host && is.network != NetworkMode::Host),
        ("networks", !wanted.networks.is_subset(&is.networks)),
        ("process.privileged", new.privileged && !old.privileged),
        ("process.devices", new.devices.iter().any(|device| !old.devices.contains(device))),
        ("process.cap_add", new.cap_add.iter().any(|capability| !old.cap_add.contains(capability))),
        ("process.cap_drop", old.cap_drop.iter().any(|capability| !new.cap_drop.contains(capability))),
        ("process.seccomp", new.seccomp != old.seccomp),
        ("process.allow_new_privileges", new.allow_new_privileges && !old.allow_new_privileges),
        ("process.sysctls", new.sysctls.iter().any(|(key, value)| old.sysctls.get(key) != Some(value))),
        ("process.ulimits", new.ulimits != old.ulimits),
        ("process.isolation", new.isolation != old.isolation),
        ("placement", wanted.placement != is.placement),
    ];
    more.into_iter().find(|(_, more)| *more).map(|(field, _)| field)
}

/// The Argon2id hash of a password, as a PHC string. Never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PasswordHash(String);

impl PasswordHash {
    /// The hash as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

impl FromStr for PasswordHash {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"$=,+/.-_".contains(&b);
        if !text.starts_with("$argon2id$") || text.len() > MAX_HASH_BYTES || !text.bytes().all(good) {
            return Err(Invalid::value("this is no hash of a password", "hash it with Argon2id"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for PasswordHash {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<PasswordHash> for String {
    fn from(hash: PasswordHash) -> Self {
        hash.0
    }
}

/// A user on the way into the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewUser {
    /// What they are called.
    pub name: UserName,
    /// What they may.
    #[serde(flatten)]
    pub rights: Rights,
    /// Their password; who has none has tokens only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PasswordHash>,
}

/// Somebody whom a provider has signed in, on the way into the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalUser {
    /// The provider.
    pub issuer: String,
    /// What it calls them for ever.
    pub subject: String,
    /// What they are called here if they come for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<UserName>,
    /// What their groups give; nothing when they give nothing any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

impl ExternalUser {
    /// Checks it against the rules.
    pub fn check(&self) -> Result<(), Invalid> {
        let fits = |text: &str| !text.is_empty() && text.len() <= MAX_EXTERNAL_BYTES;
        if !fits(&self.issuer) || !fits(&self.subject) {
            let hint = format!("use 1 to {MAX_EXTERNAL_BYTES} bytes");
            return Err(Invalid::value("what the provider calls them does not fit", hint).at("subject"));
        }
        Ok(())
    }
}

/// What is new about a user; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserChanges {
    /// Their role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// All their grants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<BTreeSet<Name>>,
    /// Whether they are kept out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Their password; their sessions end with the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PasswordHash>,
}

/// A session on the way into the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSession {
    /// What people call it.
    pub id: TokenId,
    /// SHA-256 of its secret.
    pub secret: Digest,
    /// Whose it is.
    pub user: UserName,
    /// When it ends, whatever happens.
    pub expires_at_ms: i64,
    /// After how long it ends without being used.
    pub idle_ms: i64,
    /// The address it was opened from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub came_from: Option<String>,
    /// What the browser called itself, in short.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent: String,
}

impl NewSession {
    /// Checks it against the rules.
    pub fn check(&self, now_ms: i64) -> Result<(), Invalid> {
        let span = self.expires_at_ms.saturating_sub(now_ms);
        if !(MIN_TTL_MS..=MAX_TTL_MS).contains(&span) || !(MIN_TTL_MS..=MAX_TTL_MS).contains(&self.idle_ms) {
            return Err(Invalid::value("the time is out of range", "use 1s to 366d").at("expires_at"));
        }
        check_text(&self.agent, "agent")?;
        check_text(self.came_from.as_deref().unwrap_or_default(), "came_from")
    }
}

/// An API token on the way into the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewApiToken {
    /// What people call it.
    pub id: TokenId,
    /// SHA-256 of its secret.
    pub secret: Digest,
    /// Whose it is.
    pub user: UserName,
    /// What it is for.
    pub label: String,
    /// What it may, at most what its owner may.
    #[serde(flatten)]
    pub rights: Rights,
    /// Until when it is valid.
    pub expires_at_ms: i64,
}

impl NewApiToken {
    /// Checks it against the rules.
    pub fn check(&self, now_ms: i64) -> Result<(), Invalid> {
        if !(MIN_TTL_MS..=MAX_TTL_MS).contains(&self.expires_at_ms.saturating_sub(now_ms)) {
            return Err(Invalid::value("the time is out of range", "use 1s to 366d").at("ttl"));
        }
        check_text(&self.label, "label")?;
        self.rights.check()
    }
}

/// Who asked for a command, as the audit trail tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// The user, or `root`.
    pub name: String,
    /// How they came: `socket`, `session ID`, `token ID`, `signed token ID`, `provider`, `password`.
    pub way: String,
    /// The address they came from; none for the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub came_from: Option<String>,
    /// When.
    pub at_ms: i64,
}

fn check_text(text: &str, field: &str) -> Result<(), Invalid> {
    if text.chars().count() > MAX_LABEL_CHARS || text.chars().any(char::is_control) {
        let hint = format!("use at most {MAX_LABEL_CHARS} characters, without control characters");
        return Err(Invalid::value("the text does not fit", hint).at(field));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(role: Role, grants: &[&str]) -> Rights {
        Rights { role, grants: grants.iter().map(|name| name.parse().unwrap()).collect() }
    }

    #[test]
    fn names_and_hashes_are_narrow() {
        for good in ["a", "admin", "0x", "ann@example.org", "a.b_c+d-e", &"a".repeat(63)] {
            assert_eq!(good.parse::<UserName>().unwrap().as_str(), good);
        }
        for bad in ["", "root", "Ann", ".a", "-a", "a b", "a:b", "ä", "a\n", "a\0", &"a".repeat(64)] {
            assert!(bad.parse::<UserName>().is_err(), "{bad:?}");
        }
        assert!("$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA".parse::<PasswordHash>().is_ok());
        for bad in ["", "password", "$argon2i$x", "$argon2id$a b", &format!("$argon2id${}", "a".repeat(300))] {
            assert!(bad.parse::<PasswordHash>().is_err(), "{bad}");
        }
        let hash: PasswordHash = "$argon2id$v=19$x".parse().unwrap();
        assert!(!format!("{hash:?}").contains("v=19"));
        for bad in ["", "Admin", "owner", "viewer "] {
            assert!(bad.parse::<Role>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rights_meet_and_never_grow() {
        let (viewer, operator) = (rights(Role::Viewer, &["web"]), rights(Role::Operator, &[]));
        assert!(viewer.operates(&"web".parse().unwrap()) && !viewer.operates(&"db".parse().unwrap()));
        assert!(operator.operates(&"db".parse().unwrap()));
        // A token of an operator for one workload alone.
        assert_eq!(viewer.and(&operator), rights(Role::Viewer, &["web"]));
        assert_eq!(operator.and(&viewer), rights(Role::Viewer, &["web"]));
        assert_eq!(Rights::all().and(&Rights::all()).role, Role::Admin);
        assert_eq!(rights(Role::Viewer, &["a", "b"]).and(&rights(Role::Viewer, &["b", "c"])).grants.len(), 1);
        assert!(viewer.within(&operator) && !operator.within(&viewer));
        assert!(!rights(Role::Viewer, &["db"]).within(&viewer));
        let many: Vec<String> = (0..=MAX_GRANTS).map(|i| format!("d{i}")).collect();
        let many = rights(Role::Viewer, &many.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(many.check().unwrap_err().field, "grants");
    }

    fn spec(text: &str) -> WorkloadSpec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_a_grant_does_not_give_is_found() {
        let plain = spec(r#"{"name":"web","image":"demo"}"#);
        let check = |text: &str, want: Option<&str>| {
            let wanted = spec(text);
            assert_eq!(asks_for_more(&wanted, Some(&plain)), want, "{text}");
            assert_eq!(asks_for_more(&wanted, None), want, "{text}");
            assert_eq!(asks_for_more(&wanted, Some(&wanted)), None, "what is there may stay: {text}");
        };
        check(r#"{"name":"web","image":"other","replicas":3,"env":{"A":"b"},"command":["x"]}"#, None);
        check(r#"{"name":"web","image":"demo","secrets":[{"name":"key"}]}"#, Some("secrets"));
        check(r#"{"name":"web","image":"demo","network":"host"}"#, Some("network"));
        check(r#"{"name":"web","image":"demo","networks":["other"]}"#, Some("networks"));
        check(r#"{"name":"web","image":"demo","process":{"privileged":true}}"#, Some("process.privileged"));
        check(r#"{"name":"web","image":"demo","process":{"cap_add":["SYS_ADMIN"]}}"#, Some("process.cap_add"));
        check(
            r#"{"name":"web","image":"demo","process":{"sysctls":{"net.core.somaxconn":"1"}}}"#,
            Some("process.sysctls"),
        );
        let dropped = spec(r#"{"name":"web","image":"demo","process":{"cap_drop":["NET_RAW"]}}"#);
        assert_eq!(asks_for_more(&plain, Some(&dropped)), Some("process.cap_drop"));
        assert_eq!(deployment_of(&plain).as_str(), "web");
        assert_eq!(deployment_of(&spec(r#"{"name":"web","image":"demo","deployment":"shop"}"#)).as_str(), "shop");
    }
}
