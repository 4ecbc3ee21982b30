//! Nodes and workloads for those who look at all of them, such as the pages: kept, and brought up to date by what was written since
//! somebody looked last. With a thousand workloads that is the difference between a tenth of a millisecond and twenty.

use std::sync::Arc;

use toft_model::state::{InstanceView, NodeRow, Views, WorkloadRow, WorkloadView};
use tokio::sync::Mutex;

use super::Ops;
use crate::{
    consensus::{Follows, Rows},
    control::ControlError,
};

/// All nodes and workloads at one moment, which has every change that was acknowledged here before.
#[derive(Default)]
pub struct Seen {
    /// By name.
    pub nodes: Vec<Arc<NodeRow>>,
    /// By name, without what nodes tell beside their state.
    pub workloads: Vec<Arc<WorkloadView>>,
}

impl Seen {
    /// Every instance, by workload name and ordinal.
    pub fn instances(&self) -> impl Iterator<Item = &InstanceView> {
        self.workloads.iter().flat_map(|workload| &workload.instances)
    }

    /// The row of every workload, by name.
    pub(super) fn workload_rows(&self) -> Vec<&WorkloadRow> {
        self.workloads.iter().map(|workload| &workload.row).collect()
    }
}

/// What was seen last, and what it was made of.
type Last = (Views, Arc<Seen>);

/// What was seen last. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Option<Last>>>);

impl Ops {
    /// All nodes and workloads as they are now.
    pub async fn seen(&self) -> Result<Arc<Seen>, ControlError> {
        let mut kept = self.kept.0.lock().await;
        // Before the read, which then sees them all. Whoever is cut off in between leaves nothing behind, so that nothing is missed.
        let (before, written) = (kept.take(), self.state.take_written(Follows::Views));
        let views = match (before, written) {
            (Some((views, seen)), Rows::These(rows)) if rows.is_empty() => {
                *kept = Some((views, Arc::clone(&seen)));
                return Ok(seen);
            }
            (Some((mut views, _)), Rows::These(rows)) => {
                let follow = move |connection: &rusqlite::Connection| {
                    views.follow(connection, &rows)?;
                    Ok(views)
                };
                self.state.read(follow).await?
            }
            (None, _) | (_, Rows::All) => self.state.read(Views::read).await?,
        };
        let seen = Arc::new(Seen { nodes: views.nodes(), workloads: views.workloads() });
        *kept = Some((views, Arc::clone(&seen)));
        Ok(seen)
    }
}
