//! `up` and `down`: the commands of the daemon itself.

use std::os::unix::process::CommandExt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{
    Failure,
    args::{DevArgs, DownArgs, UpArgs},
    memory,
};
use crate::{
    agent::host::host_name,
    config::{Config, ConfigError, Flags, ProxyVariables},
    daemon, observe,
};

/// Lets the daemon open as many files as it may: every connection is one, and what a shell allows is soon used up.
fn open_many_files() {
    if let Ok((now, most)) = getrlimit(Resource::RLIMIT_NOFILE)
        && now < most
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, most, most)
    {
        tracing::warn!(%error, "no more than {now} files can be open");
    }
}

pub(super) fn up(args: UpArgs) -> Result<i32, Failure> {
    let flags = Flags {
        data_dir: args.data_dir,
        config: args.config,
        bind: args.bind,
        plain_http: args.plain_http.then_some(true),
        name: args.name,
        cluster_bind: args.cluster_bind,
        role: args.role,
        join: args.join,
        token_file: args.token_file,
        proxies: ProxyVariables::of_this_process(),
    };
    let config = Config::resolve(flags, &host_name()).map_err(misconfigured)?;
    root_only()?;
    observe::init_logging("info,openraft=off", config.api.json_logs);
    open_many_files();
    memory::share_arenas();
    let runtime = runtime()?;
    let ended = runtime.block_on(daemon::run(config));
    // A blocking call that hangs must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match ended? {
        daemon::Ending::Stopped => Ok(0),
        daemon::Ending::Again => Err(begin_again()),
    }
}

/// Becomes the same program with the same arguments, as the same process: who watches over it sees no end.
fn begin_again() -> Failure {
    let failed = std::process::Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).exec();
    Failure::of(1, format!("toft could not start again: {failed}")).hint("start it by hand")
}

pub(super) fn down(args: DownArgs) -> Result<i32, Failure> {
    let config = Config::resolve(args.appliance.flags(), &host_name()).map_err(misconfigured)?;
    root_only()?;
    observe::init_logging("warn", false);
    if args.at_shutdown {
        runtime()?.block_on(daemon::end_for_shutdown(config))?;
        return Ok(0);
    }
    let ended = runtime()?.block_on(daemon::down(config))?;
    println!("toft is down; {ended} container(s) were ended. What should run starts again with the next `toft up`.");
    Ok(0)
}

pub(super) fn dev(args: DevArgs) -> Result<i32, Failure> {
    let scratch = || std::env::temp_dir().join(format!("toft-dev-{}", std::process::id()));
    let folder = args.data_dir.unwrap_or_else(scratch);
    let folder = std::path::absolute(&folder)
        .map_err(|error| Failure::of(2, format!("--data-dir: `{}`: {error}", folder.display())))?;
    let wish = daemon::DevWish {
        nodes: args.nodes,
        bind: args.bind,
        folder,
        prefix: args.prefix,
        join: args.join.zip(args.token_file),
    };
    observe::init_logging("warn,toft::daemon=info,openraft=off", false);
    open_many_files();
    // The threads of many nodes would wait for each other.
    if wish.nodes == 1 {
        memory::share_arenas();
    }
    let runtime = runtime()?;
    let ended = runtime.block_on(daemon::dev(wish));
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    ended?;
    Ok(0)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Half of the cores: consensus and the writer of the state have threads of their own, and workers that wake each
        // other in vain take time from them.
        .worker_threads((std::thread::available_parallelism().map_or(2, usize::from) / 2).clamp(1, 4))
        .enable_all()
        .build()
        .map_err(|e| Failure::of(1, format!("no runtime could be made: {e}")))?;
    runtime.spawn(memory::give_back());
    Ok(runtime)
}

pub(super) fn root_only() -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::of(1, "only root can run the appliance: it makes containers and networks").hint("try again with sudo"))
}

pub(super) fn misconfigured(error: ConfigError) -> Failure {
    Failure::of(2, format!("{error}:\n  {}", error.0.join("\n  ")))
}
