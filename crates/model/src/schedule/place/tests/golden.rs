//! FGD's published numbers.

use super::*;

/// The frequent classes of the pods behind the FGD paper (hkust-adsl/kubernetes-scheduler-simulator, Apache-2.0): CPU in
/// thousandths, thousandths of a GPU, GPUs, count.
const CLASSES: [(u32, u32, u16, u32); 35] = [
    (3152, 810, 1, 1047),
    (11300, 1000, 1, 874),
    (11400, 1000, 1, 599),
    (3152, 1000, 1, 470),
    (11908, 470, 1, 388),
    (12500, 0, 0, 366),
    (8000, 470, 1, 360),
    (12000, 1000, 1, 326),
    (32000, 0, 0, 290),
    (18708, 1000, 1, 255),
    (11908, 650, 1, 237),
    (4000, 320, 1, 232),
    (9810, 1000, 1, 195),
    (8000, 0, 0, 185),
    (8000, 1000, 1, 164),
    (4000, 1000, 1, 159),
    (15700, 1000, 1, 158),
    (11908, 1000, 1, 153),
    (16000, 1000, 1, 150),
    (4000, 230, 1, 122),
    (15400, 0, 0, 120),
    (6000, 460, 1, 120),
    (16500, 0, 0, 95),
    (14200, 1000, 1, 93),
    (24200, 1000, 1, 84),
    (3152, 590, 1, 75),
    (8000, 320, 1, 72),
    (4152, 550, 1, 72),
    (11900, 1000, 1, 55),
    (4000, 160, 1, 54),
    (4152, 370, 1, 45),
    (4000, 220, 1, 43),
    (8200, 1000, 1, 41),
    (15200, 1000, 1, 36),
    (4152, 810, 1, 31),
];

fn mix() -> Mix {
    Mix::new(CLASSES.map(|(cpu, millis, gpus, count)| {
        let gpus = match (gpus, millis) {
            (0, _) => Gpus::None,
            (1, 1..1000) => Gpus::Share(millis),
            _ => Gpus::Whole(gpus),
        };
        (ask(cpu, gpus), count)
    }))
}

/// Fragmentation before, score, and fragmentation after, of one node.
fn check(cpu: u32, free: &[u32], ask: Ask, (before, after, score): (f64, f64, u32)) {
    let mut fleet = Fleet::new(Policy::Fgd, &mix(), 0);
    let place = fleet.add(node(cpu, free));
    let near = |a: f64, b: f64| assert!((a - b).abs() < 0.001, "{a} is not {b}: {cpu} {free:?} {ask:?}");
    near(fleet.fragmentation(), before);
    assert_eq!(fleet.score(place, &ask), Some(score));
    let spot = fleet.place(&ask, None).unwrap();
    near(fleet.fragmentation(), after);
    fleet.give_back(&ask, spot);
    near(fleet.fragmentation(), before);
}

#[test]
fn fragmentation_and_scores_are_those_of_the_paper() {
    let share = ask(4_000, Gpus::Share(460));
    let whole = ask(12_000, Gpus::Whole(1));
    let eight = [1000; 8];
    check(96_000, &eight, share, (1087.819, 1391.991, 42));
    check(96_000, &eight, whole, (1087.819, 951.841, 53));
    check(96_000, &eight, ask(8_000, Gpus::None), (1087.819, 1087.819, 50));
    check(96_000, &eight, ask(64_000, Gpus::Whole(8)), (1087.819, 0.0, 74));
    check(104_000, &[1000; 2], share, (271.955, 576.127, 42));
    check(104_000, &[1000; 2], whole, (271.955, 135.977, 53));
    let used = [0, 0, 0, 540, 1000, 1000, 1000, 1000];
    check(20_000, &used, share, (1027.324, 798.517, 55));
    check(20_000, &used, whole, (1027.324, 2282.735, 22));
}

#[test]
fn a_share_on_an_idle_card_scores_less() {
    let mut fleet = Fleet::new(Policy::Fgd, &mix(), 0);
    let place = fleet.add(node(20_000, &[0, 0, 0, 540, 1000, 1000, 1000, 1000]));
    let share = ask(4_000, Gpus::Share(460));
    assert_eq!(fleet.choose(&share, None), Some(Spot { place, cards: CardSet::from_iter([3]) }));
    fleet.take(&share, Spot { place, cards: CardSet::from_iter([4]) }).unwrap();
    assert!((fleet.fragmentation() - 1419.186).abs() < 0.001, "{}", fleet.fragmentation());
    let mut fleet = Fleet::new(Policy::Fgd, &mix(), 0);
    // Without the card that is in use.
    let place = fleet.add(node(20_000, &[0, 0, 0, 0, 1000, 1000, 1000, 1000]));
    assert!(fleet.score(place, &share).unwrap() <= 42);
}
