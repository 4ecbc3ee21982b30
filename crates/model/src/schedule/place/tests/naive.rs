//! The same decisions by the definitions, without tables, rankings or memory.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// `W F_n(M)` in thousandths.
pub(super) fn fragmentation(node: &Node, mix: &Mix) -> i64 {
    let idle = |card: &Card| i64::from(card.thousandths());
    let all: i64 = node.cards.iter().map(idle).sum();
    let of = |ask: &Ask| {
        let suits = |card: &&Card| {
            ask.kinds.allow(card.kind)
                && match ask.gpus {
                    Gpus::None => false,
                    Gpus::Share(units) => card.free >= units,
                    Gpus::Whole(_) | Gpus::All => card.free == card.capacity,
                }
        };
        let wanted = match ask.gpus {
            Gpus::None => return all,
            Gpus::Share(_) | Gpus::All => 1,
            Gpus::Whole(count) => usize::from(count),
        };
        if node.cpu_free < ask.cpu_millis || node.cards.iter().filter(suits).count() < wanted {
            return all;
        }
        node.cards.iter().filter(|card| !suits(card)).map(idle).sum()
    };
    mix.asks().iter().map(|(ask, weight)| i64::from(*weight) * of(ask)).sum()
}

/// The cards that `ask` can have, in the order in which they are tried.
fn offers(node: &Node, ask: &Ask) -> Vec<CardSet> {
    let allowed = |place: &usize| ask.kinds.allow(node.cards[*place].kind);
    let places: Vec<usize> = (0..node.cards.len()).filter(allowed).collect();
    let whole = |wanted: usize| {
        let idle = places.iter().copied().filter(|place| node.cards[*place].free == node.cards[*place].capacity);
        let cards: CardSet = idle.take(wanted).collect();
        if cards.len() == wanted { vec![cards] } else { Vec::new() }
    };
    match ask.gpus {
        Gpus::None => vec![CardSet::NONE],
        Gpus::Share(units) => {
            let fit = places.iter().copied().filter(|place| node.cards[*place].free >= units);
            fit.map(|place| CardSet::from_iter([place])).collect()
        }
        Gpus::Whole(count) => whole(count.into()),
        Gpus::All => whole(places.len().max(1)),
    }
}

/// The node after it gave `cards` to `ask`.
pub(super) fn after(node: &Node, ask: &Ask, cards: CardSet) -> Node {
    let mut node = node.clone();
    node.cpu_free -= ask.cpu_millis;
    node.memory_free -= ask.memory_bytes;
    node.slots_free -= 1;
    for place in cards.iter() {
        let card = &mut node.cards[place];
        card.free -= if let Gpus::Share(units) = ask.gpus { units } else { card.free };
    }
    node
}

pub(super) fn fits(node: &Node, ask: &Ask) -> bool {
    let room = node.cpu_free >= ask.cpu_millis && node.memory_free >= ask.memory_bytes && node.slots_free > 0;
    room && !offers(node, ask).is_empty()
}

/// What scores know of all nodes together.
#[derive(Debug, Clone, Default)]
pub(super) struct Whole {
    /// CPU of the largest node there ever was.
    pub(super) cpu: f64,
    /// Thousandths of cards of the node with most.
    pub(super) cards: f64,
    /// All cards.
    pub(super) supply: BTreeMap<(Kind, u32), u64>,
}

/// CPU in thousandths that the mix needs for each card, and for each kind its price in thousandths.
fn market(mix: &Mix, fleet: &Whole) -> (i64, BTreeMap<Kind, i64>) {
    let (mut cpu, mut wanted, mut load) = (0.0, 0.0, BTreeMap::new());
    for (ask, weight) in mix.asks() {
        let weight = f64::from(*weight);
        let allowed: Vec<_> = fleet.supply.iter().filter(|((kind, _), _)| ask.kinds.allow(*kind)).collect();
        let count: u64 = allowed.iter().map(|(_, count)| **count).sum();
        if count == 0 || ask.gpus == Gpus::None {
            continue;
        }
        let of_one = |((_, capacity), count): &(&(Kind, u32), &u64)| match ask.gpus {
            Gpus::Share(units) => (f64::from(units) / f64::from(*capacity)).min(1.0) * **count as f64,
            _ => **count as f64,
        };
        let each = match ask.gpus {
            Gpus::Whole(cards) => f64::from(cards),
            _ => allowed.iter().map(of_one).sum::<f64>() / count as f64,
        };
        cpu += weight * f64::from(ask.cpu_millis);
        wanted += weight * each;
        let kinds: BTreeSet<Kind> = allowed.iter().map(|((kind, _), _)| *kind).collect();
        for kind in kinds {
            *load.entry(kind).or_insert(0.0) += weight * each / count as f64;
        }
    }
    if wanted == 0.0 {
        return (0, BTreeMap::new());
    }
    let average = wanted / fleet.supply.values().sum::<u64>() as f64;
    let price = |load: f64| (load / average * 1000.0).round() as i64;
    ((cpu / wanted).round() as i64, load.into_iter().map(|(kind, load)| (kind, price(load))).collect())
}

fn balanced(node: &Node, ask: &Ask, mix: &Mix, offers: &[CardSet], fleet: &Whole) -> (f64, CardSet) {
    let weight: i64 = mix.asks().iter().map(|(_, weight)| i64::from(*weight)).sum();
    let (ratio, prices) = market(mix, fleet);
    let idle = |node: &Node| node.cards.iter().map(|card| i64::from(card.thousandths())).sum::<i64>();
    // In sixteenths of a thousandth of a card.
    let imbalance = |node: &Node| match ratio {
        0 => 0,
        ratio => (16 * idle(node) - 16_000 * i64::from(node.cpu_free) / ratio).abs(),
    };
    let mut best = (f64::MIN, CardSet::NONE);
    for cards in offers {
        let left = after(node, ask, *cards);
        let fall = 16 * (fragmentation(node, mix) - fragmentation(&left, mix));
        let taken = |place: usize| i64::from(node.cards[place].thousandths() - left.cards[place].thousandths());
        let price = |place: usize| prices.get(&node.cards[place].kind).copied().unwrap_or(0);
        let cost: i64 = cards.iter().map(|place| taken(place) * price(place)).sum();
        let score = fall.div_euclid(weight.max(1)) + imbalance(node) - imbalance(&left) - (16 * cost).div_euclid(2_000);
        if score as f64 > best.0 {
            best = (score as f64, *cards);
        }
    }
    best
}

/// The score of a node that fits, and its cards.
fn judge(policy: Policy, node: &Node, ask: &Ask, mix: &Mix, fleet: &Whole) -> (f64, CardSet) {
    let idle = |node: &Node| f64::from(node.cards.iter().map(Card::thousandths).sum::<u32>());
    let offers = offers(node, ask);
    let tightest = |cards: &&CardSet| cards.iter().map(|place| node.cards[place].free).sum::<u32>();
    let chosen =
        *if matches!(ask.gpus, Gpus::Share(_)) { offers.iter().min_by_key(tightest) } else { offers.first() }.unwrap();
    let left = after(node, ask, chosen);
    let cpu = (f64::from(node.cpu_free), f64::from(left.cpu_free));
    let cards = (idle(node), idle(&left));
    // What is an integer by the definition shall not fall below it by rounding.
    let floor = |score: f64| (score + 1e-9).floor();
    let fullness = || {
        let taken = |free: u64, all: u64| 10_000 - free * 10_000 / all.max(1);
        let all = node.cards.len() as u64 * 1000;
        let gpus = if ask.gpus == Gpus::None { 0 } else { taken(cards.1 as u64, all) };
        let memory = taken(left.memory_free >> 20, left.memory_bytes >> 20);
        let most = gpus.max(memory).max(taken(left.cpu_free.into(), left.cpu_millis.into()));
        most as f64 * 65_536.0 + f64::from(node.instances())
    };
    let score = match policy {
        Policy::Random => 0.0,
        Policy::Spread => -fullness(),
        Policy::Binpack => fullness(),
        Policy::BestFit => floor(100.0 * (1.0 - 0.5 * cpu.1 / fleet.cpu - 0.5 * cards.1 / fleet.cards)).max(0.0),
        Policy::DotProd => {
            let part = |now: f64, then: f64, most: f64| (now / most) * ((now - then) / most);
            (100.0 * (1.0 - (part(cpu.0, cpu.1, fleet.cpu) + part(cards.0, cards.1, fleet.cards)) / 2.0))
                .max(0.0)
                .floor()
        }
        Policy::GpuPacking => gpu_packing(node, ask),
        Policy::Fgd => return gradient(node, ask, mix, &offers),
        Policy::Balanced => return balanced(node, ask, mix, &offers, fleet),
    };
    (score, chosen)
}

fn gpu_packing(node: &Node, ask: &Ask) -> f64 {
    let idle = |card: &&Card| card.free == card.capacity;
    let f = node.cards.iter().filter(idle).count() as f64;
    if ask.gpus == Gpus::None {
        return 0.0;
    }
    if f as usize == node.cards.len() {
        return (33.0 - f).max(f);
    }
    let Gpus::Share(units) = ask.gpus else {
        let wanted = offers(node, ask)[0].len() as f64;
        return (50.0 - wanted).max(33.0);
    };
    let fit = node.cards.iter().filter(|card| ask.kinds.allow(card.kind) && card.free >= units);
    let tightest = fit.min_by_key(|card| card.thousandths()).unwrap();
    if idle(&tightest) { 49.0 } else { f64::from(100 - tightest.thousandths() / 10 / 10).max(50.0) }
}

fn gradient(node: &Node, ask: &Ask, mix: &Mix, offers: &[CardSet]) -> (f64, CardSet) {
    let weight: i64 = mix.asks().iter().map(|(_, weight)| i64::from(*weight)).sum();
    let mut best = (-1.0, CardSet::NONE);
    for cards in offers {
        let fall = fragmentation(node, mix) - fragmentation(&after(node, ask, *cards), mix);
        let d = fall as f64 / (1000 * weight.max(1)) as f64;
        let score = (100.0 / (1.0 + (-d).exp())).floor();
        if score > best.0 {
            best = (score, *cards);
        }
    }
    best
}

/// The best of the nodes, the first on a tie.
pub(super) fn choose(policy: Policy, nodes: &[(Place, Node)], ask: &Ask, mix: &Mix, fleet: &Whole) -> Option<Spot> {
    let mut best: Option<(f64, Spot)> = None;
    for (place, node) in nodes.iter().filter(|(_, node)| fits(node, ask)) {
        let (score, cards) = judge(policy, node, ask, mix, fleet);
        if best.is_none_or(|(most, _)| score > most) {
            best = Some((score, Spot { place: *place, cards }));
        }
    }
    best.map(|(_, spot)| spot)
}
