//! `update`, `rollback`, `history`.

use toft_model::workload::{Rollout, VersionCause};

use super::{
    Failure,
    client::Client,
    output,
    update_args::{HistoryArgs, RollbackArgs, UpdateArgs},
    workloads::{trouble, wait},
};
use crate::api::types::{RollbackRequest, Version, Workload};

pub(super) async fn update(client: &Client, args: UpdateArgs) -> Result<i32, Failure> {
    let path = format!("/api/v1/workloads/{}", args.name);
    let mut workload: Workload = client.get(&path).await?;
    let before = workload.generation;
    let spec = &mut workload.spec;
    if let Some(image) = args.image {
        spec.image = image;
    }
    for (key, value) in args.env {
        match value {
            Some(value) => drop(spec.env.insert(key, value)),
            None => drop(spec.env.remove(&key)),
        }
    }
    if let Some(gpus) = args.gpus {
        spec.gpus = gpus.0;
    }
    spec.update = args.update.over(spec.update);
    let workload: Workload = client.put(&path, before, &workload.spec).await?;
    follow(client, workload, args.no_wait, args.json).await
}

pub(super) async fn roll_back(client: &Client, args: RollbackArgs) -> Result<i32, Failure> {
    let path = format!("/api/v1/workloads/{}/rollback", args.name);
    let workload: Workload = client.post(&path, &RollbackRequest { to: args.to }).await?;
    follow(client, workload, args.no_wait, args.json).await
}

/// Waits until the rollout has ended, and says how.
async fn follow(client: &Client, workload: Workload, no_wait: bool, json: bool) -> Result<i32, Failure> {
    let wanted = workload.generation;
    let ended = match no_wait {
        true => workload,
        false => {
            let name = workload.name.clone();
            wait(client, &name, "updated").await?.ok_or_else(|| Failure::of(1, format!("workload `{name}` is gone")))?
        }
    };
    if json {
        output::json(&ended)?;
    } else {
        println!("{}", ended.name);
    }
    match no_wait {
        true => Ok(0),
        false => outcome(client, &ended, wanted).await.map_or(Ok(0), Err),
    }
}

/// Why generation `wanted` is not what runs, when it is not.
async fn outcome(client: &Client, workload: &Workload, wanted: u64) -> Option<Failure> {
    let name = &workload.name;
    if let Rollout::Failed { reason } = &workload.rollout {
        return Some(
            Failure::of(1, format!("generation {} of `{name}` failed: {reason}", workload.generation))
                .hint(format!("`toft logs {name}` shows its output; `toft rollback {name}` goes back")),
        );
    }
    if workload.generation != wanted {
        let versions: Vec<Version> = client.get(&format!("/api/v1/workloads/{name}/versions")).await.ok()?;
        let failed = versions.iter().find(|version| version.generation == wanted)?;
        if let Rollout::Failed { reason } = &failed.rollout {
            return Some(
                Failure::of(1, format!("generation {wanted} of `{name}` failed and was taken back: {reason}"))
                    .hint(format!("`toft history {name}` shows its versions")),
            );
        }
    }
    trouble(workload)
}

pub(super) async fn history(client: &Client, args: HistoryArgs) -> Result<i32, Failure> {
    let versions: Vec<Version> = client.get(&format!("/api/v1/workloads/{}/versions", args.name)).await?;
    if args.json {
        output::json(&versions)?;
        return Ok(0);
    }
    let rows = versions.iter().map(|version| {
        vec![
            version.generation.to_string(),
            match &version.rollout {
                Rollout::Failed { reason } => format!("failed ({reason})"),
                rollout => rollout.as_str().to_owned(),
            },
            version.spec.image.to_string(),
            version.changed.as_ref().map_or_else(|| "-".to_owned(), |changed| changed.join(", ")),
            match &version.cause {
                VersionCause::User => "by a user".to_owned(),
                VersionCause::Rollback { to, reason: None } => format!("back to {to}"),
                VersionCause::Rollback { to, reason: Some(_) } => format!("back to {to} by itself"),
            },
            output::age(&version.written_at),
        ]
    });
    output::table(&["GENERATION", "ROLLOUT", "IMAGE", "CHANGED", "WRITTEN", "AGE"], rows);
    Ok(0)
}
