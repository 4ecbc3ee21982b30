//! What the engine is told of the cluster: which kinds of cards there are, and what is typically asked for.

use std::collections::{BTreeMap, HashMap};

use super::{
    gpus::{Cards, amount},
    place::{Ask, CardSet, Gpus, Kind, Kinds, Mix},
    rules::allows_card,
};
use crate::{
    gpu::{Gpu, GpuAmount, GpuRequest, GpuVendor},
    instance::Desired,
    state::{NodeRow, WorkloadRow},
    workload::{Rule, WorkloadSpec},
};

/// Most requests of a mix.
const TYPICAL: usize = 64;
/// A request that occurs so many times less often than the most frequent one is none of a mix.
const RARE: u64 = 32;

/// What requests and constraints can tell cards apart by, but for their names and places.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Model {
    vendor: GpuVendor,
    name: String,
    gib: u32,
}

impl Model {
    fn of(card: &Gpu) -> Self {
        Self { vendor: card.vendor, name: card.model.clone(), gib: card.sold_gib() }
    }
}

/// Workloads of which the mix sees no difference: CPU in thousandths, and the request with its constraints.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Typical {
    cpu_millis: u32,
    gpus: String,
    constraints: Vec<String>,
}

/// What a request needs to know which kinds it may have.
#[derive(Debug, Clone)]
struct Wanted {
    gpus: Option<GpuRequest>,
    constraints: Vec<Rule>,
}

/// What is new of kinds and mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    Nothing,
    /// The mix alone, which makes all scores others.
    Mix,
    /// Kinds, and with them what requests mean.
    Kinds,
}

/// Kinds and mix, as they follow from the rows.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    /// How many cards there are of each model, with one of them.
    models: BTreeMap<Model, (usize, Gpu)>,
    numbers: HashMap<Model, Kind>,
    /// Copies that are to run.
    wanted: BTreeMap<Typical, (u64, Wanted)>,
    stale: bool,
    mix: Mix,
    /// How often the most frequent request occurs, rounded.
    heaviest: u64,
}

/// The kind of all models beyond the number of kinds; who asks for cards of one of them is asked about each card.
const OTHERS: usize = Kind::LIMIT - 1;

impl Outlook {
    /// There are more, or fewer, of the node's cards.
    pub(super) fn count_cards(&mut self, node: &NodeRow, more: bool) {
        for card in &node.inventory.gpus {
            let model = Model::of(card);
            let (count, _) = self.models.entry(model.clone()).or_insert_with(|| {
                self.stale = true;
                (0, card.clone())
            });
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.models.remove(&model);
                self.stale = true;
            }
        }
    }

    /// More, or fewer, copies of the workload are to run.
    pub(super) fn count_workload(&mut self, workload: &WorkloadRow, more: bool) {
        let copies = u64::from(workload.spec.replicas);
        if workload.desired != Desired::Running || copies == 0 {
            return;
        }
        let spec = &workload.spec;
        let gpus = spec.gpus.clone().map(|wanted| GpuRequest { devices: Vec::new(), ..wanted });
        let of_card = spec.placement.constraints.iter().filter(|rule| gpus.is_some() && rule.attribute.is_of_card());
        let constraints: Vec<Rule> = of_card.cloned().collect();
        let typical = Typical {
            cpu_millis: rounded(u64::from(spec.resources.cpu_reserved_millis.unwrap_or(0)), 3) as u32,
            gpus: gpus.as_ref().map_or_else(String::new, ToString::to_string),
            constraints: constraints.iter().map(ToString::to_string).collect(),
        };
        let (count, _) = self.wanted.entry(typical.clone()).or_insert((0, Wanted { gpus, constraints }));
        let before = rounded(*count, 2);
        *count = if more { *count + copies } else { count.saturating_sub(copies) };
        let after = rounded(*count, 2);
        // What is rare before and after is in no mix.
        self.stale |= before != after && before.max(after) >= self.heaviest / RARE;
        if *count == 0 {
            self.wanted.remove(&typical);
        }
    }

    /// Follows the rows, and tells what is new.
    pub(super) fn refresh(&mut self) -> News {
        if !std::mem::take(&mut self.stale) {
            return News::Nothing;
        }
        let numbered = self.models.keys().enumerate();
        let numbers: HashMap<Model, Kind> =
            numbered.filter_map(|(number, model)| Some((model.clone(), Kind::new(number.min(OTHERS))?))).collect();
        self.heaviest = self.wanted.values().map(|(count, _)| rounded(*count, 2)).max().unwrap_or(0);
        let kinds = numbers != self.numbers;
        self.numbers = numbers;
        let mix = self.typical();
        let before = std::mem::replace(&mut self.mix, mix);
        match (kinds, before == self.mix) {
            (true, _) => News::Kinds,
            (false, false) => News::Mix,
            (false, true) => News::Nothing,
        }
    }

    /// The mix as it was when it was last refreshed.
    pub(super) fn mix(&self) -> &Mix {
        &self.mix
    }

    fn typical(&self) -> Mix {
        let mut asks: Vec<(&Typical, u64, &Wanted)> =
            self.wanted.iter().map(|(typical, (count, wanted))| (typical, rounded(*count, 2), wanted)).collect();
        asks.retain(|(_, count, _)| *count >= self.heaviest / RARE);
        asks.sort_by(|(one, many, _), (other, more, _)| (more, one).cmp(&(many, other)));
        asks.truncate(TYPICAL);
        let mut mix: Vec<(Ask, u32)> = Vec::with_capacity(asks.len());
        for (typical, count, Wanted { gpus, constraints }) in asks {
            let kinds = self.kinds(gpus.as_ref(), constraints);
            let gpus = match gpus.as_ref().map_or(Gpus::None, amount) {
                Gpus::Share(mib) => Gpus::Share(rounded(mib.into(), 3) as u32),
                other => other,
            };
            let ask = Ask { cpu_millis: typical.cpu_millis, memory_bytes: 0, gpus, kinds };
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            // Shares that were not the same before they were rounded.
            match mix.iter_mut().find(|(other, _)| *other == ask) {
                Some((_, sum)) => *sum = sum.saturating_add(count),
                None => mix.push((ask, count)),
            }
        }
        if mix.iter().all(|(ask, _)| ask.gpus == Gpus::None) {
            let to_come =
                |cores: u32, gpus| Ask { cpu_millis: cores * 1_000, memory_bytes: 0, gpus, kinds: self.all() };
            mix.extend([(to_come(4, Gpus::Whole(1)), 2), (to_come(2, Gpus::Share(8_192)), 1)]);
        }
        Mix::new(mix)
    }

    fn all(&self) -> Kinds {
        self.numbers.values().copied().collect()
    }

    fn kinds(&self, wanted: Option<&GpuRequest>, constraints: &[Rule]) -> Kinds {
        let Some(wanted) = wanted else { return Kinds::ANY };
        let devices = Vec::new();
        let wanted = GpuRequest { devices, ..wanted.clone() };
        let fine = |card: &Gpu| {
            wanted.allows(std::slice::from_ref(card), 0).is_ok() && super::rules::allow_card(constraints, card).is_ok()
        };
        let models = self.models.iter().filter(|(_, (_, card))| fine(card));
        models.filter_map(|(model, _)| self.numbers.get(model).copied()).collect()
    }

    /// Whether any node has a card.
    pub(super) fn has_cards(&self) -> bool {
        !self.models.is_empty()
    }

    /// What a card counts as.
    pub(super) fn kind(&self, card: &Gpu) -> Kind {
        self.numbers.get(&Model::of(card)).copied().unwrap_or_default()
    }

    /// What an instance of `spec` asks the engine for, wherever it is.
    pub(super) fn ask(&self, spec: &WorkloadSpec) -> Ask {
        Ask {
            cpu_millis: spec.resources.cpu_reserved_millis.unwrap_or(0),
            memory_bytes: spec.resources.memory_reserved_bytes.unwrap_or(0),
            gpus: spec.gpus.as_ref().map_or(Gpus::None, amount),
            kinds: self.kinds(spec.gpus.as_ref(), &spec.placement.constraints),
        }
    }

    /// Whether kinds alone do not tell which cards `spec` may have: it names some, wants all, or there are too many models.
    pub(super) fn looks_at_cards(&self, spec: &WorkloadSpec) -> bool {
        let some = |wanted: &GpuRequest| !wanted.devices.is_empty() || wanted.amount == GpuAmount::All;
        spec.gpus.as_ref().is_some_and(|wanted| some(wanted) || self.models.len() > OTHERS)
    }
}

/// Which of a node's cards an instance of `spec` may have, whoever holds them.
pub(super) fn allowed(spec: &WorkloadSpec, cards: Cards<'_>) -> CardSet {
    let Some(wanted) = &spec.gpus else { return CardSet::NONE };
    // Of a card in parts only the parts are given, so it is none of all.
    let all = wanted.amount == GpuAmount::All;
    let fine = |place: usize, card: &Gpu| {
        wanted.allows(cards.cards, place).is_ok()
            && allows_card(spec, card).is_ok()
            && !(all && cards.is_in_parts(card))
    };
    let each = cards.cards.iter().enumerate().take(CardSet::LIMIT);
    each.filter(|(place, card)| fine(*place, card)).map(|(place, _)| place).collect()
}

/// The number, with so many bits that count.
fn rounded(number: u64, bits: u32) -> u64 {
    let low = (u64::BITS - number.leading_zeros()).saturating_sub(bits);
    let half = (1 << low) / 2;
    (number.saturating_add(half) >> low) << low
}
