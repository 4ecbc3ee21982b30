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
    attach::Front,
    attach_args::RunFrontArgs,
    client::Client,
    logs::{self, Shown},
    output,
    session::{BROKEN, Ended},
    terminal,
    workloads::{trouble, wait},
};
use crate::api::types::Workload;

/// Exit code when toft itself failed, as Docker's.
pub(super) const TOFT_FAILED: i32 = 125;

pub(super) async fn run(client: &Client, args: RunArgs) -> Result<i32, Failure> {
    let (foreground, no_wait, json) = (args.rm, args.no_wait, args.json);
    let front = front(&args)?;
    let spec = spec(args)?;
    let failed = |failure: Failure| failure.with_code(TOFT_FAILED);
    let workload: Workload = client.post("/api/v1/workloads", &spec).await.map_err(failed)?;
    if let Some(front) = front {
        return run_in_front(client, &spec.name, front, foreground).await;
    }
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

/// How this command stands in front of the process, if it does.
fn front(args: &RunArgs) -> Result<Option<Front>, Failure> {
    if !args.front.in_front() {
        return Ok(None);
    }
    let RunFrontArgs { interactive, tty, .. } = args.front;
    if interactive && tty && !terminal::has_keys() {
        return Err(Failure::of(2, "the input is no terminal").hint("leave out -t to pass it on as it is"));
    }
    let refuse =
        |what: &str, hint: &str| Err(Failure::of(2, format!("{what} and -i or -t do not go together")).hint(hint));
    if args.replicas != 1 {
        return refuse("--replicas", "use -d to have them in the background, and `toft attach --index`");
    }
    if args.no_wait || args.json {
        return refuse("--no-wait, --json", "use -d to have it in the background");
    }
    // What is piped on shall miss nothing.
    let args = args.front.front.clone();
    Ok(Some(Front { tty, stdin: interactive, lossless: true, args }))
}

/// Runs it with this command's terminal or streams and gives its exit code; then removes it, if that was asked for.
async fn run_in_front(client: &Client, name: &Name, front: Front, remove_it: bool) -> Result<i32, Failure> {
    let failed = |failure: Failure| failure.with_code(TOFT_FAILED);
    let attached = async {
        let placed = tokio::select! {
            placed = wait(client, name.as_str(), "placed") => placed.map_err(failed)?,
            number = interrupted() => return Ok(Ended::Signalled(number)),
        };
        if let Some(trouble) = placed.filter(|workload| workload.pending.is_some()).as_ref().and_then(trouble) {
            return Err(failed(trouble));
        }
        match front.attach(client, name, &format!("{name}-0")).await {
            // It may have begun and ended all the same, and then it is known how.
            Err(failure) if failure.is("conflict") => {
                match client.get::<Workload>(&format!("/api/v1/workloads/{name}")).await {
                    Ok(workload) if ["finished", "back_off"].contains(&workload.status.as_str()) => {
                        verdict(&workload).map(Ended::Exited)
                    }
                    _ => Err(failed(failure)),
                }
            }
            other => other.map_err(failed),
        }
    };
    let ended = attached.await;
    // It goes on, and somebody may want to go back to it.
    let left = match &ended {
        Ok(ended) => *ended == Ended::Detached,
        Err(failure) => failure.is(BROKEN) || failure.is("unavailable"),
    };
    if left {
        eprintln!("`toft attach {name}` goes back to it, `toft rm {name}` removes it");
        return ended.map(Ended::code);
    }
    if remove_it {
        remove(client, name.as_str()).await.map_err(failed)?;
    }
    ended.map(Ended::code)
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
    let once = args.rm || args.front.in_front();
    if once {
        spec.kind = WorkloadKind::Job;
    }
    spec.pull_policy = args.pull;
    spec.restart = args.restart.or(once.then_some(RestartPolicy::No));
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
    spec.process.stdin = args.front.interactive;
    spec.process.tty = args.front.tty;
    spec.process.foreground = args.front.in_front();
    let (mounts, tmpfs) = args.mounts.spec();
    spec.mounts = mounts;
    spec.process.tmpfs.extend(tmpfs);
    spec.gpus = args.gpus;
    spec.update = args.update.over(spec.update);
    spec.node = args.node;
    args.placement.write(&mut spec);
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
    verdict(&workload)
}

/// The exit code of a workload that has ended; says why when there is more to say.
fn verdict(workload: &Workload) -> Result<i32, Failure> {
    let exits = workload.instances.iter().filter_map(|instance| instance.last_exit.as_ref());
    match exits.map(|exit| exit.code.unwrap_or(TOFT_FAILED)).max_by_key(|code| (*code != 0, *code)) {
        Some(code) => {
            if let Some(why) = workload.instances.iter().find_map(|instance| instance.reason.clone()) {
                Failure::of(code, why).print();
            }
            Ok(code)
        }
        None => Err(trouble(workload)
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
