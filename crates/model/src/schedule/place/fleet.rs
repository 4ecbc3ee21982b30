//! The nodes, and the search for the best of them.

use std::collections::HashMap;

use super::{
    Ask, CardSet, Gpus, Mix, Node, Policy, Random, Refusal, host::Host, mix::Tables, policy::Scale, ranking::Ranking,
};

/// A node's place in its fleet: the lowest that was vacant when it was added. On a tie the lower place wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place(u32);

impl Place {
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

/// What is remembered of the requests that differ in nothing that a score depends on.
#[derive(Debug)]
struct Class {
    ranking: Ranking,
    /// The changes up to here are in `ranking`.
    seen: u64,
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
    classes: HashMap<Ask, Class>,
    /// Places that changed, oldest first; the first entry is change number `forgotten`.
    changes: Vec<u32>,
    forgotten: u64,
    /// The walk through the changes that last saw each place.
    walks: Vec<u64>,
    walk: u64,
}

/// How many classes of requests are remembered; then all are forgotten, which costs time only.
const CLASSES: usize = 512;

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
            classes: HashMap::new(),
            changes: Vec::new(),
            forgotten: 0,
            walks: Vec::new(),
            walk: 0,
        }
    }

    /// Adds a node. Cards beyond [`CardSet::LIMIT`] are left out.
    pub fn add(&mut self, node: Node) -> Place {
        let vacant = self.hosts.iter().position(Option::is_none);
        let number = vacant.unwrap_or(self.hosts.len());
        if vacant.is_none() {
            self.hosts.push(None);
            self.walks.push(0);
            // The rankings have no place for it.
            self.classes.clear();
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
        if let Some(old) = self.hosts[number].take() {
            self.count(&old, -1);
            self.scale.balance.count(&old.node.cards, false);
        }
        if let Some(mut node) = node {
            node.cards.truncate(CardSet::LIMIT);
            let host = Host::new(node, &mut self.tables);
            self.count(&host, 1);
            self.scale.balance.count(&host.node.cards, true);
            if self.scale.grow(&host) {
                self.classes.clear();
            }
            self.hosts[number] = Some(host);
        }
        self.changed(number);
    }

    fn count(&mut self, host: &Host, sign: i64) {
        self.fragmentation += i128::from(sign) * i128::from(host.fragmentation(&self.tables));
        self.thousandths += sign * host.thousandths;
    }

    fn changed(&mut self, number: usize) {
        self.changes.push(number as u32);
        // Who has not asked for so long looks at every node again.
        if self.changes.len() > 4 * self.hosts.len() + 1024 {
            let half = self.changes.len() / 2;
            self.changes.drain(..half);
            self.forgotten += half as u64;
        }
    }

    /// The best spot for `ask` among the `eligible` places, all when it is `None`. Nothing is taken.
    pub fn choose(&mut self, ask: &Ask, eligible: Option<&PlaceSet>) -> Option<Spot> {
        if self.scale.policy == Policy::Random {
            return self.choose_any(ask, eligible);
        }
        let class = Ask { memory_bytes: if self.scale.policy.weighs_memory() { ask.memory_bytes } else { 0 }, ..*ask };
        if self.scale.balance.refresh(&self.mix) && self.scale.policy == Policy::Balanced {
            self.classes.clear();
        }
        self.catch_up(&class);
        let hosts = &self.hosts;
        let may = |number: usize| {
            eligible.is_none_or(|places| places.contains(Place(number as u32)))
                && hosts[number].as_ref().is_some_and(|host| host.node.holds(ask))
        };
        let number = self.classes.get(&class)?.ranking.first(may)?;
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

    /// Makes the ranking of a class follow the changes.
    fn catch_up(&mut self, class: &Ask) {
        let now = self.forgotten + self.changes.len() as u64;
        let Self { hosts, tables, scale, classes, .. } = self;
        let key = |number: usize| match &hosts[number] {
            Some(host) if host.computes(class) => scale.score(host, class, tables) + 1,
            Some(_) | None => Ranking::OUT,
        };
        if let Some(known) = classes.get_mut(class).filter(|known| known.seen >= self.forgotten) {
            self.walk += 1;
            for number in &self.changes[(known.seen - self.forgotten) as usize..] {
                let number = *number as usize;
                if std::mem::replace(&mut self.walks[number], self.walk) != self.walk {
                    known.ranking.set(number, key(number));
                }
            }
            known.seen = now;
            return;
        }
        let mut ranking = Ranking::new(hosts.len());
        ranking.fill((0..hosts.len()).map(key));
        if classes.len() >= CLASSES {
            classes.clear();
        }
        classes.insert(*class, Class { ranking, seen: now });
    }

    /// Takes what `ask` needs at `spot`. Nothing changes when it is not there.
    pub fn take(&mut self, ask: &Ask, spot: Spot) -> Result<(), Refusal> {
        self.alter(spot.place, |node| node.take(ask, spot.cards)).unwrap_or(Err(Refusal::Gone))
    }

    /// Gives back what was taken for `ask` at `spot`.
    pub fn give_back(&mut self, ask: &Ask, spot: Spot) {
        self.alter(spot.place, |node| node.give_back(ask, spot.cards));
    }

    fn alter<T>(&mut self, place: Place, alter: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let mut host = self.hosts.get_mut(place.number())?.take()?;
        self.count(&host, -1);
        let outcome = alter(&mut host.node);
        host.refresh(&mut self.tables);
        self.count(&host, 1);
        self.hosts[place.number()] = Some(host);
        self.changed(place.number());
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

    /// The expected idle thousandths of cards that a request of the mix cannot use.
    pub fn fragmentation(&self) -> f64 {
        self.fragmentation as f64 / self.tables.weight.max(1) as f64
    }

    /// The idle thousandths of all cards.
    pub fn idle_thousandths(&self) -> u64 {
        self.thousandths.max(0) as u64
    }
}
