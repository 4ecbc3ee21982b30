//! From a stream to a tree. Whoever made the stream may be hostile: every path is resolved below the root and through
//! folders only, nothing that is there is followed or replaced, and what a backup of ours never holds is refused.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};
use tar::{Archive, Entry, EntryType};

use super::{ArchiveError, END, FORMAT, MANIFEST, MAX_HEADERS, MAX_PATH, Manifest, Summary, TREE, XATTR};

/// Beneath the root, through folders only.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// Zeros of this length, at such a place, become a hole.
const BLOCK: usize = 4096;

/// Whether a backup may hold an extended attribute of that name.
pub(super) fn may_have(name: &str) -> bool {
    name.starts_with("user.")
        || matches!(name, "security.capability" | "system.posix_acl_access" | "system.posix_acl_default")
}

/// Reads a stream into the empty folder `root`. A failure leaves a part of the tree behind, in `root` and nowhere else.
pub fn read(root: BorrowedFd<'_>, input: impl Read) -> Result<Summary, ArchiveError> {
    let mut archive = Archive::new(input);
    let mut tree = Tree { root, summary: Summary::default(), folders: Vec::new() };
    let mut further = None;
    let mut begun = false;
    let mut ended = false;
    for entry in archive.entries().map_err(ArchiveError::Damaged)?.raw(true) {
        let mut entry = entry.map_err(damaged_or_not(begun))?;
        if entry.header().entry_type() == EntryType::XHeader {
            let size = entry.header().entry_size().map_err(ArchiveError::Damaged)?;
            if further.is_some() || size > MAX_HEADERS {
                return Err(ArchiveError::NotABackup("a file has too many attributes".into()));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(ArchiveError::Damaged)?;
            further = Some(bytes);
            continue;
        }
        let header = Head::of(&entry, further.take())?;
        if ended {
            return Err(header.hostile("behind its end"));
        }
        if !begun {
            check_manifest(&header, &mut entry)?;
            begun = true;
        } else if header.path == END.as_bytes() {
            tree.check_end(&mut entry)?;
            ended = true;
        } else {
            tree.take(&header, &mut entry)?;
        }
    }
    if !ended {
        return Err(match begun {
            true => ArchiveError::Damaged(io::ErrorKind::UnexpectedEof.into()),
            false => ArchiveError::NotABackup("it is empty".into()),
        });
    }
    // To the very end, where the checksum is.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(ArchiveError::Damaged)?;
    tree.finish()
}

fn damaged_or_not(begun: bool) -> impl Fn(io::Error) -> ArchiveError {
    move |error| if begun { ArchiveError::Damaged(error) } else { ArchiveError::NotABackup(error.to_string()) }
}

fn check_manifest(header: &Head, entry: &mut impl Read) -> Result<(), ArchiveError> {
    if header.path != MANIFEST.as_bytes() {
        return Err(ArchiveError::NotABackup(format!("it does not begin with `{MANIFEST}`")));
    }
    let mut text = Vec::new();
    entry.take(MAX_HEADERS).read_to_end(&mut text).map_err(ArchiveError::Damaged)?;
    let format = serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|value| value["format"].as_u64());
    match format {
        Some(format) if format > u64::from(FORMAT) => {
            Err(ArchiveError::Newer(u32::try_from(format).unwrap_or(u32::MAX)))
        }
        _ => match serde_json::from_slice::<Manifest>(&text) {
            Ok(_) => Ok(()),
            Err(error) => Err(ArchiveError::NotABackup(format!("its `{MANIFEST}` is not understood: {error}"))),
        },
    }
}

/// What an entry says of itself.
struct Head {
    path: Vec<u8>,
    link: Vec<u8>,
    kind: EntryType,
    size: u64,
    mode: Mode,
    owner: (Uid, Gid),
    modified: Timespec,
    attributes: Vec<(String, Vec<u8>)>,
}

impl Head {
    fn of<R: Read>(entry: &Entry<'_, R>, further: Option<Vec<u8>>) -> Result<Self, ArchiveError> {
        let header = entry.header();
        let id = |id: io::Result<u64>| {
            let id = id.map_err(ArchiveError::Damaged)?;
            // The kernel's mark for "do not change".
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| ArchiveError::NotABackup("a file has an owner that cannot be".into()))
        };
        let seconds = header.mtime().map_err(ArchiveError::Damaged)?;
        let mut head = Self {
            path: header.path_bytes().into_owned(),
            link: header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default(),
            kind: header.entry_type(),
            size: header.entry_size().map_err(ArchiveError::Damaged)?,
            mode: Mode::from_raw_mode(header.mode().map_err(ArchiveError::Damaged)? & 0o7777),
            owner: (Uid::from_raw(id(header.uid())?), Gid::from_raw(id(header.gid())?)),
            modified: Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 },
            attributes: Vec::new(),
        };
        for extension in extensions(&further.unwrap_or_default()) {
            let (key, value) = extension.ok_or_else(|| head.hostile("which has attributes that cannot be read"))?;
            match key {
                "path" => head.path = value.to_vec(),
                "linkpath" => head.link = value.to_vec(),
                "mtime" => head.modified = time(value).unwrap_or(head.modified),
                key => match key.strip_prefix(XATTR) {
                    Some(name) if may_have(name) => head.attributes.push((name.to_owned(), value.to_vec())),
                    _ => return Err(head.hostile("which has an attribute that no backup of toft has")),
                },
            }
        }
        Ok(head)
    }

    fn hostile(&self, why: &'static str) -> ArchiveError {
        ArchiveError::Hostile { path: shown(&self.path), why }
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().filter(|c| !c.is_control()).take(120).collect()
}

/// Key and value of a PAX header.
type Extension<'a> = (&'a str, &'a [u8]);

/// The records `LENGTH KEY=VALUE` of a PAX header; `None` for what is none. A value may hold any byte, ends of lines too,
/// so the length counts.
fn extensions(mut bytes: &[u8]) -> impl Iterator<Item = Option<Extension<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let (record, rest) = match first_record(bytes) {
            Some((record, rest)) => (Some(record), rest),
            None => (None, &[][..]),
        };
        bytes = rest;
        Some(record)
    })
}

fn first_record(bytes: &[u8]) -> Option<(Extension<'_>, &[u8])> {
    let blank = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..blank]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((std::str::from_utf8(&record[..equals]).ok()?, &record[equals + 1..]), rest))
}

/// `SECONDS.NANOSECONDS`.
fn time(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, nanoseconds) = text.split_once('.')?;
    let tv_nsec: i64 = nanoseconds.parse().ok().filter(|n| nanoseconds.len() == 9 && (0..1_000_000_000).contains(n))?;
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec })
}

/// The path of an entry below the tree's root; empty for the root itself.
fn inside(path: &[u8]) -> Option<&[u8]> {
    let rest = path.strip_prefix(TREE.as_bytes())?;
    // Other programs write a folder with a `/` at its end.
    let rest = rest.strip_suffix(b"/").unwrap_or(rest);
    if rest.is_empty() {
        return Some(rest);
    }
    let rest = rest.strip_prefix(b"/")?;
    let odd = |part: &[u8]| matches!(part, b"" | b"." | b"..") || part.len() > 255 || part.contains(&0);
    (path.len() <= MAX_PATH && !rest.split(|byte| *byte == b'/').any(odd)).then_some(rest)
}

struct Tree<'a> {
    root: BorrowedFd<'a>,
    summary: Summary,
    /// Folders get their permissions and times last: what is made in them changes both.
    folders: Vec<(Vec<u8>, Head)>,
}

impl Tree<'_> {
    fn take(&mut self, head: &Head, content: &mut impl Read) -> Result<(), ArchiveError> {
        let Some(path) = inside(&head.path) else { return Err(head.hostile("which leads out of the volume")) };
        if head.kind != EntryType::Regular && head.size != 0 {
            return Err(head.hostile("which has content and is no file"));
        }
        self.summary.entries += 1;
        if path.is_empty() {
            if head.kind != EntryType::Directory || self.summary.entries != 1 {
                return Err(head.hostile("which is not the volume's own folder"));
            }
            self.folders.push((Vec::new(), head.copied()));
            return Ok(());
        }
        let written = self.make(head, path, content);
        written.map_err(|error| match error {
            Failed::Read(error) => ArchiveError::Damaged(error),
            Failed::Hostile(why) => head.hostile(why),
            Failed::Write(Errno::XDEV | Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => {
                head.hostile("which does not lie in a folder of the volume")
            }
            Failed::Write(Errno::EXIST) => head.hostile("which is named twice"),
            Failed::Write(error) => ArchiveError::Write { path: shown(path), source: error.into() },
            Failed::Disk(source) => ArchiveError::Write { path: shown(path), source },
        })
    }

    fn make(&mut self, head: &Head, path: &[u8], content: &mut impl Read) -> Result<(), Failed> {
        let (parent, name) = self.parent(path)?;
        match head.kind {
            EntryType::Directory => {
                rustix::fs::mkdirat(&parent, name, Mode::RWXU)?;
                self.folders.push((path.to_vec(), head.copied()));
            }
            EntryType::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR)?);
                pour(content, head.size, &file)?;
                dress(file.as_fd(), head)?;
                self.summary.bytes += head.size;
            }
            EntryType::Link => {
                let target = inside(&head.link).filter(|target| !target.is_empty());
                let target = target.ok_or(Failed::Hostile("which links to something outside the volume"))?;
                let (from, old) = self.parent(target)?;
                rustix::fs::linkat(from, old, parent, name, AtFlags::empty())?;
            }
            EntryType::Symlink => {
                if head.link.is_empty() || head.link.len() > MAX_PATH || head.link.contains(&0) {
                    return Err(Failed::Hostile("which links to nothing"));
                }
                // Taken as it is: nothing here follows it, and in the container it leads nowhere else.
                rustix::fs::symlinkat(head.link.as_slice(), &parent, name)?;
                self.own(&parent, name, head)?;
            }
            EntryType::Fifo => {
                rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
                rustix::fs::chmodat(&parent, name, head.mode, AtFlags::empty())?;
                self.own(&parent, name, head)?;
            }
            EntryType::Block | EntryType::Char => return Err(Failed::Hostile("which is a device")),
            _ => return Err(Failed::Hostile("which is neither file, folder nor link")),
        }
        Ok(())
    }

    /// The folder of `path`, and the name in it.
    fn parent<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p Path), Failed> {
        let at = path.iter().rposition(|byte| *byte == b'/');
        let (folder, name) = at.map_or((b".".as_slice(), path), |at| (&path[..at], &path[at + 1..]));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat2(self.root, folder, flags, Mode::empty(), INSIDE)?;
        Ok((folder, Path::new(OsStr::from_bytes(name))))
    }

    /// Owner and time of what cannot be opened.
    fn own(&self, parent: &OwnedFd, name: &Path, head: &Head) -> Result<(), Failed> {
        let (uid, gid) = head.owner;
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(rustix::fs::utimensat(parent, name, &times(head), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn check_end(&self, entry: &mut impl Read) -> Result<(), ArchiveError> {
        let mut text = Vec::new();
        entry.take(MAX_HEADERS).read_to_end(&mut text).map_err(ArchiveError::Damaged)?;
        let said: Summary = serde_json::from_slice(&text).map_err(|error| ArchiveError::Damaged(error.into()))?;
        if (said.entries, said.bytes) != (self.summary.entries, self.summary.bytes) {
            return Err(ArchiveError::Damaged(io::Error::other("it holds not as much as its end says")));
        }
        Ok(())
    }

    /// Gives the folders their owners, permissions and times, the inner ones first.
    fn finish(self) -> Result<Summary, ArchiveError> {
        for (path, head) in self.folders.iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inside = if path.is_empty() { b".".as_slice() } else { path };
            let dress = || -> Result<(), Errno> {
                let folder = rustix::fs::openat2(self.root, inside, flags, Mode::empty(), INSIDE)?;
                dress(folder.as_fd(), head)
            };
            dress().map_err(|error| ArchiveError::Write { path: shown(path), source: error.into() })?;
        }
        Ok(self.summary)
    }
}

impl Head {
    fn copied(&self) -> Self {
        Self { path: Vec::new(), link: Vec::new(), attributes: self.attributes.clone(), ..*self }
    }
}

enum Failed {
    Read(io::Error),
    Write(Errno),
    Disk(io::Error),
    Hostile(&'static str),
}

impl From<Errno> for Failed {
    fn from(error: Errno) -> Self {
        Self::Write(error)
    }
}

fn times(head: &Head) -> Timestamps {
    Timestamps { last_access: head.modified, last_modification: head.modified }
}

/// Owner, attributes, permissions and time of what is open, in the order in which one does not undo the other.
fn dress(file: BorrowedFd<'_>, head: &Head) -> Result<(), Errno> {
    let (uid, gid) = head.owner;
    rustix::fs::fchown(file, Some(uid), Some(gid))?;
    rustix::fs::fchmod(file, head.mode)?;
    for (name, value) in &head.attributes {
        match rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            // The file system of the volume may have none.
            Err(Errno::NOTSUP) => {}
            set => set?,
        }
    }
    rustix::fs::futimens(file, &times(head))
}

/// Writes `size` bytes; blocks of zeros are passed over, so that holes stay holes.
fn pour(content: &mut impl Read, size: u64, file: &File) -> Result<(), Failed> {
    let mut buffer = vec![0; 64 << 10];
    let mut left = size;
    let mut at = 0;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        content.read_exact(&mut buffer[..wanted]).map_err(Failed::Read)?;
        // Whatever lies between two blocks of zeros at once.
        let mut run = None;
        for (i, block) in buffer[..wanted].chunks(BLOCK).enumerate() {
            match (block.iter().all(|byte| *byte == 0), run) {
                (false, None) => run = Some(i * BLOCK),
                (true, Some(from)) => {
                    file.write_all_at(&buffer[from..i * BLOCK], at + from as u64).map_err(Failed::Disk)?;
                    run = None;
                }
                (false, Some(_)) | (true, None) => {}
            }
        }
        if let Some(from) = run {
            file.write_all_at(&buffer[from..wanted], at + from as u64).map_err(Failed::Disk)?;
        }
        at += wanted as u64;
        left -= wanted as u64;
    }
    file.set_len(size).map_err(Failed::Disk)
}
