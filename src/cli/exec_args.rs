//! What can be typed after `exec`.

use clap::Args;
use toft_model::name::Name;

use super::args::parsed;

pub(super) const EXEC_HELP: &str = "Examples:
  toft exec -it web sh                        a shell in the first running instance of `web`
  toft exec web-1 cat /etc/hosts              a command in one instance
  toft exec -i web tar -x -C /srv <a.tar      a command that reads a file of this machine

The exit code is the command's: 126 or 127 when it cannot be executed, 125 when toft failed.";

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Pass on what is typed or piped in
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Run as this user [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(super) user: Option<String>,
    /// Run in this directory [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// Set an environment variable; without a value, the one of this shell, which keeps it out of the process list
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    pub(super) env: Vec<String>,
    /// Which instance of the workload, by its number [default: the first that runs]
    #[arg(long, value_name = "NUMBER")]
    pub(super) index: Option<u32>,
    /// Workload, or one instance such as `web-0`
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
    /// Command to run
    #[arg(required = true, value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
}
