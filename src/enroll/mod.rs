//! The cluster's keys, and who is let in with them.
//!
//! An authority certifies the members; its key lies with every server, so that any of them can let others in. The token
//! that a joiner needs names the authority by its hash, so that the joiner knows whom it speaks with before it says the
//! secret. Nothing here leaves files that only root can read, but for what a joiner is given over its own TLS connection.

mod authority;
mod join;

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    str::FromStr,
};

use async_trait::async_trait;
use sha2::{Digest, Sha256};

pub use join::{JoinError, join};
use zeroize::Zeroizing;

use crate::{
    consensus::{
        network::{Admission, Admitted, Transport},
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

/// What a machine needs to join: `toft1.AUTHORITY.SECRET`, both hexadecimal.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the authority's certificate.
    pub authority: [u8; 32],
    /// What lets in.
    pub secret: String,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "toft1.{}.{}", hex::encode(self.authority), self.secret)
    }
}

/// A text that is no token.
#[derive(Debug, thiserror::Error)]
#[error("this is no join token; one begins with `toft1.` and is printed by `toft cluster token`")]
pub struct NoToken;

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let mut parts = text.trim().split('.');
        let (Some("toft1"), Some(authority), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NoToken);
        };
        let authority = hex::decode(authority).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(NoToken)?;
        if secret.len() != 64 || !secret.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NoToken);
        }
        Ok(Self { authority, secret: secret.to_owned() })
    }
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
    token: Token,
}

const AUTHORITY: &str = "authority.pem";
const AUTHORITY_KEY: &str = "authority.key";
const MEMBER: &str = "member.pem";
const MEMBER_KEY: &str = "member.key";
const CLUSTER_KEY: &str = "cluster.key";
const TOKEN: &str = "token";

impl Keys {
    /// The keys in `folder`, made now if the cluster has none yet.
    pub fn load_or_make(folder: &Path, member_id: MemberId) -> Result<Self, KeyError> {
        if !folder.join(MEMBER).exists() {
            let authority = Authority::make()?;
            let key = random_key().map_err(|source| file("read", Path::new("/dev/urandom"), source))?;
            let secret = random_key().map_err(|source| file("read", Path::new("/dev/urandom"), source))?;
            let (certificate, member_key) = authority.certify_new(member_id)?;
            let member = Certified { certificate: &certificate, key: &member_key };
            Self::store(folder, &authority, member, &ClusterKey::from_bytes(key), &hex::encode(secret))?;
        }
        Self::load(folder)
    }

    /// Writes all files; the member's certificate last, because it says that all are there.
    fn store(
        folder: &Path,
        authority: &Authority,
        member: Certified<'_>,
        cluster_key: &ClusterKey,
        secret: &str,
    ) -> Result<(), KeyError> {
        fs::create_dir_all(folder).map_err(|source| file("made", folder, source))?;
        write(&folder.join(AUTHORITY), &authority.certificate)?;
        write(&folder.join(AUTHORITY_KEY), &authority.key_pem())?;
        write(&folder.join(CLUSTER_KEY), &Zeroizing::new(hex::encode(cluster_key.as_bytes())))?;
        write(&folder.join(TOKEN), secret)?;
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
        let token = format!("toft1.{}.{}", hex::encode(authority.hash()?), text(TOKEN)?.trim());
        let token = token.parse().map_err(|NoToken| not(TOKEN, "a secret of 32 bytes, hexadecimal"))?;
        let transport = Transport {
            authority: authority.certificate.clone(),
            // With the authority's, so that a joiner sees it.
            certificate: text(MEMBER)? + &authority.certificate,
            key: text(MEMBER_KEY)?,
        };
        Ok(Self { authority, transport, cluster_key, token })
    }

    /// What connections to other members need.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// What lets a machine in.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// The key for secrets.
    pub fn cluster_key(&self) -> &ClusterKey {
        &self.cluster_key
    }
}

#[async_trait]
impl Admission for Keys {
    fn is_known(&self, secret: &str) -> bool {
        // Hashes are compared, so that the time says nothing of the secret.
        Sha256::digest(secret) == Sha256::digest(&self.token.secret)
    }

    async fn admit(&self, secret: &str, signing_request: &str, member_id: MemberId) -> Result<Admitted, String> {
        if !self.is_known(secret) {
            return Err("the token is wrong or no longer valid".into());
        }
        let certificate = self
            .authority
            .certify(signing_request, member_id)
            .map_err(|error| format!("the signing request cannot be used: {error}"))?;
        Ok(Admitted {
            certificate,
            authority: self.authority.certificate.clone(),
            authority_key: self.authority.key_pem(),
            cluster_key: hex::encode(self.cluster_key.as_bytes()),
        })
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
        assert!(first.token == again.token && first.cluster_key == again.cluster_key);
        for entry in fs::read_dir(&folder).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
    }

    #[test]
    fn a_token_survives_its_text() {
        let token = Token { authority: [7; 32], secret: "ab".repeat(32) };
        assert!(token.to_string().parse::<Token>().unwrap() == token);
        for bad in ["", "toft1", "toft1.00.11", "toft2.00.00", "toft1..", &format!("{token}.x"), &format!("{token}x")] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn only_the_right_secret_lets_in() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::load_or_make(folder.path(), 1).unwrap();
        let (request, _) = authority::signing_request().unwrap();
        let wrong = "0".repeat(64);
        assert!(!keys.is_known(&wrong) && keys.is_known(&keys.token.secret));
        assert!(keys.admit(&wrong, &request, 2).await.is_err());
        assert!(keys.admit(&keys.token.secret, "no request", 2).await.is_err());
        let admitted = keys.admit(&keys.token.secret, &request, 2).await.unwrap();
        assert!(admitted.certificate.starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
