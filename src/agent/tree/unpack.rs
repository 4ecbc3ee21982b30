//! From the members of an archive to files beneath a root.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat},
    io::Errno,
};
use tar::EntryType;
use toft_model::files::FilesWritten;

use super::{
    Devices, Existing, Fault, Member, Policy, Why, Zeros,
    dress::{About, Later},
    place::{Directories, Place},
    shown,
};

/// Bytes read and written at once.
const PIECE_BYTES: usize = 256 << 10;
/// Zeros of this length, at such a place, become a hole.
const BLOCK: usize = 4096;
/// Bytes of what is remembered of directories until all is in them; further ones are settled at once.
const MOST_REMEMBERED: usize = 64 << 20;

/// The files written so far.
pub struct Tree {
    policy: Policy,
    directories: Directories,
    /// What directories get last: every file in them changes their times.
    later: Vec<(PathBuf, Later)>,
    remembered: usize,
    buffer: Vec<u8>,
    written: FilesWritten,
}

/// What became of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// Nothing had been there.
    New,
    /// It took the place of something.
    Replaced,
    /// It was there, and was described again or left as it is.
    Kept,
}

enum Created {
    File(File),
    Directory(OwnedFd),
    Link,
    Other(FileType),
}

impl Tree {
    /// Of a root that is open.
    pub fn new(root: BorrowedFd<'_>, policy: Policy) -> Result<Self, Fault> {
        Ok(Self {
            policy,
            directories: Directories::new(root, policy)?,
            later: Vec::new(),
            remembered: 0,
            buffer: vec![0; PIECE_BYTES],
            written: FilesWritten::default(),
        })
    }

    /// Makes a member at `path`; `target` is where a hard link leads, both below the root.
    pub fn add(
        &mut self,
        path: &Path,
        target: Option<&Path>,
        member: &Member,
        content: &mut impl Read,
    ) -> Result<Made, Fault> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Fault::refused(path, Why::Root));
        };
        let about = About::of(member, &self.policy, path)?;
        let place = Place { parent: self.directories.of(parent, path)?, name, path };
        let (created, made) = match self.create(&place, target, member) {
            Err(fault) if fault.errno() == Some(Errno::EXIST) => match self.replace(&place, target, member)? {
                Some(created) => (created, Made::Replaced),
                None => {
                    self.written.entries += 1;
                    return self.keep(&place, member, &about, content).map(|()| Made::Kept);
                }
            },
            created => (created?, Made::New),
        };
        match created {
            Created::File(file) => {
                if let Err(fault) = self.pour(&file, member, content, path) {
                    // Half a file is none; that it cannot go either changes nothing of the fault.
                    let _ = unlinkat(&place.parent, name, AtFlags::empty());
                    return Err(fault);
                }
                about.file(file.as_fd()).map_err(|error| place.failed(error))?;
            }
            Created::Directory(open) => self.describe(&place, open, &about)?,
            // It is the other file, which has been described.
            Created::Link => {}
            Created::Other(kind) => about.other(&place, kind).map_err(|error| place.failed(error))?,
        }
        self.written.entries += 1;
        Ok(made)
    }

    /// Describes the root itself.
    pub fn describe_root(&mut self, member: &Member) -> Result<(), Fault> {
        let path = Path::new("");
        if member.kind != EntryType::Directory {
            return Err(Fault::refused(Path::new("."), Why::Root));
        }
        let about = About::of(member, &self.policy, path)?;
        let failed = |error| Fault::at(Path::new("."), error);
        let root = self.directories.exactly(path).map_err(failed)?;
        let later = about.directory(root.as_fd()).map_err(failed)?;
        self.later.push((PathBuf::new(), later));
        self.written.entries += 1;
        Ok(())
    }

    /// The directory at `path`, made if that may be.
    pub fn directory(&mut self, path: &Path) -> Result<Rc<OwnedFd>, Fault> {
        self.directories.of(path, path)
    }

    /// How much was written.
    pub fn written(&self) -> FilesWritten {
        self.written
    }

    /// Gives directories what they get last. Says how much was written, and which directories the archive has files in
    /// and does not describe, parents first (for [`super::Links::Inside`] alone).
    pub fn finish(mut self) -> Result<(FilesWritten, BTreeSet<PathBuf>), Fault> {
        // The innermost first: writing into a directory changes its time.
        while let Some((path, later)) = self.later.pop() {
            self.settle(&path, &later)?;
        }
        Ok((self.written, self.directories.implied))
    }

    fn settle(&self, path: &Path, later: &Later) -> Result<(), Fault> {
        let failed = |error| Fault::at(path, error);
        match self.directories.exactly(path) {
            Ok(directory) => later.settle(directory.as_fd()).map_err(failed),
            // It was replaced, or somebody else was at work.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    fn create(&self, place: &Place<'_>, target: Option<&Path>, member: &Member) -> Result<Created, Fault> {
        let failed = |error| place.failed(error);
        let (parent, name) = (&*place.parent, place.name);
        let own = Mode::from_raw_mode(0o600);
        let node =
            |kind, device| mknodat(parent, name, kind, own, device).map(|()| Created::Other(kind)).map_err(failed);
        match member.kind {
            EntryType::Regular => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                Ok(Created::File(File::from(openat(parent, name, flags, own).map_err(failed)?)))
            }
            EntryType::Directory => {
                mkdirat(parent, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
                open_directory(place).map(Created::Directory)
            }
            EntryType::Symlink => {
                if member.link.is_empty() || member.link.contains(&0) {
                    return Err(place.refused(Why::LinkToNothing));
                }
                symlinkat(OsStr::from_bytes(&member.link), parent, name).map_err(failed)?;
                Ok(Created::Other(FileType::Symlink))
            }
            EntryType::Link => self.link(place, target, member).map(|()| Created::Link),
            EntryType::Fifo => node(FileType::Fifo, 0),
            EntryType::Char | EntryType::Block => {
                if self.policy.devices == Devices::Refused {
                    return Err(place.refused(Why::Device));
                }
                let (major, minor) = member.device.unwrap_or_default();
                let character = member.kind == EntryType::Char;
                let kind = if character { FileType::CharacterDevice } else { FileType::BlockDevice };
                node(kind, makedev(major, minor))
            }
            kind => Err(place.refused(Why::UnknownKind(kind.as_byte()))),
        }
    }

    fn link(&self, place: &Place<'_>, target: Option<&Path>, member: &Member) -> Result<(), Fault> {
        let no_target = || place.refused(Why::NoTarget(shown(&member.link)));
        let target = target.ok_or_else(|| place.refused(Why::LinkToNothing))?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(place.refused(Why::LinkToDirectory));
        };
        let from = self.directories.find(parent).map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => no_target(),
            error => place.failed(error),
        })?;
        match linkat(&from, name, &place.parent, place.name, AtFlags::empty()) {
            Err(Errno::NOENT) => Err(no_target()),
            Err(Errno::PERM) if is_directory(&from, Path::new(name)) => Err(place.refused(Why::LinkToDirectory)),
            linked => linked.map_err(|error| place.failed(error)),
        }
    }

    /// Puts a member where something is; `None` when what is there stays.
    fn replace(&mut self, place: &Place<'_>, target: Option<&Path>, member: &Member) -> Result<Option<Created>, Fault> {
        let wants_directory = member.kind == EntryType::Directory;
        let has_directory = is_directory(&place.parent, Path::new(place.name));
        match self.policy.existing {
            Existing::Refused => return Err(place.refused(Why::Twice)),
            _ if wants_directory && has_directory => return Ok(None),
            Existing::FilesReplaced if wants_directory => {
                return Err(place.refused(Why::InTheWay("a directory cannot take the place of a file or link")));
            }
            Existing::FilesReplaced if has_directory => {
                return Err(place.refused(Why::InTheWay("a file cannot take the place of a directory")));
            }
            Existing::FilesReplaced | Existing::Replaced => {}
        }
        // A link to itself would be lost with what it replaces.
        if member.kind == EntryType::Link && self.is_same(place, target) {
            return Ok(None);
        }
        if has_directory {
            self.directories.forget();
            // The standard library follows no link in there.
            fs::remove_dir_all(place.within()).map_err(|error| Fault::io(place.path, error))?;
            self.directories.implied.retain(|implied| !implied.starts_with(place.path));
        } else {
            // A link that is replaced led elsewhere.
            self.directories.forget();
            match unlinkat(&place.parent, place.name, AtFlags::empty()) {
                // Something is mounted on it, as on /etc/hosts of a container: it cannot go, but be written.
                Err(Errno::BUSY) if member.kind == EntryType::Regular => return Ok(None),
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(place.failed(error)),
            }
        }
        self.create(place, target, member).map(Some)
    }

    fn is_same(&self, place: &Place<'_>, target: Option<&Path>) -> bool {
        let there = statat(&place.parent, place.name, AtFlags::SYMLINK_NOFOLLOW);
        let (Ok(there), Some((parent, name))) = (there, target.and_then(|t| Some((t.parent()?, t.file_name()?))))
        else {
            return false;
        };
        let wanted = self.directories.find(parent).and_then(|from| statat(&from, name, AtFlags::SYMLINK_NOFOLLOW));
        wanted.is_ok_and(|wanted| (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino))
    }

    /// What is there stays: a directory, which the later entry describes if it counts; a file on which something is
    /// mounted, which is written.
    fn keep(
        &mut self,
        place: &Place<'_>,
        member: &Member,
        about: &About<'_>,
        content: &mut impl Read,
    ) -> Result<(), Fault> {
        let failed = |error| place.failed(error);
        match member.kind {
            EntryType::Directory if self.policy.existing == Existing::Replaced => {
                let open = open_directory(place)?;
                self.describe(place, open, about)
            }
            EntryType::Regular => {
                let told = statat(&place.parent, place.name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                if FileType::from_raw_mode(told.st_mode) != FileType::RegularFile {
                    return Err(place.refused(Why::Device));
                }
                let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let file = File::from(openat(&place.parent, place.name, flags, Mode::empty()).map_err(failed)?);
                self.pour(&file, member, content, place.path)?;
                about.mounted(file.as_fd()).map_err(failed)
            }
            _ => Ok(()),
        }
    }

    fn describe(&mut self, place: &Place<'_>, open: OwnedFd, about: &About<'_>) -> Result<(), Fault> {
        let later = about.directory(open.as_fd()).map_err(|error| place.failed(error))?;
        self.directories.implied.remove(place.path);
        self.directories.expect(place.path, open);
        let bytes =
            place.path.as_os_str().len() + later.list.as_ref().map_or(0, Vec::len) + size_of::<(PathBuf, Later)>();
        if self.remembered + bytes > MOST_REMEMBERED {
            return self.settle(place.path, &later);
        }
        self.remembered += bytes;
        self.later.push((place.path.to_owned(), later));
        Ok(())
    }

    fn pour(&mut self, file: &File, member: &Member, content: &mut impl Read, path: &Path) -> Result<(), Fault> {
        match &member.sparse {
            None => self.stretch(file, 0, member.size, content, path)?,
            Some(sparse) => {
                for (offset, length) in &sparse.stretches {
                    self.stretch(file, *offset, *length, content, path)?;
                }
            }
        }
        let size = member.sparse.as_ref().map_or(member.size, |sparse| sparse.size);
        if member.sparse.is_some() || self.policy.zeros == Zeros::Holes {
            file.set_len(size).map_err(|error| Fault::io(path, error))?;
        }
        self.written.bytes += size;
        Ok(())
    }

    /// Writes what comes next to a part of a file.
    fn stretch(
        &mut self,
        mut file: &File,
        mut at: u64,
        mut left: u64,
        content: &mut impl Read,
        path: &Path,
    ) -> Result<(), Fault> {
        let failed = |error| Fault::io(path, error);
        if at > 0 {
            rustix::fs::seek(file, rustix::fs::SeekFrom::Start(at)).map_err(|error| Fault::at(path, error))?;
        }
        while left > 0 {
            let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let piece = &mut self.buffer[..most];
            let count = match self.policy.zeros {
                Zeros::Written => {
                    let count = content.read(piece).map_err(Fault::read)?;
                    file.write_all(&piece[..count]).map_err(failed)?;
                    count
                }
                Zeros::Holes => {
                    content.read_exact(piece).map_err(Fault::read)?;
                    write_data(file, piece, at).map_err(failed)?;
                    piece.len()
                }
            };
            at += count as u64;
            left -= count as u64;
        }
        Ok(())
    }
}

/// Writes a piece, blocks of zeros left out.
fn write_data(file: &File, piece: &[u8], at: u64) -> std::io::Result<()> {
    // Whatever lies between two blocks of zeros at once.
    let mut run = None;
    for (i, block) in piece.chunks(BLOCK).enumerate() {
        match (block.iter().all(|byte| *byte == 0), run) {
            (false, None) => run = Some(i * BLOCK),
            (true, Some(from)) => {
                file.write_all_at(&piece[from..i * BLOCK], at + from as u64)?;
                run = None;
            }
            (false, Some(_)) | (true, None) => {}
        }
    }
    match run {
        Some(from) => file.write_all_at(&piece[from..], at + from as u64),
        None => Ok(()),
    }
}

fn open_directory(place: &Place<'_>) -> Result<OwnedFd, Fault> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&place.parent, place.name, flags, Mode::empty()).map_err(|error| place.failed(error))
}

fn is_directory(parent: &OwnedFd, name: &Path) -> bool {
    let told = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    told.is_ok_and(|told| FileType::from_raw_mode(told.st_mode) == FileType::Directory)
}
