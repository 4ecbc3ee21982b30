//! What nodes have and have left.

use super::{Ask, Gpus, Kind, Kinds};

/// One card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// What it counts as.
    pub kind: Kind,
    /// Its size, in any unit that is the same for all cards of a fleet that serve the same requests: thousandths in
    /// the trace, MiB in the product. A card of size 0 is there and serves nobody.
    pub capacity: u32,
    /// What is left of it. A card is idle, and can be given whole, when nothing is missing.
    pub free: u32,
}

impl Card {
    /// A card that nobody holds.
    pub fn idle(kind: Kind, capacity: u32) -> Self {
        Self { kind, capacity, free: capacity }
    }

    /// Whether it can be given whole.
    pub fn is_idle(&self) -> bool {
        self.free == self.capacity && self.capacity > 0
    }

    /// Whether it can serve a request, taken alone.
    pub fn serves(&self, gpus: Gpus) -> bool {
        match gpus {
            Gpus::None => false,
            Gpus::Share(units) => units <= self.free && self.capacity > 0,
            Gpus::Whole(_) | Gpus::All => self.is_idle(),
        }
    }

    /// What is left, in thousandths of the card.
    pub(super) fn thousandths(&self) -> u32 {
        ((u64::from(self.free) * 1000) / u64::from(self.capacity.max(1))) as u32
    }
}

/// A set of a node's cards, by their place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct CardSet(u128);

impl CardSet {
    /// How many cards a node can have.
    pub const LIMIT: usize = 128;

    /// No card.
    pub const NONE: Self = Self(0);

    /// Every card.
    pub const ALL: Self = Self(u128::MAX);

    /// Whether the card at `place` is in it.
    pub fn contains(self, place: usize) -> bool {
        place < Self::LIMIT && self.0 & 1 << place != 0
    }

    /// The places, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let place = left.trailing_zeros() as usize;
            left &= left.checked_sub(1)?;
            Some(place)
        })
    }

    /// How many.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<usize> for CardSet {
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> Self {
        Self(places.into_iter().fold(0, |all, place| all | 1 << place))
    }
}

/// What a node has, and what of it nobody holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Of them, free.
    pub cpu_free: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Of it, free.
    pub memory_free: u64,
    /// How many instances it takes.
    pub slots: u32,
    /// How many more.
    pub slots_free: u32,
    /// Its cards; a request gets the lowest places that suit.
    pub cards: Vec<Card>,
}

impl Node {
    /// A node that nobody uses.
    pub fn idle(cpu_millis: u32, memory_bytes: u64, slots: u32, cards: Vec<Card>) -> Self {
        Self {
            cpu_millis,
            cpu_free: cpu_millis,
            memory_bytes,
            memory_free: memory_bytes,
            slots,
            slots_free: slots,
            cards,
        }
    }

    /// How many instances hold something here.
    pub fn instances(&self) -> u32 {
        self.slots - self.slots_free.min(self.slots)
    }

    /// Whether `ask` fits, but for memory and slots.
    pub(super) fn computes(&self, ask: &Ask) -> bool {
        ask.cpu_millis <= self.cpu_free && self.cards_fit(ask)
    }

    /// Whether memory and slots suffice for `ask`.
    pub(super) fn holds(&self, ask: &Ask) -> bool {
        self.slots_free > 0 && ask.memory_bytes <= self.memory_free
    }

    fn cards_fit(&self, ask: &Ask) -> bool {
        match ask.gpus {
            Gpus::None => true,
            Gpus::Share(_) => self.suiting(ask).next().is_some(),
            Gpus::Whole(_) | Gpus::All => {
                let wanted = self.whole_wanted(ask);
                self.suiting(ask).take(wanted).count() == wanted
            }
        }
    }

    /// The cards that can serve `ask`, each taken alone; ascending.
    pub(in crate::schedule) fn suiting(&self, ask: &Ask) -> impl Iterator<Item = usize> {
        let Ask { gpus, kinds, .. } = *ask;
        let suits = move |place: usize, card: &Card| kinds.allow_card(place, card.kind) && card.serves(gpus);
        self.cards.iter().enumerate().filter(move |(place, card)| suits(*place, card)).map(|(place, _)| place)
    }

    /// How many whole cards `ask` means here.
    pub(super) fn whole_wanted(&self, ask: &Ask) -> usize {
        match ask.gpus {
            Gpus::None | Gpus::Share(_) => 0,
            Gpus::Whole(count) => usize::from(count),
            Gpus::All => self.allowed(ask).max(1),
        }
    }

    fn allowed(&self, ask: &Ask) -> usize {
        self.cards_allowed(ask).count()
    }

    fn cards_allowed(&self, ask: &Ask) -> impl Iterator<Item = &Card> {
        let cards = self.cards.iter().enumerate();
        cards.filter(|(place, card)| ask.kinds.allow_card(*place, card.kind)).map(|(_, card)| card)
    }

    /// The cards among `allowed` that a request gets when nothing is weighed: for a share the fullest, else the first.
    pub(in crate::schedule) fn tightest(&self, gpus: Gpus, allowed: CardSet) -> CardSet {
        let kinds = Kinds::ANY.at(allowed);
        let ask = Ask { cpu_millis: 0, memory_bytes: 0, gpus, kinds };
        match gpus {
            Gpus::None => CardSet::NONE,
            Gpus::Share(_) => {
                self.suiting(&ask).min_by_key(|place| (self.cards[*place].free, *place)).into_iter().collect()
            }
            Gpus::Whole(_) | Gpus::All => self.suiting(&ask).take(self.whole_wanted(&ask)).collect(),
        }
    }

    /// Why it cannot serve `ask`.
    pub(super) fn why_not(&self, ask: &Ask) -> Result<(), Refusal> {
        if self.slots_free == 0 {
            return Err(Refusal::Slots { slots: self.slots });
        }
        if ask.cpu_millis > self.cpu_free {
            return Err(Refusal::Cpu { wanted: ask.cpu_millis, free: self.cpu_free });
        }
        if ask.memory_bytes > self.memory_free {
            return Err(Refusal::Memory { wanted: ask.memory_bytes, free: self.memory_free });
        }
        if self.cards_fit(ask) {
            return Ok(());
        }
        Err(match (self.allowed(ask), ask.gpus) {
            (0, _) if self.cards.is_empty() => Refusal::NoCard,
            (0, _) => Refusal::Kind { cards: self.cards.len() },
            (_, Gpus::Share(wanted)) => {
                Refusal::Share { wanted, most: self.cards_allowed(ask).map(|card| card.free).max().unwrap_or(0) }
            }
            (cards, _) => Refusal::Cards { wanted: self.whole_wanted(ask), idle: self.suiting(ask).count(), cards },
        })
    }

    /// Takes what `ask` needs, with these cards; nothing when it is not there.
    pub(super) fn take(&mut self, ask: &Ask, cards: CardSet) -> Result<(), Refusal> {
        self.why_not(ask)?;
        let wanted = if matches!(ask.gpus, Gpus::Share(_)) { 1 } else { self.whole_wanted(ask) };
        let suiting: CardSet = self.suiting(ask).collect();
        if cards.len() != wanted || cards.0 & !suiting.0 != 0 {
            return Err(Refusal::Cards {
                wanted,
                idle: cards.iter().filter(|place| suiting.0 & 1 << place != 0).count(),
                cards: cards.len(),
            });
        }
        self.cpu_free -= ask.cpu_millis;
        self.memory_free -= ask.memory_bytes;
        self.slots_free -= 1;
        for place in cards.iter() {
            let card = &mut self.cards[place];
            card.free -= match ask.gpus {
                Gpus::Share(units) => units,
                Gpus::None | Gpus::Whole(_) | Gpus::All => card.free,
            };
        }
        Ok(())
    }

    /// Gives back what [`Self::take`] took. Never more than there is.
    pub(super) fn give_back(&mut self, ask: &Ask, cards: CardSet) {
        self.cpu_free = self.cpu_millis.min(self.cpu_free.saturating_add(ask.cpu_millis));
        self.memory_free = self.memory_bytes.min(self.memory_free.saturating_add(ask.memory_bytes));
        self.slots_free = self.slots.min(self.slots_free.saturating_add(1));
        for place in cards.iter() {
            let Some(card) = self.cards.get_mut(place) else { continue };
            card.free = match ask.gpus {
                Gpus::Share(units) => card.capacity.min(card.free.saturating_add(units)),
                Gpus::None | Gpus::Whole(_) | Gpus::All => card.capacity,
            };
        }
    }
}

/// Why a node cannot serve a request: the first thing that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The node is not there.
    Gone,
    /// It has as many instances as it takes.
    Slots {
        /// How many that is.
        slots: u32,
    },
    /// Too little CPU, in thousandths of a core.
    Cpu {
        /// Asked for.
        wanted: u32,
        /// Left.
        free: u32,
    },
    /// Too little memory, in bytes.
    Memory {
        /// Asked for.
        wanted: u64,
        /// Left.
        free: u64,
    },
    /// It has no card at all.
    NoCard,
    /// None of its cards is of an allowed kind.
    Kind {
        /// How many cards it has.
        cards: usize,
    },
    /// Too few idle cards of the allowed kinds.
    Cards {
        /// Asked for.
        wanted: usize,
        /// Idle among them.
        idle: usize,
        /// All of the allowed kinds.
        cards: usize,
    },
    /// No card of the allowed kinds has so much left.
    Share {
        /// Units asked for.
        wanted: u32,
        /// The most that one of them has left.
        most: u32,
    },
}
