//! What FGD does not see: whether CPU and cards run out together, and who else needs the cards.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Ask, Card, Gpus, Kind, Mix,
    host::{Fall, Host},
    mix::WHOLE,
};

/// Terms are in this part of a thousandth of a card.
const FINE: i64 = 16;
/// One over the weight of the price.
const PRICE: i64 = 2;
/// Prices are in this part of the average.
const UNIT: i64 = 1000;

/// The score of [`Policy::Balanced`](super::Policy::Balanced), in cards:
///
/// `score = D + (B - B') - P / 2`
///
/// - `D` is the fall of the fragmentation, as in FGD but not rounded: what is near under FGD is left to the order of the
///   nodes, here to the other terms.
/// - `B = |I - c / r|` is the imbalance of a node with `I` cards and CPU `c` free, where `r` is the CPU that the mix needs
///   for each card: when the mix has used up the rest of the node, so many cards are left, or the CPU for so many. `B'`
///   is that after the placement. FGD sees CPU only when a request does not fit any more.
/// - `P` is the size of the request times the price of the cards' kind. The price is how much of the mix falls on a card of
///   the kind when each request spreads over all cards that it may have, over the average of all cards. Who may have any
///   card thus leaves those alone that others depend on.
///
/// Stranded and fragmented cards weigh the same. The weight of the price trades what is placed while the cards still
/// suffice against what is placed in the end; docs/scheduling.md has numbers.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// How many cards there are of each kind and capacity.
    supply: BTreeMap<(Kind, u32), u64>,
    stale: bool,
    /// CPU that the mix needs for each card, in thousandths of a core; 0 when it needs none.
    ratio: i64,
    /// By kind, in [`UNIT`].
    prices: BTreeMap<Kind, i64>,
}

impl Balance {
    /// There are more or fewer of these cards.
    pub(super) fn count(&mut self, cards: &[Card], more: bool) {
        for card in cards.iter().filter(|card| card.capacity > 0) {
            let count = self.supply.entry((card.kind, card.capacity)).or_default();
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
        }
        self.supply.retain(|_, count| *count > 0);
        self.stale = true;
    }

    /// The mix is another.
    pub(super) fn retarget(&mut self) {
        self.stale = true;
    }

    /// Follows the supply; whether scores changed.
    pub(super) fn refresh(&mut self, mix: &Mix) -> bool {
        if !std::mem::take(&mut self.stale) {
            return false;
        }
        let before = (self.ratio, std::mem::take(&mut self.prices));
        let kinds: BTreeSet<Kind> = self.supply.keys().map(|(kind, _)| *kind).collect();
        let (mut cpu, mut wanted) = (0.0, 0.0);
        let mut load: BTreeMap<Kind, f64> = BTreeMap::new();
        for (ask, weight) in mix.asks() {
            let Some((cards, each)) = self.spread(ask) else { continue };
            cpu += f64::from(*weight) * f64::from(ask.cpu_millis);
            wanted += f64::from(*weight) * each;
            for kind in kinds.iter().filter(|kind| ask.kinds.allow(**kind)) {
                *load.entry(*kind).or_insert(0.0) += f64::from(*weight) * each / cards;
            }
        }
        let all: u64 = self.supply.values().sum();
        let average = wanted / (all as f64).max(1.0);
        if wanted > 0.0 {
            self.ratio = (cpu / wanted).round() as i64;
            self.prices =
                load.iter().map(|(kind, load)| (*kind, (load / average * UNIT as f64).round() as i64)).collect();
        } else {
            self.ratio = 0;
        }
        before != (self.ratio, self.prices.clone())
    }

    /// How many cards a request of the mix may have, and how much of one it takes, or of how many; `None` when it takes
    /// none.
    fn spread(&self, ask: &Ask) -> Option<(f64, f64)> {
        let allowed = || self.supply.iter().filter(|((kind, _), _)| ask.kinds.allow(*kind));
        let cards: u64 = allowed().map(|(_, count)| *count).sum();
        let each = match ask.gpus {
            Gpus::None => 0.0,
            Gpus::Whole(count) => f64::from(count),
            Gpus::All => 1.0,
            Gpus::Share(units) => {
                let part = |capacity: u32| (f64::from(units) / f64::from(capacity.max(1))).min(1.0);
                let parts: f64 = allowed().map(|((_, capacity), count)| part(*capacity) * *count as f64).sum();
                parts / (cards as f64).max(1.0)
            }
        };
        (cards > 0 && each > 0.0).then_some((cards as f64, each))
    }

    /// `B`, in fine parts.
    fn imbalance(&self, thousandths: i64, cpu: u32) -> i64 {
        if self.ratio == 0 { 0 } else { (FINE * thousandths - FINE * WHOLE * i64::from(cpu) / self.ratio).abs() }
    }

    /// What one fall is worth.
    pub(super) fn gain(&self, host: &Host, ask: &Ask, fall: &Fall, weight: i64) -> Gain {
        let cpu = host.node.cpu_free;
        let before = self.imbalance(host.thousandths, cpu);
        let after = self.imbalance(host.thousandths - fall.taken, cpu - ask.cpu_millis);
        let price = |kind: Kind| self.prices.get(&kind).copied().unwrap_or(0);
        let cost = match ask.gpus {
            Gpus::None => 0,
            Gpus::Share(_) => fall.taken * price(host.node.cards[fall.card].kind),
            Gpus::Whole(_) | Gpus::All => {
                let cards = host.node.suiting(ask).take(host.node.whole_wanted(ask));
                cards.map(|place| WHOLE * price(host.node.cards[place].kind)).sum()
            }
        };
        Gain {
            fragmentation: (FINE * fall.fragmentation).div_euclid(weight.max(1)),
            balance: before - after,
            price: (FINE * cost).div_euclid(UNIT * PRICE),
        }
    }
}

/// What a placement is worth, in [`Gain::CARD`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gain {
    /// `D`: by how much the fragmentation falls.
    pub fragmentation: i64,
    /// `B - B'`: by how much the imbalance falls.
    pub balance: i64,
    /// `P / 2`: what the cards are worth to others.
    pub price: i64,
}

impl Gain {
    /// One card.
    pub const CARD: i64 = FINE * WHOLE;

    /// The score of [`Policy::Balanced`](super::Policy::Balanced).
    pub fn total(self) -> i64 {
        self.fragmentation + self.balance - self.price
    }
}
