//! Paths that others can change, opened so that they lead nowhere else, and held fast while a container is made.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags},
};
use toft_model::{ids::InstanceId, name::Name};

use super::{VolumeError, mountinfo};

/// Opens a folder by a path that nobody else can change.
pub(super) fn folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens `inside` as somebody whose root is `root` would.
pub(super) fn in_root(root: &OwnedFd, inside: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(again(|| rustix::fs::openat2(root, inside, flags, Mode::empty(), resolve))?)
}

/// Opens what lies below `root`; links that lead out of it are refused.
pub(super) fn beneath(root: &OwnedFd, inside: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    Ok(again(|| rustix::fs::openat2(root, inside, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve))?)
}

/// The kernel cannot always tell, while something is moved.
fn again<T>(mut open: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..16 {
        match open() {
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens a path of the node that lies below one of `roots`, whichever links lead to it.
pub(super) fn allowed(node: &Name, roots: &[PathBuf], path: &Path) -> Result<OwnedFd, VolumeError> {
    let not_allowed = || VolumeError::NotAllowed { node: node.clone(), path: path.to_owned() };
    let no_source = |source: io::Error| VolumeError::NoSource { node: node.clone(), path: path.to_owned(), source };
    if roots.is_empty() {
        return Err(not_allowed());
    }
    let real = fs::canonicalize(path).map_err(|error| match error.kind() {
        // Whether it is there is nobody's business who may not see it.
        _ if !roots.iter().any(|root| path.starts_with(root)) => not_allowed(),
        _ => no_source(error),
    })?;
    for root in roots {
        // A root that is away now may come: a disk that is not mounted yet.
        let Ok(root) = fs::canonicalize(root) else { continue };
        let Ok(inside) = real.strip_prefix(&root) else { continue };
        let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&root, flags, Mode::empty()).map_err(|error| no_source(error.into()))?;
        // It has no links now; one that comes in this moment is refused.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = again(|| rustix::fs::openat2(&root, inside, flags & !OFlags::DIRECTORY, Mode::empty(), resolve));
        return opened.map_err(|error| no_source(error.into()));
    }
    Err(not_allowed())
}

/// A mount of what is open, which lies nowhere yet; with `recursive` of everything that is mounted in it, too.
pub(super) fn tree_of(open: &OwnedFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(open.as_fd(), c"", flags)?)
}

/// Mounts it on `place`.
pub(super) fn put(tree: &OwnedFd, place: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(tree.as_fd(), c"", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// What holds the sources of one container's mounts fast until its process is made: whatever happens to a path in the
/// meantime, the mount is of what was opened. It goes when this does.
pub struct Pins {
    folder: PathBuf,
    count: usize,
}

impl Pins {
    pub(super) fn new(dir: &Path, id: InstanceId) -> Self {
        Self { folder: dir.join(id.to_string()), count: 0 }
    }

    /// Holds what is open fast, and gives the path that leads to it. The path is the same at each start.
    pub(super) fn pin(&mut self, open: &OwnedFd, recursive: bool, read_only: bool) -> io::Result<PathBuf> {
        if self.count == 0 {
            clear(&self.folder)?;
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        }
        let place = self.folder.join(self.count.to_string());
        self.count += 1;
        match FileType::from_raw_mode(rustix::fs::fstat(open)?.st_mode) {
            FileType::Directory => fs::create_dir(&place)?,
            _ => drop(fs::File::create_new(&place)?),
        }
        put(&tree_of(open, recursive)?, &place)?;
        if read_only {
            mountinfo::make_read_only(&place)?;
        }
        Ok(place)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if self.count > 0
            && let Err(error) = clear(&self.folder)
        {
            tracing::warn!(%error, "`{}` could not be taken away", self.folder.display());
        }
    }
}

/// Takes away the pins of one container. What one of them is a mount of is never looked into.
fn clear(folder: &Path) -> io::Result<()> {
    mountinfo::detach(folder)?;
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() { fs::remove_dir(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    fs::remove_dir(folder)
}

/// Takes away all pins below `dir`, those that an earlier life left behind.
pub(super) fn clear_all(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        clear(&entry?.path())?;
    }
    fs::remove_dir(dir)
}
