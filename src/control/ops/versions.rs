//! The specifications that a workload has had, and going back to one.

use toft_model::{
    identity::Role,
    name::Name,
    state::{Command, VersionRow, WorkloadView, query_versions},
};

use super::{Ops, now_ms};
use crate::control::{ControlError, ErrorKind, actor};

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
        // The state counts no further.
        if let Some(to) = to.filter(|to| i64::try_from(*to).is_err()) {
            let message = format!("the workload `{name}` has no version {to}");
            return Err(ControlError::new(ErrorKind::NotFound, message)
                .field("to")
                .hint("`toft history` lists the versions that are kept"));
        }
        self.granted_versions(&name, to).await?;
        let asked = self.asked(&("roll back", &name, to, if_generation))?;
        let command = Command::RollBackWorkload { name: name.clone(), to, if_generation, at_ms: now_ms() };
        self.propose_workload(name, command, asked).await
    }

    /// Refuses who has only a grant a version that asks for more than the present one. When none is named, it may be any.
    async fn granted_versions(&self, name: &Name, to: Option<u64>) -> Result<(), ControlError> {
        let Some(asks) = actor::current().filter(|asks| asks.rights.role < Role::Operator) else { return Ok(()) };
        let versions = self.versions(name).await?;
        let Some(present) = versions.first() else { return Ok(()) };
        let meant = versions.iter().filter(|version| to.is_none_or(|to| version.generation == to));
        meant.into_iter().try_for_each(|version| asks.need_for(&version.spec, Some(&present.spec)))
    }
}
