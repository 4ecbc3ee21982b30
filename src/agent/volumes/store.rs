//! Volumes as folders: `NAME/_data` with the data, and `NAME/volume.json`, which tells a volume from an earlier one of
//! the same name.
//!
//! What is half done has a name of its own, so that the next look at a volume finishes it or throws it away:
//! `filling` and `restoring` are not whole; `filled` is whole and moves into `_data`; `restored` is whole and takes the
//! place of `_data`, which is `old` for that moment.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use toft_model::name::Name;

use super::{VolumeError, mountinfo};

/// Name of the folder with the data.
pub(super) const DATA: &str = "_data";
const MARKER: &str = "volume.json";
const FILLING: &str = "filling";
const FILLED: &str = "filled";
const RESTORING: &str = "restoring";
const RESTORED: &str = "restored";
const OLD: &str = "old";
/// How folders begin that are on their way out.
const REMOVED: &str = ".removed-";
/// How folders begin that are not whole yet.
const NEW: &str = ".new-";
/// Folder for data of the same name as a volume that is another.
const ASIDE: &str = ".aside";

#[derive(Serialize, Deserialize)]
struct Marker {
    born: u64,
}

/// The folder of all volumes.
#[derive(Clone)]
pub(super) struct Store {
    dir: PathBuf,
}

impl Store {
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(NEW) || name.starts_with(REMOVED)) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self { dir })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whose data lies under a name.
    pub(super) fn born(&self, name: &Name) -> Option<u64> {
        born(&self.folder(name))
    }

    fn folder(&self, name: &Name) -> PathBuf {
        self.dir.join(name.as_str())
    }

    /// The folder with a volume's data.
    pub(super) fn data(&self, name: &Name) -> PathBuf {
        self.folder(name).join(DATA)
    }

    /// The volumes whose data is here, each with its `born`; `None` for a folder that says nothing of itself.
    pub(super) fn found(&self) -> io::Result<Vec<(String, Option<u64>)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() && !name.starts_with('.') {
                found.push((name, born(&entry.path())));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Makes a volume's folder, if it is not there, and ends what was left half done; gives the folder of its data. The
    /// data of another volume of that name is set aside, never used and never deleted.
    pub(super) fn ensure(&self, name: &Name, wanted: u64) -> Result<PathBuf, VolumeError> {
        let folder = self.folder(name);
        let failed = VolumeError::files("preparing the volume's folder", &folder);
        if folder.exists() && born(&folder) != Some(wanted) {
            self.set_aside(name).map_err(&failed)?;
        }
        if !folder.exists() {
            self.make(name, wanted).map_err(&failed)?;
        }
        finish(&folder).map_err(&failed)?;
        Ok(folder.join(DATA))
    }

    fn make(&self, name: &Name, born: u64) -> io::Result<()> {
        let new = self.dir.join(format!("{NEW}{name}"));
        gone(fs::remove_dir_all(&new))?;
        fs::DirBuilder::new().mode(0o700).create(&new)?;
        fs::DirBuilder::new().mode(0o755).create(new.join(DATA))?;
        fs::write(new.join(MARKER), serde_json::to_vec(&Marker { born })?)?;
        fs::File::open(new.join(MARKER))?.sync_all()?;
        fs::rename(&new, self.folder(name))?;
        fs::File::open(&self.dir)?.sync_all()
    }

    fn set_aside(&self, name: &Name) -> io::Result<()> {
        let folder = self.folder(name);
        mountinfo::detach(&folder)?;
        let aside = self.dir.join(ASIDE);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&aside)?;
        let place = aside.join(format!("{name}-{}", jiff::Timestamp::now().as_millisecond()));
        fs::rename(&folder, &place)?;
        tracing::warn!(
            volume.name = %name,
            "data under this name that the cluster does not know was moved to `{}`", place.display()
        );
        Ok(())
    }

    /// Deletes a volume's data, if it is that volume's; `false` when it is not there.
    pub(super) fn delete(&self, name: &Name, wanted: u64) -> io::Result<bool> {
        let folder = self.folder(name);
        if born(&folder) != Some(wanted) {
            return Ok(false);
        }
        mountinfo::detach(&folder)?;
        // What is mounted in there is somebody else's data.
        if let Some(mounted) = mountinfo::below(&folder)?.first() {
            return Err(io::Error::other(format!("`{}` is still mounted", mounted.place.display())));
        }
        let removed = self.dir.join(format!("{REMOVED}{name}-{wanted}"));
        fs::rename(&folder, &removed)?;
        fs::remove_dir_all(&removed)?;
        Ok(true)
    }

    /// An empty folder in which a volume is filled or restored.
    pub(super) fn begin(&self, name: &Name, what: Half) -> io::Result<PathBuf> {
        let place = self.folder(name).join(what.begun());
        gone(fs::remove_dir_all(&place))?;
        fs::DirBuilder::new().mode(0o700).create(&place)?;
        Ok(place)
    }

    /// What [`Store::begin`] gave is whole: it becomes the volume's data.
    pub(super) fn complete(&self, name: &Name, what: Half) -> io::Result<()> {
        let folder = self.folder(name);
        fs::rename(folder.join(what.begun()), folder.join(what.done()))?;
        finish(&folder)
    }

    /// Throws away what [`Store::begin`] gave.
    pub(super) fn abandon(&self, name: &Name, what: Half) {
        let place = self.folder(name).join(what.begun());
        if let Err(error) = gone(fs::remove_dir_all(&place)) {
            tracing::warn!(%error, "`{}` could not be removed", place.display());
        }
    }
}

/// What a volume's folder is made new by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Filling,
    Restoring,
}

impl Half {
    fn begun(self) -> &'static str {
        match self {
            Self::Filling => FILLING,
            Self::Restoring => RESTORING,
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Filling => FILLED,
            Self::Restoring => RESTORED,
        }
    }
}

fn born(folder: &Path) -> Option<u64> {
    let text = fs::read(folder.join(MARKER)).ok()?;
    serde_json::from_slice::<Marker>(&text).ok().map(|marker| marker.born)
}

/// Ends what was left half done.
fn finish(folder: &Path) -> io::Result<()> {
    let data = folder.join(DATA);
    for half in [FILLING, RESTORING] {
        gone(fs::remove_dir_all(folder.join(half)))?;
    }
    let filled = folder.join(FILLED);
    if filled.exists() {
        for entry in fs::read_dir(&filled)? {
            let entry = entry?;
            fs::rename(entry.path(), data.join(entry.file_name()))?;
        }
        take_over(&filled, &data)?;
        fs::remove_dir(&filled)?;
    }
    let restored = folder.join(RESTORED);
    if restored.exists() {
        if data.exists() {
            gone(fs::remove_dir_all(folder.join(OLD)))?;
            fs::rename(&data, folder.join(OLD))?;
        }
        fs::rename(&restored, &data)?;
    }
    gone(fs::remove_dir_all(folder.join(OLD)))?;
    match fs::DirBuilder::new().mode(0o755).create(&data) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Gives a folder the owner and permissions of another.
fn take_over(from: &Path, to: &Path) -> io::Result<()> {
    let meta = fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(to, meta.permissions())
}

/// Whether a folder holds nothing; what a file system puts into its own root does not count.
pub(super) fn is_empty(folder: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        if entry?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
