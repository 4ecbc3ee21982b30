//! Which of the nodes that can take an instance is the best.

use std::collections::{BTreeMap, HashMap};

use minijinja::Expression;
use serde::{Deserialize, Serialize};

use super::{
    board::{Ask, Board},
    expression,
    filter::Place,
    gpus,
    place::{self, CardSet, Gain, Gpus},
    policy::{Policy, Term},
    rules,
};
use crate::{
    node::TaintEffect,
    state::NodeRow,
    workload::{Affinity, Attribute, Spread, WorkloadSpec},
};

/// What a term gives a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Points {
    /// What counts.
    #[schema(value_type = String, example = "copies")]
    pub term: Term,
    /// How much of it there is, -1 to 1.
    pub value: f64,
    /// How much it counts.
    pub weight: i32,
    /// The one times the other.
    pub points: f64,
    /// What the number stands for, where it needs words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What the nodes that can take an instance are compared with.
#[derive(Debug, Default)]
pub(super) struct Field<'a> {
    least_copies: u32,
    spread: Vec<Parts<'a>>,
}

/// Copies in each part of what they are to be spread over.
#[derive(Debug)]
struct Parts<'a> {
    wish: &'a Spread,
    copies: HashMap<String, u32>,
    /// The fewest and the most in a part that can take one more.
    range: (u32, u32),
}

impl<'a> Parts<'a> {
    fn of<'b>(ask: Ask<'_>, wish: &'a Spread, board: &'b Board, places: impl Iterator<Item = Place<'b>>) -> Self {
        let mut copies = HashMap::<String, u32>::new();
        for (at, count) in board.copies_of(ask.id).into_iter().flatten() {
            *copies.entry(part(&wish.by, &board.nodes[*at])).or_default() += count;
        }
        let open: Vec<u32> =
            places.map(|place| copies.get(&part(&wish.by, place.node)).copied().unwrap_or(0)).collect();
        let range = (open.iter().copied().min().unwrap_or(0), open.iter().copied().max().unwrap_or(0));
        Self { wish, copies, range }
    }

    /// How full the part of `node` is compared with the others, 0 to 1.
    fn crowded(&self, node: &NodeRow) -> f64 {
        let here = self.copies.get(&part(&self.wish.by, node)).copied().unwrap_or(0);
        let (least, most) = self.range;
        f64::from(here.saturating_sub(least)) / f64::from((most - least).max(1))
    }
}

impl<'a> Field<'a> {
    /// Of these places.
    pub(super) fn of<'b>(ask: Ask<'a>, board: &'b Board, places: impl Iterator<Item = Place<'b>> + Clone) -> Self {
        let wishes = ask.spec.placement.spread.iter();
        let spread = wishes.map(|wish| Parts::of(ask, wish, board, places.clone())).collect();
        Self { least_copies: places.map(|place| place.claims.copies(ask.id)).min().unwrap_or(0), spread }
    }
}

/// The part of what copies are spread over that a node belongs to.
pub(super) fn part(by: &Attribute, node: &NodeRow) -> String {
    match by {
        Attribute::NodeLabel(key) => node.label(key).unwrap_or_default(),
        Attribute::Arch => node.inventory.arch.clone(),
        _ => node.name.to_string(),
    }
}

/// The points of a place, one for each term that counts, and why the expression gave none.
pub(super) fn points(
    ask: Ask<'_>,
    ordinal: u32,
    place: Place<'_>,
    field: &Field<'_>,
    expression: Option<&Expression<'_, '_>>,
) -> (Vec<Points>, Option<String>) {
    let mut failure = None;
    let mut points = Vec::new();
    for term in Term::ALL {
        let weight = place.board.weight(term);
        if weight == 0 || (term == Term::Expression && expression.is_none()) {
            continue;
        }
        let (value, why) = match (term, expression) {
            (Term::Expression, Some(expression)) => {
                let has_image = place.board.has_image(place.at, ask.spec.image.as_str());
                let numbers = numbers(ask.spec, place, place.claims.copies(ask.id), has_image);
                let value = expression::points(expression, &numbers).unwrap_or_else(|why| {
                    failure = Some(why);
                    0.0
                });
                (value, None)
            }
            (Term::Gpus, _) => (value(term, ask, ordinal, place, field), cards_told(ask, place)),
            _ => (value(term, ask, ordinal, place, field), None),
        };
        points.push(Points { term, value, weight, points: value * f64::from(weight), why });
    }
    (points, failure)
}

/// The sum of the points without the words.
pub(super) fn sum(
    ask: Ask<'_>,
    ordinal: u32,
    place: Place<'_>,
    field: &Field<'_>,
    expression: Option<&Expression<'_, '_>>,
) -> i64 {
    lasting(ask, place, field, expression)
        + match place.board.weight(Term::Random) {
            0 => 0,
            weight => millionths(value(Term::Random, ask, ordinal, place, field), weight),
        }
}

/// The same without those of chance.
pub(super) fn lasting(
    ask: Ask<'_>,
    place: Place<'_>,
    field: &Field<'_>,
    expression: Option<&Expression<'_, '_>>,
) -> i64 {
    let of = |term: Term| {
        let value = match (term, place.board.weight(term), expression) {
            (_, 0, _) => 0.0,
            (Term::Expression, _, Some(expression)) => {
                let has_image = place.board.has_image(place.at, ask.spec.image.as_str());
                let numbers = numbers(ask.spec, place, place.claims.copies(ask.id), has_image);
                expression::points(expression, &numbers).unwrap_or(0.0)
            }
            // No other term asks which copy it is.
            _ => value(term, ask, 0, place, field),
        };
        millionths(value, place.board.weight(term))
    };
    Term::ALL.into_iter().filter(|term| *term != Term::Random).map(of).sum()
}

/// The points of a term of which there is all that can be.
pub(super) fn whole(board: &Board, term: Term) -> i64 {
    millionths(1.0, board.weight(term))
}

/// The sum, as a number that can be compared: millionths of a point.
pub(super) fn total(points: &[Points]) -> i64 {
    points.iter().map(|one| millionths(one.value, one.weight)).sum()
}

/// Each term is rounded by itself, so that parts of the sum can be kept.
fn millionths(value: f64, weight: i32) -> i64 {
    (value * f64::from(weight) * 1e6).round() as i64
}

/// The part of the sum that depends on the node's row alone, where none of those is whom `spec` wants beside it.
pub(super) fn standing(spec: &WorkloadSpec, node: &NodeRow, board: &Board) -> i64 {
    let of = |term: Term, value: f64| millionths(value, board.weight(term));
    of(Term::Cost, cost(node, board))
        + of(Term::Watts, watts(node, board))
        + of(Term::Affinity, affinity(spec, node, &|_| false))
        + of(Term::Taints, taints(spec, node))
}

/// The part of the sum that depends on what is left on a node, for who has neither copies there nor, unless it is `counted`, its
/// image; `None` when `ask` does not fit.
pub(super) fn changing(
    ask: &place::Ask,
    spec: &WorkloadSpec,
    at: usize,
    counted: bool,
    board: &Board,
    expression: Option<&Expression<'_, '_>>,
) -> Option<i64> {
    let place = Place::now(board, at);
    let cards = cards_left(ask, at, board)?;
    let has_image = counted && board.has_image(at, spec.image.as_str());
    let of = |term: Term, value: f64| millionths(value, board.weight(term));
    let mut sum = of(Term::Gpus, cards) + of(Term::Instances, crowd(place));
    if board.weight(Term::Fit) != 0 {
        sum += of(Term::Fit, fit(spec, place));
    }
    if has_image {
        sum += of(Term::Image, 1.0);
    }
    if let Some(expression) = expression.filter(|_| board.weight(Term::Expression) != 0) {
        let points = expression::points(expression, &numbers(spec, place, 0, has_image));
        sum += of(Term::Expression, points.unwrap_or(0.0));
    }
    Some(sum)
}

/// The value of the cards' term on a node as it is; `None` when `ask` does not fit there.
fn cards_left(ask: &place::Ask, at: usize, board: &Board) -> Option<f64> {
    let spot = place::Place::at(at);
    if board.settings.policy == Policy::BestFit {
        let gain = board.fleet.gain(spot, ask)?;
        return Some(worth(gain, ask.gpus, &board.seats[at].deck));
    }
    let given = board.fleet.cards(spot, ask)?;
    Some(filling(ask.gpus, given, &board.seats[at].deck))
}

fn value(term: Term, ask: Ask<'_>, ordinal: u32, place: Place<'_>, field: &Field<'_>) -> f64 {
    let Place { node, claims, board, at } = place;
    match term {
        Term::Fit => fit(ask.spec, place),
        Term::Copies => -f64::from((claims.copies(ask.id) - field.least_copies.min(claims.copies(ask.id))).min(1)),
        Term::Instances => crowd(place),
        Term::Image => f64::from(u8::from(board.has_image(at, ask.spec.image.as_str()))),
        Term::Cost => cost(node, board),
        Term::Watts => watts(node, board),
        Term::Affinity => affinity(ask.spec, node, &|name| board.beside(claims, name)),
        Term::Spread => {
            let whole: i32 = field.spread.iter().map(|spread| spread.wish.weight).sum();
            let each = field.spread.iter().map(|spread| f64::from(spread.wish.weight) * spread.crowded(node));
            -part_of(each.sum(), whole.into())
        }
        Term::Taints => taints(ask.spec, node),
        Term::Random => chance(ask, ordinal, place),
        Term::Gpus => of_cards(ask, place),
        // It may fail, and is told with that.
        Term::Expression => 0.0,
    }
}

fn part_of(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn cost(node: &NodeRow, board: &Board) -> f64 {
    -part_of(board.settings.cost(node).unwrap_or(0.0), board.dearest.0)
}

fn watts(node: &NodeRow, board: &Board) -> f64 {
    -part_of(node.watts().unwrap_or(0).into(), board.dearest.1.into())
}

fn affinity(spec: &WorkloadSpec, node: &NodeRow, beside: &dyn Fn(&str) -> bool) -> f64 {
    let holds = |affinity: &&Affinity| rules::holds(&affinity.rule, node, beside).is_ok();
    let affinities = &spec.placement.affinities;
    let whole: i32 = affinities.iter().map(|affinity| affinity.weight.abs()).sum();
    let held: i32 = affinities.iter().filter(holds).map(|affinity| affinity.weight).sum();
    part_of(held.into(), f64::from(whole.max(100)))
}

fn taints(spec: &WorkloadSpec, node: &NodeRow) -> f64 {
    let unwanted =
        |taint: &crate::node::Taint| taint.effect == TaintEffect::PreferNoSchedule && !spec.placement.tolerates(taint);
    -f64::from(u8::from(node.settings.taints.iter().any(unwanted)))
}

/// How many instances are there; the first few count most.
fn crowd(place: Place<'_>) -> f64 {
    let instances = place.claims.instances() as f64;
    -instances / (instances + 8.0)
}

/// How much of what is asked for would then be reserved, on average.
fn fit(spec: &WorkloadSpec, place: Place<'_>) -> f64 {
    let (capacity, reserved) = (place.board.seats[place.at].capacity, place.claims.reserved());
    let resources = &spec.resources;
    let part = |wanted: u64, reserved: u64, all: u64| ((reserved + wanted) as f64 / all.max(1) as f64).min(1.0);
    let cpu = resources.cpu_reserved_millis.map(|wanted| part(wanted.into(), reserved.cpu_millis, capacity.cpu_millis));
    let memory = resources.memory_reserved_bytes;
    let memory = memory.map(|wanted| part(wanted, reserved.memory_bytes, capacity.memory_bytes));
    match (cpu, memory) {
        (Some(cpu), Some(memory)) => (cpu + memory) / 2.0,
        (cpu, memory) => cpu.or(memory).unwrap_or(0.0),
    }
}

/// The value of the cards' term.
fn of_cards(ask: Ask<'_>, place: Place<'_>) -> f64 {
    let wanted = place.engine_ask(ask);
    if place.is_now() {
        return cards_left(&wanted, place.at, place.board).unwrap_or(0.0);
    }
    let node = place.engine_node();
    let Some((gain, given)) = place.board.fleet.judge(&node, &wanted) else { return 0.0 };
    match place.board.settings.policy {
        Policy::BestFit => worth(gain, wanted.gpus, &node.cards),
        Policy::Binpack | Policy::Spread | Policy::Random | Policy::Custom => filling(wanted.gpus, given, &node.cards),
    }
}

/// The same in words, where a number says too little.
fn cards_told(ask: Ask<'_>, place: Place<'_>) -> Option<String> {
    let (node, wanted) = (place.engine_node(), place.engine_ask(ask));
    if place.board.settings.policy != Policy::BestFit || node.cards.is_empty() {
        return None;
    }
    let (gain, _) = place.board.fleet.judge(&node, &wanted)?;
    Some(told(gain, wanted.gpus, &node.cards))
}

/// What a placement leaves to others, from -1 to 1: cards, which count less the more they are. Who asks for no cards leaves those
/// to others that are idle, although it reserves nothing.
fn worth(gain: Gain, gpus: Gpus, deck: &[place::Card]) -> f64 {
    let cards = gain.total() as f64 / Gain::CARD as f64;
    let worth = cards / (1.0 + cards.abs());
    match gpus {
        Gpus::None => {
            let idle = gpus::idle(deck) as f64;
            (worth - IDLE * idle / (idle + 1.0)).max(-1.0)
        }
        Gpus::Share(_) | Gpus::Whole(_) | Gpus::All => worth,
    }
}

/// How much idle cards count for who asks for none.
const IDLE: f64 = 0.02;

/// The same in words.
fn told(gain: Gain, gpus: Gpus, deck: &[place::Card]) -> String {
    let cards = |fine: i64| {
        let cards = (fine.abs() as f64 / Gain::CARD as f64 * 100.0).round() / 100.0;
        format!("{cards} {}", if cards == 1.0 { "card" } else { "cards" })
    };
    let small = |fine: i64| fine.abs() * 200 < Gain::CARD;
    let mut why = Vec::new();
    if !small(gain.fragmentation) {
        let way = if gain.fragmentation > 0 { "fewer lie" } else { "more lie" };
        why.push(format!("{} {way} idle that others could not use", cards(gain.fragmentation)));
    }
    if !small(gain.balance) {
        let way = if gain.balance > 0 { "better" } else { "worse" };
        why.push(format!("CPU and cards that are left match {way} by {}", cards(gain.balance)));
    }
    if !small(gain.price) {
        why.push(format!("others could use them, which counts {}", cards(gain.price)));
    }
    let idle = gpus::idle(deck);
    if gpus == Gpus::None && idle > 0 {
        why.push(format!("{idle} idle {} there", if idle == 1 { "card is" } else { "cards are" }));
    }
    if why.is_empty() { "it makes no difference to the cards".into() } else { why.join("; ") }
}

/// How full the cards are, once `given` are, 0 to 1: for a share the card's memory, for whole cards how many of the node's cards
/// somebody then has. Who asks for none counts the idle ones, below 0.
fn filling(gpus: Gpus, given: CardSet, deck: &[place::Card]) -> f64 {
    let idle = gpus::idle(deck);
    match gpus {
        Gpus::None => -part_of(idle as f64, deck.len() as f64),
        Gpus::Share(units) => given.iter().next().and_then(|place| deck.get(place)).map_or(0.0, |card| {
            let held = f64::from(card.capacity.saturating_sub(card.free)) + f64::from(units);
            (held / f64::from(card.capacity.max(1))).min(1.0)
        }),
        Gpus::Whole(_) | Gpus::All => 1.0 - part_of(idle.saturating_sub(given.len()) as f64, deck.len() as f64),
    }
}

/// A number between 0 and 1 that looks like chance and is the same for the same copy and node.
fn chance(ask: Ask<'_>, ordinal: u32, place: Place<'_>) -> f64 {
    let bytes = [ask.id.0.as_bytes(), place.node.id.0.as_bytes()].into_iter().flatten().copied();
    // FNV-1a, and a last stirring, since the bytes that differ come late.
    let hash = bytes
        .chain(ordinal.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let stirred = (hash ^ (hash >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (stirred >> 11) as f64 / (1_u64 << 53) as f64
}

/// What an expression can name of a place.
fn numbers(spec: &WorkloadSpec, place: Place<'_>, copies: u32, has_image: bool) -> BTreeMap<&'static str, f64> {
    const GIB: f64 = (1_u64 << 30) as f64;
    let Place { node, claims, board, at } = place;
    let (capacity, reserved, cards) = (board.seats[at].capacity, claims.reserved(), &node.inventory.gpus);
    let deck = place.engine_node().cards;
    let left = |all: u64, held: u64| all.saturating_sub(held) as f64;
    let vram: u64 = cards.iter().filter(|card| card.parent.is_none()).map(|card| u64::from(card.memory_mib)).sum();
    let vram_free: u64 = deck.iter().filter(|card| card.capacity > 0).map(|card| u64::from(card.free)).sum();
    BTreeMap::from([
        ("cpus", f64::from(node.inventory.cpus)),
        ("cpus_free", left(capacity.cpu_millis, reserved.cpu_millis) / 1_000.0),
        ("memory_gib", node.inventory.memory_bytes as f64 / GIB),
        ("memory_free_gib", left(capacity.memory_bytes, reserved.memory_bytes) / GIB),
        ("gpus", cards.iter().filter(|card| card.parent.is_none()).count() as f64),
        ("gpus_free", gpus::idle(&deck) as f64),
        ("vram_gib", vram as f64 / 1_024.0),
        ("vram_free_gib", vram_free as f64 / 1_024.0),
        ("instances", claims.instances() as f64),
        ("copies", f64::from(copies)),
        ("replicas", f64::from(spec.replicas)),
        ("priority", f64::from(spec.placement.priority)),
        ("price", board.settings.cost(node).unwrap_or(0.0)),
        ("watts", f64::from(node.watts().unwrap_or(0))),
        ("image", f64::from(u8::from(has_image))),
        ("fit", fit(spec, place)),
    ])
}
