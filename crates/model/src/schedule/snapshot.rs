//! What the scheduler looks at.

use super::PlacementSettings;
use crate::state::{InstanceRow, NodeRow, VolumeRow, WorkloadRow};

/// The whole state that matters for placement, read at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Nodes, by name.
    pub nodes: Vec<NodeRow>,
    /// Workloads, by name.
    pub workloads: Vec<WorkloadRow>,
    /// Instances, those on their way out included.
    pub instances: Vec<InstanceRow>,
    /// Volumes, by name.
    pub volumes: Vec<VolumeRow>,
    /// What the cluster says about placement.
    pub placement: PlacementSettings,
}
