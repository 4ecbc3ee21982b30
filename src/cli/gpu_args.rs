//! What can be typed after `toft gpu`.

use clap::{Args, Subcommand};
use toft_model::gpu::GpuPolicy;

use super::args::{ListArgs, parsed};

#[derive(Debug, Subcommand)]
pub(super) enum GpuCommand {
    /// List the GPUs there are, how they are and who holds them
    Ls(ListArgs),
    /// Show what the GPUs of this node do, and for which processes
    Top(GpuTopArgs),
    /// Set how a GPU is given away
    #[command(after_help = SET_HELP)]
    Set {
        #[command(flatten)]
        card: CardArgs,
        /// shared: one instance for all of it or several for shares; exclusive: one instance; mig: only its MIG devices
        #[arg(long, value_parser = parsed::<GpuPolicy>)]
        policy: GpuPolicy,
    },
    /// Give a GPU no new work; what runs on it runs on
    Cordon(CardArgs),
    /// Give a cordoned GPU work again
    Uncordon(CardArgs),
}

const SET_HELP: &str = "Examples:
  toft gpu set 0 --policy exclusive             the first GPU of the only node with one
  toft gpu set box/1 --policy shared            the second GPU of the node box
  toft gpu set GPU-5f3d --policy mig            the GPU whose name begins so";

#[derive(Debug, Args)]
pub(super) struct CardArgs {
    /// GPU: its place on its node, NODE/PLACE, or how its name begins
    #[arg(value_name = "GPU")]
    pub(super) card: String,
}

#[derive(Debug, Args)]
pub(super) struct GpuTopArgs {
    /// Show what is so now and end
    #[arg(long)]
    pub(super) no_stream: bool,
    /// Print JSON; one object a line and second without --no-stream
    #[arg(long)]
    pub(super) json: bool,
}
