//! Whatever users, nodes and late plans did: once they pause, the cluster comes to rest in what was asked for.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::oracle::{assert_moved, could_take};
use crate::{
    gpu::{Gpu, made},
    instance::{Desired, NetworkOrder},
    node::{Inventory, NodeHealth},
    schedule::{Plan, rebalance},
    state::{
        Command, InstanceMove, InstanceRow, NodeRow, PowerAction, PutMode, VolumeRow, WorkloadRow, query_snapshot,
        tests::cluster::{Cluster, Outcome, inventory, node_id, spec},
    },
    volume::VolumeOptions,
    workload::{
        Mount, NetworkMode, OnNodeLoss, PlacementSpec, PortSpec, Protocol, Resources, TmpfsMount, UpdateOrder,
        UpdateSpec, WorkloadKind, WorkloadSpec,
    },
};

const NODES: [&str; 3] = ["one", "two", "six"];
const NAMES: [&str; 4] = ["aaa", "bbb", "ccc", "ddd"];
/// Volumes; whoever makes the last one by hand says that it lies on a server.
const VOLUMES: [&str; 4] = ["data", "logs", "site", "nas"];

/// What the leader may say of a node.
const HEALTHS: [NodeHealth; 6] = [
    NodeHealth::Ready,
    NodeHealth::Ready,
    NodeHealth::Away,
    NodeHealth::Unreachable,
    NodeHealth::Down,
    NodeHealth::Fenced,
];

/// Something that can happen to a cluster.
#[derive(Debug, Clone)]
enum Happening {
    Register(&'static str, Inventory),
    Put(Box<WorkloadSpec>, PutMode),
    Power(&'static str, PowerAction),
    Remove(&'static str),
    /// A user makes a volume, for a node or for whoever uses it first.
    MakeVolume(&'static str, Option<&'static str>),
    RemoveVolume(&'static str),
    /// A user says something of a node.
    Configure(&'static str, &'static str),
    /// A user says something of the whole cluster.
    ConfigurePlacement(&'static str),
    /// The leader says whether it hears of a node.
    Hear(&'static str, NodeHealth),
    /// A user has instances moved: those that the planner finds, or any, by what the bits say.
    Move(u8),
    /// The scheduler looks at the state, and commits later.
    Think,
    /// The oldest thought is committed.
    Commit,
    /// A node carries out some of its orders and reports.
    Act(&'static str, Outcome, u8),
}

fn a_node() -> impl Strategy<Value = Happening> {
    let subnet = prop_oneof![
        1 => Just(None),
        2 => Just(Some("10.0.0.0/30")),
        3 => Just(Some("10.0.1.0/29")),
        3 => Just(Some("10.0.2.0/24")),
    ];
    let memory = prop_oneof![Just(16u64 << 20), Just(8 << 30)];
    (prop::sample::select(&NODES[..]), subnet, memory, 0u32..3, 0u32..8).prop_map(
        |(name, subnet, memory_bytes, cards, sick)| {
            let card = |place: u32| Gpu {
                sick: (place == sick).then(|| "hot".into()),
                ..made::card(&format!("GPU-{place}"), "NVIDIA A2", 1_000)
            };
            let gpus = (0..cards).map(card).collect();
            Happening::Register(name, Inventory { memory_bytes, gpus, ..inventory(subnet) })
        },
    )
}

/// What users say of nodes.
const SAID: [&str; 12] = [
    r#"{"availability":"active"}"#,
    r#"{"availability":"active","taints":["ill-","gpu-"]}"#,
    r#"{"availability":"cordoned"}"#,
    r#"{"availability":"draining"}"#,
    r#"{"availability":"draining"}"#,
    r#"{"taints":["ill:NoExecute"]}"#,
    r#"{"taints":["gpu:NoSchedule"]}"#,
    r#"{"taints":["gpu:PreferNoSchedule","ill-"]}"#,
    r#"{"labels":{"zone":"a"},"price_per_hour":1}"#,
    r#"{"labels":{"zone":"b"},"watts":100}"#,
    r#"{"labels":{"zone":null},"cpu_percent":150}"#,
    r#"{"cpu_percent":50,"memory_percent":200}"#,
];

/// What users say of the whole cluster.
const POLICIES: [&str; 6] = [
    r#"{"policy":"binpack"}"#,
    r#"{"policy":"spread","cpu_percent":75}"#,
    r#"{"policy":"random"}"#,
    r#"{"policy":"best-fit","expression":null,"cpu_percent":100}"#,
    r#"{"policy":"custom","expression":"cpus_free - price"}"#,
    r#"{"memory_percent":50}"#,
];

/// What users wish of places.
const WISHES: [&str; 14] = [
    "{}",
    "{}",
    "{}",
    r#"{"priority":200}"#,
    r#"{"priority":300,"max_per_node":1}"#,
    r#"{"priority":10}"#,
    r#"{"priority":0,"tolerations":["*"]}"#,
    r#"{"tolerations":["gpu","ill:NoExecute"],"spread":["node.labels.zone"]}"#,
    r#"{"constraints":["node.labels.zone == a"]}"#,
    r#"{"constraints":["node.labels.zone != a"],"affinities":["node.labels.zone == b weight 100"]}"#,
    r#"{"constraints":["workload != aaa"]}"#,
    r#"{"constraints":["workload != bbb"],"priority":150}"#,
    r#"{"gang":true}"#,
    r#"{"gang":true,"priority":400,"max_per_node":2}"#,
];

fn a_port() -> impl Strategy<Value = PortSpec> {
    let host = prop_oneof![
        2 => Just(None),
        1 => prop::sample::select(&[80u16, 443, 20_000, 20_001][..]).prop_map(Some),
    ];
    let protocol = prop_oneof![3 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)];
    (host, 1u16..3, protocol).prop_map(|(host, container, protocol)| PortSpec { host, container, protocol })
}

/// Something that a container sees of a volume or of the node, or a file system in memory.
#[derive(Debug, Clone)]
enum Seen {
    Volume(&'static str, bool),
    Folder(&'static str),
    Memory,
}

fn a_mount() -> impl Strategy<Value = Seen> {
    prop_oneof![
        6 => (prop::sample::select(&VOLUMES[..]), any::<bool>()).prop_map(|(name, whole)| Seen::Volume(name, whole)),
        1 => prop::sample::select(&["/srv/media", "/srv/media:ro"][..]).prop_map(Seen::Folder),
        1 => Just(Seen::Memory),
    ]
}

fn mount(spec: &mut WorkloadSpec, number: usize, seen: Seen) {
    match seen {
        Seen::Volume(name, whole) => {
            let mount: Mount = format!("{name}:/m{number}").parse().unwrap();
            let Mount::Volume(mut volume) = mount else { panic!("`{name}` is a volume") };
            volume.subpath = (!whole).then(|| "a/b".to_owned());
            spec.mounts.push(Mount::Volume(volume));
        }
        Seen::Folder(path) => {
            let (path, rest) =
                path.split_once(':').map_or((path, String::new()), |(path, how)| (path, format!(":{how}")));
            spec.mounts.push(format!("{path}:/m{number}{rest}").parse().unwrap());
        }
        Seen::Memory => {
            let path = format!("/m{number}");
            spec.process.tmpfs.push(TmpfsMount { path, ..TmpfsMount::default() });
        }
    }
}

fn an_update() -> impl Strategy<Value = UpdateSpec> {
    let order = prop_oneof![Just(None), Just(Some(UpdateOrder::StartFirst)), Just(Some(UpdateOrder::StopFirst))];
    (order, 1u32..4).prop_map(|(order, parallel)| UpdateSpec {
        order,
        parallel,
        healthy_ms: 0,
        ..UpdateSpec::default()
    })
}

fn a_spec() -> impl Strategy<Value = WorkloadSpec> {
    let network =
        prop_oneof![6 => Just(NetworkMode::Bridge), 1 => Just(NetworkMode::Host), 1 => Just(NetworkMode::None)];
    let memory = prop_oneof![3 => Just(None), 1 => Just(Some(8u64 << 20)), 1 => Just(Some(64 << 20))];
    let node =
        prop_oneof![4 => Just(None), 2 => prop::sample::select(&NODES[..]).prop_map(Some), 1 => Just(Some("none"))];
    (
        prop::sample::select(&NAMES[..]),
        prop::sample::select(&["demo:1", "demo:2"][..]),
        0u32..5,
        prop::collection::vec(a_port(), 0..3),
        network,
        memory,
        node,
        prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(a_mount(), 1..4)],
        (
            prop::sample::select(&WISHES[..]),
            prop::sample::select(&[None, None, None, Some("1"), Some("vram=400MiB"), Some("2")][..]),
            prop::sample::select(&[None, None, Some(1_000), Some(2_500)][..]),
            prop_oneof![6 => Just(WorkloadKind::Service), 1 => Just(WorkloadKind::Job)],
            an_update(),
            prop_oneof![4 => Just((None, false)), 1 => Just((Some(OnNodeLoss::Wait), false)), 1 => Just((Some(OnNodeLoss::Reschedule), true))],
        ),
    )
        .prop_map(
            |(name, image, replicas, ports, network, memory_bytes, node, mounts, (wishes, gpus, cpu, kind, update, loss))| {
                let placement: PlacementSpec = serde_json::from_str(wishes).unwrap();
                let mut spec = WorkloadSpec {
                    replicas,
                    network,
                    placement,
                    kind,
                    update,
                    on_node_loss: loss.0,
                    exclusive: loss.1,
                    gpus: gpus.map(|gpus| gpus.parse().unwrap()),
                    resources: Resources {
                        memory_bytes,
                        memory_reserved_bytes: memory_bytes,
                        cpu_reserved_millis: cpu,
                        ..Resources::default()
                    },
                    node: node.map(|node| node.parse().unwrap()),
                    ..spec(name, image)
                };
                for (number, seen) in mounts.into_iter().enumerate() {
                    mount(&mut spec, number, seen);
                }
                // Only what a door would let pass.
                if network == NetworkMode::Bridge {
                    let mut seen = HashSet::new();
                    spec.ports = ports;
                    spec.ports.retain(|port| port.host.is_none() || seen.insert((port.host, port.protocol)));
                }
                spec.validate().unwrap();
                spec
            },
        )
}

fn happening() -> impl Strategy<Value = Happening> {
    let name = || prop::sample::select(&NAMES[..]);
    let action = prop::sample::select(&[PowerAction::Start, PowerAction::Stop, PowerAction::Restart][..]);
    let outcome = prop::sample::select(&[Outcome::Runs, Outcome::Runs, Outcome::BacksOff, Outcome::Finishes][..]);
    let mode = prop_oneof![
        4 => Just(PutMode::Replace { if_generation: None }),
        1 => Just(PutMode::Create),
        1 => (1u64..4).prop_map(|seen| PutMode::Replace { if_generation: Some(seen) }),
    ];
    prop_oneof![
        2 => a_node(),
        5 => (a_spec(), mode).prop_map(|(spec, mode)| Happening::Put(Box::new(spec), mode)),
        2 => (name(), action).prop_map(|(name, action)| Happening::Power(name, action)),
        1 => name().prop_map(Happening::Remove),
        1 => (prop::sample::select(&VOLUMES[..]), prop_oneof![
            2 => Just(None),
            1 => prop::sample::select(&NODES[..]).prop_map(Some),
        ]).prop_map(|(volume, node)| Happening::MakeVolume(volume, node)),
        1 => prop::sample::select(&VOLUMES[..]).prop_map(Happening::RemoveVolume),
        4 => (prop::sample::select(&NODES[..]), prop::sample::select(&SAID[..]))
            .prop_map(|(node, said)| Happening::Configure(node, said)),
        1 => prop::sample::select(&POLICIES[..]).prop_map(Happening::ConfigurePlacement),
        3 => (prop::sample::select(&NODES[..]), prop::sample::select(&HEALTHS[..]))
            .prop_map(|(node, health)| Happening::Hear(node, health)),
        2 => any::<u8>().prop_map(Happening::Move),
        4 => Just(Happening::Think),
        4 => Just(Happening::Commit),
        4 => (prop::sample::select(&NODES[..]), outcome, any::<u8>())
            .prop_map(|(node, outcome, mask)| Happening::Act(node, outcome, mask)),
    ]
}

fn happen(cluster: &mut Cluster, thoughts: &mut Vec<Plan>, happening: Happening) {
    let at_ms = cluster.now_ms();
    // Refusals are as good as anything here; `try_apply` checks what holds for them.
    match happening {
        Happening::Register(name, inventory) => drop(cluster.register_with(name, inventory)),
        Happening::Put(spec, mode) => {
            let command = cluster.put_command(*spec, mode);
            drop(cluster.try_apply(command));
        }
        Happening::Power(name, action) => {
            drop(cluster.try_apply(Command::PowerWorkload { name: name.parse().unwrap(), action, at_ms }));
        }
        Happening::Remove(name) => {
            drop(cluster.try_apply(Command::RemoveWorkload { name: name.parse().unwrap(), at_ms }));
        }
        Happening::MakeVolume(name, node) => {
            let server = BTreeMap::from(
                [("type", "nfs"), ("device", "nas.lan:/export"), ("o", "vers=4.2")].map(|(k, v)| (k.into(), v.into())),
            );
            let remote = name == VOLUMES[VOLUMES.len() - 1];
            let options = if remote { VolumeOptions::from_pairs(&server).unwrap() } else { VolumeOptions::default() };
            let node_id = node.filter(|_| !remote).map(node_id);
            let (name, labels) = (name.parse().unwrap(), BTreeMap::new());
            drop(cluster.try_apply(Command::CreateVolume { name, node_id, options, labels, at_ms }));
        }
        Happening::RemoveVolume(name) => {
            drop(cluster.try_apply(Command::RemoveVolume { name: name.parse().unwrap(), at_ms }));
        }
        Happening::Configure(node, said) => {
            let (name, changes) = (node.parse().unwrap(), serde_json::from_str(said).unwrap());
            drop(cluster.try_apply(Command::ConfigureNode { name, changes, at_ms }));
        }
        Happening::ConfigurePlacement(said) => {
            let changes = serde_json::from_str(said).unwrap();
            drop(cluster.try_apply(Command::ConfigurePlacement { changes, at_ms }));
        }
        Happening::Hear(node, health) => cluster.hear(node, health),
        Happening::Move(bits) => {
            let moves = some_moves(cluster, bits);
            drop(cluster.try_apply(Command::MoveInstances { moves, at_ms }));
        }
        Happening::Think => thoughts.push(cluster.think()),
        Happening::Commit if thoughts.is_empty() => {}
        Happening::Commit => drop(cluster.commit(thoughts.remove(0))),
        Happening::Act(node, outcome, mask) => {
            let known = NodeRow::by_id(&cluster.connection, node_id(node)).unwrap().is_some();
            if known {
                cluster.node_acts(node_id(node), outcome, |i| mask & (1 << (i % 8)) != 0);
            }
        }
    }
}

/// What the planner finds, or some instances each to some node, or none.
fn some_moves(cluster: &Cluster, bits: u8) -> Vec<InstanceMove> {
    let snapshot = query_snapshot(&cluster.connection).unwrap();
    if bits & 1 == 0 {
        return rebalance(&snapshot, 1 + usize::from(bits >> 6)).1;
    }
    let some = snapshot.instances.iter().enumerate().filter(|(i, _)| bits & (2 << (i % 6)) != 0);
    let moves = some.filter_map(|(i, instance)| {
        let workload = snapshot.workloads.iter().find(|workload| workload.id == instance.workload_id)?;
        let to = node_id(NODES[(i + usize::from(bits >> 6)) % NODES.len()]);
        let (instance_id, generation, from) = (instance.id, workload.generation, instance.node_id);
        (from != to && instance.desired == Desired::Running).then_some(InstanceMove {
            instance_id,
            generation,
            from,
            to,
        })
    });
    moves.collect()
}

/// What a cluster at rest owes its users.
fn assert_as_wanted(cluster: &Cluster) {
    let snapshot = query_snapshot(&cluster.connection).unwrap();
    for workload in &snapshot.workloads {
        let own: Vec<&InstanceRow> = snapshot.instances.iter().filter(|i| i.workload_id == workload.id).collect();
        for instance in &own {
            assert_eq!(instance.desired, workload.desired);
            assert!(instance.epoch >= workload.epoch, "an instance stays behind");
            assert!(instance.ordinal < workload.spec.replicas);
            assert_eq!(instance.moves_to, None, "an order to move has no end");
            // What works stays until its successor has a place, and when others failed.
            let reached = workload.pending.is_none() && workload.rollout.as_str() != "failed";
            if reached || is_made_of(instance, workload, &snapshot.nodes) {
                assert_made_of(instance, workload, &snapshot.nodes);
                assert_sees(instance, workload, &snapshot.volumes);
                assert_moved(&snapshot, workload, instance);
            }
            let report = instance.report.as_ref().expect("its node told of it");
            assert_eq!(report.epoch, instance.epoch);
            let word = report.state.as_ref().map_or("gone", |state| state.as_str());
            let fitting: &[&str] = match instance.desired {
                Desired::Running => &["running", "finished"],
                Desired::Stopped => &["stopped"],
                Desired::Removed => &[],
            };
            assert!(fitting.contains(&word), "{word} is not {:?}", instance.desired);
        }
        let ordinals: HashSet<u32> = own.iter().map(|instance| instance.ordinal).collect();
        assert_eq!(ordinals.len(), own.len(), "a copy exists twice");
        let missing = (0..workload.spec.replicas).filter(|n| own.iter().all(|i| i.ordinal != *n)).count();
        match (&workload.pending, workload.desired) {
            (_, Desired::Removed) => panic!("a removed workload is still there"),
            (reason, Desired::Stopped) => assert_eq!(*reason, None),
            (None, Desired::Running) => assert_eq!(missing, 0, "a copy is missing without a reason"),
            (Some(reason), Desired::Running) => {
                let outdated = own.iter().any(|instance| !is_made_of(instance, workload, &snapshot.nodes));
                assert!(missing > 0 || outdated, "nothing is missing, and yet: {reason}");
                let (own, gang) = (workload.spec.placement.priority, workload.spec.placement.gang);
                for node in &snapshot.nodes {
                    // Nobody would make room, either. Of a gang one may have a place, and others none.
                    for least in [0, own] {
                        let taken = could_take(&snapshot, node, workload, least);
                        assert!(!taken || (gang && missing > 1), "untrue on {} from {least}: {reason}", node.name);
                    }
                    assert!(reason.contains(&format!("{}: ", node.name)), "{} is not in: {reason}", node.name);
                }
            }
        }
    }
}

fn is_made_of(instance: &InstanceRow, workload: &WorkloadRow, nodes: &[NodeRow]) -> bool {
    let node = nodes.iter().find(|node| node.id == instance.node_id).unwrap();
    crate::schedule::serves(&instance.container, &workload.spec, node)
}

/// It mounts what was asked for, and lies where its data does.
fn assert_sees(instance: &InstanceRow, workload: &WorkloadRow, volumes: &[VolumeRow]) {
    assert_eq!(instance.container.mounts, workload.spec.mounts);
    assert_eq!(instance.container.process.tmpfs, workload.spec.process.tmpfs);
    for used in workload.spec.mounts.iter().filter_map(Mount::volume) {
        let volume = volumes.iter().find(|volume| volume.name == used.name);
        let volume = volume.unwrap_or_else(|| panic!("volume `{}` was never made", used.name));
        if volume.options.is_remote() {
            assert_eq!(volume.node_id, None, "a server's volume lies on no node");
        } else {
            assert_eq!(volume.node_id, Some(instance.node_id), "it runs away from its data");
        }
    }
}

fn assert_made_of(instance: &InstanceRow, workload: &WorkloadRow, nodes: &[NodeRow]) {
    let node = nodes.iter().find(|node| node.id == instance.node_id).unwrap();
    assert!(workload.spec.node.as_ref().is_none_or(|name| *name == node.name), "it runs beside its pin");
    assert_eq!(instance.container.image, workload.spec.image);
    assert_eq!(instance.container.resources, workload.spec.resources);
    match (&instance.container.network, workload.spec.network) {
        (NetworkOrder::Host, NetworkMode::Host) | (NetworkOrder::None, NetworkMode::None) => {}
        (NetworkOrder::Bridge { address, ports, .. }, NetworkMode::Bridge) => {
            if let Some(subnet) = node.inventory.subnet {
                assert!(subnet.contains(*address) && *address != subnet.gateway());
            }
            assert_eq!(ports.len(), workload.spec.ports.len());
            for (have, want) in ports.iter().zip(&workload.spec.ports) {
                assert_eq!((have.container, have.protocol), (want.container, want.protocol));
                match want.host {
                    Some(host) => assert_eq!(have.host, host),
                    None => assert!((20_000..30_000).contains(&have.host)),
                }
            }
        }
        other => panic!("another network than wanted: {other:?}"),
    }
}

pub(super) fn cases() -> ProptestConfig {
    let full = std::env::var_os("TOFT_TEST_FULL").is_some_and(|value| value == "1");
    ProptestConfig { cases: if full { 100_000 } else { 2_000 }, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn every_past_leads_to_rest(past in prop::collection::vec(happening(), 0..40)) {
        let mut cluster = Cluster::new();
        let mut thoughts = Vec::new();
        for happening in past {
            happen(&mut cluster, &mut thoughts, happening);
        }
        for node in NODES {
            cluster.hear(node, NodeHealth::Ready);
        }
        // What was thought long ago arrives at last.
        for late in thoughts {
            cluster.commit(late);
        }
        cluster.settle();
        assert_as_wanted(&cluster);
        prop_assert!(cluster.think().is_empty());
    }
}
