//! Which of the nodes that can take an instance is the best.

use std::collections::{BTreeMap, HashMap};

use minijinja::Expression;
use serde::{Deserialize, Serialize};

use super::{
    board::{Ask, Board},
    expression,
    filter::{Place, cards},
    gpus::Cards,
    policy::Term,
    rules,
};
use crate::{
    node::TaintEffect,
    state::NodeRow,
    workload::{Affinity, Attribute, Spread},
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
}

/// What the nodes that can take an instance are compared with: the most and the least among them.
#[derive(Debug, Default)]
pub(super) struct Field<'a> {
    least_copies: u32,
    most_instances: usize,
    most_cost: f64,
    most_watts: u32,
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
    fn of<'b>(ask: Ask<'_>, wish: &'a Spread, board: &Board<'_>, places: impl Iterator<Item = Place<'b, 'a>>) -> Self
    where
        'a: 'b,
    {
        let mut copies = HashMap::<String, u32>::new();
        for (node, seat) in board.nodes.iter().zip(&board.seats) {
            *copies.entry(part(wish, node)).or_default() += seat.claims.copies(ask.id);
        }
        let open: Vec<u32> = places.map(|place| copies.get(&part(wish, place.node)).copied().unwrap_or(0)).collect();
        let range = (open.iter().copied().min().unwrap_or(0), open.iter().copied().max().unwrap_or(0));
        Self { wish, copies, range }
    }

    /// How full the part of `node` is compared with the others, 0 to 1.
    fn crowded(&self, node: &NodeRow) -> f64 {
        let here = self.copies.get(&part(self.wish, node)).copied().unwrap_or(0);
        let (least, most) = self.range;
        f64::from(here.saturating_sub(least)) / f64::from((most - least).max(1))
    }
}

impl<'a> Field<'a> {
    /// Of these places.
    pub(super) fn of<'b>(ask: Ask<'a>, board: &Board<'_>, places: impl Iterator<Item = Place<'b, 'a>> + Clone) -> Self
    where
        'a: 'b,
    {
        let wishes = ask.spec.placement.spread.iter();
        let spread = wishes.map(|wish| Parts::of(ask, wish, board, places.clone())).collect();
        Self {
            least_copies: places.clone().map(|place| place.claims.copies(ask.id)).min().unwrap_or(0),
            most_instances: places.clone().map(|place| place.claims.instances()).max().unwrap_or(0),
            most_cost: places.clone().filter_map(|place| board.settings.cost(place.node)).fold(0.0, f64::max),
            most_watts: places.filter_map(|place| place.node.watts()).max().unwrap_or(0),
            spread,
        }
    }
}

fn part(spread: &Spread, node: &NodeRow) -> String {
    match &spread.by {
        Attribute::NodeLabel(key) => node.label(key).unwrap_or_default(),
        Attribute::Arch => node.inventory.arch.clone(),
        _ => node.name.to_string(),
    }
}

/// The points of a place, one for each term that counts, and why the expression gave none.
pub(super) fn points(
    ask: Ask<'_>,
    ordinal: u32,
    place: Place<'_, '_>,
    field: &Field<'_>,
    expression: Option<&Expression<'_, '_>>,
) -> (Vec<Points>, Option<String>) {
    let mut failure = None;
    let settings = place.board.settings;
    let mut points = Vec::new();
    for term in Term::ALL {
        let weight = settings.weight(term);
        if weight == 0 || (term == Term::Expression && expression.is_none()) {
            continue;
        }
        let value = match (term, expression) {
            (Term::Expression, Some(expression)) => expression::points(expression, &numbers(ask, place))
                .unwrap_or_else(|why| {
                    failure = Some(why);
                    0.0
                }),
            _ => value(term, ask, ordinal, place, field),
        };
        points.push(Points { term, value, weight, points: value * f64::from(weight) });
    }
    (points, failure)
}

/// The sum, as a number that can be compared: millionths of a point.
pub(super) fn total(points: &[Points]) -> i64 {
    (points.iter().map(|one| one.points).sum::<f64>() * 1e6).round() as i64
}

fn value(term: Term, ask: Ask<'_>, ordinal: u32, place: Place<'_, '_>, field: &Field<'_>) -> f64 {
    let Place { node, claims, board, at } = place;
    let part_of = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    match term {
        Term::Fit => fit(ask, place),
        Term::Copies => -f64::from((claims.copies(ask.id) - field.least_copies.min(claims.copies(ask.id))).min(1)),
        Term::Instances => -part_of(claims.instances() as f64, field.most_instances as f64),
        Term::Gpus => {
            let (all, count) = (Cards::of(node), node.inventory.gpus.len());
            match &ask.spec.gpus {
                Some(_) => claims.gpus().fullness(&cards(ask.spec, place).unwrap_or_default(), all),
                None => -part_of(claims.gpus().free_cards(all) as f64, count as f64),
            }
        }
        Term::Image => f64::from(u8::from(board.has_image(at, ask.spec.image.as_str()))),
        Term::Cost => -part_of(board.settings.cost(node).unwrap_or(0.0), field.most_cost),
        Term::Watts => -part_of(node.watts().unwrap_or(0).into(), field.most_watts.into()),
        Term::Affinity => {
            let beside = |name: &str| board.beside(claims, name);
            let holds = |affinity: &&Affinity| rules::holds(&affinity.rule, node, &beside).is_ok();
            let affinities = &ask.spec.placement.affinities;
            let whole: i32 = affinities.iter().map(|affinity| affinity.weight.abs()).sum();
            let held: i32 = affinities.iter().filter(holds).map(|affinity| affinity.weight).sum();
            part_of(held.into(), f64::from(whole.max(100)))
        }
        Term::Spread => {
            let whole: i32 = field.spread.iter().map(|spread| spread.wish.weight).sum();
            let each = field.spread.iter().map(|spread| f64::from(spread.wish.weight) * spread.crowded(node));
            -part_of(each.sum(), whole.into())
        }
        Term::Taints => {
            let unwanted = |taint: &crate::node::Taint| {
                taint.effect == TaintEffect::PreferNoSchedule && !ask.spec.placement.tolerates(taint)
            };
            -f64::from(u8::from(node.settings.taints.iter().any(unwanted)))
        }
        Term::Random => chance(ask, ordinal, place),
        Term::Expression => 0.0,
    }
}

/// How much of what is asked for would then be reserved, on average.
fn fit(ask: Ask<'_>, place: Place<'_, '_>) -> f64 {
    let (capacity, reserved) = (place.board.capacity(place.at), place.claims.reserved());
    let resources = &ask.spec.resources;
    let part = |wanted: u64, reserved: u64, all: u64| ((reserved + wanted) as f64 / all.max(1) as f64).min(1.0);
    let cpu = resources.cpu_reserved_millis.map(|wanted| part(wanted.into(), reserved.cpu_millis, capacity.cpu_millis));
    let memory = resources.memory_reserved_bytes;
    let memory = memory.map(|wanted| part(wanted, reserved.memory_bytes, capacity.memory_bytes));
    let parts: Vec<f64> = cpu.into_iter().chain(memory).collect();
    parts.iter().sum::<f64>() / parts.len().max(1) as f64
}

/// A number between 0 and 1 that looks like chance and is the same for the same copy and node.
fn chance(ask: Ask<'_>, ordinal: u32, place: Place<'_, '_>) -> f64 {
    let bytes = [ask.id.0.as_bytes(), place.node.id.0.as_bytes()].into_iter().flatten().copied();
    // FNV-1a, and a last stirring, since the bytes that differ come late.
    let hash = bytes
        .chain(ordinal.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let stirred = (hash ^ (hash >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (stirred >> 11) as f64 / (1_u64 << 53) as f64
}

/// What an expression can name of a place.
fn numbers(ask: Ask<'_>, place: Place<'_, '_>) -> BTreeMap<&'static str, f64> {
    const GIB: f64 = (1_u64 << 30) as f64;
    let Place { node, claims, board, at } = place;
    let (capacity, reserved, cards) = (board.capacity(at), claims.reserved(), &node.inventory.gpus);
    let left = |all: u64, held: u64| all.saturating_sub(held) as f64;
    let vram: u64 = cards.iter().filter(|card| card.parent.is_none()).map(|card| u64::from(card.memory_mib)).sum();
    BTreeMap::from([
        ("cpus", f64::from(node.inventory.cpus)),
        ("cpus_free", left(capacity.cpu_millis, reserved.cpu_millis) / 1_000.0),
        ("memory_gib", node.inventory.memory_bytes as f64 / GIB),
        ("memory_free_gib", left(capacity.memory_bytes, reserved.memory_bytes) / GIB),
        ("gpus", cards.iter().filter(|card| card.parent.is_none()).count() as f64),
        ("gpus_free", claims.gpus().free_cards(Cards::of(node)) as f64),
        ("vram_gib", vram as f64 / 1_024.0),
        ("vram_free_gib", claims.gpus().free_mib(Cards::of(node)) as f64 / 1_024.0),
        ("instances", claims.instances() as f64),
        ("copies", f64::from(claims.copies(ask.id))),
        ("replicas", f64::from(ask.spec.replicas)),
        ("priority", f64::from(ask.spec.placement.priority)),
        ("price", board.settings.cost(node).unwrap_or(0.0)),
        ("watts", f64::from(node.watts().unwrap_or(0))),
        ("image", f64::from(u8::from(board.has_image(at, ask.spec.image.as_str())))),
        ("fit", fit(ask, place)),
    ])
}
