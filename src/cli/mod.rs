//! The command line: a client of the HTTP API, plus the commands of the daemon itself.

mod args;
mod attach;
mod attach_args;
mod audit;
mod backup_args;
mod backups;
mod cdi_hook;
mod client;
mod cluster;
mod context;
mod cp;
mod cp_args;
mod daemon;
mod detach_keys;
mod doctor;
mod doctor_cluster;
mod doctor_gpu;
mod exec;
mod exec_args;
mod explain;
mod failure;
mod gpu_args;
mod gpus;
mod health_args;
mod image_args;
mod images;
mod inspect;
mod join;
mod logs;
mod member_args;
mod memory;
mod mesh;
mod mesh_args;
mod network_args;
mod node_args;
mod nodes;
mod output;
mod passkeys;
mod placement;
mod placement_args;
mod process_args;
mod progress;
mod prompt;
mod pull;
mod rebalance;
mod rebalance_args;
mod registries;
mod registry_args;
mod restore;
mod run;
mod secret_args;
mod secrets;
mod session;
mod sim;
mod sim_args;
mod stats;
mod stats_args;
mod terminal;
mod tls;
mod tokens;
mod update_args;
mod user_args;
mod users;
mod versions;
mod volume_args;
mod volume_move;
mod volumes;
mod workloads;

use clap::{CommandFactory, Parser};
use toft_model::node::Availability;

use args::{Cli, ClusterCommand, Command};
use backup_args::BackupCommand;
use client::Client;
pub use failure::Failure;
use image_args::ImageCommand;
use node_args::NodeCommand;
use registry_args::RegistryCommand;
use secret_args::SecretCommand;
use user_args::CaCommand;
use volume_args::VolumeCommand;

/// Parses the arguments, does what they say, and gives the exit code.
pub fn main() -> i32 {
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Up(_) | Command::Dev(_)) {
        output::end_with_the_reader();
    }
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            failure.print();
            failure.exit_code
        }
    }
}

/// The command line, for completions and documentation.
pub fn command() -> clap::Command {
    Cli::command()
}

fn dispatch(cli: Cli) -> Result<i32, Failure> {
    match cli.command {
        Command::Up(flags) => daemon::up(flags),
        Command::Down(flags) => daemon::down(flags),
        Command::Dev(args) => daemon::dev(args),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Sim(args) => sim::sim(args),
        Command::CdiHook { command } => cdi_hook::cdi_hook(command),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "toft", &mut std::io::stdout());
            Ok(0)
        }
        Command::Cluster { command: ClusterCommand::Recover(args) } => cluster::recover(args),
        Command::Backup { command: BackupCommand::Keygen { output } } => backups::keygen(&output),
        Command::Backup { command: BackupCommand::Restore(args) } => restore::restore(args),
        other => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| Failure::of(1, format!("no runtime could be made: {e}")))?;
            let outcome = runtime.block_on(async {
                match other {
                    Command::Join(args) => join::join(&cli.global, *args).await,
                    Command::Leave(args) => join::leave(&cli.global, args).await,
                    other => ask(&Client::new(context::target(&cli.global)?), other).await,
                }
            });
            // What is still being written when a signal ends a command may never be read.
            runtime.shutdown_background();
            outcome
        }
    }
}

async fn ask(client: &Client, command: Command) -> Result<i32, Failure> {
    match command {
        Command::Up(_)
        | Command::Down(_)
        | Command::Dev(_)
        | Command::Doctor(_)
        | Command::Sim(_)
        | Command::CdiHook { .. }
        | Command::Join(_)
        | Command::Leave(_)
        | Command::Completion { .. } => Ok(0),
        Command::Run(args) => run::run(client, *args).await,
        Command::Ls(list) => workloads::ls(client, list).await,
        Command::Ps(list) => workloads::ps(client, list).await,
        Command::Inspect { name } => inspect::inspect(client, &name).await,
        Command::Exec(args) => exec::exec(client, args).await,
        Command::Cp(args) => cp::cp(client, args).await,
        Command::Attach(args) => attach::attach(client, args).await,
        Command::Logs(args) => logs::logs(client, args).await,
        Command::Stats(args) => stats::stats(client, args).await,
        Command::Top(args) => stats::top(client, args).await,
        Command::Start(names) => workloads::power(client, names, "start").await,
        Command::Stop(names) => workloads::power(client, names, "stop").await,
        Command::Restart(names) => workloads::power(client, names, "restart").await,
        Command::Update(args) => versions::update(client, *args).await,
        Command::Rollback(args) => versions::roll_back(client, args).await,
        Command::History(args) => versions::history(client, args).await,
        Command::Scale { changes, no_wait } => workloads::scale(client, changes, no_wait).await,
        Command::Label { name, changes } => workloads::label(client, &name, changes).await,
        Command::Rm(names) => workloads::rm(client, names).await,
        Command::Events(args) => inspect::events(client, args).await,
        Command::Explain { name, json } => explain::explain(client, &name, json).await,
        Command::Node { command } => match command {
            NodeCommand::Ls(list) => nodes::ls(client, list).await,
            NodeCommand::Inspect { name, json } => nodes::inspect(client, &name, json).await,
            NodeCommand::Label { name, changes } => nodes::label(client, &name, changes).await,
            NodeCommand::Taint { name, taints } => nodes::taint(client, &name, taints).await,
            NodeCommand::Set(args) => nodes::set(client, args).await,
            NodeCommand::Cordon { names } => nodes::make(client, names, Availability::Cordoned).await,
            NodeCommand::Uncordon { names } => nodes::make(client, names, Availability::Active).await,
            NodeCommand::Drain(args) => nodes::drain(client, args).await,
            NodeCommand::Rm { name, force, yes } => nodes::rm(client, &name, force, yes).await,
        },
        Command::User { command } => users::user(client, command).await,
        Command::Audit(args) => audit::audit(client, args).await,
        Command::Ca { command: CaCommand::Show { json } } => audit::authority(client, json).await,
        Command::Token { command } => tokens::token(client, command).await,
        Command::Rebalance(args) => rebalance::rebalance(client, args).await,
        Command::Gpu { command } => gpus::gpu(client, command).await,
        Command::Cluster { command } => match command {
            ClusterCommand::Status { json } => cluster::status(client, json).await,
            ClusterCommand::Get { json } => placement::get(client, json).await,
            ClusterCommand::Set { changes } => placement::set(client, changes).await,
            ClusterCommand::Recover(_) => Ok(0),
        },
        Command::Mesh { command } => mesh::mesh(client, command).await,
        Command::Image { command } => match command {
            ImageCommand::Ls(list) => images::ls(client, list).await,
            ImageCommand::Pull(args) => pull::pull(client, args).await,
            ImageCommand::Import(args) => images::import(client, args).await,
            ImageCommand::Prune(args) => images::prune(client, args).await,
            ImageCommand::Rm { names, on } => images::rm(client, names, on).await,
        },
        Command::Registry { command } => match command {
            RegistryCommand::Login(args) => registries::login(client, args).await,
            RegistryCommand::Logout { registries } => registries::logout(client, registries).await,
            RegistryCommand::Ls(list) => registries::ls(client, list).await,
            RegistryCommand::Import { file, json } => registries::import(client, file, json).await,
        },
        Command::Secret { command } => match command {
            SecretCommand::Create(args) => secrets::create(client, args).await,
            SecretCommand::Update(args) => secrets::update(client, args).await,
            SecretCommand::Ls(list) => secrets::ls(client, list).await,
            SecretCommand::Inspect { name } => secrets::inspect(client, &name).await,
            SecretCommand::Rm { names } => secrets::rm(client, names).await,
        },
        Command::Volume { command } => match command {
            VolumeCommand::Create(args) => volumes::create(client, args).await,
            VolumeCommand::Ls(list) => volumes::ls(client, list).await,
            VolumeCommand::Inspect { name } => volumes::inspect(client, &name).await,
            VolumeCommand::Rm { names } => volumes::rm(client, names).await,
            VolumeCommand::Prune(args) => volumes::prune(client, args).await,
            VolumeCommand::Move(args) => volume_move::run(client, args).await,
            VolumeCommand::Backup(args) => volumes::backup(client, args).await,
            VolumeCommand::Restore(args) => volumes::restore(client, args).await,
        },
        Command::Backup { command } => match command {
            BackupCommand::Create(args) => backups::create(client, args).await,
            BackupCommand::Ls(list) => backups::ls(client, list).await,
            BackupCommand::Verify(args) => backups::verify(client, args).await,
            BackupCommand::Keygen { .. } | BackupCommand::Restore(_) => Ok(0),
        },
    }
}
