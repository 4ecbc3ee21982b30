//! What can be typed after `stats` and `top`.

use clap::Args;
use toft_model::name::Name;

use super::args::parsed;

#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// Workloads [default: all]
    #[arg(value_name = "WORKLOAD", value_parser = parsed::<Name>)]
    pub(super) names: Vec<Name>,
    /// Show what is used now and end
    #[arg(long)]
    pub(super) no_stream: bool,
    /// Show each instance's share of memory too: pages that several use are divided among them
    #[arg(long)]
    pub(super) pss: bool,
    /// Print JSON; one object a line and second without --no-stream
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Workload, or an instance such as `web-0`
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}
