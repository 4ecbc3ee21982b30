//! The file: two tables, each write one transaction.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use bytes::Bytes;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    WriteTransaction,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    super::types::{Entry, Identity, LogId, StoredMembership, Vote},
    LogSize,
    disk::{Cautious, Disk},
};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const ABOUT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("about");

const FORMAT: &str = "format";
const IDENTITY: &str = "identity";
const START: &str = "start";
const VOTE: &str = "vote";
const PURGED: &str = "purged";

/// Format this program writes.
const FORMAT_VERSION: u64 = 1;
/// Memory for pages of the file, in bytes. Entries that are read again are kept elsewhere.
const CACHE: usize = 2 << 20;

/// Why the log cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// redb says no.
    #[error("the log's file failed")]
    File(#[source] Box<redb::Error>),
    /// An entry or a note does not read as it was written.
    #[error("the log is damaged at {place}: {detail}")]
    Damaged {
        /// Entry or note.
        place: String,
        /// What is wrong.
        detail: String,
    },
    /// A newer toft wrote it.
    #[error("the log has format {found}, this toft knows {FORMAT_VERSION}")]
    Newer {
        /// Format found.
        found: u64,
    },
    /// Something could not be encoded.
    #[error("an entry could not be written down")]
    Encode(#[source] serde_json::Error),
    /// The operating system gave no thread.
    #[error("no thread for the log could be started")]
    Thread(#[source] std::io::Error),
    /// The file could not be made or opened.
    #[error("the log's file `{path}` could not be made or opened")]
    Make {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The writing thread has ended.
    #[error("the log is closed")]
    Closed,
}

impl LogError {
    /// Whether there was no room.
    pub(in super::super) fn is_full(&self) -> bool {
        let error = match self {
            Self::Make { source, .. } => source,
            Self::File(error) => match &**error {
                redb::Error::Io(error) => error,
                _ => return false,
            },
            _ => return false,
        };
        matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    }

    /// Whether it says only that the file is about to be opened again, or was while it was read.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::File(error) => matches!(**error, redb::Error::PreviousIo | redb::Error::DatabaseClosed),
            _ => false,
        }
    }
}

impl<E: Into<redb::Error>> From<E> for LogError {
    fn from(error: E) -> Self {
        Self::File(Box::new(error.into()))
    }
}

/// How a log begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Start {
    /// Everything up to here lies in the state already.
    pub(in super::super) applied: LogId,
    /// The leader there is.
    pub(in super::super) vote: Vote,
    /// The members there are.
    pub(in super::super) membership: StoredMembership,
}

/// First and last positions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct LogBounds {
    /// Everything up to here is gone.
    pub(in super::super) purged: Option<LogId>,
    /// Newest entry.
    pub(in super::super) last: Option<LogId>,
}

/// An open log.
pub(in super::super) struct LogFile {
    disk: Box<dyn Disk>,
    /// Holds back what redb wrote while it opened the file.
    cautious: Cautious,
    /// None while it is being opened again.
    database: RwLock<Option<Database>>,
}

/// Bytes before the JSON of an entry.
pub(super) const CHECKSUM: usize = 4;

/// An entry as it is stored: CRC-32 of the JSON, little-endian, then the JSON.
pub(super) fn encode(entry: &Entry) -> Result<Bytes, LogError> {
    let mut bytes = vec![0; CHECKSUM];
    serde_json::to_writer(&mut bytes, entry).map_err(LogError::Encode)?;
    let sum = crc32fast::hash(&bytes[CHECKSUM..]);
    bytes[..CHECKSUM].copy_from_slice(&sum.to_le_bytes());
    Ok(bytes.into())
}

fn decode(index: u64, bytes: &[u8]) -> Result<Entry, LogError> {
    let damaged = |detail: String| LogError::Damaged { place: format!("entry {index}"), detail };
    let Some((sum, json)) = bytes.split_first_chunk::<CHECKSUM>() else {
        return Err(damaged("it is cut short".into()));
    };
    if crc32fast::hash(json) != u32::from_le_bytes(*sum) {
        return Err(damaged("its checksum does not match".into()));
    }
    let entry: Entry = serde_json::from_slice(json).map_err(|e| damaged(e.to_string()))?;
    if entry.log_id.index != index {
        return Err(damaged(format!("it says it is entry {}", entry.log_id.index)));
    }
    Ok(entry)
}

impl LogFile {
    /// Makes a log. Without a start it is that of a member which gets all it needs from the others.
    pub(in super::super) fn create(path: &Path, identity: &Identity, start: Option<&Start>) -> Result<(), LogError> {
        // Under another name first: a log is there whole or not at all.
        let temporary = path.with_extension("new");
        let made = |source| LogError::Make { path: path.to_owned(), source };
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(made(error)),
            _ => {}
        }
        let database = Database::builder().set_cache_size(CACHE).create(&temporary)?;
        let transaction = database.begin_write()?;
        {
            let mut about = transaction.open_table(ABOUT)?;
            transaction.open_table(LOG)?;
            note(&mut about, FORMAT, &FORMAT_VERSION)?;
            note(&mut about, IDENTITY, identity)?;
            if let Some(start) = start {
                note(&mut about, START, start)?;
                note(&mut about, PURGED, &start.applied)?;
                note(&mut about, VOTE, &start.vote)?;
            }
        }
        transaction.commit()?;
        drop(database);
        std::fs::rename(&temporary, path).map_err(made)?;
        if let Some(folder) = path.parent() {
            std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(made)?;
        }
        Ok(())
    }

    /// Opens a log and checks that it reads as it was written. Nothing is changed before it is [settled](Self::settle).
    pub(in super::super) fn open(path: &Path) -> Result<Self, LogError> {
        Self::on(Box::new(path.to_owned()))
    }

    /// The same wherever its bytes are.
    pub(in super::super) fn on(disk: Box<dyn Disk>) -> Result<Self, LogError> {
        let opened = || {
            let (database, cautious) = begin(&*disk)?;
            let log = Self { disk, database: RwLock::new(Some(database)), cautious };
            log.check()?;
            Ok(log)
        };
        // redb takes some damage for a fault of its own, and panics.
        catch_unwind(AssertUnwindSafe(opened)).unwrap_or_else(|_| {
            Err(LogError::Damaged { place: "a page".into(), detail: "its content makes no sense".into() })
        })
    }

    /// Lets redb write: what was mended when the file was opened, and from now on.
    pub(in super::super) fn settle(&self) -> Result<(), LogError> {
        self.cautious.let_go().map_err(|error| LogError::File(Box::new(error.into())))
    }

    /// A log of no cluster, for whoever tests the log itself.
    #[cfg(test)]
    pub(in super::super) fn empty(disk: impl Disk + 'static) -> Result<Self, LogError> {
        let cautious = Cautious::through(disk.open()?);
        let database = Database::builder().set_cache_size(CACHE).create_with_backend(cautious.clone())?;
        let transaction = database.begin_write()?;
        transaction.open_table(LOG)?;
        note(&mut transaction.open_table(ABOUT)?, FORMAT, &FORMAT_VERSION)?;
        transaction.commit()?;
        Ok(Self { disk: Box::new(disk), database: RwLock::new(Some(database)), cautious })
    }

    fn check(&self) -> Result<(), LogError> {
        match self.noted::<u64>(FORMAT)? {
            Some(FORMAT_VERSION) => {}
            Some(found) => return Err(LogError::Newer { found }),
            None => return Err(LogError::Damaged { place: FORMAT.into(), detail: "it is missing".into() }),
        }
        self.verify()
    }

    fn begin_read(&self) -> Result<ReadTransaction, LogError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        Ok(database.as_ref().ok_or(LogError::Closed)?.begin_read()?)
    }

    fn begin_write(&self) -> Result<WriteTransaction, LogError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        Ok(database.as_ref().ok_or(LogError::Closed)?.begin_write()?)
    }

    /// Opens the file again: redb writes nothing more after a write that failed.
    pub(super) fn reopen(&self) -> Result<(), LogError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        drop(database.take());
        let (opened, cautious) = begin(&*self.disk)?;
        cautious.let_go().map_err(|error| LogError::File(Box::new(error.into())))?;
        *database = Some(opened);
        Ok(())
    }

    /// Reads every entry: each must be whole, and none may be missing in between.
    fn verify(&self) -> Result<(), LogError> {
        let bounds = self.state()?;
        let table = self.begin_read()?.open_table(LOG)?;
        let mut expected = bounds.purged.map(|purged| purged.index + 1);
        for row in table.iter()? {
            let (index, bytes) = row?;
            let index = index.value();
            decode(index, bytes.value())?;
            if let Some(expected) = expected.filter(|expected| *expected != index) {
                let detail = format!("entry {index} follows where {expected} is expected");
                return Err(LogError::Damaged { place: format!("entry {expected}"), detail });
            }
            expected = Some(index + 1);
        }
        Ok(())
    }

    fn noted<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, LogError> {
        let table = self.begin_read()?.open_table(ABOUT)?;
        let Some(bytes) = table.get(key)? else { return Ok(None) };
        let damaged = |e: serde_json::Error| LogError::Damaged { place: key.to_owned(), detail: e.to_string() };
        serde_json::from_slice(bytes.value()).map(Some).map_err(damaged)
    }

    /// Whose log this is.
    pub(in super::super) fn identity(&self) -> Result<Identity, LogError> {
        self.noted(IDENTITY)?
            .ok_or_else(|| LogError::Damaged { place: IDENTITY.into(), detail: "it is missing".into() })
    }

    /// How it began, if not as a copy of the others'.
    pub(in super::super) fn start(&self) -> Result<Option<Start>, LogError> {
        self.noted(START)
    }

    pub(in super::super) fn vote(&self) -> Result<Option<Vote>, LogError> {
        self.noted(VOTE)
    }

    /// First and last positions.
    pub(in super::super) fn state(&self) -> Result<LogBounds, LogError> {
        let purged = self.noted(PURGED)?;
        let table = self.begin_read()?.open_table(LOG)?;
        let last = match table.last()? {
            Some((index, bytes)) => Some(decode(index.value(), bytes.value())?.log_id),
            None => None,
        };
        Ok(LogBounds { purged, last })
    }

    pub(super) fn size(&self) -> Result<LogSize, LogError> {
        let table = self.begin_read()?.open_table(LOG)?;
        Ok(LogSize { entries: table.len()?, bytes: table.stats()?.stored_bytes() })
    }

    /// The entries of `[start, end)`, at least one if there is one, and then at most `limit` bytes.
    pub(super) fn entries(&self, start: u64, end: u64, limit: usize) -> Result<Vec<Entry>, LogError> {
        if start >= end {
            return Ok(Vec::new());
        }
        let table = self.begin_read()?.open_table(LOG)?;
        let mut read = 0;
        let mut entries = Vec::new();
        for row in table.range(start..end)? {
            let (index, bytes) = row?;
            read += bytes.value().len();
            if read > limit && !entries.is_empty() {
                break;
            }
            entries.push(decode(index.value(), bytes.value())?);
        }
        Ok(entries)
    }

    pub(super) fn append(&self, entries: &[(u64, Bytes)]) -> Result<(), LogError> {
        let transaction = self.begin_write()?;
        {
            let mut table = transaction.open_table(LOG)?;
            for (index, bytes) in entries {
                table.insert(index, &**bytes)?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Makes this the log of another cluster that goes on from here, with one more entry.
    pub(in super::super) fn begin_anew(&self, identity: &Identity, vote: &Vote, entry: &Entry) -> Result<(), LogError> {
        let bytes = encode(entry)?;
        let transaction = self.begin_write()?;
        {
            let mut about = transaction.open_table(ABOUT)?;
            note(&mut about, IDENTITY, identity)?;
            note(&mut about, VOTE, vote)?;
            transaction.open_table(LOG)?.insert(entry.log_id.index, &*bytes)?;
        }
        Ok(transaction.commit()?)
    }

    pub(super) fn save_vote(&self, vote: &Vote) -> Result<(), LogError> {
        let transaction = self.begin_write()?;
        note(&mut transaction.open_table(ABOUT)?, VOTE, vote)?;
        Ok(transaction.commit()?)
    }

    pub(super) fn truncate(&self, since: u64) -> Result<(), LogError> {
        let transaction = self.begin_write()?;
        transaction.open_table(LOG)?.retain_in(since.., |_, _| false)?;
        Ok(transaction.commit()?)
    }

    pub(super) fn purge(&self, upto: LogId) -> Result<(), LogError> {
        let transaction = self.begin_write()?;
        transaction.open_table(LOG)?.retain_in(..=upto.index, |_, _| false)?;
        note(&mut transaction.open_table(ABOUT)?, PURGED, &upto)?;
        Ok(transaction.commit()?)
    }
}

/// Opens redb on a disk; nothing is written before it is let go.
fn begin(disk: &dyn Disk) -> Result<(Database, Cautious), LogError> {
    let cautious = Cautious::new(disk.open()?);
    let length = redb::StorageBackend::len(&cautious).map_err(|error| LogError::File(Box::new(error.into())))?;
    if length == 0 {
        // redb would take it for one that has to be made.
        return Err(LogError::Damaged { place: "its beginning".into(), detail: "it is empty".into() });
    }
    let opened = Database::builder().set_cache_size(CACHE).create_with_backend(cautious.clone())?;
    Ok((opened, cautious))
}

fn note<T: Serialize>(
    table: &mut redb::Table<'_, &'static str, &'static [u8]>,
    key: &str,
    value: &T,
) -> Result<(), LogError> {
    let bytes = serde_json::to_vec(value).map_err(LogError::Encode)?;
    table.insert(key, bytes.as_slice())?;
    Ok(())
}
