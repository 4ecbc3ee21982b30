//! The last word on GPUs: a container with one, run by the appliance that is there.

use std::{path::Path, time::Duration};

use serde_json::json;
use tokio::time::Instant;

use super::{Failure, client::Client, context::Target, workloads::all};
use crate::{
    api::types::{NodeGpu, Workload},
    config::Config,
    doctor::{Check, Verdict},
};

/// What the container is called; nobody else's is touched.
const NAME: &str = "toft-doctor-gpu";
/// The image that the appliance brings along.
const IMAGE: &str = "toft/demo";
/// Longest wait for it to run.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

/// Runs a container with a GPU that nobody holds, and removes it.
pub(super) async fn try_out(config: &Config) -> Check {
    let socket = config.paths.run.join("toft.sock");
    let (verdict, message, fix) = match told(&socket).await {
        Ok(found) => found,
        Err(failure) => (Verdict::NotApplicable, format!("it could not be tried: {}", failure.message()), None),
    };
    Check { area: "gpu", name: "container", verdict, message, fix }
}

type Told = (Verdict, String, Option<String>);

async fn told(socket: &Path) -> Result<Told, Failure> {
    let skipped = |why: &str| Ok((Verdict::NotApplicable, why.to_owned(), None));
    if !socket.exists() {
        return skipped("toft does not run; `sudo systemctl start toft`, then ask again");
    }
    let client = Client::new(Target::Unix(socket.to_owned()));
    let gpus: Vec<NodeGpu> = all(&client, "/api/v1/gpus").await?;
    let free = |gpu: &&NodeGpu| {
        let parted = gpus.iter().any(|part| part.gpu.parent.as_ref() == Some(&gpu.gpu.id));
        gpu.facts.is_some() && gpu.gpu.sick.is_none() && !gpu.cordoned && gpu.holders.is_empty() && !parted
    };
    let Some(gpu) = gpus.iter().find(free) else {
        return match gpus.iter().find(|gpu| gpu.facts.is_some()) {
            None => Ok((
                Verdict::Failure,
                "toft sees no GPU on this node".to_owned(),
                Some("mend what stands above, then wait ten seconds; `sudo journalctl -u toft` has more".to_owned()),
            )),
            Some(_) => skipped("no GPU is free: each is held, cordoned or sick (`toft gpu ls`)"),
        };
    };
    let spec = json!({
        "name": NAME, "image": IMAGE, "network": "none", "node": gpu.node,
        "gpus": format!("device={}", gpu.gpu.id), "labels": { "toft.doctor": "gpu" },
    });
    let _: Workload = client.post("/api/v1/workloads", &spec).await?;
    let outcome = watch(&client, &format!("{}/{} ({})", gpu.node, gpu.place, gpu.gpu.model)).await;
    client.delete(&format!("/api/v1/workloads/{NAME}")).await?;
    outcome
}

async fn watch(client: &Client, gpu: &str) -> Result<Told, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let workload: Workload = client.get(&format!("/api/v1/workloads/{NAME}")).await?;
        let instance = workload.instances.first();
        let state = instance.map_or("pending", |instance| instance.state.as_str());
        let reason = instance.and_then(|instance| instance.reason.clone()).or(workload.pending);
        let failed = matches!(state, "back_off" | "finished");
        match reason {
            _ if state == "running" => return Ok((Verdict::Ok, format!("one with GPU {gpu} runs"), None)),
            Some(reason) if failed || Instant::now() > deadline => {
                let fix = "mend what stands above; `sudo journalctl -u toft` has the runtime's own words";
                return Ok((
                    Verdict::Failure,
                    format!("one with GPU {gpu} does not start: {reason}"),
                    Some(fix.into()),
                ));
            }
            None if Instant::now() > deadline => {
                let message = format!("one with GPU {gpu} is still {state}");
                return Ok((Verdict::Failure, message, Some("sudo journalctl -u toft    says why".into())));
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}
