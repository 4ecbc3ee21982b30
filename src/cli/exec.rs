//! `exec`: a process in a container, with this command's terminal or streams.

use toft_model::{exec::ExecOrder, name::Name};

use super::{
    Failure,
    client::Client,
    exec_args::ExecArgs,
    run::{TOFT_FAILED, pairs},
    session::{BROKEN, Manner, Session},
    terminal::{self, Raw},
};
use crate::api::types::{ExecCommand, Workload};

pub(super) async fn exec(client: &Client, args: ExecArgs) -> Result<i32, Failure> {
    if args.tty && args.interactive && !terminal::has_keys() {
        return Err(Failure::of(2, "the input is no terminal").hint("leave out -t to pass it on as it is"));
    }
    let failed = |failure: Failure| failure.with_code(TOFT_FAILED);
    let instance = instance(client, &args.name, args.index).await.map_err(failed)?;
    let order = ExecOrder {
        command: args.command,
        env: pairs(args.env, true)?,
        user: args.user,
        dir: args.workdir,
        stdin: args.interactive,
        terminal: args.tty.then(terminal::size),
    };
    let socket = client.upgrade(&format!("/api/v1/instances/{instance}/exec")).await.map_err(failed)?;
    let (tty, stdin) = (order.terminal.is_some(), order.stdin);
    let ended = async {
        let mut session = Session::open(socket, &ExecCommand::Start { order }).await?;
        if let Some(number) = session.started().await? {
            return Ok(128 + number);
        }
        let raw = if tty && stdin { Some(Raw::begin()?) } else { None };
        let ended = session.converse(Manner { tty, stdin, detaching: None, proxies: true }).await;
        drop(raw);
        Ok(ended?.code())
    };
    ended.await.map_err(|failure: Failure| match failure.is(BROKEN) {
        true => failure.hint("the command in the container was ended, or will be when toft is back"),
        false => failure,
    })
}

/// The name of the instance that is meant: of a workload the one with that number, else the first that runs.
pub(super) async fn instance(client: &Client, name: &Name, index: Option<u32>) -> Result<String, Failure> {
    let workload: Workload = match client.get(&format!("/api/v1/workloads/{name}")).await {
        Ok(workload) => workload,
        // It may be an instance's; the node knows.
        Err(failure) if failure.is("not_found") && index.is_none() => return Ok(name.to_string()),
        Err(failure) => return Err(failure),
    };
    if let Some(index) = index {
        return Ok(format!("{name}-{index}"));
    }
    let running = workload.instances.iter().find(|instance| instance.state == "running");
    running.or(workload.instances.first()).map(|instance| instance.name.clone()).ok_or_else(|| {
        Failure::of(1, format!("the workload `{name}` has no instance")).hint("`toft inspect` shows why")
    })
}
