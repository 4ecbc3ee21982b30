//! New content for a volume that is a file system of its own (a server, memory, a folder of the host): there is no second
//! place beside it that the volume could be exchanged with, so what is new is read whole into a folder in it and changes
//! places with what is there by renames. Until it is whole the volume is as it was; what was cut short after that is ended
//! by whoever uses the volume next.
//!
//! Containers can write there: nothing is used by its path, only by its descriptor, and no link is followed.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, Dir, Gid, Mode, OFlags, Uid, fchmod, fchown, fstat, fsync, futimens, mkdirat, openat, renameat,
        unlinkat,
    },
    io::Errno,
};

use super::paths;

/// The folder in the volume.
pub(super) const FOLDER: &str = ".toft-restore";
/// What is being read.
const NEW: &str = "new";
/// It was read whole: what is old goes.
const WHOLE: &str = "whole";
/// What is old went: what is new comes.
const COMING: &str = "coming";
/// What was there before.
const OLD: &str = "old";

/// An exchange under way.
pub(super) struct Exchange {
    data: OwnedFd,
    folder: OwnedFd,
}

impl Exchange {
    /// Ends what was left half done, and makes an empty folder for what is new.
    pub(super) fn begin(data: &Path) -> io::Result<(Self, OwnedFd)> {
        finish(data)?;
        let data = paths::folder(data)?;
        mkdirat(&data, FOLDER, Mode::RWXU)?;
        let folder = inside(&data, FOLDER)?.ok_or(Errno::NOENT)?;
        mkdirat(&folder, NEW, Mode::RWXU)?;
        let new = inside(&folder, NEW)?.ok_or(Errno::NOENT)?;
        Ok((Self { data, folder }, new))
    }

    /// What is new is whole: it takes the place of what is there.
    pub(super) fn complete(self) -> io::Result<()> {
        if let Some(new) = inside(&self.folder, NEW)? {
            fsync(&new)?;
        }
        renameat(&self.folder, NEW, &self.folder, WHOLE)?;
        self.go_on()
    }

    /// Throws away what is new.
    pub(super) fn abandon(self) -> io::Result<()> {
        self.clear()
    }

    fn go_on(self) -> io::Result<()> {
        if let Some(whole) = inside(&self.folder, WHOLE)? {
            match mkdirat(&self.folder, OLD, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let old = inside(&self.folder, OLD)?.ok_or(Errno::NOTDIR)?;
            move_all(&self.data, &old)?;
            drop(whole);
            renameat(&self.folder, WHOLE, &self.folder, COMING)?;
        }
        if let Some(coming) = inside(&self.folder, COMING)? {
            move_all(&coming, &self.data)?;
            let told = fstat(&coming)?;
            fchown(&self.data, Some(Uid::from_raw(told.st_uid)), Some(Gid::from_raw(told.st_gid)))?;
            fchmod(&self.data, Mode::from_raw_mode(told.st_mode))?;
        }
        self.clear()
    }

    /// Removes the folder with all that is in it.
    fn clear(self) -> io::Result<()> {
        let told = fstat(&self.data)?;
        // The standard library follows no link in there.
        fs::remove_dir_all(within(&self.data, FOLDER))?;
        // Nobody is to see that something was there.
        let time = |tv_sec, tv_nsec: u64| rustix::fs::Timespec { tv_sec, tv_nsec: tv_nsec as i64 };
        futimens(
            &self.data,
            &rustix::fs::Timestamps {
                last_access: time(told.st_atime, told.st_atime_nsec),
                last_modification: time(told.st_mtime, told.st_mtime_nsec),
            },
        )?;
        Ok(())
    }
}

/// Ends what was left half done: what is whole takes its place, what is not goes.
pub(super) fn finish(data: &Path) -> io::Result<()> {
    let data = paths::folder(data)?;
    match inside(&data, FOLDER) {
        Ok(None) => Ok(()),
        Ok(Some(folder)) => Exchange { data, folder }.go_on(),
        // Not ours: a file or a link of somebody's.
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(unlinkat(&data, FOLDER, AtFlags::empty())?),
        Err(error) => Err(error.into()),
    }
}

/// Moves everything but what belongs to the file system or is ours.
fn move_all(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::read_from(from)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b".." | b"lost+found") && name.as_bytes() != FOLDER.as_bytes() {
            names.push(name);
        }
    }
    for name in names {
        match renameat(from, &name, to, &name) {
            // Another node ends it, too.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A folder in an open one; nothing when there is none.
fn inside(parent: &OwnedFd, name: &str) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn within(directory: &OwnedFd, name: &str) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn volume() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("old folder/in")).unwrap();
        fs::write(dir.path().join("both"), "old").unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        dir
    }

    fn fill(path: &Path) {
        fs::write(path.join("both"), "new").unwrap();
        fs::create_dir(path.join("new folder")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o2750)).unwrap();
        std::os::unix::fs::chown(path, Some(5), Some(6)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o2750)).unwrap();
    }

    fn assert_new(volume: &Path) {
        assert_eq!(names(volume), ["both", "lost+found", "new folder"]);
        assert_eq!(fs::read_to_string(volume.join("both")).unwrap(), "new");
        let told = fs::metadata(volume).unwrap();
        assert_eq!((told.mode() & 0o7777, told.uid(), told.gid()), (0o2750, 5, 6));
    }

    #[test]
    fn what_is_new_takes_the_place_of_what_is_there_or_goes_without_a_trace() {
        let volume = volume();
        let before = fs::metadata(volume.path()).unwrap();
        let (exchange, new) = Exchange::begin(volume.path()).unwrap();
        fill(&within(&new, "."));
        assert_eq!(fs::read_to_string(volume.path().join("both")).unwrap(), "old");
        exchange.abandon().unwrap();
        assert_eq!(names(volume.path()), ["both", "lost+found", "old folder"]);
        assert_eq!(fs::metadata(volume.path()).unwrap().mode(), before.mode());
        let (exchange, new) = Exchange::begin(volume.path()).unwrap();
        fill(&within(&new, "."));
        exchange.complete().unwrap();
        assert_new(volume.path());
    }

    #[test]
    fn what_a_crash_cut_short_is_ended_or_thrown_away() {
        // Before it was whole.
        let dir = volume();
        fill(&within(&Exchange::begin(dir.path()).unwrap().1, "."));
        finish(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["both", "lost+found", "old folder"]);
        // After that, at each step: `moved` names of what is old went, and of what is new came.
        for (moved, came) in [(0, None), (1, None), (2, None), (2, Some(0)), (2, Some(1)), (2, Some(2))] {
            let dir = volume();
            let at = |name: &str| dir.path().join(FOLDER).join(name);
            fill(&within(&Exchange::begin(dir.path()).unwrap().1, "."));
            fs::rename(at(NEW), at(WHOLE)).unwrap();
            fs::create_dir(at(OLD)).unwrap();
            for name in ["both", "old folder"].into_iter().take(moved) {
                fs::rename(dir.path().join(name), at(OLD).join(name)).unwrap();
            }
            if let Some(came) = came {
                fs::rename(at(WHOLE), at(COMING)).unwrap();
                for name in ["both", "new folder"].into_iter().take(came) {
                    fs::rename(at(COMING).join(name), dir.path().join(name)).unwrap();
                }
            }
            finish(dir.path()).unwrap();
            assert_new(dir.path());
        }
    }

    #[test]
    fn links_in_its_place_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        for name in [NEW, WHOLE, COMING, OLD] {
            fs::create_dir(outside.path().join(name)).unwrap();
            fs::write(outside.path().join(name).join("precious"), "x").unwrap();
        }
        let dir = volume();
        symlink(outside.path(), dir.path().join(FOLDER)).unwrap();
        finish(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["both", "lost+found", "old folder"]);
        for name in [NEW, WHOLE, COMING, OLD] {
            fs::create_dir(dir.path().join(FOLDER)).unwrap();
            symlink(outside.path().join(name), dir.path().join(FOLDER).join(name)).unwrap();
            drop(finish(dir.path()));
            fs::remove_dir_all(dir.path().join(FOLDER))
                .or_else(|error| match error.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })
                .unwrap();
        }
        for name in [NEW, WHOLE, COMING, OLD] {
            assert_eq!(names(&outside.path().join(name)), ["precious"]);
        }
        assert_eq!(names(dir.path()), ["both", "lost+found", "old folder"]);
    }
}
