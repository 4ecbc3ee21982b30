//! How fast the placement engine decides on 5,000 nodes with 50,000 instances: measured by `bench/run.sh schedule`.
//! Prints a JSON object for each policy, one a line.

use std::time::Instant;

use toft_model::schedule::place::{Ask, Card, Fleet, Gpus, Kind, Kinds, Mix, Node, Place, Policy, Random, Spot};

const NODES: usize = 5_000;
const INSTANCES: usize = 50_000;
const ARRIVALS: usize = 2_000;

/// 64 requests that are made again and again.
fn asks() -> Vec<Ask> {
    let mut random = Random::new(1);
    let mut ask = || {
        let gpus = match random.below(8) {
            0 => Gpus::Whole(1),
            1 => Gpus::Share([160, 320, 470, 810][random.below(4)]),
            _ => Gpus::None,
        };
        let cpu_millis = 100 * (1 + random.below(40) as u32);
        Ask { cpu_millis, memory_bytes: (1 + random.below(16) as u64) << 28, gpus, kinds: Kinds::ANY }
    };
    (0..64).map(|_| ask()).collect()
}

fn fleet(policy: Policy, asks: &[Ask]) -> Fleet {
    let mut fleet = Fleet::new(policy, &Mix::new(asks.iter().map(|ask| (*ask, 1))), 0);
    for i in 0..NODES {
        let (cores, gpus, kind) = [(96, 8, 0), (104, 2, 1), (64, 4, 2), (32, 1, 3)][i % 4];
        let kind = Kind::new(kind).map(|kind| Card::idle(kind, 1000));
        let cards = kind.into_iter().cycle().take(gpus).collect();
        fleet.add(Node::idle(cores * 1000, 256 << 30, 1000, cards));
    }
    fleet
}

/// Decisions a second while instances come, and while as many come as go.
fn rates(fleet: &mut Fleet, asks: &[Ask], random: &mut Random, held: &mut Vec<(Ask, Spot)>) -> (f64, f64) {
    let began = Instant::now();
    for _ in 0..INSTANCES {
        let ask = asks[random.below(asks.len())];
        held.extend(fleet.place(&ask, None).map(|spot| (ask, spot)));
    }
    let filling = INSTANCES as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    for _ in 0..INSTANCES {
        let (gone, spot) = held.swap_remove(random.below(held.len()));
        fleet.give_back(&gone, spot);
        let ask = asks[random.below(asks.len())];
        held.extend(fleet.place(&ask, None).map(|spot| (ask, spot)));
    }
    (filling, INSTANCES as f64 / began.elapsed().as_secs_f64())
}

/// The median and the 99th percentile, in microseconds, of one arrival.
fn arrival(fleet: &mut Fleet, random: &mut Random, mut ask: impl FnMut(&mut Random, usize) -> Ask) -> (f64, f64) {
    let places: Vec<Place> = fleet.places().collect();
    let mut taken = Vec::with_capacity(ARRIVALS);
    for i in 0..ARRIVALS {
        // Nodes change between arrivals, as they do when reports come in.
        let place = places[random.below(places.len())];
        if let Some(node) = fleet.node(place).cloned() {
            fleet.change(place, node);
        }
        let ask = ask(random, i);
        let began = Instant::now();
        let spot = fleet.place(&ask, None);
        taken.push(began.elapsed().as_secs_f64() * 1e6);
        if let Some(spot) = spot {
            fleet.give_back(&ask, spot);
        }
    }
    taken.sort_by(f64::total_cmp);
    (taken[ARRIVALS / 2], taken[ARRIVALS * 99 / 100])
}

fn main() {
    let asks = asks();
    for policy in [Policy::Binpack, Policy::Fgd, Policy::Balanced] {
        let (mut fleet, mut random, mut held) = (fleet(policy, &asks), Random::new(2), Vec::new());
        let (filling, changing) = rates(&mut fleet, &asks, &mut random, &mut held);
        let known = arrival(&mut fleet, &mut random, |random, _| asks[random.below(asks.len())]);
        // A request that nobody made before: every node is scored.
        let new =
            |random: &mut Random, i: usize| Ask { cpu_millis: 10_000 + i as u32, ..asks[random.below(asks.len())] };
        let new = arrival(&mut fleet, &mut random, new);
        println!(
            "{{\"policy\":\"{policy}\",\"nodes\":{NODES},\"instances\":{},\"filling_per_second\":{filling:.0},\
             \"changing_per_second\":{changing:.0},\"known_p50_us\":{:.1},\"known_p99_us\":{:.1},\"new_p50_us\":{:.1},\
             \"new_p99_us\":{:.1}}}",
            held.len(),
            known.0,
            known.1,
            new.0,
            new.1
        );
    }
}
