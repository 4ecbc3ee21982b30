//! The nodes, and the search for the best of them.

use super::{
    Ask, CardSet, Gain, Gpus, Mix, Node, Policy, Random, Refusal, host::Host, mix::Tables, policy::Scale,
    ranking::Rankings,
};

/// A node's place in its fleet: the lowest that was vacant when it was added. On a tie the lower place wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place(u32);

impl Place {
    /// The place with this number.
    pub(in crate::schedule) fn at(number: usize) -> Self {
        Self(number as u32)
    }

    /// As a number.
    pub fn number(self) -> usize {
        self.0 as usize
    }
}

/// A set of places, for requests that may not be everywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaceSet(Vec<u64>);

impl PlaceSet {
    /// Adds a place.
    pub fn insert(&mut self, place: Place) {
        let word = place.number() / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (place.number() % 64);
    }

    /// Whether a place is in it.
    pub fn contains(&self, place: Place) -> bool {
        self.0.get(place.number() / 64).is_some_and(|word| word & 1 << (place.number() % 64) != 0)
    }
}

impl FromIterator<Place> for PlaceSet {
    fn from_iter<I: IntoIterator<Item = Place>>(places: I) -> Self {
        let mut set = Self::default();
        places.into_iter().for_each(|place| set.insert(place));
        set
    }
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spot {
    /// The node.
    pub place: Place,
    /// Its cards that are given.
    pub cards: CardSet,
}

/// Nodes, under a policy and a target workload.
#[derive(Debug)]
pub struct Fleet {
    mix: Mix,
    tables: Tables,
    scale: Scale,
    random: Random,
    hosts: Vec<Option<Host>>,
    /// Sums over the hosts.
    fragmentation: i128,
    thousandths: i64,
    /// By what a score depends on.
    rankings: Rankings<Ask, u32>,
}

impl Fleet {
    /// Without nodes yet. The seed matters to [`Policy::Random`] alone.
    pub fn new(policy: Policy, mix: &Mix, seed: u64) -> Self {
        let tables = Tables::new(mix);
        Self {
            mix: mix.clone(),
            scale: Scale::new(policy, &tables),
            tables,
            random: Random::new(seed),
            hosts: Vec::new(),
            fragmentation: 0,
            thousandths: 0,
            rankings: Rankings::new(),
        }
    }

    /// Who decides.
    pub(in crate::schedule) fn policy(&self) -> Policy {
        self.scale.policy
    }

    /// Another mix stands for the future. The nodes stay as they are.
    pub(in crate::schedule) fn retarget(&mut self, mix: &Mix) {
        self.mix = mix.clone();
        self.tables = self.tables.retargeted(mix);
        self.scale.retarget(&self.tables);
        self.fragmentation = 0;
        for host in self.hosts.iter_mut().flatten() {
            host.revalue(&self.tables);
            self.fragmentation += i128::from(host.fragmentation(&self.tables));
        }
        self.rankings.forget();
    }

    /// How many places there are.
    pub(in crate::schedule) fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Adds a node. Cards beyond [`CardSet::LIMIT`] are left out.
    pub fn add(&mut self, node: Node) -> Place {
        let vacant = self.hosts.iter().position(Option::is_none);
        let number = vacant.unwrap_or(self.hosts.len());
        if vacant.is_none() {
            self.hosts.push(None);
            // The rankings have no place for it.
            self.rankings.resize(self.hosts.len());
        }
        let place = Place(number as u32);
        self.put(place, Some(node));
        place
    }

    /// A node is now like this.
    pub fn change(&mut self, place: Place, node: Node) {
        if self.node(place).is_some() {
            self.put(place, Some(node));
        }
    }

    /// A node is gone, with whatever was on it.
    pub fn remove(&mut self, place: Place) {
        if self.node(place).is_some() {
            self.put(place, None);
        }
    }

    /// A node as it is now.
    pub fn node(&self, place: Place) -> Option<&Node> {
        self.hosts.get(place.number())?.as_ref().map(|host| &host.node)
    }

    /// The places that have a node, ascending.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let taken = self.hosts.iter().enumerate().filter(|(_, host)| host.is_some());
        taken.map(|(number, _)| Place(number as u32))
    }

    fn put(&mut self, place: Place, node: Option<Node>) {
        let number = place.number();
        let old = self.hosts[number].take();
        if let Some(old) = &old {
            self.count(old, -1);
        }
        let supply = |node: &Node| node.cards.iter().map(|card| (card.kind, card.capacity)).collect::<Vec<_>>();
        let same = old.as_ref().zip(node.as_ref()).is_some_and(|(old, node)| supply(&old.node) == supply(node));
        if let Some(old) = old.filter(|_| !same) {
            self.scale.balance.count(&old.node.cards, false);
        }
        if let Some(mut node) = node {
            node.cards.truncate(CardSet::LIMIT);
            let host = Host::new(node, &mut self.tables);
            self.count(&host, 1);
            if !same {
                self.scale.balance.count(&host.node.cards, true);
            }
            if self.scale.grow(&host) {
                self.rankings.forget();
            }
            self.hosts[number] = Some(host);
        }
        self.rankings.changed(number);
    }

    fn count(&mut self, host: &Host, sign: i64) {
        self.fragmentation += i128::from(sign) * i128::from(host.fragmentation(&self.tables));
        self.thousandths += sign * host.thousandths;
    }

    /// The best spot for `ask` among the `eligible` places, all when it is `None`. Nothing is taken.
    pub fn choose(&mut self, ask: &Ask, eligible: Option<&PlaceSet>) -> Option<Spot> {
        if self.scale.policy == Policy::Random {
            return self.choose_any(ask, eligible);
        }
        let class = Ask { memory_bytes: if self.scale.policy.weighs_memory() { ask.memory_bytes } else { 0 }, ..*ask };
        self.follow_supply();
        let Self { hosts, tables, scale, rankings, .. } = self;
        let key = |number: usize| {
            let host = hosts[number].as_ref().filter(|host| host.computes(&class))?;
            Some(scale.score(host, &class, tables))
        };
        let may = |number: usize| {
            eligible.is_none_or(|places| places.contains(Place(number as u32)))
                && hosts[number].as_ref().is_some_and(|host| host.node.holds(ask))
        };
        let number = rankings.of(&class, key).first(may)?;
        let cards = self.scale.cards(hosts[number].as_ref()?, ask, &self.tables);
        Some(Spot { place: Place(number as u32), cards })
    }

    /// Chooses and takes.
    pub fn place(&mut self, ask: &Ask, eligible: Option<&PlaceSet>) -> Option<Spot> {
        let spot = self.choose(ask, eligible)?;
        self.take(ask, spot).ok().map(|()| spot)
    }

    fn choose_any(&mut self, ask: &Ask, eligible: Option<&PlaceSet>) -> Option<Spot> {
        let fits = |place: &Place| {
            eligible.is_none_or(|places| places.contains(*place))
                && self.hosts[place.number()].as_ref().is_some_and(|host| host.computes(ask) && host.node.holds(ask))
        };
        let places: Vec<Place> = self.places().filter(fits).collect();
        let place = *places.get(self.random.below(places.len()))?;
        let host = self.hosts[place.number()].as_ref()?;
        let mut suiting: Vec<usize> = host.node.suiting(ask).collect();
        self.random.shuffle(&mut suiting);
        let wanted = if matches!(ask.gpus, Gpus::Share(_)) { 1 } else { host.node.whole_wanted(ask) };
        Some(Spot { place, cards: suiting.into_iter().take(wanted).collect() })
    }

    /// Prices and the like follow what cards there are; whether scores changed with them.
    pub(in crate::schedule) fn follow_supply(&mut self) -> bool {
        let changed = self.scale.balance.refresh(&self.mix) && self.scale.policy == Policy::Balanced;
        if changed {
            self.rankings.forget();
        }
        changed
    }

    /// Takes what `ask` needs at `spot`. Nothing changes when it is not there.
    pub fn take(&mut self, ask: &Ask, spot: Spot) -> Result<(), Refusal> {
        self.alter(spot.place, |node| node.take(ask, spot.cards)).unwrap_or(Err(Refusal::Gone))
    }

    /// Gives back what was taken for `ask` at `spot`.
    pub fn give_back(&mut self, ask: &Ask, spot: Spot) {
        self.alter(spot.place, |node| node.give_back(ask, spot.cards));
    }

    /// A node has other numbers now, and the cards it had.
    pub(in crate::schedule) fn adjust(&mut self, place: Place, adjust: impl FnOnce(&mut Node)) {
        self.alter(place, adjust);
    }

    fn alter<T>(&mut self, place: Place, alter: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let mut host = self.hosts.get_mut(place.number())?.take()?;
        self.count(&host, -1);
        let outcome = alter(&mut host.node);
        host.refresh(&mut self.tables);
        self.count(&host, 1);
        self.hosts[place.number()] = Some(host);
        self.rankings.changed(place.number());
        Some(outcome)
    }

    /// Whether a node can serve `ask` now; else the first thing that is missing.
    pub fn why_not(&self, place: Place, ask: &Ask) -> Result<(), Refusal> {
        self.node(place).ok_or(Refusal::Gone)?.why_not(ask)
    }

    /// The score by which [`Self::choose`] orders a node for `ask`; greater is better, and only comparable for the same
    /// request. `None` when the node cannot serve it.
    pub fn score(&self, place: Place, ask: &Ask) -> Option<u32> {
        self.why_not(place, ask).ok()?;
        let host = self.hosts.get(place.number())?.as_ref()?;
        Some(self.scale.score(host, ask, &self.tables))
    }

    /// What placing `ask` at a place is worth under [`Policy::Balanced`]; `None` when it does not fit there. Only what
    /// [`Self::follow_supply`] has seen counts.
    pub(in crate::schedule) fn gain(&self, place: Place, ask: &Ask) -> Option<Gain> {
        let host = self.hosts.get(place.number())?.as_ref()?;
        (host.computes(ask) && host.node.holds(ask)).then(|| self.scale.gain(host, ask, &self.tables))
    }

    /// The cards that `ask` would get at a place; `None` when it does not fit there.
    pub(in crate::schedule) fn cards(&self, place: Place, ask: &Ask) -> Option<CardSet> {
        let host = self.hosts.get(place.number())?.as_ref()?;
        (host.computes(ask) && host.node.holds(ask)).then(|| self.scale.cards(host, ask, &self.tables))
    }

    /// Both on a node that may be none of these.
    pub(in crate::schedule) fn judge(&self, node: &Node, ask: &Ask) -> Option<(Gain, CardSet)> {
        node.why_not(ask).ok()?;
        let host = Host::known(node.clone(), &self.tables)?;
        Some((self.scale.gain(&host, ask, &self.tables), self.scale.cards(&host, ask, &self.tables)))
    }

    /// The expected idle thousandths of cards that a request of the mix cannot use.
    pub fn fragmentation(&self) -> f64 {
        self.fragmentation as f64 / self.tables.weight.max(1) as f64
    }

    /// The same without rounding, in a unit that depends on the mix.
    pub(in crate::schedule) fn fragmented(&self) -> i128 {
        self.fragmentation
    }

    /// The idle thousandths of all cards.
    pub fn idle_thousandths(&self) -> u64 {
        self.thousandths.max(0) as u64
    }
}
