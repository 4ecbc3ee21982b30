//! One running copy of a workload: what a node is ordered to do, and what it observed.

mod assignment;
mod lifecycle;
mod report;

pub use assignment::{Assignment, AssignmentSet, ContainerOrder, Desired, NetworkOrder, PublishedPort};
pub use lifecycle::{Event, Exit, IllegalMove, InstanceState};
pub use report::InstanceReport;
