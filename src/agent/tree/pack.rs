//! From files to an archive, read while they may change: whatever happens, the archive is well-formed.

use std::{
    collections::HashMap,
    ffi::{CStr, OsStr},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{
        Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, fstat, fstatfs, open, openat, openat2, readlinkat,
    },
    io::Errno,
};
use tar::{Builder, EntryType, Header};

use super::{
    Fault, Why,
    attributes::{RECORD, attributes_of, through},
    member::time_text,
    sparse::{Sparse, Stretches},
};

/// Directories in directories that are open at once; deeper ones are come back to.
const MOST_OPEN: usize = 64;
/// Longest name in an archive, in bytes; the kernel's limit.
const LONGEST_NAME: usize = 4095;
/// Bytes of a name or of the target of a link that fit into a header.
const NAME_BYTES: usize = 100;
/// Bytes of what is remembered: names of files that have several, and deep directories.
const MOST_REMEMBERED: usize = 128 << 20;
/// Name in the header of a file with holes, as GNU tar writes it; the file's own is among its attributes.
const SPARSE_NAME: &[u8] = b"GNUSparseFile.0/";
/// File systems in which the kernel speaks of itself, and which have no end: proc, sysfs, cgroup of both versions, devpts,
/// mqueue, debugfs, tracefs, securityfs, bpf.
const VIRTUAL: [u64; 10] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
];

/// What differs between those who pack.
#[derive(Debug, Clone, Copy)]
pub struct Packing {
    /// Other file systems in a tree.
    pub mounts: Mounts,
    /// Whether holes of files are left out, rather than written as zeros.
    pub sparse: bool,
}

/// What becomes of file systems that are mounted in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounts {
    /// What is on them is packed, unless the kernel makes it up.
    Entered,
    /// The directory alone is.
    LeftOut,
}

/// How much was packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Devices and sockets that were left out.
    pub left_out: u64,
}

/// Writes an archive.
pub struct Packer<W: Write> {
    tar: Builder<W>,
    how: Packing,
    packed: Packed,
    /// Where a file with several names was met first, and how many names of it are to come.
    links: HashMap<(u64, u64), (Vec<u8>, usize)>,
    remembered: usize,
}

/// A file to be written.
struct Entry<'a> {
    name: &'a [u8],
    told: &'a Stat,
    kind: EntryType,
    link: &'a [u8],
    attributes: &'a [(String, Vec<u8>)],
}

/// A directory that is being read.
struct Open {
    list: Dir,
    directory: OwnedFd,
    /// Path below the tree's own directory; empty for that.
    path: Vec<u8>,
}

impl<W: Write> Packer<W> {
    /// To `out`.
    pub fn new(out: W, how: Packing) -> Self {
        Self { tar: Builder::new(out), how, packed: Packed::default(), links: HashMap::new(), remembered: 0 }
    }

    /// Writes something of the packer's own, which does not count.
    pub fn note(&mut self, name: &str, content: &[u8]) -> Result<(), Fault> {
        let mut header = Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        self.tar.append_data(&mut header, name, content).map_err(Fault::Unwritable)
    }

    /// Writes what is open (as a path at least) under a name; a directory with everything in it. Devices and sockets are
    /// left out.
    pub fn add(&mut self, file: &OwnedFd, name: &[u8]) -> Result<(), Fault> {
        if !self.one(file, name)? {
            return Ok(());
        }
        let shown = Path::new(OsStr::from_bytes(name));
        let device = fstat(file).map_err(|error| Fault::at(shown, error))?.st_dev;
        // Deep directories are found again by their path below the first.
        let mut deep = vec![Vec::new()];
        while let Some(path) = deep.pop() {
            self.remembered -= path.len().min(self.remembered);
            let Some(first) = beneath(file, &path).map_err(|error| Fault::at(shown, error))? else { continue };
            self.tree(first, path, name, device, &mut deep)?;
        }
        Ok(())
    }

    /// How much was packed.
    pub fn packed(&self) -> Packed {
        self.packed
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<W, Fault> {
        self.tar.into_inner().map_err(Fault::Unwritable)
    }

    fn tree(
        &mut self,
        first: OwnedFd,
        path: Vec<u8>,
        name: &[u8],
        device: u64,
        deep: &mut Vec<Vec<u8>>,
    ) -> Result<(), Fault> {
        let mut open: Vec<Open> = self.enter(first, path, device)?.into_iter().collect();
        while let Some(last) = open.last_mut() {
            let Some(entry) = last.list.next() else {
                open.pop();
                continue;
            };
            let failed = |error| Fault::at(Path::new(OsStr::from_bytes(&last.path)), error);
            let entry = entry.map_err(failed)?;
            let own = entry.file_name();
            if matches!(own.to_bytes(), b"." | b"..") {
                continue;
            }
            let Some(child) = child(&last.directory, own).map_err(failed)? else { continue };
            let path = joined(&last.path, own.to_bytes());
            if self.one(&child, &joined(name, &path))? {
                if open.len() < MOST_OPEN {
                    open.extend(self.enter(child, path, device)?);
                } else {
                    self.remember(path.len(), &path)?;
                    deep.push(path);
                }
            }
        }
        Ok(())
    }

    /// Begins to read a directory, if what is in it is packed.
    fn enter(&self, file: OwnedFd, path: Vec<u8>, device: u64) -> Result<Option<Open>, Fault> {
        let open = || {
            let inside = match self.how.mounts {
                Mounts::Entered => !VIRTUAL.contains(&(fstatfs(&file)?.f_type as u64)),
                Mounts::LeftOut => fstat(&file)?.st_dev == device,
            };
            if !inside {
                return Ok(None);
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = openat(&file, ".", flags, Mode::empty())?;
            Ok(Some((Dir::read_from(&directory)?, directory)))
        };
        let opened = open().map_err(|error| Fault::at(Path::new(OsStr::from_bytes(&path)), error))?;
        Ok(opened.map(|(list, directory)| Open { list, directory, path }))
    }

    fn remember(&mut self, bytes: usize, path: &[u8]) -> Result<(), Fault> {
        self.remembered += bytes;
        if self.remembered > MOST_REMEMBERED {
            return Err(Fault::refused(Path::new(OsStr::from_bytes(path)), Why::TooDeep));
        }
        Ok(())
    }

    /// Writes one file; `true` for a directory, whose content is to follow.
    fn one(&mut self, file: &OwnedFd, name: &[u8]) -> Result<bool, Fault> {
        let shown = Path::new(OsStr::from_bytes(name));
        if name.len() > LONGEST_NAME {
            return Err(Fault::refused(shown, Why::TooDeep));
        }
        let failed = |error: Errno| Fault::at(shown, error);
        let told = fstat(file).map_err(failed)?;
        let kind = FileType::from_raw_mode(told.st_mode);
        if kind != FileType::Directory && told.st_nlink > 1 && self.again(&told, name)? {
            return Ok(false);
        }
        let mut entry = Entry { name, told: &told, kind: EntryType::Regular, link: &[], attributes: &[] };
        match kind {
            FileType::Directory => {
                entry.kind = EntryType::Directory;
                let attributes = attributes_of(file).map_err(failed)?;
                self.put(&Entry { attributes: &attributes, ..entry }, 0, io::empty())?;
                return Ok(true);
            }
            FileType::RegularFile => self.file(file, entry)?,
            FileType::Symlink => {
                entry.kind = EntryType::Symlink;
                let target = readlinkat(file, "", Vec::new()).map_err(failed)?;
                self.put(&Entry { link: target.as_bytes(), ..entry }, 0, io::empty())?;
            }
            FileType::Fifo => {
                entry.kind = EntryType::Fifo;
                self.put(&entry, 0, io::empty())?;
            }
            _ => {
                self.packed.left_out += 1;
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Writes a further name of a file that was met before. Takes note of one that was not.
    fn again(&mut self, told: &Stat, name: &[u8]) -> Result<bool, Fault> {
        let id = (told.st_dev, told.st_ino);
        if let Some((first, left)) = self.links.get_mut(&id) {
            let first = first.clone();
            *left -= 1;
            if *left == 0 {
                self.links.remove(&id);
                self.remembered -= first.len().min(self.remembered);
            }
            self.put(&Entry { name, told, kind: EntryType::Link, link: &first, attributes: &[] }, 0, io::empty())?;
            return Ok(true);
        }
        // When there are too many, a further name is a file of its own.
        let packed = !matches!(
            FileType::from_raw_mode(told.st_mode),
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Socket
        );
        let names = usize::try_from(told.st_nlink).unwrap_or(usize::MAX);
        if packed && self.remembered + name.len() <= MOST_REMEMBERED {
            self.remembered += name.len();
            self.links.insert(id, (name.to_vec(), names - 1));
        }
        Ok(false)
    }

    fn file(&mut self, file: &OwnedFd, entry: Entry<'_>) -> Result<(), Fault> {
        let failed = |error: Errno| Fault::at(Path::new(OsStr::from_bytes(entry.name)), error);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let content = File::from(open(through(file), flags, Mode::empty()).map_err(failed)?);
        let attributes = attributes_of(&content).map_err(failed)?;
        let size = u64::try_from(entry.told.st_size).unwrap_or(0);
        let has_holes = u64::try_from(entry.told.st_blocks).unwrap_or(0).saturating_mul(512) < size;
        let sparse = match self.how.sparse && has_holes {
            true => Sparse::of_file(&content, size).map_err(failed)?,
            false => None,
        };
        self.packed.bytes += size;
        let entry = Entry { attributes: &attributes, ..entry };
        match sparse {
            None => {
                let stretches = Stretches { file: &content, left: [(0, size)].into() };
                self.put(&entry, size, stretches)
            }
            Some(sparse) => self.sparse(&entry, &content, sparse),
        }
    }

    /// Writes a file with holes as GNU tar does, its map first.
    fn sparse(&mut self, entry: &Entry<'_>, content: &File, sparse: Sparse) -> Result<(), Fault> {
        let map = sparse.leading();
        let stored = map.len() as u64 + sparse.stored();
        let mut attributes = vec![
            ("GNU.sparse.major".to_owned(), b"1".to_vec()),
            ("GNU.sparse.minor".to_owned(), b"0".to_vec()),
            ("GNU.sparse.name".to_owned(), entry.name.to_vec()),
            ("GNU.sparse.realsize".to_owned(), sparse.size.to_string().into_bytes()),
        ];
        attributes.extend(records(entry.attributes));
        let last = entry.name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = [SPARSE_NAME, &last[..last.len().min(NAME_BYTES - SPARSE_NAME.len())]].concat();
        let content = map.as_slice().chain(Stretches { file: content, left: sparse.stretches.into() });
        self.write(&Entry { name: &name, attributes: &[], ..*entry }, attributes, stored, content)
    }

    fn put(&mut self, entry: &Entry<'_>, size: u64, content: impl Read) -> Result<(), Fault> {
        self.write(entry, records(entry.attributes), size, content)
    }

    fn write(
        &mut self,
        entry: &Entry<'_>,
        mut further: Vec<(String, Vec<u8>)>,
        size: u64,
        content: impl Read,
    ) -> Result<(), Fault> {
        let told = entry.told;
        let failed = |error| Fault::io(Path::new(OsStr::from_bytes(entry.name)), error);
        let modified = Timespec { tv_sec: told.st_mtime, tv_nsec: told.st_mtime_nsec as i64 };
        if modified.tv_nsec != 0 || modified.tv_sec < 0 {
            further.push(("mtime".to_owned(), time_text(modified).into_bytes()));
        }
        if entry.name.len() > NAME_BYTES {
            further.push(("path".to_owned(), entry.name.to_vec()));
        }
        if entry.link.len() > NAME_BYTES {
            further.push(("linkpath".to_owned(), entry.link.to_vec()));
        }
        if !further.is_empty() {
            let further = further.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.tar.append_pax_extensions(further).map_err(failed)?;
        }
        let mut header = Header::new_ustar();
        let fill = |field: &mut [u8; NAME_BYTES], bytes: &[u8]| {
            let length = bytes.len().min(NAME_BYTES);
            field[..length].copy_from_slice(&bytes[..length]);
        };
        fill(&mut header.as_old_mut().name, entry.name);
        fill(&mut header.as_old_mut().linkname, entry.link);
        header.set_entry_type(entry.kind);
        header.set_size(size);
        header.set_mode(told.st_mode & 0o7777);
        header.set_uid(told.st_uid.into());
        header.set_gid(told.st_gid.into());
        header.set_mtime(u64::try_from(told.st_mtime).unwrap_or(0));
        header.set_cksum();
        self.tar.append(&header, content).map_err(failed)?;
        self.packed.entries += 1;
        Ok(())
    }
}

/// Attributes as they stand among what is said about a file.
fn records(attributes: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    attributes.iter().map(|(name, value)| (format!("{RECORD}{name}"), value.clone())).collect()
}

fn joined(parent: &[u8], name: &[u8]) -> Vec<u8> {
    match (parent, name) {
        (b"", path) | (path, b"") => path.to_vec(),
        (b".", path) => path.to_vec(),
        (parent, name) => [parent, b"/", name].concat(),
    }
}

/// A file in a directory that is read; nothing when it went since it was listed.
fn child(directory: &OwnedFd, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(directory, name, flags, Mode::empty()) {
        Ok(child) => Ok(Some(child)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A directory below an open one; nothing when it went, or became something else, since it was seen.
fn beneath(root: &OwnedFd, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let path = if path.is_empty() { b".".as_slice() } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(root.as_fd(), path, flags, Mode::empty(), how) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
        Err(error) => Err(error),
    }
}
