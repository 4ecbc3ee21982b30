//! The node's own keys for the mesh. They are made here and never leave: files of root's, in no argument, no log, no
//! state. Others know a node by the public half.
//!
//! A node has one key it speaks with and, while it changes keys, the next one. [`Keys::step`] says when to do what:
//!
//! ```text
//!             age > every                 all know it, or patience ended
//!   current ---------------> + next ----------------------------------------> next is current
//!            Step::Announce                     Step::Switch
//! ```

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use gotatun::x25519;
use toft_files::write_whole;
use toft_model::mesh::PublicKey;
use zeroize::{Zeroize, Zeroizing};

/// How old a key gets before its node makes the next.
pub const KEY_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long the others have time to learn the next key, when some of them do not answer.
pub const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// The secret half of a key. It is wiped when it goes, and prints as nothing.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<[u8; 32]>);

impl PrivateKey {
    /// One nobody had before.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        rustls::crypto::ring::default_provider()
            .secure_random
            .fill(&mut *bytes)
            .map_err(|_| io::Error::other("the kernel gave no random bytes"))?;
        // The form in which Curve25519 uses it, and in which `wg` shows it.
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        Ok(Self(bytes))
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.secret()).to_bytes())
    }

    pub(super) fn secret(&self) -> x25519::StaticSecret {
        x25519::StaticSecret::from(*self.0)
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn read(path: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut decoded = STANDARD.decode(text.trim_ascii()).unwrap_or_default();
        let key = <[u8; 32]>::try_from(decoded.as_slice()).ok().map(|bytes| Self(Zeroizing::new(bytes)));
        decoded.zeroize();
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("`{}` holds no key", path.display()));
        key.map(Some).ok_or_else(wrong)
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        write_whole(path, 0o600, Zeroizing::new(STANDARD.encode(*self.0)).as_bytes())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

/// What the schedule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// The next key is made and must be made known.
    Announce(PublicKey),
    /// The next key is to be used from now on.
    Switch,
}

/// A node's keys, in its data directory.
#[derive(Debug)]
pub struct Keys {
    dir: PathBuf,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    current: PrivateKey,
    next: Option<PrivateKey>,
}

impl Keys {
    /// Reads the keys, and makes the first one where there is none.
    pub fn open(dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let keys = |name: &str| dir.join(name);
        let current = match PrivateKey::read(&keys(CURRENT))? {
            Some(key) => key,
            None => {
                let key = PrivateKey::generate()?;
                key.write(&keys(CURRENT))?;
                key
            }
        };
        let mut next = PrivateKey::read(&keys(NEXT))?;
        if next.as_ref().is_some_and(|next| next.public() == current.public()) {
            // A switch that was cut off.
            fs::remove_file(keys(NEXT))?;
            next = None;
        }
        Ok(Self { dir: dir.to_owned(), held: Mutex::new(Held { current, next }) })
    }

    /// The key this node speaks with.
    pub fn current(&self) -> PublicKey {
        self.held().current.public()
    }

    /// The key it will speak with, if it has made one.
    pub fn next(&self) -> Option<PublicKey> {
        self.held().next.as_ref().map(PrivateKey::public)
    }

    /// The secret half of one of its keys.
    pub fn private(&self, key: PublicKey) -> Option<PrivateKey> {
        let held = self.held();
        std::iter::once(&held.current).chain(&held.next).find(|own| own.public() == key).cloned()
    }

    /// What is to be done now. `every` is how old a key gets, `known` whether all who are there know the next one.
    pub fn step(&self, every: Duration, known: bool) -> io::Result<Step> {
        let mut held = self.held();
        if let Some(next) = &held.next {
            let waited = age(&self.dir.join(NEXT))? >= PATIENCE;
            return Ok(if known || waited { Step::Switch } else { Step::Announce(next.public()) });
        }
        if age(&self.dir.join(CURRENT))? < every {
            return Ok(Step::Wait);
        }
        let next = PrivateKey::generate()?;
        next.write(&self.dir.join(NEXT))?;
        let public = next.public();
        held.next = Some(next);
        Ok(Step::Announce(public))
    }

    /// Makes the next key the current one and forgets the old. Without a next one nothing happens.
    pub fn switch(&self) -> io::Result<PublicKey> {
        let mut held = self.held();
        if let Some(next) = held.next.clone() {
            // The new file counts as made now, so that its time begins.
            next.write(&self.dir.join(CURRENT))?;
            fs::remove_file(self.dir.join(NEXT))?;
            *held = Held { current: next, next: None };
        }
        Ok(held.current.public())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const CURRENT: &str = "key";
const NEXT: &str = "next-key";

/// Time since a file was written. A clock that went back makes it new.
fn age(path: &Path) -> io::Result<Duration> {
    Ok(fs::metadata(path)?.modified()?.elapsed().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn make_old(path: PathBuf, by: Duration) {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::SystemTime::now() - by).unwrap();
    }

    #[test]
    fn a_key_is_made_once_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("mesh");
        let key = Keys::open(&dir).unwrap().current();
        assert_eq!(Keys::open(&dir).unwrap().current(), key);
        assert_eq!(fs::metadata(dir.join("key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        let secret = fs::read_to_string(dir.join("key")).unwrap();
        let shown = format!("{:?}", Keys::open(&dir).unwrap());
        assert!(shown.contains(&key.to_string()) && !shown.contains(&secret), "{shown}");
        fs::write(dir.join("key"), "no key").unwrap();
        assert!(Keys::open(&dir).unwrap_err().to_string().contains("holds no key"));
    }

    #[test]
    fn public_halves_are_those_of_wireguard() {
        // A pair made by `wg genkey` and `wg pubkey`.
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), "EOMvMChRg4EE+zpuN9UUZ4+fvjXNRHl/i5cl7D8lS18=\n").unwrap();
        let public = Keys::open(dir.path()).unwrap().current().to_string();
        assert_eq!(public, "rCT14JrC0Mxe4vUG2B90wYiXdyQmameSpMUJYQYJ6A4=");
    }

    #[test]
    fn keys_change_on_schedule_and_the_next_is_known_first() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        let old = keys.current();
        assert_eq!(keys.step(KEY_AGE, true).unwrap(), Step::Wait);
        make_old(dir.path().join("key"), KEY_AGE);
        let Step::Announce(next) = keys.step(KEY_AGE, false).unwrap() else { panic!("nothing is announced") };
        assert_eq!((keys.current(), keys.next()), (old, Some(next)));
        // The same after a restart, and until all know it.
        let keys = Keys::open(dir.path()).unwrap();
        assert_eq!(keys.step(KEY_AGE, false).unwrap(), Step::Announce(next));
        assert!(keys.private(old).is_some() && keys.private(next).is_some());
        assert_eq!(keys.step(KEY_AGE, true).unwrap(), Step::Switch);
        make_old(dir.path().join("next-key"), PATIENCE);
        assert_eq!(keys.step(KEY_AGE, false).unwrap(), Step::Switch);
        assert_eq!(keys.switch().unwrap(), next);
        assert_eq!(keys.step(KEY_AGE, true).unwrap(), Step::Wait);
        assert!(keys.private(old).is_none() && keys.next().is_none());
        assert_eq!(Keys::open(dir.path()).unwrap().current(), next);
        assert_eq!(keys.switch().unwrap(), next);
    }
}
