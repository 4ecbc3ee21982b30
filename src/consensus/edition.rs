//! Which toft a member runs, what that understands, and what follows where members differ: a command that one of them does not
//! understand is refused before it is in the log, for in the log it would stop that member. docs/upgrade.md tells the whole.

use std::{collections::BTreeMap, sync::OnceLock};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use toft_model::state::{Command, FIRST_FORMAT, FORMAT, SCHEMA_VERSION};

use super::{
    network::PROTOCOL,
    types::{Member, MemberId},
};

/// Longest version of a toft, in bytes.
pub(super) const LONGEST_VERSION: usize = 40;

/// Which toft a member runs, as it tells the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edition {
    /// Version, for people; empty when it never told.
    pub version: String,
    /// Number of what it says to other members.
    pub protocol: u32,
    /// Newest format of commands that it understands.
    pub format: u32,
}

impl Default for Edition {
    /// Of a member that never told.
    fn default() -> Self {
        Self { version: String::new(), protocol: 1, format: FIRST_FORMAT }
    }
}

impl Edition {
    /// Of the toft that runs here.
    pub fn own() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let version = if rehearsed().is_some() { format!("{version}-next") } else { version.to_owned() };
        Self { version, protocol: PROTOCOL, format: own_format() }
    }

    /// Whether it never told.
    pub(super) fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// What one who is not known yet says of itself. Absent numbers are those of the first.
    pub(super) fn told(version: &str, format: u32) -> Self {
        let version = version.chars().filter(|c| c.is_ascii_graphic()).take(LONGEST_VERSION).collect();
        Self { version, protocol: PROTOCOL, format: format.max(FIRST_FORMAT) }
    }

    /// Orders editions from old to new: by what they understand, then by their numbers.
    pub fn rank(&self) -> (u32, Vec<u64>) {
        let numbers = self.version.split(['.', '-', '+']).map_while(|number| number.parse().ok());
        (self.format, numbers.collect())
    }
}

/// Newest format of commands that the toft that runs here understands.
pub(super) fn own_format() -> u32 {
    FORMAT + u32::from(rehearsed().is_some())
}

/// Format from which on a command is understood as it is written here.
pub(super) fn format_of(command: &Command) -> u32 {
    let Some(new) = rehearsed() else { return command.format() };
    let is_new = serde_json::to_value(command).is_ok_and(|command| command["command"] == new);
    if is_new { FORMAT + 1 } else { command.format() }
}

/// The member that understands least, if there is one that does not understand `format`. `me` knows by itself what it understands, before
/// the others know.
pub(super) fn who_lacks(members: &BTreeMap<MemberId, Member>, me: MemberId, format: u32) -> Option<&Member> {
    let others = members.iter().filter(|(id, _)| **id != me).map(|(_, member)| member);
    others.filter(|member| member.edition.format < format).min_by_key(|member| member.edition.rank())
}

/// The format that all members understand.
pub(super) fn common_format(members: &BTreeMap<MemberId, Member>) -> u32 {
    members.values().map(|member| member.edition.format).min().unwrap_or(FIRST_FORMAT)
}

/// Of a request, what has to be known before the rest can be read.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    format: u32,
}

/// Whether requests that another member hands on can be written down, as far as this member knows the others.
pub(super) fn all_understand(members: &BTreeMap<MemberId, Member>, requests: &[Box<RawValue>]) -> bool {
    let common = common_format(members);
    // Who asks wrote nothing that it does not understand itself, and where all are alike nobody knows more.
    if common == own_format() && members.values().all(|member| member.edition.format == common) {
        return true;
    }
    let format = |request: &RawValue| serde_json::from_str::<Head>(request.get()).map_or(u32::MAX, |head| head.format);
    requests.iter().all(|request| format(request) <= common)
}

/// In a rehearsal of an upgrade, the name of the command that is new in the next version, which this process then is.
/// Tests alone can ask for that: what is built for people knows nothing of it.
fn rehearsed() -> Option<&'static str> {
    static NEW: OnceLock<Option<String>> = OnceLock::new();
    let told = || std::env::var("TOFT_REHEARSE_NEXT").ok().filter(|_| cfg!(debug_assertions));
    NEW.get_or_init(told).as_deref()
}

/// In a rehearsal, adds to the tables what the next version's migration does.
pub(super) fn rehearse_migration(connection: &Connection) -> rusqlite::Result<()> {
    if rehearsed().is_none() || connection.table_exists(None, "of_the_next_version")? {
        return Ok(());
    }
    let version = (SCHEMA_VERSION << 16) | (SCHEMA_VERSION + 1);
    connection.execute_batch(&format!(
        "BEGIN; CREATE TABLE of_the_next_version (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;
         PRAGMA user_version = {version}; COMMIT"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::types::Role;

    fn members(formats: &[u32]) -> BTreeMap<MemberId, Member> {
        let member = |(id, format): (MemberId, &u32)| {
            let edition = Edition { version: format!("0.{format}.0"), protocol: PROTOCOL, format: *format };
            let name = format!("box-{id}").parse().unwrap();
            (id, Member { name, edition, role: Role::Server, ..Member::default() })
        };
        (1..).zip(formats).map(member).collect()
    }

    fn request(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn who_understands_least_is_named() {
        let mixed = members(&[3, 1, 2]);
        assert_eq!(who_lacks(&mixed, 1, 1), None);
        assert_eq!(who_lacks(&mixed, 1, 2).unwrap().name.as_str(), "box-2");
        assert_eq!(who_lacks(&mixed, 1, 3).unwrap().name.as_str(), "box-2");
        // What is said of oneself in the log may be old.
        assert_eq!(who_lacks(&mixed, 2, 3).unwrap().name.as_str(), "box-3");
        assert_eq!(who_lacks(&mixed, 2, 2), None);
        assert_eq!(common_format(&mixed), 1);
    }

    #[test]
    fn what_is_handed_on_has_to_be_understood_by_all() {
        let (old, new) =
            (request("{\"id\":1,\"command\":\"x\"}"), request("{\"id\":1,\"format\":2,\"command\":\"x\"}"));
        let odd = request("{\"format\":\"x\"}");
        for formats in [&[1, 2][..], &[2, 2], &[1, 1, 3]] {
            assert!(all_understand(&members(formats), std::slice::from_ref(&old)), "{formats:?}");
        }
        assert!(!all_understand(&members(&[1, 2]), &[old.clone(), new.clone()]));
        assert!(!all_understand(&members(&[1, 2]), &[odd]));
        assert!(all_understand(&members(&[2, 3]), &[old, new]));
    }

    #[test]
    fn editions_are_ordered_by_what_they_understand() {
        let edition = |version: &str, format| Edition { version: version.into(), protocol: 1, format };
        let ordered = [
            Edition::default(),
            edition("0.9.0", 1),
            edition("0.10.0", 1),
            edition("0.10.1-next", 1),
            edition("0.9.9", 2),
        ];
        assert!(ordered.windows(2).all(|pair| pair[0].rank() < pair[1].rank()));
        assert_eq!(
            Edition::told("1.0\u{1b}[2J", 0),
            Edition { version: "1.0[2J".into(), protocol: PROTOCOL, format: 1 }
        );
        assert_eq!(Edition::told(&"9".repeat(1_000), 7).version.len(), LONGEST_VERSION);
    }
}
