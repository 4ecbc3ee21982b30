//! `run`: a workload from an image, in the background or once in the foreground.

use std::collections::BTreeMap;

use toft_model::{
    name::Name,
    workload::{RestartPolicy, WorkloadKind, WorkloadSpec},
};
use uuid::Uuid;

use super::{
    Failure,
    args::RunArgs,
    client::Client,
    logs::{self, Shown},
    output,
    workloads::{trouble, wait},
};
use crate::api::types::Workload;

/// Exit code when toft itself failed, as Docker's.
pub(super) const TOFT_FAILED: i32 = 125;

pub(super) async fn run(client: &Client, args: RunArgs) -> Result<i32, Failure> {
    let (foreground, no_wait, json) = (args.rm, args.no_wait, args.json);
    let spec = spec(args)?;
    let failed = |failure: Failure| failure.with_code(TOFT_FAILED);
    let workload: Workload = client.post("/api/v1/workloads", &spec).await.map_err(failed)?;
    if foreground {
        return run_once(client, &workload.name).await;
    }
    let workload = if no_wait {
        Some(workload)
    } else {
        let settled = wait(client, &workload.name, "settled").await.map_err(failed)?;
        if let Some(trouble) = settled.as_ref().and_then(trouble) {
            return Err(trouble.with_code(TOFT_FAILED));
        }
        settled
    };
    let Some(workload) = workload else {
        return Err(Failure::of(TOFT_FAILED, "the workload was removed while it was starting"));
    };
    if json {
        output::json(&workload)?;
    } else {
        println!("{}", workload.name);
    }
    Ok(0)
}

fn spec(args: RunArgs) -> Result<WorkloadSpec, Failure> {
    let name = match args.name {
        Some(name) => name,
        // A suffix keeps a second run of the same image from clashing with the first.
        None => {
            let suffix = &Uuid::new_v4().simple().to_string()[..5];
            let base = Name::nearest(args.image.base_name(), "run");
            let short: String = base.as_str().chars().take(Name::MAX_BYTES - 6).collect();
            Name::nearest(&format!("{short}-{suffix}"), "run")
        }
    };
    let mut spec = WorkloadSpec::new(name, args.image);
    if args.rm {
        spec.kind = WorkloadKind::Job;
    }
    spec.pull_policy = args.pull;
    spec.restart = args.restart.or(args.rm.then_some(RestartPolicy::No));
    spec.entrypoint = args.entrypoint.map(|program| vec![program]);
    spec.command = args.command;
    spec.env = pairs(args.env, true)?;
    spec.labels = pairs(args.labels, false)?;
    spec.ports = args.ports;
    spec.secrets = args.secrets;
    spec.replicas = args.replicas;
    spec.resources = args.resources.spec();
    spec.health = args.health.spec();
    spec.process = args.process.spec()?;
    let (mounts, tmpfs) = args.mounts.spec();
    spec.mounts = mounts;
    spec.process.tmpfs.extend(tmpfs);
    spec.node = args.node;
    spec.stop_grace_ms = args.stop_timeout.saturating_mul(1_000);
    args.network.write_to(&mut spec)?;
    Ok(spec)
}

/// `KEY=VALUE` each; with `from_shell` a bare `KEY` takes the value of this shell's variable, if it is set.
pub(super) fn pairs(texts: Vec<String>, from_shell: bool) -> Result<BTreeMap<String, String>, Failure> {
    let mut pairs = BTreeMap::new();
    for text in texts {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => drop(pairs.insert(key.to_owned(), value.to_owned())),
            None if from_shell => {
                if let Ok(value) = std::env::var(&text) {
                    pairs.insert(text, value);
                }
            }
            _ => return Err(Failure::of(2, format!("`{text}` is no KEY=VALUE")).hint("write it like `MODE=fast`")),
        }
    }
    Ok(pairs)
}

/// Shows the output until the end, removes the workload and gives its exit code.
async fn run_once(client: &Client, name: &str) -> Result<i32, Failure> {
    let followed = async {
        let shown = Shown { timestamps: false, json: false, instance_names: false };
        let shows = logs::follow(client, name, shown);
        tokio::pin!(shows);
        tokio::select! {
            shown = &mut shows => {
                shown?;
                wait(client, name, "ended").await
            }
            ended = wait(client, name, "ended") => {
                let ended = ended?;
                // What cannot start has nothing to show, and its logs would be followed until it can.
                if ended.as_ref().is_none_or(|workload| workload.status == "finished") {
                    shows.await?;
                }
                Ok(ended)
            }
        }
    };
    let ended = tokio::select! {
        ended = followed => ended,
        signal = interrupted() => {
            remove(client, name).await?;
            return Ok(128 + signal);
        }
    };
    remove(client, name).await.map_err(|failure| failure.with_code(TOFT_FAILED))?;
    let workload = ended.map_err(|failure| failure.with_code(TOFT_FAILED))?;
    let Some(workload) = workload else {
        return Err(Failure::of(TOFT_FAILED, "the workload was removed while it ran"));
    };
    let exits = workload.instances.iter().filter_map(|instance| instance.last_exit.as_ref());
    match exits.map(|exit| exit.code.unwrap_or(TOFT_FAILED)).max_by_key(|code| (*code != 0, *code)) {
        Some(code) => {
            if let Some(why) = workload.instances.iter().find_map(|instance| instance.reason.clone()) {
                Failure::of(code, why).print();
            }
            Ok(code)
        }
        None => Err(trouble(&workload)
            .unwrap_or_else(|| Failure::of(TOFT_FAILED, "the workload did not run"))
            .with_code(TOFT_FAILED)),
    }
}

async fn remove(client: &Client, name: &str) -> Result<(), Failure> {
    client.delete(&format!("/api/v1/workloads/{name}")).await?;
    wait(client, name, "gone").await.map(drop)
}

/// The number of the signal that asks this command to end.
async fn interrupted() -> i32 {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
    }
}
