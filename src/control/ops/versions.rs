//! The specifications that a workload has had, and going back to one.

use toft_model::{
    name::Name,
    state::{Command, VersionRow, WorkloadView, query_versions},
};

use super::{Ops, now_ms};
use crate::control::{ControlError, ErrorKind};

impl Ops {
    /// Versions of a workload, the newest first.
    pub async fn versions(&self, name: &Name) -> Result<Vec<VersionRow>, ControlError> {
        let asked = name.clone();
        let found = self.state.read(move |connection| query_versions(connection, &asked)).await?;
        found.ok_or_else(|| {
            ControlError::new(ErrorKind::NotFound, format!("there is no workload `{name}`"))
                .hint("`toft ls` shows the workloads there are")
        })
    }

    /// Writes version `to` again, or the newest before the present one that worked.
    pub async fn roll_back(
        &self,
        name: Name,
        to: Option<u64>,
        if_generation: Option<u64>,
    ) -> Result<WorkloadView, ControlError> {
        let asked = self.asked(&("roll back", &name, to, if_generation))?;
        let command = Command::RollBackWorkload { name: name.clone(), to, if_generation, at_ms: now_ms() };
        self.propose_workload(name, command, asked).await
    }
}
