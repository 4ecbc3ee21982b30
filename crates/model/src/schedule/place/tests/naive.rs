//! The same decisions by the definitions, without tables, rankings or memory.

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

/// The largest node's CPU and thousandths of cards.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Largest {
    pub(super) cpu: f64,
    pub(super) cards: f64,
}

/// The score of a node that fits, and its cards.
fn judge(policy: Policy, node: &Node, ask: &Ask, mix: &Mix, largest: Largest) -> (f64, CardSet) {
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
        Policy::BestFit => floor(100.0 * (1.0 - 0.5 * cpu.1 / largest.cpu - 0.5 * cards.1 / largest.cards)).max(0.0),
        Policy::DotProd => {
            let part = |now: f64, then: f64, most: f64| (now / most) * ((now - then) / most);
            (100.0 * (1.0 - (part(cpu.0, cpu.1, largest.cpu) + part(cards.0, cards.1, largest.cards)) / 2.0))
                .max(0.0)
                .floor()
        }
        Policy::GpuPacking => gpu_packing(node, ask),
        Policy::Fgd => return gradient(node, ask, mix, &offers),
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
pub(super) fn choose(policy: Policy, nodes: &[(Place, Node)], ask: &Ask, mix: &Mix, largest: Largest) -> Option<Spot> {
    let mut best: Option<(f64, Spot)> = None;
    for (place, node) in nodes.iter().filter(|(_, node)| fits(node, ask)) {
        let (score, cards) = judge(policy, node, ask, mix, largest);
        if best.is_none_or(|(most, _)| score > most) {
            best = Some((score, Spot { place: *place, cards }));
        }
    }
    best.map(|(_, spot)| spot)
}
