//! The connections to the other members, and which of them are watched.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use tonic::transport::Channel;

use super::{super::types::MemberId, peers::CallError};

/// Connections to one member: at the address it told, and through the mesh.
const WAYS: usize = 2;

/// A connection to a member at one of its addresses.
struct Connection {
    address: String,
    /// Whether it is asked whether it lives also while nothing is awaited.
    is_watched: bool,
    channel: Channel,
}

/// The connections of one member.
pub(super) struct Connections {
    me: MemberId,
    /// Who votes, as far as this member knows.
    voters: Mutex<BTreeSet<MemberId>>,
    /// The newest to each member.
    open: Mutex<HashMap<MemberId, Vec<Connection>>>,
}

impl Connections {
    pub(super) fn of(me: MemberId) -> Self {
        Self { me, voters: Mutex::default(), open: Mutex::default() }
    }

    /// The connection to a member at an address: the one there is, or what `dial` makes, which is told whether it is watched.
    pub(super) fn to(
        &self,
        id: MemberId,
        address: &str,
        dial: impl FnOnce(bool) -> Result<Channel, CallError>,
    ) -> Result<Channel, CallError> {
        let is_watched = both_may_vote(&self.voters.lock().unwrap_or_else(PoisonError::into_inner), self.me, id);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let known = open.entry(id).or_default();
        if let Some(one) = known.iter().find(|one| one.address == address && one.is_watched == is_watched) {
            return Ok(one.channel.clone());
        }
        let channel = dial(is_watched)?;
        known.retain(|one| one.address != address);
        known.insert(0, Connection { address: address.to_owned(), is_watched, channel: channel.clone() });
        known.truncate(WAYS);
        Ok(channel)
    }

    pub(super) fn set_voters(&self, voters: BTreeSet<MemberId>) {
        *self.voters.lock().unwrap_or_else(PoisonError::into_inner) = voters;
    }

    pub(super) fn forget(&self, gone: &BTreeSet<MemberId>) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| !gone.contains(id));
    }
}

/// Whether two members may ask each other for their votes; while nobody knows who votes, they may.
fn both_may_vote(voters: &BTreeSet<MemberId>, one: MemberId, other: MemberId) -> bool {
    voters.is_empty() || (voters.contains(&one) && voters.contains(&other))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tonic::transport::Endpoint;

    use super::*;

    #[tokio::test]
    async fn only_connections_between_voters_are_watched_and_each_is_made_once() {
        let connections = Connections::of(1);
        let made = RefCell::new(Vec::new());
        let to = |id, address: &str| {
            let dial = |is_watched| {
                made.borrow_mut().push((id, address.to_owned(), is_watched));
                Ok(Endpoint::from_static("http://127.0.0.1:1").connect_lazy())
            };
            connections.to(id, address, dial).unwrap();
            made.take()
        };
        assert_eq!(to(2, "a"), [(2, "a".to_owned(), true)], "nobody knows yet who votes");
        connections.set_voters([1, 2, 3].into());
        assert_eq!(to(2, "a"), [], "it is there");
        assert_eq!(to(4, "b"), [(4, "b".to_owned(), false)]);
        assert_eq!(to(4, "mesh"), [(4, "mesh".to_owned(), false)]);
        assert_eq!((to(4, "b"), to(4, "mesh")), (vec![], vec![]), "both are kept");
        connections.set_voters([1, 2, 4].into());
        assert_eq!(to(4, "b"), [(4, "b".to_owned(), true)], "it votes now");
        assert_eq!(to(4, "b"), []);
        connections.set_voters([2, 3, 4].into());
        assert_eq!(to(2, "a"), [(2, "a".to_owned(), false)], "this member votes no more");
        connections.forget(&[2].into());
        assert_eq!(to(2, "a"), [(2, "a".to_owned(), false)], "it was forgotten");
    }
}
