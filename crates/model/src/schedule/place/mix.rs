//! The requests that stand for the future, and how much of a node they leave unusable.

use std::collections::HashMap;

use super::{Ask, Card, CardSet, Gpus, Kind, Kinds, Node};

/// A target workload `M`: typical requests with their weights. Memory is left out of account, and a request for all
/// cards counts as one for a single card.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mix {
    asks: Vec<(Ask, u32)>,
}

impl Mix {
    /// From requests and how often each occurs. Requests without cards count: they can use none.
    pub fn new(asks: impl IntoIterator<Item = (Ask, u32)>) -> Self {
        Self { asks: asks.into_iter().filter(|(_, weight)| *weight > 0).collect() }
    }

    /// The requests with their weights.
    pub fn asks(&self) -> &[(Ask, u32)] {
        &self.asks
    }
}

/// A card in thousandths.
pub(super) const WHOLE: i64 = 1000;

/// `M` as tables. With `u(g)` the sum over the requests of `M` that a node can serve of weight times the idle
/// thousandths that suit them, the fragmentation of a node is `F = W I - u` (W the sum of weights, I the idle
/// thousandths), in thousandths times W. `u` splits into what each card is worth for shares and what all idle cards
/// are worth for whole requests, so it costs a look-up a card. All of it is integer: equal states have equal values.
#[derive(Debug)]
pub(super) struct Tables {
    /// W.
    pub(super) weight: i64,
    /// CPU of the requests for cards, ascending, each once. A node's rank is how many of them it can serve.
    cpus: Vec<u32>,
    shares: Vec<(Wanted, u32)>,
    wholes: Vec<(Wanted, u32)>,
    shapes: Vec<Shape>,
    by_kind: HashMap<(Kind, u32), u32>,
}

#[derive(Debug, Clone, Copy)]
struct Wanted {
    rank: usize,
    kinds: Kinds,
    weight: i64,
}

/// What cards of one kind and size are worth.
#[derive(Debug)]
pub(super) struct Shape {
    /// Sizes of shares, ascending, each once. A card's level is how many of them it can serve.
    levels: Vec<u32>,
    /// `[rank][level]`: the weights of the shares that are served, for each thousandth.
    share: Vec<i64>,
    /// The greatest count in `whole`.
    most: usize,
    /// `[rank][idle]`: the weights of the whole requests that are served.
    whole: Vec<i64>,
}

impl Shape {
    pub(super) fn level(&self, free: u32) -> usize {
        self.levels.partition_point(|level| *level <= free)
    }

    /// By level.
    pub(super) fn share_row(&self, rank: usize) -> &[i64] {
        let width = self.levels.len() + 1;
        &self.share[rank * width..][..width]
    }

    /// What `idle` idle cards are worth together.
    pub(super) fn idle_worth(&self, rank: usize, idle: usize) -> i64 {
        let whole = self.whole[rank * (self.most + 1) + idle.min(self.most)];
        let share = self.share_row(rank)[self.levels.len()];
        idle as i64 * WHOLE * (whole + share)
    }
}

/// What [`Tables`] say of one card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) shape: u32,
    pub(super) level: u16,
    pub(super) thousandths: u32,
    pub(super) idle: bool,
}

impl Tables {
    pub(super) fn new(mix: &Mix) -> Self {
        let with_cards = || mix.asks.iter().filter(|(ask, _)| ask.gpus != Gpus::None);
        let mut cpus: Vec<u32> = with_cards().map(|(ask, _)| ask.cpu_millis).collect();
        cpus.sort_unstable();
        cpus.dedup();
        let (mut shares, mut wholes) = (Vec::new(), Vec::new());
        for (ask, weight) in with_cards() {
            let rank = cpus.partition_point(|cpu| *cpu <= ask.cpu_millis);
            let wanted = Wanted { rank, kinds: ask.kinds, weight: i64::from(*weight) };
            match ask.gpus {
                Gpus::Share(units) => shares.push((wanted, units)),
                // No node has more cards than a set can name.
                Gpus::Whole(count) if usize::from(count) > CardSet::LIMIT => {}
                Gpus::Whole(count) => wholes.push((wanted, u32::from(count))),
                Gpus::All => wholes.push((wanted, 1)),
                Gpus::None => {}
            }
        }
        let weight = mix.asks.iter().map(|(_, weight)| i64::from(*weight)).sum();
        Self { weight, cpus, shares, wholes, shapes: Vec::new(), by_kind: HashMap::new() }
    }

    /// The tables of another mix, in which all shapes have the numbers that they have here.
    pub(super) fn retargeted(&self, mix: &Mix) -> Self {
        let mut tables = Self::new(mix);
        let mut known: Vec<(u32, Kind, u32)> =
            self.by_kind.iter().map(|((kind, capacity), number)| (*number, *kind, *capacity)).collect();
        known.sort_unstable();
        for (_, kind, capacity) in known {
            tables.learn(&Card::idle(kind, capacity));
        }
        tables
    }

    pub(super) fn rank(&self, cpu: u32) -> usize {
        self.cpus.partition_point(|wanted| *wanted <= cpu)
    }

    pub(super) fn shape(&self, number: u32) -> &Shape {
        &self.shapes[number as usize]
    }

    /// Learns the card's shape, if it is new.
    fn learn(&mut self, card: &Card) -> u32 {
        if let Some(known) = self.by_kind.get(&(card.kind, card.capacity)) {
            return *known;
        }
        let allowed = |list: &[(Wanted, u32)]| -> Vec<(Wanted, u32)> {
            list.iter().filter(|(wanted, _)| wanted.kinds.allow(card.kind)).copied().collect()
        };
        let (mut shares, wholes) = (allowed(&self.shares), allowed(&self.wholes));
        // An idle card is at the highest level.
        shares.retain(|(_, units)| *units <= card.capacity);
        let mut levels: Vec<u32> = shares.iter().map(|(_, units)| *units).collect();
        levels.sort_unstable();
        levels.dedup();
        let most = wholes.iter().map(|(_, count)| *count).max().unwrap_or(0) as usize;
        let sum = |list: &[(Wanted, u32)], rank: usize, most: u32| -> i64 {
            list.iter()
                .filter(|(wanted, size)| wanted.rank <= rank && *size <= most)
                .map(|(wanted, _)| wanted.weight)
                .sum()
        };
        let (mut share, mut whole) = (Vec::new(), Vec::new());
        for rank in 0..=self.cpus.len() {
            share.push(0);
            share.extend(levels.iter().map(|level| sum(&shares, rank, *level)));
            whole.extend((0..=most as u32).map(|idle| sum(&wholes, rank, idle)));
        }
        let number = self.shapes.len() as u32;
        self.shapes.push(Shape { levels, share, most, whole });
        self.by_kind.insert((card.kind, card.capacity), number);
        number
    }

    /// The cards' marks.
    pub(super) fn marks(&mut self, cards: &[Card], marks: &mut Vec<Mark>) {
        marks.clear();
        for card in cards {
            let shape = self.learn(card);
            marks.push(self.mark(card, shape));
        }
    }

    /// The same for cards whose shapes are all known.
    pub(super) fn known_marks(&self, cards: &[Card]) -> Option<Vec<Mark>> {
        let mark = |card: &Card| Some(self.mark(card, *self.by_kind.get(&(card.kind, card.capacity))?));
        cards.iter().map(mark).collect()
    }

    pub(super) fn mark(&self, card: &Card, shape: u32) -> Mark {
        let level = self.shape(shape).level(card.free) as u16;
        Mark { shape, level, thousandths: card.thousandths(), idle: card.is_idle() }
    }

    /// `u` of a node with so much CPU free and cards with these marks.
    pub(super) fn usable(&self, cpu: u32, node: &Node, marks: &[Mark]) -> i64 {
        let rank = self.rank(cpu);
        let worth =
            |mark: &Mark| i64::from(mark.thousandths) * self.shape(mark.shape).share_row(rank)[usize::from(mark.level)];
        let shares: i64 = marks.iter().map(worth).sum();
        let wholes = self.wholes.iter().filter(|(wanted, _)| wanted.rank <= rank).map(|(wanted, count)| {
            let suits = |(card, mark): &(&Card, &Mark)| mark.idle && wanted.kinds.allow(card.kind);
            let idle = node.cards.iter().zip(marks).filter(suits).count();
            if idle >= *count as usize { wanted.weight * WHOLE * idle as i64 } else { 0 }
        });
        shares + wholes.sum::<i64>()
    }
}
