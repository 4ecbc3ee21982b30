//! `node ls`, `node inspect`.

use serde::Serialize;
use toft_model::{
    gpu::Gpu,
    name::Name,
    node::{Inventory, NodeFacts},
};

use super::{Failure, args::ListArgs, client::Client, output, workloads::all};
use crate::api::types::{Node, time};

pub(super) async fn ls(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let nodes: Vec<Node> = all(client, "/api/v1/nodes").await?;
    if args.json {
        output::json(&nodes)?;
    } else if args.quiet {
        nodes.iter().for_each(|node| println!("{}", node.name));
    } else {
        let rows = nodes.iter().map(|node| {
            let inventory = &node.inventory;
            vec![
                node.name.clone(),
                inventory.cpus.to_string(),
                output::bytes(inventory.memory_bytes),
                inventory.os.clone(),
                inventory.kernel.clone(),
                inventory.runtime.clone(),
                inventory.isolation.join(", "),
                inventory.subnet.map(|subnet| subnet.to_string()).unwrap_or_default(),
                inventory.version.clone(),
            ]
        });
        output::table(&["NODE", "CPUS", "MEMORY", "OS", "KERNEL", "RUNTIME", "ISOLATION", "NETWORK", "TOFT"], rows);
    }
    Ok(0)
}

/// A node, and its machine as it is now if the node was asked itself.
#[derive(Serialize)]
struct Inspected {
    #[serde(flatten)]
    node: Node,
    #[serde(skip_serializing_if = "Option::is_none")]
    facts: Option<NodeFacts>,
}

pub(super) async fn inspect(client: &Client, name: &Name, json: bool) -> Result<i32, Failure> {
    let node: Node = client.get(&format!("/api/v1/nodes/{name}")).await?;
    let facts: Option<NodeFacts> = match client.get(&format!("/api/v1/nodes/{name}/facts")).await {
        Ok(facts) => Some(facts),
        // It is another node, whose machine only it knows.
        Err(failure) if failure.is("conflict") => None,
        Err(failure) => return Err(failure),
    };
    if json {
        output::json(&Inspected { node, facts })?;
        return Ok(0);
    }
    let mut lines = vec![("Name", node.name.clone()), ("Id", node.id.clone())];
    let labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if !labels.is_empty() {
        lines.push(("Labels", labels.join(", ")));
    }
    let facts_gpus = facts.as_ref().map(|facts| facts.gpus.iter().map(|facts| facts.gpu.clone()).collect());
    match facts {
        Some(facts) => lines.extend(machine(&facts)),
        None => lines.extend(registered(&node.inventory)),
    }
    let gpus = facts_gpus.unwrap_or(node.inventory.gpus);
    lines.extend(gpus.iter().enumerate().map(|(place, gpu)| gpu_line(place, gpu)));
    let subnet = node.inventory.subnet.map_or_else(|| "none".to_owned(), |subnet| subnet.to_string());
    lines.push(("Container network", subnet));
    lines.push(("Registered", format!("{} ago", output::age(&node.registered_at))));
    print!("{}", columns(&lines));
    Ok(0)
}

fn gpu_line(place: usize, gpu: &Gpu) -> (&'static str, String) {
    let memory = output::bytes(u64::from(gpu.memory_mib) << 20);
    let sick = gpu.sick.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
    (if place == 0 { "GPUs" } else { "" }, format!("{place}: {}, {memory}{sick}", gpu.model))
}

fn registered(inventory: &Inventory) -> Vec<(&'static str, String)> {
    vec![
        ("System", inventory.os.clone()),
        ("Kernel", format!("{} ({})", inventory.kernel, inventory.arch)),
        ("CPUs", inventory.cpus.to_string()),
        ("Memory", output::bytes(inventory.memory_bytes)),
        ("Runtime", inventory.runtime.clone()),
        ("Isolation", inventory.isolation.join(", ")),
        ("toft", inventory.version.clone()),
    ]
}

fn machine(facts: &NodeFacts) -> Vec<(&'static str, String)> {
    let part = |bytes: u64, all: u64, word: &str| format!("{} of {} {word}", output::bytes(bytes), output::bytes(all));
    let cpus = match facts.cpu_model.as_str() {
        "" => facts.cpus.to_string(),
        model => format!("{} ({model})", facts.cpus),
    };
    let mut lines = vec![
        ("System", facts.os.clone()),
        ("Kernel", format!("{} ({})", facts.kernel, facts.arch)),
        ("Booted", format!("{} ago", output::age(&time(facts.booted_at_ms)))),
        ("CPUs", cpus),
        ("Load", facts.load.map(|load| format!("{load:.2}")).join(" ")),
        ("Memory", part(facts.memory_available_bytes, facts.memory_bytes, "available")),
        (
            "Swap",
            match facts.swap_bytes {
                0 => "none".to_owned(),
                swap => part(facts.swap_used_bytes, swap, "used"),
            },
        ),
        ("Disk", part(facts.disk.free_bytes, facts.disk.size_bytes, "free")),
        ("", format!("{} on {} ({})", facts.disk.path, facts.disk.device, facts.disk.file_system)),
    ];
    for (i, sensor) in facts.temperatures.iter().enumerate() {
        lines.push((if i == 0 { "Temperatures" } else { "" }, format!("{:.1} C  {}", sensor.celsius, sensor.sensor)));
    }
    lines.extend([
        ("Runtime", if facts.runtime.is_empty() { "away".to_owned() } else { facts.runtime.clone() }),
        ("Isolation", facts.isolation.join(", ")),
        ("toft", facts.version.clone()),
    ]);
    lines
}

fn columns(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    lines
        .iter()
        .map(|(key, value)| format!("{key:width$}   {}", output::harmless(value)).trim_end().to_owned() + "\n")
        .collect()
}
