//! Seals values under the cluster's key, so that log, state, snapshots, backups and ledgers hold nothing readable.
//!
//! XChaCha20-Poly1305 with a random nonce. A sealed value says which key opens it and fits one place only: kind, name and
//! version are authenticated with it, so that whoever can write to a database cannot exchange values or bring old ones
//! back under a new version. Knows nothing of files, of who may ask, or of where sealed values are kept.
//!
//! A sealed value is, in this order: the format (1 byte), the key's id (8 bytes), the nonce (24 bytes), the encrypted value
//! and its tag (16 bytes).

use std::fmt;

use chacha20poly1305::{
    AeadInPlace, KeyInit, Tag, XChaCha20Poly1305, XNonce,
    aead::{OsRng, rand_core::RngCore},
};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The only format there is yet.
const FORMAT: u8 = 1;
const KEY_ID: usize = 8;
const NONCE: usize = 24;
const TAG: usize = 16;
const HEADER: usize = 1 + KEY_ID + NONCE;
/// Bytes a value grows by when it is sealed.
pub const OVERHEAD_BYTES: usize = HEADER + TAG;

/// The key under which a cluster seals. Overwritten in memory when it is dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct ClusterKey([u8; 32]);

/// Where a sealed value belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The kind of thing: `secret`.
    pub kind: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Which value of that name.
    pub version: u64,
}

/// A value in the clear. Overwritten in memory when it is dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Plain(Zeroizing<Vec<u8>>);

/// Why a value cannot be sealed.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct SealError(#[source] chacha20poly1305::aead::rand_core::Error);

/// Why a sealed value cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A newer toft sealed it.
    #[error("it is sealed in format {0}, which this toft does not know")]
    Format(u8),
    /// Another cluster sealed it.
    #[error("it is sealed with the key {sealed}, and this node's key is {ours}")]
    OtherKey {
        /// Id of the key that would open it.
        sealed: String,
        /// Id of the key that was tried.
        ours: String,
    },
    /// It was changed, cut, or belongs to another place.
    #[error("it was damaged, or belongs to another name or version")]
    Damaged,
}

impl ClusterKey {
    /// The key of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the files and connections that pass the key on.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Tells keys apart and says nothing else about them.
    pub fn id(&self) -> String {
        hex::encode(self.raw_id())
    }

    fn raw_id(&self) -> [u8; KEY_ID] {
        let digest = Sha256::new().chain_update(b"toft cluster key\0").chain_update(self.0).finalize();
        let mut id = [0; KEY_ID];
        id.copy_from_slice(&digest[..KEY_ID]);
        id
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&self.0.into())
    }

    /// Seals `value` for `place`. Two seals of one value differ.
    pub fn seal(&self, place: Place<'_>, value: &Plain) -> Result<Vec<u8>, SealError> {
        let mut sealed = Vec::with_capacity(OVERHEAD_BYTES + value.0.len());
        sealed.push(FORMAT);
        sealed.extend(self.raw_id());
        let mut nonce = [0; NONCE];
        OsRng.try_fill_bytes(&mut nonce).map_err(SealError)?;
        sealed.extend(nonce);
        let bound = bound(&sealed[..1 + KEY_ID], place);
        sealed.extend_from_slice(&value.0);
        let tag = self
            .cipher()
            .encrypt_in_place_detached(XNonce::from_slice(&nonce), &bound, &mut sealed[HEADER..])
            .expect("a value in memory is shorter than the cipher's limit of 256 GiB");
        sealed.extend(tag);
        Ok(sealed)
    }

    /// Opens what was sealed for `place`.
    pub fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Plain, OpenError> {
        match sealed.first() {
            Some(&FORMAT) if sealed.len() >= OVERHEAD_BYTES => {}
            Some(&FORMAT) | None => return Err(OpenError::Damaged),
            Some(&other) => return Err(OpenError::Format(other)),
        }
        let (header, rest) = sealed.split_at(HEADER);
        let (encrypted, tag) = rest.split_at(rest.len() - TAG);
        let (start, nonce) = header.split_at(1 + KEY_ID);
        if start[1..] != self.raw_id() {
            return Err(OpenError::OtherKey { sealed: hex::encode(&start[1..]), ours: self.id() });
        }
        let mut value = Zeroizing::new(encrypted.to_vec());
        self.cipher()
            .decrypt_in_place_detached(
                XNonce::from_slice(nonce),
                &bound(start, place),
                &mut value,
                Tag::from_slice(tag),
            )
            .map_err(|_| OpenError::Damaged)?;
        Ok(Plain(value))
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey({})", self.id())
    }
}

/// What is authenticated beside the value. Texts are told apart by their lengths.
fn bound(start: &[u8], place: Place<'_>) -> Vec<u8> {
    let mut bound = b"toft seal\0".to_vec();
    bound.extend(start);
    for text in [place.kind, place.name] {
        bound.extend((text.len() as u64).to_le_bytes());
        bound.extend(text.as_bytes());
    }
    bound.extend(place.version.to_le_bytes());
    bound
}

impl Plain {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Plain {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plain({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place<'_> = Place { kind: "secret", name: "db", version: 3 };

    fn key() -> ClusterKey {
        ClusterKey::from_bytes([7; 32])
    }

    fn sealed(text: &str) -> Vec<u8> {
        key().seal(PLACE, &text.as_bytes().to_vec().into()).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_and_no_two_seals_are_alike() {
        for text in ["x", "", &"long ".repeat(100_000)] {
            let first = sealed(text);
            assert_eq!(first.len(), text.len() + OVERHEAD_BYTES);
            assert_eq!(key().open(PLACE, &first).unwrap().as_bytes(), text.as_bytes());
            assert_ne!(first, sealed(text));
        }
        let found = sealed("plain words").windows(11).any(|window| window == b"plain words");
        assert!(!found);
    }

    /// Made by another implementation of the cipher. Sealed values are kept for years: this one must open for ever.
    const SEALED_IN_FORMAT_1: &str = "01810b6b62fad3e35e000102030405060708090a0b0c0d0e0f1011121314151617\
        c372dbf1da7a34d705bee426949191c537bfc0cfb9ce191d3cd885c554b2";

    #[test]
    fn the_format_is_the_one_written_down() {
        let sealed = hex::decode(SEALED_IN_FORMAT_1).unwrap();
        assert_eq!(key().open(PLACE, &sealed).unwrap().as_bytes(), b"kept for years");
    }

    #[test]
    fn it_fits_one_place_only() {
        let sealed = sealed("value");
        for other in [
            Place { kind: "registry", ..PLACE },
            Place { name: "dc", ..PLACE },
            Place { kind: "secretd", name: "b", ..PLACE },
            Place { version: 4, ..PLACE },
            Place { version: 2, ..PLACE },
        ] {
            assert_eq!(key().open(other, &sealed), Err(OpenError::Damaged), "{other:?}");
        }
    }

    #[test]
    fn another_key_is_told_by_its_id() {
        let other = ClusterKey::from_bytes([8; 32]);
        let error = other.open(PLACE, &sealed("value")).unwrap_err();
        assert_eq!(error, OpenError::OtherKey { sealed: key().id(), ours: other.id() });
        assert!(!format!("{:?} {other:?}", key()).contains("07070707"));
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let sealed = sealed("value");
        for length in 0..sealed.len() {
            assert!(key().open(PLACE, &sealed[..length]).is_err(), "cut to {length}");
        }
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(key().open(PLACE, &flipped).is_err(), "bit {bit}");
        }
        let mut longer = sealed.clone();
        longer.push(0);
        assert_eq!(key().open(PLACE, &longer), Err(OpenError::Damaged));
        let mut newer = sealed;
        newer[0] = 2;
        assert_eq!(key().open(PLACE, &newer), Err(OpenError::Format(2)));
        assert_eq!(key().open(PLACE, &[]), Err(OpenError::Damaged));
    }

    #[test]
    fn nothing_is_shown() {
        let plain = Plain::from(b"verysecret".to_vec());
        assert_eq!(format!("{plain:?}"), "Plain(10 bytes)");
    }
}
