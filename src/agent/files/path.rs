//! Paths below a root: resolved by the kernel, which takes the root for `/` whatever links say.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, readlinkat},
    io::Errno,
};
use toft_model::files::{FileKind, FileStat, LONGEST_PATH};

use super::FileError;

/// How often a path is tried that is being moved under way.
const TRIES: u32 = 128;

/// Opens what a path leads to, without reading it. A link at its end is followed on demand, or when the path goes on
/// behind it.
pub(super) fn open(root: BorrowedFd<'_>, path: &str, follow: bool) -> Result<OwnedFd, FileError> {
    let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
    resolve(root, path, flags)
}

/// Opens a directory, to make files in it.
pub fn open_dir(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, FileError> {
    resolve(root, path, OFlags::PATH | OFlags::DIRECTORY)
}

fn resolve(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, FileError> {
    check(path)?;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            // Something was renamed while `..` was resolved.
            Err(Errno::AGAIN) => {}
            outcome => return outcome.map_err(|errno| FileError::at(path, errno)),
        }
    }
    Err(FileError::at(path, Errno::AGAIN))
}

fn check(path: &str) -> Result<(), FileError> {
    let reason = match path {
        "" => "the path is empty",
        path if path.len() > LONGEST_PATH => "the path is longer than 4096 bytes",
        path if path.contains('\0') => "the path holds a zero byte",
        _ => return Ok(()),
    };
    Err(FileError::refused(reason))
}

/// The name under which what a path leads to travels: its last part, or `.` for a directory's content.
pub(super) fn name_of(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit('/').next().unwrap_or_default() {
        "" | ".." => ".",
        name => name,
    }
}

/// Looks at what a path leads to.
pub fn stat(root: BorrowedFd<'_>, path: &str, follow: bool) -> Result<FileStat, FileError> {
    let file = open(root, path, follow)?;
    let told = fstat(&file).map_err(|errno| FileError::at(path, errno))?;
    let kind = kind(&told);
    let target = match kind {
        FileKind::Link => {
            Some(link_target(file.as_fd(), path)?).map(|target| String::from_utf8_lossy(&target).into_owned())
        }
        FileKind::File | FileKind::Directory | FileKind::Other => None,
    };
    Ok(FileStat {
        name: name_of(path).to_owned(),
        kind,
        size_bytes: u64::try_from(told.st_size).unwrap_or(0),
        mode: told.st_mode & 0o7777,
        modified_at_ms: told.st_mtime.saturating_mul(1_000),
        target,
    })
}

pub(super) fn kind(told: &Stat) -> FileKind {
    match FileType::from_raw_mode(told.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Link,
        _ => FileKind::Other,
    }
}

/// Where a link leads that was opened itself.
pub(super) fn link_target(link: BorrowedFd<'_>, path: &str) -> Result<Vec<u8>, FileError> {
    Ok(readlinkat(link, "", Vec::new()).map_err(|errno| FileError::at(path, errno))?.into_bytes())
}
