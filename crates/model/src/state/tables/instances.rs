//! `instances`: the running copies of workloads.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{from_json, to_json};
use crate::{
    gpu::GpuHold,
    ids::{InstanceId, NodeId, WorkloadId},
    instance::{ContainerOrder, Desired, InstanceReport, NetworkOrder},
    workload::Resources,
};

/// One row of `instances`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRow {
    /// Id.
    pub id: InstanceId,
    /// Workload it belongs to.
    pub workload_id: WorkloadId,
    /// Which copy, from 0.
    pub ordinal: u32,
    /// Where it was placed.
    pub node_id: NodeId,
    /// What shall become of it.
    pub desired: Desired,
    /// Epoch of the order: its workload's, or a later one when it was started on its own.
    pub epoch: u64,
    /// What it is made of.
    pub container: ContainerOrder,
    /// The node's newest observation.
    pub report: Option<InstanceReport>,
    /// When it was placed.
    pub created_at_ms: i64,
    /// Whether its node is lost: what it reported last says nothing of now.
    pub lost: bool,
    /// Where it is to be moved by order of a user.
    pub moves_to: Option<MoveOrder>,
}

/// An order to move an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoveOrder {
    /// To which node.
    pub node_id: NodeId,
    /// Its turn: of two orders the one with the lower turn was to be carried out first.
    pub turn: u32,
}

/// The part of a [`ContainerOrder`] that others cannot have meanwhile.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Holding {
    /// Its address and ports.
    pub network: NetworkOrder,
    /// What is reserved for it.
    pub resources: Resources,
    /// GPUs.
    #[serde(default)]
    pub gpus: Vec<GpuHold>,
}

const COLUMNS: &str =
    "id, workload_id, ordinal, node_id, desired, epoch, container, report, created_at_ms, lost, moves_to, moves_turn";

impl InstanceRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            workload_id: row.get(1)?,
            ordinal: row.get(2)?,
            node_id: row.get(3)?,
            desired: row.get(4)?,
            epoch: row.get(5)?,
            container: from_json(row.get_ref(6)?.as_str()?)?,
            report: row.get_ref(7)?.as_str_or_null()?.map(from_json).transpose()?,
            created_at_ms: row.get(8)?,
            lost: row.get(9)?,
            moves_to: match row.get(10)? {
                Some(node_id) => Some(MoveOrder { node_id, turn: row.get(11)? }),
                None => None,
            },
        })
    }

    /// Every instance, by workload and ordinal.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM instances ORDER BY workload_id, ordinal, id"))?
            .query_map([], Self::read)?
            .collect()
    }

    /// The instances of one workload, by ordinal.
    pub fn of_workload(connection: &Connection, id: WorkloadId) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM instances WHERE workload_id = ?1 ORDER BY ordinal, id"))?
            .query_map([id], Self::read)?
            .collect()
    }

    /// The instances placed on one node.
    pub fn of_node(connection: &Connection, id: NodeId) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM instances WHERE node_id = ?1 ORDER BY id"))?
            .query_map([id], Self::read)?
            .collect()
    }

    /// The instance of that id.
    pub fn by_id(connection: &Connection, id: InstanceId) -> rusqlite::Result<Option<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM instances WHERE id = ?1"))?
            .query_row([id], Self::read)
            .optional()
    }

    /// Whether the workload has an instance.
    pub fn any_of_workload(connection: &Connection, id: WorkloadId) -> rusqlite::Result<bool> {
        connection.prepare_cached("SELECT 1 FROM instances WHERE workload_id = ?1")?.exists([id])
    }

    /// The instances of that ordinal of a workload.
    pub fn of_ordinal(connection: &Connection, id: WorkloadId, ordinal: u32) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM instances WHERE workload_id = ?1 AND ordinal = ?2 ORDER BY id"
            ))?
            .query_map(params![id, ordinal], Self::read)?
            .collect()
    }

    /// What the instances placed on one node hold, each with its workload.
    pub fn holdings_of_node(connection: &Connection, id: NodeId) -> rusqlite::Result<Vec<(WorkloadId, Holding)>> {
        connection
            .prepare_cached("SELECT workload_id, container FROM instances WHERE node_id = ?1")?
            .query_map([id], |row| Ok((row.get(0)?, from_json(row.get_ref(1)?.as_str()?)?)))?
            .collect()
    }

    /// Those that are to be moved by order of a user, in their turn.
    pub fn ordered_to_move(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM instances WHERE moves_to IS NOT NULL ORDER BY moves_turn, id"
            ))?
            .query_map([], Self::read)?
            .collect()
    }

    /// Writes a new row; `false` when the id is in use.
    pub fn insert(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let inserted = connection
            .prepare_cached(
                "INSERT INTO instances (id, workload_id, ordinal, node_id, desired, epoch, container, report, created_at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, NULL, ?8) ON CONFLICT (id) DO NOTHING",
            )?
            .execute(params![
                self.id,
                self.workload_id,
                self.ordinal,
                self.node_id,
                self.desired,
                self.epoch,
                to_json(&self.container)?,
                self.created_at_ms
            ])?;
        Ok(inserted > 0)
    }

    /// Says of all instances on a node whether that is lost.
    pub fn set_lost(connection: &Connection, node: NodeId, lost: bool) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE instances SET lost = ?2 WHERE node_id = ?1 AND lost <> ?2")?
            .execute(params![node, lost])?;
        Ok(())
    }

    /// Changes the order.
    pub fn set_order(connection: &Connection, id: InstanceId, desired: Desired, epoch: u64) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE instances SET desired = ?2, epoch = ?3 WHERE id = ?1")?
            .execute(params![id, desired, epoch])?;
        Ok(())
    }

    /// Orders it to be moved, or takes the order back.
    pub fn set_move(connection: &Connection, id: InstanceId, order: Option<MoveOrder>) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE instances SET moves_to = ?2, moves_turn = ?3 WHERE id = ?1")?
            .execute(params![id, order.map(|order| order.node_id), order.map(|order| order.turn)])?;
        Ok(())
    }

    /// Replaces the observation.
    pub fn set_report(connection: &Connection, report: &InstanceReport) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE instances SET report = ?2 WHERE id = ?1")?
            .execute(params![report.instance_id, to_json(report)?])?;
        Ok(())
    }

    /// Deletes the row.
    pub fn delete(connection: &Connection, id: InstanceId) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM instances WHERE id = ?1")?.execute([id])?;
        Ok(())
    }
}
