//! The replicated state of the simulated world, the scheduler's thoughts, and what the users asked for in the order in
//! which it was applied.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use rusqlite::{Connection, types::ValueRef};
use toft_model::{
    ids::{InstanceId, NodeId},
    instance::{ContainerOrder, Desired, NetworkOrder},
    name::Name,
    node::Availability,
    schedule::{Plan, Snapshot, plan},
    state::{
        Applied, Command, InstanceRow, NodeRow, PowerAction, WorkloadRow, apply, assignments_generation, migrate,
        query_snapshot,
    },
    workload::WorkloadSpec,
};
use uuid::Uuid;

/// Host ports from here on are found by the scheduler.
const FIRST_FREE_PORT: u16 = 20_000;

/// What a user asked for last.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) spec: WorkloadSpec,
    pub(super) desired: Desired,
}

pub(super) struct Cluster {
    pub(super) connection: Connection,
    /// Every command that was applied, with its index less one as position.
    pub(super) log: Vec<Command>,
    pub(super) asked: BTreeMap<Name, Asked>,
    minted: u128,
    /// Instances that were ordered to go.
    removed: BTreeSet<InstanceId>,
    placed: BTreeMap<InstanceId, Desired>,
    /// Nodes that were ever to be left: a copy on one of them may have a successor beside it.
    pub(super) left: BTreeSet<NodeId>,
    /// Nodes that ever counted as lost: the same, and so may that one's node be lost.
    lost: BTreeSet<NodeId>,
}

pub(super) fn replica() -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.pragma_update(None, "foreign_keys", "ON").unwrap();
    migrate(&mut connection).unwrap();
    connection.set_prepared_statement_cache_capacity(64);
    // One transaction all along: nobody else reads, and what is refused writes nothing.
    connection.execute_batch("BEGIN").unwrap();
    connection
}

impl Cluster {
    pub(super) fn new() -> Self {
        Self {
            connection: replica(),
            log: Vec::new(),
            asked: BTreeMap::new(),
            minted: 0,
            removed: BTreeSet::new(),
            placed: BTreeMap::new(),
            left: BTreeSet::new(),
            lost: BTreeSet::new(),
        }
    }

    pub(super) fn mint(&mut self) -> Uuid {
        self.minted += 1;
        Uuid::from_u128(self.minted)
    }

    /// Applies a command; `Err` tells a rule that broke.
    pub(super) fn apply(&mut self, command: Command) -> Result<Applied, String> {
        let index = self.log.len() as u64 + 1;
        let applied = apply(&self.connection, index, &command).map_err(|error| format!("apply failed: {error}"))?;
        if applied.is_ok() {
            self.note_wish(&command);
            if matches!(command, Command::CommitPlan { .. } | Command::RollBackWorkload { .. }) {
                self.note_versions()?;
            }
            let plan = matches!(command, Command::CommitPlan { .. });
            self.log.push(command);
            if plan {
                self.check_rows()?;
            }
        }
        Ok(applied)
    }

    /// An earlier specification may have been written again.
    fn note_versions(&mut self) -> Result<(), String> {
        for row in WorkloadRow::all(&self.connection).map_err(|error| error.to_string())? {
            if let Some(asked) = self.asked.get_mut(&row.spec.name) {
                asked.spec = row.spec;
            }
        }
        Ok(())
    }

    fn note_wish(&mut self, command: &Command) {
        let desired = match command {
            Command::ConfigureNode { name, changes, .. } => {
                if changes.availability == Some(Availability::Draining) {
                    self.left.extend(NodeRow::id_of(&self.connection, name).unwrap());
                }
                return;
            }
            Command::MoveInstances { moves, .. } => {
                self.left.extend(moves.iter().map(|one| one.from));
                return;
            }
            Command::NoteNodes { nodes, .. } => {
                let lost = nodes.iter().filter(|(_, health)| health.is_down()).map(|(id, _)| *id);
                self.lost.extend(lost.clone());
                self.left.extend(lost);
                return;
            }
            Command::PutWorkload { spec, .. } => {
                let desired = match self.asked.get(&spec.name).map(|asked| asked.desired) {
                    Some(desired @ (Desired::Running | Desired::Stopped)) => desired,
                    Some(Desired::Removed) | None => Desired::Running,
                };
                self.asked.insert(spec.name.clone(), Asked { spec: (**spec).clone(), desired });
                return;
            }
            Command::LabelWorkload { name, labels, .. } => {
                if let Some(asked) = self.asked.get_mut(name) {
                    for (key, value) in labels {
                        match value {
                            Some(value) => drop(asked.spec.labels.insert(key.clone(), value.clone())),
                            None => drop(asked.spec.labels.remove(key)),
                        }
                    }
                }
                return;
            }
            Command::PowerWorkload { name, action: PowerAction::Stop, .. } => (name, Desired::Stopped),
            Command::PowerWorkload { name, .. } => (name, Desired::Running),
            Command::RemoveWorkload { name, .. } => (name, Desired::Removed),
            Command::RegisterNode { .. }
            | Command::CommitPlan { .. }
            | Command::RollBackWorkload { .. }
            | Command::ReportInstances { .. }
            | Command::PutSecret { .. }
            | Command::CreateVolume { .. }
            | Command::BindVolume { .. }
            | Command::RemoveVolume { .. }
            | Command::MoveVolume { .. }
            | Command::TurnVolume { .. }
            | Command::ForgetVolumes { .. }
            | Command::PutRegistry { .. }
            | Command::RemoveRegistry { .. }
            | Command::RemoveSecret { .. }
            | Command::ConfigureGpu { .. }
            | Command::ClaimSubnet { .. }
            | Command::AnnounceMesh { .. }
            | Command::ConfigurePlacement { .. }
            | Command::CreateToken { .. }
            | Command::RevokeToken { .. }
            | Command::AdmitNode { .. }
            | Command::RemoveNode { .. }
            | Command::CreateUser { .. }
            | Command::ChangeUser { .. }
            | Command::RemoveUser { .. }
            | Command::OpenSession { .. }
            | Command::EndSession { .. }
            | Command::CreateApiToken { .. }
            | Command::RevokeApiToken { .. }
            | Command::PutSecondFactor { .. }
            | Command::RemoveSecondFactor { .. }
            | Command::PutPasskey { .. }
            | Command::RemovePasskey { .. }
            | Command::ConfigureAccess { .. }
            | Command::PutSigningKey { .. }
            | Command::AcceptUser { .. }
            | Command::NoteUses { .. }
            | Command::NoteAction { .. } => return,
        };
        if let Some(asked) = self.asked.get_mut(desired.0) {
            asked.desired = desired.1;
        }
    }

    /// No copy twice, but for one that moves or is of another specification, and its successor; no host port or address twice on a node, and nothing called back that was ordered to go.
    fn check_rows(&mut self) -> Result<(), String> {
        let mut copies = BTreeMap::new();
        let mut claims = BTreeSet::new();
        let rows = InstanceRow::all(&self.connection).map_err(|error| error.to_string())?;
        let now: BTreeMap<_, _> = rows.iter().map(|row| (row.id, row.desired)).collect();
        for (id, _) in self.placed.iter().filter(|(id, desired)| **desired == Desired::Removed || !now.contains_key(id))
        {
            self.removed.insert(*id);
        }
        for row in rows {
            let others = copies.entry((row.workload_id, row.ordinal)).or_insert_with(Vec::new);
            let moves = |node: &NodeId| self.left.contains(node);
            let made_of = made_of(&row.container);
            let succeeds = |node: &NodeId, other: &ContainerOrder| moves(node) || *other != made_of;
            let alone =
                others.is_empty() || moves(&row.node_id) || others.iter().any(|(node, _, other)| succeeds(node, other));
            others.push((row.node_id, row.desired, made_of));
            let counts =
                |(node, desired, _): &&(NodeId, Desired, _)| *desired != Desired::Removed && !self.lost.contains(node);
            let live = others.iter().filter(counts).count();
            if !alone || live > 2 {
                return Err(format!("copy {} of {} exists twice in the state", row.ordinal, row.workload_id));
            }
            if row.desired != Desired::Removed && self.removed.contains(&row.id) {
                return Err(format!("{} was called back after its removal", row.id));
            }
            let NetworkOrder::Bridge { address, ports, .. } = &row.container.network else { continue };
            let mut claim = vec![(row.node_id, address.to_string())];
            claim.extend(ports.iter().map(|port| (row.node_id, format!("{}/{}", port.host, port.protocol))));
            if let Some(twice) = claim.into_iter().find(|claim| !claims.insert(claim.clone())) {
                return Err(format!("{} was given twice on node {}", twice.1, twice.0));
            }
        }
        self.placed = now;
        Ok(())
    }

    /// What the scheduler would do now.
    pub(super) fn think(&mut self, now_ms: i64) -> Plan {
        let snapshot = Snapshot { now_ms, ..query_snapshot(&self.connection).unwrap() };
        plan(&snapshot, &mut || InstanceId(self.mint()))
    }

    pub(super) fn generation(&self, node: NodeId) -> Option<u64> {
        assignments_generation(&self.connection, node).unwrap()
    }

    /// The same log applied to another replica gives the same rows.
    pub(super) fn check_replica(&self, tamper: bool) -> Result<(), String> {
        let other = replica();
        // Later commands would wipe out the traces of an earlier one.
        let is_plan = |command: &Command| matches!(command, Command::CommitPlan { .. });
        let tampered = self.log.iter().rposition(is_plan).filter(|_| tamper).map(|place| place as u64 + 1);
        for (command, index) in self.log.iter().zip(1..) {
            let index = if tampered == Some(index) { index + 1_000 } else { index };
            apply(&other, index, command)
                .map_err(|error| error.to_string())?
                .map_err(|refusal| format!("command {index} was refused by another replica: {refusal}"))?;
        }
        if digest(&self.connection) == digest(&other) {
            Ok(())
        } else {
            Err("another replica has other rows after the same log".into())
        }
    }
}

/// What tells specifications apart: all of an order but what was found for it alone.
pub(super) fn made_of(order: &ContainerOrder) -> ContainerOrder {
    let mut order = order.clone();
    if let NetworkOrder::Bridge { address, ports, .. } = &mut order.network {
        *address = Ipv4Addr::UNSPECIFIED;
        for port in ports.iter_mut().filter(|port| port.host >= FIRST_FREE_PORT) {
            port.host = 0;
        }
    }
    order
}

/// Every cell of every row, one after the other.
fn digest(connection: &Connection) -> Vec<u8> {
    let mut out = Vec::new();
    for table in ["cluster", "nodes", "node_settings", "node_health", "placement", "workloads", "instances", "events"] {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table} ORDER BY rowid")).unwrap();
        let width = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            for column in 0..width {
                match row.get_ref(column).unwrap() {
                    ValueRef::Integer(number) => out.extend(number.to_be_bytes()),
                    ValueRef::Text(text) | ValueRef::Blob(text) => out.extend(text),
                    ValueRef::Null => out.push(0),
                    ValueRef::Real(number) => out.extend(number.to_be_bytes()),
                }
                out.push(b'|');
            }
        }
    }
    out
}
