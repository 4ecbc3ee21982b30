//! The hooks of specifications that NVIDIA's program `nvidia-cdi-hook` would do, done by toft itself: links to libraries that were
//! mounted, and their names in the loader's cache. The runtime starts this as root when everything is mounted and nothing of the
//! image has run yet.
//!
//! The files of the image are hostile. Every path is opened below the container's root without leaving it and without the links of
//! `/proc`; only folders of the root's own file system are written to, never a mount; nothing of the image is executed.
//! What cannot be done is told and does not keep the container from starting: most loaders find the libraries anyway.

mod cache;
mod soname;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags},
    io::Errno,
};
use serde::Deserialize;

use self::{
    cache::{Cache, Entry},
    soname::soname,
};

/// Largest state, specification and cache that are read, in bytes.
const LARGEST: u64 = 16 << 20;
/// Most files of a folder that are looked at.
const MOST_FILES: usize = 65_536;
/// Where the cache lies, and what it is called until it is whole.
const CACHE_FOLDER: &str = "etc";
const CACHE: &str = "ld.so.cache";
const NEW_CACHE: &str = ".ld.so.cache.toft";
/// glibc's loaders: who has none needs no cache.
const LOADERS: [&str; 2] = ["lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1"];

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Libraries that are mounted in these folders get into the loader's cache.
    UpdateCache {
        /// The folders, as the container sees them.
        folders: Vec<PathBuf>,
    },
    /// Links are made.
    CreateLinks {
        /// What each leads to, and where it is, as the container sees it.
        links: Vec<(String, PathBuf)>,
    },
}

/// Why a hook could not begin.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// What the runtime says of the container is not understood.
    #[error("the state of the container that the runtime tells is not understood: {0}")]
    State(String),
    /// Its files cannot be reached.
    #[error("the container's files cannot be reached")]
    Root(#[source] io::Error),
}

#[derive(Deserialize)]
struct State {
    bundle: PathBuf,
}

#[derive(Deserialize)]
struct Config {
    root: ConfigRoot,
}

#[derive(Deserialize)]
struct ConfigRoot {
    path: PathBuf,
}

/// Does it in the container of which the runtime tells in `state`. Gives what could not be done, in words.
pub fn run(task: &Task, state: impl Read) -> Result<Vec<String>, HookError> {
    let state: State = json(state)?;
    let file = File::open(state.bundle.join("config.json")).map_err(HookError::Root)?;
    let config: Config = json(file)?;
    let root = Root::open(&state.bundle.join(config.root.path)).map_err(HookError::Root)?;
    Ok(root.work(task))
}

fn json<T: for<'de> Deserialize<'de>>(from: impl Read) -> Result<T, HookError> {
    let mut text = String::new();
    from.take(LARGEST).read_to_string(&mut text).map_err(|error| HookError::State(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| HookError::State(error.to_string()))
}

/// A container's files.
struct Root {
    root: OwnedFd,
    /// The mount that they are; others are somebody else's.
    mount: u64,
}

/// A library that is mounted.
struct Library {
    folder: PathBuf,
    file: String,
    name: String,
}

impl Root {
    fn open(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mount = mount_of(&root)?;
        Ok(Self { root, mount })
    }

    fn work(&self, task: &Task) -> Vec<String> {
        let mut faults = Vec::new();
        match task {
            Task::UpdateCache { folders } => {
                let libraries: Vec<Library> =
                    folders.iter().flat_map(|folder| self.libraries(folder, &mut faults)).collect();
                for library in &libraries {
                    let link = library.folder.join(&library.name);
                    if library.file != library.name
                        && let Err(error) = self.link(&library.file, &link)
                    {
                        faults.push(format!("{}: {error}", link.display()));
                    }
                }
                if let Err(error) = self.update_cache(&libraries, folders) {
                    faults.push(format!("/{CACHE_FOLDER}/{CACHE}: {error}"));
                }
            }
            Task::CreateLinks { links } => {
                for (target, link) in links {
                    if let Err(error) = self.link(target, link) {
                        faults.push(format!("{}: {error}", link.display()));
                    }
                }
            }
        }
        faults
    }

    /// Opens a path as the container would.
    fn at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let inside = path.strip_prefix("/").unwrap_or(path);
        let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
        // The kernel refuses what has no meaning for a mere place.
        let careful = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK | OFlags::NOCTTY };
        let flags = flags | careful | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..16 {
            match rustix::fs::openat2(&self.root, inside, flags, Mode::empty(), resolve) {
                // The kernel cannot always tell, while something is moved.
                Err(Errno::AGAIN) => {}
                opened => return opened,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens a folder of the container's own to write in it.
    fn own_folder(&self, path: &Path) -> io::Result<OwnedFd> {
        let folder = self.at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        if mount_of(&folder)? != self.mount {
            return Err(io::Error::other("it lies on a mount, which is left alone"));
        }
        Ok(folder)
    }

    /// The libraries that are mounted in a folder, one for each name: the file of that name before others.
    fn libraries(&self, folder: &Path, faults: &mut Vec<String>) -> Vec<Library> {
        let opened = match self.at(folder, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(opened) => opened,
            // Containers have but some of the folders.
            Err(Errno::NOENT | Errno::NOTDIR) => return Vec::new(),
            Err(error) => {
                faults.push(format!("{}: {error}", folder.display()));
                return Vec::new();
            }
        };
        let entries = Dir::read_from(&opened).into_iter().flatten().flatten().take(MOST_FILES);
        let names: BTreeSet<String> = entries
            .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
            .filter(|name| name.starts_with("lib") && name.contains(".so") && name.len() < 256)
            .collect();
        let mut found: BTreeMap<String, Library> = BTreeMap::new();
        for file in names {
            let path = folder.join(&file);
            if !self.is_mounted_file(&path) {
                continue;
            }
            let Some(name) = self.at(&path, OFlags::RDONLY).ok().and_then(|file| soname(&File::from(file))) else {
                continue;
            };
            if file == name || !found.contains_key(&name) {
                found.insert(name.clone(), Library { folder: folder.to_owned(), file, name });
            }
        }
        found.into_values().collect()
    }

    /// Whether a path leads to a file that the image did not bring along.
    fn is_mounted_file(&self, path: &Path) -> bool {
        let Ok(place) = self.at(path, OFlags::PATH) else { return false };
        let kind = rustix::fs::fstat(&place).map(|told| FileType::from_raw_mode(told.st_mode));
        kind == Ok(FileType::RegularFile) && mount_of(&place).is_ok_and(|mount| mount != self.mount)
    }

    /// Makes a link, in place of another.
    fn link(&self, target: &str, link: &Path) -> io::Result<()> {
        let (Some(folder), Some(name)) = (link.parent(), link.file_name()) else {
            return Err(io::Error::other("it is no place for a link"));
        };
        self.make_folder(folder)?;
        let folder = self.own_folder(folder)?;
        match rustix::fs::readlinkat(&folder, name, Vec::new()) {
            Ok(known) if known.to_bytes() == target.as_bytes() => return Ok(()),
            Ok(_) => rustix::fs::unlinkat(&folder, name, AtFlags::empty())?,
            Err(Errno::NOENT) => {}
            // A file or a mount of that name is what is wanted.
            Err(Errno::INVAL) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        Ok(rustix::fs::symlinkat(target, &folder, name)?)
    }

    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        let mut there = PathBuf::from("/");
        for part in folder.components().filter(|part| matches!(part, Component::Normal(_))) {
            let next = there.join(part);
            if let Err(Errno::NOENT) = self.at(&next, OFlags::PATH | OFlags::DIRECTORY) {
                let parent = self.own_folder(&there)?;
                rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755))?;
            }
            there = next;
        }
        Ok(())
    }

    /// Puts libraries into the cache, and takes those out that are not in `folders` any more.
    fn update_cache(&self, libraries: &[Library], folders: &[PathBuf]) -> io::Result<()> {
        let folder = match self.own_folder(Path::new(CACHE_FOLDER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let before = match self.at(&Path::new(CACHE_FOLDER).join(CACHE), OFlags::RDONLY) {
            Ok(file) => {
                let mut bytes = Vec::new();
                File::from(file).take(LARGEST).read_to_end(&mut bytes)?;
                bytes
            }
            Err(Errno::NOENT) if LOADERS.iter().any(|path| self.at(Path::new(path), OFlags::PATH).is_ok()) => {
                Cache::default().write()
            }
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let cache = Cache::parse(&before).ok_or_else(|| io::Error::other("its form is not known"))?;
        let own = libraries.iter().map(|library| {
            let path = library.folder.join(&library.file);
            Entry::own(&library.name, &path.to_string_lossy())
        });
        let gone = |entry: &Entry| {
            let path = Path::new(std::ffi::OsStr::from_bytes(&entry.path));
            let ours = path.parent().is_some_and(|parent| folders.iter().any(|folder| folder == parent));
            ours && matches!(self.at(path, OFlags::PATH), Err(Errno::NOENT))
        };
        let after = cache.with(own.collect(), gone).write();
        if after == before {
            return Ok(());
        }
        match rustix::fs::unlinkat(&folder, NEW_CACHE, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, NEW_CACHE, flags, Mode::from_raw_mode(0o644))?;
        let written = File::from(file).write_all(&after);
        let moved =
            written.and_then(|()| rustix::fs::renameat(&folder, NEW_CACHE, &folder, CACHE).map_err(io::Error::from));
        if moved.is_err() {
            let _ = rustix::fs::unlinkat(&folder, NEW_CACHE, AtFlags::empty());
        }
        moved
    }
}

/// The mount that an open file lies on.
fn mount_of(file: &OwnedFd) -> io::Result<u64> {
    let told = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    if told.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(io::Error::other("the kernel does not tell mounts"));
    }
    Ok(told.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// A bundle with files; the state that a runtime tells of it.
    fn bundle() -> (tempfile::TempDir, PathBuf, String) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(dir.path().join("config.json"), r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"}}"#).unwrap();
        let state = serde_json::json!({ "ociVersion": "1.0.2", "id": "x", "pid": 1, "bundle": dir.path() }).to_string();
        (dir, root, state)
    }

    fn links(of: &[(&str, &str)]) -> Task {
        Task::CreateLinks { links: of.iter().map(|(to, at)| ((*to).to_owned(), at.into())).collect() }
    }

    #[test]
    fn links_are_made_inside_and_nowhere_else() {
        let (dir, root, state) = bundle();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("escape")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink("old", root.join("usr/lib/libcuda.so.1")).unwrap();
        fs::write(root.join("usr/lib/libkept.so"), "x").unwrap();
        let task = links(&[
            ("libcuda.so.570", "/usr/lib/libcuda.so.1"),
            ("libcuda.so.1", "/usr/lib/deep/er/libcuda.so"),
            ("x", "/usr/lib/libkept.so"),
            ("x", "/escape/link"),
            ("x", "/../../link"),
        ]);
        let faults = run(&task, state.as_bytes()).unwrap();
        assert_eq!(fs::read_link(root.join("usr/lib/libcuda.so.1")).unwrap(), Path::new("libcuda.so.570"));
        assert!(root.join("usr/lib/deep/er/libcuda.so").is_symlink() && !root.join("usr/lib/libkept.so").is_symlink());
        // What leads out of the container leads to its own root instead.
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{faults:?}");
        assert!(!dir.path().join("link").exists() && !dir.path().join("link").is_symlink());
        let faults = run(&links(&[("x", "/magic/tmp/link")]), state.as_bytes()).unwrap();
        assert_eq!(faults.len(), 1, "{faults:?}");
    }

    #[test]
    fn a_cache_that_is_none_or_leads_elsewhere_is_left_alone() {
        let (dir, root, state) = bundle();
        let task = Task::UpdateCache { folders: vec!["/usr/lib".into(), "/no/such".into()] };
        assert_eq!(run(&task, state.as_bytes()).unwrap(), Vec::<String>::new());
        assert!(!root.join("etc/ld.so.cache").exists(), "who has no loader needs none");
        fs::create_dir_all(root.join("lib64")).unwrap();
        fs::write(root.join("lib64/ld-linux-x86-64.so.2"), "").unwrap();
        fs::create_dir_all(root.join("lib")).unwrap();
        fs::write(root.join("lib/ld-linux-aarch64.so.1"), "").unwrap();
        assert_eq!(run(&task, state.as_bytes()).unwrap(), Vec::<String>::new());
        fs::write(root.join("etc/ld.so.cache"), "nonsense").unwrap();
        let faults = run(&task, state.as_bytes()).unwrap();
        assert!(faults[0].contains("form is not known"), "{faults:?}");
        assert_eq!(fs::read_to_string(root.join("etc/ld.so.cache")).unwrap(), "nonsense");

        // Where the folder is a link, its target inside the root counts, never one of the machine.
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::remove_dir_all(root.join("etc")).unwrap();
        symlink(&outside, root.join("etc")).unwrap();
        run(&task, state.as_bytes()).unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_state_that_is_none_is_told() {
        let task = links(&[]);
        for bad in ["", "{}", "[]", r#"{"bundle":7}"#, r#"{"bundle":"/no/such"}"#] {
            assert!(run(&task, bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
