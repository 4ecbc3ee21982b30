//! What a round tries on the board, and how that is taken back.

use std::collections::BTreeMap;

use super::{Board, Resident, Tried, claim};
use crate::{
    ids::{InstanceId, NodeId},
    schedule::{feasible::Claims, place},
    state::InstanceRow,
    workload::WorkloadSpec,
};

impl Board {
    /// Somebody is on the node until it is taken back.
    pub(in crate::schedule) fn sit(&mut self, at: usize, resident: Resident) {
        let seat = &mut self.seats[at];
        claim(&mut seat.claims, &resident);
        let cards = !resident.order.gpus.is_empty();
        self.count(at, &resident, true);
        self.seats[at].residents.push(resident);
        self.tried.push(Tried::Sat(at));
        self.seat_changed(at, cards);
    }

    /// The engine and the index learn what is left on a node.
    pub(super) fn seat_changed(&mut self, at: usize, cards: bool) {
        if cards {
            self.look_at_cards(at);
        } else {
            let (node, seat) = (&self.nodes[at], &mut self.seats[at]);
            seat.has_address = node.inventory.subnet.is_some_and(|subnet| seat.claims.has_address(subnet));
        }
        let seat = &self.seats[at];
        let all = seat.capacity;
        let held = seat.claims.reserved();
        self.fleet.adjust(place::Place::at(at), |node| {
            node.cpu_free = u32::try_from(all.cpu_millis.saturating_sub(held.cpu_millis)).unwrap_or(u32::MAX);
            node.memory_free = all.memory_bytes.saturating_sub(held.memory_bytes);
            node.slots_free = u32::MAX - seat.claims.instances() as u32;
            if cards {
                node.cards.clone_from(&seat.deck);
            }
        });
        self.index.changed(at);
        self.touch(at);
    }

    /// The instance was ordered to go, until that is taken back.
    pub(in crate::schedule) fn leave(&mut self, node: NodeId, instance: InstanceId) {
        let Some(at) = self.position(node) else { return };
        let mut residents = self.seats[at].residents.iter_mut();
        if let Some(found) = residents.find(|resident| resident.instance == Some(instance) && !resident.leaving) {
            found.leaving = true;
            self.leaving.insert(at);
            self.touch(at);
            self.tried.push(Tried::Left(at, instance));
        }
    }

    /// The volumes that an instance of `spec` uses lie on `node` until that is taken back.
    pub(in crate::schedule) fn settle(&mut self, spec: &WorkloadSpec, node: NodeId) {
        let settled = self.homes.settle(spec, node);
        for volume in &settled {
            self.home_moves(volume.clone());
        }
        self.tried.extend(settled.into_iter().map(Tried::Settled));
    }

    /// The nodes from which somebody may be going.
    pub(in crate::schedule) fn being_left(&self) -> impl Iterator<Item = usize> {
        self.leaving.iter().copied()
    }

    /// How much was tried so far.
    pub(in crate::schedule) fn mark(&self) -> usize {
        self.tried.len()
    }

    /// Takes back what was tried since.
    pub(in crate::schedule) fn take_back(&mut self, mark: usize) {
        let mut seats = BTreeMap::new();
        for tried in self.tried.split_off(mark).into_iter().rev() {
            match tried {
                Tried::Sat(at) => {
                    // Those of this round are the last, in the order in which they came.
                    let Some(gone) = self.seats[at].residents.pop() else { continue };
                    *seats.entry(at).or_insert(false) |= !gone.order.gpus.is_empty();
                    self.count(at, &gone, false);
                }
                Tried::Left(at, instance) => {
                    let mut residents = self.seats[at].residents.iter_mut();
                    if let Some(back) = residents.find(|resident| resident.instance == Some(instance)) {
                        back.leaving = false;
                    }
                    self.touch(at);
                }
                Tried::Settled(volume) => {
                    self.homes.forget(&volume);
                    self.home_moves(volume);
                }
            }
        }
        for (at, cards) in seats {
            let mut claims = Claims::default();
            self.seats[at].residents.iter().for_each(|resident| claim(&mut claims, resident));
            self.seats[at].claims = claims;
            self.seat_changed(at, cards);
        }
    }

    /// Does something while an instance is not there.
    pub(in crate::schedule) fn without<T>(&mut self, row: &InstanceRow, act: impl FnOnce(&mut Self) -> T) -> T {
        let at = self.position(row.node_id);
        let who = at.and_then(|at| self.seats[at].residents.iter().position(|one| one.instance == Some(row.id)));
        let Some((at, who)) = at.zip(who) else { return act(self) };
        let resident = self.seats[at].residents.remove(who);
        self.count(at, &resident, false);
        let rebuild = |board: &mut Self| {
            let mut claims = Claims::default();
            board.seats[at].residents.iter().for_each(|resident| claim(&mut claims, resident));
            board.seats[at].claims = claims;
            board.seat_changed(at, true);
        };
        rebuild(self);
        let outcome = act(self);
        self.count(at, &resident, true);
        self.seats[at].residents.insert(who, resident);
        rebuild(self);
        outcome
    }
}
