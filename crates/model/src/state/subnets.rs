//! Which node has which part of the cluster's addresses.

use rusqlite::Connection;

use super::{
    Applied, Reply,
    tables::{NodeRow, SubnetRow},
};
use crate::{
    ids::NodeId,
    node::{Subnet, pick_subnet},
};

/// What a node asks for.
pub(super) struct Claim<'a> {
    pub(super) node_id: NodeId,
    /// The addresses of the cluster.
    pub(super) range: Subnet,
    /// The network it has used so far.
    pub(super) used: Option<Subnet>,
    /// Networks that the node cannot take.
    pub(super) taken: &'a [Subnet],
    /// Number of the network with which the search begins.
    pub(super) first: u32,
}

/// Gives the node a network that no other node has: the one it has already, if it lies in the range.
pub(super) fn claim(connection: &Connection, claim: &Claim<'_>) -> rusqlite::Result<Applied> {
    let claims = SubnetRow::all(connection)?;
    let own = claims.iter().find(|row| row.node_id == claim.node_id).map(|row| row.subnet);
    let mut others: Vec<Subnet> =
        claims.iter().filter(|row| row.node_id != claim.node_id).map(|row| row.subnet).collect();
    // A node that has claimed nothing yet may use one all the same.
    let nodes = NodeRow::all(connection)?.into_iter().filter(|node| node.id != claim.node_id);
    others.extend(nodes.filter_map(|node| node.inventory.subnet));
    let free = |subnet: &Subnet| !others.iter().any(|other| other.overlaps(*subnet));
    let kept = [own, claim.used].into_iter().flatten().find(|kept| claim.range.holds(*kept) && free(kept));
    let subnet = kept.or_else(|| {
        let taken: Vec<Subnet> = claim.taken.iter().chain(&others).copied().collect();
        pick_subnet(claim.range, &taken, claim.first)
    });
    if let Some(subnet) = subnet {
        SubnetRow { node_id: claim.node_id, subnet }.save(connection)?;
    }
    Ok(Ok(Reply::Subnet { subnet }))
}
