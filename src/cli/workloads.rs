//! `ls`, `ps`, `start`, `stop`, `restart`, `scale`, `rm`.

use std::collections::BTreeMap;

use toft_model::{name::Name, workload::Health};

use super::{
    Failure,
    args::{ListArgs, NamesArgs},
    client::{Client, query_value},
    output,
};
use crate::api::types::{Instance, Page, Waited, Workload};

/// Reads a list to its end.
pub(super) async fn all<T: serde::de::DeserializeOwned>(client: &Client, path: &str) -> Result<Vec<T>, Failure> {
    all_of(client, path, "").await
}

/// The same with a question: parts of an address, each with `&` before it.
pub(super) async fn all_of<T: serde::de::DeserializeOwned>(
    client: &Client,
    path: &str,
    asked: &str,
) -> Result<Vec<T>, Failure> {
    let mut items = Vec::new();
    let mut after = String::new();
    loop {
        let question = format!("{asked}{after}").replacen('&', "?", 1);
        let page: Page<T> = client.get(&format!("{path}{question}")).await?;
        items.extend(page.items);
        let Some(next) = page.next else { return Ok(items) };
        after = format!("&after={}", query_value(&next));
    }
}

pub(super) async fn ls(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let workloads: Vec<Workload> = all(client, "/api/v1/workloads").await?;
    if args.json {
        output::json(&workloads)?;
    } else if args.quiet {
        workloads.iter().for_each(|workload| println!("{}", workload.name));
    } else {
        let rows = workloads.iter().map(|workload| {
            let status = match &workload.pending {
                Some(why) => format!("pending ({why})"),
                None => match workload.instances.iter().filter(|one| one.health == Some(Health::Unhealthy)).count() {
                    0 => workload.status.clone(),
                    unhealthy => format!("{} ({unhealthy} unhealthy)", workload.status),
                },
            };
            vec![
                workload.name.clone(),
                status,
                format!("{}/{}", workload.running, workload.spec.replicas),
                workload.spec.image.to_string(),
                workload.instances.first().map(|first| output::ports(&first.ports)).unwrap_or_default(),
                output::age(&workload.created_at),
            ]
        });
        output::table(&["NAME", "STATUS", "RUNNING", "IMAGE", "PORTS", "AGE"], rows);
    }
    Ok(0)
}

pub(super) async fn ps(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let instances: Vec<Instance> = all(client, "/api/v1/instances").await?;
    if args.json {
        output::json(&instances)?;
    } else if args.quiet {
        instances.iter().for_each(|instance| println!("{}", instance.name));
    } else {
        let rows = instances.iter().map(|instance| {
            vec![
                instance.name.clone(),
                output::state(instance),
                instance.image.clone(),
                instance.node.clone(),
                output::ports(&instance.ports),
                instance.restarts.to_string(),
                output::age(&instance.created_at),
            ]
        });
        output::table(&["INSTANCE", "STATE", "IMAGE", "NODE", "PORTS", "RESTARTS", "AGE"], rows);
    }
    Ok(0)
}

/// Waits for a milestone of a workload, however long it takes.
pub(super) async fn wait(client: &Client, name: &str, milestone: &str) -> Result<Option<Workload>, Failure> {
    loop {
        let waited: Waited = client.get(&format!("/api/v1/workloads/{name}/wait?for={milestone}")).await?;
        if waited.reached {
            return Ok(waited.workload);
        }
    }
}

pub(super) async fn power(client: &Client, args: NamesArgs, action: &str) -> Result<i32, Failure> {
    let mut code = 0;
    for name in &args.names {
        let done = async {
            let _: Workload = client.post(&format!("/api/v1/workloads/{name}/{action}"), &()).await?;
            if !args.no_wait {
                let milestone = if action == "stop" { "stopped" } else { "settled" };
                if let Some(workload) = wait(client, name.as_str(), milestone).await? {
                    trouble(&workload).map_or(Ok(()), Err)?;
                }
            }
            println!("{name}");
            Ok(())
        };
        code = told(done.await, code);
    }
    Ok(code)
}

/// Says a failure of one of several names, and goes on.
fn told(result: Result<(), Failure>, code: i32) -> i32 {
    match result {
        Ok(()) => code,
        Err(failure) => {
            failure.print();
            failure.exit_code
        }
    }
}

/// Why a workload that should run does not, when that is clear.
pub(super) fn trouble(workload: &Workload) -> Option<Failure> {
    let name = &workload.name;
    if let Some(why) = &workload.pending {
        return Some(
            Failure::of(1, format!("workload `{name}` waits for a place: {why}"))
                .hint(format!("it starts as soon as there is one; `toft rm {name}` gives up")),
        );
    }
    let stuck = workload.instances.iter().find(|instance| instance.state == "back_off")?;
    let why = stuck.reason.clone().unwrap_or_default();
    let hint = if why.starts_with("image `") && why.contains("is not on this node") {
        format!("import it with `toft image import FILE`, then it starts by itself; `toft rm {name}` gives up")
    } else if why.contains("could not be pulled") {
        format!("toft goes on trying; `toft image import FILE` brings it without a registry; `toft rm {name}` gives up")
    } else {
        format!("toft goes on trying; `toft logs {name}` shows its output, `toft rm {name}` gives up")
    };
    Some(Failure::of(1, format!("instance `{}` does not run: {why}", stuck.name)).hint(hint))
}

pub(super) async fn scale(client: &Client, changes: Vec<(Name, u32)>, no_wait: bool) -> Result<i32, Failure> {
    let mut code = 0;
    for (name, count) in &changes {
        let done = async {
            let path = format!("/api/v1/workloads/{name}");
            loop {
                let mut workload: Workload = client.get(&path).await?;
                workload.spec.replicas = *count;
                match client.put::<Workload>(&path, workload.generation, &workload.spec).await {
                    Ok(_) => break,
                    // Somebody else has changed it meanwhile; that stays.
                    Err(failure) if failure.is("stale") => {}
                    Err(failure) => return Err(failure),
                }
            }
            if !no_wait && let Some(workload) = wait(client, name.as_str(), "settled").await? {
                trouble(&workload).map_or(Ok(()), Err)?;
            }
            println!("{name}");
            Ok(())
        };
        code = told(done.await, code);
    }
    Ok(code)
}

pub(super) async fn label(
    client: &Client,
    name: &Name,
    changes: Vec<(String, Option<String>)>,
) -> Result<i32, Failure> {
    let labels: BTreeMap<String, Option<String>> = changes.into_iter().collect();
    client.patch(&format!("/api/v1/workloads/{name}/labels"), &labels).await?;
    println!("{name}");
    Ok(0)
}

pub(super) async fn rm(client: &Client, args: NamesArgs) -> Result<i32, Failure> {
    let mut code = 0;
    for name in &args.names {
        let done = async {
            client.delete(&format!("/api/v1/workloads/{name}")).await?;
            if !args.no_wait {
                wait(client, name.as_str(), "gone").await?;
            }
            println!("{name}");
            Ok(())
        };
        code = told(done.await, code);
    }
    Ok(code)
}
