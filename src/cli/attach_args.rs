//! What can be typed after `attach`, and for `run` in the foreground.

use clap::{ArgAction, Args};
use toft_model::name::Name;

use super::{args::parsed, detach_keys::DetachKeys};

pub(super) const ATTACH_HELP: &str = "Examples:
  toft run -d -it -n shell busybox sh     a shell in the background
  toft attach shell                       its terminal; control-P control-Q leaves it as it is
  toft attach web                         what a workload without input and terminal writes

The exit code is the process's. A workload with input or a terminal gets this command's signals too, as with Docker.";

/// What both have.
#[derive(Debug, Clone, Args)]
pub(super) struct FrontArgs {
    /// Keys that leave the container as it is
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(super) detach_keys: DetachKeys,
    /// Pass signals on to a process without a terminal; with `false` they end this command alone
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) sig_proxy: bool,
}

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// Do not pass on what is typed or piped in
    #[arg(long)]
    pub(super) no_stdin: bool,
    #[command(flatten)]
    pub(super) front: FrontArgs,
    /// Which instance of the workload, by its number [default: the first that runs]
    #[arg(long, value_name = "NUMBER")]
    pub(super) index: Option<u32>,
    /// Workload
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
}

/// The flags of `run`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Terminal")]
pub(super) struct RunFrontArgs {
    /// Keep its input open, and pass on what is typed or piped in
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// With -i or -t: stay in the background; `toft attach` goes to it
    #[arg(short, long, conflicts_with = "rm")]
    pub(super) detach: bool,
    #[command(flatten)]
    pub(super) front: FrontArgs,
}

impl RunFrontArgs {
    /// Whether this command's terminal or streams become the container's.
    pub(super) fn in_front(&self) -> bool {
        (self.interactive || self.tty) && !self.detach
    }
}
