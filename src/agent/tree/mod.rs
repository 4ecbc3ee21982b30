//! A tree of files beneath a directory, written from a tar archive ([`Tree`]) and packed into one ([`Packer`]). Layers of
//! images, `toft cp` and the backups of volumes go through here; what differs between them is a [`Policy`] and what each
//! makes of a name.
//!
//! Nobody is trusted: neither who wrote the archive nor the processes that may change the tree meanwhile. The kernel
//! resolves every path beneath a descriptor of the root (`openat2`), the last part of a path is never followed, and what
//! was found is used through its descriptor. What an archive says about one file has a limit; contents are never held.
//! Everything blocks.

mod attributes;
mod dress;
mod fault;
#[cfg(test)]
pub(in crate::agent) mod hostile;
mod member;
mod names;
mod pack;
mod place;
mod sparse;
#[cfg(test)]
mod tests;
mod unpack;

pub use attributes::{Attribute, attributes_of, portable};
pub use fault::{Fault, Why, shown};
pub use member::{Member, Members};
pub use names::{from_root, strict};
pub use pack::{Mounts, Packed, Packer, Packing};
pub use unpack::{Made, Tree};

/// What differs between those who unpack.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// What a symbolic link on the way to a file's place means.
    pub links: Links,
    /// What happens to what is there already.
    pub existing: Existing,
    /// What happens when the directory of a file is not there.
    pub parents: Parents,
    /// Whether devices are made.
    pub devices: Devices,
    /// To whom files belong.
    pub owner: Owner,
    /// Which extended attributes files get.
    pub attributes: fn(&str) -> Attribute,
    /// What becomes of blocks of zeros.
    pub zeros: Zeros,
}

/// What a symbolic link on the way to a file's place means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// It is followed, with the root as `/`, also when it leads to what is not there yet. Only for a root that nobody
    /// else writes to.
    Inside,
    /// The archive is refused.
    Refused,
}

/// What happens to what is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// The archive is refused.
    Refused,
    /// Files and links are replaced; directories stay as they are, and nothing else takes their place.
    FilesReplaced,
    /// The later entry counts, whatever was there. Only for a root that nobody else writes to.
    Replaced,
}

/// What happens when the directory of a file is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parents {
    /// It is made, `rwxr-xr-x`.
    Made,
    /// The archive is refused.
    Refused,
}

/// Whether devices are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// They are.
    Made,
    /// The archive is refused.
    Refused,
}

/// To whom files belong that are unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whom the archive says.
    AsArchived,
    /// Root of the container.
    Root,
    /// Whoever unpacks; programs lose the right to run as somebody else.
    Caller,
}

/// What becomes of blocks of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeros {
    /// They are written.
    Written,
    /// They become holes.
    Holes,
}
