//! From a stream to a tree. Whoever made the stream may be hostile: what a backup of ours never holds is refused, and
//! nothing that is there is followed or replaced.

use std::{
    ffi::OsStr,
    io::{self, Read},
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
    path::Path,
};

use rustix::io::Errno;
use tar::EntryType;

use super::{ArchiveError, END, FORMAT, MANIFEST, MAX_HEADERS, MAX_PATH, Manifest, Summary, TREE};
use crate::agent::tree::{
    Attribute, Devices, Existing, Fault, Links, Member, Members, Owner, Parents, Policy, Tree, Zeros, portable, shown,
};

/// Into an empty folder.
const POLICY: Policy = Policy {
    links: Links::Refused,
    existing: Existing::Refused,
    parents: Parents::Refused,
    devices: Devices::Refused,
    owner: Owner::AsArchived,
    attributes: of_a_backup,
    zeros: Zeros::Holes,
};

fn of_a_backup(name: &str) -> Attribute {
    if portable(name) { Attribute::Kept } else { Attribute::Refused }
}

/// Reads a stream into the empty folder `root`. A failure leaves a part of the tree behind, in `root` and nowhere else.
pub fn read(root: BorrowedFd<'_>, input: impl Read) -> Result<Summary, ArchiveError> {
    let mut members = Members::new(input);
    let mut reader = Reader { tree: Tree::new(root, POLICY)?, begun: false, ended: false };
    while let Some(member) = members.next_member().map_err(|fault| reader.unreadable(fault))? {
        reader.take(&member, &mut members)?;
    }
    if !reader.ended {
        return Err(match reader.begun {
            true => ArchiveError::Damaged(io::ErrorKind::UnexpectedEof.into()),
            false => ArchiveError::NotABackup("it is empty".into()),
        });
    }
    // To the very end, where the checksum is.
    io::copy(&mut members.into_source(), &mut io::sink()).map_err(ArchiveError::Damaged)?;
    let (written, _) = reader.tree.finish()?;
    Ok(Summary { entries: written.entries, bytes: written.bytes, left_out: 0 })
}

struct Reader {
    tree: Tree,
    begun: bool,
    ended: bool,
}

impl Reader {
    fn unreadable(&self, fault: Fault) -> ArchiveError {
        if self.begun { fault.into() } else { ArchiveError::NotABackup(fault.to_string()) }
    }

    fn take(&mut self, member: &Member, content: &mut impl Read) -> Result<(), ArchiveError> {
        if self.ended {
            return Err(hostile(member, "which comes behind its end"));
        }
        if !self.begun {
            check_manifest(member, content)?;
            self.begun = true;
            return Ok(());
        }
        if member.name == END.as_bytes() {
            self.check_end(content)?;
            self.ended = true;
            return Ok(());
        }
        let Some(path) = inside(&member.name) else { return Err(hostile(member, "which leads out of the volume")) };
        if member.kind != EntryType::Regular && member.size != 0 {
            return Err(hostile(member, "which has content and is no file"));
        }
        if path.as_os_str().is_empty() {
            if member.kind != EntryType::Directory || self.tree.written().entries != 0 {
                return Err(hostile(member, "which is not the volume's own folder"));
            }
            return Ok(self.tree.describe_root(member)?);
        }
        let target = match member.kind {
            EntryType::Link => {
                let target = inside(&member.link).filter(|target| !target.as_os_str().is_empty());
                Some(target.ok_or_else(|| hostile(member, "which links to something outside the volume"))?)
            }
            _ => None,
        };
        self.tree.add(path, target, member, content)?;
        Ok(())
    }

    fn check_end(&self, entry: &mut impl Read) -> Result<(), ArchiveError> {
        let mut text = Vec::new();
        entry.take(MAX_HEADERS).read_to_end(&mut text).map_err(ArchiveError::Damaged)?;
        let said: Summary = serde_json::from_slice(&text).map_err(|error| ArchiveError::Damaged(error.into()))?;
        let written = self.tree.written();
        if (said.entries, said.bytes) != (written.entries, written.bytes) {
            return Err(ArchiveError::Damaged(io::Error::other("it holds not as much as its end says")));
        }
        Ok(())
    }
}

fn hostile(member: &Member, why: &str) -> ArchiveError {
    ArchiveError::Hostile { path: shown(&member.name), why: why.to_owned() }
}

impl From<Fault> for ArchiveError {
    fn from(fault: Fault) -> Self {
        let errno = fault.errno();
        match fault {
            Fault::Refused { path, why } => Self::Hostile { path, why: format!("which {why}") },
            Fault::Disk { path, source } => match errno {
                Some(Errno::XDEV | Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => {
                    Self::Hostile { path, why: "which does not lie in a folder of the volume".to_owned() }
                }
                _ => Self::Write { path, source },
            },
            Fault::Unreadable(source) | Fault::Unwritable(source) => Self::Damaged(source),
            Fault::CutOff => Self::Damaged(io::ErrorKind::UnexpectedEof.into()),
            Fault::NoArchive | Fault::Damaged(_) | Fault::LongName | Fault::TooMuch => {
                Self::Damaged(io::Error::other(fault.to_string()))
            }
        }
    }
}

fn check_manifest(member: &Member, entry: &mut impl Read) -> Result<(), ArchiveError> {
    if member.name != MANIFEST.as_bytes() {
        return Err(ArchiveError::NotABackup(format!("it does not begin with `{MANIFEST}`")));
    }
    let mut text = Vec::new();
    entry.take(MAX_HEADERS).read_to_end(&mut text).map_err(ArchiveError::Damaged)?;
    let format = serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|value| value["format"].as_u64());
    match format {
        Some(format) if format > u64::from(FORMAT) => {
            Err(ArchiveError::Newer(u32::try_from(format).unwrap_or(u32::MAX)))
        }
        _ => match serde_json::from_slice::<Manifest>(&text) {
            Ok(_) => Ok(()),
            Err(error) => Err(ArchiveError::NotABackup(format!("its `{MANIFEST}` is not understood: {error}"))),
        },
    }
}

/// The path of an entry below the tree's root; empty for the root itself.
fn inside(path: &[u8]) -> Option<&Path> {
    let rest = path.strip_prefix(TREE.as_bytes())?;
    // Other programs write a folder with a `/` at its end.
    let rest = rest.strip_suffix(b"/").unwrap_or(rest);
    if rest.is_empty() {
        return Some(Path::new(""));
    }
    let rest = rest.strip_prefix(b"/")?;
    let odd = |part: &[u8]| matches!(part, b"" | b"." | b"..") || part.len() > 255 || part.contains(&0);
    let fits = path.len() <= MAX_PATH && !rest.split(|byte| *byte == b'/').any(odd);
    fits.then(|| Path::new(OsStr::from_bytes(rest)))
}
