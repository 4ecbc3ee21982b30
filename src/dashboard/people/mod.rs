//! Who comes in, and who may: signing in, one's own account, users, and the audit trail.

pub(super) mod account;
pub(super) mod audit;
pub(super) mod authority;
pub(super) mod factor;
pub(super) mod kept;
pub(super) mod login;
pub(super) mod passkeys;
pub(super) mod provider;
pub(super) mod setup;
pub(super) mod users;

use std::collections::BTreeSet;

use toft_model::{identity::Rights, invalid::Invalid, name::Name};

use super::forms::Mistake;
use crate::control::ControlError;

/// Where somebody goes on: an address of this dashboard, and nowhere else.
fn onwards(next: &str) -> &str {
    let plain = next.starts_with('/') && !next.starts_with("//") && next.len() <= 2_000;
    let safe = plain && !next.chars().any(|c| c.is_control() || c == '\\');
    // Whoever has just come in is not sent to where they came in.
    let path = next.split(['?', '#']).next().unwrap_or_default();
    let way_in = matches!(path, "/login" | "/logout" | "/setup") || path.starts_with("/login/");
    if safe && !way_in { next } else { "/" }
}

fn mistake(error: ControlError) -> Mistake {
    Mistake { message: error.message, hint: error.hint }
}

/// Grants as typed, one a line or between commas.
fn grants(text: &str) -> Result<BTreeSet<Name>, Invalid> {
    let names = text.split([',', '\n']).map(str::trim).filter(|name| !name.is_empty());
    names.map(|name| name.parse().map_err(|invalid: Invalid| invalid.at("grants"))).collect()
}

/// `viewer`, and the grants.
fn in_words(rights: &Rights) -> (String, String) {
    let grants: Vec<&str> = rights.grants.iter().map(Name::as_str).collect();
    (rights.role.to_string(), grants.join(", "))
}

#[cfg(test)]
mod tests {
    use super::onwards;

    #[test]
    fn nobody_is_sent_elsewhere() {
        for good in ["/", "/workloads?sort=name", "/run?image=a%2Fb"] {
            assert_eq!(onwards(good), good);
        }
        for bad in [
            "",
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "evil",
            "/a\r\nb",
            "/login",
            "/login?next=/x",
            "/login/code",
            "/setup",
        ] {
            assert_eq!(onwards(bad), "/", "{bad:?}");
        }
        assert_eq!(onwards(&format!("/{}", "a".repeat(3_000))), "/");
    }
}
