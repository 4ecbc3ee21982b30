//! Operations on nodes, instances and the story of the cluster.

use std::collections::BTreeMap;

use toft_model::{
    ids::NodeId,
    instance::InstanceReport,
    name::Name,
    node::{Inventory, NodeFacts, NodeHealth},
    state::{
        AdmissionRow, Command, EventRow, InstanceView, NodeRow, WorkloadView, query_events, query_events_of,
        query_instances,
    },
};

use super::{Ops, now_ms};
use crate::control::{ControlError, ErrorKind};

impl Ops {
    /// A node tells what it is.
    pub async fn register_node(
        &self,
        node_id: NodeId,
        name: Name,
        labels: BTreeMap<String, String>,
        inventory: Inventory,
    ) -> Result<(), ControlError> {
        self.state.propose(Command::RegisterNode { node_id, name, labels, inventory, at_ms: now_ms() }).await?;
        Ok(())
    }

    /// A node tells that it will be back in a moment, or that it is back. Alone it has nobody to tell.
    pub async fn tell_presence(&self, node_id: NodeId, health: NodeHealth) -> Result<(), ControlError> {
        let known = self.state.read(move |connection| NodeRow::by_id(connection, node_id)).await?;
        if self.state.has_others() && known.is_some_and(|node| node.health != health) {
            self.state.propose(Command::NoteNodes { nodes: vec![(node_id, health)], at_ms: now_ms() }).await?;
        }
        Ok(())
    }

    /// A node tells what it observed.
    pub async fn report_instances(&self, node_id: NodeId, reports: Vec<InstanceReport>) -> Result<(), ControlError> {
        self.state.propose(Command::ReportInstances { node_id, reports, at_ms: now_ms() }).await?;
        Ok(())
    }

    /// Every node, by name.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, ControlError> {
        Ok(self.state.read(NodeRow::all).await?)
    }

    /// Servers that were let in and have not told yet what they are, by name: nothing is known of them but that, and nothing can
    /// run there.
    pub async fn joining(&self) -> Result<Vec<AdmissionRow>, ControlError> {
        Ok(self.state.read(AdmissionRow::joining).await?)
    }

    /// One node.
    pub async fn node(&self, name: &Name) -> Result<NodeRow, ControlError> {
        let seen = self.seen().await?;
        seen.nodes.iter().find(|node| node.name == *name).map(|node| NodeRow::clone(node)).ok_or_else(|| {
            ControlError::new(ErrorKind::NotFound, format!("there is no node `{name}`"))
                .hint("`toft node ls` lists the nodes")
        })
    }

    /// What a node's machine is and has now.
    pub async fn node_facts(&self, node: &NodeRow) -> Result<NodeFacts, ControlError> {
        self.access(node.id, &node.name)?.facts().await
    }

    /// Every instance, by workload name and ordinal.
    pub async fn instances(&self) -> Result<Vec<InstanceView>, ControlError> {
        let mut instances = self.state.read(query_instances).await?;
        self.noted_all(instances.iter_mut().collect()).await;
        Ok(instances)
    }

    /// The newest events, newest first: of one subject or of all, before a position or from the end.
    pub async fn events(
        &self,
        subject: Option<String>,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<EventRow>, ControlError> {
        Ok(self.state.read(move |connection| query_events(connection, subject.as_deref(), before, limit)).await?)
    }

    /// The newest events of a workload and of its instances, newest first.
    pub async fn workload_events(&self, workload: &WorkloadView, limit: u32) -> Result<Vec<EventRow>, ControlError> {
        let name = &workload.row.spec.name;
        let placed = workload.instances.iter().map(|instance| instance.row.ordinal + 1).max().unwrap_or(0);
        let mut subjects = vec![format!("workload/{name}")];
        let ordinals = 0..placed.max(workload.row.spec.replicas);
        subjects.extend(ordinals.map(|ordinal| format!("instance/{name}-{ordinal}")));
        Ok(self.state.read(move |connection| query_events_of(connection, &subjects, limit)).await?)
    }
}
