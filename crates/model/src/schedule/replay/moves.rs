//! Makes room for a request that fits nowhere by moving instances that run.

use std::collections::HashMap;

use crate::schedule::place::{Ask, CardSet, Fleet, Gpus, Node, Place, PlaceSet, Spot};

/// How many ways to make room are tried for one request, the cheapest first.
const TRIES: usize = 16;

/// Who is where.
#[derive(Debug, Default)]
pub(super) struct Residents(Vec<Vec<(Ask, CardSet)>>);

/// Residents of one node that leave it together.
#[derive(Debug, Clone)]
struct Leave {
    place: Place,
    /// Places in the node's list of residents, ascending.
    who: Vec<usize>,
    /// What they hold, to prefer those who are moved more easily.
    size: u64,
}

impl Residents {
    pub(super) fn add(&mut self, ask: Ask, spot: Spot) {
        let number = spot.place.number();
        if number >= self.0.len() {
            self.0.resize_with(number + 1, Vec::new);
        }
        self.0[number].push((ask, spot.cards));
    }

    /// Places `ask` after at most `most` moves, which it counts; nothing changes when that does not suffice.
    pub(super) fn make_room(&mut self, fleet: &mut Fleet, ask: &Ask, most: usize) -> Option<usize> {
        if most == 0 {
            return None;
        }
        let mut movable: HashMap<Ask, bool> = HashMap::new();
        let mut leaves = Vec::new();
        for place in fleet.places().collect::<Vec<_>>() {
            let Some(node) = fleet.node(place).cloned() else { continue };
            leaves.extend(self.leave(place, &node, ask, most));
        }
        leaves.retain(|leave| {
            leave.who.iter().all(|who| {
                let class = self.0[leave.place.number()][*who].0;
                *movable.entry(class).or_insert_with(|| fleet.choose(&class, None).is_some())
            })
        });
        leaves.sort_by_key(|leave| (leave.who.len(), leave.size, leave.place));
        let leaves = leaves.into_iter().take(TRIES);
        leaves.into_iter().find_map(|leave| self.try_leave(fleet, ask, &leave).then_some(leave.who.len()))
    }

    /// Who has to leave a node so that `ask` fits: the fewest, by card.
    fn leave(&self, place: Place, node: &Node, ask: &Ask, most: usize) -> Option<Leave> {
        let residents = self.0.get(place.number())?;
        let on = |card: usize| {
            let here = move |(_, (_, cards)): &(usize, &(Ask, CardSet))| cards.iter().any(|place| place == card);
            residents.iter().enumerate().filter(here).map(|(who, _)| who)
        };
        let mut who: Vec<usize> = match ask.gpus {
            Gpus::None => Vec::new(),
            Gpus::Share(units) => {
                let allowed = (0..node.cards.len()).filter(|card| ask.kinds.allow(node.cards[*card].kind));
                let enough = |card: usize| {
                    let mut free = node.cards[card].free;
                    let mut who: Vec<usize> = on(card).collect();
                    who.sort_by_key(|who| held(&residents[*who].0));
                    let mut leaving = Vec::new();
                    for who in who {
                        if free >= units {
                            break;
                        }
                        free += held(&residents[who].0) as u32;
                        leaving.push(who);
                    }
                    (free >= units).then_some(leaving)
                };
                allowed.filter_map(enough).min_by_key(Vec::len)?
            }
            Gpus::Whole(count) => {
                let mut cards: Vec<(usize, usize)> = (0..node.cards.len())
                    .filter(|card| ask.kinds.allow(node.cards[*card].kind))
                    .map(|card| (on(card).count(), card))
                    .collect();
                cards.sort_unstable();
                cards.truncate(count.into());
                if cards.len() < usize::from(count) {
                    return None;
                }
                cards.into_iter().flat_map(|(_, card)| on(card)).collect()
            }
            Gpus::All => return None,
        };
        who.sort_unstable();
        who.dedup();
        let mut cpu = node.cpu_free + who.iter().map(|who| residents[*who].0.cpu_millis).sum::<u32>();
        // Then those without cards, the greediest first.
        let mut others: Vec<usize> =
            (0..residents.len()).filter(|other| residents[*other].1.is_empty() && !who.contains(other)).collect();
        others.sort_by_key(|other| std::cmp::Reverse(residents[*other].0.cpu_millis));
        for other in others {
            if cpu >= ask.cpu_millis || who.len() > most {
                break;
            }
            cpu += residents[other].0.cpu_millis;
            who.push(other);
        }
        who.sort_unstable();
        let size = who.iter().map(|who| held(&residents[*who].0)).sum();
        (cpu >= ask.cpu_millis && !who.is_empty() && who.len() <= most).then_some(Leave { place, who, size })
    }

    /// Moves them and places `ask`, or leaves everything as it was.
    fn try_leave(&mut self, fleet: &mut Fleet, ask: &Ask, leave: &Leave) -> bool {
        let Leave { place, ref who, .. } = *leave;
        let leaving: Vec<(Ask, CardSet)> = who.iter().map(|who| self.0[place.number()][*who]).collect();
        for (resident, cards) in &leaving {
            fleet.give_back(resident, Spot { place, cards: *cards });
        }
        let here = PlaceSet::from_iter([place]);
        let mut placed = Vec::new();
        let mut all = fleet.place(ask, Some(&here)).map(|spot| placed.push((*ask, spot))).is_some();
        if all {
            // The place is not barred: what is left there is as good as any other.
            all = leaving
                .iter()
                .all(|(resident, _)| fleet.place(resident, None).map(|spot| placed.push((*resident, spot))).is_some());
        }
        if !all {
            for (placed, spot) in placed {
                fleet.give_back(&placed, spot);
            }
            for (resident, cards) in &leaving {
                let back = fleet.take(resident, Spot { place, cards: *cards });
                debug_assert!(back.is_ok(), "what was given back is there");
            }
            return false;
        }
        for who in who.iter().rev() {
            self.0[place.number()].remove(*who);
        }
        for (placed, spot) in placed {
            self.add(placed, spot);
        }
        true
    }
}

/// What a request holds of cards, in their unit; whole cards count a thousand.
fn held(ask: &Ask) -> u64 {
    super::trace::gpu_millis(ask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::place::{Card, Kind, Kinds, Mix, Policy};

    fn ask(cpu_millis: u32, gpus: Gpus) -> Ask {
        Ask { cpu_millis, memory_bytes: 0, gpus, kinds: Kinds::ANY }
    }

    /// Nodes with so many cards each, and what was placed there.
    fn cluster(cards: &[usize], placed: &[(usize, Ask, usize)]) -> (Fleet, Residents) {
        let mut fleet = Fleet::new(Policy::BestFit, &Mix::default(), 0);
        let card = Card::idle(Kind::new(0).unwrap(), 1000);
        let places: Vec<Place> =
            cards.iter().map(|count| fleet.add(Node::idle(8_000, 1, 10, vec![card; *count]))).collect();
        let mut residents = Residents::default();
        for (node, ask, card) in placed {
            let cards = if ask.gpus == Gpus::None { CardSet::NONE } else { CardSet::from_iter([*card]) };
            let spot = Spot { place: places[*node], cards };
            fleet.take(ask, spot).unwrap();
            residents.add(*ask, spot);
        }
        (fleet, residents)
    }

    fn idle(fleet: &Fleet) -> u64 {
        fleet.idle_thousandths()
    }

    #[test]
    fn a_share_moves_to_another_for_a_whole_card() {
        let share = ask(1_000, Gpus::Share(400));
        let (mut fleet, mut residents) = cluster(&[1, 1], &[(0, share, 0), (1, share, 0)]);
        let whole = ask(1_000, Gpus::Whole(1));
        assert_eq!(residents.make_room(&mut fleet, &whole, 0), None, "none may be moved");
        assert_eq!(residents.make_room(&mut fleet, &whole, 1), Some(1));
        assert_eq!(idle(&fleet), 200);
        assert_eq!(residents.0.iter().map(Vec::len).sum::<usize>(), 3);
        assert_eq!(residents.make_room(&mut fleet, &whole, 9), None, "there is no room to make");
        assert_eq!((idle(&fleet), residents.0.iter().map(Vec::len).sum::<usize>()), (200, 3), "all is as it was");
    }

    #[test]
    fn who_has_no_card_leaves_its_cpu() {
        let (mut fleet, mut residents) = cluster(&[1, 0], &[(0, ask(6_000, Gpus::None), 0)]);
        assert_eq!(residents.make_room(&mut fleet, &ask(4_000, Gpus::Whole(1)), 1), Some(1));
        assert_eq!(idle(&fleet), 0);
        let free: Vec<u32> = fleet.places().filter_map(|place| fleet.node(place)).map(|node| node.cpu_free).collect();
        assert_eq!(free, [4_000, 2_000]);
    }

    #[test]
    fn only_so_many_are_moved() {
        let share = ask(500, Gpus::Share(200));
        let placed = [(0, share, 0), (0, share, 0), (0, share, 0), (1, ask(500, Gpus::Share(300)), 0)];
        let whole = ask(500, Gpus::Whole(1));
        let (mut fleet, mut residents) = cluster(&[1, 1], &placed);
        assert_eq!(residents.make_room(&mut fleet, &whole, 1), Some(1), "the one beside the three");
        let placed = [placed[0], placed[1], placed[2], (1, share, 0), (1, share, 0)];
        let (mut fleet, mut residents) = cluster(&[1, 1], &placed);
        assert_eq!(residents.make_room(&mut fleet, &whole, 1), None);
        assert_eq!(residents.make_room(&mut fleet, &whole, 2), Some(2));
    }
}
