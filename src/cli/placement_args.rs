//! Flags that say where the instances of a workload may be.

use clap::Args;
use toft_model::{
    node::Toleration,
    workload::{Affinity, OnNodeLoss, PlacementSpec, Rule, Spread, WorkloadSpec},
};

use super::args::parsed;

pub(super) const SET_HELP: &str = "Keys:
  placement.policy             best-fit, binpack, spread, random or custom
  placement.weights.TERM       -1000 to 1000; `toft explain` shows the terms: fit, copies, instances, gpus, image, cost, ...
  placement.expression         points of the numbers of a node, such as '20 if gpus == 0 else -price * 10'
  placement.cpu_percent        how much of a node's CPU can be reserved
  placement.memory_percent     how much of a node's memory can be reserved
  placement.electricity_price  what a kilowatt-hour costs, for nodes that tell their watts";

/// Where the instances of a workload may be, should be, and what they may push aside.
#[derive(Debug, Args)]
pub(super) struct PlacementArgs {
    /// Only nodes for which this holds: 'node.labels.zone == a', 'gpu.memory >= 24GiB', 'workload != db'; repeatable
    #[arg(long = "constraint", value_name = "RULE", value_parser = parsed::<Rule>, help_heading = "Placement")]
    constraints: Vec<Rule>,
    /// Rather nodes for which this holds: a constraint, with ` weight N` behind it if need be (-100 to 100)
    #[arg(long = "affinity", value_name = "RULE", value_parser = parsed::<Affinity>, help_heading = "Placement")]
    affinities: Vec<Affinity>,
    /// Spread the copies over nodes that differ in this: node.hostname, node.labels.KEY
    #[arg(long, value_name = "ATTRIBUTE", value_parser = parsed::<Spread>, help_heading = "Placement")]
    spread: Vec<Spread>,
    /// Put up with a taint: KEY[=VALUE][:EFFECT], or *
    #[arg(long = "toleration", value_name = "TAINT", value_parser = parsed::<Toleration>, help_heading = "Placement")]
    tolerations: Vec<Toleration>,
    /// Most copies on one node
    #[arg(long, value_name = "N", help_heading = "Placement")]
    max_per_node: Option<u32>,
    /// 0 to 1000; what has a lower one makes room when there is no other place
    #[arg(long, value_name = "N", default_value_t = PlacementSpec::USUAL_PRIORITY, help_heading = "Placement")]
    priority: u32,
    /// Place all copies at once or none
    #[arg(long, help_heading = "Placement")]
    gang: bool,
    /// What becomes of instances whose node is lost: reschedule or wait [default: wait for what writes to a volume or folder of its
    /// node, else reschedule]
    #[arg(long, value_name = "WHAT", value_parser = parsed::<OnNodeLoss>, help_heading = "Placement")]
    on_node_loss: Option<OnNodeLoss>,
    /// Never run two of an instance at a time, not even when its node is cut off
    #[arg(long, help_heading = "Placement")]
    exclusive: bool,
}

impl PlacementArgs {
    /// Writes them into a specification.
    pub(super) fn write(self, spec: &mut WorkloadSpec) {
        let Self {
            constraints,
            affinities,
            spread,
            tolerations,
            max_per_node,
            priority,
            gang,
            on_node_loss,
            exclusive,
        } = self;
        spec.placement = PlacementSpec { constraints, affinities, spread, tolerations, max_per_node, priority, gang };
        (spec.on_node_loss, spec.exclusive) = (on_node_loss, exclusive);
    }
}
