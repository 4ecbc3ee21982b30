//! The node's own memory of its orders, so that it can carry them out when nobody else answers.
//!
//! A redb file with the newest assignment set, one row an assignment, and with what became of each instance: whether
//! the process of an epoch was started, and whether it finished for good. A finished job must not run again after a
//! reboot.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use toft_model::{
    ids::{InstanceId, NodeId},
    instance::{Assignment, AssignmentSet, Exit},
    name::Name,
    secret::SealedSecret,
};

const ASSIGNMENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("assignments");
const OUTCOMES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("outcomes");
const SECRETS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("secrets");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Page cache in bytes; the whole ledger of a busy node is smaller.
const CACHE_BYTES: usize = 512 * 1024;

/// What became of an instance, as far as it must survive a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Newest epoch whose process was started.
    pub epoch: u64,
    /// Restarts within that epoch.
    pub restarts: u32,
    /// When the newest process was started, in milliseconds since 1970.
    #[serde(default)]
    pub started_ms: Option<i64>,
    /// How the process before it ended.
    #[serde(default)]
    pub last_exit: Option<Exit>,
    /// How the process ended, when it stays down.
    pub finished: Option<Exit>,
}

/// Why the ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The disk is full.
    #[error("no space is left for the node's ledger")]
    DiskFull,
    /// The store failed.
    #[error("the node's ledger failed: {0}")]
    Store(String),
    /// What it holds is not understood.
    #[error("the node's ledger holds a record that is not understood")]
    Record(#[source] serde_json::Error),
    /// It belongs to another node.
    #[error("the node's ledger belongs to node {0}")]
    Foreign(NodeId),
}

fn store(error: impl Into<redb::Error>) -> LedgerError {
    match error.into() {
        redb::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => LedgerError::DiskFull,
        other => LedgerError::Store(other.to_string()),
    }
}

/// The ledger. Calls block for one disk flush at most.
#[derive(Clone)]
pub struct Ledger {
    database: Arc<Database>,
}

/// What the ledger knew when the daemon started.
#[derive(Debug, Default)]
pub struct Remembered {
    /// Number of this run of the daemon ([`Ledger::begin_run`]).
    pub run: u64,
    /// The newest set; `None` on a fresh node.
    pub set: Option<AssignmentSet>,
    /// Outcomes by instance.
    pub outcomes: HashMap<InstanceId, Outcome>,
}

/// The number of the run after `before`.
pub fn next_run(before: u64, now_s: u64) -> u64 {
    now_s.max(before + 1)
}

/// What a newer set changes in the ledger.
#[derive(Debug, PartialEq, Eq)]
pub struct SetChanges<'a> {
    /// New or different.
    pub written: Vec<&'a Assignment>,
    /// To be forgotten, outcomes included.
    pub deleted: Vec<InstanceId>,
    /// Secrets that are new or of another version.
    pub sealed: Vec<(&'a Name, &'a SealedSecret)>,
    /// Secrets to be forgotten.
    pub dropped: Vec<Name>,
}

impl<'a> SetChanges<'a> {
    /// What makes a ledger that holds `old` hold `new`.
    pub fn between(old: Option<&AssignmentSet>, new: &'a AssignmentSet) -> Self {
        let before = old.map(|set| set.assignments.as_slice()).unwrap_or_default();
        let mut gone: BTreeMap<_, _> = before.iter().map(|order| (order.instance_id, order)).collect();
        let written = new.assignments.iter().filter(|order| gone.remove(&order.instance_id) != Some(*order)).collect();
        let nothing = BTreeMap::new();
        let known = old.map_or(&nothing, |set| &set.secrets);
        let sealed = new.secrets.iter().filter(|(name, secret)| known.get(*name) != Some(*secret)).collect();
        let dropped = known.keys().filter(|name| !new.secrets.contains_key(*name)).cloned().collect();
        Self { written, deleted: gone.into_keys().collect(), sealed, dropped }
    }
}

impl Ledger {
    /// Opens or creates the file.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(store)?;
        let transaction = database.begin_write().map_err(store)?;
        transaction.open_table(ASSIGNMENTS).map_err(store)?;
        transaction.open_table(OUTCOMES).map_err(store)?;
        transaction.open_table(SECRETS).map_err(store)?;
        transaction.open_table(META).map_err(store)?;
        transaction.commit().map_err(store)?;
        Ok(Self { database: Arc::new(database) })
    }

    /// Gives this run of the daemon a number, greater than that of every run before. `now_s` (seconds since 1970) makes
    /// it so even when the ledger was lost.
    pub fn begin_run(&self, now_s: u64) -> Result<u64, LedgerError> {
        let transaction = self.database.begin_write().map_err(store)?;
        let run = {
            let mut meta = transaction.open_table(META).map_err(store)?;
            let before = meta.get("run").map_err(store)?.map_or(0, |value| value.value());
            let run = next_run(before, now_s);
            meta.insert("run", run).map_err(store)?;
            run
        };
        transaction.commit().map_err(store)?;
        Ok(run)
    }

    /// Everything in it, for the node `node_id`.
    pub fn load(&self, node_id: NodeId) -> Result<Remembered, LedgerError> {
        let transaction = self.database.begin_read().map_err(store)?;
        let mut remembered = Remembered::default();
        for row in transaction.open_table(OUTCOMES).map_err(store)?.iter().map_err(store)? {
            let (key, value) = row.map_err(store)?;
            if let Ok(id) = key.value().parse() {
                let outcome = serde_json::from_slice(value.value()).map_err(LedgerError::Record)?;
                remembered.outcomes.insert(id, outcome);
            }
        }
        let meta = transaction.open_table(META).map_err(store)?;
        let Some(generation) = meta.get("generation").map_err(store)?.map(|value| value.value()) else {
            return Ok(remembered);
        };
        let mut assignments: Vec<Assignment> = Vec::new();
        for row in transaction.open_table(ASSIGNMENTS).map_err(store)?.iter().map_err(store)? {
            let (_, value) = row.map_err(store)?;
            assignments.push(serde_json::from_slice(value.value()).map_err(LedgerError::Record)?);
        }
        let mut secrets = BTreeMap::new();
        for row in transaction.open_table(SECRETS).map_err(store)?.iter().map_err(store)? {
            let (key, value) = row.map_err(store)?;
            if let Ok(name) = key.value().parse::<Name>() {
                let secret: SealedSecret = serde_json::from_slice(value.value()).map_err(LedgerError::Record)?;
                secrets.insert(name, secret);
            }
        }
        remembered.set = Some(AssignmentSet { node_id, generation, assignments, secrets });
        Ok(remembered)
    }

    /// Replaces the set `old` by `new`, writing only what differs. On disk when it returns.
    pub fn store_set(&self, old: Option<&AssignmentSet>, new: &AssignmentSet) -> Result<(), LedgerError> {
        let changes = SetChanges::between(old, new);
        let transaction = self.database.begin_write().map_err(store)?;
        {
            let mut table = transaction.open_table(ASSIGNMENTS).map_err(store)?;
            let mut outcomes = transaction.open_table(OUTCOMES).map_err(store)?;
            for assignment in changes.written {
                let record = serde_json::to_vec(assignment).map_err(LedgerError::Record)?;
                table.insert(assignment.instance_id.to_string().as_str(), record.as_slice()).map_err(store)?;
            }
            for id in changes.deleted {
                let key = id.to_string();
                table.remove(key.as_str()).map_err(store)?;
                outcomes.remove(key.as_str()).map_err(store)?;
            }
            let mut secrets = transaction.open_table(SECRETS).map_err(store)?;
            for name in changes.dropped {
                secrets.remove(name.as_str()).map_err(store)?;
            }
            for (name, secret) in changes.sealed {
                let record = serde_json::to_vec(secret).map_err(LedgerError::Record)?;
                secrets.insert(name.as_str(), record.as_slice()).map_err(store)?;
            }
            let mut meta = transaction.open_table(META).map_err(store)?;
            meta.insert("generation", new.generation).map_err(store)?;
        }
        transaction.commit().map_err(store)
    }

    /// Notes what became of an instance. On disk when it returns.
    pub fn store_outcome(&self, id: InstanceId, outcome: Outcome) -> Result<(), LedgerError> {
        let record = serde_json::to_vec(&outcome).map_err(LedgerError::Record)?;
        let transaction = self.database.begin_write().map_err(store)?;
        {
            let mut table = transaction.open_table(OUTCOMES).map_err(store)?;
            table.insert(id.to_string().as_str(), record.as_slice()).map_err(store)?;
        }
        transaction.commit().map_err(store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_has_a_greater_number_whatever_the_clock_says() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.redb")).unwrap();
        let runs = [1_000, 1_000, 5, 2_000].map(|now_s| ledger.begin_run(now_s).unwrap());
        assert_eq!(runs, [1_000, 1_001, 1_002, 2_000]);
    }

    #[test]
    fn sealed_secrets_come_and_go_with_the_set() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.redb")).unwrap();
        let node_id = NodeId(uuid::Uuid::nil());
        let secret = |version: u64| SealedSecret { version, sealed: vec![1, 2, version as u8].into() };
        let set = |generation, secrets: &[(&str, u64)]| {
            let secrets = secrets.iter().map(|(name, version)| (name.parse().unwrap(), secret(*version))).collect();
            AssignmentSet { node_id, generation, assignments: Vec::new(), secrets }
        };
        let mut before = None;
        for next in [set(1, &[("a", 1), ("b", 1)]), set(2, &[("a", 2), ("c", 1)]), set(3, &[])] {
            ledger.store_set(before.as_ref(), &next).unwrap();
            assert_eq!(ledger.load(node_id).unwrap().set.as_ref(), Some(&next));
            before = Some(next);
        }
    }
}
