//! `attach`: a workload's process with this command's terminal or streams; of one without input and terminal, its output as
//! it comes.

use std::{io::IsTerminal, time::Duration};

use toft_model::{exec::AttachOrder, name::Name};

use super::{
    Failure,
    attach_args::{AttachArgs, FrontArgs},
    client::Client,
    detach_keys::{DetachKeys, Detaching},
    exec::instance,
    logs::{self, Shown},
    progress,
    session::{BROKEN, Ended, Manner, Session, Signals, read_input},
    terminal::{self, Raw},
};
use crate::api::types::{ExecCommand, Workload};

/// How often it is asked how far the start is.
const PACE_MS: u32 = 500;

pub(super) async fn attach(client: &Client, args: AttachArgs) -> Result<i32, Failure> {
    let AttachArgs { no_stdin, front, index, name } = args;
    let workload: Workload = client.get(&format!("/api/v1/workloads/{name}")).await?;
    let process = &workload.spec.process;
    if !process.is_interactive() {
        return watch(client, &workload, front.detach_keys).await;
    }
    let front = Front { tty: process.tty, stdin: process.stdin && !no_stdin, lossless: false, args: front };
    if front.tty && front.stdin && !terminal::has_keys() {
        return Err(Failure::of(1, format!("`{name}` has a terminal, and the input here is none"))
            .hint("use --no-stdin to see its output"));
    }
    let instance = instance(client, &name, index).await?;
    Ok(front.attach(client, &name, &instance).await?.code())
}

/// How this command stands in front of a process.
pub(super) struct Front {
    pub(super) tty: bool,
    pub(super) stdin: bool,
    /// Whether the process waits while our output is held up.
    pub(super) lossless: bool,
    pub(super) args: FrontArgs,
}

impl Front {
    /// Attaches as soon as the process is there, until its end or ours.
    pub(super) async fn attach(self, client: &Client, name: &Name, instance: &str) -> Result<Ended, Failure> {
        let ended = self.converse(client, name, instance).await;
        ended.map_err(|failure| match failure.is(BROKEN) || failure.is("unavailable") {
            true => failure.hint(format!("`{name}` goes on; `toft attach {name}` goes back to it")),
            false => failure,
        })
    }

    async fn converse(self, client: &Client, name: &Name, instance: &str) -> Result<Ended, Failure> {
        let Self { tty, stdin, lossless, args } = self;
        let keys = terminal::has_keys();
        let socket = client.upgrade(&format!("/api/v1/instances/{instance}/attach")).await?;
        let shown = keys || std::io::stdout().is_terminal();
        let order = AttachOrder { stdin, lossless, terminal: (tty && shown).then(terminal::size) };
        let mut session = Session::open(socket, &ExecCommand::Attach { order }).await?;
        let started = tokio::select! {
            started = session.started() => started?,
            failure = show_progress(client, name) => return Err(failure),
        };
        if let Some(number) = started {
            return Ok(Ended::Signalled(number));
        }
        let raw = if tty && stdin && keys { Some(Raw::begin()?) } else { None };
        let detaching = raw.is_some().then(|| Detaching::new(args.detach_keys));
        // A terminal's keys are signals there; those that come here all the same are ours.
        let ended = session.converse(Manner { tty, stdin, detaching, proxies: args.sig_proxy && !tty }).await;
        drop(raw);
        if ended.as_ref().is_ok_and(|ended| *ended == Ended::Detached) {
            // What follows is none of the container's last line.
            eprintln!("\ndetached; `{name}` goes on");
        }
        ended
    }
}

/// Shows what a workload waits for while it starts, if somebody looks; ends only with a failure.
async fn show_progress(client: &Client, name: &Name) -> Failure {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let mut line = None;
    loop {
        tokio::time::sleep(Duration::from_millis(PACE_MS.into())).await;
        let workload: Workload = match client.get(&format!("/api/v1/workloads/{name}")).await {
            Ok(workload) => workload,
            Err(failure) => return failure,
        };
        match workload.instances.iter().find_map(|instance| instance.reason.clone()) {
            Some(reason) => line.get_or_insert_with(|| Cleared(progress::spinner(""))).0.set_message(reason),
            None => line = None,
        }
    }
}

/// A line that goes when it is no longer needed.
struct Cleared(indicatif::ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Shows what comes until the end or the keys.
async fn watch(client: &Client, workload: &Workload, keys: DetachKeys) -> Result<i32, Failure> {
    let name = &workload.name;
    let mut signals = Signals::listen().map_err(|error| Failure::of(1, format!("no signals are heard: {error}")))?;
    let kept = if std::io::stdin().is_terminal() { Some(Raw::keys()?) } else { None };
    if kept.is_some() && std::io::stderr().is_terminal() {
        eprintln!(
            "`{name}` takes no input: this is what it writes; the detach keys and control-C leave it, and it goes on"
        );
    }
    let shown = Shown { timestamps: false, json: false, instance_names: workload.instances.len() > 1 };
    let path = format!("/api/v1/workloads/{name}/logs?follow=true&tail=0");
    let shows = logs::show(client, &path, shown);
    let code = tokio::select! {
        ended = shows => ended.map(|_| None),
        () = detached(keys), if kept.is_some() => Ok(Some(0)),
        number = signals.ending() => Ok(Some(128 + number)),
    };
    drop(kept);
    match code? {
        Some(code) => Ok(code),
        None => last_code(client, name).await,
    }
}

/// The code the workload ended with: that of its one instance, else 0.
async fn last_code(client: &Client, name: &str) -> Result<i32, Failure> {
    match client.get::<Workload>(&format!("/api/v1/workloads/{name}")).await {
        Ok(workload) => match workload.instances.as_slice() {
            [instance] => Ok(instance.last_exit.as_ref().and_then(|exit| exit.code).unwrap_or(0)),
            _ => Ok(0),
        },
        // It was removed, which ended it.
        Err(failure) if failure.is("not_found") => Ok(0),
        Err(failure) => Err(failure),
    }
}

/// Returns when the keys were pressed. Other keys go nowhere.
async fn detached(keys: DetachKeys) {
    let mut input = read_input();
    let mut detaching = Detaching::new(keys);
    while let Some(part) = input.recv().await {
        if detaching.pass(&part).1 {
            return;
        }
    }
    std::future::pending().await
}
