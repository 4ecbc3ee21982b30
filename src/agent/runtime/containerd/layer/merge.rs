//! A layer that lies alone becomes the uppermost one of others.

use std::{
    ffi::{CStr, OsStr},
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown,
        fstat, futimens, getxattr, listxattr, lsetxattr, makedev, mknodat, openat, openat2, renameat, setxattr,
    },
    io::Errno,
};

use super::{Extracted, Fault, OPAQUE, OVERLAY_ATTRIBUTES, extract::on_disk};

/// Largest attribute that Linux has.
const MOST_ATTRIBUTE_BYTES: usize = 64 << 10;

/// Moves what was extracted below `from` to `to`, the empty uppermost directory of an overlay above `lower`, of which the
/// first is the highest. All of them lie on one file system. Blocks.
pub(in super::super) fn merge(extracted: &Extracted, from: &Path, to: &Path, lower: &[PathBuf]) -> Result<(), Fault> {
    let layers = lower.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>().map_err(disk)?;
    let (source, target) = (open(from).map_err(disk)?, open(to).map_err(disk)?);
    for path in &extracted.implied {
        if let Some(below) = below(&layers, path).map_err(disk)? {
            let directory = openat2(&source, path, DIRECTORY, Mode::empty(), NO_LINKS).map_err(disk)?;
            copy_description(&below, &directory).map_err(disk)?;
        }
    }
    let root = fstat(&source).map_err(disk)?;
    for entry in fs::read_dir(from).map_err(Fault::Disk)? {
        let name = entry.map_err(Fault::Disk)?.file_name();
        renameat(&source, &name, &target, &name).map_err(disk)?;
    }
    if extracted.hides_all {
        hide_all(lower, &target)?;
    }
    if extracted.describes_root {
        copy_description(&source, &target).map_err(disk)?;
        // Moving its files has changed its time.
        futimens(&target, &times(&root)).map_err(disk)?;
    }
    on_disk(&target)
}

/// Hides everything of the layers below. overlayfs looks at no attribute of the uppermost directory, so each name in it is
/// hidden by itself.
fn hide_all(lower: &[PathBuf], target: &OwnedFd) -> Result<(), Fault> {
    for layer in lower {
        for entry in fs::read_dir(layer).map_err(Fault::Disk)? {
            let name = entry.map_err(Fault::Disk)?.file_name();
            match mknodat(target, &name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
                Ok(()) => {}
                Err(Errno::EXIST) => match openat2(target, &name, DIRECTORY, Mode::empty(), NO_LINKS) {
                    Ok(own) => setxattr(shown(&own), OPAQUE, b"y", XattrFlags::empty()).map_err(disk)?,
                    // No directory: it hides by being there.
                    Err(Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => return Err(disk(error)),
                },
                Err(error) => return Err(disk(error)),
            }
        }
    }
    Ok(())
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);
const NO_LINKS: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, DIRECTORY, Mode::empty())
}

/// The directory that an overlay of these layers shows at `path`.
fn below(layers: &[OwnedFd], path: &Path) -> Result<Option<OwnedFd>, Errno> {
    for layer in layers {
        let mut hides = is_opaque(layer);
        let mut reached = PathBuf::new();
        let mut directory = None;
        for name in path {
            reached.push(name);
            directory = match openat2(layer, &reached, DIRECTORY, Mode::empty(), NO_LINKS) {
                Ok(directory) => Some(directory),
                Err(Errno::NOENT) => None,
                // Something else is there, or a whiteout: what is below it is hidden.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(error) => return Err(error),
            };
            match &directory {
                Some(directory) => hides |= is_opaque(directory),
                None => break,
            }
        }
        if directory.is_some() {
            return Ok(directory);
        }
        if hides {
            return Ok(None);
        }
    }
    Ok(None)
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0; 1];
    getxattr(shown(directory), OPAQUE, &mut value).is_ok_and(|length| length == 1 && value == *b"y")
}

fn copy_description(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let there = fstat(from)?;
    fchown(to, Some(Uid::from_raw(there.st_uid)), Some(Gid::from_raw(there.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(there.st_mode))?;
    let mut names = vec![0; MOST_ATTRIBUTE_BYTES];
    let length = match listxattr(shown(from), &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error),
    };
    let mut value = vec![0; MOST_ATTRIBUTE_BYTES];
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if name.to_bytes().starts_with(OVERLAY_ATTRIBUTES.as_bytes()) {
            continue;
        }
        let length = getxattr(shown(from), name, &mut value[..])?;
        lsetxattr(shown(to), name, &value[..length], XattrFlags::empty())?;
    }
    futimens(to, &times(&there))
}

fn times(of: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as i64 };
    Timestamps {
        last_access: time(of.st_atime, of.st_atime_nsec),
        last_modification: time(of.st_mtime, of.st_mtime_nsec),
    }
}

/// A path to an open directory, for calls that take no directory.
fn shown(directory: &OwnedFd) -> PathBuf {
    let number = directory.as_raw_fd().to_string();
    Path::new("/proc/self/fd").join(OsStr::from_bytes(number.as_bytes())).join(".")
}

fn disk(error: Errno) -> Fault {
    Fault::Disk(error.into())
}
