//! Which of the nodes that fit is the best.

use std::{fmt, str::FromStr};

use super::{
    Ask, CardSet, Gpus,
    balance::{Balance, Gain},
    host::Host,
    mix::{Tables, WHOLE},
};
use crate::invalid::Invalid;

/// What makes a node the better one. On a tie the node wins that was added first.
///
/// In the formulas `c` and `I` are a node's free CPU and idle thousandths of cards before the placement, `c'` and `I'`
/// after it; `C` and `G` are those of the fleet's largest nodes when idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Any node and any card that fit, each as likely as the other.
    Random,
    /// The emptiest: least of what the request needs is taken after it (CPU, memory, cards: whichever is scarcest), then
    /// fewest instances.
    Spread,
    /// The fullest: the opposite of [`Self::Spread`].
    Binpack,
    /// Least left over: `floor(100 (1 - c' / 2C - I' / 2G))`.
    BestFit,
    /// Least alike: `floor(100 (1 - (c/C (c-c')/C + I/G (I-I')/G) / 2))`.
    DotProd,
    /// Cards in use before idle cards before idle nodes.
    GpuPacking,
    /// Fragmentation gradient descent (Weng et al., USENIX ATC 2023): `floor(100 / (1 + exp(-D)))` with `D` the fall of
    /// the fragmentation in cards.
    Fgd,
    /// FGD that also keeps CPU and cards in balance and leaves rare kinds to who needs them; see [`Balance`].
    Balanced,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Random,
        Self::Spread,
        Self::Binpack,
        Self::BestFit,
        Self::DotProd,
        Self::GpuPacking,
        Self::Fgd,
        Self::Balanced,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Spread => "spread",
            Self::Binpack => "binpack",
            Self::BestFit => "best-fit",
            Self::DotProd => "dot-prod",
            Self::GpuPacking => "gpu-packing",
            Self::Fgd => "fgd",
            Self::Balanced => "fgd-balanced",
        }
    }

    /// Whether scores depend on the memory that is asked for.
    pub(super) fn weighs_memory(self) -> bool {
        matches!(self, Self::Spread | Self::Binpack)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Policy {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            Invalid::value(format!("`{text}` is no policy"), format!("there are {names}"))
        })
    }
}

/// Where scores begin that can be below 0.
const MIDDLE: i64 = 1 << 30;

/// What scores are measured against.
#[derive(Debug)]
pub(super) struct Scale {
    pub(super) policy: Policy,
    /// CPU of the node with most.
    pub(super) cpu: i64,
    /// Thousandths of cards of the node with most.
    pub(super) cards: i64,
    /// The least fall, in thousandths times weight, for each FGD score from 1 on.
    steps: Vec<i64>,
    pub(super) balance: Balance,
}

impl Scale {
    pub(super) fn new(policy: Policy, tables: &Tables) -> Self {
        // 100 / (1 + exp(-D)) >= k exactly when D >= ln(k / (100 - k)).
        let least = |k: u32| {
            let k = f64::from(k);
            ((k / (100.0 - k)).ln() * (WHOLE * tables.weight) as f64).ceil() as i64
        };
        Self { policy, cpu: 1, cards: 1, steps: (1..100).map(least).collect(), balance: Balance::default() }
    }

    /// Follows other tables over the same nodes.
    pub(super) fn retarget(&mut self, tables: &Tables) {
        let Self { policy, cpu, cards, steps: _, balance } = std::mem::replace(self, Self::new(self.policy, tables));
        (self.policy, self.cpu, self.cards, self.balance) = (policy, cpu, cards, balance);
        self.balance.retarget();
    }

    /// Learns of a node; whether scores change with it.
    pub(super) fn grow(&mut self, host: &Host) -> bool {
        let cards = host.node.cards.len() as i64 * WHOLE;
        let grown = (self.cpu.max(host.node.cpu_millis.into()), self.cards.max(cards));
        let changed = grown != (self.cpu, self.cards);
        (self.cpu, self.cards) = grown;
        changed && matches!(self.policy, Policy::BestFit | Policy::DotProd)
    }

    fn step(&self, fall: i64) -> u32 {
        self.steps.partition_point(|least| *least <= fall) as u32
    }

    /// The score of a host that `ask` fits on. Greater is better.
    pub(super) fn score(&self, host: &Host, ask: &Ask, tables: &Tables) -> u32 {
        match self.policy {
            Policy::Random => 0,
            Policy::Spread => emptiness(host, ask),
            Policy::Binpack => u32::MAX / 2 - emptiness(host, ask),
            Policy::BestFit => self.best_fit(host, ask),
            Policy::DotProd => self.dot_prod(host, ask),
            Policy::GpuPacking => gpu_packing(host, ask),
            Policy::Fgd | Policy::Balanced => self.best_card(host, ask, tables).0,
        }
    }

    /// The cards that `ask`, which fits, gets.
    pub(super) fn cards(&self, host: &Host, ask: &Ask, tables: &Tables) -> CardSet {
        match ask.gpus {
            Gpus::None => CardSet::NONE,
            Gpus::Whole(_) | Gpus::All => host.node.suiting(ask).take(host.node.whole_wanted(ask)).collect(),
            Gpus::Share(_) => match self.policy {
                Policy::Fgd | Policy::Balanced => std::iter::once(self.best_card(host, ask, tables).1).collect(),
                _ => tightest(host, ask).into_iter().collect(),
            },
        }
    }

    /// The greatest score by what a placement leaves, and the lowest card that gives it.
    fn best_card(&self, host: &Host, ask: &Ask, tables: &Tables) -> (u32, usize) {
        let mut best = None;
        host.falls(ask, tables, |fall| {
            let score = match self.policy {
                Policy::Balanced => {
                    let score = self.balance.gain(host, ask, &fall, tables.weight).total();
                    (MIDDLE + score.clamp(-MIDDLE, MIDDLE)) as u32
                }
                _ => self.step(fall.fragmentation),
            };
            if best.is_none_or(|(most, _)| score > most) {
                best = Some((score, fall.card));
            }
        });
        best.unwrap_or((0, 0))
    }

    /// What the best of the placements of `ask`, which fits, is worth.
    pub(super) fn gain(&self, host: &Host, ask: &Ask, tables: &Tables) -> Gain {
        let mut best = Gain::default();
        let mut most = i64::MIN;
        host.falls(ask, tables, |fall| {
            let gain = self.balance.gain(host, ask, &fall, tables.weight);
            if gain.total() > most {
                (most, best) = (gain.total(), gain);
            }
        });
        best
    }

    fn best_fit(&self, host: &Host, ask: &Ask) -> u32 {
        let cpu = i64::from(host.node.cpu_free - ask.cpu_millis);
        let cards = host.thousandths - thousandths(host, ask);
        let all = self.cpu * self.cards;
        ((100 * all - 50 * cpu * self.cards - 50 * cards * self.cpu).max(0) / all) as u32
    }

    fn dot_prod(&self, host: &Host, ask: &Ask) -> u32 {
        let part = |a: i64, b: i64, most: i64| (a as f64 / most as f64) * (b as f64 / most as f64);
        let cpu = part(host.node.cpu_free.into(), ask.cpu_millis.into(), self.cpu);
        let cards = part(host.thousandths, thousandths(host, ask), self.cards);
        (100.0 * (1.0 - (cpu + cards) / 2.0)).max(0.0) as u32
    }
}

/// What `ask` takes of the cards, in thousandths.
fn thousandths(host: &Host, ask: &Ask) -> i64 {
    match ask.gpus {
        Gpus::None => 0,
        Gpus::Whole(_) | Gpus::All => host.node.whole_wanted(ask) as i64 * WHOLE,
        Gpus::Share(units) => tightest(host, ask).map_or(0, |place| {
            let mut card = host.node.cards[place];
            card.free -= units;
            i64::from(host.marks[place].thousandths - card.thousandths())
        }),
    }
}

/// The card with least left that serves a share.
fn tightest(host: &Host, ask: &Ask) -> Option<usize> {
    host.node.suiting(ask).min_by_key(|place| (host.node.cards[*place].free, *place))
}

/// How little is taken after `ask`: the scarcest of what it needs, then the instances.
fn emptiness(host: &Host, ask: &Ask) -> u32 {
    const FULL: u64 = 10_000;
    let node = &host.node;
    let taken = |free: u64, all: u64| FULL - free * FULL / all.max(1);
    let cpu = taken((node.cpu_free - ask.cpu_millis).into(), node.cpu_millis.into());
    let memory = taken((node.memory_free - ask.memory_bytes.min(node.memory_free)) >> 20, node.memory_bytes >> 20);
    let cards = match ask.gpus {
        Gpus::None => 0,
        _ => taken((host.thousandths - thousandths(host, ask)) as u64, (node.cards.len() as i64 * WHOLE) as u64),
    };
    let most = cpu.max(memory).max(cards) as u32;
    (FULL as u32 - most) << 16 | (0xffff - node.instances().min(0xffff))
}

fn gpu_packing(host: &Host, ask: &Ask) -> u32 {
    let node = &host.node;
    let wanted = match ask.gpus {
        Gpus::None => return 0,
        Gpus::Share(_) => 1,
        Gpus::Whole(_) | Gpus::All => node.whole_wanted(ask),
    };
    let idle = host.idle as u32;
    if host.idle == node.cards.len() {
        return 33_u32.saturating_sub(idle).max(idle);
    }
    let mut chosen: Vec<usize> = node.suiting(ask).collect();
    chosen.sort_by_key(|place| host.marks[*place].thousandths);
    chosen.truncate(wanted);
    match chosen.iter().filter(|place| host.marks[**place].idle).count() as u32 {
        0 => {
            let free: u32 = chosen.iter().map(|place| host.marks[*place].thousandths / 10).sum();
            100_u32.saturating_sub(free / 10).max(50)
        }
        idle => 50_u32.saturating_sub(idle).max(33),
    }
}
