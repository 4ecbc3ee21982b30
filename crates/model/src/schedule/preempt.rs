//! Who makes room for an instance that is more important and has no place.

use std::collections::HashSet;

use super::{
    board::{Ask, Board, Resident},
    filter::{Place, could, obstacles},
};

/// Nodes on which room was found after which no more are looked at.
const ENOUGH_NODES: usize = 64;
/// Most candidates of which every pair is tried.
const TRIED_IN_PAIRS: usize = 16;

/// Who is to go from one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Victims {
    /// The node's place on the board.
    pub(super) at: usize,
    /// Places among the node's residents.
    pub(super) residents: Vec<usize>,
}

/// The smallest set of the least important residents of one node whose places would do for `ask`. Nobody of the same
/// priority is among them.
pub(super) fn victims(ask: Ask<'_>, board: &Board) -> Option<Victims> {
    let priority = ask.spec.placement.priority;
    if !board.has_lower(priority) {
        return None;
    }
    let mut best: Option<((u32, usize, u32), Victims)> = None;
    let mut found = 0;
    for at in board.in_order() {
        if found == ENOUGH_NODES {
            break;
        }
        let Some(residents) = of_node(ask, priority, board, at) else { continue };
        found += 1;
        let priorities = residents.iter().map(|who| board.seats[at].residents[*who].priority);
        let key = (priorities.clone().max().unwrap_or(0), residents.len(), priorities.sum());
        if best.as_ref().is_none_or(|(least, _)| key < *least) {
            best = Some((key, Victims { at, residents }));
        }
    }
    best.map(|(_, victims)| victims)
}

/// Who of the node's residents is to go.
fn of_node(ask: Ask<'_>, priority: u32, board: &Board, at: usize) -> Option<Vec<usize>> {
    let residents = &board.seats[at].residents;
    let of = |resident: &Resident| resident.priority;
    let may_go = |resident: &Resident| resident.instance.is_some() && !resident.leaving && of(resident) < priority;
    let mut candidates: Vec<usize> = (0..residents.len()).filter(|who| may_go(&residents[*who])).collect();
    if candidates.is_empty() || !could(ask, Place::now(board, at)) {
        return None;
    }
    let fits_without = |gone: &[usize]| {
        let gone: HashSet<_> = gone.iter().map(|who| residents[*who].instance).collect();
        // What leaves will be gone, too, before anybody is placed here.
        let claims = board.claims_of(at, |resident| {
            !resident.leaving && (resident.instance.is_none() || !gone.contains(&resident.instance))
        });
        obstacles(ask, Place::now(board, at).beside(&claims), false).is_empty()
    };
    if !fits_without(&candidates) {
        return None;
    }
    // Only the least important whose going is enough.
    candidates.sort_by_key(|who| (of(&residents[*who]), *who));
    let levels: Vec<usize> = (1..=candidates.len())
        .filter(|end| {
            *end == candidates.len() || of(&residents[candidates[*end]]) != of(&residents[candidates[end - 1]])
        })
        .collect();
    let enough = levels.into_iter().find(|end| fits_without(&candidates[..*end]))?;
    candidates.truncate(enough);
    Some(smallest(&candidates, &fits_without))
}

/// The smallest part of `candidates`, the least important first, that is enough: exact for one, and for two of a few.
fn smallest(candidates: &[usize], enough: &impl Fn(&[usize]) -> bool) -> Vec<usize> {
    if let Some(one) = candidates.iter().find(|one| enough(&[**one])) {
        return vec![*one];
    }
    if candidates.len() <= TRIED_IN_PAIRS {
        for (i, one) in candidates.iter().enumerate() {
            if let Some(other) = candidates[..i].iter().find(|other| enough(&[**other, *one])) {
                return vec![*other, *one];
            }
        }
    }
    // Whoever can stay stays, the most important first.
    let mut going = candidates.to_vec();
    for who in candidates.iter().rev() {
        let without: Vec<usize> = going.iter().copied().filter(|other| other != who).collect();
        if enough(&without) {
            going = without;
        }
    }
    going
}
