//! What is asked for.

use super::CardSet;

/// A class of cards that requests tell apart: model, policy of sharing, whatever the caller interns as one. A bit of
/// [`Kinds`]; there are at most [`Kind::LIMIT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Kind(u8);

impl Kind {
    /// How many kinds one fleet can tell apart.
    pub const LIMIT: usize = 64;

    /// The kind with this number; `None` from [`Self::LIMIT`] on.
    pub fn new(number: usize) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| usize::from(*number) < Self::LIMIT).map(Self)
    }
}

/// Which cards may serve: those of some kinds, or of them those at some places among a node's cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kinds {
    kinds: u64,
    places: CardSet,
}

impl Kinds {
    /// Every kind.
    pub const ANY: Self = Self { kinds: u64::MAX, places: CardSet::ALL };

    /// Whether cards of `kind` are among them, wherever they are.
    pub fn allow(self, kind: Kind) -> bool {
        self.kinds & 1 << kind.0 != 0
    }

    /// The same at these places alone.
    pub fn at(self, places: CardSet) -> Self {
        Self { places, ..self }
    }

    /// Whether a node's card number `place`, which is of `kind`, may serve.
    pub(super) fn allow_card(self, place: usize, kind: Kind) -> bool {
        self.allow(kind) && self.places.contains(place)
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        Self { kinds: kinds.into_iter().fold(0, |all, kind| all | 1 << kind.0), places: CardSet::ALL }
    }
}

/// How much of the cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Gpus {
    /// Nothing.
    None,
    /// So many units of one card, in the unit of [`Card::capacity`](super::Card::capacity); never 0.
    Share(u32),
    /// So many whole cards; never 0.
    Whole(u16),
    /// Every card of an allowed kind that the node has, and at least one.
    All,
}

/// What one instance needs of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ask {
    /// CPU to reserve, in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory to reserve. A filter; only [`Policy::Binpack`](super::Policy::Binpack) and
    /// [`Policy::Spread`](super::Policy::Spread) weigh it too.
    pub memory_bytes: u64,
    /// Cards.
    pub gpus: Gpus,
    /// The kinds that may serve; of no meaning without cards.
    pub kinds: Kinds,
}
