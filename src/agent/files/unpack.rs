//! An archive into a directory that processes may change meanwhile.

use std::{io::Read, os::fd::BorrowedFd, path::PathBuf};

use tar::EntryType;
use toft_model::files::FilesWritten;

use super::{
    super::tree::{
        Attribute, Devices, Existing, Fault, Links, Members, Owner, Parents, Policy, Tree, Zeros, portable, strict,
    },
    FileError,
};

/// How an archive is unpacked.
#[derive(Debug, Clone)]
pub struct Unpack {
    /// To whom files belong.
    pub owner: Owner,
    /// Replaces the first part of every name.
    pub rename: Option<String>,
}

impl Unpack {
    /// Unpacks into a directory. What was written before an error stays.
    pub fn run(self, into: BorrowedFd<'_>, archive: impl Read) -> Result<FilesWritten, FileError> {
        let policy = Policy {
            links: Links::Refused,
            existing: Existing::FilesReplaced,
            parents: Parents::Made,
            devices: Devices::Refused,
            owner: self.owner,
            attributes: if self.owner == Owner::Caller { of_users } else { of_all },
            zeros: Zeros::Holes,
        };
        let mut tree = Tree::new(into, policy)?;
        let mut members = Members::new(archive);
        while let Some(member) = members.next_member()? {
            let path = self.inside(&member.name)?;
            if path.as_os_str().is_empty() {
                // The directory itself, which is there.
                continue;
            }
            let target = (member.kind == EntryType::Link).then(|| self.inside(&member.link)).transpose()?;
            tree.add(&path, target.as_deref(), &member, &mut members)?;
        }
        if !members.ended() {
            return Err(if members.begun() { Fault::CutOff } else { Fault::NoArchive }.into());
        }
        members.drain();
        Ok(tree.finish()?.0)
    }

    fn inside(&self, name: &[u8]) -> Result<PathBuf, FileError> {
        let path = strict(name)?;
        let mut parts = path.iter();
        match (&self.rename, parts.next()) {
            (Some(rename), Some(_)) => Ok([rename.as_ref()].into_iter().chain(parts).collect()),
            _ => Ok(path),
        }
    }
}

/// Attributes that files get with the rights of somebody else.
fn of_all(name: &str) -> Attribute {
    if portable(name) { Attribute::Kept } else { Attribute::LeftOut }
}

/// Those that give no rights, to programs or to others.
fn of_users(name: &str) -> Attribute {
    if name.starts_with("user.") { Attribute::Kept } else { Attribute::LeftOut }
}
