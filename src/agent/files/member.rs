//! The members of a tar archive as they come, read with bounded memory: names and attributes have limits, and contents are
//! never held.

use std::io::{self, Read};

use tar::{EntryType, Header, PaxExtensions};
use toft_model::files::LONGEST_PATH;

use super::FileError;

/// Largest block of extended attributes of a member.
const LARGEST_PAX: u64 = 256 * 1024;
/// Bytes read after the end of an archive.
const MOST_PADDING: u64 = 1 << 20;
const BLOCK: u64 = 512;

/// One member; its content comes next.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) kind: EntryType,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified_s: i64,
}

/// Reads members.
pub(super) struct Members<R> {
    source: R,
    begun: bool,
    /// Bytes of the current member's content, and of its padding, that were not read yet.
    left: u64,
    padding: u64,
}

/// What extended headers say about the member after them.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified_s: Option<i64>,
}

impl<R: Read> Members<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, begun: false, left: 0, padding: 0 }
    }

    /// The next member; what is left of the one before is skipped.
    pub(super) fn next(&mut self) -> Result<Option<Member>, FileError> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let stated = header.entry_size().map_err(|_| damaged("size"))?;
            self.content(stated);
            match header.entry_type() {
                EntryType::GNULongName => extended.name = Some(self.name()?),
                EntryType::GNULongLink => extended.link = Some(self.name()?),
                EntryType::XHeader => self.pax(&mut extended)?,
                EntryType::XGlobalHeader => {}
                kind => return self.member(kind, &header, extended).map(Some),
            }
        }
    }

    fn member(&mut self, kind: EntryType, header: &Header, known: Extended) -> Result<Member, FileError> {
        if let Some(size) = known.size {
            self.content(size);
        }
        let name = known.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = known.link.or_else(|| Some(header.link_name_bytes()?.into_owned())).unwrap_or_default();
        if name.len() > LONGEST_PATH || link.len() > LONGEST_PATH {
            return Err(FileError::refused("a member's name is too long"));
        }
        let fields = header.as_old();
        let id = |field: &[u8], stated: io::Result<u64>| {
            let stated = if is_blank(field) { 0 } else { stated.map_err(|_| damaged("owner"))? };
            u32::try_from(stated).ok().filter(|id| *id != u32::MAX).ok_or_else(|| damaged("owner"))
        };
        let mode = if is_blank(&fields.mode) { 0o644 } else { header.mode().map_err(|_| damaged("mode"))? };
        Ok(Member {
            kind,
            name,
            link,
            size: self.left,
            mode: mode & 0o7777,
            uid: known.uid.map_or_else(|| id(&fields.uid, header.uid()), Ok)?,
            gid: known.gid.map_or_else(|| id(&fields.gid, header.gid()), Ok)?,
            modified_s: known
                .modified_s
                .unwrap_or_else(|| header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0)),
        })
    }

    fn content(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    /// The next header; `None` at the end, which an archive that was cut off does not have.
    fn header(&mut self) -> Result<Option<Header>, FileError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        self.source.read_exact(block).map_err(|error| match self.begun {
            true => broken(&error),
            false if error.kind() == io::ErrorKind::UnexpectedEof => FileError::refused("it is no tar archive"),
            false => broken(&error),
        })?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        match header.cksum() {
            Ok(stated) if stated == sum => {
                self.begun = true;
                Ok(Some(header))
            }
            _ if self.begun => Err(damaged("header")),
            _ => Err(FileError::refused("it is no tar archive")),
        }
    }

    fn name(&mut self) -> Result<Vec<u8>, FileError> {
        // One more for the zero at its end.
        if self.left > LONGEST_PATH as u64 + 1 {
            return Err(FileError::refused("a member's name is too long"));
        }
        let mut name = self.small()?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn pax(&mut self, extended: &mut Extended) -> Result<(), FileError> {
        if self.left > LARGEST_PAX {
            return Err(FileError::refused("a member's attributes are too large"));
        }
        let block = self.small()?;
        for extension in PaxExtensions::new(&block) {
            let extension = extension.map_err(|_| damaged("attributes"))?;
            let text = || extension.value().map_err(|_| damaged("attributes"));
            let number = || text()?.parse::<u64>().map_err(|_| damaged("attributes"));
            let id = || u32::try_from(number()?).map_err(|_| damaged("owner"));
            match extension.key_bytes() {
                b"path" => extended.name = Some(extension.value_bytes().to_vec()),
                b"linkpath" => extended.link = Some(extension.value_bytes().to_vec()),
                b"size" => extended.size = Some(number()?),
                b"uid" => extended.uid = Some(id()?),
                b"gid" => extended.gid = Some(id()?),
                b"mtime" => extended.modified_s = text()?.split('.').next().and_then(|whole| whole.parse().ok()),
                // How GNU tar writes files with holes: their content is not as it seems.
                key if key.starts_with(b"GNU.sparse.") => return Err(FileError::refused("it holds a sparse file")),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads what follows the end of the archive, so that who sends it gets on: padding, usually.
    pub(super) fn drain(mut self) {
        let _ = io::copy(&mut (&mut self.source).take(MOST_PADDING), &mut io::sink());
    }

    fn small(&mut self) -> Result<Vec<u8>, FileError> {
        let mut bytes = vec![0; usize::try_from(self.left).unwrap_or_default()];
        self.read_exact(&mut bytes).map_err(|error| broken(&error))?;
        Ok(bytes)
    }

    fn skip(&mut self) -> Result<(), FileError> {
        let all = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.source).take(all), &mut io::sink()).map_err(|error| broken(&error))?;
        (self.left, self.padding) = (0, 0);
        if skipped < all { Err(FileError::refused("it ends too early")) } else { Ok(()) }
    }
}

/// The current member's content. An end before its end is an error.
impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.source.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Whether a field was left empty, which programs do with what they do not care about.
fn is_blank(field: &[u8]) -> bool {
    field.iter().all(|byte| matches!(byte, 0 | b' '))
}

pub(super) fn broken(error: &io::Error) -> FileError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => FileError::refused("it ends too early"),
        _ => FileError::refused(format!("it cannot be read: {error}")),
    }
}

fn damaged(what: &str) -> FileError {
    FileError::refused(format!("a member's {what} is damaged"))
}
