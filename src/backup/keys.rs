//! What backups are locked and opened with: a key pair (X25519) or a passphrase (scrypt), both as age has them.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use age::{
    secrecy::{ExposeSecret, SecretString},
    x25519,
};

use super::BackupError;

/// Fewest characters of a passphrase that locks.
pub const SHORTEST_PASSPHRASE: usize = 12;
/// Largest key or passphrase file, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// scrypt's cost as a power of two: 128 MiB for as long as it takes, about half a second.
const WORK_FACTOR: u8 = if cfg!(test) { 8 } else { 17 };
/// Highest cost paid for a file that somebody else may have made: 256 MiB.
const MAX_WORK_FACTOR: u8 = 18;

/// Where the configuration says the key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A public key: this node can make backups and not open them.
    Recipient(String),
    /// A file with a key: its public half locks.
    KeyFile(PathBuf),
    /// A file with a passphrase.
    PassphraseFile(PathBuf),
}

impl KeySource {
    /// What locks a new backup; read now, so that a changed file counts.
    pub fn lock(&self) -> Result<Lock, BackupError> {
        match self {
            Self::Recipient(text) => Lock::recipient(text),
            Self::KeyFile(path) => match Key::from_key_file(path)? {
                Key::Pair(identities) => {
                    Ok(Lock::Recipients(identities.iter().map(x25519::Identity::to_public).collect()))
                }
                Key::Passphrase(_) => Err(BackupError::NoKey),
            },
            Self::PassphraseFile(path) => match Key::from_passphrase_file(path)? {
                Key::Passphrase(text) => Lock::passphrase(text).map_err(|error| BackupError::KeyFile {
                    what: "passphrase file",
                    path: path.clone(),
                    detail: error.to_string(),
                }),
                Key::Pair(_) => Err(BackupError::NoKey),
            },
        }
    }

    /// What opens a backup locked with this; `None` for a public key alone.
    pub fn key(&self) -> Result<Option<Key>, BackupError> {
        match self {
            Self::Recipient(_) => Ok(None),
            Self::KeyFile(path) => Key::from_key_file(path).map(Some),
            Self::PassphraseFile(path) => Key::from_passphrase_file(path).map(Some),
        }
    }
}

/// What a new backup is locked with.
#[derive(Clone)]
pub enum Lock {
    /// Public keys; any of their private halves opens it.
    Recipients(Vec<x25519::Recipient>),
    /// A passphrase.
    Passphrase(SecretString),
}

impl Lock {
    /// Locks for the holder of a key, named by its public half: `age1...`.
    pub fn recipient(text: &str) -> Result<Self, BackupError> {
        let text = text.trim();
        if text.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("AGE-")) {
            return Err(BackupError::Key("the secret key was given where the public key belongs".into()));
        }
        let shown: String = text.chars().take(80).collect();
        let recipient: x25519::Recipient =
            text.parse().map_err(|why| BackupError::Key(format!("`{shown}` is no public key: {why}")))?;
        Ok(Self::Recipients(vec![recipient]))
    }

    /// Locks with a passphrase.
    pub fn passphrase(text: SecretString) -> Result<Self, BackupError> {
        if text.expose_secret().chars().count() < SHORTEST_PASSPHRASE {
            return Err(BackupError::Key(format!("the passphrase has less than {SHORTEST_PASSPHRASE} characters")));
        }
        Ok(Self::Passphrase(text))
    }

    /// `recipient` or `passphrase`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Recipients(_) => "recipient",
            Self::Passphrase(_) => "passphrase",
        }
    }

    pub(super) fn encryptor(&self) -> Result<age::Encryptor, BackupError> {
        let failed = |error: age::EncryptError| BackupError::Key(error.to_string());
        match self {
            Self::Recipients(all) => {
                age::Encryptor::with_recipients(all.iter().map(|one| one as &dyn age::Recipient)).map_err(failed)
            }
            Self::Passphrase(text) => {
                let mut recipient = age::scrypt::Recipient::new(text.clone());
                recipient.set_work_factor(WORK_FACTOR);
                age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient)).map_err(failed)
            }
        }
    }
}

/// What opens a backup.
#[derive(Clone)]
pub enum Key {
    /// The private halves of keys.
    Pair(Vec<x25519::Identity>),
    /// A passphrase.
    Passphrase(SecretString),
}

impl Key {
    /// The keys of a file as `toft backup keygen` and `age-keygen` write them.
    pub fn from_key_file(path: &Path) -> Result<Self, BackupError> {
        let unusable = |detail: String| BackupError::KeyFile { what: "key file", path: path.to_owned(), detail };
        let text = read_secret(path).map_err(unusable)?;
        let mut identities = Vec::new();
        for (number, line) in text.expose_secret().lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // The line itself may be a secret in another form, so it is not shown.
            let identity = line.parse().map_err(|why| unusable(format!("line {} holds no key: {why}", number + 1)))?;
            identities.push(identity);
        }
        if identities.is_empty() {
            return Err(unusable("it holds no key".into()));
        }
        Ok(Self::Pair(identities))
    }

    /// The passphrase on the first line of a file.
    pub fn from_passphrase_file(path: &Path) -> Result<Self, BackupError> {
        let unusable = |detail: String| BackupError::KeyFile { what: "passphrase file", path: path.to_owned(), detail };
        let text = read_secret(path).map_err(unusable)?;
        let first = text.expose_secret().lines().next().unwrap_or_default().trim_end();
        if first.is_empty() {
            return Err(unusable("its first line is empty".into()));
        }
        Ok(Self::passphrase(first.to_owned()))
    }

    /// A passphrase as typed.
    pub fn passphrase(text: String) -> Self {
        Self::Passphrase(text.into())
    }

    /// `passphrase` or `key file`, as people call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Pair(_) => "key file",
            Self::Passphrase(_) => "passphrase",
        }
    }

    /// The public halves of the keys.
    pub fn recipients(&self) -> Vec<String> {
        match self {
            Self::Pair(identities) => identities.iter().map(|identity| identity.to_public().to_string()).collect(),
            Self::Passphrase(_) => Vec::new(),
        }
    }

    pub(super) fn identities(&self) -> Vec<Box<dyn age::Identity>> {
        match self {
            Self::Pair(all) => all.iter().map(|one| Box::new(one.clone()) as Box<dyn age::Identity>).collect(),
            Self::Passphrase(text) => {
                let mut identity = age::scrypt::Identity::new(text.clone());
                identity.set_max_work_factor(MAX_WORK_FACTOR);
                vec![Box::new(identity)]
            }
        }
    }
}

/// Makes a key and writes it to a new file that only its owner can read; gives its public half. A file that is there
/// already is left alone.
pub fn generate(path: &Path, made_at: &str) -> Result<String, BackupError> {
    let identity = x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let text = format!(
        "# created: {made_at}\n# public key: {recipient}\n{}\n",
        ExposeSecret::expose_secret(&identity.to_string())
    );
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| BackupError::write(path, source))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if let Err(source) = written {
        // Half a key is worth nothing, and a second try must find the name free.
        drop(fs::remove_file(path));
        return Err(BackupError::write(path, source));
    }
    Ok(recipient)
}

fn read_secret(path: &Path) -> Result<SecretString, String> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > MAX_FILE_BYTES {
        return Err(format!("it is larger than {} KiB", MAX_FILE_BYTES >> 10));
    }
    fs::read_to_string(path).map(SecretString::from).map_err(|error| error.to_string())
}
