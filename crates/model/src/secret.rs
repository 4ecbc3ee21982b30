//! Secrets: values that only their owner and the containers that name them may see. The model holds them sealed; what
//! opens them is not in the state.

use std::{fmt, str::FromStr, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};

use crate::{invalid::Invalid, name::Name};

/// Most bytes of one value; Docker's limit.
pub const MAX_VALUE_BYTES: usize = 500 * 1024;
/// Most secrets of a cluster.
pub const MAX_SECRETS: u64 = 1_000;
/// Most bytes of all values together: every member holds them, and every snapshot and backup copies them.
pub const MAX_TOTAL_BYTES: u64 = 32 << 20;

/// A sealed value: bytes that say nothing without the cluster's key. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sealed(Arc<[u8]>);

impl Sealed {
    /// What a value of `bytes` grows to at most when it is sealed.
    pub const MOST_OVERHEAD_BYTES: usize = 128;

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Sealed {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

impl TryFrom<String> for Sealed {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Ok(Self(STANDARD.decode(text)?.into()))
    }
}

impl From<Sealed> for String {
    fn from(sealed: Sealed) -> Self {
        STANDARD.encode(&sealed.0)
    }
}

impl ToSql for Sealed {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.as_ref().into())
    }
}

impl FromSql for Sealed {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(Self(value.as_blob()?.into()))
    }
}

/// A secret as a node gets it: one version, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSecret {
    /// Counts the values written under the name, from 1; the seal holds for this one only.
    pub version: u64,
    /// The value.
    pub sealed: Sealed,
}

/// Permissions of a file, written as octal digits: `0400`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileMode(u16);

impl FileMode {
    /// The bits.
    pub fn bits(self) -> u32 {
        self.0.into()
    }
}

impl Default for FileMode {
    fn default() -> Self {
        Self(0o444)
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl FromStr for FileMode {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        match u16::from_str_radix(text, 8) {
            Ok(bits) if octal && bits <= 0o777 => Ok(Self(bits)),
            _ => Err(Invalid::value(
                format!("`{}` is no file mode", text.chars().take(40).collect::<String>()),
                "write octal digits from `0000` to `0777`, such as `0400`",
            )),
        }
    }
}

impl TryFrom<String> for FileMode {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<FileMode> for String {
    fn from(mode: FileMode) -> Self {
        mode.to_string()
    }
}

/// A secret that a container sees as the file `/run/secrets/TARGET`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretMount {
    /// The secret.
    #[schema(value_type = String, example = "db-password")]
    pub name: Name,
    /// Name of the file; default: the secret's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Permissions of the file; default `0444`.
    #[serde(default)]
    #[schema(value_type = String, example = "0400", default = "0444")]
    pub mode: FileMode,
    /// User that owns the file.
    #[serde(default)]
    pub uid: u32,
    /// Group that owns the file.
    #[serde(default)]
    pub gid: u32,
}

impl SecretMount {
    /// Directory inside the container in which the files lie.
    pub const DIRECTORY: &'static str = "/run/secrets";
    /// Longest name of a file, in bytes.
    pub const MAX_TARGET_BYTES: usize = 255;
    /// Most secrets of one workload.
    pub const MAX_IN_ONE: usize = 64;

    /// The secret under its own name, readable by all in the container.
    pub fn new(name: Name) -> Self {
        Self { name, target: None, mode: FileMode::default(), uid: 0, gid: 0 }
    }

    /// Name of the file.
    pub fn file(&self) -> &str {
        self.target.as_deref().unwrap_or(self.name.as_str())
    }

    /// Checks what the types cannot hold, for all secrets of one workload.
    pub fn validate_all(mounts: &[Self]) -> Result<(), Invalid> {
        if mounts.len() > Self::MAX_IN_ONE {
            return Err(Invalid::value(
                format!("{} secrets are more than {}", mounts.len(), Self::MAX_IN_ONE),
                "put what belongs together into one secret",
            )
            .at("secrets"));
        }
        for (i, mount) in mounts.iter().enumerate() {
            mount.validate().map_err(|e| e.at(&format!("secrets[{i}]")))?;
            if mounts[..i].iter().any(|other| other.file() == mount.file()) {
                return Err(Invalid::value(
                    format!("two secrets are to be the file `{}`", mount.file()),
                    "give one of them another `target`",
                )
                .at(&format!("secrets[{i}].target")));
            }
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), Invalid> {
        let file = self.file();
        let odd = file.is_empty()
            || file.len() > Self::MAX_TARGET_BYTES
            || matches!(file, "." | "..")
            || file.contains('/')
            || file.chars().any(char::is_control);
        if odd {
            let shown: String = file.chars().filter(|c| !c.is_control()).take(60).collect();
            return Err(Invalid::value(
                format!("`{shown}` is no name of a file in {}", Self::DIRECTORY),
                "use 1 to 255 bytes without `/` and control characters; the program's setting names the whole path",
            )
            .at("target"));
        }
        // The kernel's mark for "do not change".
        for (field, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id == u32::MAX {
                return Err(Invalid::value(format!("{id} is no {field}"), "use 0 to 4294967294").at(field));
            }
        }
        Ok(())
    }
}

/// `NAME[,target=FILE,mode=0400,uid=N,gid=N]`, as on the command line.
impl FromStr for SecretMount {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let hint = "write `NAME`, or `NAME,target=FILE,mode=0400,uid=1000,gid=1000` with any of these";
        let mut parts = text.split(',');
        let mut mount = Self::new(parts.next().unwrap_or_default().parse()?);
        for part in parts {
            let shown: String = part.chars().take(60).collect();
            let bad = || Invalid::value(format!("`{shown}` says nothing about a secret's file"), hint);
            let (key, value) = part.split_once('=').ok_or_else(bad)?;
            match key {
                "target" => mount.target = Some(value.to_owned()),
                "mode" => mount.mode = value.parse()?,
                "uid" => mount.uid = value.parse().map_err(|_| bad())?,
                "gid" => mount.gid = value.parse().map_err(|_| bad())?,
                _ => return Err(bad()),
            }
        }
        mount.validate()?;
        Ok(mount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_from_one_line() {
        let plain: SecretMount = "db".parse().unwrap();
        assert_eq!((plain.file(), plain.mode.bits(), plain.uid, plain.gid), ("db", 0o444, 0, 0));
        let full: SecretMount = "db,target=pass word,mode=0400,uid=5,gid=6".parse().unwrap();
        assert_eq!((full.file(), full.mode.bits(), full.uid, full.gid), ("pass word", 0o400, 5, 6));
        for bad in [
            "",
            "Db",
            "db,",
            "db,x",
            "db,mode=",
            "db,mode=8",
            "db,mode=0999",
            "db,mode=1777",
            "db,mode=+444",
            "db,uid=-1",
            "db,uid=x",
            "db,gid=4294967295",
            "db,gid=4294967296",
            "db,target=",
            "db,target=.",
            "db,target=..",
            "db,target=a/b",
            "db,target=/etc/passwd",
            "db,target=a\nb",
            "db,target=a\0b",
            "db,colour=red",
            &format!("db,target={}", "x".repeat(256)),
        ] {
            let error = bad.parse::<SecretMount>().unwrap_err();
            assert!(!error.hint.is_empty() && error.message.len() < 300, "{bad}");
        }
    }

    #[test]
    fn mounts_are_read_from_json_with_defaults() {
        let parsed: SecretMount = serde_json::from_str(r#"{"name":"db"}"#).unwrap();
        assert_eq!(parsed, SecretMount::new("db".parse().unwrap()));
        let text = serde_json::to_string(&parsed).unwrap();
        assert_eq!(text, r#"{"name":"db","mode":"0444","uid":0,"gid":0}"#);
        for bad in [r#"{"name":"db","mode":444}"#, r#"{"name":"db","x":1}"#, r#"{"name":"db","uid":-1}"#, "{}"] {
            assert!(serde_json::from_str::<SecretMount>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn breaches_name_their_field() {
        let check = |field: &str, texts: &[&str], change: &dyn Fn(&mut SecretMount)| {
            let mut mounts: Vec<SecretMount> = texts.iter().map(|text| text.parse().unwrap()).collect();
            change(mounts.last_mut().unwrap());
            assert_eq!(SecretMount::validate_all(&mounts).unwrap_err().field, field);
        };
        check("secrets[1].target", &["a", "b,target=a"], &|_| {});
        check("secrets[0].target", &["a"], &|mount| mount.target = Some("../a".into()));
        check("secrets[0].uid", &["a"], &|mount| mount.uid = u32::MAX);
        check("secrets", &["a"; 65], &|_| {});
    }

    #[test]
    fn what_is_sealed_travels_as_text_and_is_not_shown() {
        let sealed = Sealed::from(vec![0, 159, 146, 150]);
        let text = serde_json::to_string(&sealed).unwrap();
        assert_eq!(text, "\"AJ+Slg==\"");
        assert_eq!(serde_json::from_str::<Sealed>(&text).unwrap(), sealed);
        assert!(serde_json::from_str::<Sealed>("\"*\"").is_err());
        assert_eq!(format!("{sealed:?}"), "Sealed(4 bytes)");
    }
}
