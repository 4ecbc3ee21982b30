//! Names of an archive as paths below a root.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use super::{Fault, Why, shown};

/// A name that says where it lies: no `/` at its begin, no `..`. Empty for the root itself.
pub fn strict(name: &[u8]) -> Result<PathBuf, Fault> {
    let refused = |why| Fault::Refused { path: shown(name), why };
    if name.starts_with(b"/") {
        return Err(refused(Why::Absolute));
    }
    let mut path = PathBuf::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refused(Why::LeadsOut)),
            part if part.contains(&0) => return Err(refused(Why::ZeroByte)),
            part => path.push(OsStr::from_bytes(part)),
        }
    }
    Ok(path)
}

/// A name counted from the root, which `..` may not leave. Empty for the root itself.
pub fn from_root(name: &[u8]) -> Result<PathBuf, Fault> {
    let refused = |why| Fault::Refused { path: shown(name), why };
    if name.contains(&0) {
        return Err(refused(Why::ZeroByte));
    }
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(name)).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::ParentDir if !path.pop() => return Err(refused(Why::LeadsOut)),
            _ => {}
        }
    }
    Ok(path)
}

/// The same of a link's target, which cannot leave the root.
pub(super) fn inside(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut cleaned, part| {
        match part {
            Component::Normal(part) => cleaned.push(part),
            Component::ParentDir => drop(cleaned.pop()),
            _ => {}
        }
        cleaned
    })
}
