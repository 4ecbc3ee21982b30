//! A node with what is known of it beforehand, and what a request would make of it.

use super::{
    Ask, Gpus, Node,
    mix::{Mark, Tables, WHOLE},
};

/// What a placement would do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fall {
    /// The card, for a share.
    pub(super) card: usize,
    /// Thousandths of cards that are taken.
    pub(super) taken: i64,
    /// By how much the fragmentation falls, in thousandths times the weight of the mix.
    pub(super) fragmentation: i64,
}

/// A node, and sums over its cards that every score needs.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) node: Node,
    pub(super) marks: Vec<Mark>,
    /// All cards are of one shape, as they mostly are.
    alike: bool,
    /// How many cards are idle.
    pub(super) idle: usize,
    /// Idle thousandths of all cards.
    pub(super) thousandths: i64,
    /// `u` of [`Tables`].
    pub(super) usable: i64,
}

impl Host {
    pub(super) fn new(node: Node, tables: &mut Tables) -> Self {
        let mut host = Self { node, marks: Vec::new(), alike: true, idle: 0, thousandths: 0, usable: 0 };
        host.refresh(tables);
        host
    }

    /// Of a node whose cards are all of shapes that are known; `None` of another.
    pub(super) fn known(node: Node, tables: &Tables) -> Option<Self> {
        let marks = tables.known_marks(&node.cards)?;
        let mut host = Self { node, marks, alike: true, idle: 0, thousandths: 0, usable: 0 };
        host.sum_up(tables);
        Some(host)
    }

    /// After the node changed.
    pub(super) fn refresh(&mut self, tables: &mut Tables) {
        tables.marks(&self.node.cards, &mut self.marks);
        self.sum_up(tables);
    }

    /// After the tables changed and the shapes kept their numbers.
    pub(super) fn revalue(&mut self, tables: &Tables) {
        for (mark, card) in self.marks.iter_mut().zip(&self.node.cards) {
            *mark = tables.mark(card, mark.shape);
        }
        self.usable = self.usable_with(self.node.cpu_free, tables);
    }

    fn sum_up(&mut self, tables: &Tables) {
        self.alike = self.marks.windows(2).all(|pair| pair[0].shape == pair[1].shape);
        self.idle = self.marks.iter().filter(|mark| mark.idle).count();
        self.thousandths = self.marks.iter().map(|mark| i64::from(mark.thousandths)).sum();
        self.usable = self.usable_with(self.node.cpu_free, tables);
    }

    /// The fragmentation, in thousandths of a card times the weight of the mix.
    pub(super) fn fragmentation(&self, tables: &Tables) -> i64 {
        tables.weight * self.thousandths - self.usable
    }

    /// Whether `ask` fits, but for memory and slots.
    pub(super) fn computes(&self, ask: &Ask) -> bool {
        if ask.cpu_millis > self.node.cpu_free {
            return false;
        }
        match ask.gpus {
            Gpus::None => true,
            Gpus::Whole(count) if self.idle < usize::from(count) => false,
            Gpus::Whole(_) | Gpus::Share(_) | Gpus::All => self.node.computes(ask),
        }
    }

    fn usable_with(&self, cpu: u32, tables: &Tables) -> i64 {
        if !self.alike {
            return tables.usable(cpu, &self.node, &self.marks);
        }
        let Some(first) = self.marks.first() else { return 0 };
        let (shape, rank) = (tables.shape(first.shape), tables.rank(cpu));
        self.parts(shape.share_row(rank)) + shape.idle_worth(rank, self.idle)
    }

    /// What the cards are worth that are partly taken.
    fn parts(&self, row: &[i64]) -> i64 {
        let parts = self.marks.iter().filter(|mark| !mark.idle);
        parts.map(|mark| i64::from(mark.thousandths) * row[usize::from(mark.level)]).sum()
    }

    /// What happens when `ask`, which fits, is placed here: told for each card that a share can
    /// have, and once with the lowest cards for everything else.
    pub(super) fn falls(&self, ask: &Ask, tables: &Tables, mut tell: impl FnMut(Fall)) {
        let cpu = self.node.cpu_free - ask.cpu_millis;
        match ask.gpus {
            Gpus::None => {
                tell(Fall { card: 0, taken: 0, fragmentation: self.usable_with(cpu, tables) - self.usable });
            }
            Gpus::Share(units) if self.alike => self.falls_of_shares(ask, units, cpu, tables, tell),
            Gpus::Share(units) => {
                for place in self.node.suiting(ask) {
                    let mut node = self.node.clone();
                    node.cards[place].free -= units;
                    tell(self.fall(place, &node, cpu, tables));
                }
            }
            Gpus::Whole(_) | Gpus::All => {
                let wanted = self.node.whole_wanted(ask);
                if self.alike {
                    let Some(first) = self.marks.first() else { return };
                    let (shape, rank) = (tables.shape(first.shape), tables.rank(cpu));
                    let after = self.parts(shape.share_row(rank)) + shape.idle_worth(rank, self.idle - wanted);
                    let taken = WHOLE * wanted as i64;
                    tell(Fall { card: 0, taken, fragmentation: tables.weight * taken - self.usable + after });
                } else {
                    let mut node = self.node.clone();
                    for place in self.node.suiting(ask).take(wanted) {
                        node.cards[place].free = 0;
                    }
                    tell(self.fall(0, &node, cpu, tables));
                }
            }
        }
    }

    fn falls_of_shares(&self, ask: &Ask, units: u32, cpu: u32, tables: &Tables, mut tell: impl FnMut(Fall)) {
        let Some(first) = self.marks.first() else { return };
        let (shape, rank) = (tables.shape(first.shape), tables.rank(cpu));
        let row = shape.share_row(rank);
        let (parts, idle) = (self.parts(row), shape.idle_worth(rank, self.idle));
        let mut seen_idle = false;
        for place in self.node.suiting(ask) {
            let (mut card, mark) = (self.node.cards[place], &self.marks[place]);
            // One idle card is like the other.
            if mark.idle && std::mem::replace(&mut seen_idle, true) {
                continue;
            }
            card.free -= units;
            let left = card.thousandths();
            let worth = i64::from(left) * row[shape.level(card.free)];
            let after = if mark.idle {
                parts + worth + shape.idle_worth(rank, self.idle - 1)
            } else {
                parts + worth - i64::from(mark.thousandths) * row[usize::from(mark.level)] + idle
            };
            let taken = i64::from(mark.thousandths - left);
            tell(Fall { card: place, taken, fragmentation: tables.weight * taken - self.usable + after });
        }
    }

    /// The fall when this becomes `node`, with so much CPU.
    fn fall(&self, card: usize, node: &Node, cpu: u32, tables: &Tables) -> Fall {
        let marks: Vec<Mark> =
            node.cards.iter().zip(&self.marks).map(|(card, mark)| tables.mark(card, mark.shape)).collect();
        let thousandths: i64 = marks.iter().map(|mark| i64::from(mark.thousandths)).sum();
        let taken = self.thousandths - thousandths;
        let fragmentation = tables.weight * taken - self.usable + tables.usable(cpu, node, &marks);
        Fall { card, taken, fragmentation }
    }
}
