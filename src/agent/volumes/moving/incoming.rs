//! The end that makes its tree the same.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::PathBuf,
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmod, chownat, fchmod,
        fchown, fgetxattr, fremovexattr, fsetxattr, fstat, ftruncate, futimens, linkat, mkdirat, mknodat, openat,
        readlinkat, setxattr, statat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};

use super::{
    MoveError,
    entry::{Entry, Kind, as_path, shown},
    walk::{beneath, names},
};
use crate::agent::tree::attributes_of;

/// The attribute of a file that is here in part: which one it is to become.
pub(super) const MARK: &str = "user.toft.moving";

/// A file of which bytes are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Path below the root.
    pub path: Vec<u8>,
    /// The first byte that is missing.
    pub from: u64,
    /// Bytes of the whole file.
    pub size: u64,
}

/// A directory whose entries are being met.
struct Open {
    about: Entry,
    /// The names in it so far, in their order.
    names: Vec<Vec<u8>>,
}

/// A tree that becomes what another is.
pub struct Incoming {
    root: OwnedFd,
    open: Vec<Open>,
    /// Files that are waited for.
    waiting: HashMap<Vec<u8>, (Entry, u64)>,
    /// The one that is written.
    current: Option<(Vec<u8>, File)>,
    /// Files with several names here that an entry stands for already.
    taken: HashSet<(u64, u64)>,
}

impl Incoming {
    /// Below a directory of which nobody else makes use.
    pub fn new(root: OwnedFd) -> Self {
        let (waiting, taken) = (HashMap::new(), HashSet::new());
        Self { root, open: Vec::new(), waiting, current: None, taken }
    }

    /// Makes everything of an entry but the content of a file; gives what is missing of that.
    pub fn meet(&mut self, entry: Entry) -> Result<Option<Want>, MoveError> {
        entry.check()?;
        let hostile = |why| MoveError::Hostile { path: shown(&entry.path), why };
        let Some((parent, name)) = entry.place() else {
            if !self.open.is_empty() {
                return Err(hostile("which comes twice"));
            }
            self.open.push(Open { about: entry, names: Vec::new() });
            return Ok(None);
        };
        while self.open.last().is_some_and(|open| open.about.path != parent) {
            self.leave()?;
        }
        let Some(open) = self.open.last_mut() else { return Err(hostile("which lies in no folder that was named")) };
        if open.names.last().is_some_and(|last| last.as_slice() >= name) {
            return Err(hostile("which does not come in its turn"));
        }
        open.names.push(name.to_vec());
        let failed = MoveError::here(&entry.path);
        let directory = beneath(self.root.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY).map_err(&failed)?;
        let there = match statat(&directory, as_path(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(told) => Some(told),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(failed(error)),
        };
        match &entry.kind {
            Kind::Directory => {
                if there.is_some_and(|told| FileType::from_raw_mode(told.st_mode) != FileType::Directory) {
                    remove(&directory, name, &entry.path)?;
                }
                match mkdirat(&directory, as_path(name), Mode::from_raw_mode(0o700)) {
                    Err(error) if error != Errno::EXIST => return Err(failed(error)),
                    _ => {}
                }
                self.open.push(Open { about: entry, names: Vec::new() });
                Ok(None)
            }
            Kind::Symlink(to) => {
                let same = there.is_some_and(|told| FileType::from_raw_mode(told.st_mode) == FileType::Symlink)
                    && readlinkat(&directory, as_path(name), Vec::new()).is_ok_and(|now| now.as_bytes() == to)
                    && !self.is_taken(there.as_ref());
                if !same {
                    remove(&directory, name, &entry.path)?;
                    symlinkat(as_path(to), &directory, as_path(name)).map_err(&failed)?;
                }
                self.take(&directory, name)?;
                describe_other(&directory, name, &entry).map_err(failed)?;
                Ok(None)
            }
            Kind::Pipe => {
                let same = there.is_some_and(|told| FileType::from_raw_mode(told.st_mode) == FileType::Fifo)
                    && !self.is_taken(there.as_ref());
                if !same {
                    remove(&directory, name, &entry.path)?;
                    let mode = Mode::from_raw_mode(0o600);
                    mknodat(&directory, as_path(name), FileType::Fifo, mode, 0).map_err(&failed)?;
                }
                self.take(&directory, name)?;
                describe_other(&directory, name, &entry).map_err(failed)?;
                Ok(None)
            }
            Kind::Link(first) => {
                self.link(&directory, name, first, &entry)?;
                Ok(None)
            }
            Kind::File(_) => self.file(&directory, there, entry),
        }
    }

    /// Whether a file that is there belongs to an entry that came before: then this one is another.
    fn is_taken(&self, there: Option<&Stat>) -> bool {
        there.is_some_and(|told| self.taken.contains(&(told.st_dev, told.st_ino)))
    }

    fn take(&mut self, directory: &OwnedFd, name: &[u8]) -> Result<(), MoveError> {
        if let Ok(told) = statat(directory, as_path(name), AtFlags::SYMLINK_NOFOLLOW)
            && told.st_nlink > 1
        {
            self.taken.insert((told.st_dev, told.st_ino));
        }
        Ok(())
    }

    fn link(&mut self, directory: &OwnedFd, name: &[u8], first: &[u8], entry: &Entry) -> Result<(), MoveError> {
        let failed = MoveError::here(&entry.path);
        let hostile =
            || MoveError::Hostile { path: shown(&entry.path), why: "which links to a file that is not there" };
        let (parent, own) = super::entry::place(first).ok_or_else(hostile)?;
        let from = beneath(self.root.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY).map_err(|_| hostile())?;
        let wanted = statat(&from, as_path(own), AtFlags::SYMLINK_NOFOLLOW).map_err(|_| hostile())?;
        if FileType::from_raw_mode(wanted.st_mode) == FileType::Directory {
            return Err(hostile());
        }
        let now = statat(directory, as_path(name), AtFlags::SYMLINK_NOFOLLOW);
        if now.is_ok_and(|now| (now.st_dev, now.st_ino) == (wanted.st_dev, wanted.st_ino)) {
            return Ok(());
        }
        remove(directory, name, &entry.path)?;
        linkat(&from, as_path(own), directory, as_path(name), AtFlags::empty()).map_err(&failed)?;
        self.taken.insert((wanted.st_dev, wanted.st_ino));
        Ok(())
    }

    /// Opens a file, new or there in part, and says what is missing of it.
    fn file(&mut self, directory: &OwnedFd, there: Option<Stat>, entry: Entry) -> Result<Option<Want>, MoveError> {
        let failed = MoveError::here(&entry.path);
        let size = entry.size();
        let name = entry.place().map_or(&[][..], |(_, name)| name).to_vec();
        let keep = there.is_some_and(|told| FileType::from_raw_mode(told.st_mode) == FileType::RegularFile)
            && !self.is_taken(there.as_ref());
        if !keep {
            remove(directory, &name, &entry.path)?;
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(directory, as_path(&name), flags, Mode::from_raw_mode(0o600)).map_err(&failed)?;
        self.take(directory, &name)?;
        let told = fstat(&file).map_err(&failed)?;
        let length = u64::try_from(told.st_size).unwrap_or(0);
        let mark = mark_of(&entry);
        let mut known = [0; 64];
        let marked = match fgetxattr(&file, MARK, &mut known) {
            Ok(count) => Some(known[..count].to_vec()),
            Err(_) => None,
        };
        let modified = (told.st_mtime, u32::try_from(told.st_mtime_nsec).unwrap_or(0));
        let from = match marked {
            None if keep && length == size && modified == entry.modified => {
                describe(&file, &entry).map_err(failed)?;
                return Ok(None);
            }
            Some(known) if known == mark && length <= size => length,
            _ => {
                ftruncate(&file, 0).map_err(&failed)?;
                match fsetxattr(&file, MARK, &mark, XattrFlags::empty()) {
                    // Without it the file begins anew after a break.
                    Ok(()) | Err(Errno::OPNOTSUPP) => {}
                    Err(error) => return Err(failed(error)),
                }
                0
            }
        };
        if from == size {
            ended(&file, &entry).map_err(failed)?;
            return Ok(None);
        }
        let want = Want { path: entry.path.clone(), from, size };
        self.waiting.insert(entry.path.clone(), (entry, from));
        Ok(Some(want))
    }

    /// How many bytes of a file that is waited for are here; 0 for any other.
    pub(super) fn reached(&self, want: &Want) -> u64 {
        self.waiting.get(&want.path).map_or(0, |(_, reached)| *reached)
    }

    /// Writes bytes of a file.
    pub(super) fn write(&mut self, want: &Want, offset: u64, bytes: &[u8]) -> Result<(), MoveError> {
        let hostile = |why| MoveError::Hostile { path: shown(&want.path), why };
        let Some((entry, reached)) = self.waiting.get_mut(&want.path) else {
            return Err(hostile("which is not wanted"));
        };
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= entry.size());
        let Some(end) = end.filter(|_| offset >= *reached) else {
            return Err(hostile("with bytes where none belong"));
        };
        let file = opened(&mut self.current, &self.root, &want.path)?;
        file.write_all_at(bytes, offset).map_err(|source| MoveError::Here { path: shown(&want.path), source })?;
        *reached = end;
        Ok(())
    }

    /// A file has ended; gives its size.
    pub(super) fn end(&mut self, want: &Want) -> Result<u64, MoveError> {
        let Some((entry, _)) = self.waiting.remove(&want.path) else {
            return Err(MoveError::Hostile { path: shown(&want.path), why: "which is not wanted" });
        };
        let failed = MoveError::here(&want.path);
        opened(&mut self.current, &self.root, &want.path)?;
        if let Some((_, file)) = self.current.take() {
            ended(&file, &entry).map_err(failed)?;
        }
        Ok(entry.size())
    }

    /// Leaves the innermost directory: what was not named goes, and it gets what would have been undone before.
    fn leave(&mut self) -> Result<(), MoveError> {
        let Some(Open { about, names: named }) = self.open.pop() else { return Ok(()) };
        let failed = MoveError::here(&about.path);
        let directory = beneath(self.root.as_fd(), &about.path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(&failed)?;
        for name in names(&directory).map_err(&failed)? {
            if named.binary_search(&name).is_err() {
                remove(&directory, &name, &about.path)?;
            }
        }
        describe(&directory, &about).map_err(failed)
    }

    /// Ends the tree, and sees to it that it is on the disk.
    pub(super) fn finish(mut self) -> Result<(), MoveError> {
        while !self.open.is_empty() {
            self.leave()?;
        }
        rustix::fs::syncfs(&self.root).map_err(MoveError::here(b""))
    }
}

/// Removes everything below an open directory.
pub fn empty(root: impl AsFd) -> Result<(), MoveError> {
    let failed = MoveError::here(b"");
    let directory = beneath(root, b"", OFlags::RDONLY | OFlags::DIRECTORY).map_err(&failed)?;
    for name in names(&directory).map_err(&failed)? {
        remove(&directory, &name, &name)?;
    }
    Ok(())
}

/// The file that is written now.
fn opened<'a>(current: &'a mut Option<(Vec<u8>, File)>, root: &OwnedFd, path: &[u8]) -> Result<&'a File, MoveError> {
    if current.as_ref().is_none_or(|(open, _)| open != path) {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = beneath(root.as_fd(), path, flags).map_err(MoveError::here(path))?;
        *current = Some((path.to_vec(), file.into()));
    }
    match current {
        Some((_, file)) => Ok(file),
        None => Err(MoveError::here(path)(Errno::NOENT)),
    }
}

fn mark_of(entry: &Entry) -> Vec<u8> {
    format!("{} {} {}", entry.size(), entry.modified.0, entry.modified.1).into_bytes()
}

/// All bytes of a file are there.
fn ended(file: impl AsFd, entry: &Entry) -> Result<(), Errno> {
    ftruncate(&file, entry.size())?;
    match fremovexattr(&file, MARK) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    describe(file, entry)
}

/// Removes what is there under a name, whatever it is.
fn remove(directory: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), MoveError> {
    match unlinkat(directory, as_path(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            // The standard library follows no link in there.
            let within = through(directory).join(as_path(name));
            fs::remove_dir_all(within).map_err(|source| MoveError::Here { path: shown(path), source })
        }
        Err(error) => Err(MoveError::here(path)(error)),
    }
}

fn through(open: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", open.as_fd().as_raw_fd()))
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.modified.0, tv_nsec: entry.modified.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

/// Gives an open file or directory its owner, attributes, permissions and times, in the order in which one does not undo the
/// other.
fn describe(file: impl AsFd, entry: &Entry) -> Result<(), Errno> {
    let (user, group) = owner(entry);
    fchown(&file, user, group)?;
    for (name, _) in attributes_of(&file)? {
        if name != MARK && !entry.attributes.iter().any(|(kept, _)| *kept == name) {
            fremovexattr(&file, name.as_str())?;
        }
    }
    for (name, value) in &entry.attributes {
        setxattr(through(file.as_fd()), name.as_str(), value, XattrFlags::empty())?;
    }
    fchmod(&file, Mode::from_raw_mode(entry.mode))?;
    futimens(&file, &times(entry))
}

/// The same for a link or a pipe.
fn describe_other(directory: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), Errno> {
    let (user, group) = owner(entry);
    chownat(directory, as_path(name), user, group, AtFlags::SYMLINK_NOFOLLOW)?;
    if entry.kind == Kind::Pipe {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = openat(directory, as_path(name), flags, Mode::empty())?;
        chmod(through(&open), Mode::from_raw_mode(entry.mode))?;
    }
    utimensat(directory, as_path(name), &times(entry), AtFlags::SYMLINK_NOFOLLOW)
}
