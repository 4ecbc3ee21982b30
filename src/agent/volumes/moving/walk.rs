//! Reads what a tree is.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat},
    io::Errno,
};

use super::{
    MoveError,
    entry::{Entry, Kind, as_path, place},
    incoming::MARK,
};
use crate::agent::tree::attributes_of;

/// Files with several names that are remembered; of what is beyond, each name is a file of its own.
const MOST_LINKS: usize = 1_000_000;

/// What is beneath the root at `path`, no link on the way followed.
pub(super) fn beneath(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, as_path(path), flags | OFlags::CLOEXEC, Mode::empty(), how)
}

/// The names in a directory in the order of their bytes.
pub(super) fn names(directory: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}

/// What vanished, or became something else, while it was looked at.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
}

/// Names everything below a root, and it first. What goes meanwhile is passed over; what lies on another file system is left
/// out, its directory stays.
pub(super) fn walk(
    root: impl AsFd + Copy,
    each: &mut dyn FnMut(Entry) -> Result<(), MoveError>,
) -> Result<(), MoveError> {
    let own = fstat(root).map_err(MoveError::here(b""))?;
    let mut links: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let attributes = attributes(root).map_err(MoveError::here(b""))?;
    each(described(Vec::new(), Kind::Directory, &own, attributes))?;
    let mut open = vec![(Vec::new(), names_at(root, b"")?.into_iter())];
    while let Some((directory, names)) = open.last_mut() {
        let Some(name) = names.next() else {
            open.pop();
            continue;
        };
        let path = if directory.is_empty() { name } else { [directory.as_slice(), b"/", &name].concat() };
        let Some((entry, device)) = look(root, path, &mut links)? else { continue };
        let inside = (entry.kind == Kind::Directory && device == own.st_dev).then(|| entry.path.clone());
        each(entry)?;
        if let Some(path) = inside {
            let names = names_at(root, &path)?;
            open.push((path, names.into_iter()));
        }
    }
    Ok(())
}

fn names_at(root: impl AsFd, path: &[u8]) -> Result<Vec<Vec<u8>>, MoveError> {
    match beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY).and_then(|directory| names(&directory)) {
        Err(error) if is_gone(error) => Ok(Vec::new()),
        found => found.map_err(MoveError::here(path)),
    }
}

/// What is at a path, and on which device.
fn look(
    root: impl AsFd + Copy,
    path: Vec<u8>,
    links: &mut HashMap<(u64, u64), Vec<u8>>,
) -> Result<Option<(Entry, u64)>, MoveError> {
    let looked = || -> Result<Option<(Entry, Stat)>, Errno> {
        let (parent, name) = place(&path).unwrap_or_default();
        let parent = beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let open = openat(&parent, as_path(name), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let told = fstat(&open)?;
        let kind = match FileType::from_raw_mode(told.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink(readlinkat(&open, "", Vec::new())?.into_bytes()),
            FileType::RegularFile => Kind::File(u64::try_from(told.st_size).unwrap_or(0)),
            FileType::Fifo => Kind::Pipe,
            _ => return Ok(None),
        };
        let attributes = if matches!(kind, Kind::Symlink(_)) { Vec::new() } else { attributes(&open)? };
        Ok(Some((described(path.clone(), kind, &told, attributes), told)))
    };
    let (mut entry, told) = match looked() {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        Err(error) if is_gone(error) => return Ok(None),
        Err(error) => return Err(MoveError::here(&path)(error)),
    };
    if entry.kind != Kind::Directory && told.st_nlink > 1 {
        let id = (told.st_dev, told.st_ino);
        match links.get(&id) {
            Some(first) => entry.kind = Kind::Link(first.clone()),
            None if links.len() < MOST_LINKS => drop(links.insert(id, entry.path.clone())),
            None => {}
        }
    }
    Ok(Some((entry, told.st_dev)))
}

fn attributes(file: impl AsFd) -> Result<Vec<(String, Vec<u8>)>, Errno> {
    let mut attributes = attributes_of(file)?;
    attributes.retain(|(name, _)| name != MARK);
    Ok(attributes)
}

fn described(path: Vec<u8>, kind: Kind, told: &Stat, attributes: Vec<(String, Vec<u8>)>) -> Entry {
    Entry {
        path,
        kind,
        mode: told.st_mode & 0o7777,
        uid: told.st_uid,
        gid: told.st_gid,
        modified: (told.st_mtime, u32::try_from(told.st_mtime_nsec).unwrap_or(0)),
        attributes,
    }
}
