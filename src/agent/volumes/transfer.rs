//! Backups of volumes and the way back, as zstd around the stream of [`super::archive`]; and how large volumes are.

use std::{
    collections::BTreeMap,
    io::{BufReader, Read, Write},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use toft_model::{name::Name, secret::SealedSecret, volume::VolumeOrder};
use tokio::sync::watch;
use zstd::stream::{read::Decoder, write::Encoder};

use super::{
    Half, VolumeError, Volumes,
    archive::{self, ArchiveError, Manifest, Summary},
    exchanged, measure, mountinfo, paths, store,
};

/// Compression that keeps up with a disk.
const LEVEL: i32 = 3;
/// Age from which a size is measured again.
const FRESH: Duration = Duration::from_secs(30);
/// Longest wait for a size; it is measured on meanwhile.
const SIZE_LIMIT: Duration = Duration::from_millis(800);

/// A volume as the state knows it.
pub struct Known<'a> {
    /// Its name.
    pub name: &'a Name,
    /// What it is.
    pub order: &'a VolumeOrder,
    /// The secrets that it names.
    pub secrets: &'a BTreeMap<Name, SealedSecret>,
}

/// What was measured, what is being measured, and what is being read as a whole.
#[derive(Clone, Default)]
pub(super) struct Sizes(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    measured: BTreeMap<Name, (u64, Instant)>,
    under_way: BTreeMap<Name, watch::Receiver<()>>,
    readers: BTreeMap<Name, usize>,
}

impl Sizes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, name: &Name) {
        self.state().measured.remove(name);
    }

    /// Whether the volume is read as a whole.
    pub(super) fn is_read(&self, name: &Name) -> bool {
        self.state().readers.contains_key(name)
    }
}

/// A volume that is read, for a backup or for another node: until this is dropped its data is neither deleted nor replaced.
pub struct Reading(Sizes, Name);

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = self.0.state();
        let left = state.readers.get(&self.1).map_or(0, |count| count - 1);
        if left == 0 {
            state.readers.remove(&self.1);
        } else {
            state.readers.insert(self.1.clone(), left);
        }
    }
}

impl Volumes {
    /// Bytes on disk of a volume that is here, measured not long ago; `None` when that takes too long, in which case
    /// the next call may know.
    pub async fn size(&self, name: &Name) -> Option<u64> {
        let sizes = &self.inner.sizes;
        let mut waits = {
            let mut state = sizes.state();
            if let Some((bytes, _)) = state.measured.get(name).filter(|(_, at)| at.elapsed() < FRESH) {
                return Some(*bytes);
            }
            match state.under_way.get(name) {
                Some(waits) => waits.clone(),
                None => {
                    let (done, waits) = watch::channel(());
                    state.under_way.insert(name.clone(), waits.clone());
                    self.measure_later(name.clone(), done);
                    waits
                }
            }
        };
        // The sender goes when the size is known, or cannot be.
        drop(tokio::time::timeout(SIZE_LIMIT, async { while waits.changed().await.is_ok() {} }).await);
        sizes.state().measured.get(name).map(|(bytes, _)| *bytes)
    }

    fn measure_later(&self, name: Name, done: watch::Sender<()>) {
        let volumes = self.clone();
        tokio::task::spawn_blocking(move || {
            let measured = measure(&volumes.inner.store.data(&name));
            let mut state = volumes.inner.sizes.state();
            if let Ok(bytes) = measured {
                state.measured.insert(name.clone(), (bytes, Instant::now()));
            }
            state.under_way.remove(&name);
            drop(done);
        });
    }

    /// The data of a volume is about to be read as a whole.
    pub fn reading(&self, name: &Name) -> Reading {
        let sizes = &self.inner.sizes;
        *sizes.state().readers.entry(name.clone()).or_default() += 1;
        Reading(sizes.clone(), name.clone())
    }

    /// Where a volume's data is on this node.
    pub fn path(&self, name: &Name) -> std::path::PathBuf {
        self.inner.store.data(name)
    }

    /// Writes a backup of a volume. Whoever uses it goes on. Blocks.
    pub fn back_up(&self, volume: &Known<'_>, out: impl Write) -> Result<Summary, VolumeError> {
        let Known { name, order, secrets } = *volume;
        let inner = &self.inner;
        let _reading = self.reading(name);
        let (data, folder) = {
            let _held = inner.hold(name)?;
            let data = inner.ready(name, order, secrets)?;
            let folder = paths::folder(&data).map_err(VolumeError::files("opening", &data))?;
            (data, folder)
        };
        let pour = || -> std::io::Result<Summary> {
            let mut zstd = Encoder::new(out, LEVEL)?;
            zstd.include_checksum(true)?;
            let manifest = Manifest::new(name.as_str(), inner.node.as_str());
            let (summary, zstd) = archive::write(folder.as_fd(), &manifest, zstd)?;
            zstd.finish()?.flush()?;
            Ok(summary)
        };
        pour().map_err(VolumeError::files("backing up", &data))
    }

    /// Puts a backup into a volume that nothing uses; into one that is not empty only with `replace`, which deletes what is
    /// there once the backup was read whole. Blocks.
    pub fn restore(&self, volume: &Known<'_>, input: impl Read, replace: bool) -> Result<Summary, VolumeError> {
        let Known { name, order, secrets } = *volume;
        let inner = &self.inner;
        let _held = inner.hold(name)?;
        if inner.sizes.is_read(name) {
            return Err(VolumeError::Busy(name.clone()));
        }
        let data = inner.ready(name, order, secrets)?;
        let failed = VolumeError::files("restoring", &data);
        if !replace && !store::is_empty(&data).map_err(&failed)? {
            return Err(VolumeError::NotEmpty(name.clone()));
        }
        let zstd = Decoder::new(input).map_err(|error| VolumeError::Archive(ArchiveError::Damaged(error)))?;
        inner.sizes.forget(name);
        if mountinfo::is_mounted(&data).map_err(&failed)? {
            let read = |new: OwnedFd| archive::read(new.as_fd(), BufReader::new(zstd)).map_err(VolumeError::Archive);
            return exchanged(&data, read);
        }
        let place = inner.store.begin(name, Half::Restoring).map_err(&failed)?;
        let read = match paths::folder(&place) {
            Ok(folder) => archive::read(folder.as_fd(), BufReader::new(zstd)).map_err(VolumeError::Archive),
            Err(error) => Err(failed(error)),
        };
        match read {
            Ok(summary) => {
                inner.store.complete(name, Half::Restoring).map_err(&failed)?;
                Ok(summary)
            }
            Err(error) => {
                inner.store.abandon(name, Half::Restoring);
                Err(error)
            }
        }
    }
}
