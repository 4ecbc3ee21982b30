//! Replays of generated traces.

use super::*;

const MODELS: [&str; 3] = ["big", "old", "small"];

/// So many nodes of three models, and pods that together ask for about nine tenths of their GPUs.
fn generated(nodes: u64, seed: u64) -> (Vec<TraceNode>, Vec<TracePod>) {
    let mut random = Random::new(seed);
    let node = |i: u64| {
        let (cpu_millis, gpus, model) = [(96_000, 8, "big"), (64_000, 2, "old"), (104_000, 2, "small")][i as usize % 3];
        TraceNode { cpu_millis, memory_bytes: 512 << 30, gpus, model: model.into() }
    };
    let nodes: Vec<TraceNode> = (0..nodes).map(node).collect();
    let mut left = nodes.iter().map(|node| i64::from(node.gpus) * 900).sum::<i64>();
    let mut pods = Vec::new();
    while left > 0 {
        let (gpus, gpu_millis) =
            [(0, 0), (1, 810), (1, 470), (1, 320), (1, 1000), (1, 1000), (1, 1000), (2, 1000)][random.below(8)];
        let cpu_millis = [3_000, 8_000, 11_300, 12_000][random.below(4)];
        let models = if random.below(5) == 0 { MODELS[random.below(3)] } else { "" };
        pods.push(TracePod { cpu_millis, memory_bytes: 8 << 30, gpus, gpu_millis, models: models.into() });
        left -= i64::from(gpus) * i64::from(gpu_millis);
    }
    (nodes, pods)
}

fn trace() -> Trace {
    let (nodes, pods) = generated(30, 7);
    Trace::new(&nodes, &pods).unwrap()
}

fn run(policy: Policy, seed: u64) -> Outcome {
    Replay { policy, seed, until_percent: 130, moves: 0 }.run(&trace())
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for policy in Policy::ALL {
        assert_eq!(run(policy, 3), run(policy, 3), "{policy}");
    }
    assert_ne!(run(Policy::Fgd, 3), run(Policy::Fgd, 4));
}

#[test]
fn everything_is_placed_while_there_is_room() {
    for policy in Policy::ALL {
        let outcome = run(policy, 1);
        assert_eq!(outcome.points.len(), 131);
        // Who fills node after node takes early what others ask for by name.
        let all_until = if matches!(policy, Policy::Fgd | Policy::Balanced) { 60 } else { 15 };
        for (percent, point) in outcome.points.iter().enumerate().take(all_until + 1) {
            assert!((point.allocation - percent as f64).abs() < 2.0, "{policy}, {percent} %: {point:?}");
        }
        assert!(outcome.points.windows(2).all(|pair| pair[0].allocation <= pair[1].allocation + 1e-9), "{policy}");
        assert!(outcome.points.iter().all(|point| (0.0..=100.0).contains(&point.fragmentation)), "{policy}");
        let last = outcome.points[130].allocation;
        assert!((80.0..=100.0).contains(&last) && outcome.dropped.1 > 0, "{policy}: {last}");
    }
}

#[test]
fn who_looks_ahead_places_more() {
    let mean = |policy| (0..10).map(|seed| run(policy, seed).points[130].allocation).sum::<f64>() / 10.0;
    let (random, fgd, balanced) = (mean(Policy::Random), mean(Policy::Fgd), mean(Policy::Balanced));
    assert!(random + 1.0 < fgd && fgd < balanced, "random {random}, FGD {fgd}, balanced {balanced}");
}

#[test]
fn the_mix_is_what_is_frequent() {
    let pod = |cpu_millis, models: &str| TracePod {
        cpu_millis,
        memory_bytes: 1,
        gpus: 1,
        gpu_millis: 1000,
        models: models.into(),
    };
    let node = TraceNode { cpu_millis: 10, memory_bytes: 10, gpus: 1, model: "a".into() };
    let mut pods = vec![pod(1, ""); 90];
    pods.extend([pod(2, "a|b"), pod(2, "a|b"), pod(3, "b"), pod(3, "b"), pod(3, "b")]);
    pods.extend([pod(4, ""), pod(5, ""), pod(6, ""), pod(7, ""), pod(8, "")]);
    let trace = Trace::new(std::slice::from_ref(&node), &pods).unwrap();
    assert_eq!((trace.classes(), trace.gpu_millis()), ((8, 3), 1000));
    let asks: Vec<(u32, u32)> = trace.mix().asks().iter().map(|(ask, count)| (ask.cpu_millis, *count)).collect();
    assert_eq!(asks, [(1, 90), (3, 3), (2, 2)]);
}

#[test]
fn what_is_no_trace_is_refused() {
    let (nodes, pods) = generated(3, 1);
    let none = TraceNode { gpus: 0, ..nodes[0].clone() };
    assert_eq!(Trace::new(&[none], &pods).unwrap_err(), TraceError::NoGpus);
    assert_eq!(Trace::new(&nodes, &[]).unwrap_err(), TraceError::NoPods);
    let strange = TracePod { gpus: 2, gpu_millis: 500, ..pods[0].clone() };
    let refused = Trace::new(&nodes, &[pods[0].clone(), strange]).unwrap_err();
    assert_eq!(refused, TraceError::Gpus { pod: 1, gpus: 2, gpu_millis: 500 });
    let many = TracePod { models: (0..80).map(|i| i.to_string()).collect::<Vec<_>>().join("|"), ..pods[0].clone() };
    assert_eq!(Trace::new(&nodes, &[many]).unwrap_err(), TraceError::Models(83));
}

#[test]
fn moves_are_counted_and_lose_nothing() {
    let trace = trace();
    let run = |moves| Replay { policy: Policy::BestFit, seed: 5, until_percent: 130, moves }.run(&trace);
    let (without, with) = (run(0), run(2));
    assert!(without.moves == 0 && with.moves > 0);
    assert!(with.points.windows(2).all(|pair| pair[0].allocation <= pair[1].allocation + 1e-9));
    assert_eq!(with, run(2));
}
