//! Rows are put on the board and taken off it.

use std::sync::Arc;

use super::{Board, NO_NODE, Order, Resident, Seat, claim, has_image};
use crate::{
    ids::{NodeId, WorkloadId},
    name::Name,
    schedule::{
        feasible::Claims,
        gpus::Cards,
        outlook::News,
        place::{self, Fleet},
        policy::{PlacementSettings, Policy},
    },
    state::{InstanceRow, NodeRow, VolumeRow, WorkloadRow},
    workload::Attribute,
};

impl Board {
    pub(in crate::schedule) fn put_settings(&mut self, settings: PlacementSettings) {
        if self.settings != settings {
            self.settings = settings;
            self.stale.extend(0..self.nodes.len());
            self.stale_nodes = true;
            self.upheave();
        }
    }

    /// A node that is new or changed.
    pub(in crate::schedule) fn put_node(&mut self, node: NodeRow) {
        let at = match self.position(node.id) {
            Some(at) => {
                self.outlook.count_cards(&self.nodes[at], false);
                self.by_name.remove(&self.nodes[at].name);
                at
            }
            None => {
                self.positions.insert(node.id, self.nodes.len());
                self.seats.push(Seat::default());
                self.index.forget_nodes();
                self.nodes.len()
            }
        };
        self.outlook.count_cards(&node, true);
        self.by_name.insert(node.name.clone(), at);
        let node = Arc::new(node);
        match self.nodes.get_mut(at) {
            Some(known) => *known = node,
            None => self.nodes.push(node),
        }
        self.seats[at].kinds.clear();
        self.index.node_changed(at);
        self.stale.insert(at);
        self.stale_nodes = true;
        // A name, a price, another node: reasons tell of them.
        self.upheave();
    }

    pub(in crate::schedule) fn put_workload(&mut self, workload: Arc<WorkloadRow>) {
        self.remove_workload(workload.id);
        let id = workload.id;
        self.outlook.count_workload(&workload, true);
        self.names.insert(workload.spec.name.to_string(), id);
        if workload.spec.placement.constraints.iter().any(|rule| rule.attribute == Attribute::Workload) {
            self.shy.insert(workload.spec.name.clone(), Arc::clone(&workload));
            self.upheave();
        }
        let priority = workload.spec.placement.priority;
        self.workloads.insert(id, workload);
        self.set_priority(id, priority);
    }

    pub(in crate::schedule) fn remove_workload(&mut self, id: WorkloadId) {
        let Some(workload) = self.workloads.remove(&id) else { return };
        self.outlook.count_workload(&workload, false);
        self.names.remove(workload.spec.name.as_str());
        if self.shy.remove(&workload.spec.name).is_some() {
            self.upheave();
        }
        self.set_priority(id, 0);
    }

    fn set_priority(&mut self, id: WorkloadId, priority: u32) {
        let nodes: Vec<usize> = self.copies.get(&id).into_iter().flatten().map(|(at, _)| *at).collect();
        for at in nodes {
            let own = self.seats[at].residents.iter_mut().filter(|resident| resident.workload == id);
            let before: Vec<u32> = own.map(|resident| std::mem::replace(&mut resident.priority, priority)).collect();
            for before in before {
                self.count_priority(before, false);
                self.count_priority(priority, true);
            }
            self.touch(at);
        }
    }

    /// An instance that is new or changed; the node must be there.
    pub(in crate::schedule) fn put_instance(&mut self, row: Arc<InstanceRow>) {
        let Some(at) = self.position(row.node_id) else { return };
        let priority = self.priority(row.workload_id);
        let resident = Resident::of(row, priority);
        if resident.leaving {
            self.leaving.insert(at);
        }
        self.touch(at);
        let seat = &mut self.seats[at];
        let found = seat.residents.binary_search_by(|other| other.place().cmp(&resident.place()));
        let holds = |order: &Order| (order.network.clone(), order.resources, order.gpus.clone());
        match found {
            Ok(who) if holds(&seat.residents[who].order) == holds(&resident.order) => {
                // What it holds is the same; its image may be there by now.
                let before = std::mem::replace(&mut seat.residents[who], resident);
                let now = self.seats[at].residents[who].clone();
                if has_image(&before) != has_image(&now) || before.order.image != now.order.image {
                    self.count_image(at, &before, false);
                    self.count_image(at, &now, true);
                    self.index.changed(at);
                }
            }
            Ok(who) => {
                let before = std::mem::replace(&mut seat.residents[who], resident);
                let now = self.seats[at].residents[who].clone();
                self.count_image(at, &before, false);
                self.count_image(at, &now, true);
                self.reseat(at);
            }
            Err(who) => {
                claim(&mut seat.claims, &resident);
                seat.residents.insert(who, resident);
                let now = self.seats[at].residents[who].clone();
                self.count(at, &now, true);
                self.stale.insert(at);
            }
        }
    }

    pub(in crate::schedule) fn remove_instance(&mut self, row: &InstanceRow) {
        let Some(at) = self.position(row.node_id) else { return };
        let Some(who) = self.seats[at].residents.iter().position(|one| one.instance == Some(row.id)) else { return };
        let gone = self.seats[at].residents.remove(who);
        self.count(at, &gone, false);
        self.reseat(at);
    }

    pub(in crate::schedule) fn put_volume(&mut self, volume: &VolumeRow) {
        self.homes.put(volume);
        self.home_moves(volume.name.clone());
    }

    pub(in crate::schedule) fn remove_volume(&mut self, volume: &Name) {
        self.homes.forget(volume);
        self.home_moves(volume.clone());
    }

    /// A volume lies elsewhere, or nowhere any more.
    pub(super) fn home_moves(&mut self, volume: Name) {
        self.note_change(NO_NODE);
        self.homes_moved.insert(volume, self.now());
    }

    /// What is held on the node, from who is there.
    fn reseat(&mut self, at: usize) {
        self.touch(at);
        let mut claims = Claims::default();
        self.seats[at].residents.iter().for_each(|resident| claim(&mut claims, resident));
        self.seats[at].claims = claims;
        self.stale.insert(at);
        if !self.seats[at].residents.iter().any(|resident| resident.leaving) {
            self.leaving.remove(&at);
        }
    }

    /// Makes everything follow the rows. Whoever chooses on a board has called this since its rows changed.
    pub(in crate::schedule) fn refresh(&mut self) {
        if std::mem::take(&mut self.stale_nodes) {
            let mut ids: Vec<(NodeId, usize)> = self.positions.iter().map(|(id, at)| (*id, *at)).collect();
            ids.sort_unstable();
            let cost = |node: &Arc<NodeRow>| self.settings.cost(node);
            let dearest = self.nodes.iter().filter_map(cost).fold(0.0, f64::max);
            let most_watts = self.nodes.iter().filter_map(|node| node.watts()).max().unwrap_or(0);
            self.dearest = (dearest, most_watts);
            self.weights = self.settings.weights(self.outlook.has_cards());
            let ids = ids.iter().map(|(_, at)| *at);
            self.index.follow(ids, (self.weights, self.dearest), &self.settings);
        }
        let policy = match self.settings.policy {
            Policy::BestFit => place::Policy::Balanced,
            Policy::Binpack | Policy::Spread | Policy::Random | Policy::Custom => place::Policy::Binpack,
        };
        let news = self.outlook.refresh();
        if news == News::Mix && self.fleet.policy() == policy && self.fleet.len() > 0 {
            self.fleet.retarget(self.outlook.mix());
            self.index.forget_scores();
        } else if news != News::Nothing || self.fleet.policy() != policy {
            self.fleet = Fleet::new(policy, self.outlook.mix(), 0);
            for at in 0..self.nodes.len() {
                self.seats[at].kinds.clear();
                self.look_at_cards(at);
                self.fleet.add(self.engine_node(at, &self.seats[at].claims));
            }
            self.stale.clear();
            self.index.forget_all();
        }
        let stale: Vec<usize> = self.stale.drain().collect();
        for at in stale {
            self.look_at_cards(at);
            let node = self.engine_node(at, &self.seats[at].claims);
            if at < self.fleet.len() {
                self.fleet.change(place::Place::at(at), node);
            } else {
                // Places are in order.
                for at in self.fleet.len()..self.nodes.len() {
                    self.look_at_cards(at);
                    self.fleet.add(self.engine_node(at, &self.seats[at].claims));
                }
            }
            self.index.changed(at);
            self.touch(at);
        }
        if self.fleet.follow_supply() {
            self.index.forget_scores();
        }
    }

    pub(super) fn look_at_cards(&mut self, at: usize) {
        let (node, seat) = (&self.nodes[at], &mut self.seats[at]);
        seat.capacity = self.settings.capacity(node);
        if seat.kinds.len() != node.inventory.gpus.len() {
            seat.kinds = node.inventory.gpus.iter().map(|card| self.outlook.kind(card)).collect();
        }
        seat.deck = seat.claims.gpus().deck(Cards::of(node), &seat.kinds);
        seat.has_address = node.inventory.subnet.is_some_and(|subnet| seat.claims.has_address(subnet));
    }
}
