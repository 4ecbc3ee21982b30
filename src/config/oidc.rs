//! `[access.oidc]`: a provider at which people sign in.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;
use toft_model::{identity::Role, invalid::Invalid};

/// Longest text of a setting, in bytes, and most groups.
const LONGEST: usize = 1_024;
const MOST_GROUPS: usize = 1_000;

/// `[access.oidc]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OidcSection {
    name: Option<String>,
    issuer: String,
    client_id: String,
    client_secret_file: Option<PathBuf>,
    scopes: Option<Vec<String>>,
    groups_claim: Option<String>,
    name_claim: Option<String>,
    ca_file: Option<PathBuf>,
    #[serde(default)]
    roles: BTreeMap<String, String>,
}

/// A provider at which people sign in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcConfig {
    /// What people call it.
    pub name: String,
    /// What it calls itself.
    pub issuer: String,
    /// What it calls us.
    pub client_id: String,
    /// A file with what proves that we are it.
    pub client_secret_file: Option<PathBuf>,
    /// What we ask for.
    pub scopes: Vec<String>,
    /// The claim that names somebody's groups.
    pub groups_claim: String,
    /// The claim that names somebody.
    pub name_claim: String,
    /// Certificates to trust beside the system's (PEM).
    pub ca_file: Option<PathBuf>,
    /// What groups give; `*` is everybody.
    pub roles: BTreeMap<String, Role>,
}

impl OidcSection {
    /// What is meant; faults go to `note` with their key.
    pub(super) fn resolve(&self, note: &mut impl FnMut(&str, Invalid)) -> OidcConfig {
        let mut text = |key: &str, text: &str| {
            if text.is_empty() || text.len() > LONGEST || text.chars().any(char::is_control) {
                note(&format!("access.oidc.{key}"), Invalid::value("the text does not fit", "write it on one line"));
            }
            text.to_owned()
        };
        let issuer = text("issuer", &self.issuer);
        let client_id = text("client_id", &self.client_id);
        let name = text("name", self.name.as_deref().unwrap_or("single sign-on"));
        let groups_claim = text("groups_claim", self.groups_claim.as_deref().unwrap_or("groups"));
        let name_claim = text("name_claim", self.name_claim.as_deref().unwrap_or("preferred_username"));
        let usual = || ["openid", "profile"].map(str::to_owned).to_vec();
        let scopes = self.scopes.clone().unwrap_or_else(usual);
        if !scopes.iter().any(|scope| scope == "openid") || scopes.iter().any(|scope| scope.contains(' ')) {
            let hint = "write each by itself, `openid` among them";
            note("access.oidc.scopes", Invalid::value("these are no scopes to sign in with", hint));
        }
        let plain = self.issuer.starts_with("https://") || self.issuer.starts_with("http://");
        if !plain || self.issuer.contains(['?', '#']) {
            let hint = "write the address that the provider calls itself by, such as `https://id.lan/realms/home`";
            note("access.oidc.issuer", Invalid::value("this is no issuer", hint));
        }
        for (key, path) in [("client_secret_file", &self.client_secret_file), ("ca_file", &self.ca_file)] {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                let hint = "write it like `/etc/toft/oidc-secret`";
                note(&format!("access.oidc.{key}"), Invalid::value("it is no absolute path", hint));
            }
        }
        let mut roles = BTreeMap::new();
        for (group, role) in self.roles.iter().take(MOST_GROUPS) {
            match role.parse::<Role>() {
                Ok(role) => drop(roles.insert(group.clone(), role)),
                Err(invalid) => note("access.oidc.roles", invalid),
            }
        }
        if roles.is_empty() || self.roles.len() > MOST_GROUPS {
            let hint = "write groups and what they give, such as `roles = { family = \"viewer\" }`";
            note("access.oidc.roles", Invalid::value("nobody would come in", hint));
        }
        OidcConfig {
            name,
            issuer,
            client_id,
            client_secret_file: self.client_secret_file.clone(),
            scopes,
            groups_claim,
            name_claim,
            ca_file: self.ca_file.clone(),
            roles,
        }
    }
}
