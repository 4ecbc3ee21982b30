//! Writes the file: age around gzip around tar. `unpack` reads it.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};

use super::{
    BackupError,
    keys::Lock,
    manifest::{MANIFEST, Manifest},
};

/// How every age file begins.
pub(super) const MAGIC: &[u8] = b"age-encryption.org/v1\n";
/// How one begins that is locked with a passphrase.
const MAGIC_SCRYPT: &[u8] = b"age-encryption.org/v1\n-> scrypt ";
/// How an age file begins that was made for mail.
const MAGIC_ARMOR: &[u8] = b"-----BEGIN AGE";

/// How a backup is locked, as its first bytes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locked {
    /// For the holder of a key.
    Recipient,
    /// With a passphrase.
    Passphrase,
}

impl Locked {
    /// `recipient` or `passphrase`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recipient => "recipient",
            Self::Passphrase => "passphrase",
        }
    }
}

/// How the file `path` is locked. Refuses what is no age file.
pub fn locked(path: &Path) -> Result<Locked, BackupError> {
    let unreadable = |source| BackupError::Unreadable { path: path.to_owned(), source };
    let mut start = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAGIC_SCRYPT.len() as u64).read_to_end(&mut start).map_err(unreadable)?;
    if start.starts_with(MAGIC_SCRYPT) {
        return Ok(Locked::Passphrase);
    }
    let path = path.to_owned();
    if MAGIC_SCRYPT.starts_with(&start) {
        let detail = if start.is_empty() { "it is empty" } else { "it is cut short" };
        return Err(BackupError::Damaged { path, detail: detail.into() });
    }
    if start.starts_with(MAGIC) {
        return Ok(Locked::Recipient);
    }
    let detail = match start.starts_with(MAGIC_ARMOR) {
        true => "it is an age file as text; turn it into bytes with `age -d` and `age` first",
        false => "it is not encrypted with age",
    };
    Err(BackupError::NotABackup { path, detail: detail.into() })
}

/// Where a file of a new backup comes from.
pub(super) enum Source {
    /// Read already.
    Bytes(Vec<u8>),
    /// A file that nobody changes.
    File(PathBuf),
}

/// A written backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) size_bytes: u64,
    pub(super) sha256: String,
}

/// Size and SHA-256 of the file `path`.
pub(super) fn measure(path: &Path) -> io::Result<Sealed> {
    let mut file = File::open(path)?;
    let mut measured = Measured::new(io::sink());
    io::copy(&mut file, &mut measured)?;
    Ok(measured.sealed())
}

/// Writes a new file `path`, flushed to the disk. `sources` are those of the manifest, in its order. What a failure
/// leaves is for the caller to remove.
pub(super) fn write(path: &Path, lock: &Lock, manifest: &Manifest, sources: &[Source]) -> Result<Sealed, BackupError> {
    let encryptor = lock.encryptor()?;
    let failed = |source| BackupError::write(path, source);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let mut text = serde_json::to_vec_pretty(manifest).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    let pour = || -> io::Result<Sealed> {
        let out = Measured::new(BufWriter::new(file));
        let gzip = GzEncoder::new(encryptor.wrap_output(out)?, Compression::default());
        let mut tar = tar::Builder::new(gzip);
        append(&mut tar, MANIFEST, text.len() as u64, text.as_slice())?;
        for (entry, source) in manifest.files.iter().zip(sources) {
            match source {
                Source::Bytes(bytes) => append(&mut tar, &entry.path, entry.size_bytes, bytes.as_slice())?,
                Source::File(from) => append(&mut tar, &entry.path, entry.size_bytes, File::open(from)?)?,
            }
        }
        let mut out = tar.into_inner()?.finish()?.finish()?;
        out.inner.flush()?;
        out.inner.get_ref().sync_all()?;
        Ok(out.sealed())
    };
    pour().map_err(failed)
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, size: u64, content: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_size(size);
    header.set_mode(0o600);
    header.set_cksum();
    tar.append(&header, content.take(size))
}

/// Passes bytes on, counted and hashed.
pub(super) struct Measured<W> {
    pub(super) inner: W,
    digest: Sha256,
    bytes: u64,
}

impl<W> Measured<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, digest: Sha256::new(), bytes: 0 }
    }

    pub(super) fn sealed(self) -> Sealed {
        Sealed { size_bytes: self.bytes, sha256: hex::encode(self.digest.finalize()) }
    }
}

impl<W: Write> Write for Measured<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
