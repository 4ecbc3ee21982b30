//! What can be typed about nodes.

use clap::{Args, Subcommand};
use toft_model::{invalid::Invalid, name::Name, node::TaintChange, units::parse_span_ms};

use super::args::{ListArgs, parse_label, parsed, told};

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// List nodes
    Ls(ListArgs),
    /// Show what a node is and has: CPU, memory, disk, temperatures, versions
    Inspect {
        /// Node
        #[arg(value_parser = parsed::<Name>)]
        name: Name,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Set and remove a node's labels, which constraints and affinities look at
    Label {
        /// Node
        #[arg(value_parser = parsed::<Name>)]
        name: Name,
        /// KEY=VALUE sets a label, KEY- removes it
        #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = parse_label)]
        changes: Vec<(String, Option<String>)>,
    },
    /// Keep work away from a node unless it tolerates it: NoSchedule, PreferNoSchedule, or NoExecute, which also moves what runs
    Taint {
        /// Node
        #[arg(value_parser = parsed::<Name>)]
        name: Name,
        /// KEY[=VALUE]:EFFECT sets a taint, KEY[:EFFECT]- removes
        #[arg(required = true, value_name = "TAINT", value_parser = parsed::<TaintChange>)]
        taints: Vec<TaintChange>,
    },
    /// Say what a node costs and how far it is overbooked
    Set(SetArgs),
    /// Let a node take nothing new; what runs stays
    Cordon {
        /// Nodes
        #[arg(required = true, value_name = "NAME", value_parser = parsed::<Name>)]
        names: Vec<Name>,
    },
    /// Let a node take work again, after a cordon or a drain
    #[command(visible_alias = "undrain")]
    Uncordon {
        /// Nodes
        #[arg(required = true, value_name = "NAME", value_parser = parsed::<Name>)]
        names: Vec<Name>,
    },
    /// Move a node's services to other nodes, and wait until it is empty
    #[command(after_help = DRAIN_HELP)]
    Drain(DrainArgs),
    /// Remove a node for good; on the node itself use `toft leave`
    #[command(after_help = RM_HELP)]
    Rm {
        /// Node
        #[arg(value_parser = parsed::<Name>)]
        name: Name,
        /// End what runs there, and give up the volumes that lie there
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

const RM_HELP: &str =
    "A node that answers and runs something is drained first: `toft node drain`. One that does not answer is removed with what ran there, which
starts elsewhere. Its certificate is refused from then on. Should it come back, its containers go on there until `toft leave --force`.";

const DRAIN_HELP: &str =
    "Each service starts on another node before it stops on this one, so that no copy is missing meanwhile; only the single
copy that writes to a volume stops first. Jobs are left to end. What no other node takes stays, and why is said. The node
takes nothing new until `toft node uncordon`. Control-C ends the waiting and not the drain.";

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Node
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
    /// Wait no longer than this: 90s, 15m, 2h; then the exit code is 1, and the drain goes on
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(super) timeout: Option<u64>,
    /// Do not wait until it is empty
    #[arg(long, conflicts_with = "timeout")]
    pub(super) no_wait: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct SetArgs {
    /// Node
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
    /// What an hour of it costs; `none` takes it back
    #[arg(long, value_name = "AMOUNT", value_parser = amount)]
    pub(super) price: Option<Amount>,
    /// Watts that it draws under load, for a node whose cards do not tell theirs, or `none`
    #[arg(long, value_name = "WATTS", value_parser = whole)]
    pub(super) watts: Option<Whole>,
    /// Watts that it draws besides its cards, where they tell theirs, or `none`
    #[arg(long, value_name = "WATTS", value_parser = whole)]
    pub(super) base_watts: Option<Whole>,
    /// How much of its CPU can be reserved, in percent; `none` for the cluster's ratio
    #[arg(long, value_name = "PERCENT", value_parser = whole)]
    pub(super) cpu_percent: Option<Whole>,
    /// How much of its memory can be reserved, in percent; `none` for the cluster's ratio
    #[arg(long, value_name = "PERCENT", value_parser = whole)]
    pub(super) memory_percent: Option<Whole>,
}

/// A number, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amount(pub(super) Option<f64>);

/// A whole number, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole(pub(super) Option<u32>);

fn amount(text: &str) -> Result<Amount, String> {
    if text == "none" {
        return Ok(Amount(None));
    }
    text.parse().map(|number| Amount(Some(number))).map_err(|_| "write a number such as `0.35`, or `none`".to_owned())
}

fn whole(text: &str) -> Result<Whole, String> {
    if text == "none" {
        return Ok(Whole(None));
    }
    let number = text.strip_suffix('%').unwrap_or(text).parse();
    number.map(|number| Whole(Some(number))).map_err(|_| "write a whole number, or `none`".to_owned())
}

fn span(text: &str) -> Result<u64, String> {
    parse_span_ms(text).map_err(|invalid: Invalid| told(invalid))
}
