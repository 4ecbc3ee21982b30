//! The cluster's keys, and who is let in with them. docs/join.md tells the whole.
//!
//! An authority certifies the members; its key lies with every server, so that any of them can let others in. The token
//! that a joiner needs names the authority by its hash, so that the joiner knows whom it speaks with before it says the
//! secret. Nothing here leaves files that only root can read, but for what a joiner is given over its own TLS connection.

mod admission;
mod authority;
mod introduction;
mod join;
mod pin;
mod place;
mod site;
mod token;

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use admission::Admissions;
pub use introduction::{IntroductionError, introduce};
pub use join::{Answered, JoinError, Joining, join};
pub use pin::{NoPin, Pin, Pins};
pub use place::Place;
pub use site::{Site, SiteCertificate};
pub use token::{NoToken, Token};
use zeroize::Zeroizing;

use crate::{
    consensus::{
        Handle,
        network::{Admission, Transport},
        types::MemberId,
    },
    files::write_whole,
    seal::ClusterKey,
};
use authority::Authority;

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file could not be read or written.
    #[error("`{path}` could not be {verb}")]
    File {
        /// What was being done.
        verb: &'static str,
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A certificate or key is none.
    #[error("the cluster's certificates cannot be made or read")]
    Certificate(#[from] rcgen::Error),
    /// A file holds something else than it should.
    #[error("`{path}` does not hold {what}")]
    Content {
        /// File.
        path: PathBuf,
        /// What should be there.
        what: &'static str,
    },
}

/// A member's certificate and key, both PEM.
#[derive(Clone, Copy)]
struct Certified<'a> {
    certificate: &'a str,
    key: &'a str,
}

/// The keys of one member.
pub struct Keys {
    authority: Authority,
    transport: Transport,
    cluster_key: ClusterKey,
}

const AUTHORITY: &str = "authority.pem";
const AUTHORITY_KEY: &str = "authority.key";
const MEMBER: &str = "member.pem";
const MEMBER_KEY: &str = "member.key";
const CLUSTER_KEY: &str = "cluster.key";
/// The everlasting token of earlier versions.
const FORMER_TOKEN: &str = "token";

impl Keys {
    /// The keys in `folder`, made now if the cluster has none yet.
    pub fn load_or_make(folder: &Path, member_id: MemberId) -> Result<Self, KeyError> {
        if !folder.join(MEMBER).exists() {
            let authority = Authority::make()?;
            let key = random_key().map_err(|source| file("read", Path::new("/dev/urandom"), source))?;
            let (certificate, member_key) = authority.certify_new(member_id)?;
            let member = Certified { certificate: &certificate, key: &member_key };
            Self::store(folder, &authority, member, &ClusterKey::from_bytes(key))?;
        }
        match fs::remove_file(folder.join(FORMER_TOKEN)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(file("removed", &folder.join(FORMER_TOKEN), source));
            }
            _ => {}
        }
        Self::load(folder)
    }

    /// Writes all files; the member's certificate last, because it says that all are there.
    fn store(
        folder: &Path,
        authority: &Authority,
        member: Certified<'_>,
        cluster_key: &ClusterKey,
    ) -> Result<(), KeyError> {
        fs::create_dir_all(folder).map_err(|source| file("made", folder, source))?;
        write(&folder.join(AUTHORITY), &authority.certificate)?;
        write(&folder.join(AUTHORITY_KEY), &authority.key_pem())?;
        write(&folder.join(CLUSTER_KEY), &Zeroizing::new(hex::encode(cluster_key.as_bytes())))?;
        write(&folder.join(MEMBER_KEY), member.key)?;
        write(&folder.join(MEMBER), member.certificate)
    }

    fn load(folder: &Path) -> Result<Self, KeyError> {
        let text = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| file("read", &path, source))
        };
        let authority = Authority::load(text(AUTHORITY)?, &text(AUTHORITY_KEY)?)?;
        let not = |name: &str, what| KeyError::Content { path: folder.join(name), what };
        let cluster_key =
            hex::decode(Zeroizing::new(text(CLUSTER_KEY)?).trim()).ok().and_then(|bytes| bytes.try_into().ok());
        let cluster_key = cluster_key.ok_or_else(|| not(CLUSTER_KEY, "a key of 32 bytes, hexadecimal"))?;
        let cluster_key = ClusterKey::from_bytes(cluster_key);
        let transport = Transport {
            authority: authority.certificate.clone(),
            // With the authority's, so that a joiner sees it.
            certificate: text(MEMBER)? + &authority.certificate,
            key: text(MEMBER_KEY)?,
        };
        Ok(Self { authority, transport, cluster_key })
    }

    /// What connections to other members need.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// SHA-256 of the authority's certificate, which tokens name it by.
    pub fn authority_hash(&self) -> Result<[u8; 32], KeyError> {
        Ok(self.authority.hash()?)
    }

    /// Lets in whom the state's tokens let in, and gives a token to who knows the PIN.
    pub fn admissions(self, state: Handle, pins: Arc<Pins>) -> Arc<dyn Admission> {
        Arc::new(Admissions::new(self, state, pins))
    }

    /// The key for secrets.
    pub fn cluster_key(&self) -> &ClusterKey {
        &self.cluster_key
    }
}

fn file(verb: &'static str, path: &Path, source: std::io::Error) -> KeyError {
    KeyError::File { verb, path: path.to_owned(), source }
}

fn random_key() -> std::io::Result<[u8; 32]> {
    let mut random = [0; 32];
    fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random))?;
    Ok(random)
}

/// Writes a small file that only root can read, whole or not at all.
fn write(path: &Path, content: &str) -> Result<(), KeyError> {
    write_whole(path, 0o600, content.as_bytes()).map_err(|source| file("written", path, source))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_made_once_and_only_their_owner_can_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("cluster");
        let first = Keys::load_or_make(&folder, 1).unwrap();
        let again = Keys::load_or_make(&folder, 1).unwrap();
        assert!(first.cluster_key == again.cluster_key);
        assert_eq!(first.authority_hash().unwrap(), again.authority_hash().unwrap());
        for entry in fs::read_dir(&folder).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
    }

    #[test]
    fn the_everlasting_token_of_earlier_versions_goes() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("cluster");
        Keys::load_or_make(&folder, 1).unwrap();
        fs::write(folder.join("token"), "5".repeat(64)).unwrap();
        Keys::load_or_make(&folder, 1).unwrap();
        assert!(!folder.join("token").exists());
    }
}
