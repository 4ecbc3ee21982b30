//! Extended attributes of files.

use std::{
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
};

use rustix::io::Errno;

/// How extended attributes are called in PAX headers, as tar programs do.
pub(super) const RECORD: &str = "SCHILY.xattr.";
/// What new files in a directory get.
pub(super) const DEFAULT_LIST: &str = "system.posix_acl_default";
/// Most bytes of one attribute, and of the names of all of one file: the kernel's own limits.
const MOST_BYTES: usize = 64 << 10;

/// What becomes of an attribute that an archive has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// The file gets it, if its file system has such.
    Kept,
    /// It is passed over.
    LeftOut,
    /// The archive is refused.
    Refused,
}

/// Whether an attribute means the same on another machine: users' own, capabilities of programs, and access lists.
pub fn portable(name: &str) -> bool {
    name.starts_with("user.") || matches!(name, "security.capability" | "system.posix_acl_access" | DEFAULT_LIST)
}

/// The portable attributes of what is open, by name. It may be open as a path only, but not be a link.
pub fn attributes_of(file: impl AsFd) -> Result<Vec<(String, Vec<u8>)>, Errno> {
    let path = through(file.as_fd());
    let mut list = Vec::new();
    // Most files have none, which is found out without room for any.
    match rustix::fs::listxattr_query(&path) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Ok(_) => list.reserve(MOST_BYTES),
        Err(error) => return Err(error),
    }
    rustix::fs::listxattr(&path, rustix::buffer::spare_capacity(&mut list))?;
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if !portable(name) {
            continue;
        }
        let mut value = Vec::with_capacity(MOST_BYTES);
        match rustix::fs::getxattr(&path, name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => {
                value.shrink_to_fit();
                found.push((name.to_owned(), value));
            }
            // It went between being listed and being read.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort();
    Ok(found)
}

/// A path to what is open, for calls that take no descriptor, or none that was opened as a path only.
pub(super) fn through(file: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}
