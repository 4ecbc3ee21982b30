//! `[backup]`: where backups go, when, and what locks them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use toft_model::{invalid::Invalid, units::parse_span_ms};

/// Name of the folder in the data directory.
const FOLDER: &str = "backups";
/// Time between two backups when nobody said.
const DAILY: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BackupSection {
    dir: Option<PathBuf>,
    every: Option<String>,
    keep: Option<u32>,
    recipient: Option<String>,
    key_file: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
}

/// Backups of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupConfig {
    /// Folder they are put into.
    pub dir: PathBuf,
    /// Whether that folder is part of the data directory; another must be there already.
    pub dir_is_ours: bool,
    /// Time between two scheduled ones; `None` turns the schedule off. Daily when there is a key.
    pub every: Option<Duration>,
    /// Scheduled ones kept.
    pub keep: u32,
    /// What locks them.
    pub key: Option<BackupKey>,
}

/// What locks backups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupKey {
    /// A public key, `age1...`.
    Recipient(String),
    /// A file with a key pair.
    KeyFile(PathBuf),
    /// A file with a passphrase.
    PassphraseFile(PathBuf),
}

impl BackupSection {
    /// What is meant; faults go to `note` with their key.
    pub(super) fn resolve(self, data: &Path, note: &mut impl FnMut(&str, Invalid)) -> BackupConfig {
        let mut absolute = |key: &str, path: PathBuf| {
            if !path.is_absolute() {
                note(key, Invalid::value(format!("`{}` is no absolute path", path.display()), "begin it with `/`"));
            }
            path
        };
        let chosen = self.dir.map(|dir| absolute("backup.dir", dir));
        let key_file = self.key_file.map(|path| absolute("backup.key_file", path));
        let passphrase_file = self.passphrase_file.map(|path| absolute("backup.passphrase_file", path));
        let mut keys: Vec<BackupKey> = self.recipient.into_iter().map(BackupKey::Recipient).collect();
        keys.extend(key_file.map(BackupKey::KeyFile));
        keys.extend(passphrase_file.map(BackupKey::PassphraseFile));
        if keys.len() > 1 {
            let hint = "keep one of `recipient`, `key_file` and `passphrase_file`";
            note("backup", Invalid::value("there are several keys", hint));
        }
        if let Some(BackupKey::Recipient(text)) = keys.first()
            && !(text.starts_with("age1") && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()))
        {
            let hint = "`toft backup keygen` prints one; it begins with `age1`";
            note("backup.recipient", Invalid::value("this is no public key", hint));
        }
        let key = keys.into_iter().next();
        let every = match self.every.as_deref() {
            None => key.is_some().then_some(DAILY),
            Some("off") => None,
            Some(text) => match parse_span_ms(text) {
                Ok(0) => {
                    note("backup.every", Invalid::value("`0` is no period", "write `off` for no schedule"));
                    None
                }
                Ok(ms) => Some(Duration::from_millis(ms)),
                Err(invalid) => {
                    note("backup.every", invalid);
                    None
                }
            },
        };
        if every.is_some() && key.is_none() {
            let hint = "set `recipient`, `key_file` or `passphrase_file`; `toft backup keygen` makes a key";
            note("backup.every", Invalid::value("there is no key to lock backups with", hint));
        }
        let keep = self.keep.unwrap_or(7);
        if !(1..=1_000).contains(&keep) {
            note("backup.keep", Invalid::value(format!("{keep} is out of range"), "use 1 to 1000"));
        }
        let ours = data.join(FOLDER);
        let dir_is_ours = chosen.as_ref().is_none_or(|dir| *dir == ours);
        BackupConfig { dir: chosen.unwrap_or(ours), dir_is_ours, every, keep, key }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<BackupConfig, Vec<String>> {
        let mut faults = Vec::new();
        let section: BackupSection = toml::from_str(text).unwrap();
        let config = section.resolve(Path::new("/d"), &mut |key, invalid| faults.push(format!("{key}: {invalid}")));
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    #[test]
    fn a_key_turns_the_daily_schedule_on() {
        let none = resolve("").unwrap();
        assert_eq!((none.dir.as_path(), none.every, none.keep), (Path::new("/d/backups"), None, 7));
        let keyed = resolve("key_file = '/k'").unwrap();
        assert_eq!((keyed.every, keyed.key), (Some(DAILY), Some(BackupKey::KeyFile("/k".into()))));
        assert_eq!(resolve("key_file = '/k'\nevery = 'off'").unwrap().every, None);
        assert_eq!(resolve("key_file = '/k'\nevery = '90m'").unwrap().every, Some(Duration::from_secs(5_400)));
        assert!(!resolve("dir = '/mnt/nas'").unwrap().dir_is_ours);
    }

    #[test]
    fn every_fault_names_its_key() {
        for (text, key) in [
            ("dir = 'x'", "backup.dir"),
            ("key_file = 'x'", "backup.key_file"),
            ("passphrase_file = 'x'", "backup.passphrase_file"),
            ("every = '1h'", "backup.every"),
            ("every = 'daily'\nkey_file = '/k'", "backup.every"),
            ("every = '0s'\nkey_file = '/k'", "backup.every"),
            ("keep = 0", "backup.keep"),
            ("recipient = 'AGE-SECRET-KEY-1X'", "backup.recipient"),
            ("key_file = '/k'\npassphrase_file = '/p'", "backup:"),
        ] {
            let faults = resolve(text).unwrap_err();
            assert!(faults.iter().any(|fault| fault.starts_with(key)), "{text}: {faults:?}");
            assert!(!faults.iter().any(|fault| fault.contains("SECRET")), "{faults:?}");
        }
    }
}
