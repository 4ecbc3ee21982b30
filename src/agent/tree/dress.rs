//! What an archive says of a file besides its content: owner, attributes, permissions, times, in the order in which one
//! does not undo the other. A change of the owner takes rights and capabilities away, so these come after it.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmod, chownat, fchmod, fchown,
        fsetxattr, fstat, futimens, lsetxattr, openat, setxattr, utimensat,
    },
    io::Errno,
};

use super::{
    Attribute, Fault, Member, Owner, Policy, Why,
    attributes::{DEFAULT_LIST, through},
    place::Place,
};

/// What a file gets.
pub(super) struct About<'a> {
    owner: Option<(Uid, Gid)>,
    mode: Mode,
    times: Timestamps,
    attributes: Vec<(&'a str, &'a [u8])>,
}

/// What a directory gets when everything is in it.
pub(super) struct Later {
    pub(super) mode: Option<Mode>,
    pub(super) times: Timestamps,
    /// What files in it would inherit.
    pub(super) list: Option<Vec<u8>>,
}

impl<'a> About<'a> {
    pub(super) fn of(member: &'a Member, policy: &Policy, path: &Path) -> Result<Self, Fault> {
        let mut attributes = Vec::new();
        for (name, value) in &member.attributes {
            match (policy.attributes)(name) {
                Attribute::Kept => attributes.push((name.as_str(), value.as_slice())),
                Attribute::LeftOut => {}
                Attribute::Refused => {
                    let name = name.chars().filter(|c| !c.is_control()).take(100).collect();
                    return Err(Fault::refused(path, Why::Attribute(name)));
                }
            }
        }
        let (owner, mode) = match policy.owner {
            Owner::AsArchived => (Some((Uid::from_raw(member.uid), Gid::from_raw(member.gid))), 0o7777),
            Owner::Root => (Some((Uid::ROOT, Gid::ROOT)), 0o7777),
            Owner::Caller => (None, 0o1777),
        };
        let mode = Mode::from_raw_mode(member.mode & mode);
        Ok(Self { owner, mode, times: times(member.modified), attributes })
    }

    /// Describes an open file.
    pub(super) fn file(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        self.own(file)?;
        self.attribute(file)?;
        fchmod(file, self.mode)?;
        futimens(file, &self.times)
    }

    /// Describes a file in which something is mounted: its permissions stay.
    pub(super) fn mounted(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        self.own(file)?;
        futimens(file, &self.times)
    }

    /// Describes an open directory as far as that does not stop files from being made in it; the rest comes later.
    pub(super) fn directory(&self, directory: BorrowedFd<'_>) -> Result<Later, Errno> {
        self.own(directory)?;
        self.attribute(directory)?;
        let mode = match self.owner {
            Some(_) => {
                fchmod(directory, self.mode)?;
                None
            }
            // Who is not root needs the right to write until then.
            None => Some(self.mode),
        };
        let list = self.attributes.iter().find(|(name, _)| *name == DEFAULT_LIST).map(|(_, value)| value.to_vec());
        Ok(Later { mode, times: self.times.clone(), list })
    }

    /// Describes what cannot be opened: a link, a pipe, a device.
    pub(super) fn other(&self, place: &Place<'_>, kind: FileType) -> Result<(), Errno> {
        let (parent, name) = (&*place.parent, place.name);
        if let Some((uid, gid)) = self.owner {
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        for (name, value) in &self.attributes {
            kept(lsetxattr(place.within(), *name, value, XattrFlags::empty()))?;
        }
        if kind != FileType::Symlink {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let open = openat(parent, name, flags, Mode::empty())?;
            // Somebody may have put something else there, and this would follow it if it were a link.
            if FileType::from_raw_mode(fstat(&open)?.st_mode) == kind {
                chmod(through(&open), self.mode)?;
            }
        }
        utimensat(parent, name, &self.times, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn own(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        match self.owner {
            Some((uid, gid)) => fchown(file, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    fn attribute(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        for (name, value) in self.attributes.iter().filter(|(name, _)| *name != DEFAULT_LIST) {
            kept(fsetxattr(file, *name, value, XattrFlags::empty()))?;
        }
        Ok(())
    }
}

impl Later {
    pub(super) fn settle(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        if let Some(mode) = self.mode {
            fchmod(directory, mode)?;
        }
        if let Some(list) = &self.list {
            kept(setxattr(through(directory.as_fd()), DEFAULT_LIST, list, XattrFlags::empty()))?;
        }
        futimens(directory, &self.times)
    }
}

/// The file system may have no attributes: whoever needs them says what it lacks.
fn kept(set: Result<(), Errno>) -> Result<(), Errno> {
    match set {
        Err(Errno::OPNOTSUPP) => Ok(()),
        set => set,
    }
}

fn times(modified: Timespec) -> Timestamps {
    Timestamps { last_access: modified, last_modification: modified }
}
