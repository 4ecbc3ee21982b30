//! What users and nodes say of cards.

use super::cluster::{Cluster, inventory, node_id, spec};
use crate::{
    gpu::{Gpu, GpuPolicy, GpuSettings, made},
    instance::Desired,
    node::Inventory,
    state::{Command, NodeRow, RefusalKind},
};

fn card(id: &str, sick: Option<&str>) -> Gpu {
    Gpu { sick: sick.map(str::to_owned), ..made::card(id, "RTX", 8_192) }
}

fn register(cluster: &mut Cluster, gpus: Vec<Gpu>) {
    cluster.register_with("box", Inventory { gpus, ..inventory(Some("10.210.0.0/24")) });
}

fn configure(gpu: &str, policy: Option<GpuPolicy>, cordoned: Option<bool>) -> Command {
    Command::ConfigureGpu { node_id: node_id("box"), gpu: gpu.parse().unwrap(), policy, cordoned, at_ms: 7 }
}

fn settings(cluster: &Cluster, gpu: &str) -> GpuSettings {
    NodeRow::by_id(&cluster.connection, node_id("box")).unwrap().unwrap().gpus.of(&gpu.parse().unwrap())
}

#[test]
fn settings_are_kept_apart_from_what_a_node_registers() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.refused(configure("GPU-1", None, Some(true))), RefusalKind::NotFound);
    register(&mut cluster, vec![card("GPU-1", None), card("GPU-2", None)]);
    cluster.apply(configure("GPU-1", Some(GpuPolicy::Exclusive), None));
    cluster.apply(configure("GPU-1", None, Some(true)));
    let both = GpuSettings { policy: GpuPolicy::Exclusive, cordoned: true };
    assert_eq!((settings(&cluster, "GPU-1"), settings(&cluster, "GPU-2")), (both, GpuSettings::default()));
    register(&mut cluster, vec![card("GPU-2", None)]);
    register(&mut cluster, vec![card("GPU-1", None), card("GPU-2", None)]);
    assert_eq!(settings(&cluster, "GPU-1"), both, "they outlive the card's absence");
    cluster.apply(configure("GPU-1", Some(GpuPolicy::Shared), Some(false)));
    assert_eq!(settings(&cluster, "GPU-1"), GpuSettings::default());
    let before = cluster.story().len();
    cluster.apply(configure("GPU-1", Some(GpuPolicy::Shared), None));
    assert_eq!(cluster.story().len(), before, "no news");
    for number in 0..1_024 {
        cluster.apply(configure(&format!("GPU-x{number}"), None, Some(true)));
    }
    assert_eq!(cluster.refused(configure("GPU-y", None, Some(true))), RefusalKind::Full);
}

#[test]
fn what_becomes_of_cards_is_told_and_moves_instances() {
    let mut cluster = Cluster::new();
    register(&mut cluster, vec![card("GPU-1", None), card("GPU-2", None)]);
    let mut llm = spec("llm", "demo");
    llm.gpus = Some("1".parse().unwrap());
    cluster.put(llm);
    cluster.schedule();
    assert_eq!(cluster.only_instance().container.gpus[0].gpu.as_str(), "GPU-1");
    cluster.apply(configure("GPU-1", None, Some(true)));
    cluster.schedule();
    assert_eq!(cluster.only_instance().desired, Desired::Running, "what runs there runs on");
    cluster.apply(configure("GPU-1", None, Some(false)));
    register(&mut cluster, vec![card("GPU-1", Some("Xid 79")), card("GPU-2", None)]);
    cluster.schedule();
    assert_eq!(cluster.only_instance().desired, Desired::Removed);
    register(&mut cluster, vec![card("GPU-1", None)]);
    let story: Vec<String> = cluster.story().into_iter().filter(|line| line.contains("(RTX)")).collect();
    assert_eq!(
        story,
        [
            "node/box: GPU GPU-1 (RTX) is there",
            "node/box: GPU GPU-2 (RTX) is there",
            "node/box: GPU GPU-1 (RTX) takes no work: Xid 79",
            "node/box: GPU GPU-1 (RTX) takes work again",
            "node/box: GPU GPU-2 (RTX) is there no more",
        ]
    );
}
