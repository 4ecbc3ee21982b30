//! The best place for one instance.

use minijinja::Expression;

use super::{
    board::{Ask, Board},
    feasible::Claims,
    filter::{Place, obstacles, order},
    obstacle::Obstacle,
    score::{self, Field},
    snapshot::Snapshot,
};
use crate::{instance::ContainerOrder, state::NodeRow, workload::WorkloadSpec};

/// Most nodes that a reason names one by one.
const TOLD: usize = 16;

/// Why no node takes an instance: each node's first obstacle, by the node's place on the board.
#[derive(Debug, Clone)]
pub(super) struct Nowhere(pub(super) Vec<(usize, Obstacle)>);

impl Nowhere {
    /// The reason in words.
    pub(super) fn told(&self, nodes: &[NodeRow]) -> String {
        if self.0.is_empty() {
            return "no node has registered yet".into();
        }
        let mut reasons: Vec<_> = self.0.iter().map(|(at, why)| (&nodes[*at].name, why)).collect();
        reasons.sort_by_key(|(name, _)| *name);
        let told = reasons.iter().take(TOLD).map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>().join("; ");
        match reasons.len().saturating_sub(TOLD) {
            0 => told,
            more => format!("{told}; and {more} more nodes, of which `toft explain` tells"),
        }
    }
}

/// The best node for the instance, as things are now, with its order there.
pub(super) fn choose(
    ask: Ask<'_>,
    ordinal: u32,
    board: &Board<'_>,
    expression: Option<&Expression<'_, '_>>,
) -> Result<(usize, ContainerOrder), Nowhere> {
    let everywhere = (0..board.nodes.len()).map(|at| (at, &board.seats[at].claims));
    choose_among(ask, ordinal, board, everywhere, expression)
}

/// The same among some nodes, each beside those who hold the claims.
pub(super) fn choose_among<'b>(
    ask: Ask<'_>,
    ordinal: u32,
    board: &'b Board<'_>,
    nodes: impl Iterator<Item = (usize, &'b Claims)>,
    expression: Option<&Expression<'_, '_>>,
) -> Result<(usize, ContainerOrder), Nowhere> {
    let (mut feasible, mut refused) = (Vec::new(), Vec::new());
    for (at, claims) in nodes {
        let place = Place::now(board, at).beside(claims);
        match obstacles(ask, place, false).pop() {
            None => feasible.push(place),
            Some(why) => refused.push((at, why)),
        }
    }
    let field = Field::of(ask, board, feasible.iter().copied());
    let key = |place: &Place<'_, '_>| {
        let (points, _) = score::points(ask, ordinal, *place, &field, expression);
        // The most points; then the fewest instances, then the lower id.
        (std::cmp::Reverse(score::total(&points)), place.claims.instances(), place.node.id)
    };
    let best = match feasible.len() {
        0 | 1 => feasible.first(),
        _ => feasible.iter().min_by_key(|place| key(place)),
    };
    let Some(best) = best else { return Err(Nowhere(refused)) };
    match order(ask, *best) {
        Ok(order) => Ok((best.at, order)),
        Err(why) => Err(Nowhere(vec![(best.at, why)])),
    }
}

/// Why an instance of `spec` can be placed on no node; `None` when one can take it.
pub fn why_nowhere(spec: &WorkloadSpec, snapshot: &Snapshot) -> Option<String> {
    let board = Board::of(snapshot);
    // One that is not there yet has no id, and nobody has this one.
    let named = snapshot.workloads.iter().find(|workload| workload.spec.name == spec.name);
    let id = named.map_or(crate::ids::WorkloadId(uuid::Uuid::nil()), |workload| workload.id);
    choose(Ask { id, spec }, 0, &board, None).err().map(|nowhere| nowhere.told(&snapshot.nodes))
}
