//! From a tree to a stream.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use tar::{Builder, EntryType, Header};

use super::{END, MANIFEST, MAX_PATH, Manifest, Summary, TREE, XATTR};

/// Beneath the root, through folders only.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// Bytes of a name or of the target of a link that fit into a header.
const NAME_BYTES: usize = 100;

/// Writes the tree of folder `root` to `out`. What changes meanwhile is in it as it was when it was passed by; what
/// lies on another file system is left out, its folder stays.
pub fn write<W: Write>(root: BorrowedFd<'_>, manifest: &Manifest, out: W) -> io::Result<(Summary, W)> {
    let mut walk = Walk { root, tar: Builder::new(out), summary: Summary::default(), links: HashMap::new() };
    let text = serde_json::to_vec(manifest)?;
    walk.own(MANIFEST, &text)?;
    walk.tree()?;
    let summary = walk.summary;
    walk.own(END, &serde_json::to_vec(&summary)?)?;
    Ok((summary, walk.tar.into_inner()?))
}

struct Walk<'a, W: Write> {
    root: BorrowedFd<'a>,
    tar: Builder<W>,
    summary: Summary,
    /// Where a file with several names was met first.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Walk<'_, W> {
    /// An entry of ours.
    fn own(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        self.tar.append_data(&mut header, name, content)
    }

    fn tree(&mut self) -> io::Result<()> {
        let stat = rustix::fs::fstat(self.root)?;
        let own =
            rustix::fs::openat(self.root, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        self.entry(TREE.as_bytes(), &stat, EntryType::Directory, &attributes(&own)?, None)?;
        let device = stat.st_dev;
        // Paths below the root, not descriptors: a tree can be deeper than there are descriptors.
        let mut open: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(path) = open.pop() {
            let Some(dir) = self.open(&path, OFlags::DIRECTORY)? else { continue };
            if rustix::fs::fstat(&dir)?.st_dev != device {
                continue;
            }
            let mut names = names(&dir)?;
            names.sort();
            let mut folders = Vec::new();
            for name in names {
                let mut inside = path.clone();
                if !inside.is_empty() {
                    inside.push(b'/');
                }
                inside.extend_from_slice(name.as_bytes());
                if TREE.len() + 1 + inside.len() > MAX_PATH {
                    return Err(io::Error::other("a path in the volume is longer than 4095 bytes"));
                }
                if self.one(&dir, &name, &inside)? {
                    folders.push(inside);
                }
            }
            folders.reverse();
            open.append(&mut folders);
        }
        Ok(())
    }

    /// Writes one file; `true` for a folder, whose content is to follow.
    fn one(&mut self, dir: &OwnedFd, name: &CStr, inside: &[u8]) -> io::Result<bool> {
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            stat => stat?,
        };
        let path = [TREE.as_bytes(), b"/", inside].concat();
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let known = self.links.get(&(stat.st_dev, stat.st_ino)).cloned();
            if let Some(first) = known {
                self.entry(&path, &stat, EntryType::Link, &[], Some(&first))?;
                return Ok(false);
            }
        }
        match kind {
            FileType::Directory => {
                let Some(folder) = self.open(inside, OFlags::DIRECTORY)? else { return Ok(false) };
                self.entry(&path, &stat, EntryType::Directory, &attributes(&folder)?, None)?;
                return Ok(true);
            }
            FileType::RegularFile => {
                let Some(file) = self.open(inside, OFlags::NONBLOCK)? else { return Ok(false) };
                self.file(&path, file)?;
            }
            FileType::Symlink => {
                let target = match rustix::fs::readlinkat(dir, name, Vec::new()) {
                    Err(Errno::NOENT) => return Ok(false),
                    target => target?,
                };
                self.entry(&path, &stat, EntryType::Symlink, &[], Some(target.as_bytes()))?;
            }
            FileType::Fifo => self.entry(&path, &stat, EntryType::Fifo, &[], None)?,
            _ => {
                self.summary.left_out += 1;
                return Ok(false);
            }
        }
        if stat.st_nlink > 1 {
            self.links.insert((stat.st_dev, stat.st_ino), path);
        }
        Ok(false)
    }

    fn open(&self, inside: &[u8], flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let path = if inside.is_empty() { b".".as_slice() } else { inside };
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat2(self.root, path, flags, Mode::empty(), INSIDE) {
            // It went, or became something else, since it was seen.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
            opened => Ok(Some(opened?)),
        }
    }

    fn file(&mut self, path: &[u8], file: OwnedFd) -> io::Result<()> {
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let attributes = attributes(&file)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        // A file that is written to may shrink or grow: as many bytes follow as its header says.
        let content = File::from(file).chain(io::repeat(0)).take(size);
        self.put(path, &stat, EntryType::Regular, &attributes, None, (size, content))?;
        self.summary.bytes += size;
        Ok(())
    }

    fn entry(
        &mut self,
        path: &[u8],
        stat: &Stat,
        kind: EntryType,
        attributes: &[(String, Vec<u8>)],
        link: Option<&[u8]>,
    ) -> io::Result<()> {
        self.put(path, stat, kind, attributes, link, (0, io::empty()))
    }

    fn put(
        &mut self,
        path: &[u8],
        stat: &Stat,
        kind: EntryType,
        attributes: &[(String, Vec<u8>)],
        link: Option<&[u8]>,
        (size, content): (u64, impl Read),
    ) -> io::Result<()> {
        let mtime = format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
        let mut further: Vec<(&str, &[u8])> = vec![("mtime", mtime.as_bytes())];
        if path.len() > NAME_BYTES {
            further.push(("path", path));
        }
        if let Some(link) = link.filter(|link| link.len() > NAME_BYTES) {
            further.push(("linkpath", link));
        }
        let named: Vec<String> = attributes.iter().map(|(name, _)| format!("{XATTR}{name}")).collect();
        further.extend(named.iter().zip(attributes).map(|(name, (_, value))| (name.as_str(), value.as_slice())));
        self.tar.append_pax_extensions(further)?;
        let mut header = Header::new_gnu();
        let fill = |field: &mut [u8; NAME_BYTES], bytes: &[u8]| {
            let length = bytes.len().min(NAME_BYTES);
            field[..length].copy_from_slice(&bytes[..length]);
        };
        fill(&mut header.as_old_mut().name, path);
        fill(&mut header.as_old_mut().linkname, link.unwrap_or_default());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_cksum();
        self.tar.append(&header, content)?;
        self.summary.entries += 1;
        Ok(())
    }
}

fn names(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

/// The extended attributes that a backup holds: users' own, capabilities of programs, and access lists.
fn attributes(file: &OwnedFd) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut list = Vec::with_capacity(64 << 10);
    match rustix::fs::flistxattr(file.as_fd(), rustix::buffer::spare_capacity(&mut list)) {
        // Not every file system has them.
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        listed => listed?,
    };
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if !super::read::may_have(name) {
            continue;
        }
        let mut value = Vec::with_capacity(64 << 10);
        match rustix::fs::fgetxattr(file.as_fd(), name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => found.push((name.to_owned(), value)),
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.sort();
    Ok(found)
}
