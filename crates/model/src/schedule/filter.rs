//! Which nodes can take an instance, and what keeps it off the others.

use super::{
    board::{Ask, Board},
    feasible::{Claims, has_isolation, network, pinned_to, welcome},
    gpus::{self, Cards},
    obstacle::Obstacle,
    outlook,
    place::{self, CardSet, Gpus},
    rules,
};
use crate::{
    gpu::{Gpu, GpuHold},
    instance::ContainerOrder,
    state::NodeRow,
    workload::{Attribute, Isolation, Rule, WorkloadSpec},
};

/// A node as one asks for a place on it, beside those who hold `claims` there.
#[derive(Clone, Copy)]
pub(super) struct Place<'b> {
    pub(super) at: usize,
    pub(super) node: &'b NodeRow,
    pub(super) claims: &'b Claims,
    pub(super) board: &'b Board,
}

impl<'b> Place<'b> {
    /// The node as it is now.
    pub(super) fn now(board: &'b Board, at: usize) -> Self {
        Self { at, node: &board.nodes[at], claims: &board.seats[at].claims, board }
    }

    /// The same beside others.
    pub(super) fn beside(self, claims: &'b Claims) -> Self {
        Self { claims, ..self }
    }

    /// The node as the engine sees it.
    pub(super) fn engine_node(&self) -> place::Node {
        self.board.engine_node(self.at, self.claims)
    }

    /// Whether those who are there now are beside it.
    pub(super) fn is_now(&self) -> bool {
        std::ptr::eq(self.claims, &self.board.seats[self.at].claims)
    }

    /// What an instance asks the engine for here.
    pub(super) fn engine_ask(&self, ask: Ask<'_>) -> place::Ask {
        let outlook = &self.board.outlook;
        let wanted = self.board.index.engine_ask(ask).unwrap_or_else(|| outlook.ask(ask.spec));
        if !outlook.looks_at_cards(ask.spec) {
            return wanted;
        }
        place::Ask { kinds: wanted.kinds.at(outlook::allowed(ask.spec, Cards::of(self.node))), ..wanted }
    }
}

type Filter = fn(Ask<'_>, Place<'_>, &mut Vec<Obstacle>);

/// What no change on the nodes but one by their users can heal comes first, then what others hold.
const FILTERS: [Filter; 10] =
    [pinned, users, constraints, volumes, memory_limit, isolation, apart, reservations, gpus, ports];

/// How many of them look at the node alone.
const STATIC: usize = 6;

/// Whether a node would do for `spec` by what its row says; volumes apart.
pub(super) fn stands(spec: &WorkloadSpec, node: &NodeRow) -> bool {
    pinned_to(spec, node)
        && welcome(spec, node).is_ok()
        && rules::suits(spec, node)
        && spec.resources.memory_bytes.is_none_or(|wanted| wanted <= node.inventory.memory_bytes)
        && spec.process.isolation.as_ref().is_none_or(|wanted| has_isolation(node, wanted))
}

/// What keeps an instance off a node: with `all` everything, else the first thing that does.
pub(super) fn obstacles(ask: Ask<'_>, place: Place<'_>, all: bool) -> Vec<Obstacle> {
    run(&FILTERS, ask, place, all)
}

/// Whether the node could take the instance if nobody else was there.
pub(super) fn could(ask: Ask<'_>, place: Place<'_>) -> bool {
    run(&FILTERS[..STATIC], ask, place, false).is_empty()
}

fn run(filters: &[Filter], ask: Ask<'_>, place: Place<'_>, all: bool) -> Vec<Obstacle> {
    let mut found = Vec::new();
    for filter in filters {
        filter(ask, place, &mut found);
        if !all && !found.is_empty() {
            found.truncate(1);
            break;
        }
    }
    found
}

/// The complete order for the instance there, by the cards that the engine gives it.
pub(super) fn order(ask: Ask<'_>, place: Place<'_>) -> Result<ContainerOrder, Obstacle> {
    let network = network(ask.spec, place.node, place.claims)?;
    Ok(ContainerOrder { gpus: cards(ask, place)?, ..ContainerOrder::of(ask.spec, network) })
}

fn cards(ask: Ask<'_>, place: Place<'_>) -> Result<Vec<GpuHold>, Obstacle> {
    let Some(wanted) = &ask.spec.gpus else { return Ok(Vec::new()) };
    let (node, own) = (place.engine_node(), place.engine_ask(ask));
    let given = match place.board.fleet.judge(&node, &own) {
        Some((_, given)) => given,
        None => node.tightest(own.gpus, outlook::allowed(ask.spec, Cards::of(place.node))),
    };
    if given == CardSet::NONE {
        return Err(Obstacle::Gpus { why: "its cards cannot be given".into() });
    }
    let cards = &place.node.inventory.gpus;
    let given = match own.gpus {
        Gpus::Whole(2..) => {
            // Each suits alone, as the engine says; together they are better or worse.
            let suit: Vec<usize> = node.suiting(&own).collect();
            gpus::together(cards, given, &suit)
        }
        _ => given,
    };
    Ok(gpus::holds_of(wanted, cards, given))
}

fn pinned(ask: Ask<'_>, place: Place<'_>, found: &mut Vec<Obstacle>) {
    if let Some(node) = ask.spec.node.as_ref().filter(|_| !pinned_to(ask.spec, place.node)) {
        found.push(Obstacle::Pinned { node: node.clone() });
    }
}

fn users(ask: Ask<'_>, place: Place<'_>, found: &mut Vec<Obstacle>) {
    found.extend(welcome(ask.spec, place.node).err());
}

fn constraint(rule: &Rule, place: Place<'_>) -> Option<Obstacle> {
    let holds = rules::holds(rule, place.node, &|name| place.board.beside(place.claims, name));
    holds.err().map(|has| Obstacle::Constraint { rule: rule.clone(), has })
}

/// Of the node; those of cards are looked at with the cards that are given.
fn constraints(ask: Ask<'_>, place: Place<'_>, found: &mut Vec<Obstacle>) {
    let of_node = |rule: &&Rule| {
        rule.attribute != Attribute::Workload && !(ask.spec.gpus.is_some() && rule.attribute.is_of_card())
    };
    let rules = ask.spec.placement.constraints.iter().filter(of_node);
    found.extend(rules.filter_map(|rule| constraint(rule, place)));
}

fn volumes(ask: Ask<'_>, place: Place<'_>, found: &mut Vec<Obstacle>) {
    found.extend(place.board.homes.missing(ask.spec, place.node, place.board));
}

fn memory_limit(ask: Ask<'_>, place: Place<'_>, found: &mut Vec<Obstacle>) {
    let has = place.node.inventory.memory_bytes;
    let wanted = ask.spec.resources.memory_bytes.filter(|wanted| *wanted > has);
    found.extend(wanted.map(|wanted| Obstacle::MemoryLimit { wanted, has }));
}

fn isolation(ask: Ask<'_>, place: Place<'_>, found: &mut Vec<Obstacle>) {
    if let Some(wanted) = ask.spec.process.isolation.as_ref().filter(|wanted| !has_isolation(place.node, wanted)) {
        let has = place.node.inventory.isolation.join(", ");
        let has = if has.is_empty() { Isolation::USUAL.to_owned() } else { has };
        found.push(Obstacle::Isolation { wanted: wanted.clone(), has });
    }
}

/// From workloads that are not to be together, and from too many copies.
fn apart(ask: Ask<'_>, place: Place<'_>, found: &mut Vec<Obstacle>) {
    let placement = &ask.spec.placement;
    let most = placement.max_per_node.filter(|most| place.claims.copies(ask.id) >= *most);
    found.extend(most.map(|most| Obstacle::MaxPerNode { most }));
    let rules = placement.constraints.iter().filter(|rule| rule.attribute == Attribute::Workload);
    found.extend(rules.filter_map(|rule| constraint(rule, place)));
    if let Some((workload, rule)) = place.board.kept_off(ask, place.claims) {
        found.push(Obstacle::KeptOff { workload: workload.clone(), rule: rule.clone() });
    }
}

fn reservations(ask: Ask<'_>, place: Place<'_>, found: &mut Vec<Obstacle>) {
    let capacity = place.board.seats[place.at].capacity;
    found.extend(place.claims.cpu(&ask.spec.resources, capacity));
    found.extend(place.claims.memory(&ask.spec.resources, capacity));
}

fn gpus(ask: Ask<'_>, place: Place<'_>, found: &mut Vec<Obstacle>) {
    let Some(wanted) = &ask.spec.gpus else { return };
    let cards = Cards::of(place.node);
    let enough = match gpus::amount(wanted) {
        Gpus::Share(_) => Some(1),
        Gpus::Whole(count) => Some(usize::from(count)),
        // It depends on how many may be used at all.
        Gpus::All | Gpus::None => None,
    };
    if let (Some(count), true) = (enough, place.is_now()) {
        // What is left of each card is known, and nobody asks for reasons.
        let deck = place.board.seats[place.at].deck.iter().enumerate();
        let fits = |(at, _): &(usize, &place::Card)| {
            wanted.allows(cards.cards, *at).is_ok() && rules::allows_card(ask.spec, &cards.cards[*at]).is_ok()
        };
        let can_serve = deck.filter(|(_, card)| card.serves(gpus::amount(wanted)));
        if count > 0 && can_serve.filter(fits).take(count).count() == count {
            return;
        }
    }
    let constrained = |card: &Gpu| rules::allows_card(ask.spec, card).map_err(|rule| format!("`{rule}` does not hold"));
    let why = place.claims.gpus().refusal(wanted, cards, &constrained);
    found.extend(why.map(|why| Obstacle::Gpus { why }));
}

fn ports(ask: Ask<'_>, place: Place<'_>, found: &mut Vec<Obstacle>) {
    found.extend(network(ask.spec, place.node, place.claims).err());
}
