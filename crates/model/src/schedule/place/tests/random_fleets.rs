//! Random fleets under random requests: the engine decides as the definitions do, and gives nothing away twice.

use std::collections::BTreeMap;

use super::{naive::Whole, *};

/// Sizes of cards: thousandths, and MiB of three real ones.
const CAPACITIES: [u32; 4] = [1000, 11_264, 24_564, 81_559];

/// 2,000 of each policy; with `TOFT_TEST_FULL=1` 100,000.
fn cases() -> u64 {
    let full = std::env::var_os("TOFT_TEST_FULL").is_some_and(|value| value == "1");
    if full { 100_000 } else { 2_000 }
}

struct Case {
    random: Random,
    policy: Policy,
    mix: Mix,
    fleet: Fleet,
    /// What should be there.
    nodes: BTreeMap<usize, (Place, Node)>,
    held: Vec<(Ask, Spot)>,
    whole: Whole,
    log: Vec<Option<Spot>>,
}

fn some_kinds(random: &mut Random) -> Kinds {
    if random.below(2) == 0 { Kinds::ANY } else { kinds((0..4).filter(|_| random.below(2) == 0)) }
}

fn some_ask(random: &mut Random) -> Ask {
    let gpus = match random.below(8) {
        0 | 1 => Gpus::None,
        2..5 => Gpus::Share([100, 250, 333, 500, 999, 1000, 4_096, 8_192, 20_000][random.below(9)]),
        5 | 6 => Gpus::Whole(1 + random.below(3) as u16),
        _ => Gpus::All,
    };
    let cpu_millis = [0, 500, 1_000, 4_000, 11_300][random.below(5)];
    let memory_bytes = [0, 1 << 30, 5 << 30, 40 << 30][random.below(4)];
    Ask { cpu_millis, memory_bytes, gpus, kinds: some_kinds(random) }
}

fn some_mix(random: &mut Random) -> Mix {
    Mix::new((0..random.below(7)).map(|_| (some_ask(random), random.below(50) as u32)).collect::<Vec<_>>())
}

fn some_node(random: &mut Random) -> Node {
    let mixed = random.below(4) == 0;
    let (kind, capacity) = (random.below(4), CAPACITIES[random.below(4)]);
    let cards = (0..random.below(6)).map(|_| {
        let (kind, capacity) = if mixed { (random.below(4), CAPACITIES[random.below(4)]) } else { (kind, capacity) };
        Card::idle(Kind::new(kind).unwrap(), capacity)
    });
    let cards = cards.collect();
    let cpu = [2_000, 16_000, 64_000][random.below(3)];
    Node::idle(cpu, [8, 64][random.below(2)] << 30, [3, 1001][random.below(2)], cards)
}

impl Case {
    fn new(policy: Policy, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mix = some_mix(&mut random);
        let fleet = Fleet::new(policy, &mix, seed);
        let (nodes, held, log) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut case = Self {
            random,
            policy,
            mix,
            fleet,
            nodes,
            held,
            whole: Whole { cpu: 1.0, cards: 1.0, ..Whole::default() },
            log,
        };
        for _ in 0..1 + case.random.below(12) {
            case.add();
        }
        case
    }

    fn add(&mut self) {
        let node = some_node(&mut self.random);
        let place = self.fleet.add(node.clone());
        self.note(place, node);
    }

    fn note(&mut self, place: Place, node: Node) {
        self.whole.cpu = self.whole.cpu.max(node.cpu_millis.into());
        self.whole.cards = self.whole.cards.max(node.cards.len() as f64 * 1000.0);
        assert!(self.nodes.insert(place.number(), (place, node)).is_none(), "the place was taken");
    }

    fn step(&mut self) {
        match self.random.below(17) {
            0 => self.add(),
            16 => {
                self.mix = some_mix(&mut self.random);
                self.fleet.retarget(&self.mix);
            }
            1 => {
                if let Some((number, place)) = self.any_node() {
                    self.nodes.remove(&number);
                    self.held.retain(|(_, spot)| spot.place != place);
                    self.fleet.remove(place);
                }
            }
            2 => {
                if let Some((number, place)) = self.any_node() {
                    let node = some_node(&mut self.random);
                    self.nodes.remove(&number);
                    self.held.retain(|(_, spot)| spot.place != place);
                    self.fleet.change(place, node.clone());
                    self.note(place, node);
                }
            }
            3..6 if !self.held.is_empty() => {
                let (ask, spot) = self.held.swap_remove(self.random.below(self.held.len()));
                self.fleet.give_back(&ask, spot);
            }
            _ => self.arrive(),
        }
    }

    fn any_node(&mut self) -> Option<(usize, Place)> {
        let nth = self.random.below(self.nodes.len());
        self.nodes.iter().nth(nth).map(|(number, (place, _))| (*number, *place))
    }

    /// The nodes as they are when what is held is taken from idle ones.
    fn now(&self) -> Vec<(Place, Node)> {
        let mut now = self.nodes.clone();
        for (ask, spot) in &self.held {
            let (_, node) = now.get_mut(&spot.place.number()).unwrap();
            // Underflow, and so over-commitment, panics here.
            *node = naive::after(node, ask, spot.cards);
        }
        now.into_values().collect()
    }

    fn arrive(&mut self) {
        // Few different requests, so that rankings are used again.
        let seed = self.random.below(12) as u64;
        let ask = some_ask(&mut Random::new(seed));
        let mut nodes = self.now();
        for (place, node) in &nodes {
            assert_eq!(self.fleet.node(*place), Some(node));
            assert_eq!(self.fleet.why_not(*place, &ask).is_ok(), naive::fits(node, &ask));
        }
        let weight: i64 = self.mix.asks().iter().map(|(_, weight)| i64::from(*weight)).sum();
        let fragmentation: i64 = nodes.iter().map(|(_, node)| naive::fragmentation(node, &self.mix)).sum();
        assert_eq!(self.fleet.fragmentation(), fragmentation as f64 / weight.max(1) as f64);

        let mut eligible = None;
        if self.random.below(3) == 0 {
            nodes.retain(|_| self.random.below(2) == 0);
            eligible = Some(nodes.iter().map(|(place, _)| *place).collect::<PlaceSet>());
        }
        self.whole.supply.clear();
        for card in self.nodes.values().flat_map(|(_, node)| &node.cards) {
            *self.whole.supply.entry((card.kind, card.capacity)).or_default() += 1;
        }
        let expected = naive::choose(self.policy, &nodes, &ask, &self.mix, &self.whole);
        let spot = self.fleet.place(&ask, eligible.as_ref());
        if self.policy == Policy::Random {
            assert_eq!(spot.is_some(), expected.is_some());
            assert!(spot.is_none_or(|spot| nodes.iter().any(|(place, _)| *place == spot.place)), "not eligible");
        } else {
            assert_eq!(spot, expected, "{:?} {ask:?} {nodes:?}", self.policy);
        }
        self.held.extend(spot.map(|spot| (ask, spot)));
        self.log.push(spot);
        let _ = self.now();
    }

    /// Nobody shares a card that is held whole.
    fn check_cards(&self) {
        let mut whole = BTreeMap::new();
        for (ask, spot) in &self.held {
            for card in spot.cards.iter() {
                *whole.entry((spot.place, card)).or_insert((0, 0)) =
                    match (ask.gpus, whole.get(&(spot.place, card)).copied().unwrap_or((0, 0))) {
                        (Gpus::Share(_), (wholes, shares)) => (wholes, shares + 1),
                        (_, (wholes, shares)) => (wholes + 1, shares),
                    };
            }
        }
        for ((place, card), (wholes, shares)) in whole {
            assert!(
                wholes == 0 || (wholes, shares) == (1, 0),
                "card {card} of {place:?}: {wholes} whole, {shares} shares"
            );
        }
    }
}

fn run(policy: Policy, seed: u64) -> Vec<Option<Spot>> {
    let mut case = Case::new(policy, seed);
    for _ in 0..24 {
        case.step();
    }
    case.check_cards();
    case.log
}

fn check(policy: Policy) {
    for seed in 0..cases() {
        let outcome = std::panic::catch_unwind(|| run(policy, seed));
        let log = outcome.unwrap_or_else(|_| panic!("{policy}, seed {seed}"));
        if seed % 16 == 0 {
            assert_eq!(log, run(policy, seed), "{policy}, seed {seed}: not the same again");
        }
    }
}

#[test]
fn random_places_only_where_it_fits() {
    check(Policy::Random);
}

#[test]
fn spread_is_its_definition() {
    check(Policy::Spread);
}

#[test]
fn binpack_is_its_definition() {
    check(Policy::Binpack);
}

#[test]
fn best_fit_is_its_definition() {
    check(Policy::BestFit);
}

#[test]
fn dot_prod_is_its_definition() {
    check(Policy::DotProd);
}

#[test]
fn gpu_packing_is_its_definition() {
    check(Policy::GpuPacking);
}

#[test]
fn fgd_is_its_definition() {
    check(Policy::Fgd);
}

#[test]
fn fgd_balanced_is_its_definition() {
    check(Policy::Balanced);
}
