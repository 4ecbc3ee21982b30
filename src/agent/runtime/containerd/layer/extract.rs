//! An archive becomes files below a directory.

use std::{
    collections::{BTreeSet, HashSet},
    ffi::OsStr,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, XattrFlags, makedev, mknodat, openat, setxattr, statat, syncfs},
    io::Errno,
};
use tar::EntryType;

use super::{Fault, OPAQUE, OVERLAY_ATTRIBUTES, ahead::Ahead, decode::Incoming};
use crate::agent::tree::{
    self, Attribute, Devices, Existing, Links, Made, Member, Members, Owner, Parents, Policy, Tree, Zeros, from_root,
};

/// How a name begins that hides one of a layer below.
const WHITEOUT: &[u8] = b".wh.";
/// A name that hides everything of its directory in the layers below.
const WHITEOUT_ALL: &[u8] = b".wh..wh..opq";
/// How names begin that an older file system kept for itself.
const WHITEOUT_OTHERS: &[u8] = b".wh..wh.";
/// Nobody else writes where a layer is unpacked, and the layer's links count there.
const POLICY: Policy = Policy {
    links: Links::Inside,
    existing: Existing::Replaced,
    parents: Parents::Made,
    devices: Devices::Made,
    owner: Owner::AsArchived,
    attributes: of_an_image,
    zeros: Zeros::Written,
};

/// Where a layer will lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Place {
    /// Nothing is below it, so there is nothing to hide.
    Lowest,
    /// Above others.
    Above,
}

/// A layer that became files.
#[derive(Debug, Clone)]
pub(in super::super) struct Extracted {
    /// Digest of the archive, `sha256:...`.
    pub(in super::super) diff_id: String,
    /// Directories that the layer does not describe but has files in, parents first. They look as in the layers below.
    pub(super) implied: BTreeSet<PathBuf>,
    /// Whether the layer describes its uppermost directory.
    pub(super) describes_root: bool,
    /// Whether it hides all that is below it.
    pub(super) hides_all: bool,
}

/// Writes a layer below `root`, an empty directory that nobody else writes into. Blocks.
pub(in super::super) fn extract(blob: Incoming, root: &Path, place: Place) -> Result<Extracted, Fault> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = openat(CWD, root, flags, Mode::empty()).map_err(|error| Fault::Disk(error.into()))?;
    let mut members = Members::new(Ahead::start(blob).map_err(Fault::Disk)?);
    let tree = Tree::new(root.as_fd(), POLICY)?;
    let mut layer = Layer { tree, place, describes_root: false, hides_all: false, hidden: HashSet::new() };
    let written = layer.take(&mut members);
    let mut rest = members.into_source();
    if rest.was_cut_off() {
        return Err(Fault::CutOff);
    }
    written?;
    // What follows the last file belongs to the digest too.
    if let Err(error) = io::copy(&mut rest, &mut io::sink()) {
        return Err(if rest.was_cut_off() { Fault::CutOff } else { tree::Fault::Unreadable(error).into() });
    }
    let (_, implied) = layer.tree.finish()?;
    let diff_id = rest.digest().ok_or(Fault::CutOff)?;
    // Here, where other layers are unpacked meanwhile; when they are moved there is little left to write.
    on_disk(&root)?;
    Ok(Extracted { diff_id, implied, describes_root: layer.describes_root, hides_all: layer.hides_all })
}

/// Waits until what was written into a directory is on the disk. Its snapshot is noted as whole afterwards, and that note
/// would survive a power cut without it: an image of empty files.
pub(super) fn on_disk(directory: impl AsFd) -> Result<(), Fault> {
    syncfs(directory).map_err(|error| Fault::Disk(error.into()))
}

/// Which attributes an image may give its files.
fn of_an_image(name: &str) -> Attribute {
    if name.starts_with(OVERLAY_ATTRIBUTES) { Attribute::LeftOut } else { Attribute::Kept }
}

/// A layer as far as it was written.
struct Layer {
    tree: Tree,
    place: Place,
    describes_root: bool,
    hides_all: bool,
    /// Names hidden so far.
    hidden: HashSet<PathBuf>,
}

impl Layer {
    fn take<R: Read>(&mut self, members: &mut Members<R>) -> Result<(), Fault> {
        while let Some(member) = members.next_member()? {
            self.add(&member, members)?;
        }
        Ok(())
    }

    fn add(&mut self, member: &Member, content: &mut impl Read) -> Result<(), Fault> {
        let path = from_root(&member.name)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            self.tree.describe_root(member)?;
            self.describes_root = true;
            return Ok(());
        };
        if let Some(hides) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.hide(&path, parent, hides);
        }
        let target = (member.kind == EntryType::Link).then(|| from_root(&member.link)).transpose()?;
        let made = self.tree.add(&path, target.as_deref(), member, content)?;
        // What was hidden is no more, but what is in it below is.
        if made == Made::Replaced && member.kind == EntryType::Directory && self.hidden.contains(&path) {
            let directory = self.tree.directory(parent)?;
            set_opaque(&directory, name).map_err(|error| at(&path, error))?;
        }
        Ok(())
    }

    /// Hides what the layers below have.
    fn hide(&mut self, path: &Path, parent: &Path, hides: &[u8]) -> Result<(), Fault> {
        if self.place == Place::Lowest {
            return Ok(());
        }
        let faults = |error: Errno| at(path, error);
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        if name == WHITEOUT_ALL && parent.as_os_str().is_empty() {
            self.hides_all = true;
            return Ok(());
        }
        let directory = self.tree.directory(parent)?;
        if name == WHITEOUT_ALL {
            return set_opaque(&directory, OsStr::new(".")).map_err(faults);
        }
        if name.starts_with(WHITEOUT_OTHERS) {
            return Ok(());
        }
        if matches!(hides, b"" | b"." | b"..") {
            let path = tree::shown(path.as_os_str().as_bytes());
            return Err(Fault::Layer(format!("`{path}` hides nothing that could be there")));
        }
        let hides = OsStr::from_bytes(hides);
        match mknodat(&directory, hides, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
            Ok(()) => {
                self.hidden.insert(parent.join(hides));
                Ok(())
            }
            // The layer has one of that name itself: only those below are meant.
            Err(Errno::EXIST) => {
                let there = statat(&directory, hides, AtFlags::SYMLINK_NOFOLLOW).map_err(faults)?;
                if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
                    set_opaque(&directory, hides).map_err(faults)?;
                }
                Ok(())
            }
            Err(error) => Err(faults(error)),
        }
    }
}

fn set_opaque(directory: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    setxattr(path, OPAQUE, b"y", XattrFlags::empty())
}

fn at(path: &Path, error: Errno) -> Fault {
    tree::Fault::Disk { path: tree::shown(path.as_os_str().as_bytes()), source: error.into() }.into()
}

impl From<tree::Fault> for Fault {
    fn from(fault: tree::Fault) -> Self {
        use tree::Fault as F;
        let errno = fault.errno();
        match fault {
            F::Disk { path, source } => match errno {
                // Names that cannot be are the layer's fault.
                Some(
                    Errno::NOTDIR
                    | Errno::NAMETOOLONG
                    | Errno::LOOP
                    | Errno::INVAL
                    | Errno::NOENT
                    | Errno::PERM
                    | Errno::ISDIR,
                ) => Self::Layer(format!("`{path}`: {source}")),
                _ => Self::Disk(source),
            },
            F::Unwritable(source) => Self::Disk(source),
            F::CutOff | F::NoArchive | F::Damaged(_) | F::LongName => {
                Self::Layer(format!("it cannot be read: {fault}"))
            }
            F::Unreadable(_) | F::TooMuch | F::Refused { .. } => Self::Layer(fault.to_string()),
        }
    }
}
