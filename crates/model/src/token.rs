//! Tokens with which machines join a cluster, and what they give.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    invalid::Invalid,
    name::Name,
    node::{NodeChanges, NodeSettings},
};

/// Most tokens of a cluster.
pub const MAX_TOKENS: usize = 200;
/// Most machines that one token lets in.
pub const MAX_USES: u32 = 1_000;
/// Longest time for which a token is valid: a year.
pub const MAX_TTL_MS: i64 = 366 * 24 * 60 * 60 * 1_000;
/// Shortest: a second.
pub const MIN_TTL_MS: i64 = 1_000;

/// What people call a token: 10 characters of `a-z` and `2-7`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenId(String);

impl TokenId {
    /// Characters of an id.
    pub const CHARS: usize = 10;

    /// An id made of random bytes, five bits each.
    pub fn of(random: [u8; Self::CHARS]) -> Self {
        const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        Self(random.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TokenId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() != Self::CHARS || !text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7')) {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(20).collect();
            return Err(Invalid::value(format!("`{shown}` is no id of a token"), "`toft token list` shows the ids"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for TokenId {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<TokenId> for String {
    fn from(id: TokenId) -> Self {
        id.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SHA-256, as hexadecimal text.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Whether both are the same; the time it takes tells nothing of where they differ.
    pub fn is(&self, other: &Self) -> bool {
        std::hint::black_box(self.0.iter().zip(&other.0).fold(0, |differs, (one, two)| differs | (one ^ two))) == 0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid::value("this is no SHA-256", "write 64 hexadecimal digits");
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// What a member does for its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Runs workloads and votes when it is its turn.
    #[default]
    Server,
    /// Votes and runs nothing.
    Witness,
}

impl MemberRole {
    /// The word for people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Witness => "witness",
        }
    }
}

impl FromStr for MemberRole {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "server" => Ok(Self::Server),
            "witness" => Ok(Self::Witness),
            _ => {
                let shown: String = text.chars().filter(|c| !c.is_control()).take(20).collect();
                Err(Invalid::value(format!("`{shown}` is no role"), "use server or witness"))
            }
        }
    }
}

/// A token on its way into the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// Its id.
    pub id: TokenId,
    /// SHA-256 of its secret.
    pub secret: Digest,
    /// What whoever joins with it becomes.
    #[serde(default)]
    pub role: MemberRole,
    /// What the machine is called that joins with it; it chooses itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Labels for the nodes that join with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How many may join with it.
    pub uses: u32,
    /// Until when it is valid.
    pub expires_at_ms: i64,
}

impl NewToken {
    /// Checks it against the rules; the first breach is told with its field.
    pub fn check(&self, now_ms: i64) -> Result<(), Invalid> {
        if !(1..=MAX_USES).contains(&self.uses) {
            let message = format!("{} is out of range", self.uses);
            return Err(Invalid::value(message, format!("use 1 to {MAX_USES}")).at("uses"));
        }
        if self.name.is_some() && self.uses != 1 {
            let hint = "leave the name out, or make a token for one use";
            return Err(Invalid::value("a name is for one machine", hint).at("name"));
        }
        let ttl = self.expires_at_ms.saturating_sub(now_ms);
        if !(MIN_TTL_MS..=MAX_TTL_MS).contains(&ttl) {
            return Err(Invalid::value("the time is out of range", "use 1s to 366d").at("ttl"));
        }
        check_labels(&self.labels)
    }
}

/// Checks labels for a node.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Invalid> {
    merge_labels(NodeSettings::default(), labels).map(drop)
}

/// The settings with these labels among theirs.
pub(crate) fn merge_labels(settings: NodeSettings, labels: &BTreeMap<String, String>) -> Result<NodeSettings, Invalid> {
    let labels = labels.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
    settings.with(&NodeChanges { labels, ..NodeChanges::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_digests_survive_their_text_and_hostile_ones_are_refused() {
        let id = TokenId::of([0, 1, 2, 3, 31, 32, 63, 64, 255, 26]);
        assert_eq!(id.to_string().parse::<TokenId>().unwrap(), id);
        for bad in ["", "a", "ABCDEFGHIJ", "abcdefghi1", "abcdefghijk", "ab\ncdefghi", "äbcdefghi"] {
            assert!(bad.parse::<TokenId>().is_err(), "{bad:?}");
        }
        let digest = Digest([0xa7; 32]);
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        for bad in ["", &"g".repeat(64), &"a".repeat(63), &"ä".repeat(32), &"+1".repeat(32)] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
        assert!(digest.is(&Digest([0xa7; 32])) && !digest.is(&Digest([0xa6; 32])));
    }

    #[test]
    fn a_token_has_limits() {
        let token = |change: &dyn Fn(&mut NewToken)| {
            let mut token = NewToken {
                id: TokenId::of([1; 10]),
                secret: Digest([1; 32]),
                role: MemberRole::Server,
                name: None,
                labels: BTreeMap::new(),
                uses: 1,
                expires_at_ms: 60_000,
            };
            change(&mut token);
            token.check(0).map_err(|invalid| invalid.field)
        };
        assert_eq!(token(&|_| ()), Ok(()));
        assert_eq!(token(&|token| token.uses = 0), Err("uses".into()));
        assert_eq!(token(&|token| token.uses = MAX_USES + 1), Err("uses".into()));
        assert_eq!(token(&|token| token.expires_at_ms = 0), Err("ttl".into()));
        assert_eq!(token(&|token| token.expires_at_ms = i64::MAX), Err("ttl".into()));
        assert_eq!(token(&|token| drop(token.labels.insert("toft/x".into(), "y".into()))), Err("labels".into()));
        let named = |uses| {
            token(&|token| {
                token.name = Some("attic".parse().unwrap());
                token.uses = uses;
            })
        };
        assert_eq!((named(1), named(2)), (Ok(()), Err("name".into())));
    }
}
