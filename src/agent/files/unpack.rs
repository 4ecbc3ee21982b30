//! A tar archive into a directory, whatever it holds: nothing is written outside the directory, no link is followed, no
//! device is made.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, fchmod,
        fchown, futimens, linkat, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};
use tar::EntryType;
use toft_model::files::FilesWritten;

use super::{
    FileError,
    member::{Member, Members, broken},
};

/// Bytes copied at once.
const PART: usize = 128 * 1024;
/// Directories whose permissions and times are set when all is in them; those of further ones are set at once.
const REMEMBERED: usize = 10_000;
/// Permissions of directories that an archive implies.
const IMPLIED: u32 = 0o755;

/// To whom files belong that are unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whom the archive says.
    AsArchived,
    /// Root of the container.
    Root,
    /// Whoever unpacks; programs lose the right to run as somebody else.
    Caller,
}

/// How an archive is unpacked.
#[derive(Debug, Clone)]
pub struct Unpack {
    /// To whom files belong.
    pub owner: Owner,
    /// Replaces the first part of every name.
    pub rename: Option<String>,
}

impl Unpack {
    /// Unpacks into a directory. What was written before an error stays.
    pub fn run(self, into: BorrowedFd<'_>, archive: impl Read) -> Result<FilesWritten, FileError> {
        let mut unpacker =
            Unpacker { into, how: self, written: FilesWritten::default(), directories: Vec::new(), parent: None };
        let mut members = Members::new(archive);
        while let Some(member) = members.next()? {
            unpacker.add(&member, &mut members)?;
        }
        members.drain();
        unpacker.finish()?;
        Ok(unpacker.written)
    }
}

struct Unpacker<'a> {
    into: BorrowedFd<'a>,
    how: Unpack,
    written: FilesWritten,
    /// Directories that were made, with their permissions and times to come.
    directories: Vec<(PathBuf, u32, i64)>,
    /// The directory of the member before.
    parent: Option<(PathBuf, OwnedFd)>,
}

impl Unpacker<'_> {
    fn add(&mut self, member: &Member, content: &mut impl Read) -> Result<(), FileError> {
        let shown = shown(&member.name);
        let Some(path) = self.inside(&member.name)? else { return Ok(()) };
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else { return Ok(()) };
        let place = Place { parent: self.parent(parent, &shown)?, name: Path::new(name), shown: &shown };
        let failed = |errno: Errno| FileError::at(&shown, errno);
        match member.kind {
            EntryType::Regular | EntryType::Continuous => self.file(&place, member, content)?,
            EntryType::Directory => {
                if self.directory(&place, member)? {
                    self.remember(path.clone(), member)?;
                }
            }
            EntryType::Symlink => {
                place.clear("a link cannot take the place of a directory")?;
                symlinkat(Path::new(std::ffi::OsStr::from_bytes(&member.link)), place.parent.as_fd(), place.name)
                    .map_err(failed)?;
                self.own(&place, member)?;
                place.date(member.modified_s)?;
            }
            EntryType::Link => self.hard_link(&place, member)?,
            EntryType::Fifo => {
                place.clear("a pipe cannot take the place of a directory")?;
                let mode = Mode::from_raw_mode(member.mode & 0o777);
                mknodat(place.parent.as_fd(), place.name, FileType::Fifo, mode, 0).map_err(failed)?;
                self.own(&place, member)?;
                place.date(member.modified_s)?;
            }
            EntryType::Block | EntryType::Char => {
                return Err(FileError::refused(format!("`{shown}` is a device")));
            }
            EntryType::GNUSparse => return Err(FileError::refused(format!("`{shown}` is a sparse file"))),
            _ => return Err(FileError::refused(format!("`{shown}` is of an unknown kind"))),
        }
        let parent = place.parent;
        self.parent = path.parent().map(|path| (path.to_owned(), parent));
        self.written.entries += 1;
        Ok(())
    }

    /// A member's name as a path below the directory; nothing for the directory itself.
    fn inside(&self, name: &[u8]) -> Result<Option<PathBuf>, FileError> {
        if name.starts_with(b"/") {
            return Err(FileError::refused(format!("`{}` is an absolute path", shown(name))));
        }
        let mut path = PathBuf::new();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(FileError::refused(format!("`{}` leads out of the directory", shown(name)))),
                part if part.contains(&0) => {
                    return Err(FileError::refused(format!("`{}` holds a zero byte", shown(name))));
                }
                _ if path.as_os_str().is_empty() && self.how.rename.is_some() => {
                    path.push(self.how.rename.as_deref().unwrap_or_default());
                }
                part => path.push(std::ffi::OsStr::from_bytes(part)),
            }
        }
        Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
    }

    /// The directory that a member belongs in; what is missing of it is made.
    fn parent(&mut self, path: &Path, shown: &str) -> Result<OwnedFd, FileError> {
        if let Some((_, open)) = self.parent.take_if(|(known, _)| known == path) {
            return Ok(open);
        }
        match beneath(self.into, path, OFlags::PATH) {
            Err(Errno::NOENT) => {}
            outcome => return outcome.map_err(|errno| through(shown, errno)),
        }
        let mut made = PathBuf::new();
        let mut open = beneath(self.into, &made, OFlags::PATH).map_err(|errno| through(shown, errno))?;
        for part in path {
            made.push(part);
            match mkdirat(&open, part, Mode::from_raw_mode(IMPLIED)) {
                Ok(()) => {
                    let place = Place { parent: open, name: Path::new(part), shown };
                    self.own_as(&place, 0, 0)?;
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(FileError::at(shown, errno)),
            }
            open = beneath(self.into, &made, OFlags::PATH).map_err(|errno| through(shown, errno))?;
        }
        Ok(open)
    }

    fn file(&mut self, place: &Place<'_>, member: &Member, content: &mut impl Read) -> Result<(), FileError> {
        let failed = |errno: Errno| FileError::at(place.shown, errno);
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let (file, new) = match place.clear("a file cannot take the place of a directory") {
            Ok(()) => {
                let new = flags | OFlags::CREATE | OFlags::EXCL;
                let mode = Mode::from_raw_mode(0o600);
                (openat(&place.parent, place.name, new, mode).map_err(failed)?, true)
            }
            // Something is mounted on it, as on /etc/hosts of a container: it cannot go, but be written.
            Err(FileError::Io { source, .. }) if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                let told = statat(&place.parent, place.name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                if FileType::from_raw_mode(told.st_mode) != FileType::RegularFile {
                    return Err(FileError::Special { path: place.shown.to_owned() });
                }
                (openat(&place.parent, place.name, flags | OFlags::TRUNC, Mode::empty()).map_err(failed)?, false)
            }
            Err(error) => return Err(error),
        };
        let mut file = File::from(file);
        if let Err(error) = self.copy(&mut file, member.size, content, place.shown) {
            if new {
                // Half a file is none; that it cannot go either changes nothing of the error.
                let _ = unlinkat(&place.parent, place.name, AtFlags::empty());
            }
            return Err(error);
        }
        let (uid, gid) = self.owner(member.uid, member.gid);
        fchown(&file, uid, gid).map_err(failed)?;
        if new {
            fchmod(&file, Mode::from_raw_mode(self.mode(member.mode))).map_err(failed)?;
        }
        futimens(&file, &times(member.modified_s)).map_err(failed)
    }

    fn copy(&mut self, file: &mut File, size: u64, content: &mut impl Read, shown: &str) -> Result<(), FileError> {
        let mut part = vec![0; PART.min(usize::try_from(size).unwrap_or(PART))];
        let mut left = size;
        while left > 0 {
            let most = part.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = content.read(&mut part[..most]).map_err(|error| broken(&error))?;
            file.write_all(&part[..read]).map_err(|error: io::Error| FileError::io(shown, error))?;
            left -= read as u64;
            self.written.bytes += read as u64;
        }
        Ok(())
    }

    /// Makes a directory; `false` when it is there already, and stays as it is.
    fn directory(&mut self, place: &Place<'_>, member: &Member) -> Result<bool, FileError> {
        match mkdirat(&place.parent, place.name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let told = statat(&place.parent, place.name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| FileError::at(place.shown, errno))?;
                return match FileType::from_raw_mode(told.st_mode) {
                    FileType::Directory => Ok(false),
                    _ => Err(place.in_the_way("a directory cannot take the place of a file or link")),
                };
            }
            Err(errno) => return Err(FileError::at(place.shown, errno)),
        }
        self.own(place, member)?;
        Ok(true)
    }

    fn hard_link(&mut self, place: &Place<'_>, member: &Member) -> Result<(), FileError> {
        let target = shown(&member.link);
        let refuse = || FileError::refused(format!("`{}` links to `{target}`, which is not in it", place.shown));
        let path = self.inside(&member.link)?.ok_or_else(refuse)?;
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else { return Err(refuse()) };
        let from = beneath(self.into, parent, OFlags::PATH).map_err(|_| refuse())?;
        let told = statat(&from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| refuse())?;
        if FileType::from_raw_mode(told.st_mode) != FileType::RegularFile {
            return Err(refuse());
        }
        let there = statat(&place.parent, place.name, AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (told.st_dev, told.st_ino)) {
            return Ok(());
        }
        place.clear("a link cannot take the place of a directory")?;
        linkat(&from, name, &place.parent, place.name, AtFlags::empty())
            .map_err(|errno| FileError::at(place.shown, errno))
    }

    fn owner(&self, uid: u32, gid: u32) -> (Option<Uid>, Option<Gid>) {
        match self.how.owner {
            Owner::AsArchived => (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))),
            Owner::Root => (Some(Uid::ROOT), Some(Gid::ROOT)),
            Owner::Caller => (None, None),
        }
    }

    fn mode(&self, mode: u32) -> u32 {
        if self.how.owner == Owner::Caller { mode & 0o1777 } else { mode & 0o7777 }
    }

    fn own(&self, place: &Place<'_>, member: &Member) -> Result<(), FileError> {
        self.own_as(place, member.uid, member.gid)
    }

    fn own_as(&self, place: &Place<'_>, uid: u32, gid: u32) -> Result<(), FileError> {
        let (uid, gid) = self.owner(uid, gid);
        chownat(&place.parent, place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| FileError::at(place.shown, errno))
    }

    fn remember(&mut self, path: PathBuf, member: &Member) -> Result<(), FileError> {
        let mode = self.mode(member.mode);
        if self.directories.len() < REMEMBERED {
            self.directories.push((path, mode, member.modified_s));
            return Ok(());
        }
        self.settle(&path, mode, member.modified_s)
    }

    fn finish(&mut self) -> Result<(), FileError> {
        // The innermost first: writing into a directory changes its time.
        while let Some((path, mode, modified_s)) = self.directories.pop() {
            self.settle(&path, mode, modified_s)?;
        }
        Ok(())
    }

    fn settle(&self, path: &Path, mode: u32, modified_s: i64) -> Result<(), FileError> {
        let failed = |errno: Errno| FileError::at(path.to_string_lossy(), errno);
        match beneath(self.into, path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(open) => {
                fchmod(&open, Mode::from_raw_mode(mode)).map_err(failed)?;
                futimens(&open, &times(modified_s)).map_err(failed)
            }
            // Somebody else was at work.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(errno) => Err(failed(errno)),
        }
    }
}

/// Where a member goes.
struct Place<'a> {
    parent: OwnedFd,
    name: &'a Path,
    shown: &'a str,
}

impl Place<'_> {
    /// Removes what is there; a directory stays, which is an error.
    fn clear(&self, reason: &'static str) -> Result<(), FileError> {
        match unlinkat(&self.parent, self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => Err(self.in_the_way(reason)),
            Err(errno) => Err(FileError::at(self.shown, errno)),
        }
    }

    fn in_the_way(&self, reason: &'static str) -> FileError {
        FileError::InTheWay { path: self.shown.to_owned(), reason }
    }

    fn date(&self, modified_s: i64) -> Result<(), FileError> {
        utimensat(&self.parent, self.name, &times(modified_s), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| FileError::at(self.shown, errno))
    }
}

/// Opens a directory below another. No link is followed on the way.
fn beneath(into: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    openat2(into, path, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), how)
}

fn through(shown: &str, errno: Errno) -> FileError {
    match errno {
        Errno::LOOP => FileError::refused(format!("`{shown}` goes through a symbolic link")),
        errno => FileError::at(shown, errno),
    }
}

fn times(modified_s: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: modified_s, tv_nsec: 0 },
    }
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(200).collect()
}
