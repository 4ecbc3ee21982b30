//! The members of a tar archive as they come, read with bounded memory: what is said about one has a limit, and contents
//! are never held.

use std::io::{self, Read};

use rustix::fs::Timespec;
use tar::{EntryType, Header};

use super::{
    Fault,
    attributes::RECORD,
    sparse::{Said, Sparse},
};

/// Most bytes that are said about one member: long names, attributes, maps of holes.
const MOST_ABOUT_ONE: u64 = 4 << 20;
/// Longest name, in bytes; the kernel's limit.
const LONGEST_NAME: usize = toft_model::files::LONGEST_PATH;
/// Bytes read after the end of an archive.
const MOST_PADDING: u64 = 1 << 20;
const BLOCK: u64 = 512;

/// One member; its content comes next.
#[derive(Debug)]
pub struct Member {
    /// What it is.
    pub kind: EntryType,
    /// Its name, as written.
    pub name: Vec<u8>,
    /// Where a link leads, as written.
    pub link: Vec<u8>,
    /// Bytes of content that follow.
    pub size: u64,
    /// Permissions, with the bits for other users.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was last written.
    pub modified: Timespec,
    /// Extended attributes.
    pub attributes: Vec<(String, Vec<u8>)>,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// Where the content belongs, in a file with holes.
    pub sparse: Option<Sparse>,
}

/// Reads members.
#[derive(Debug)]
pub struct Members<R> {
    source: R,
    begun: bool,
    ended: bool,
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
    modified: Option<Timespec>,
    attributes: Vec<(String, Vec<u8>)>,
    holes: Said,
    is_said: bool,
    bytes: u64,
}

impl<R: Read> Members<R> {
    /// Of an archive.
    pub fn new(source: R) -> Self {
        Self { source, begun: false, ended: false, left: 0, padding: 0 }
    }

    /// The next member; what is left of the one before is skipped.
    pub fn next_member(&mut self) -> Result<Option<Member>, Fault> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let stated = header.entry_size().map_err(|_| Fault::Damaged("size"))?;
            self.content(stated);
            match header.entry_type() {
                EntryType::GNULongName => self.name(&mut extended.name, &mut extended.bytes)?,
                EntryType::GNULongLink => self.name(&mut extended.link, &mut extended.bytes)?,
                EntryType::XHeader => self.pax(&mut extended)?,
                // About all members to come: where the archive is from, usually.
                EntryType::XGlobalHeader => {}
                kind => return self.member(kind, &header, extended).map(Some),
            }
        }
    }

    /// Whether the archive came to an end of its own, rather than to that of what it is read from.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Whether there was any member.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Where the archive is read from.
    pub fn source(&self) -> &R {
        &self.source
    }

    /// The same, for what follows the archive.
    pub fn into_source(self) -> R {
        self.source
    }

    fn member(&mut self, kind: EntryType, header: &Header, mut known: Extended) -> Result<Member, Fault> {
        if let Some(size) = known.size {
            self.content(size);
        }
        let fields = header.as_old();
        let id = |known: Option<u32>, stated: io::Result<u64>, field: &[u8]| {
            let stated = || number(stated, field).and_then(|id| u32::try_from(id).ok());
            known.or_else(stated).filter(|id| *id != u32::MAX).ok_or(Fault::Damaged("owner"))
        };
        let (uid, gid) = (id(known.uid, header.uid(), &fields.uid)?, id(known.gid, header.gid(), &fields.gid)?);
        let mode = number(header.mode().map(u64::from), &fields.mode).ok_or(Fault::Damaged("mode"))?;
        let seconds = || header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0);
        let (named, left) = (known.holes.name.take(), self.left);
        let sparse = match kind {
            EntryType::GNUSparse => Some(Sparse::of_gnu(header, &mut self.source)?),
            EntryType::Regular | EntryType::Continuous => known.holes.map(&mut *self, left)?,
            _ => None,
        };
        if let Some(sparse) = &sparse {
            sparse.check(self.left)?;
        }
        let name = named.or(known.name).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = known.link.or_else(|| Some(header.link_name_bytes()?.into_owned())).unwrap_or_default();
        if name.len() > LONGEST_NAME || link.len() > LONGEST_NAME {
            return Err(Fault::LongName);
        }
        let kind = match kind {
            // How the oldest programs write directories.
            EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => EntryType::Directory,
            EntryType::Continuous | EntryType::GNUSparse => EntryType::Regular,
            kind => kind,
        };
        let device = matches!(kind, EntryType::Char | EntryType::Block).then(|| device(header)).transpose()?;
        let modified = known.modified.unwrap_or_else(|| Timespec { tv_sec: seconds(), tv_nsec: 0 });
        let (size, mode, attributes) = (self.left, (mode & 0o7777) as u32, known.attributes);
        Ok(Member { kind, name, link, size, mode, uid, gid, modified, attributes, device, sparse })
    }

    fn content(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut read = 0;
        while read < block.len() {
            match self.source.read(&mut block[read..]) {
                Ok(0) if read == 0 => return Ok(None),
                Ok(0) => return Err(if self.begun { Fault::CutOff } else { Fault::NoArchive }),
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::read(error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        match header.cksum() {
            Ok(stated) if stated == sum => {
                self.begun = true;
                Ok(Some(header))
            }
            _ if self.begun => Err(Fault::Damaged("header")),
            _ => Err(Fault::NoArchive),
        }
    }

    fn name(&mut self, name: &mut Option<Vec<u8>>, about: &mut u64) -> Result<(), Fault> {
        // One more for the zero at its end.
        if self.left > LONGEST_NAME as u64 + 1 {
            return Err(Fault::LongName);
        }
        let mut said = self.small(about)?;
        said.truncate(said.iter().position(|byte| *byte == 0).unwrap_or(said.len()));
        *name = Some(said);
        Ok(())
    }

    fn pax(&mut self, extended: &mut Extended) -> Result<(), Fault> {
        const DAMAGED: Fault = Fault::Damaged("list of attributes");
        let block = self.small(&mut extended.bytes)?;
        if std::mem::replace(&mut extended.is_said, true) {
            return Err(DAMAGED);
        }
        let mut rest = &block[..];
        while !rest.is_empty() {
            let ((key, value), further) = first_record(rest).ok_or(DAMAGED)?;
            rest = further;
            let text = || std::str::from_utf8(value).map_err(|_| DAMAGED);
            let number = || text()?.parse::<u64>().map_err(|_| DAMAGED);
            let id = || u32::try_from(number()?).map_err(|_| Fault::Damaged("owner"));
            match key {
                "path" => extended.name = Some(value.to_vec()),
                "linkpath" => extended.link = Some(value.to_vec()),
                "size" => extended.size = Some(number()?),
                "uid" => extended.uid = Some(id()?),
                "gid" => extended.gid = Some(id()?),
                "mtime" => extended.modified = text().ok().and_then(time),
                key => {
                    if let Some(name) = key.strip_prefix(RECORD) {
                        extended.attributes.push((name.to_owned(), value.to_vec()));
                    } else if let Some(key) = key.strip_prefix("GNU.sparse.") {
                        extended.holes.take(key, value)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads what follows the end of the archive, so that who sends it gets on: padding, usually.
    pub fn drain(mut self) {
        let _ = io::copy(&mut (&mut self.source).take(MOST_PADDING), &mut io::sink());
    }

    fn small(&mut self, about: &mut u64) -> Result<Vec<u8>, Fault> {
        *about = about.saturating_add(self.left);
        if *about > MOST_ABOUT_ONE {
            return Err(Fault::TooMuch);
        }
        let mut bytes = vec![0; usize::try_from(self.left).unwrap_or_default()];
        self.read_exact(&mut bytes).map_err(Fault::read)?;
        Ok(bytes)
    }

    fn skip(&mut self) -> Result<(), Fault> {
        let all = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.source).take(all), &mut io::sink()).map_err(Fault::read)?;
        (self.left, self.padding) = (0, 0);
        if skipped < all { Err(Fault::CutOff) } else { Ok(()) }
    }
}

/// The current member's content. An end before its end is an error.
impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.source.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// A number of a header. A field that was left empty, which programs do with what they do not care about, is zero.
fn number(stated: io::Result<u64>, field: &[u8]) -> Option<u64> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Some(0) } else { stated.ok() }
}

/// Major and minor number, which lie at the same place in all kinds of headers that have them.
fn device(header: &Header) -> Result<(u32, u32), Fault> {
    let bytes = header.as_bytes();
    let of = |stated: io::Result<Option<u32>>, field: &[u8]| {
        let stated = number(stated.map(|number| number.unwrap_or_default().into()), field);
        stated.and_then(|number| u32::try_from(number).ok()).ok_or(Fault::Damaged("device number"))
    };
    Ok((of(header.device_major(), &bytes[329..337])?, of(header.device_minor(), &bytes[337..345])?))
}

/// Key and value of a PAX header.
type Record<'a> = (&'a str, &'a [u8]);

/// The first record of a PAX header, and what follows it: `LENGTH KEY=VALUE`. A value may hold any byte, ends of lines too,
/// so the length counts.
fn first_record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let blank = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..blank]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((std::str::from_utf8(&record[..equals]).ok()?, &record[equals + 1..]), rest))
}

/// Seconds since 1970 with a fraction, as in `1700000000.25`; before 1970 with a minus.
fn time(text: &str) -> Option<Timespec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let tv_nsec: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && tv_nsec > 0 {
        return Some(Timespec { tv_sec: tv_sec.checked_sub(1)?, tv_nsec: 1_000_000_000 - tv_nsec });
    }
    Some(Timespec { tv_sec, tv_nsec })
}

/// The same the other way round.
pub(super) fn time_text(time: Timespec) -> String {
    match time {
        Timespec { tv_sec, tv_nsec: 0 } => tv_sec.to_string(),
        Timespec { tv_sec, tv_nsec } if tv_sec >= 0 => format!("{tv_sec}.{tv_nsec:09}"),
        Timespec { tv_sec, tv_nsec } => format!("-{}.{:09}", -(tv_sec + 1), 1_000_000_000 - tv_nsec),
    }
}
