//! An archive becomes files below a directory.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashSet},
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, BufReader, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat,
        chownat, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, openat2, readlinkat, setxattr, statat,
        symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};
use tar::{Archive, Entry, EntryType};

use super::{
    Fault, OPAQUE, OVERLAY_ATTRIBUTES,
    decode::{Decoded, Incoming},
};

/// Bytes read and written at once.
const PIECE_BYTES: usize = 256 << 10;
/// Most bytes that describe one file: long names, attributes, maps of holes.
const MOST_ABOUT_A_FILE: u64 = 4 << 20;
/// Most links followed to the place of one file, as in the kernel.
const MOST_LINKS: usize = 40;
/// How a name begins that hides one of a layer below.
const WHITEOUT: &[u8] = b".wh.";
/// A name that hides everything of its directory in the layers below.
const WHITEOUT_ALL: &[u8] = b".wh..wh..opq";
/// How names begin that an older file system kept for itself.
const WHITEOUT_OTHERS: &[u8] = b".wh..wh.";
/// How a record begins that holds an extended attribute.
const ATTRIBUTE_RECORD: &str = "SCHILY.xattr.";

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
    let decoded = Decoded::new(blob).map_err(|_| Fault::CutOff)?;
    let budget = Rc::new(Cell::new(Some(MOST_ABOUT_A_FILE)));
    let buffered = BufReader::with_capacity(PIECE_BYTES, decoded);
    let mut archive = Archive::new(Bounded { inner: buffered, left: Rc::clone(&budget) });
    let mut tree = Tree::open(root, place)?;
    let written = write_all(&mut archive, &budget, &mut tree);
    let Bounded { inner: mut rest, .. } = archive.into_inner();
    if rest.get_ref().source().was_cut_off() {
        return Err(Fault::CutOff);
    }
    written?;
    // What follows the last file belongs to the digest too.
    if let Err(error) = io::copy(&mut rest, &mut io::sink()) {
        return Err(if rest.get_ref().source().was_cut_off() { Fault::CutOff } else { unreadable(&error) });
    }
    tree.set_times()?;
    let (diff_id, _) = rest.into_inner().finish();
    let Tree { implied, describes_root, hides_all, .. } = tree;
    Ok(Extracted { diff_id, implied, describes_root, hides_all })
}

fn write_all<R: Read>(archive: &mut Archive<R>, budget: &Cell<Option<u64>>, tree: &mut Tree) -> Result<(), Fault> {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut entries = archive.entries().map_err(|error| unreadable(&error))?;
    loop {
        budget.set(Some(MOST_ABOUT_A_FILE));
        let Some(entry) = entries.next() else { return Ok(()) };
        let mut entry = entry.map_err(|error| unreadable(&error))?;
        budget.set(None);
        tree.add(&mut entry, &mut buffer)?;
        // So that what is read next is about the next file.
        while entry.read(&mut buffer).map_err(|error| unreadable(&error))? > 0 {}
    }
}

fn unreadable(error: &io::Error) -> Fault {
    Fault::Layer(format!("it cannot be read: {error}"))
}

/// Gives no more than is left.
struct Bounded<R> {
    inner: R,
    /// `None`: as much as there is.
    left: Rc<Cell<Option<u64>>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.left.get() else { return self.inner.read(into) };
        if left == 0 {
            return Err(io::Error::other("it says more than 4 MiB about one file"));
        }
        let most = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut into[..most])?;
        self.left.set(Some(left - count as u64));
        Ok(count)
    }
}

/// The files written so far.
struct Tree {
    root: OwnedFd,
    /// How `/proc/self/fd` shows it.
    root_path: PathBuf,
    place: Place,
    /// The directory used last: files of one directory follow each other.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
    implied: BTreeSet<PathBuf>,
    describes_root: bool,
    hides_all: bool,
    /// Names hidden so far.
    hidden: HashSet<PathBuf>,
    /// Times of directories, set last: every file in them changes theirs.
    times: Vec<(PathBuf, Timestamps)>,
}

/// What an entry says of a file besides its contents.
struct About {
    mode: Mode,
    owner: (Uid, Gid),
    times: Timestamps,
    attributes: Vec<(String, Vec<u8>)>,
}

impl Tree {
    fn open(root: &Path, place: Place) -> Result<Self, Fault> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = openat(CWD, root, flags, Mode::empty()).map_err(disk)?;
        let root_path = shown(&root)?;
        let (implied, hidden) = (BTreeSet::new(), HashSet::new());
        Ok(Self {
            root,
            root_path,
            place,
            last: None,
            implied,
            describes_root: false,
            hides_all: false,
            hidden,
            times: Vec::new(),
        })
    }

    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>, buffer: &mut [u8]) -> Result<(), Fault> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let written = entry.path_bytes().into_owned();
        let path = clean(&written)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return self.describe_root(entry) };
        if let Some(hides) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.hide(&path, parent, hides);
        }
        let about = about(entry).map_err(|reason| of(&path, &reason))?;
        let directory = self.directory(parent)?;
        let wants_directory = kind == EntryType::Directory
            || (matches!(kind, EntryType::Regular | EntryType::Continuous) && written.ends_with(b"/"));
        if wants_directory {
            return self.add_directory(&directory, &path, name, about);
        }
        let faults = |error: Errno| at(&path, error);
        let make = |tree: &Self| match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(&directory, name, flags, Mode::from_raw_mode(0o600)).map(Some).map_err(faults)
            }
            EntryType::Symlink => {
                let target = link_target(entry, &path)?;
                symlinkat(OsStr::from_bytes(&target), &directory, name).map(|()| None).map_err(faults)
            }
            EntryType::Link => {
                let target = clean(&link_target(entry, &path)?)?;
                let (Some(target_parent), Some(target_name)) = (target.parent(), target.file_name()) else {
                    return Err(of(&path, "it is a hard link to a directory"));
                };
                let from = match tree.find(target_parent) {
                    Ok(from) => from,
                    Err(Errno::NOENT | Errno::NOTDIR) => return Err(no_target(&path, &target)),
                    Err(error) => return Err(faults(error)),
                };
                match linkat(&from, target_name, &directory, name, AtFlags::empty()) {
                    Err(Errno::NOENT) => Err(no_target(&path, &target)),
                    other => other.map(|()| None).map_err(faults),
                }
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let number = |number: io::Result<Option<u32>>| {
                    number.map(Option::unwrap_or_default).map_err(|_| of(&path, "its device number cannot be read"))
                };
                let header = entry.header();
                let (kind, device) = match kind {
                    EntryType::Fifo => (FileType::Fifo, 0),
                    other => {
                        let device = makedev(number(header.device_major())?, number(header.device_minor())?);
                        (
                            if other == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice },
                            device,
                        )
                    }
                };
                mknodat(&directory, name, kind, Mode::from_raw_mode(0o600), device).map(|()| None).map_err(faults)
            }
            other => Err(of(&path, &format!("it is of the unknown kind {}", other.as_byte()))),
        };
        let made = match make(self) {
            Err(Fault::Disk(error)) if error.kind() == io::ErrorKind::AlreadyExists => {
                // A link to itself would be lost with what it replaces.
                if kind == EntryType::Link && clean(&link_target(entry, &path)?)? == path {
                    return Ok(());
                }
                self.remove(&directory, &path, name)?;
                make(self)?
            }
            made => made?,
        };
        if let Some(file) = made {
            copy(entry, File::from(file), buffer, &path)?;
        }
        match kind {
            // It is the other file, which has been described.
            EntryType::Link => Ok(()),
            kind => describe(&directory, name, &about, kind == EntryType::Symlink).map_err(faults),
        }
    }

    fn add_directory(&mut self, parent: &OwnedFd, path: &Path, name: &OsStr, about: About) -> Result<(), Fault> {
        let faults = |error: Errno| at(path, error);
        match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(faults)?;
                if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
                    let was_hidden = self.hidden.contains(path);
                    self.remove(parent, path, name)?;
                    mkdirat(parent, name, Mode::from_raw_mode(0o700)).map_err(faults)?;
                    if was_hidden {
                        set_opaque(parent, name).map_err(faults)?;
                    }
                }
            }
            Err(error) => return Err(faults(error)),
        }
        describe(parent, name, &about, false).map_err(faults)?;
        self.implied.remove(path);
        self.times.push((path.to_path_buf(), about.times));
        Ok(())
    }

    fn describe_root<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), Fault> {
        let path = Path::new(".");
        if entry.header().entry_type() != EntryType::Directory {
            return Err(of(path, "it would take the place of the whole image"));
        }
        let about = about(entry).map_err(|reason| of(path, &reason))?;
        describe(&self.root, OsStr::new("."), &about, false).map_err(|error| at(path, error))?;
        self.describes_root = true;
        self.times.push((PathBuf::new(), about.times));
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
        let directory = self.directory(parent)?;
        if name == WHITEOUT_ALL {
            return set_opaque(&directory, OsStr::new(".")).map_err(faults);
        }
        if name.starts_with(WHITEOUT_OTHERS) {
            return Ok(());
        }
        if matches!(hides, b"" | b"." | b"..") {
            return Err(of(path, "it hides nothing that could be there"));
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

    /// A directory that is there, links on the way followed inside the root.
    fn find(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        // The kernel asks to be asked again when something was renamed elsewhere meanwhile.
        loop {
            match openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// A directory, made if it is not there.
    fn directory(&mut self, path: &Path) -> Result<Rc<OwnedFd>, Fault> {
        if let Some((last, directory)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(directory));
        }
        let directory = match self.find(path) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => self.make_directories(path.to_path_buf())?,
            Err(error) => return Err(at(path, error)),
        };
        let directory = Rc::new(directory);
        self.last = Some((path.to_path_buf(), Rc::clone(&directory)));
        Ok(directory)
    }

    fn make_directories(&mut self, mut path: PathBuf) -> Result<OwnedFd, Fault> {
        let wanted = path.clone();
        let faults = |error: Errno| at(&wanted, error);
        'again: for _ in 0..MOST_LINKS {
            let mut reached = PathBuf::new();
            let mut directory = self.find(&reached).map_err(faults)?;
            let names: Vec<OsString> = path.iter().map(OsStr::to_owned).collect();
            for (number, name) in names.iter().enumerate() {
                let next = reached.join(name);
                directory = match self.find(&next) {
                    Ok(found) => found,
                    Err(Errno::NOENT) => match mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) => {
                            let made = self.find(&next).map_err(faults)?;
                            let real = shown(&made)?;
                            self.implied.extend(real.strip_prefix(&self.root_path).ok().map(Path::to_path_buf));
                            made
                        }
                        // A link to what is not there: its target is where the file goes.
                        Err(Errno::EXIST) => {
                            let target = readlinkat(&directory, name, Vec::new()).map_err(faults)?;
                            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                            let from = if target.is_absolute() { PathBuf::new() } else { reached };
                            let rest: PathBuf = names[number + 1..].iter().collect();
                            path = inside(&from.join(target.strip_prefix("/").unwrap_or(&target)).join(rest));
                            continue 'again;
                        }
                        Err(error) => return Err(faults(error)),
                    },
                    Err(error) => return Err(faults(error)),
                };
                reached = next;
            }
            return Ok(directory);
        }
        Err(faults(Errno::LOOP))
    }

    fn remove(&mut self, directory: &OwnedFd, path: &Path, name: &OsStr) -> Result<(), Fault> {
        self.last = None;
        match unlinkat(directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {
                // The standard library follows no link in there.
                let there = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
                std::fs::remove_dir_all(there).map_err(Fault::Disk)?;
                self.implied.retain(|implied| !implied.starts_with(path));
                Ok(())
            }
            other => other.map_err(|error| at(path, error)),
        }
    }

    fn set_times(&self) -> Result<(), Fault> {
        for (path, times) in &self.times {
            // What was replaced later is no directory any more.
            if let Ok(directory) = self.find(path)
                && shown(&directory)? == self.root_path.join(path)
            {
                utimensat(&directory, ".", times, AtFlags::empty()).map_err(|error| at(path, error))?;
            }
        }
        Ok(())
    }
}

/// Where an open directory is.
fn shown(directory: &OwnedFd) -> Result<PathBuf, Fault> {
    std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).map_err(Fault::Disk)
}

/// A path of an archive, from the root of the image on.
fn clean(written: &[u8]) -> Result<PathBuf, Fault> {
    let path = Path::new(OsStr::from_bytes(written));
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => cleaned.push(part),
            Component::ParentDir if !cleaned.pop() => return Err(of(path, "it leads out of the image")),
            _ => {}
        }
    }
    Ok(cleaned)
}

/// The same of a link's target, which cannot leave the root.
fn inside(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut cleaned, part| {
        match part {
            Component::Normal(part) => cleaned.push(part),
            Component::ParentDir => drop(cleaned.pop()),
            _ => {}
        }
        cleaned
    })
}

fn link_target<R: Read>(entry: &Entry<'_, R>, path: &Path) -> Result<Vec<u8>, Fault> {
    let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned).filter(|target| !target.is_empty());
    target.ok_or_else(|| of(path, "it is a link to nothing"))
}

fn about<R: Read>(entry: &mut Entry<'_, R>) -> Result<About, String> {
    let mut attributes = Vec::new();
    let mut precise = None;
    if let Some(records) = entry.pax_extensions().map_err(|error| error.to_string())? {
        for record in records.flatten() {
            let Ok(key) = record.key() else { continue };
            if key == "mtime" {
                precise = record.value().ok().and_then(read_time);
            }
            if let Some(name) = key.strip_prefix(ATTRIBUTE_RECORD)
                && !name.starts_with(OVERLAY_ATTRIBUTES)
            {
                attributes.push((name.to_owned(), record.value_bytes().to_vec()));
            }
        }
    }
    let header = entry.header();
    let fields = header.as_old();
    // Some writers leave out what is zero.
    let number = |number: io::Result<u64>, field: &[u8], what: &str| match number {
        Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
        Ok(number) if number < u64::from(u32::MAX) => Ok(number as u32),
        _ => Err(format!("its {what} cannot be read")),
    };
    let owner = (number(header.uid(), &fields.uid, "owner")?, number(header.gid(), &fields.gid, "group")?);
    let mode = number(header.mode().map(u64::from), &fields.mode, "mode")?;
    let seconds = || header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0);
    let time = precise.unwrap_or_else(|| Timespec { tv_sec: seconds(), tv_nsec: 0 });
    Ok(About {
        mode: Mode::from_raw_mode(mode & 0o7777),
        owner: (Uid::from_raw(owner.0), Gid::from_raw(owner.1)),
        times: Timestamps { last_access: time, last_modification: time },
        attributes,
    })
}

/// Seconds since 1970 with a fraction, as in `1700000000.25`; before 1970 with a minus.
fn read_time(text: &str) -> Option<Timespec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let tv_nsec: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && tv_nsec > 0 {
        return Some(Timespec { tv_sec: tv_sec.checked_sub(1)?, tv_nsec: 1_000_000_000 - tv_nsec });
    }
    Some(Timespec { tv_sec, tv_nsec })
}

fn describe(directory: &OwnedFd, name: &OsStr, about: &About, is_link: bool) -> Result<(), Errno> {
    let (owner, group) = about.owner;
    // A change of the owner takes rights and capabilities away, so these come after it.
    chownat(directory, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    if !is_link {
        chmodat(directory, name, about.mode, AtFlags::empty())?;
    }
    if !about.attributes.is_empty() {
        let path = within(directory, name);
        for (attribute, value) in &about.attributes {
            match lsetxattr(&path, attribute.as_str(), value, XattrFlags::empty()) {
                // The file system has none; the image works without, or the program says what it lacks.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
    }
    utimensat(directory, name, &about.times, AtFlags::SYMLINK_NOFOLLOW)
}

fn set_opaque(directory: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    setxattr(within(directory, name), OPAQUE, b"y", XattrFlags::empty())
}

/// A path to a name in an open directory, for calls that take no directory.
fn within(directory: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

fn copy<R: Read>(entry: &mut Entry<'_, R>, mut file: File, buffer: &mut [u8], path: &Path) -> Result<(), Fault> {
    loop {
        let count = entry.read(buffer).map_err(|error| unreadable(&error))?;
        if count == 0 {
            return Ok(());
        }
        file.write_all(&buffer[..count]).map_err(|error| match error.raw_os_error() {
            Some(code) => at(path, Errno::from_raw_os_error(code)),
            None => Fault::Disk(error),
        })?;
    }
}

fn of(path: &Path, reason: &str) -> Fault {
    let shown: String = path.to_string_lossy().chars().filter(|c| !c.is_control()).take(200).collect();
    Fault::Layer(format!("`{shown}`: {reason}"))
}

fn no_target(path: &Path, target: &Path) -> Fault {
    let shown: String = target.to_string_lossy().chars().filter(|c| !c.is_control()).take(200).collect();
    of(path, &format!("it is a hard link to `{shown}`, which is not in the layer"))
}

/// What the file system says of a path: names that cannot be are the layer's fault.
fn at(path: &Path, error: Errno) -> Fault {
    match error {
        Errno::NOTDIR | Errno::NAMETOOLONG | Errno::LOOP | Errno::INVAL | Errno::NOENT | Errno::PERM | Errno::ISDIR => {
            of(path, &io::Error::from(error).to_string())
        }
        error => disk(error),
    }
}

fn disk(error: Errno) -> Fault {
    Fault::Disk(error.into())
}
