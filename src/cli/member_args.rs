//! What can be typed about joining and leaving: `toft token`, `toft join`, `toft leave`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use toft_model::{
    name::Name,
    token::{MemberRole, TokenId},
    units::parse_span_ms,
};

use super::args::{ListArgs, parsed, told};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token that lets machines join, and print it with the command for them
    #[command(after_help = CREATE_HELP)]
    Create(TokenCreateArgs),
    /// List tokens: what they give, how long they are valid, who joined with them
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Take a token back; who joined with it stays
    Revoke {
        /// Id of the token
        #[arg(value_name = "ID", value_parser = parsed::<TokenId>)]
        id: TokenId,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

const CREATE_HELP: &str =
    "The token is shown once and cannot be read again. It names the cluster, so that a machine that joins knows whom it speaks with before
it says the secret. From the first token on this node listens for members: on port 7444, or where `[cluster] bind` says.";

#[derive(Debug, Args)]
pub(super) struct TokenCreateArgs {
    /// How long it is valid: 10m, 24h, 7d
    #[arg(long, value_name = "SPAN", default_value = "24h", value_parser = span)]
    pub(super) ttl: String,
    /// How many machines may join with it
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub(super) uses: u32,
    /// Label the nodes that join with it
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(super) labels: Vec<(String, String)>,
    /// What they become: server, or witness, which runs nothing but votes
    #[arg(long, value_name = "ROLE", default_value = "server", value_parser = parsed::<MemberRole>)]
    pub(super) role: MemberRole,
    /// What the machine is called that joins with it [default: its own choice]
    #[arg(long, value_parser = parsed::<Name>)]
    pub(super) name: Option<Name>,
    /// Show a PIN of eight digits instead, for a machine in the same network: five minutes, one use, three tries
    #[arg(long, conflicts_with_all = ["ttl", "uses"])]
    pub(super) pin: bool,
    /// Print the token alone, or the PIN
    #[arg(short, long, conflicts_with = "json")]
    pub(super) quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) const JOIN_HELP: &str = "Examples:
  toft join 192.168.1.10 --token toft1.5f...      the line that `toft token create` prints
  toft join box.lan --token-file -                the same, with the token from standard input
  TOFT_TOKEN=toft1.5f... toft join box.lan        or from the environment
  toft join --pin 1234-5678                       after `toft token create --pin` in the same network

Without a token one is asked for. Other programs on this machine see what stands on a command line; a token or a PIN that is spent is of no use to them.
What this machine had of its own is refused, unless --discard puts it aside. Keys are made here and never leave this machine.";

#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// A member of the cluster: HOST, HOST:PORT or https://HOST:PORT; with a PIN it is found in the local network
    #[arg(value_name = "URL", required_unless_present = "pin")]
    pub(super) url: Option<String>,
    /// PIN that a member shows: 1234-5678
    #[arg(long, value_name = "PIN", conflicts_with_all = ["token", "token_file"])]
    pub(super) pin: Option<String>,
    /// The cluster that is meant, when several in the local network have a PIN: the name of the node that shows it
    #[arg(long, value_name = "NAME", requires = "pin", conflicts_with = "url")]
    pub(super) cluster: Option<String>,
    /// Token that a member printed
    #[arg(long, value_name = "TOKEN", env = "TOFT_TOKEN", hide_env_values = true, conflicts_with = "token_file")]
    pub(super) token: Option<String>,
    /// File with the token; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Label this node
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(super) labels: Vec<(String, String)>,
    /// Name of this node [default: what it is called already]
    #[arg(long, value_parser = parsed::<Name>)]
    pub(super) name: Option<Name>,
    /// What this node is to do: server or witness [default: what the token says]
    #[arg(long, value_name = "ROLE", value_parser = parsed::<MemberRole>)]
    pub(super) role: Option<MemberRole>,
    /// Put workloads, volumes and secrets aside that are here
    #[arg(long)]
    pub(super) discard: bool,
    /// Data directory of the appliance
    #[arg(long, env = "TOFT_DATA_DIR", value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Configuration file it is started with
    #[arg(long, env = "TOFT_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) const LEAVE_HELP: &str =
    "Services move to other nodes first, as with `toft node drain`. Then this node is an empty appliance of its own; data of volumes is put aside
in its data directory. With --force it goes at once: what runs here is ended, and the cluster is told if it can be.";

#[derive(Debug, Args)]
pub(super) struct LeaveArgs {
    /// Do not ask
    #[arg(short, long)]
    pub(super) yes: bool,
    /// End what runs here, and go though nobody can be told
    #[arg(long)]
    pub(super) force: bool,
    /// Data directory of the appliance
    #[arg(long, env = "TOFT_DATA_DIR", value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Configuration file it is started with
    #[arg(long, env = "TOFT_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

fn span(text: &str) -> Result<String, String> {
    parse_span_ms(text).map(|_| text.to_owned()).map_err(told)
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it like `disk=ssd`")?;
    Ok((key.to_owned(), value.to_owned()))
}
