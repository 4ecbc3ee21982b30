//! What can be typed after `sim`.

use std::path::PathBuf;

use clap::Args;
use toft_model::schedule::place::Policy;

use super::args::parsed;

pub(super) const SIM_HELP: &str = "\
Files are CSV with a header. Nodes: cpu_milli, memory_mib, gpu, model. Pods: cpu_milli, memory_mib, num_gpu, gpu_milli
and, if there is one, gpu_spec (models with `|` between them). Other columns are ignored.

Each seed brings pods and nodes into another order. Pods arrive until so much is asked for; when the file ends, more are
drawn from it. None leaves, and one that fits nowhere is dropped.

Examples:
  toft sim --nodes nodes.csv --pods pods.csv --policy fgd,best-fit --seeds 10 --svg fgd.svg";

#[derive(Debug, Args)]
pub(super) struct SimArgs {
    /// CSV file with the nodes
    #[arg(long, value_name = "FILE")]
    pub(super) nodes: PathBuf,
    /// CSV file with the pods
    #[arg(long, value_name = "FILE")]
    pub(super) pods: PathBuf,
    /// Policies, with commas between them: random, spread, binpack, best-fit, dot-prod, gpu-packing, fgd,
    /// fgd-balanced
    #[arg(long, value_name = "POLICY", value_delimiter = ',', default_value = "fgd", value_parser = parsed::<Policy>)]
    pub(super) policy: Vec<Policy>,
    /// Number of runs, each with another seed
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(super) seeds: u64,
    /// The first seed
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub(super) first_seed: u64,
    /// How much arrives, in percent of all GPUs
    #[arg(long, value_name = "PERCENT", default_value_t = 130, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) until: u32,
    /// Replay once more, moving up to N instances for each pod with GPUs that fits nowhere
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_moves)]
    pub(super) migrate: usize,
    /// Print JSON, with every point
    #[arg(long)]
    pub(super) json: bool,
    /// Write a plot of allocation and fragmentation there
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
}

fn parse_moves(text: &str) -> Result<usize, String> {
    let moves = text.parse().ok().filter(|moves| *moves <= MOVES);
    moves.ok_or_else(|| format!("it is a number from 0 to {MOVES}"))
}

/// More at once are a migration of the whole cluster.
const MOVES: usize = 64;
