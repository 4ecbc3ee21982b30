//! `instances`: the running copies of workloads.

use std::net::Ipv4Addr;

use rusqlite::{Connection, OptionalExtension, Row, params, types::Type};

use super::{from_json, to_json};
use crate::{
    gpu::GpuHold,
    ids::{InstanceId, NodeId, WorkloadId},
    instance::{ContainerOrder, Desired, InstanceReport, NetworkOrder},
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

/// What others cannot have meanwhile, beside ports and GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// Whose it is.
    pub workload_id: WorkloadId,
    /// CPU time that is reserved for it, in thousandths of a core.
    pub cpu_reserved_millis: Option<u32>,
    /// Memory that is reserved for it.
    pub memory_reserved_bytes: Option<u64>,
    /// Its address on the node's bridge.
    pub address: Option<Ipv4Addr>,
    /// Whether it holds ports or GPUs as well.
    pub has_more: bool,
}

/// The ports and GPUs of a [`ContainerOrder`].
#[derive(Debug, Clone, serde::Deserialize)]
pub struct PortsAndGpus {
    /// Its ports are in here.
    pub network: NetworkOrder,
    /// GPUs.
    #[serde(default)]
    pub gpus: Vec<GpuHold>,
}

/// How many ports and GPUs an instance holds, as the index `instances_by_holding` has it.
const MORE: &str = "coalesce(json_array_length(container, '$.network.ports'), 0) + \
                    coalesce(json_array_length(container, '$.gpus'), 0)";
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

    /// What the instances placed on one node hold.
    pub fn holdings_of_node(connection: &Connection, id: NodeId) -> rusqlite::Result<Vec<Holding>> {
        let read = |row: &Row<'_>| {
            let address = row.get_ref(3)?.as_str_or_null()?.map(str::parse).transpose();
            Ok(Holding {
                workload_id: row.get(0)?,
                cpu_reserved_millis: row.get(1)?,
                memory_reserved_bytes: row.get::<_, Option<i64>>(2)?.map(i64::unsigned_abs),
                address: address.map_err(|e| rusqlite::Error::FromSqlConversionFailure(3, Type::Text, Box::new(e)))?,
                has_more: row.get(4)?,
            })
        };
        connection.prepare_cached(&Self::holdings_query())?.query_map([id], read)?.collect()
    }

    /// All of it stands in an index: a placement reads it for each instance that its node has, and none of their containers.
    pub(in super::super) fn holdings_query() -> String {
        format!(
            "SELECT workload_id, json_extract(container, '$.resources.cpu_reserved_millis'), \
             json_extract(container, '$.resources.memory_reserved_bytes'), json_extract(container, '$.network.address'), \
             {MORE} > 0 FROM instances INDEXED BY instances_by_holding WHERE node_id = ?1"
        )
    }

    /// The ports and GPUs of the instances placed on one node that hold some.
    pub fn ports_and_gpus_of_node(connection: &Connection, id: NodeId) -> rusqlite::Result<Vec<PortsAndGpus>> {
        connection
            .prepare_cached(&format!("SELECT container FROM instances WHERE node_id = ?1 AND {MORE} > 0"))?
            .query_map([id], |row| from_json(row.get_ref(0)?.as_str()?))?
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
