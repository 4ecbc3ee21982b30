//! What can be typed about rebalancing.

use clap::Args;
use toft_model::units::parse_span_ms;

use super::args::told;

pub(super) const REBALANCE_HELP: &str =
    "Shows which instances would be better off on other nodes by the cluster's policy, were they placed now, and asks. Each starts
on its new node before it stops on the old one, one of a workload at a time. Jobs, gangs, what is bound to its node or has data
there, and what may not run twice at once stay. What cannot be moved after all stays, and why is said; the exit code is then 1.
Control-C ends the waiting and not the moves. toft moves nothing by itself.";

#[derive(Debug, Args)]
pub(super) struct RebalanceArgs {
    /// Only show the plan
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Most instances to move, 1 to 1000 [default: 20]
    #[arg(long, value_name = "N")]
    pub(super) max_moves: Option<u32>,
    /// Do not ask
    #[arg(short, long, conflicts_with = "dry_run")]
    pub(super) yes: bool,
    /// Print the plan as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Wait no longer than this: 90s, 15m, 2h; then the exit code is 1, and the moves go on
    #[arg(long, value_name = "SPAN", value_parser = span, conflicts_with = "dry_run")]
    pub(super) timeout: Option<u64>,
    /// Do not wait until it is done
    #[arg(long, conflicts_with_all = ["timeout", "dry_run"])]
    pub(super) no_wait: bool,
    /// Move nothing more of what was ordered before
    #[arg(long, conflicts_with_all = ["dry_run", "max_moves", "yes", "json", "timeout", "no_wait"])]
    pub(super) stop: bool,
}

fn span(text: &str) -> Result<u64, String> {
    parse_span_ms(text).map_err(told)
}
