//! How fast, and how well, the whole scheduler decides: everything that users can say of nodes and workloads is in the
//! snapshot. Measured by `bench/run.sh schedule`. Prints a JSON object for each measure, one a line. With the folder of the FGD
//! paper's traces as argument it also places those.

use std::{collections::BTreeMap, path::Path, time::Instant};

use toft_model::{
    gpu::{Gpu, GpuVendor},
    ids::{InstanceId, NodeId, WorkloadId},
    instance::{Desired, InstanceReport, InstanceState},
    node::{Inventory, NodeSettings},
    schedule::{Change, PlacementSettings, Plan, Scheduler, Snapshot, place::Random},
    state::{InstanceRow, NodeRow, VolumeRow, WorkloadRow},
    volume::VolumeOptions,
    workload::WorkloadSpec,
};
use uuid::Uuid;

type Failure = Box<dyn std::error::Error>;

/// Memory of a card of the trace, of which a thousandth is the unit.
const CARD_MIB: u32 = 100_000;

const ARRIVALS: usize = 1_000;

struct Shape {
    cores: u32,
    memory_bytes: u64,
    gpus: usize,
    model: String,
}

fn node(number: usize, shape: &Shape, settings: NodeSettings) -> Result<NodeRow, Failure> {
    let card = |place: usize| -> Result<Gpu, Failure> {
        Ok(Gpu {
            id: format!("GPU-{number}-{place}").parse()?,
            vendor: GpuVendor::Nvidia,
            model: shape.model.clone(),
            memory_mib: CARD_MIB,
            outside_mib: 0,
            parent: None,
            sick: None,
            watts: None,
            links: Vec::new(),
        })
    };
    Ok(NodeRow {
        health: Default::default(),
        health_since_ms: None,
        id: NodeId(Uuid::from_u128(1 + number as u128)),
        name: format!("node-{number:05}").parse()?,
        labels: BTreeMap::from([
            ("zone".to_owned(), format!("z{}", number % 5)),
            ("disk".to_owned(), if number.is_multiple_of(3) { "ssd" } else { "hdd" }.to_owned()),
        ]),
        inventory: Inventory {
            cpus: shape.cores,
            memory_bytes: shape.memory_bytes,
            kernel: "6.1".into(),
            os: "Debian".into(),
            arch: "x86_64".into(),
            version: "0.1.0".into(),
            runtime: "2.0".into(),
            subnet: Some(format!("10.{}.{}.0/24", number / 256, number % 256).parse()?),
            subnet6: None,
            isolation: Vec::new(),
            gpus: (0..shape.gpus).map(card).collect::<Result<_, _>>()?,
        },
        registered_at_ms: 1,
        assignments_generation: 1,
        gpus: Default::default(),
        settings,
    })
}

fn workload(number: usize, mut spec: WorkloadSpec) -> Result<WorkloadRow, Failure> {
    spec.name = format!("w-{number:06}").parse()?;
    let workload = serde_json::json!({
        "id": Uuid::from_u128((1 << 64) + number as u128), "generation": 1, "spec": spec, "desired": "running", "epoch": 1,
        "pending": null, "created_at_ms": 1, "updated_at_ms": 1,
    });
    Ok(serde_json::from_value(workload)?)
}

/// One of 64 requests with what users may say beside it.
fn wish(random: &mut Random) -> Result<WorkloadSpec, Failure> {
    let kind = random.below(64);
    let mut spec = WorkloadSpec::new("w".parse()?, format!("registry.lan/app:{kind}").parse()?);
    spec.resources.cpu_reserved_millis = Some(100 * (1 + (kind * 7 % 40) as u32));
    spec.resources.memory_reserved_bytes = Some((1 + (kind as u64 * 5 % 16)) << 28);
    spec.gpus = match kind % 8 {
        0 => Some("1".parse()?),
        1 => Some(format!("vram={}MiB", [16_000, 32_000, 47_000, 81_000][kind / 8 % 4]).parse()?),
        _ => None,
    };
    let placement = match kind % 16 {
        2 => r#"{"constraints":["node.labels.disk == ssd"]}"#,
        3 => r#"{"affinities":["node.labels.zone == z1 weight 80"],"priority":200}"#,
        4 => r#"{"spread":["node.labels.zone"]}"#,
        5 => r#"{"tolerations":["gpu"],"priority":150}"#,
        6 => r#"{"constraints":["node.memory >= 64GiB","node.labels.zone != z2"],"max_per_node":2}"#,
        7 => r#"{"spread":["node.hostname"],"priority":300}"#,
        _ => "{}",
    };
    spec.placement = serde_json::from_str(placement)?;
    if kind % 16 == 9 {
        spec.ports = vec!["80".parse()?, format!("{}:81", 1_000 + random.below(2_000)).parse()?];
    }
    if kind % 16 == 10 {
        spec.mounts = vec![format!("data-{}:/data", random.below(2_000)).parse()?];
    }
    Ok(spec)
}

fn cluster(nodes: usize, settings: &str) -> Result<Snapshot, Failure> {
    let shapes = [(96, 8, "A100"), (104, 2, "T4"), (64, 4, "A10"), (32, 0, "")];
    let said = |number: usize| match number % 10 {
        0 => r#"{"taints":["gpu=only:NoSchedule"],"price_per_hour":0.5}"#,
        1 => r#"{"taints":["old:PreferNoSchedule"],"watts":300}"#,
        2 => r#"{"labels":{"rack":"r1"},"watts":120}"#,
        _ => "{}",
    };
    let mut snapshot = Snapshot::default();
    for number in 0..nodes {
        let (cores, gpus, model) = shapes[number % 4];
        let shape = Shape { cores, memory_bytes: 256 << 30, gpus, model: format!("NVIDIA {model}") };
        let changes = serde_json::from_str(said(number))?;
        let settings = NodeSettings::default().with(&changes).map_err(|e| e.message)?;
        snapshot.nodes.push(node(number, &shape, settings)?);
    }
    for number in 0..2_000 {
        let options = VolumeOptions::default();
        let node_id = (number % 2 == 0).then(|| snapshot.nodes[number * 7 % nodes].id);
        let (name, labels) = (format!("data-{number}").parse()?, BTreeMap::new());
        snapshot.volumes.push(VolumeRow { name, born: 1, node_id, options, labels, created_at_ms: 1, moving: None });
    }
    snapshot.placement = PlacementSettings::default().with(&serde_json::from_str(settings)?).map_err(|e| e.message)?;
    Ok(snapshot)
}

fn minter() -> impl FnMut() -> InstanceId {
    let mut minted = 1_u128 << 96;
    move || {
        minted += 1;
        InstanceId(Uuid::from_u128(minted))
    }
}

/// The rows that the plan makes, as their nodes would report them.
fn rows(plan: Plan) -> impl Iterator<Item = InstanceRow> {
    plan.placements.into_iter().map(|placed| InstanceRow {
        lost: false,
        moves_to: None,
        id: placed.instance_id,
        workload_id: placed.workload_id,
        ordinal: placed.ordinal,
        node_id: placed.node_id,
        desired: Desired::Running,
        epoch: 1,
        container: placed.container,
        report: Some(InstanceReport {
            instance_id: placed.instance_id,
            state: Some(InstanceState::Running { pid: 7, since_ms: 1 }),
            epoch: 1,
            restarts: 0,
            last_exit: None,
            health: None,
            warning: None,
            at_ms: 1,
            sequence: 1,
        }),
        created_at_ms: 1,
    })
}

fn percentile(taken: &mut [f64], percent: usize) -> f64 {
    taken.sort_by(f64::total_cmp);
    taken[(taken.len() * percent / 100).min(taken.len() - 1)]
}

/// So many instances on so many nodes in one plan, then one arrival after the other.
fn synthetic(policy: &str, nodes: usize, instances: usize) -> Result<(), Failure> {
    let mut snapshot = cluster(nodes, &format!(r#"{{"policy":"{policy}","electricity_price":0.3}}"#))?;
    let (mut random, mut mint, mut count) = (Random::new(5), minter(), 0);
    while count < instances {
        let mut spec = wish(&mut random)?;
        spec.replicas = if spec.mounts.is_empty() { [1, 1, 2, 4, 8, 32][random.below(6)] } else { 1 };
        count += spec.replicas as usize;
        snapshot.workloads.push(workload(snapshot.workloads.len(), spec)?);
    }
    let began = Instant::now();
    let mut scheduler = Scheduler::of(&snapshot);
    let loading = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let plan = scheduler.plan(1, &mut mint);
    let filling = count as f64 / began.elapsed().as_secs_f64();
    let placed = plan.placements.len();
    settle(&mut scheduler, &mut snapshot.workloads, plan, &mut mint);
    let (known, changed) = arrivals(&mut scheduler, &mut random, &mut mint, Some(snapshot.workloads.len()))?;
    let (new, _) = arrivals(&mut scheduler, &mut random, &mut mint, None)?;
    println!(
        "{{\"measure\":\"{policy}, {nodes} nodes\",\"instances\":{placed},\"asked\":{count},\"loading_ms\":{:.0},\
         \"decisions_per_second\":{filling:.0},\"arrival_p50_us\":{:.1},\"arrival_p99_us\":{:.1},\"commit_p50_us\":{:.1},\
         \"new_p50_us\":{:.1},\"new_p99_us\":{:.1}}}",
        loading * 1e3,
        known.0,
        known.1,
        changed,
        new.0,
        new.1
    );
    Ok(())
}

/// What was decided is done, who makes way is gone at once, and so on until nothing moves.
fn settle(
    scheduler: &mut Scheduler,
    workloads: &mut [WorkloadRow],
    mut plan: Plan,
    mint: &mut dyn FnMut() -> InstanceId,
) {
    let places: BTreeMap<WorkloadId, usize> = workloads.iter().enumerate().map(|(at, row)| (row.id, at)).collect();
    while !plan.is_empty() {
        for (id, why) in std::mem::take(&mut plan.pending) {
            let row = &mut workloads[places[&id]];
            row.pending = why;
            scheduler.apply(Change::Workload(Box::new(row.clone())));
        }
        for ended in std::mem::take(&mut plan.rollouts) {
            let row = &mut workloads[places[&ended.workload_id]];
            row.rollout = ended.rollout;
            scheduler.apply(Change::Workload(Box::new(row.clone())));
        }
        let gone = std::mem::take(&mut plan.preemptions);
        gone.into_iter().for_each(|one| scheduler.apply(Change::NoInstance(one.instance_id)));
        rows(plan).for_each(|row| scheduler.apply(Change::Instance(Box::new(row))));
        plan = scheduler.plan(1, mint);
    }
}

/// One workload comes, and goes again, after the other; their numbers begin at `first`, and without it each asks for something new.
/// Median and 99th percentile of learning of a workload and planning, and the median of learning what came of it, in
/// microseconds.
fn arrivals(
    scheduler: &mut Scheduler,
    random: &mut Random,
    mint: &mut dyn FnMut() -> InstanceId,
    first: Option<usize>,
) -> Result<((f64, f64), f64), Failure> {
    let (mut taken, mut learnt) = (Vec::new(), Vec::new());
    for number in 0..ARRIVALS {
        let mut spec = wish(random)?;
        if first.is_none() {
            // A request that nobody made before.
            spec.resources.cpu_reserved_millis = Some(10_000 + number as u32);
        }
        let mut row = workload(first.unwrap_or(500_000) + number, spec)?;
        let change = Change::Workload(Box::new(row.clone()));
        let began = Instant::now();
        scheduler.apply(change);
        let plan = scheduler.plan(1, mint);
        taken.push(began.elapsed().as_secs_f64() * 1e6);
        // It goes again, so that the cluster stays as full as it is.
        row.pending = plan.pending.first().and_then(|(_, why)| why.clone());
        let placed: Vec<InstanceRow> = rows(plan).collect();
        let changes = placed.iter().map(|row| Change::Instance(Box::new(row.clone())));
        let gone = placed.iter().map(|row| Change::NoInstance(row.id));
        let changes: Vec<Change> = changes.chain(gone).chain([Change::NoWorkload(row.id)]).collect();
        let began = Instant::now();
        changes.into_iter().for_each(|change| scheduler.apply(change));
        scheduler.plan(1, mint);
        learnt.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(((percentile(&mut taken, 50), percentile(&mut taken, 99)), percentile(&mut learnt, 50)))
}

/// The cells of a CSV file without quotes, by column.
fn table(path: &Path) -> Result<Vec<BTreeMap<String, String>>, Failure> {
    let text = std::fs::read_to_string(path)?;
    let mut lines = text.lines().map(|line| line.split(','));
    let header: Vec<&str> = lines.next().ok_or("no header")?.collect();
    Ok(lines
        .map(|cells| header.iter().map(|name| (*name).to_owned()).zip(cells.map(str::to_owned)).collect())
        .collect())
}

/// The pods of a trace, until 130 % of the GPUs are asked for, as workloads of one copy: the part of all GPUs that is given.
fn trace(folder: &Path, name: &str, seed: u64) -> Result<(), Failure> {
    let number = |row: &BTreeMap<String, String>, column: &str| row[column].parse::<u64>().unwrap_or(0);
    let mut nodes = table(&folder.join("openb_node_list_gpu_node.csv"))?;
    let mut pods = table(&folder.join(format!("openb_pod_list_{name}.csv")))?;
    let mut random = Random::new(seed);
    random.shuffle(&mut nodes);
    random.shuffle(&mut pods);
    let all: u64 = nodes.iter().map(|row| 1_000 * number(row, "gpu")).sum();
    let mut snapshot = Snapshot::default();
    for (at, row) in nodes.iter().enumerate() {
        let shape = Shape {
            cores: (number(row, "cpu_milli") / 1_000) as u32,
            memory_bytes: number(row, "memory_mib") << 20,
            gpus: number(row, "gpu") as usize,
            model: format!("NVIDIA {}", row["model"]),
        };
        snapshot.nodes.push(node(at, &shape, NodeSettings::default())?);
    }
    let (mut arrived, mut asked) = (0, Vec::new());
    let mut at = 0;
    while arrived * 100 < 130 * all {
        // When all have come, they come again.
        let row = &pods[at % pods.len()];
        let (gpus, millis) = (number(row, "num_gpu"), number(row, "gpu_milli"));
        let mut spec = WorkloadSpec::new("w".parse()?, "demo".parse()?);
        spec.network = toft_model::workload::NetworkMode::None;
        spec.resources.cpu_reserved_millis = Some(number(row, "cpu_milli") as u32);
        spec.resources.memory_reserved_bytes = Some(number(row, "memory_mib") << 20);
        let models: Vec<String> = row
            .get("gpu_spec")
            .map_or("", String::as_str)
            .split('|')
            .filter(|one| !one.is_empty())
            .map(str::to_lowercase)
            .collect();
        let models = if models.is_empty() { String::new() } else { format!("{},", models.join(",")) };
        spec.gpus = match (gpus, millis) {
            (0, _) => None,
            (1, 1..1000) => Some(format!("{models}vram={}MiB", millis * u64::from(CARD_MIB) / 1_000).parse()?),
            (count, _) if models.is_empty() => Some(count.to_string().parse()?),
            (count, _) => Some(format!("{}:{count}", models.trim_end_matches(',')).parse()?),
        };
        let units = if gpus == 1 { millis } else { 1_000 * gpus };
        arrived += units;
        asked.push(units);
        snapshot.workloads.push(workload(at, spec)?);
        at += 1;
    }
    let mut scheduler = Scheduler::of(&snapshot);
    let began = Instant::now();
    let plan = scheduler.plan(1, &mut minter());
    let taken = began.elapsed().as_secs_f64();
    let number_of = |id: WorkloadId| (id.0.as_u128() - (1 << 64)) as usize;
    let held: u64 = plan.placements.iter().map(|placed| asked[number_of(placed.workload_id)]).sum();
    println!(
        "{{\"measure\":\"trace {name}\",\"seed\":{seed},\"nodes\":{},\"asked\":{},\"placed\":{},\"allocated_percent\":{:.2},\
         \"decisions_per_second\":{:.0}}}",
        snapshot.nodes.len(),
        asked.len(),
        plan.placements.len(),
        100.0 * held as f64 / all as f64,
        asked.len() as f64 / taken
    );
    Ok(())
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(folder) = arguments.first() {
        let seeds = arguments.get(1).map_or(Ok(2), |seeds| seeds.parse())?;
        for name in ["default", "gpuspec33", "multigpu50"] {
            for seed in 0..seeds {
                trace(Path::new(folder), name, seed)?;
            }
        }
    }
    synthetic("best-fit", 1_213, 10_000)?;
    synthetic("best-fit", 5_000, 50_000)?;
    synthetic("binpack", 5_000, 50_000)
}
