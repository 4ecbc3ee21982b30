//! What holds whatever the cluster looks like: drains miss no copy, reasons are true, late plans book nothing twice.

use proptest::prelude::*;

use super::{
    convergence::cases,
    placing::{reserving, wishing},
};
use crate::{
    instance::Desired,
    schedule::{NodeVerdict, Obstacle, explain},
    state::{
        InstanceRow, query_snapshot,
        tests::cluster::{Cluster, Outcome, node_id},
    },
    workload::WorkloadSpec,
};

const NODES: [&str; 4] = ["one", "two", "six", "ten"];
const NAMES: [&str; 3] = ["aaa", "bbb", "ccc"];

/// Services with so many copies that reserve so many cores.
fn services() -> impl Strategy<Value = Vec<(u32, u32)>> {
    prop::collection::vec((1u32..4, 0u32..3), NAMES.len())
}

fn filled(nodes: &[&str], services: &[(u32, u32)]) -> Cluster {
    let mut cluster = Cluster::new();
    for node in nodes {
        cluster.register(node, None);
    }
    for (name, (replicas, cores)) in NAMES.iter().zip(services) {
        let spec = if *cores == 0 { wishing(name, "{}") } else { reserving(name, *cores, "{}") };
        cluster.put(WorkloadSpec { replicas: *replicas, ..spec });
    }
    cluster.settle();
    cluster
}

/// Copies of each service that are up and are not to go, by name.
fn up(cluster: &Cluster) -> Vec<usize> {
    let is_up = |one: &&InstanceRow| {
        let state = one.report.as_ref().and_then(|report| report.state.as_ref());
        one.desired == Desired::Running && state.is_some_and(|state| state.as_str() == "running")
    };
    let instances = cluster.instances();
    let of = |name: &&str| {
        let id = cluster.workload(name).unwrap().id;
        instances.iter().filter(|one| one.workload_id == id).filter(is_up).count()
    };
    NAMES.iter().map(of).collect()
}

fn verdict(cluster: &Cluster, node: &str) -> NodeVerdict {
    let told = explain(&query_snapshot(&cluster.connection).unwrap(), &"new".parse().unwrap()).unwrap();
    told.nodes.into_iter().find(|verdict| verdict.node == node).unwrap()
}

/// Does what the verdict on `node` says, until nothing is left of it or `new` has a place; gives what was no remedy.
fn heal(cluster: &mut Cluster, node: &str, placed: &dyn Fn(&Cluster) -> bool) -> Option<String> {
    while let Some(refused) = verdict(cluster, node).refused.into_iter().next() {
        match refused.filter.as_str() {
            "availability" => cluster.configure(node, r#"{"availability":"active"}"#),
            "taints" => {
                let key = refused.message.split(['`', ':']).nth(1).unwrap();
                cluster.configure(node, &format!(r#"{{"taints":["{key}-"]}}"#));
            }
            "constraints" if refused.message.contains("zone") => {
                cluster.configure(node, r#"{"labels":{"zone":"a"}}"#);
            }
            "constraints" => {
                cluster.remove("aaa");
                cluster.settle();
            }
            "cpu" => cluster.configure(node, r#"{"cpu_percent":1000}"#),
            other => return Some(format!("nothing is known of {other}")),
        }
        if placed(cluster) {
            return None;
        }
        if verdict(cluster, node).refused.contains(&refused) {
            return Some(format!("{refused:?} was healed"));
        }
    }
    None
}

proptest! {
    #![proptest_config(cases())]

    /// However the scheduler and the nodes take turns, as many copies run as before.
    #[test]
    fn drains_miss_no_copy(
        services in services(),
        turns in prop::collection::vec((0usize..5, any::<u8>()), 0..24),
        drained in prop::collection::vec((0usize..4, any::<bool>()), 1..4),
    ) {
        let mut cluster = filled(&NODES, &services);
        let before = up(&cluster);
        let mut steps = drained.iter();
        for (i, (who, mask)) in turns.into_iter().enumerate() {
            if i % 5 == 0 && let Some((node, on)) = steps.next() {
                let said = if *on { r#"{"availability":"draining"}"# } else { r#"{"availability":"active"}"# };
                cluster.configure(NODES[*node], said);
            }
            match NODES.get(who) {
                Some(node) => drop(cluster.node_acts(node_id(node), Outcome::Runs, |i| mask & (1 << (i % 8)) != 0)),
                None => drop(cluster.schedule()),
            }
            let now = up(&cluster);
            prop_assert!(now.iter().zip(&before).all(|(now, before)| now >= before), "{before:?} became {now:?}");
        }
        cluster.settle();
        // What found no place at first may have found one.
        let now = up(&cluster);
        prop_assert!(now.iter().zip(&before).all(|(now, before)| now >= before), "{before:?} ended as {now:?}");
    }

    /// Healing what a node's verdict names, one after the other, makes the instance fit there.
    #[test]
    fn reasons_are_true(
        services in services(),
        said in prop::collection::vec((0usize..2, prop::sample::select(&[
            r#"{"availability":"cordoned"}"#, r#"{"availability":"draining"}"#, r#"{"taints":["a:NoSchedule","b:NoExecute"]}"#,
            r#"{"labels":{"zone":"a"}}"#, r#"{"cpu_percent":50}"#,
        ][..])), 0..5),
        cores in 1u32..8,
        most in 1u32..3,
    ) {
        let mut cluster = filled(&NODES[..2], &services);
        for (node, said) in said {
            cluster.configure(NODES[node], said);
        }
        let wishes = format!(r#"{{"constraints":["node.labels.zone == a","workload != aaa"],"max_per_node":{most},"priority":0}}"#);
        cluster.put(reserving("new", cores, &wishes));
        cluster.settle();
        let id = cluster.workload("new").unwrap().id;
        let placed = |cluster: &Cluster| cluster.instances().iter().any(|one| one.workload_id == id);
        if placed(&cluster) {
            return Ok(());
        }
        for node in &NODES[..2] {
            prop_assert!(!verdict(&cluster, node).refused.is_empty(), "it waits, and {node} could take it");
        }
        // Others that waited, too, may take what was healed.
        for _ in 0..4 {
            if let Some(lie) = heal(&mut cluster, NODES[0], &placed) {
                prop_assert!(false, "{lie}");
            }
            cluster.settle();
            if placed(&cluster) {
                return Ok(());
            }
        }
        prop_assert!(false, "nothing kept it off any more");
    }

    /// Two schedulers look at the same state, and their plans come in any order: what both gave away is given once.
    #[test]
    fn late_plans_book_nothing_twice(
        services in services(),
        late in prop::collection::vec(any::<bool>(), 1..6),
        scale in prop::collection::vec((0usize..3, 1u32..6), 1..6),
    ) {
        let mut cluster = filled(&NODES[..2], &services);
        let mut thoughts = Vec::new();
        for ((which, replicas), swap) in scale.into_iter().zip(late.into_iter().cycle()) {
            let row = cluster.workload(NAMES[which]).unwrap();
            cluster.put(WorkloadSpec { replicas, ..row.spec });
            thoughts.push(cluster.think());
            thoughts.push(cluster.think());
            if swap {
                thoughts.reverse();
            }
            // What holds after every command is checked by the cluster.
            cluster.commit(thoughts.remove(0));
        }
        for thought in thoughts {
            cluster.commit(thought);
        }
        cluster.settle();
    }
}

#[test]
fn every_obstacle_tells_its_filter_its_numbers_and_its_remedy() {
    let obstacle = Obstacle::Cpu { wanted: 2_500, left: 1_000 };
    let (web, one) = ("web".parse().unwrap(), "one".parse().unwrap());
    assert_eq!(obstacle.filter(), "cpu");
    assert_eq!(obstacle.to_string(), "2.5 cores are to be reserved and 1 are left");
    assert_eq!(obstacle.remedy(&web, &one), "1.5 cores more free, or reserved less");
    assert_eq!(Obstacle::Cordoned.remedy(&web, &one), "toft node uncordon one");
}
