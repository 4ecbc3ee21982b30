//! What can be typed after `toft mesh`.

use clap::{Args, Subcommand};
use toft_model::{mesh::view::MOST_PACKETS, name::Name};

use super::args::parsed;

#[derive(Debug, Subcommand)]
pub(super) enum MeshCommand {
    /// Show how a node reaches the others through the encrypted network between them
    Show(ShowArgs),
    /// Let every node ask every other through it, and show how long that takes: a row a node
    Ping(PingArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Node that looks; the one that is asked by default
    #[arg(long, value_parser = parsed::<Name>)]
    pub(super) node: Option<Name>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PingArgs {
    /// Only ask this node
    #[arg(value_name = "NODE", value_parser = parsed::<Name>)]
    pub(super) node: Option<Name>,
    /// Packets from each node to each other
    #[arg(short = 'c', long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_PACKETS)))]
    pub(super) count: u32,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}
