//! The engine beside the definitions it implements.

mod golden;
mod naive;
mod random_fleets;

use super::*;

/// The kinds with these numbers.
fn kinds(numbers: impl IntoIterator<Item = usize>) -> Kinds {
    numbers.into_iter().map(|number| Kind::new(number).unwrap()).collect()
}

fn ask(cpu_millis: u32, gpus: Gpus) -> Ask {
    Ask { cpu_millis, memory_bytes: 0, gpus, kinds: Kinds::ANY }
}

/// A node with so much CPU and cards in thousandths of which so much is free.
fn node(cpu_millis: u32, free: &[u32]) -> Node {
    let kind = Kind::new(0).unwrap();
    let cards = free.iter().map(|free| Card { kind, capacity: 1000, free: *free }).collect();
    Node::idle(cpu_millis, 1 << 40, 1001, cards)
}

#[test]
fn a_tie_goes_to_the_lowest_place() {
    let mut fleet = Fleet::new(Policy::BestFit, &Mix::default(), 0);
    let places: Vec<Place> = (0..5).map(|_| fleet.add(node(8_000, &[1000]))).collect();
    let whole = ask(1_000, Gpus::Whole(1));
    assert_eq!(fleet.place(&whole, None).map(|spot| spot.place), Some(places[0]));
    assert_eq!(fleet.place(&whole, None).map(|spot| spot.place), Some(places[1]));
    fleet.remove(places[2]);
    assert_eq!(fleet.choose(&whole, None).map(|spot| spot.place), Some(places[3]));
    assert_eq!(fleet.add(node(8_000, &[1000])), places[2], "the vacant place");
    assert_eq!(fleet.choose(&whole, None).map(|spot| spot.place), Some(places[2]));
    let last = PlaceSet::from_iter([places[4]]);
    assert_eq!(fleet.place(&whole, Some(&last)).map(|spot| spot.place), Some(places[4]));
    assert_eq!(fleet.place(&whole, Some(&last)), None);
}

#[test]
fn refusals_name_what_is_missing() {
    let mut fleet = Fleet::new(Policy::Binpack, &Mix::default(), 0);
    let mut some = node(8_000, &[1000, 300, 0]);
    some.memory_free = 10;
    let place = fleet.add(some);
    let bare = fleet.add(node(8_000, &[]));
    let why = |ask: Ask| fleet.why_not(place, &ask).unwrap_err();
    assert_eq!(why(ask(9_000, Gpus::None)), Refusal::Cpu { wanted: 9_000, free: 8_000 });
    assert_eq!(why(Ask { memory_bytes: 11, ..ask(0, Gpus::None) }), Refusal::Memory { wanted: 11, free: 10 });
    assert_eq!(why(ask(0, Gpus::Whole(2))), Refusal::Cards { wanted: 2, idle: 1, cards: 3 });
    assert_eq!(why(ask(0, Gpus::All)), Refusal::Cards { wanted: 3, idle: 1, cards: 3 });
    assert_eq!(why(ask(0, Gpus::Share(1001))), Refusal::Share { wanted: 1001, most: 1000 });
    assert_eq!(why(Ask { kinds: kinds([1]), ..ask(0, Gpus::Whole(1)) }), Refusal::Kind { cards: 3 });
    assert_eq!(fleet.why_not(bare, &ask(0, Gpus::Whole(1))), Err(Refusal::NoCard));
    assert_eq!(fleet.why_not(place, &ask(8_000, Gpus::Share(1000))), Ok(()));
    fleet.remove(place);
    assert_eq!(fleet.why_not(place, &ask(0, Gpus::None)), Err(Refusal::Gone));
}

#[test]
fn what_is_not_there_cannot_be_taken() {
    let mut fleet = Fleet::new(Policy::Fgd, &Mix::default(), 0);
    let place = fleet.add(node(8_000, &[1000, 500]));
    let before = fleet.node(place).unwrap().clone();
    let mut take = |gpus, cards: &[usize]| {
        let spot = Spot { place, cards: cards.iter().copied().collect() };
        fleet.take(&ask(1_000, gpus), spot).is_ok()
    };
    assert!(!take(Gpus::Whole(1), &[1]), "it is shared");
    assert!(!take(Gpus::Whole(1), &[2]), "there is none");
    assert!(!take(Gpus::Whole(1), &[]) && !take(Gpus::None, &[0]) && !take(Gpus::Whole(1), &[0, 1]));
    assert!(!take(Gpus::Share(501), &[1]) && !take(Gpus::Share(10), &[0, 1]));
    assert_eq!(fleet.node(place), Some(&before));
}

#[test]
fn a_kind_needs_its_own_number() {
    assert!(Kind::new(63).is_some() && Kind::new(64).is_none());
    assert!(kinds([63]).allow(Kind::new(63).unwrap()) && !kinds([63]).allow(Kind::new(0).unwrap()));
}
