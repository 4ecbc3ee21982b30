//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use toft_model::{
    gpu::GpuRequest,
    image::ImageRef,
    invalid::Invalid,
    name::Name,
    pull::PullPolicy,
    secret::SecretMount,
    units::{parse_bytes, parse_cpu_millis},
    workload::{PortSpec, RestartPolicy},
};

use super::{
    attach_args::{ATTACH_HELP, AttachArgs, RunFrontArgs},
    backup_args::BackupCommand,
    cdi_hook::HookCommand,
    cp_args::{CP_HELP, CpArgs},
    exec_args::{EXEC_HELP, ExecArgs},
    gpu_args::GpuCommand,
    health_args::HealthArgs,
    image_args::ImageCommand,
    member_args::{JOIN_HELP, JoinArgs, LEAVE_HELP, LeaveArgs, TokenCommand},
    mesh_args::MeshCommand,
    network_args::NetworkArgs,
    node_args::NodeCommand,
    placement_args::{PlacementArgs, SET_HELP},
    process_args::{ProcessArgs, ResourceArgs},
    rebalance_args::{REBALANCE_HELP, RebalanceArgs},
    registry_args::RegistryCommand,
    secret_args::SecretCommand,
    sim_args::{SIM_HELP, SimArgs},
    stats_args::{StatsArgs, TopArgs},
    update_args::{HistoryArgs, RollbackArgs, UPDATE_HELP, UpdateArgs, UpdateFlags},
    user_args::{AuditArgs, CaCommand, UserCommand},
    volume_args::{MountArgs, VolumeCommand},
};
use crate::config::Flags;

/// Runs containers on this machine and the ones joined to it.
#[derive(Debug, Parser)]
#[command(name = "toft", version, max_term_width = 110, disable_help_subcommand = true)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Which appliance is meant.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Appliance to talk to: unix://PATH, https://HOST:PORT or http://HOST:PORT [default: unix:///run/toft/toft.sock]
    #[arg(long, global = true, env = "TOFT_CONNECT", value_name = "URL", help_heading = "Connection")]
    pub(super) connect: Option<String>,
    /// Appliance to talk to, by its name in ~/.config/toft/config.toml
    #[arg(long, global = true, env = "TOFT_CONTEXT", value_name = "NAME", help_heading = "Connection")]
    pub(super) context: Option<String>,
    /// File with a password, for http:// and https://
    #[arg(long, global = true, env = "TOFT_PASSWORD_FILE", value_name = "FILE", help_heading = "Connection")]
    pub(super) password_file: Option<PathBuf>,
    /// User whose password that is [default: admin]
    #[arg(long = "as", global = true, env = "TOFT_AS", value_name = "USER", help_heading = "Connection")]
    pub(super) as_user: Option<String>,
    /// File with the certificate (PEM) of the authority that https:// is to be signed by [default: those of the system]
    #[arg(long, global = true, env = "TOFT_CA_FILE", value_name = "FILE", help_heading = "Connection")]
    pub(super) ca_file: Option<PathBuf>,
    /// SHA-256 of that certificate instead, as `toft ca show` prints it
    #[arg(
        long,
        global = true,
        env = "TOFT_CA_SHA256",
        value_name = "HEX",
        help_heading = "Connection",
        conflicts_with = "ca_file"
    )]
    pub(super) ca_sha256: Option<String>,
    /// File with an API token, instead of a password
    #[arg(long, global = true, env = "TOFT_API_TOKEN_FILE", value_name = "FILE", help_heading = "Connection")]
    pub(super) api_token_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the appliance in the foreground
    Up(UpArgs),
    /// End the appliance and its containers; what should run starts again with the next `toft up`
    Down(DownArgs),
    /// Run a whole cluster of made-up machines in this process, to look at toft without any
    Dev(DevArgs),
    /// Run an image as a workload
    #[command(after_help = RUN_HELP)]
    Run(Box<RunArgs>),
    /// List workloads
    Ls(ListArgs),
    /// List instances, the running copies of workloads
    Ps(ListArgs),
    /// Show everything about a workload, as JSON
    Inspect {
        /// Workload
        #[arg(value_parser = parsed::<Name>)]
        name: Name,
    },
    /// Show what a workload's instances wrote
    Logs(LogsArgs),
    /// Run a command in a container that runs
    #[command(after_help = EXEC_HELP)]
    Exec(ExecArgs),
    /// Copy files out of containers and into them
    #[command(after_help = CP_HELP)]
    Cp(CpArgs),
    /// Go to a workload's terminal or streams; of one without input and terminal, show what it writes
    #[command(after_help = ATTACH_HELP)]
    Attach(AttachArgs),
    /// Show what instances use: CPU, memory, network, disk, processes
    Stats(StatsArgs),
    /// List the processes of a workload's instances
    Top(TopArgs),
    /// Start stopped or finished workloads
    Start(NamesArgs),
    /// Stop workloads; their containers stay
    Stop(NamesArgs),
    /// End and start workloads' processes
    Restart(NamesArgs),
    /// Change a workload; its instances are replaced one after the other
    #[command(after_help = UPDATE_HELP)]
    Update(Box<UpdateArgs>),
    /// Go back to an earlier version of a workload
    Rollback(RollbackArgs),
    /// Show the versions of a workload
    History(HistoryArgs),
    /// Set how many instances a workload has
    Scale {
        /// NAME=COUNT
        #[arg(required = true, value_name = "NAME=COUNT", value_parser = parse_scale)]
        changes: Vec<(Name, u32)>,
        /// Do not wait until it is so
        #[arg(long)]
        no_wait: bool,
    },
    /// Set and remove a workload's labels; nothing that runs changes
    Label {
        /// Workload
        #[arg(value_parser = parsed::<Name>)]
        name: Name,
        /// KEY=VALUE sets a label, KEY- removes it
        #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = parse_label)]
        changes: Vec<(String, Option<String>)>,
    },
    /// Stop workloads and remove their containers
    Rm(NamesArgs),
    /// Show what happened, newest last
    Events(EventsArgs),
    /// Say why a workload's instances are where they are, why not elsewhere, and what would make one more fit
    Explain {
        /// Workload
        #[arg(value_parser = parsed::<Name>)]
        name: Name,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show which instances would be better off on other nodes, ask, and move them
    #[command(after_help = REBALANCE_HELP)]
    Rebalance(RebalanceArgs),
    /// Nodes of the cluster
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// GPUs of the cluster
    Gpu {
        #[command(subcommand)]
        command: GpuCommand,
    },
    /// Users, their sessions at the dashboard, and tokens for programs
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Show who did what
    Audit(AuditArgs),
    /// The authority that signs the certificates of the cluster's nodes
    Ca {
        #[command(subcommand)]
        command: CaCommand,
    },
    /// Tokens that let machines join
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Make this machine a member of a cluster
    #[command(after_help = JOIN_HELP)]
    Join(Box<JoinArgs>),
    /// Take this node out of its cluster
    #[command(after_help = LEAVE_HELP)]
    Leave(LeaveArgs),
    /// The members that share the state
    Cluster {
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// The encrypted network between the nodes
    Mesh {
        #[command(subcommand)]
        command: MeshCommand,
    },
    /// Images on a node
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Logins at registries of images
    Registry {
        #[command(subcommand)]
        command: RegistryCommand,
    },
    /// Values that containers see as files in memory, encrypted at rest
    Secret {
        #[command(subcommand)]
        command: SecretCommand,
    },
    /// Data that outlives containers
    Volume {
        #[command(subcommand)]
        command: VolumeCommand,
    },
    /// Encrypted backups of this node
    Backup {
        #[command(subcommand)]
        command: BackupCommand,
    },
    /// Look whether this machine has what toft needs, and say for each failure what to do
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Replay a recorded workload through the scheduler
    #[command(after_help = SIM_HELP)]
    Sim(SimArgs),
    /// What the container runtime starts for containers with GPUs
    #[command(hide = true)]
    CdiHook {
        #[command(subcommand)]
        command: HookCommand,
    },
    /// Print the completion script for a shell
    Completion {
        /// Shell
        shell: clap_complete::Shell,
    },
}

const RUN_HELP: &str = "Examples:
  toft run -n web -p 18080:8080 toft/demo     keep the demo running, reachable on port 18080
  toft run --rm busybox echo hello            run a command, show its output, pass on its exit code
  toft run -it --rm busybox sh                a shell in a container that goes when it ends
  toft run -d -it -n shell busybox sh         the same in the background; `toft attach shell` goes to it

With --rm, -i or -t, unless -d is there, the command stays in the foreground and exits as Docker does: 125 when toft failed, 126 or 127 when the
command could not be executed, else the command's own code.";

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Show the members: who leads, who votes, who answers
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what the cluster says about where work goes
    Get {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say where work goes: the policy, its weights, how far nodes are overbooked
    #[command(after_help = SET_HELP)]
    Set {
        /// KEY=VALUE sets, KEY- goes back to what is usual
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        changes: Vec<String>,
    },
    /// Go on alone with what this node has, when the majority of the members is gone for good
    Recover(RecoverArgs),
}

const DOCTOR_HELP: &str =
    "It works with and without a running daemon and changes nothing; `toft doctor gpu` removes its container. As root it sees more. The exit code is 1 when
something will not work.";

/// What can be looked at closer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum DoctorArea {
    /// Drivers, libraries, device nodes, and what containers are given
    Gpu,
}

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Look at this alone, and closer: `gpu` runs a container with a GPU too, where toft runs and one is free
    #[arg(value_enum)]
    pub(super) area: Option<DoctorArea>,
    #[command(flatten)]
    pub(super) appliance: ApplianceArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Which appliance of this machine.
#[derive(Debug, Args)]
pub(super) struct ApplianceArgs {
    /// Data directory of the appliance
    #[arg(long, env = "TOFT_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Configuration file it is started with
    #[arg(long, env = "TOFT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ApplianceArgs {
    pub(super) fn flags(self) -> Flags {
        Flags { data_dir: self.data_dir, config: self.config, ..Flags::default() }
    }
}

#[derive(Debug, Args)]
pub(super) struct RecoverArgs {
    #[command(flatten)]
    pub(super) appliance: ApplianceArgs,
    /// Do not ask
    #[arg(short, long)]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct UpArgs {
    /// Keep everything under this directory, beside the machine's own appliance
    #[arg(long, env = "TOFT_DATA_DIR", value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Address of the one TCP port [default: 127.0.0.1:7443]
    #[arg(long, env = "TOFT_BIND", value_name = "ADDR:PORT")]
    pub(super) bind: Option<String>,
    /// Answer there without TLS, on loopback only
    #[arg(long, env = "TOFT_PLAIN_HTTP")]
    pub(super) plain_http: bool,
    /// Name of this node [default: the host's]
    #[arg(long, env = "TOFT_NAME", value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Configuration file [default: /etc/toft/toft.toml, or toft.toml in the data directory]
    #[arg(long, env = "TOFT_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Address where the other members of the cluster reach this node
    #[arg(long, env = "TOFT_CLUSTER_BIND", value_name = "ADDR:PORT")]
    pub(super) cluster_bind: Option<String>,
    /// What this node does: server, or witness, which runs nothing but votes
    #[arg(long, env = "TOFT_ROLE", value_name = "ROLE")]
    pub(super) role: Option<String>,
    /// Join the cluster of the member at this address first; `toft join` does the same and needs no restart
    #[arg(long, value_name = "HOST:PORT", requires = "token_file")]
    pub(super) join: Option<String>,
    /// File with the token that `toft token create` prints on a member
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=250))]
    pub(super) nodes: u16,
    /// Address of the dashboard
    #[arg(long, default_value = "127.0.0.1:7443", value_name = "ADDR:PORT")]
    pub(super) bind: String,
    /// Keep everything under this directory while it runs [default: a new one among temporary files]
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Beginning of the nodes' names
    #[arg(long, default_value = "node-", value_name = "TEXT")]
    pub(super) prefix: String,
    /// Join the cluster of the member at this address instead of founding one
    #[arg(long, value_name = "HOST:PORT", requires = "token_file")]
    pub(super) join: Option<String>,
    /// File with the token that `toft token create` prints on a member
    #[arg(long, value_name = "FILE", requires = "join")]
    pub(super) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct DownArgs {
    #[command(flatten)]
    pub(super) appliance: ApplianceArgs,
    /// For the unit: do nothing unless the machine shuts down; then stop the containers and keep their files
    #[arg(long, hide = true)]
    pub(super) at_shutdown: bool,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Name of the workload [default: made from the image's]
    #[arg(short, long, value_parser = parsed::<Name>)]
    pub(super) name: Option<Name>,
    /// Publish a port: [host:]container[/tcp|udp]; without a host port a free one is taken
    #[arg(short, long = "publish", value_name = "PORT", value_parser = parsed::<PortSpec>)]
    pub(super) ports: Vec<PortSpec>,
    /// Set an environment variable; without a value, the one of this shell
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    pub(super) env: Vec<String>,
    /// Give the containers a secret as /run/secrets/NAME: NAME[,target=FILE,mode=0400,uid=N,gid=N]
    #[arg(long = "secret", value_name = "SECRET", value_parser = parsed::<SecretMount>)]
    pub(super) secrets: Vec<SecretMount>,
    #[command(flatten)]
    pub(super) mounts: MountArgs,
    #[command(flatten)]
    pub(super) resources: ResourceArgs,
    /// Copies to run
    #[arg(long, default_value_t = 1)]
    pub(super) replicas: u32,
    /// What happens when the process ends: always, on-failure[:N], no [default: always; with --rm no]
    #[arg(long, value_name = "POLICY", value_parser = parsed::<RestartPolicy>)]
    pub(super) restart: Option<RestartPolicy>,
    /// GPUs of each instance: `1`, `nvidia:1`, `rtx4090:2`, `24GB..:1`, `vram=8GiB` (a share of one card) or `all`
    #[arg(long, value_name = "SPEC", value_parser = parsed::<GpuRequest>)]
    pub(super) gpus: Option<GpuRequest>,
    /// Run on this node only
    #[arg(long, value_parser = parsed::<Name>)]
    pub(super) node: Option<Name>,
    #[command(flatten)]
    pub(super) update: UpdateFlags,
    #[command(flatten)]
    pub(super) placement: PlacementArgs,
    #[command(flatten)]
    pub(super) network: NetworkArgs,
    /// Label the workload
    #[arg(short, long = "label", value_name = "KEY=VALUE")]
    pub(super) labels: Vec<String>,
    /// Replace the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<String>,
    /// Seconds between the stop signal and the kill
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(super) stop_timeout: u32,
    /// Run once in the foreground, pass on the exit code, remove it afterwards
    #[arg(long)]
    pub(super) rm: bool,
    /// Do not wait until it runs
    #[arg(long, conflicts_with = "rm")]
    pub(super) no_wait: bool,
    /// Print the workload as JSON
    #[arg(long, conflicts_with = "rm")]
    pub(super) json: bool,
    /// When the image is asked of its registry: always, missing (when it is not here) or never
    #[arg(long, value_name = "WHEN", default_value = "missing", value_parser = parsed::<PullPolicy>)]
    pub(super) pull: PullPolicy,
    #[command(flatten)]
    pub(super) health: HealthArgs,
    #[command(flatten)]
    pub(super) process: ProcessArgs,
    #[command(flatten)]
    pub(super) front: RunFrontArgs,
    /// Image to run
    #[arg(value_parser = parsed::<ImageRef>)]
    pub(super) image: ImageRef,
    /// Command instead of the image's; flags after the image are the command's
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print names only
    #[arg(short, long, conflicts_with = "json")]
    pub(super) quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct NamesArgs {
    /// Workloads
    #[arg(required = true, value_name = "NAME", value_parser = parsed::<Name>)]
    pub(super) names: Vec<Name>,
    /// Do not wait until it is done
    #[arg(long)]
    pub(super) no_wait: bool,
}

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// Workloads, or instances such as `web-0`
    #[arg(required = true, value_name = "NAME", value_parser = parsed::<Name>)]
    pub(super) names: Vec<Name>,
    /// Go on as lines come
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Only the last so many lines of each instance
    #[arg(short = 'n', long, value_name = "LINES")]
    pub(super) tail: Option<usize>,
    /// Only lines since a span (10m, 3h, 2d) or a time
    #[arg(long, value_name = "SPAN|TIME")]
    pub(super) since: Option<String>,
    /// Only lines before a span (10m, 3h, 2d) or a time
    #[arg(long, value_name = "SPAN|TIME", conflicts_with = "follow")]
    pub(super) until: Option<String>,
    /// Only lines in which this regular expression finds something
    #[arg(long, value_name = "REGEX")]
    pub(super) grep: Option<String>,
    /// Lines of instances that are gone, too; of workloads that are gone they are always shown
    #[arg(long)]
    pub(super) gone: bool,
    /// Show when each line was written
    #[arg(short, long)]
    pub(super) timestamps: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Only of this workload
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Option<Name>,
    /// How many
    #[arg(short = 'n', long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) limit: u32,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Parses a value of the model; a refusal tells its remedy too.
pub(super) fn parsed<T: std::str::FromStr<Err = Invalid>>(text: &str) -> Result<T, String> {
    text.parse().map_err(told)
}

pub(super) fn told(invalid: Invalid) -> String {
    format!("{invalid}; {}", invalid.hint)
}

pub(super) fn cpu(text: &str) -> Result<u32, String> {
    parse_cpu_millis(text).map_err(told)
}

pub(super) fn memory(text: &str) -> Result<u64, String> {
    parse_bytes(text).map_err(told)
}

pub(super) fn parse_label(text: &str) -> Result<(String, Option<String>), String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) => Ok((key.to_owned(), None)),
        (None, None) => Err("write it like `team=kitchen`, or `team-` to remove it".into()),
    }
}

fn parse_scale(text: &str) -> Result<(Name, u32), String> {
    let (name, count) = text.split_once('=').ok_or("write it like `web=3`")?;
    let count = count.parse().map_err(|_| format!("`{count}` is no number of instances"))?;
    Ok((parsed(name)?, count))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn labels_are_set_and_removed() {
        assert_eq!(parse_label("a=b=c-").unwrap(), ("a".into(), Some("b=c-".into())));
        assert_eq!(parse_label("a=").unwrap(), ("a".into(), Some(String::new())));
        assert_eq!(parse_label("a-b-").unwrap(), ("a-b".into(), None));
        assert!(parse_label("a").is_err());
    }

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
