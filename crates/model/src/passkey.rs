//! Passkeys: keys that a device or a password manager keeps for somebody, and shows instead of their password.
//!
//! Here is what the state holds of them. What a browser shows is looked at by the node that is asked; what it stored in the state for
//! that is opaque here.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};

use crate::{identity::UserName, invalid::Invalid, token::TokenId};

/// Passkeys of one user, at most.
pub const MAX_PASSKEYS: usize = 10;
/// Longest label, in characters.
pub const MAX_LABEL_CHARS: usize = 60;
/// Bytes of what authenticators call a credential: 16 at least, so that nobody guesses one.
const CREDENTIAL_BYTES: std::ops::RangeInclusive<usize> = 16..=1_023;
/// Bytes of what authenticators call its user.
const HANDLE_BYTES: usize = 64;
/// Longest key, in bytes: RSA of 16,384 bits, and what goes with it.
const MAX_KEY_BYTES: usize = 2_200;
/// Longest domain, in bytes.
const MAX_DOMAIN_BYTES: usize = 253;

/// A domain that passkeys belong to: browsers show them to pages of it and of what lies in it, and to nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(String);

impl Domain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a host is called so, or lies in it.
    pub fn holds(&self, host: &Self) -> bool {
        host.0.strip_suffix(&self.0).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

impl FromStr for Domain {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let label = |label: &str| {
            let plain = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
            (1..=63).contains(&label.len()) && plain && !label.starts_with('-') && !label.ends_with('-')
        };
        let number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if text.len() > MAX_DOMAIN_BYTES || number || !text.split('.').all(label) {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
            let hint =
                "use a name such as `home.lan`: a-z, 0-9, `-` and `_`, with dots between its parts; an address is none";
            return Err(Invalid::value(format!("`{shown}` is no domain"), hint));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Domain {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes that only the node that is asked understands. As text they are base64.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Opaque(Vec<u8>);

impl Opaque {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Opaque {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opaque({} bytes)", self.0.len())
    }
}

impl TryFrom<String> for Opaque {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Ok(Self(STANDARD.decode(text)?))
    }
}

impl From<Opaque> for String {
    fn from(bytes: Opaque) -> Self {
        STANDARD.encode(bytes.0)
    }
}

impl ToSql for Opaque {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.as_slice().into())
    }
}

impl FromSql for Opaque {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(Self(value.as_blob()?.into()))
    }
}

/// Whether what keeps a passkey keeps it elsewhere too, so that it outlives its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backup {
    /// It stays in one device for ever.
    Never,
    /// It can be, and is not.
    Possible,
    /// It is.
    Done,
}

impl Backup {
    /// The word of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Possible => "possible",
            Self::Done => "done",
        }
    }
}

impl ToSql for Backup {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for Backup {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let text = value.as_str()?;
        let all = [Self::Never, Self::Possible, Self::Done];
        all.into_iter().find(|backup| backup.as_str() == text).ok_or(FromSqlError::InvalidType)
    }
}

/// A passkey on the way into the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPasskey {
    /// What programs call it.
    pub id: TokenId,
    /// Whose it is.
    pub user: UserName,
    /// What its owner calls it; of one user none twice.
    pub label: String,
    /// To which pages browsers show it.
    pub domain: Domain,
    /// What the authenticator calls it; nobody else's may be called so.
    pub credential: Opaque,
    /// What the authenticator calls its user: random, so that it tells nothing.
    pub handle: Opaque,
    /// The public key, and what has to be known beside it to prove a signature.
    pub key: Opaque,
    /// How browsers reach what keeps it, as bits.
    #[serde(default)]
    pub transports: u8,
    /// How many signatures it has made; 0 for ever when nobody counts.
    pub counter: u32,
    /// Whether it is kept elsewhere too.
    pub backup: Backup,
}

impl NewPasskey {
    /// Checks it against the rules.
    pub fn check(&self) -> Result<(), Invalid> {
        check_label(&self.label)?;
        let key = self.key.as_bytes().len();
        let fits = CREDENTIAL_BYTES.contains(&self.credential.as_bytes().len())
            && self.handle.as_bytes().len() == HANDLE_BYTES
            && (1..=MAX_KEY_BYTES).contains(&key);
        if fits { Ok(()) } else { Err(Invalid::value("the passkey does not fit", "make another").at("credential")) }
    }
}

/// Checks what somebody wants to call a passkey.
pub fn check_label(label: &str) -> Result<(), Invalid> {
    let chars = label.chars().count();
    if chars == 0 || chars > MAX_LABEL_CHARS || label.chars().any(char::is_control) || label.trim() != label {
        let hint = format!("say where it is kept: `phone`, `blue key`; 1 to {MAX_LABEL_CHARS} characters on one line");
        return Err(Invalid::value("the passkey has no usable name", hint).at("label"));
    }
    Ok(())
}

/// That a passkey has signed just now. What is new about it goes into the state with the session that it opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PasskeyUse {
    /// Which one.
    pub passkey_id: TokenId,
    /// How many signatures it says it has made.
    pub counter: u32,
    /// Whether it is kept elsewhere too.
    pub backup: Backup,
}

/// Whether a counter may follow another: it grows, unless nobody counts.
pub fn counts_on(before: u32, now: u32) -> bool {
    before == 0 || now > before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_a_name_and_no_address() {
        for good in ["localhost", "home.lan", "a.b-c.example", "box", "xn--bcher-kva.example", "1.home"] {
            assert!(good.parse::<Domain>().is_ok(), "{good}");
        }
        let long = format!("{}.lan", "a".repeat(64));
        let longer = ["abcdefghi"; 26].join(".");
        for bad in [
            "",
            ".",
            "a..b",
            "home.lan.",
            "192.0.2.1",
            "[fd00::1]",
            "fd00::1",
            "A.lan",
            "a b",
            "-a.lan",
            "a/b",
            "ä.lan",
            &long,
            &longer,
        ] {
            assert!(bad.parse::<Domain>().is_err(), "{bad}");
        }
        let domain = |text: &str| text.parse::<Domain>().unwrap();
        let home = domain("home.lan");
        assert!(home.holds(&home) && home.holds(&domain("a.home.lan")) && home.holds(&domain("b.a.home.lan")));
        for other in ["lan", "xhome.lan", "home.lan.example", "localhost"] {
            assert!(!home.holds(&domain(other)), "{other}");
        }
    }

    #[test]
    fn a_counter_grows_unless_nobody_counts() {
        for (before, now, may) in [
            (0, 0, true),
            (0, 7, true),
            (7, 8, true),
            (7, 7, false),
            (7, 6, false),
            (7, 0, false),
            (u32::MAX, 0, false),
        ] {
            assert_eq!(counts_on(before, now), may, "{before} {now}");
        }
    }

    #[test]
    fn labels_are_short_and_on_one_line() {
        assert!(check_label("Anns blauer Schlüssel").is_ok() && check_label(&"ä".repeat(MAX_LABEL_CHARS)).is_ok());
        for bad in ["", " a", "a\nb", "a\u{7}", &"a".repeat(MAX_LABEL_CHARS + 1)] {
            assert!(check_label(bad).is_err(), "{bad:?}");
        }
    }
}
