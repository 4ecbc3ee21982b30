//! `node ls`, `node inspect`, and what users say of nodes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::Serialize;
use toft_model::{
    gpu::Gpu,
    name::Name,
    node::{Availability, Inventory, NodeChanges, NodeFacts, Price, TaintChange},
    schedule::{Remaining, RemainingState},
};

use super::{
    Failure,
    args::{ListArgs, told},
    client::Client,
    mesh::{CLOCK_APART_MS, apart},
    node_args::{DrainArgs, SetArgs},
    output, progress, prompt,
    workloads::all,
};
use crate::api::types::{Node, time};

pub(super) async fn ls(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let nodes: Vec<Node> = all(client, "/api/v1/nodes").await?;
    if args.json {
        output::json(&nodes)?;
    } else if args.quiet {
        nodes.iter().for_each(|node| println!("{}", node.name));
    } else {
        // Told only when there is something to say.
        let skewed = nodes.iter().any(|node| skew(node).is_some());
        let mut header =
            vec!["NODE", "STATE", "CPUS", "MEMORY", "OS", "KERNEL", "RUNTIME", "ISOLATION", "NETWORK", "TOFT"];
        header.extend(skewed.then_some("CLOCK"));
        let rows = nodes.iter().map(|node| {
            let inventory = &node.inventory;
            // Of one that is joining nothing is known yet.
            let known = node.registered_at.is_some();
            let mut row = vec![
                node.name.clone(),
                if node.disk_full { format!("{} (disk full)", node.state) } else { node.state.clone() },
                if known { inventory.cpus.to_string() } else { "-".to_owned() },
                if known { output::bytes(inventory.memory_bytes) } else { "-".to_owned() },
                inventory.os.clone(),
                inventory.kernel.clone(),
                inventory.runtime.clone(),
                inventory.isolation.join(", "),
                inventory.subnet.map(|subnet| subnet.to_string()).unwrap_or_default(),
                if node.behind { format!("{} (oldest)", inventory.version) } else { inventory.version.clone() },
            ];
            row.extend(skewed.then(|| skew(node).unwrap_or_else(|| "-".to_owned())));
            row
        });
        output::table(&header, rows);
    }
    Ok(0)
}

/// How far a node's clock is off, if that is worth a word.
fn skew(node: &Node) -> Option<String> {
    node.clock_ahead_ms.filter(|ms| ms.abs() > CLOCK_APART_MS).map(apart)
}

/// A node, and its machine as it is now if it tells.
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
        // It is away; what it said when it registered is known.
        Err(failure) if failure.is("conflict") || failure.is("unavailable") => None,
        Err(_) if node.registered_at.is_none() => None,
        Err(failure) => return Err(failure),
    };
    if json {
        output::json(&Inspected { node, facts })?;
        return Ok(0);
    }
    let mut lines = vec![("Name", node.name.clone()), ("Id", node.id.clone())];
    let since = node.heard_since.as_ref().filter(|_| !matches!(node.state.as_str(), "ready" | "cordoned" | "draining"));
    let since = since.map(|since| format!(" for {}", output::age(since))).unwrap_or_default();
    lines.push(("State", node.state.clone() + &since));
    if let Some(skew) = skew(&node) {
        lines.push(("Clock", format!("{skew} off; set it by the network: `timedatectl set-ntp true` there")));
    }
    let labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if !labels.is_empty() {
        lines.push(("Labels", labels.join(", ")));
    }
    let facts_gpus = facts.as_ref().map(|facts| facts.gpus.iter().map(|facts| facts.gpu.clone()).collect());
    lines.extend(said(&node));
    match facts {
        Some(facts) => lines.extend(machine(&facts)),
        None if node.registered_at.is_some() => lines.extend(registered(&node.inventory)),
        None => {
            print!("{}", columns(&lines));
            return Ok(0);
        }
    }
    if node.disk_full {
        lines.push(("", "no space is left on the disk of its state: free some".to_owned()));
    }
    if node.behind {
        lines.push(("", "older than other members' toft: upgrade it".to_owned()));
    }
    let gpus = facts_gpus.unwrap_or(node.inventory.gpus);
    lines.extend(gpus.iter().enumerate().map(|(place, gpu)| gpu_line(place, gpu)));
    let subnet = node.inventory.subnet.map_or_else(|| "none".to_owned(), |subnet| subnet.to_string());
    lines.push(("Container network", subnet));
    lines.extend(node.registered_at.iter().map(|at| ("Registered", format!("{} ago", output::age(at)))));
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

/// What users say of the node, beside its labels.
fn said(node: &Node) -> Vec<(&'static str, String)> {
    let settings = &node.settings;
    let built_in: Vec<String> = node.builtin_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let taints: Vec<String> = settings.taints.iter().map(ToString::to_string).collect();
    let lines = [
        ("Built-in labels", Some(built_in.join(", "))),
        ("Taints", Some(taints.join(", "))),
        ("Price per hour", settings.price_per_hour.map(|price| price.to_string())),
        ("Watts", node.watts.map(|watts| watts.to_string())),
        ("Cost per hour", node.cost_per_hour.map(|cost| format!("{cost:.4}"))),
        ("CPU to reserve", settings.cpu_percent.map(|percent| format!("{percent} %"))),
        ("Memory to reserve", settings.memory_percent.map(|percent| format!("{percent} %"))),
    ];
    lines.into_iter().filter_map(|(key, value)| Some((key, value.filter(|value| !value.is_empty())?))).collect()
}

async fn change(client: &Client, name: &Name, changes: &NodeChanges) -> Result<(), Failure> {
    client.patch(&format!("/api/v1/nodes/{name}"), changes).await
}

pub(super) async fn label(
    client: &Client,
    name: &Name,
    changes: Vec<(String, Option<String>)>,
) -> Result<i32, Failure> {
    let labels: BTreeMap<String, Option<String>> = changes.into_iter().collect();
    change(client, name, &NodeChanges { labels, ..NodeChanges::default() }).await?;
    println!("{name}");
    Ok(0)
}

pub(super) async fn taint(client: &Client, name: &Name, taints: Vec<TaintChange>) -> Result<i32, Failure> {
    change(client, name, &NodeChanges { taints, ..NodeChanges::default() }).await?;
    println!("{name}");
    Ok(0)
}

pub(super) async fn set(client: &Client, args: SetArgs) -> Result<i32, Failure> {
    let price = args.price.map(|amount| amount.0.map(Price::try_from).transpose());
    let changes = NodeChanges {
        price_per_hour: price.transpose().map_err(|invalid| Failure::of(2, told(invalid)))?,
        watts: args.watts.map(|watts| watts.0),
        base_watts: args.base_watts.map(|watts| watts.0),
        cpu_percent: args.cpu_percent.map(|percent| percent.0),
        memory_percent: args.memory_percent.map(|percent| percent.0),
        ..NodeChanges::default()
    };
    change(client, &args.name, &changes).await?;
    println!("{}", args.name);
    Ok(0)
}

pub(super) async fn make(client: &Client, names: Vec<Name>, availability: Availability) -> Result<i32, Failure> {
    for name in &names {
        let changes = NodeChanges { availability: Some(availability), ..NodeChanges::default() };
        change(client, name, &changes).await?;
        println!("{name}");
    }
    Ok(0)
}

pub(super) async fn rm(client: &Client, name: &Name, force: bool, yes: bool) -> Result<i32, Failure> {
    let question = match force {
        true => format!("Remove {name} from the cluster, and end what runs there?"),
        false => format!("Remove {name} from the cluster?"),
    };
    if !yes && prompt::possible() && !prompt::confirm(&question)? {
        return Err(Failure::of(1, "nothing was changed"));
    }
    let force = if force { "?force=true" } else { "" };
    client.delete(&format!("/api/v1/nodes/{name}{force}")).await?;
    println!("{name}");
    Ok(0)
}

/// Time between two looks at what is still there.
const LOOK: Duration = Duration::from_millis(500);

pub(super) async fn drain(client: &Client, args: DrainArgs) -> Result<i32, Failure> {
    let name = &args.name;
    let changes = NodeChanges { availability: Some(Availability::Draining), ..NodeChanges::default() };
    change(client, name, &changes).await?;
    if args.no_wait {
        println!("{name}");
        return Ok(0);
    }
    let deadline = args.timeout.map(|ms| Instant::now() + Duration::from_millis(ms));
    let turning = progress::spinner(format!("draining {name}"));
    let mut known = BTreeMap::<String, String>::new();
    loop {
        let mut left: Vec<Remaining> = client.get(&format!("/api/v1/nodes/{name}/remaining")).await?;
        left.retain(|one| one.state != RemainingState::Down);
        let lines: BTreeMap<String, String> =
            left.iter().map(|one| (one.instance.clone(), format!("{}: {}", word(one.state), one.why))).collect();
        turning.suspend(|| tell(&known, &lines));
        turning.set_message(format!("draining {name}, {} left", lines.len()));
        if lines.is_empty() {
            turning.finish_and_clear();
            println!("{name}");
            return Ok(0);
        }
        // Nothing will change by itself.
        let stuck = left.iter().all(|one| one.state == RemainingState::Stuck);
        if deadline.is_some_and(|deadline| Instant::now() >= deadline)
            || (stuck && known == lines && deadline.is_none())
        {
            turning.finish_and_clear();
            let why = format!("{} of {name}'s instances are still there", lines.len());
            return Err(Failure::of(1, why).hint(format!(
                "the drain goes on, and moves them when there is room; `toft node uncordon {name}` ends it"
            )));
        }
        known = lines;
        tokio::time::sleep(LOOK).await;
    }
}

fn word(state: RemainingState) -> &'static str {
    match state {
        RemainingState::Moving => "moving",
        RemainingState::Stuck => "stuck",
        RemainingState::Finishing => "finishing",
        RemainingState::Down => "down",
    }
}

/// Says on stderr what is new since the last look.
fn tell(known: &BTreeMap<String, String>, now: &BTreeMap<String, String>) {
    for gone in known.keys().filter(|instance| !now.contains_key(*instance)) {
        eprintln!("{gone}: gone");
    }
    for (instance, line) in now.iter().filter(|(instance, line)| known.get(*instance) != Some(line)) {
        eprintln!("{instance}: {}", output::harmless(line));
    }
}
