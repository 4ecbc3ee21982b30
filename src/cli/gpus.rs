//! `gpu ls`, `gpu top`, `gpu set`, `gpu cordon`, `gpu uncordon`.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use toft_model::gpu::{GpuFacts, GpuMeasured, GpuPolicy, GpuProcess};

use super::{
    Failure,
    args::ListArgs,
    client::Client,
    gpu_args::{GpuCommand, GpuTopArgs},
    output,
    workloads::all,
};
use crate::api::types::{GpuChange, Node, NodeGpu};

/// Time between two pictures.
const PACE: Duration = Duration::from_secs(1);

pub(super) async fn gpu(client: &Client, command: GpuCommand) -> Result<i32, Failure> {
    match command {
        GpuCommand::Ls(args) => ls(client, args).await,
        GpuCommand::Top(args) => top(client, args).await,
        GpuCommand::Set { card, policy } => {
            change(client, &card.card, GpuChange { policy: Some(policy), ..GpuChange::default() }).await
        }
        GpuCommand::Cordon(card) => {
            change(client, &card.card, GpuChange { cordoned: Some(true), ..GpuChange::default() }).await
        }
        GpuCommand::Uncordon(card) => {
            change(client, &card.card, GpuChange { cordoned: Some(false), ..GpuChange::default() }).await
        }
    }
}

async fn gpus(client: &Client) -> Result<Vec<NodeGpu>, Failure> {
    all(client, "/api/v1/gpus").await
}

async fn ls(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let gpus = gpus(client).await?;
    if args.json {
        output::json(&gpus)?;
    } else if args.quiet {
        gpus.iter().for_each(|gpu| println!("{}", gpu.gpu.id));
    } else {
        print!("{}{}", table(&gpus), ways(&gpus));
    }
    Ok(0)
}

/// A card in one line; what nobody tells is `-`.
fn table(gpus: &[NodeGpu]) -> String {
    let header = [
        "GPU", "MODEL", "MEMORY", "USED", "RESERVED", "OUTSIDE", "BUSY", "TEMP", "POWER", "POLICY", "HELD BY", "HEALTH",
    ];
    let rows = gpus.iter().map(|gpu| {
        let nothing = GpuMeasured::default();
        let measured = gpu.facts.as_ref().map_or(&nothing, |facts| &facts.measured);
        let holders = gpu.holders.iter().map(|holder| match holder.vram_mib {
            Some(share) => format!("{} ({})", holder.instance, mib(share)),
            None => holder.instance.clone(),
        });
        let holders: Vec<String> = holders.collect();
        vec![
            format!("{}/{}", gpu.node, gpu.place),
            output::harmless(&gpu.gpu.model),
            mib(gpu.gpu.memory_mib),
            told(measured.memory_used_mib, mib),
            mib(gpu.reserved_mib),
            mib(gpu.facts.as_ref().and_then(outside).unwrap_or(gpu.gpu.outside_mib)),
            told(measured.busy_percent, |percent| format!("{percent}%")),
            told(measured.temperature_celsius, |degrees| format!("{degrees} C")),
            power(measured),
            gpu.policy.as_str().to_owned(),
            if holders.is_empty() { "-".to_owned() } else { holders.join(", ") },
            health(gpu),
        ]
    });
    output::table_text(&header, rows)
}

/// How cards reach the others of their node, where that is known.
fn ways(gpus: &[NodeGpu]) -> String {
    let linked: Vec<&NodeGpu> = gpus.iter().filter(|gpu| !gpu.gpu.links.is_empty()).collect();
    if linked.is_empty() {
        return String::new();
    }
    let rows = linked.into_iter().map(|gpu| {
        let ways = gpu.gpu.links.iter().filter_map(|link| {
            let other = gpus.iter().find(|other| other.node == gpu.node && other.gpu.id == link.to)?;
            Some(format!("{} {}", other.place, output::harmless(&link.way)))
        });
        vec![format!("{}/{}", gpu.node, gpu.place), ways.collect::<Vec<_>>().join(", ")]
    });
    "\n".to_owned() + &output::table_text(&["GPU", "WAYS TO OTHERS"], rows)
}

fn mib(mib: u32) -> String {
    output::bytes(u64::from(mib) << 20)
}

fn told<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

fn power(measured: &GpuMeasured) -> String {
    match (measured.power_watts, measured.power_limit_watts) {
        (Some(watts), Some(limit)) => format!("{watts:.0} / {limit:.0} W"),
        (Some(watts), None) => format!("{watts:.0} W"),
        (None, _) => "-".to_owned(),
    }
}

fn health(gpu: &NodeGpu) -> String {
    let sick = gpu.facts.as_ref().map_or(&gpu.gpu.sick, |facts| &facts.gpu.sick);
    match (sick, gpu.cordoned) {
        (Some(reason), _) => output::harmless(reason),
        (None, true) => "cordoned".to_owned(),
        (None, false) => "ok".to_owned(),
    }
}

/// Memory in MiB that is used by none of toft's instances, as it is now.
fn outside(facts: &GpuFacts) -> Option<u32> {
    let used = facts.measured.memory_used_mib?;
    let ours = facts.processes.iter().filter(|process| process.instance_id.is_some());
    Some(used.saturating_sub(ours.filter_map(|process| process.memory_mib).sum()))
}

async fn top(client: &Client, args: GpuTopArgs) -> Result<i32, Failure> {
    loop {
        let gpus = gpus(client).await?;
        let nodes: Vec<Node> = all(client, "/api/v1/nodes").await?;
        let text = if args.json {
            let line = serde_json::to_string(&gpus).map_err(|e| Failure::of(1, e.to_string()))?;
            line + "\n"
        } else {
            picture(&gpus, &nodes)
        };
        let mut out = io::stdout().lock();
        let live = !args.json && !args.no_stream && out.is_terminal();
        let text = match live {
            // Over what was there, so that nothing flickers; then the rest of the screen is wiped.
            true => format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")),
            false => text,
        };
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
            Err(error) => return Err(Failure::of(1, format!("the output could not be written: {error}"))),
            Ok(()) => {}
        }
        drop(out);
        if args.no_stream {
            return Ok(0);
        }
        tokio::time::sleep(PACE).await;
    }
}

/// Cards with what they measure, what their nodes draw and cost, then processes.
fn picture(gpus: &[NodeGpu], nodes: &[Node]) -> String {
    let seen: Vec<(&NodeGpu, &GpuFacts)> =
        gpus.iter().filter_map(|gpu| gpu.facts.as_ref().map(|facts| (gpu, facts))).collect();
    if seen.is_empty() {
        return "This node has no GPUs.\n".to_owned();
    }
    let header = ["GPU", "MODEL", "BUSY", "MEMORY", "TEMP", "FAN", "POWER", "CLOCK", "HEALTH"];
    let rows = seen.iter().map(|(gpu, facts)| {
        let measured = &facts.measured;
        vec![
            format!("{}/{}", gpu.node, gpu.place),
            output::harmless(&gpu.gpu.model),
            told(measured.busy_percent, |percent| format!("{percent}%")),
            format!("{} / {}", told(measured.memory_used_mib, mib), mib(gpu.gpu.memory_mib)),
            told(measured.temperature_celsius, |degrees| format!("{degrees} C")),
            told(measured.fan_percent, |percent| format!("{percent}%")),
            power(measured),
            told(measured.clock_mhz, |mhz| format!("{mhz} MHz")),
            health(gpu),
        ]
    });
    let mut text = output::table_text(&header, rows);
    let with_cards = nodes.iter().filter(|node| seen.iter().any(|(gpu, _)| gpu.node == node.name));
    let powered: Vec<&Node> = with_cards.filter(|node| node.watts.is_some() || node.cost_per_hour.is_some()).collect();
    if !powered.is_empty() {
        let rows = powered.into_iter().map(|node| {
            let cost = told(node.cost_per_hour, |cost| format!("{cost:.4}"));
            vec![node.name.clone(), told(node.watts, |watts| format!("{watts} W")), cost]
        });
        text = text + "\n" + &output::table_text(&["NODE", "AVERAGE POWER", "COST PER HOUR"], rows);
    }
    let processes: Vec<(&NodeGpu, &GpuProcess)> =
        seen.iter().flat_map(|(gpu, facts)| facts.processes.iter().map(|process| (*gpu, process))).collect();
    if !processes.is_empty() {
        let rows = processes.into_iter().map(|(gpu, process)| {
            let owner = process.instance_id.map(|id| {
                let id = id.to_string();
                let holder = gpu.holders.iter().find(|holder| holder.id == id);
                holder.map_or(id.clone(), |holder| holder.instance.clone())
            });
            vec![
                format!("{}/{}", gpu.node, gpu.place),
                process.pid.to_string(),
                owner.unwrap_or_else(|| "-".to_owned()),
                told(process.memory_mib, mib),
                output::harmless(&process.name),
            ]
        });
        text = text + "\n" + &output::table_text(&["GPU", "PID", "INSTANCE", "MEMORY", "COMMAND"], rows);
    }
    text
}

async fn change(client: &Client, card: &str, change: GpuChange) -> Result<i32, Failure> {
    let gpus = gpus(client).await?;
    let gpu = find(&gpus, card)?;
    let id = gpu.gpu.id.as_str().replace('/', "%2F");
    client.patch(&format!("/api/v1/nodes/{}/gpus/{id}", gpu.node), &change).await?;
    println!("{}/{} {}", gpu.node, gpu.place, gpu.gpu.id);
    if change.policy == Some(GpuPolicy::Mig) && !gpus.iter().any(|part| part.gpu.parent.as_ref() == Some(&gpu.gpu.id)) {
        eprintln!("toft: this GPU has no MIG devices yet; `nvidia-smi mig -cgi PROFILE -C` makes them");
    }
    Ok(0)
}

/// The one card that is meant.
fn find<'a>(gpus: &'a [NodeGpu], card: &str) -> Result<&'a NodeGpu, Failure> {
    let named = |gpu: &&NodeGpu| gpu.gpu.id.as_str() == card;
    if let Some(exact) = gpus.iter().find(named) {
        return Ok(exact);
    }
    let meant = |gpu: &&NodeGpu| match card.rsplit_once('/') {
        Some((node, place)) if gpu.node == node => place.parse() == Ok(gpu.place),
        _ => card.parse() == Ok(gpu.place) || (card.len() >= 4 && gpu.gpu.id.as_str().starts_with(card)),
    };
    let found: Vec<&NodeGpu> = gpus.iter().filter(meant).collect();
    match found[..] {
        [one] => Ok(one),
        [] => Err(Failure::of(1, format!("there is no GPU `{card}`")).hint("`toft gpu ls` shows the GPUs there are")),
        [..] => {
            let names: Vec<String> = found.iter().map(|gpu| format!("{}/{}", gpu.node, gpu.place)).collect();
            let message = format!("`{card}` may be any of {}", names.join(", "));
            Err(Failure::of(1, message).hint("name it as NODE/PLACE"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(node: &str, place: usize, id: &str) -> NodeGpu {
        serde_json::from_value(serde_json::json!({
            "node": node, "place": place, "id": id, "vendor": "nvidia", "model": "NVIDIA \u{1b}[2J RTX",
            "memory_mib": 24_576, "outside_mib": 512, "policy": "shared", "cordoned": false, "reserved_mib": 8_192,
            "holders": [{ "instance": "llm-0", "id": "0192f0c0-0000-7000-8000-000000000001", "vram_mib": 8_192 }],
        }))
        .unwrap()
    }

    fn with_facts() -> NodeGpu {
        let mut gpu = gpu("box", 0, "GPU-aaaa");
        let facts = serde_json::json!({
            "id": "GPU-aaaa", "vendor": "nvidia", "model": "x", "memory_mib": 24_576, "outside_mib": 512, "place": 0,
            "measured": { "memory_used_mib": 6_144, "busy_percent": 97, "temperature_celsius": 71, "power_watts": 320.4,
                "power_limit_watts": 450.0, "clock_mhz": 2520, "fan_percent": 55 },
            "processes": [
                { "pid": 77, "name": "python\u{7}", "memory_mib": 5_120,
                    "instance_id": "0192f0c0-0000-7000-8000-000000000001" },
                { "pid": 78, "name": "Xorg", "memory_mib": 200 },
            ],
        });
        gpu.facts = Some(serde_json::from_value(facts).unwrap());
        gpu
    }

    #[test]
    fn a_card_is_one_line_and_commands_no_terminal() {
        let text = table(&[with_facts(), gpu("other", 0, "GPU-bbbb")]);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().map(words).collect();
        assert_eq!(
            lines[1],
            "box/0 NVIDIA \u{fffd}[2J RTX 24 GiB 6.0 GiB 8.0 GiB 1.0 GiB 97% 71 C 320 / 450 W shared llm-0 (8.0 GiB) ok"
        );
        assert_eq!(lines[2], "other/0 NVIDIA \u{fffd}[2J RTX 24 GiB - 8.0 GiB 512 MiB - - - shared llm-0 (8.0 GiB) ok");
        let node = serde_json::json!({
            "name": "box", "id": "x", "labels": {}, "registered_at": "x", "watts": 430, "cost_per_hour": 0.129,
            "inventory": { "cpus": 1, "memory_bytes": 1, "kernel": "", "os": "", "arch": "", "version": "", "runtime": "",
                "subnet": null },
        });
        let node: Node = serde_json::from_value(node).unwrap();
        let text = picture(&[with_facts()], &[node]);
        assert!(text.lines().any(|line| words(line) == "box 430 W 0.1290"), "{text}");
        assert!(text.contains("box/0") && text.contains("llm-0") && text.contains("Xorg") && !text.contains('\u{7}'));
        assert_eq!(picture(&[gpu("other", 0, "GPU-bbbb")], &[]), "This node has no GPUs.\n");
        let (mut one, other) = (gpu("box", 0, "GPU-a"), gpu("box", 1, "GPU-b"));
        one.gpu.links = vec![serde_json::from_value(serde_json::json!({ "to": "GPU-b", "way": "NV4" })).unwrap()];
        assert!(ways(&[one, other]).lines().any(|line| words(line) == "box/0 1 NV4"));
        assert_eq!(ways(&[gpu("box", 0, "GPU-a")]), "");
    }

    #[test]
    fn cards_are_found_by_place_node_and_name() {
        let gpus = [gpu("box", 0, "GPU-aaaa1"), gpu("box", 1, "GPU-aaaa2"), gpu("other", 0, "MIG-GPU-x/1/0")];
        let place = |card: &str| find(&gpus, card).map(|gpu| (gpu.node.as_str(), gpu.place)).map_err(|_| ());
        assert_eq!(place("1"), Ok(("box", 1)));
        assert_eq!(place("other/0"), Ok(("other", 0)));
        assert_eq!(place("GPU-aaaa2"), Ok(("box", 1)));
        assert_eq!(place("MIG-GPU-x/1/0"), Ok(("other", 0)));
        assert_eq!(place("MIG-"), Ok(("other", 0)));
        for ambiguous_or_absent in ["0", "GPU-aaaa", "GPU", "7", "", "box/7", "nobody/0"] {
            assert!(find(&gpus, ambiguous_or_absent).is_err(), "{ambiguous_or_absent}");
        }
    }
}
