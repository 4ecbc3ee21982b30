//! Where files belong: directories beneath a root, found by the kernel.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, openat2, readlinkat},
    io::Errno,
};

use super::{Fault, Links, Owner, Parents, Policy, Why, names::inside};

/// Most links followed to the place of one file, as in the kernel.
const MOST_LINKS: usize = 40;
/// Permissions of directories that an archive implies.
const IMPLIED: u32 = 0o755;
/// How often a path is tried that is being moved under way.
const TRIES: u32 = 128;

/// The directories below a root.
pub(super) struct Directories {
    root: OwnedFd,
    /// How `/proc/self/fd` shows it.
    root_path: PathBuf,
    policy: Policy,
    /// The directory used last: files of one directory follow each other.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Those that the archive does not describe but has files in, parents first.
    pub(super) implied: BTreeSet<PathBuf>,
}

/// Where a file goes.
pub(super) struct Place<'a> {
    pub(super) parent: Rc<OwnedFd>,
    pub(super) name: &'a OsStr,
    pub(super) path: &'a Path,
}

impl Place<'_> {
    pub(super) fn failed(&self, errno: Errno) -> Fault {
        Fault::at(self.path, errno)
    }

    pub(super) fn refused(&self, why: Why) -> Fault {
        Fault::refused(self.path, why)
    }

    /// A path to it, for calls that take no directory.
    pub(super) fn within(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.parent.as_raw_fd().to_string()).join(self.name)
    }
}

impl Directories {
    pub(super) fn new(root: BorrowedFd<'_>, policy: Policy) -> Result<Self, Fault> {
        let failed = |error| Fault::io(Path::new("."), error);
        let root = root.try_clone_to_owned().map_err(failed)?;
        let root_path = match policy.links {
            Links::Inside => shown(&root).map_err(failed)?,
            Links::Refused => PathBuf::new(),
        };
        Ok(Self { root, root_path, policy, last: None, implied: BTreeSet::new() })
    }

    /// Forgets the directory used last, which may not be at its path any more.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// Takes note of what was just made and is likely to be used next.
    pub(super) fn expect(&mut self, path: &Path, directory: OwnedFd) {
        self.last = Some((path.to_owned(), Rc::new(directory)));
    }

    /// A directory that is there.
    pub(super) fn find(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let links = match self.policy.links {
            Links::Inside => ResolveFlags::IN_ROOT,
            Links::Refused => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        };
        self.open(path, OFlags::PATH, links)
    }

    /// A directory at exactly this path, to be described.
    pub(super) fn exactly(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::RDONLY, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
    }

    fn open(&self, path: &Path, flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // The kernel asks to be asked again when something was renamed elsewhere meanwhile.
        for _ in 0..TRIES {
            match openat2(&self.root, path, flags, Mode::empty(), how | ResolveFlags::NO_MAGICLINKS) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// The directory in which `wanted` belongs, made if it is not there and may be.
    pub(super) fn of(&mut self, path: &Path, wanted: &Path) -> Result<Rc<OwnedFd>, Fault> {
        if let Some((last, directory)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(directory));
        }
        let directory = match self.find(path) {
            Ok(directory) => directory,
            Err(Errno::NOENT) if self.policy.parents == Parents::Made => self.make(path.to_path_buf(), wanted)?,
            Err(error) => return Err(self.no_way(wanted, error)),
        };
        let directory = Rc::new(directory);
        self.last = Some((path.to_path_buf(), Rc::clone(&directory)));
        Ok(directory)
    }

    fn no_way(&self, wanted: &Path, error: Errno) -> Fault {
        match error {
            Errno::LOOP if self.policy.links == Links::Refused => Fault::refused(wanted, Why::ThroughLink),
            error => Fault::at(wanted, error),
        }
    }

    fn make(&mut self, mut path: PathBuf, wanted: &Path) -> Result<OwnedFd, Fault> {
        'again: for _ in 0..MOST_LINKS {
            let mut reached = PathBuf::new();
            let mut directory = self.find(&reached).map_err(|error| self.no_way(wanted, error))?;
            let names: Vec<OsString> = path.iter().map(OsStr::to_owned).collect();
            for (number, name) in names.iter().enumerate() {
                let next = reached.join(name);
                directory = match self.find(&next) {
                    Err(Errno::NOENT) => match mkdirat(&directory, name, Mode::from_raw_mode(IMPLIED)) {
                        Ok(()) => self.made(&directory, name, &next).map_err(|error| self.no_way(wanted, error))?,
                        // A link to what is not there: its target is where the file goes.
                        Err(Errno::EXIST) if self.policy.links == Links::Inside => {
                            let target =
                                readlinkat(&directory, name, Vec::new()).map_err(|error| Fault::at(wanted, error))?;
                            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                            let from = if target.is_absolute() { PathBuf::new() } else { reached };
                            let rest: PathBuf = names[number + 1..].iter().collect();
                            path = inside(&from.join(target.strip_prefix("/").unwrap_or(&target)).join(rest));
                            continue 'again;
                        }
                        // Somebody else was faster.
                        Err(Errno::EXIST) => self.find(&next).map_err(|error| self.no_way(wanted, error))?,
                        Err(error) => return Err(Fault::at(wanted, error)),
                    },
                    found => found.map_err(|error| self.no_way(wanted, error))?,
                };
                reached = next;
            }
            return Ok(directory);
        }
        Err(Fault::at(wanted, Errno::LOOP))
    }

    /// What was just made as an implied directory.
    fn made(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<OwnedFd, Errno> {
        if self.policy.owner != Owner::Caller {
            chownat(parent, name, Some(Uid::ROOT), Some(Gid::ROOT), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let directory = self.find(path)?;
        if self.policy.links == Links::Inside {
            let real = shown(&directory).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            self.implied.extend(real.strip_prefix(&self.root_path).ok().map(Path::to_path_buf));
        }
        Ok(directory)
    }
}

/// Where an open directory is.
fn shown(directory: &OwnedFd) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}
