//! What containers see of this node's disks: named volumes below a folder of ours, and folders of the host that the
//! configuration allows.
//!
//! [`Volumes::prepare`] makes everything ready for one container and gives the paths to mount; [`Volumes::fill`] gives
//! empty volumes what the image has. Paths that a container could change are opened so that they lead nowhere else and
//! held fast until its process is made. Nothing here waits for a server for ever, and nothing deletes data that the
//! cluster's state did not name.

pub mod archive;
mod error;
mod exchange;
mod filesystem;
mod locks;
mod mountinfo;
pub mod moving;
mod paths;
mod store;
#[cfg(test)]
mod tests;
mod transfer;

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use toft_model::{
    ids::InstanceId,
    instance::Assignment,
    name::Name,
    secret::SealedSecret,
    volume::{VolumeKind, VolumeOrder},
    workload::{Mount, VolumeMount},
};

pub use error::VolumeError;
use locks::Locks;
use paths::Pins;
use store::{Half, Store};
pub use transfer::{Known, Reading};

use super::runtime::HostMount;
use crate::seal::{ClusterKey, Place, Plain};

/// Longest time in which everything for one container is ready.
const PREPARING: Duration = Duration::from_secs(40);
/// Longest wait for a volume that something else is done with.
const WAITING: Duration = Duration::from_secs(20);

/// What volumes work with.
pub struct VolumesConfig {
    /// Folder of all volumes.
    pub dir: PathBuf,
    /// Folder for what is held fast while containers are made.
    pub pins: PathBuf,
    /// Folders below which containers may see what is there.
    pub bind_roots: Vec<PathBuf>,
    /// Name of this node.
    pub node: Name,
    /// Opens the passwords of volumes.
    pub key: ClusterKey,
}

/// The volumes of this node. Cheap to clone.
#[derive(Clone)]
pub struct Volumes {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    pins: PathBuf,
    bind_roots: Vec<PathBuf>,
    node: Name,
    key: ClusterKey,
    locks: Locks,
    sizes: transfer::Sizes,
    /// Whether something may be mounted for a volume.
    mounted: AtomicBool,
}

/// What is ready for one container. It is to be kept until the container's process is made.
pub struct Prepared {
    /// What is to be mounted.
    pub mounts: Vec<HostMount>,
    /// Empty volumes that are to get what the image has.
    pub empty: Vec<Empty>,
    _pins: Pins,
}

/// A volume that is to get what the image has.
pub struct Empty {
    name: Name,
    /// Path inside the container.
    pub target: PathBuf,
}

/// The folder of a volume that comes here, open. No container starts with the volume, and nobody deletes it, before this is
/// dropped.
pub struct Arriving {
    /// It.
    pub folder: OwnedFd,
    _held: locks::Held,
}

impl Volumes {
    /// Those below a folder, which is made. What an earlier life held fast is let go.
    pub fn open(config: VolumesConfig) -> io::Result<Self> {
        let VolumesConfig { dir, pins, bind_roots, node, key } = config;
        paths::clear_all(&pins)?;
        let (store, locks, sizes) = (Store::open(dir)?, Locks::default(), transfer::Sizes::default());
        let mounted = AtomicBool::new(true);
        Ok(Self { inner: Arc::new(Inner { store, pins, bind_roots, node, key, locks, sizes, mounted }) })
    }

    /// Takes away what is mounted for volumes below `dir`, and what is held fast below `pins`. The data stays.
    pub fn unmount_all(dir: &Path, pins: &Path) -> io::Result<()> {
        paths::clear_all(pins)?;
        mountinfo::detach(dir)
    }

    /// Makes everything ready that an order mounts.
    pub async fn prepare(
        &self,
        order: &Assignment,
        secrets: &BTreeMap<Name, SealedSecret>,
    ) -> Result<Prepared, VolumeError> {
        let id = order.instance_id;
        if order.container.mounts.is_empty() {
            return Ok(Prepared { mounts: Vec::new(), empty: Vec::new(), _pins: Pins::new(&self.inner.pins, id) });
        }
        let (volumes, mounts) = (self.clone(), order.container.mounts.clone());
        let (orders, secrets) = (order.volumes.clone(), secrets.clone());
        let names: Vec<&str> = orders.keys().map(Name::as_str).collect();
        let names = if names.is_empty() { "of the node".to_owned() } else { names.join(", ") };
        let work = tokio::task::spawn_blocking(move || volumes.inner.prepare(id, &mounts, &orders, &secrets));
        match tokio::time::timeout(PREPARING, work).await {
            Ok(prepared) => prepared.map_err(|error| VolumeError::Task(error.to_string()))?,
            Err(_) => Err(VolumeError::Hangs(names)),
        }
    }

    /// Gives volumes that are still empty what `root`, the container's files, has at their targets.
    pub async fn fill(&self, empty: Vec<Empty>, root: OwnedFd) -> Result<(), VolumeError> {
        let volumes = self.clone();
        let work = move || empty.iter().try_for_each(|empty| volumes.inner.fill(empty, &root));
        tokio::task::spawn_blocking(work).await.map_err(|error| VolumeError::Task(error.to_string()))?
    }

    /// Deletes the data of a removed volume. Blocks.
    pub fn delete(&self, name: &Name, born: u64) -> Result<(), VolumeError> {
        let _held = self.inner.hold(name)?;
        if self.inner.sizes.is_read(name) {
            return Err(VolumeError::Busy(name.clone()));
        }
        let path = self.inner.store.data(name);
        let deleted = self.inner.store.delete(name, born);
        if deleted.map_err(VolumeError::files("deleting the data of a removed volume,", &path))? {
            tracing::info!(volume.name = %name, "the data of a removed volume was deleted");
        }
        Ok(())
    }

    /// The folder of a volume's data on its way to another node, open. It is to be [read](Self::reading) already, and to lie
    /// here after that: what is being deleted would be given without what is gone. Blocks.
    pub fn outgoing(&self, name: &Name, born: u64) -> Result<OwnedFd, VolumeError> {
        let _held = self.inner.hold(name)?;
        let data = self.inner.store.ensure(name, born)?;
        paths::folder(&data).map_err(VolumeError::files("opening", &data))
    }

    /// The folder for the data of a volume that comes here. What lies here under its name and is to be deleted has to go
    /// first: `removed` says which, or `None` when the volume does not come any more; it is asked once nobody else can begin
    /// to use the volume. Blocks.
    pub fn incoming(
        &self,
        name: &Name,
        born: u64,
        removed: impl FnOnce() -> Option<Vec<u64>>,
    ) -> Result<Option<Arriving>, VolumeError> {
        let held = self.inner.hold(name)?;
        let Some(removed) = removed() else { return Ok(None) };
        if self.inner.store.born(name).is_some_and(|other| removed.contains(&other)) {
            return Err(VolumeError::Busy(name.clone()));
        }
        let data = self.inner.store.ensure(name, born)?;
        let folder = paths::folder(&data).map_err(VolumeError::files("opening", &data))?;
        Ok(Some(Arriving { folder, _held: held }))
    }

    /// Bytes on disk of a volume's data, counted now. Blocks.
    pub fn measured(&self, name: &Name) -> io::Result<u64> {
        measure(&self.inner.store.data(name))
    }

    /// Bytes that are free on the disk of the volumes.
    pub fn free(&self) -> io::Result<u64> {
        let told = rustix::fs::statvfs(self.inner.store.dir())?;
        Ok(told.f_bavail.saturating_mul(told.f_frsize))
    }

    /// Takes away mounts of volumes that `is_used`, asked while nobody can begin to use one, does not know. Blocks.
    pub fn unmount_unused(&self, is_used: impl Fn(&Name) -> bool) -> Result<(), VolumeError> {
        let inner = &self.inner;
        let dir = inner.store.dir();
        // Set again by whoever mounts from now on.
        if !inner.mounted.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let unmounted = inner.unmount_unused(dir, is_used);
        if unmounted.is_err() || !matches!(mountinfo::below(dir), Ok(left) if left.is_empty()) {
            inner.mounted.store(true, Ordering::SeqCst);
        }
        unmounted
    }

    /// Folders in which data lies that is none of `known` (names with their `born`).
    pub fn unknown(&self, known: &[(Name, u64)]) -> io::Result<Vec<PathBuf>> {
        let is_known = |name: &str, born: Option<u64>| {
            known.iter().any(|(known, wanted)| known.as_str() == name && born == Some(*wanted))
        };
        let found = self.inner.store.found()?.into_iter().filter(|(name, born)| !is_known(name, *born));
        Ok(found.map(|(name, _)| self.inner.store.dir().join(name)).collect())
    }
}

impl Inner {
    fn unmount_unused(&self, dir: &Path, is_used: impl Fn(&Name) -> bool) -> Result<(), VolumeError> {
        for mounted in mountinfo::below(dir).map_err(VolumeError::files("looking for mounts below", dir))? {
            let name = mounted.place.strip_prefix(dir).ok().and_then(|rest| rest.iter().next()?.to_str()?.parse().ok());
            let Some(name): Option<Name> = name else { continue };
            let Ok(_held) = self.hold(&name) else { continue };
            if !is_used(&name) {
                let place = self.store.data(&name);
                mountinfo::detach(&place).map_err(VolumeError::files("unmounting", &place))?;
            }
        }
        Ok(())
    }

    fn hold(&self, name: &Name) -> Result<locks::Held, VolumeError> {
        self.locks.hold(name, WAITING).ok_or_else(|| VolumeError::Busy(name.clone()))
    }

    fn prepare(
        &self,
        id: InstanceId,
        mounts: &[Mount],
        orders: &BTreeMap<Name, VolumeOrder>,
        secrets: &BTreeMap<Name, SealedSecret>,
    ) -> Result<Prepared, VolumeError> {
        let mut prepared = Prepared { mounts: Vec::new(), empty: Vec::new(), _pins: Pins::new(&self.pins, id) };
        for mount in mounts {
            let pins = &mut prepared._pins;
            let (source, read_only) = match mount {
                Mount::Bind(bind) => {
                    let path = Path::new(&bind.source);
                    let open = paths::allowed(&self.node, &self.bind_roots, path)?;
                    let pinned = pins.pin(&open, true, bind.read_only);
                    (pinned.map_err(VolumeError::files("mounting", path))?, bind.read_only)
                }
                Mount::Volume(volume) => {
                    let order = orders.get(&volume.name).ok_or_else(|| VolumeError::Missing(volume.name.clone()))?;
                    let _held = self.hold(&volume.name)?;
                    let data = self.ready(&volume.name, order, secrets)?;
                    if !volume.no_copy && volume.subpath.is_none() {
                        let empty = store::is_empty(&data).map_err(VolumeError::files("reading", &data))?;
                        let target = PathBuf::from(&volume.target);
                        prepared.empty.extend(empty.then(|| Empty { name: volume.name.clone(), target }));
                    }
                    (source_of(volume, order, data, pins)?, volume.read_only)
                }
            };
            prepared.mounts.push(HostMount { source, target: mount.target().into(), read_only });
        }
        Ok(prepared)
    }

    /// The folder of a volume's data, there and mounted. The volume is held.
    fn ready(
        &self,
        name: &Name,
        order: &VolumeOrder,
        secrets: &BTreeMap<Name, SealedSecret>,
    ) -> Result<PathBuf, VolumeError> {
        let data = self.store.data(name);
        let Some(kind) = order.options.kind else { return self.store.ensure(name, order.born) };
        let finished = || exchange::finish(&data).map_err(VolumeError::files("ending the restore of", &data));
        // While it is mounted nothing in its folder is touched.
        if mountinfo::is_mounted(&data).map_err(VolumeError::files("looking at", &data))? {
            finished()?;
            return Ok(data);
        }
        self.store.ensure(name, order.born)?;
        let password = self.password(name, order, secrets)?;
        let source = match (kind, &order.options.device) {
            (VolumeKind::Folder, Some(device)) => {
                Some(paths::allowed(&self.node, &self.bind_roots, Path::new(device))?)
            }
            _ => None,
        };
        let wanted =
            filesystem::Wanted { name, node: &self.node, options: &order.options, password: password.as_ref() };
        wanted.mount(kind, &data, source)?;
        self.mounted.store(true, Ordering::SeqCst);
        finished()?;
        Ok(data)
    }

    fn password(
        &self,
        volume: &Name,
        order: &VolumeOrder,
        secrets: &BTreeMap<Name, SealedSecret>,
    ) -> Result<Option<Plain>, VolumeError> {
        let Some(secret) = &order.options.secret else { return Ok(None) };
        let no_secret = || VolumeError::NoSecret { volume: volume.clone(), secret: secret.clone() };
        let SealedSecret { version, sealed } = secrets.get(secret).ok_or_else(no_secret)?;
        let place = Place { kind: "secret", name: secret.as_str(), version: *version };
        let opened = self.key.open(place, sealed.as_bytes());
        opened.map(Some).map_err(|source| VolumeError::Sealed { volume: volume.clone(), source })
    }

    fn fill(&self, empty: &Empty, root: &OwnedFd) -> Result<(), VolumeError> {
        let Empty { name, target } = empty;
        let _held = self.hold(name)?;
        let data = self.store.data(name);
        let reading = VolumeError::files("reading", &data);
        // Another container may have been first, or wrote into it.
        if !store::is_empty(&data).map_err(&reading)? {
            return Ok(());
        }
        let Ok(from) = paths::in_root(root, target) else {
            // The image has no folder there.
            return Ok(());
        };
        let filled = |source| VolumeError::Fill { volume: name.clone(), source };
        if mountinfo::is_mounted(&data).map_err(&reading)? {
            let copied = |to: OwnedFd| archive::copy(from.as_fd(), to.as_fd()).map_err(filled);
            return exchanged(&data, copied).map(drop);
        }
        let place = self.store.begin(name, Half::Filling).map_err(&reading)?;
        let copied = match paths::folder(&place) {
            Ok(to) => archive::copy(from.as_fd(), to.as_fd()).map(drop).map_err(filled),
            Err(error) => Err(reading(error)),
        };
        if copied.is_err() {
            self.store.abandon(name, Half::Filling);
            return copied;
        }
        self.store.complete(name, Half::Filling).map_err(&reading)
    }
}

/// Gives a volume that is a file system of its own the content that `fill` writes into a folder; if that fails, it is as it
/// was.
fn exchanged<T>(data: &Path, fill: impl FnOnce(OwnedFd) -> Result<T, VolumeError>) -> Result<T, VolumeError> {
    let failed = VolumeError::files("exchanging the content of", data);
    let (exchange, new) = exchange::Exchange::begin(data).map_err(&failed)?;
    match fill(new) {
        Ok(filled) => exchange.complete().map_err(&failed).map(|()| filled),
        Err(error) => {
            if let Err(error) = exchange.abandon() {
                tracing::warn!(%error, "what was cut short in `{}` could not be removed", data.display());
            }
            Err(error)
        }
    }
}

/// The path to mount for a volume. A folder that only we can change is its own; anything else is held fast.
fn source_of(
    volume: &VolumeMount,
    order: &VolumeOrder,
    data: PathBuf,
    pins: &mut Pins,
) -> Result<PathBuf, VolumeError> {
    if volume.subpath.is_none() && order.options.kind.is_none() {
        return Ok(data);
    }
    let root = paths::folder(&data).map_err(VolumeError::files("opening", &data))?;
    let Some(subpath) = &volume.subpath else {
        return pins.pin(&root, true, volume.read_only).map_err(VolumeError::files("mounting", &data));
    };
    let no_subpath = |source| VolumeError::NoSubpath { volume: volume.name.clone(), path: subpath.clone(), source };
    let open = paths::beneath(&root, Path::new(subpath)).map_err(no_subpath)?;
    pins.pin(&open, false, volume.read_only).map_err(no_subpath)
}

/// Bytes on disk of everything below a folder, on its file system; files with several names count once.
fn measure(folder: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let device = fs::symlink_metadata(folder)?.dev();
    let (mut open, mut bytes, mut seen) = (vec![folder.to_owned()], 0, std::collections::HashSet::new());
    while let Some(dir) = open.pop() {
        let entries = match fs::read_dir(&dir) {
            // It went while it was looked at.
            Err(error) if dir != folder && error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != device {
                continue;
            }
            if meta.nlink() == 1 || meta.is_dir() || seen.insert(meta.ino()) {
                bytes += meta.blocks() * 512;
            }
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(bytes)
}
