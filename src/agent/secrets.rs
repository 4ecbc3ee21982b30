//! Secrets of containers as files in memory.
//!
//! They lie in a memory file system of this node's own, one folder an instance, from before its process is made until the
//! process is gone. Nothing of it reaches a disk, swap included; after a reboot it is written anew from the ledger, where
//! the values are sealed.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{FsType, TMPFS_MAGIC, statfs},
};
use toft_model::{
    ids::InstanceId,
    name::Name,
    secret::{SealedSecret, SecretMount},
};

use crate::seal::{ClusterKey, OpenError, Place};

/// What a sealed value of a secret is bound to.
const KIND: &str = "secret";
/// Options of the memory file system. The kernel keeps `noswap` from version 6.4 on.
const TMPFS_OPTIONS: &str = "mode=0700,size=256m,noswap";
/// Older kernels: never swapped either, but without a bound of its own; what is written is bounded by what the state holds.
const RAMFS_OPTIONS: &str = "mode=0700";
/// `f_type` of ramfs, which nix does not name.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Why a container's secrets cannot be given to it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The node has not got it.
    #[error("secret `{0}` is not there any more; create it again, or change the workload so that it does without it")]
    Missing(Name),
    /// It cannot be opened.
    #[error("secret `{name}` cannot be opened")]
    Sealed {
        /// Its name.
        name: Name,
        /// Cause.
        source: OpenError,
    },
    /// There is no memory file system for it.
    #[error("no memory file system for secrets could be mounted on `{path}`")]
    Mount {
        /// Where.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The files could not be written.
    #[error("the secrets could not be written into memory")]
    Write(#[source] io::Error),
}

/// The memory file system with the secrets of this node's containers.
#[derive(Clone)]
pub struct SecretFiles {
    dir: PathBuf,
    key: Arc<ClusterKey>,
    /// Held while it is being mounted.
    mounting: Arc<Mutex<()>>,
}

impl SecretFiles {
    /// One at `dir`, mounted when the first secret asks for it.
    pub fn new(dir: PathBuf, key: ClusterKey) -> Self {
        Self { dir, key: Arc::new(key), mounting: Arc::default() }
    }

    /// The folder of an instance, to be bound to [`SecretMount::DIRECTORY`].
    pub fn folder(&self, id: InstanceId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Writes the files of an instance, the old ones replaced. No process of it may be there.
    pub fn write(
        &self,
        id: InstanceId,
        mounts: &[SecretMount],
        values: &BTreeMap<Name, SealedSecret>,
    ) -> Result<(), SecretError> {
        self.prepare()?;
        self.remove(id).map_err(SecretError::Write)?;
        let folder = self.folder(id);
        fs::DirBuilder::new().mode(0o755).create(&folder).map_err(SecretError::Write)?;
        let written = mounts.iter().try_for_each(|mount| self.write_one(&folder, mount, values));
        if written.is_err() {
            drop(self.remove(id));
        }
        written
    }

    fn write_one(
        &self,
        folder: &Path,
        mount: &SecretMount,
        values: &BTreeMap<Name, SealedSecret>,
    ) -> Result<(), SecretError> {
        let name = &mount.name;
        let SealedSecret { version, sealed } = values.get(name).ok_or_else(|| SecretError::Missing(name.clone()))?;
        let place = Place { kind: KIND, name: name.as_str(), version: *version };
        let opened = self.key.open(place, sealed.as_bytes());
        let value = opened.map_err(|source| SecretError::Sealed { name: name.clone(), source })?;
        let write = || -> io::Result<()> {
            let path = folder.join(mount.file());
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(value.as_bytes())?;
            fchown(&file, Some(mount.uid), Some(mount.gid))?;
            file.set_permissions(fs::Permissions::from_mode(mount.mode.bits()))
        };
        write().map_err(SecretError::Write)
    }

    /// Removes the files of an instance, if there are any.
    pub fn remove(&self, id: InstanceId) -> io::Result<()> {
        gone(fs::remove_dir_all(self.folder(id)))
    }

    /// Removes what instances left behind that nobody ordered any more.
    pub fn keep_only(&self, ordered: &HashSet<InstanceId>) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let id = entry?.file_name().to_str().and_then(|name| name.parse::<InstanceId>().ok());
            if let Some(id) = id.filter(|id| !ordered.contains(id)) {
                self.remove(id)?;
            }
        }
        Ok(())
    }

    /// Takes it away, with every secret in it.
    pub fn remove_all(dir: &Path) -> io::Result<()> {
        while is_in_memory(dir)? {
            umount2(dir, MntFlags::MNT_DETACH)?;
        }
        gone(fs::remove_dir(dir))
    }

    fn prepare(&self) -> Result<(), SecretError> {
        let _mounting = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        let mounted = || -> io::Result<()> {
            match fs::DirBuilder::new().mode(0o700).create(&self.dir) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            if is_in_memory(&self.dir)? { Ok(()) } else { mount_memory(&self.dir) }
        };
        mounted().map_err(|source| SecretError::Mount { path: self.dir.clone(), source })
    }
}

/// Whether a memory file system of our own is mounted on `dir`: it is one, and another than that of the parent.
fn is_in_memory(dir: &Path) -> io::Result<bool> {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    let own = match device(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        own => own?,
    };
    let parent = dir.parent().unwrap_or(Path::new("/"));
    let kind = statfs(dir)?.filesystem_type();
    Ok(own != device(parent)? && (kind == TMPFS_MAGIC || kind == RAMFS_MAGIC))
}

fn mount_memory(dir: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let try_one = |kind: &str, options: &str| mount(Some("toft-secrets"), dir, Some(kind), flags, Some(options));
    match try_one("tmpfs", TMPFS_OPTIONS) {
        Err(Errno::EINVAL) => Ok(try_one("ramfs", RAMFS_OPTIONS)?),
        mounted => Ok(mounted?),
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// Files at a place of their own, taken away at the end.
    struct Lab {
        files: SecretFiles,
        dir: tempfile::TempDir,
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            drop(SecretFiles::remove_all(&self.dir.path().join("secrets")));
        }
    }

    fn key(byte: u8) -> ClusterKey {
        ClusterKey::from_bytes([byte; 32])
    }

    fn lab() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        Lab { files: SecretFiles::new(dir.path().join("secrets"), key(7)), dir }
    }

    fn id(number: u128) -> InstanceId {
        InstanceId(Uuid::from_u128(number))
    }

    fn values(key: &ClusterKey, texts: &[(&str, &str)]) -> BTreeMap<Name, SealedSecret> {
        let seal = |(name, text): &(&str, &str)| {
            let place = Place { kind: KIND, name, version: 4 };
            let sealed = key.seal(place, &text.as_bytes().to_vec().into()).unwrap().into();
            (name.parse().unwrap(), SealedSecret { version: 4, sealed })
        };
        texts.iter().map(seal).collect()
    }

    fn mounts(texts: &[&str]) -> Vec<SecretMount> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn files_lie_in_memory_as_ordered_and_go() {
        let lab = lab();
        let values = values(&key(7), &[("db", "letmein"), ("key", "\0\u{1}")]);
        lab.files.write(id(1), &mounts(&["db,mode=0400,uid=12,gid=13", "key,target=the key"]), &values).unwrap();
        let folder = lab.files.folder(id(1));
        let db = fs::metadata(folder.join("db")).unwrap();
        assert_eq!((db.mode() & 0o7777, db.uid(), db.gid()), (0o400, 12, 13));
        assert_eq!(fs::read(folder.join("db")).unwrap(), b"letmein");
        assert_eq!(fs::read(folder.join("the key")).unwrap(), b"\0\x01");
        let base = fs::metadata(lab.dir.path().join("secrets")).unwrap();
        assert_eq!(base.mode() & 0o7777, 0o700, "nobody else gets to the folders");
        assert_ne!(base.dev(), fs::metadata(lab.dir.path()).unwrap().dev());
        let mounts_now = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts_now.lines().find(|line| line.contains(lab.dir.path().to_str().unwrap())).unwrap();
        assert!(line.contains("ramfs") || line.contains("noswap"), "{line}");

        // Again, with less: nothing of the old stays. Nothing is mounted twice.
        lab.files.write(id(1), &mounts(&["db"]), &values).unwrap();
        assert!(!folder.join("the key").exists());
        let mounts_now = fs::read_to_string("/proc/self/mounts").unwrap();
        let ours = mounts_now.lines().filter(|line| line.contains(lab.dir.path().to_str().unwrap()));
        assert_eq!(ours.count(), 1);
        lab.files.write(id(2), &mounts(&["db"]), &values).unwrap();
        lab.files.keep_only(&HashSet::from([id(2)])).unwrap();
        assert!(!folder.exists() && lab.files.folder(id(2)).exists());
        lab.files.remove(id(2)).unwrap();
        lab.files.remove(id(2)).unwrap();
        SecretFiles::remove_all(&lab.dir.path().join("secrets")).unwrap();
        assert_eq!(fs::read_dir(lab.dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_opened_leaves_nothing() {
        let lab = lab();
        let good = values(&key(7), &[("db", "letmein"), ("key", "other")]);
        let foreign = values(&key(8), &[("db", "letmein"), ("key", "other")]);
        let mut swapped = good.clone();
        swapped.insert("db".parse().unwrap(), good[&"key".parse().unwrap()].clone());
        let mut older = good.clone();
        older.get_mut(&"db".parse().unwrap()).unwrap().version = 5;
        for (values, words) in [
            (&BTreeMap::new(), "not there any more"),
            (&foreign, "cannot be opened"),
            (&swapped, "cannot be opened"),
            (&older, "cannot be opened"),
        ] {
            let error = lab.files.write(id(1), &mounts(&["key,target=first", "db"]), values).unwrap_err();
            let text = crate::observe::chain(&error);
            assert!(text.contains(words) && !text.contains("letmein"), "{text}");
            assert!(!lab.files.folder(id(1)).exists());
        }
    }

    #[test]
    fn kernels_without_noswap_get_ramfs() {
        let lab = lab();
        let dir = lab.dir.path().join("secrets");
        fs::create_dir(&dir).unwrap();
        mount(Some("toft-secrets"), &dir, Some("ramfs"), MsFlags::empty(), Some(RAMFS_OPTIONS)).unwrap();
        assert!(is_in_memory(&dir).unwrap());
        lab.files.write(id(1), &mounts(&["db"]), &values(&key(7), &[("db", "letmein")])).unwrap();
        assert_eq!(fs::read_to_string(lab.files.folder(id(1)).join("db")).unwrap(), "letmein");
    }
}
