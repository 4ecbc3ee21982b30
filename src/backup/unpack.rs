//! Reads the file: age around gzip around tar. It trusts nothing that it reads, not even when the key fits.

use std::{
    cell::{Cell, RefCell},
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    rc::Rc,
};

use flate2::bufread::GzDecoder;
use serde::Deserialize;
use toft_model::state::SCHEMA_VERSION;

use super::{
    BackupError,
    archive::{Locked, Measured, locked},
    keys::Key,
    manifest::{FORMAT, FileEntry, MANIFEST, MAX_MANIFEST_BYTES, Manifest},
};

/// Most bytes after the last file of the archive: the two empty blocks of tar, and what writers pad them with.
const MAX_PADDING_BYTES: u64 = 64 << 10;

/// A backup's files, unpacked.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) manifest: Manifest,
    /// What is not as the manifest says.
    pub(super) differences: Vec<String>,
}

/// Unpacks the backup `path` into the empty folder `into`, flushed to the disk. Every byte is authenticated; sizes, names
/// and checksums are compared with the manifest. `progress` is told the bytes read and all bytes.
pub(super) fn unpack(
    path: &Path,
    key: &Key,
    into: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Unpacked, BackupError> {
    let locked = locked(path)?;
    match (locked, key) {
        (Locked::Recipient, Key::Pair(_)) | (Locked::Passphrase, Key::Passphrase(_)) => {}
        (Locked::Recipient, Key::Passphrase(_)) => {
            return Err(BackupError::OtherKey { path: path.to_owned(), needed: "key file" });
        }
        (Locked::Passphrase, Key::Pair(_)) => {
            return Err(BackupError::OtherKey { path: path.to_owned(), needed: "passphrase" });
        }
    }
    let unreadable = |source| BackupError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let all = file.metadata().map_err(unreadable)?.len();
    let meter = Rc::new(Meter { read: Cell::new(0), failed: RefCell::new(None) });
    let reader = Reader { path, key, into, meter: Rc::clone(&meter) };
    let outcome = reader.run(file, &mut |done| progress(done, all));
    // What the disk said explains more than what the layers above made of it.
    match meter.failed.take() {
        Some(source) => Err(unreadable(source)),
        None => outcome,
    }
}

/// What the bottom of the pile of readers noticed.
struct Meter {
    read: Cell<u64>,
    failed: RefCell<Option<io::Error>>,
}

struct Metered {
    file: File,
    meter: Rc<Meter>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            Ok(read) => {
                self.meter.read.set(self.meter.read.get() + read as u64);
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let told = io::Error::from(error.kind());
                self.meter.failed.replace(Some(error));
                Err(told)
            }
        }
    }
}

struct Reader<'a> {
    path: &'a Path,
    key: &'a Key,
    into: &'a Path,
    meter: Rc<Meter>,
}

impl Reader<'_> {
    fn damaged(&self, detail: impl Into<String>) -> BackupError {
        BackupError::Damaged { path: self.path.to_owned(), detail: detail.into() }
    }

    /// The file does not go on as it was written.
    fn broken(&self) -> BackupError {
        self.damaged(format!("it was cut short or changed near byte {}", self.meter.read.get()))
    }

    fn foreign(&self, detail: impl Into<String>) -> BackupError {
        BackupError::NotABackup { path: self.path.to_owned(), detail: detail.into() }
    }

    fn run(&self, file: File, progress: &mut dyn FnMut(u64)) -> Result<Unpacked, BackupError> {
        let metered = BufReader::with_capacity(64 << 10, Metered { file, meter: Rc::clone(&self.meter) });
        let decryptor = age::Decryptor::new_buffered(metered).map_err(|error| self.refused(&error))?;
        let identities = self.key.identities();
        let plain = decryptor.decrypt(identities.iter().map(AsRef::as_ref)).map_err(|error| self.refused(&error))?;
        let mut plain = BufReader::with_capacity(64 << 10, plain);
        if !plain.fill_buf().map_err(|_| self.broken())?.starts_with(&[0x1f, 0x8b]) {
            return Err(self.foreign("what is encrypted in it is no gzipped archive"));
        }
        let mut tar = tar::Archive::new(GzDecoder::new(plain));
        // Raw: the extensions of tar, which could give long names and links, are entries like others, and refused.
        let entries = tar.entries().map_err(|_| self.broken())?.raw(true);
        let mut manifest = None;
        let mut found = Vec::new();
        let mut differences = Vec::new();
        for entry in entries {
            let mut entry = entry.map_err(|_| self.broken())?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let Some(manifest) = &manifest else {
                manifest = Some(self.manifest(&name, &mut entry)?);
                continue;
            };
            let expected = self.expected(manifest, found.len(), &name, &entry)?;
            if let Some(difference) = self.save(expected, &mut entry, progress)? {
                differences.push(difference);
            }
            found.push(name);
        }
        let manifest = manifest.ok_or_else(|| self.foreign("it holds no manifest"))?;
        differences.extend(manifest.files.iter().skip(found.len()).map(|file| format!("`{}` is missing", file.path)));
        self.finish(tar.into_inner())?;
        progress(self.meter.read.get());
        Ok(Unpacked { manifest, differences })
    }

    fn refused(&self, error: &age::DecryptError) -> BackupError {
        match error {
            age::DecryptError::DecryptionFailed
            | age::DecryptError::KeyDecryptionFailed
            | age::DecryptError::NoMatchingKeys => {
                BackupError::WrongKey { path: self.path.to_owned(), key: self.key.kind() }
            }
            age::DecryptError::ExcessiveWork { required, .. } => {
                self.damaged(format!("opening it would take 2^{required} rounds, which toft never asks for"))
            }
            age::DecryptError::UnknownFormat => self.foreign("it is a newer kind of age file"),
            age::DecryptError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.damaged("it is cut short")
            }
            age::DecryptError::InvalidHeader | age::DecryptError::InvalidMac | age::DecryptError::Io(_) => {
                self.damaged("its beginning was cut short or changed")
            }
        }
    }

    /// Reads the manifest, which is the first entry, and refuses what this program cannot put back.
    fn manifest(&self, name: &str, entry: &mut impl Entry) -> Result<Manifest, BackupError> {
        if name != MANIFEST || !entry.is_file() {
            return Err(self.foreign("it does not begin with a manifest"));
        }
        if entry.size() > MAX_MANIFEST_BYTES {
            return Err(self.foreign("its manifest is too large"));
        }
        let mut text = Vec::new();
        entry.read_to_end(&mut text).map_err(|_| self.broken())?;
        let versions: Versions = serde_json::from_slice(&text)
            .map_err(|error| self.foreign(format!("its manifest is not understood: {error}")))?;
        let newer = |what, found, known| {
            let toft_version = versions.toft_version.clone();
            Err(BackupError::Newer { path: self.path.to_owned(), what, found, known, toft_version })
        };
        if versions.format > FORMAT {
            return newer("backup format", versions.format, FORMAT);
        }
        if versions.schema_version > SCHEMA_VERSION {
            return newer("schema version", versions.schema_version, SCHEMA_VERSION);
        }
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| self.foreign(format!("its manifest is not understood: {error}")))?;
        manifest.check().map_err(|why| self.foreign(why))?;
        Ok(manifest)
    }

    /// The entry of the manifest that comes next, which the archive must follow.
    fn expected<'m>(
        &self,
        manifest: &'m Manifest,
        position: usize,
        name: &str,
        entry: &impl Entry,
    ) -> Result<&'m FileEntry, BackupError> {
        let shown: String = name.chars().take(100).collect();
        let shown = shown.escape_default();
        let expected = manifest.files.get(position).filter(|file| file.path == name && entry.is_file());
        let expected = expected.ok_or_else(|| self.foreign(format!("its manifest does not tell of `{shown}`")))?;
        if entry.size() != expected.size_bytes {
            let (size, listed) = (entry.size(), expected.size_bytes);
            return Err(self.foreign(format!("`{shown}` has {size} bytes, its manifest says {listed}")));
        }
        Ok(expected)
    }

    /// Writes one file whose path was checked, and compares it.
    fn save(
        &self,
        expected: &FileEntry,
        entry: &mut impl Entry,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<String>, BackupError> {
        let target = self.into.join(&expected.path);
        let failed = |source| BackupError::write(&target, source);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target).map_err(failed)?;
        let mut out = Measured::new(file);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = entry.read(&mut buffer).map_err(|_| self.broken())?;
            if read == 0 {
                break;
            }
            out.write_all(&buffer[..read]).map_err(failed)?;
            progress(self.meter.read.get());
        }
        out.inner.sync_all().map_err(failed)?;
        let written = out.sealed();
        if written.size_bytes != expected.size_bytes {
            return Err(self.broken());
        }
        let differs = written.sha256 != expected.sha256;
        Ok(differs.then(|| format!("`{}` is not the file that was backed up (its checksum differs)", expected.path)))
    }

    /// Reads to the very end: only there is it known that nothing was cut off.
    fn finish(&self, mut gzip: GzDecoder<impl BufRead>) -> Result<(), BackupError> {
        let mut buffer = [0; 4 << 10];
        let mut padding = 0;
        loop {
            let read = gzip.read(&mut buffer).map_err(|_| self.broken())?;
            if read == 0 {
                break;
            }
            padding += read as u64;
            if padding > MAX_PADDING_BYTES || buffer[..read].iter().any(|byte| *byte != 0) {
                return Err(self.foreign("something follows its archive"));
            }
        }
        let rest = gzip.into_inner().read(&mut buffer).map_err(|_| self.broken())?;
        if rest > 0 { Err(self.foreign("something follows its archive")) } else { Ok(()) }
    }
}

/// What must be understood of any manifest.
#[derive(Deserialize)]
struct Versions {
    format: i64,
    toft_version: String,
    #[serde(default)]
    schema_version: i64,
}

/// An entry of the archive, whatever it is read from.
trait Entry: Read {
    fn size(&self) -> u64;
    fn is_file(&self) -> bool;
}

impl<R: Read> Entry for tar::Entry<'_, R> {
    fn size(&self) -> u64 {
        tar::Entry::size(self)
    }

    fn is_file(&self) -> bool {
        self.header().entry_type() == tar::EntryType::Regular
    }
}
