//! The best place for one instance.

use std::cmp::Reverse;

use minijinja::Expression;

use super::{
    board::{Ask, Board},
    feasible::Claims,
    filter::{Place, obstacles, order},
    index,
    obstacle::Obstacle,
    policy::Term,
    score::{self, Field},
    snapshot::Snapshot,
};
use crate::{instance::ContainerOrder, workload::WorkloadSpec};

/// Most nodes that a reason names one by one.
const TOLD: usize = 16;

/// Why no node takes an instance, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nowhere(pub(super) String);

/// A place, with the order there.
pub(super) type Found = Result<(usize, ContainerOrder), Nowhere>;

/// The best node for the instance, as things are now, with its order there.
pub(super) fn choose(ask: Ask<'_>, ordinal: u32, board: &mut Board, expression: Option<&Expression<'_, '_>>) -> Found {
    let candidates = index::candidates(ask, board, expression);
    let board = &*board;
    let found = match &candidates {
        Some(candidates) => best(ask, ordinal, board, now(board, candidates.iter().copied()), expression),
        None => best(ask, ordinal, board, now(board, 0..board.nodes.len()), expression),
    };
    if cfg!(test) && candidates.is_some() {
        let scan = best(ask, ordinal, board, now(board, 0..board.nodes.len()), expression);
        assert_eq!(found.as_ref().ok(), scan.as_ref().ok(), "the candidates {candidates:?} are not enough");
    }
    found.unwrap_or_else(|why| Err(Nowhere(told(ask, board, why))))
}

fn now(board: &Board, nodes: impl Iterator<Item = usize>) -> impl Iterator<Item = Place<'_>> {
    nodes.map(|at| Place::now(board, at))
}

/// The order on one node as things are now, or what keeps the instance off it.
pub(super) fn there(ask: Ask<'_>, board: &Board, at: usize) -> Result<ContainerOrder, Obstacle> {
    let place = Place::now(board, at);
    obstacles(ask, place, false).pop().map_or_else(|| order(ask, place), Err)
}

/// A better place for an instance than the one it has.
pub(super) struct Better {
    pub(super) at: usize,
    pub(super) order: ContainerOrder,
    /// How many points more, in millionths.
    pub(super) gain: i64,
}

/// The best of all places but `home`, when it is better than that. The instance is not on the board; what it runs is at home
/// all the same. Chance makes no place better.
pub(super) fn better(
    ask: Ask<'_>,
    home: usize,
    board: &mut Board,
    expression: Option<&Expression<'_, '_>>,
) -> Option<Better> {
    let mut nodes = index::candidates(ask, board, expression).unwrap_or_else(|| (0..board.nodes.len()).collect());
    if !nodes.contains(&home) {
        nodes.push(home);
    }
    let board = &*board;
    let feasible: Vec<Place<'_>> =
        now(board, nodes.into_iter()).filter(|place| obstacles(ask, *place, false).is_empty()).collect();
    let field = Field::of(ask, board, feasible.iter().copied());
    let sum = |place: &Place<'_>| score::lasting(ask, *place, &field, expression);
    let at_home = feasible.iter().find(|place| place.at == home)?;
    let image = if board.has_image(home, ask.spec.image.as_str()) { 0 } else { score::whole(board, Term::Image) };
    let others = feasible.iter().filter(|place| place.at != home).map(|place| (sum(place), place));
    let (points, best) = others.min_by_key(|(sum, place)| (Reverse(*sum), place.claims.instances(), place.node.id))?;
    let gain = points - sum(at_home) - image;
    (gain > 0).then(|| order(ask, *best).ok().map(|order| Better { at: best.at, order, gain })).flatten()
}

/// The same among some nodes, each beside those who hold the claims.
pub(super) fn choose_among<'b>(
    ask: Ask<'_>,
    ordinal: u32,
    board: &'b Board,
    nodes: impl Iterator<Item = (usize, &'b Claims)>,
    expression: Option<&Expression<'_, '_>>,
) -> Option<(usize, ContainerOrder)> {
    let places = nodes.map(|(at, claims)| Place::now(board, at).beside(claims));
    best(ask, ordinal, board, places, expression).ok()?.ok()
}

/// The best of these places; `Err` when none takes the instance, with a reason if it is a rare one.
fn best<'b>(
    ask: Ask<'_>,
    ordinal: u32,
    board: &'b Board,
    places: impl Iterator<Item = Place<'b>>,
    expression: Option<&Expression<'_, '_>>,
) -> Result<Found, Option<(usize, Obstacle)>> {
    let feasible: Vec<Place<'b>> = places.filter(|place| obstacles(ask, *place, false).is_empty()).collect();
    let field = Field::of(ask, board, feasible.iter().copied());
    let key = |place: &Place<'_>| {
        // The most points; then the fewest instances, then the lower id.
        let sum = score::sum(ask, ordinal, *place, &field, expression);
        (std::cmp::Reverse(sum), place.claims.instances(), place.node.id)
    };
    let best = match feasible.len() {
        0 | 1 => feasible.first(),
        _ => feasible.iter().map(|place| (key(place), place)).min_by_key(|(key, _)| *key).map(|(_, place)| place),
    };
    let Some(best) = best else { return Err(None) };
    match order(ask, *best) {
        Ok(order) => Ok(Ok((best.at, order))),
        Err(why) => Err(Some((best.at, why))),
    }
}

/// Why no node takes the instance, node by node, in the order of their names.
fn told(ask: Ask<'_>, board: &Board, rare: Option<(usize, Obstacle)>) -> String {
    if board.nodes.is_empty() {
        return "no node has registered yet".into();
    }
    let told = board.in_order().take(TOLD).filter_map(|at| {
        let found = obstacles(ask, Place::now(board, at), false).pop();
        let why = found.or_else(|| rare.clone().filter(|(of, _)| *of == at).map(|(_, why)| why))?;
        Some(format!("{}: {why}", board.nodes[at].name))
    });
    let told = told.collect::<Vec<_>>().join("; ");
    match board.nodes.len().saturating_sub(TOLD) {
        0 => told,
        more => format!("{told}; and {more} more nodes, of which `toft explain` tells"),
    }
}

/// Whether reasons tell of the node by name.
pub(super) fn is_told(board: &Board, at: usize) -> bool {
    board.nodes.len() <= TOLD || board.in_order().take(TOLD).any(|told| told == at)
}

/// Why an instance of `spec` can be placed on no node; `None` when one can take it.
pub fn why_nowhere(spec: &WorkloadSpec, snapshot: &Snapshot) -> Option<String> {
    let mut board = Board::of(snapshot);
    // One that is not there yet has no id, and nobody has this one.
    let named = snapshot.workloads.iter().find(|workload| workload.spec.name == spec.name);
    let id = named.map_or(crate::ids::WorkloadId(uuid::Uuid::nil()), |workload| workload.id);
    // No specification that is there has this number.
    choose(Ask { id, generation: 0, spec }, 0, &mut board, None).err().map(|nowhere| nowhere.0)
}
