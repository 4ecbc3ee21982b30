//! Operations on where work goes: what users say of nodes and of the whole cluster, and why things are where they are.

use toft_model::{
    name::Name,
    node::NodeChanges,
    schedule::{Explanation, PlacementChanges, PlacementSettings, Remaining, explain, remaining},
    state::{Command, NodeRow, placement_settings, query_snapshot},
};

use super::{Ops, now_ms};
use crate::control::{ControlError, ErrorKind};

impl Ops {
    /// Changes what users say of a node, and gives it as it then is.
    pub async fn configure_node(&self, name: Name, changes: NodeChanges) -> Result<NodeRow, ControlError> {
        // Told here with its field; the state checks again.
        self.node(&name).await?.settings.with(&changes)?;
        let asked = self.asked(&("configure node", &name, &changes))?;
        let command = Command::ConfigureNode { name: name.clone(), changes: Box::new(changes), at_ms: now_ms() };
        self.propose(command, asked).await?;
        self.node(&name).await
    }

    /// What is still on a node, by name, and why.
    pub async fn remaining_on(&self, name: &Name) -> Result<Vec<Remaining>, ControlError> {
        let node = self.node(name).await?.id;
        Ok(self.state.read(move |connection| Ok(remaining(&query_snapshot(connection)?, node))).await?)
    }

    /// What the cluster says about placement.
    pub async fn placement_settings(&self) -> Result<PlacementSettings, ControlError> {
        Ok(self.state.read(placement_settings).await?)
    }

    /// Changes it, and gives it as it then is.
    pub async fn configure_placement(&self, changes: PlacementChanges) -> Result<PlacementSettings, ControlError> {
        self.placement_settings().await?.with(&changes)?;
        let asked = self.asked(&("configure placement", &changes))?;
        self.propose(Command::ConfigurePlacement { changes: Box::new(changes), at_ms: now_ms() }, asked).await?;
        self.placement_settings().await
    }

    /// Why a workload's instances are where they are, and what would make one more fit.
    pub async fn explain(&self, name: &Name) -> Result<Explanation, ControlError> {
        let asked = name.clone();
        let found = self.state.read(move |connection| Ok(explain(&query_snapshot(connection)?, &asked))).await?;
        found.ok_or_else(|| {
            ControlError::new(ErrorKind::NotFound, format!("there is no workload `{name}`"))
                .hint("`toft ls` shows the workloads there are")
        })
    }
}
