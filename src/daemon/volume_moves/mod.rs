//! Volumes that move from one node to another. The order is in the state; the node a volume is ordered to carries it out
//! ([`run`]), however often it or the other node starts anew, and asks the other for what it lacks ([`Giver`]).

mod giving;
mod progress;
mod remote;
mod taking;

pub(super) use giving::Giver;
pub(super) use progress::{Progresses, asked};
pub(super) use taking::{Taking, run};

use toft_model::{ids::NodeId, name::Name};

use crate::{
    agent::volumes::moving::{Entry, Kind},
    wire::volume_moves as wire,
};

/// Bytes of a file in one message.
const PIECE: usize = 256 << 10;
/// Entries in one message.
const ENTRIES: usize = 256;
/// Largest message: entries with their attributes.
const LARGEST: usize = 64 << 20;

/// A volume on its way, as both ends name it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Which {
    name: Name,
    born: u64,
    from: NodeId,
}

fn to_wire(entry: Entry) -> wire::Entry {
    let Entry { path, kind, mode, uid, gid, modified, attributes } = entry;
    let kind = match kind {
        Kind::Directory => wire::entry::Kind::Directory(true),
        Kind::File(size) => wire::entry::Kind::File(size),
        Kind::Symlink(to) => wire::entry::Kind::Symlink(to),
        Kind::Link(first) => wire::entry::Kind::Link(first),
        Kind::Pipe => wire::entry::Kind::Pipe(true),
    };
    let attributes = attributes.into_iter().map(|(name, value)| wire::Attribute { name, value }).collect();
    let (modified_s, modified_ns) = modified;
    wire::Entry { path, kind: Some(kind), mode, uid, gid, modified_s, modified_ns, attributes }
}

/// Nothing for what is of an unknown kind.
fn of_wire(entry: wire::Entry) -> Option<Entry> {
    let wire::Entry { path, kind, mode, uid, gid, modified_s, modified_ns, attributes } = entry;
    let kind = match kind? {
        wire::entry::Kind::Directory(_) => Kind::Directory,
        wire::entry::Kind::File(size) => Kind::File(size),
        wire::entry::Kind::Symlink(to) => Kind::Symlink(to),
        wire::entry::Kind::Link(first) => Kind::Link(first),
        wire::entry::Kind::Pipe(_) => Kind::Pipe,
    };
    let attributes = attributes.into_iter().map(|attribute| (attribute.name, attribute.value)).collect();
    Some(Entry { path, kind, mode, uid, gid, modified: (modified_s, modified_ns), attributes })
}
