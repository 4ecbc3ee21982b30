//! age around anything that is written and read once, such as backups of volumes.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use age::stream::{StreamReader, StreamWriter};

use super::{
    BackupError,
    archive::MAGIC,
    keys::{Key, Lock},
};

/// Encrypts what is written; [`StreamWriter::finish`] writes the end, without which nothing opens.
pub fn seal<W: Write>(lock: &Lock, out: W) -> Result<StreamWriter<W>, BackupError> {
    let failed = |source: io::Error| BackupError::Key(source.to_string());
    lock.encryptor()?.wrap_output(out).map_err(failed)
}

/// Decrypts the file `path`, of which `input` is the content.
pub fn open<R: Read>(path: &Path, key: &Key, input: R) -> Result<StreamReader<R>, BackupError> {
    let decryptor = age::Decryptor::new(input)
        .map_err(|error| BackupError::Damaged { path: path.to_owned(), detail: error.to_string() })?;
    let identities = key.identities();
    decryptor
        .decrypt(identities.iter().map(|identity| &**identity))
        .map_err(|_| BackupError::WrongKey { path: path.to_owned(), key: key.kind() })
}

/// Whether the file `path` is encrypted.
pub fn is_sealed(path: &Path) -> Result<bool, BackupError> {
    let unreadable = |source| BackupError::Unreadable { path: path.to_owned(), source };
    let mut start = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAGIC.len() as u64).read_to_end(&mut start).map_err(unreadable)?;
    Ok(start == MAGIC)
}
