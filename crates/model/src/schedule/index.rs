//! The nodes in order of their points for each class of asks, and who is to be looked at beside them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use minijinja::Expression;

use super::{
    board::{Ask, Board},
    filter::{Place, obstacles, stands},
    outlook,
    place::{self, ranking::Rankings},
    policy::{PlacementSettings, Term, Weights},
    score,
};
use crate::{
    state::NodeRow,
    workload::{Attribute, Mount, NetworkMode, Protocol, Rule, Test, WorkloadSpec},
};

/// Most wishes, workloads with a known class, and nodes that are looked at one by one beside a ranking; what is beyond
/// costs time only.
const WISHES: usize = 256;
const KNOWN: usize = 1 << 17;
const BESIDE: usize = 64;

/// The points of a node, then the fewest instances, then the lower id.
pub(super) type Key = (i64, Reverse<u32>, Reverse<u32>);

/// What an ask wants of nodes by themselves, whoever is there.
#[derive(Debug)]
struct Wish {
    /// One of those who wish it.
    spec: WorkloadSpec,
    /// By node: the points, when the node would do.
    nodes: Vec<Option<i64>>,
}

/// What the order of nodes depends on. Asks of one class differ only in what few nodes have: copies, an image, neighbours.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Class {
    /// Its place among the wishes.
    wish: usize,
    ask: place::Ask,
    /// The request and the constraints that every card is asked about, where kinds do not tell.
    cards: Option<String>,
    /// Host ports that it names.
    ports: Vec<(u16, Protocol)>,
    /// Its image, when that is on many nodes.
    image: Option<String>,
    /// What else the cluster's expression may name: replicas and priority.
    named: Option<(u32, u32)>,
}

/// The index.
#[derive(Debug)]
pub(super) struct Index {
    rankings: Rankings<Arc<Class>, Key>,
    wishes: Vec<Wish>,
    wish_of: HashMap<String, usize>,
    /// By workload: its generation, whether its image is on many nodes, and its class.
    classes: HashMap<crate::ids::WorkloadId, (u64, bool, Arc<Class>)>,
    /// By node, its place among all ids.
    ranks: Vec<u32>,
    /// Nodes whose rows changed.
    stale: BTreeSet<usize>,
    /// What wishes depend on beside rows.
    followed: Option<(Weights, (f64, u32), PlacementSettings)>,
    /// By what copies are spread over.
    parts: HashMap<Vec<Attribute>, Parts>,
}

/// Nodes by the parts they belong to.
type Parts = Arc<Vec<Vec<usize>>>;

impl Default for Index {
    fn default() -> Self {
        Self {
            rankings: Rankings::new(),
            wishes: Vec::new(),
            wish_of: HashMap::new(),
            classes: HashMap::new(),
            ranks: Vec::new(),
            stale: BTreeSet::new(),
            followed: None,
            parts: HashMap::new(),
        }
    }
}

impl Index {
    /// What is left on a node changed.
    pub(super) fn changed(&mut self, at: usize) {
        if at < self.ranks.len() {
            self.rankings.changed(at);
        }
    }

    /// A node's row changed.
    pub(super) fn node_changed(&mut self, at: usize) {
        self.stale.insert(at);
    }

    /// There are other nodes.
    pub(super) fn forget_nodes(&mut self) {
        self.followed = None;
    }

    /// All points may be others.
    pub(super) fn forget_scores(&mut self) {
        self.rankings.forget();
    }

    /// So may be what asks mean to the engine.
    pub(super) fn forget_all(&mut self) {
        self.rankings.forget();
        self.classes.clear();
    }

    /// Follows nodes and settings. `ids` are the nodes' places in the order of their ids.
    pub(super) fn follow(
        &mut self,
        ids: impl Iterator<Item = usize>,
        (weights, dearest): (Weights, (f64, u32)),
        settings: &PlacementSettings,
    ) {
        let followed = Some((weights, dearest, settings.clone()));
        if self.followed == followed {
            return;
        }
        self.followed = followed;
        let ids: Vec<usize> = ids.collect();
        self.ranks = vec![0; ids.len()];
        for (rank, at) in ids.into_iter().enumerate() {
            self.ranks[at] = rank as u32;
        }
        self.rankings.resize(self.ranks.len());
        self.classes.clear();
        self.wishes.clear();
        self.wish_of.clear();
        self.parts.clear();
        self.stale.clear();
    }
}

/// Who comes into question for an ask: the best of each part, and all that others are not like. Whoever is scored over all
/// nodes is among them. `None` when a scan over all is needed.
pub(super) fn candidates(
    ask: Ask<'_>,
    board: &mut Board,
    expression: Option<&Expression<'_, '_>>,
) -> Option<Vec<usize>> {
    if let Some(only) = named(ask, board) {
        return Some(only);
    }
    if board.weight(Term::Random) != 0 || board.nodes.len() <= 1 {
        return None;
    }
    follow_nodes(board);
    let class = class_of(ask, board, expression.is_some());
    let mut index = std::mem::take(&mut board.index);
    let found = search(ask, &class, board, &mut index, expression);
    board.index = index;
    Some(found)
}

fn search(
    ask: Ask<'_>,
    class: &Arc<Class>,
    board: &Board,
    index: &mut Index,
    expression: Option<&Expression<'_, '_>>,
) -> Vec<usize> {
    let beside = beside(ask, class, board);
    let spread = if board.weight(Term::Spread) == 0 { None } else { parts(ask, board, index) };
    let Index { rankings, wishes, ranks, .. } = index;
    let judge = Judge { class, wish: &wishes[class.wish], ranks, spec: ask.spec, board, expression };
    let ranking = rankings.of(class, |at| judge.key(at));
    let may = |at: usize| {
        !beside.contains(&at) && at < board.nodes.len() && obstacles(ask, Place::now(board, at), false).is_empty()
    };
    let mut found: Vec<usize> = match &spread {
        None => ranking.first(may).into_iter().collect(),
        Some(parts) => {
            let of_part = |part: &Vec<usize>| best_of(part, |at| ranking.key(at), &may);
            parts.iter().filter_map(of_part).collect()
        }
    };
    // Who is not like the others is left out where he can be no better than the best of them.
    let least = match (&spread, found.first().and_then(|at| ranking.key(*at))) {
        (None, Some((points, ..))) if expression.is_none() => points,
        _ => i64::MIN,
    };
    let bonus = most_beside(ask, class, board);
    let copies = board.copies_of(ask.id);
    found.extend(beside.into_iter().filter(|at| {
        let Some((points, ..)) = ranking.key(*at) else { return false };
        let has_copies = copies.is_some_and(|nodes| nodes.contains_key(at));
        let malus = if has_copies { score::whole(board, Term::Copies) } else { 0 };
        points.saturating_add(bonus).saturating_sub(malus) >= least
    }));
    found
}

/// The most points that a node may have beside those of its class.
fn most_beside(ask: Ask<'_>, class: &Class, board: &Board) -> i64 {
    let neighbours = ask.spec.placement.affinities.iter().any(|one| one.rule.attribute == Attribute::Workload);
    let image = if class.image.is_none() { score::whole(board, Term::Image).max(0) } else { 0 };
    // From all against it to all for it.
    image + if neighbours { 2 * score::whole(board, Term::Affinity).abs() } else { 0 }
}

/// The first in order of a part that `may` serve.
fn best_of(part: &[usize], key: impl Fn(usize) -> Option<Key>, may: &impl Fn(usize) -> bool) -> Option<usize> {
    let mut best: Option<(Key, usize)> = None;
    for at in part {
        let Some(own) = key(*at) else { continue };
        if best.is_none_or(|(most, _)| own > most) && may(*at) {
            best = Some((own, *at));
        }
    }
    best.map(|(_, at)| at)
}

/// The nodes that `ask` is bound to, if it is.
fn named(ask: Ask<'_>, board: &Board) -> Option<Vec<usize>> {
    let spec = ask.spec;
    if let Some(node) = &spec.node {
        return Some(board.named(node).into_iter().collect());
    }
    let home = spec.mounts.iter().filter_map(Mount::volume).find_map(|volume| board.homes.of_volume(&volume.name));
    if let Some(home) = home {
        return Some(board.position(home).into_iter().collect());
    }
    let beside = spec
        .placement
        .constraints
        .iter()
        .find(|rule| rule.attribute == Attribute::Workload && matches!(rule.test, Test::Is(_)))?;
    Some(with(beside, board).collect::<BTreeSet<usize>>().into_iter().collect())
}

/// The nodes on which a workload is that a rule names.
fn with<'b>(rule: &'b Rule, board: &'b Board) -> impl Iterator<Item = usize> + 'b {
    let ids = rule.names().iter().filter_map(|name| board.workload_named(name));
    ids.filter_map(|id| board.copies_of(id)).flat_map(|nodes| nodes.keys().copied())
}

/// The nodes that are not like all others for this ask alone.
fn beside(ask: Ask<'_>, class: &Class, board: &Board) -> BTreeSet<usize> {
    let mut nodes: BTreeSet<usize> = board.copies_of(ask.id).into_iter().flatten().map(|(at, _)| *at).collect();
    if class.image.is_none() {
        nodes.extend(board.images_of(ask.spec.image.as_str()).into_iter().flatten().map(|(at, _)| *at));
    }
    let neighbours = ask.spec.placement.affinities.iter().map(|affinity| &affinity.rule);
    for rule in neighbours.filter(|rule| rule.attribute == Attribute::Workload) {
        nodes.extend(with(rule, board));
    }
    nodes
}

impl Index {
    /// What a workload's copies ask the engine for, as far as that is known.
    pub(super) fn engine_ask(&self, ask: Ask<'_>) -> Option<place::Ask> {
        let (generation, _, class) = self.classes.get(&ask.id)?;
        (*generation == ask.generation).then_some(class.ask)
    }
}

/// The nodes by the parts that `ask` is to be spread over; `None` when there is but one.
fn parts(ask: Ask<'_>, board: &Board, index: &mut Index) -> Option<Parts> {
    // By name every node is a part of its own: those with copies are looked at one by one, and all others are alike.
    let by = ask.spec.placement.spread.iter().map(|wish| &wish.by).filter(|by| !is_name(by));
    let by: Vec<Attribute> = by.cloned().collect();
    if by.is_empty() {
        return None;
    }
    let found = index.parts.entry(by).or_insert_with_key(|by| {
        let mut parts: BTreeMap<Vec<String>, Vec<usize>> = BTreeMap::new();
        for (at, node) in board.nodes.iter().enumerate() {
            let part = by.iter().map(|by| score::part(by, node)).collect();
            parts.entry(part).or_default().push(at);
        }
        Arc::new(parts.into_values().collect())
    });
    Some(Arc::clone(found))
}

fn is_name(by: &Attribute) -> bool {
    !matches!(by, Attribute::NodeLabel(_) | Attribute::Arch)
}

/// What is remembered of nodes whose rows changed is made anew.
fn follow_nodes(board: &mut Board) {
    let stale = std::mem::take(&mut board.index.stale);
    if stale.is_empty() {
        return;
    }
    let mut wishes = std::mem::take(&mut board.index.wishes);
    for at in stale {
        for wish in &mut wishes {
            wish.nodes[at] = stand(&wish.spec, board, at);
        }
        board.index.changed(at);
    }
    board.index.wishes = wishes;
    board.index.parts.clear();
}

/// What a node is worth by itself, when it would do.
fn stand(spec: &WorkloadSpec, board: &Board, at: usize) -> Option<i64> {
    let node: &NodeRow = &board.nodes[at];
    stands(spec, node).then(|| score::standing(spec, node, board))
}

fn wish_of(spec: &WorkloadSpec, board: &mut Board) -> usize {
    let WorkloadSpec { placement, resources, process, network, gpus, .. } = spec;
    let key = format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {}",
        placement.tolerations,
        placement.constraints,
        placement.affinities,
        resources.memory_bytes,
        process.isolation,
        network,
        gpus.is_some()
    );
    if let Some(known) = board.index.wish_of.get(&key) {
        return *known;
    }
    if board.index.wishes.len() >= WISHES {
        board.index.wishes.clear();
        board.index.wish_of.clear();
        board.index.forget_all();
    }
    let nodes = (0..board.nodes.len()).map(|at| stand(spec, board, at)).collect();
    let number = board.index.wishes.len();
    board.index.wishes.push(Wish { spec: spec.clone(), nodes });
    board.index.wish_of.insert(key, number);
    number
}

fn class_of(ask: Ask<'_>, board: &mut Board, expression: bool) -> Arc<Class> {
    let spec = ask.spec;
    let many = board.images_of(spec.image.as_str()).is_some_and(|nodes| nodes.len() > BESIDE);
    let known = board.index.classes.get(&ask.id);
    if let Some((.., class)) = known.filter(|(generation, image, _)| (*generation, *image) == (ask.generation, many)) {
        return Arc::clone(class);
    }
    let wish = wish_of(spec, board);
    let looks = board.outlook.looks_at_cards(spec);
    let class = Arc::new(Class {
        wish,
        ask: board.outlook.ask(spec),
        cards: looks.then(|| format!("{:?} {:?}", spec.gpus, spec.placement.constraints)),
        ports: match spec.network {
            NetworkMode::Bridge => spec.ports.iter().filter_map(|port| Some((port.host?, port.protocol))).collect(),
            NetworkMode::Host | NetworkMode::None => Vec::new(),
        },
        image: many.then(|| spec.image.as_str().to_owned()),
        named: expression.then_some((spec.replicas, spec.placement.priority)),
    });
    if board.index.classes.len() >= KNOWN {
        board.index.classes.clear();
    }
    // Who is no row yet has no id of his own.
    if !ask.id.0.is_nil() {
        board.index.classes.insert(ask.id, (ask.generation, many, Arc::clone(&class)));
    }
    class
}

/// Gives nodes their keys for one class.
struct Judge<'j, 'e> {
    class: &'j Class,
    wish: &'j Wish,
    ranks: &'j [u32],
    spec: &'j WorkloadSpec,
    board: &'j Board,
    expression: Option<&'j Expression<'e, 'e>>,
}

impl Judge<'_, '_> {
    fn key(&self, at: usize) -> Option<Key> {
        let Self { class, wish, board, .. } = self;
        let standing = wish.nodes[at]?;
        let seat = &board.seats[at];
        let network = self.spec.network != NetworkMode::Bridge
            || (seat.has_address && class.ports.iter().all(|port| !seat.claims.has_port(*port)));
        if !network {
            return None;
        }
        let ask = match class.cards {
            Some(_) => {
                let allowed = outlook::allowed(self.spec, super::gpus::Cards::of(&board.nodes[at]));
                place::Ask { kinds: class.ask.kinds.at(allowed), ..class.ask }
            }
            None => class.ask,
        };
        let points = score::changing(&ask, self.spec, at, class.image.is_some(), board, self.expression)?;
        let instances = seat.claims.instances() as u32;
        Some((standing + points, Reverse(instances), Reverse(self.ranks[at])))
    }
}
