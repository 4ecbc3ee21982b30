//! Which of a node's free cards are given together: those between which the ways are best, and of these those that leave the best
//! ways to others.

use crate::gpu::Gpu;

/// Most sets that are compared; of more, cards are added one by one.
const MOST_SETS: usize = 600;

/// `count` of the `free` cards, in their order. Without ways between them the first ones.
pub(super) fn choose<'a>(free: &[&'a Gpu], count: usize) -> Vec<&'a Gpu> {
    if count >= free.len() || free.iter().all(|card| card.links.is_empty()) {
        return free.iter().take(count).copied().collect();
    }
    let ways: Vec<Vec<u32>> = free.iter().map(|one| free.iter().map(|other| worth(one, other)).collect()).collect();
    let chosen =
        if sets(free.len(), count) <= MOST_SETS { best_of_all(&ways, count) } else { one_by_one(&ways, count) };
    chosen.into_iter().map(|at| free[at]).collect()
}

fn worth(one: &Gpu, other: &Gpu) -> u32 {
    one.links.iter().find(|link| link.to == other.id).map_or(0, |link| link.worth())
}

/// How many sets of `count` there are of so many cards.
fn sets(of: usize, count: usize) -> usize {
    (0..count.min(of - count)).fold(1_usize, |sets, i| sets.saturating_mul(of - i) / (i + 1))
}

/// What the ways within a set are worth, and then how little the ways out of it are.
fn value(ways: &[Vec<u32>], set: &[usize]) -> (u32, i64) {
    let within = set.iter().enumerate().flat_map(|(i, one)| set[..i].iter().map(move |other| ways[*one][*other]));
    let all = set.iter().flat_map(|one| ways[*one].iter().map(|way| i64::from(*way))).sum::<i64>();
    let within: u32 = within.sum();
    (within, i64::from(within) * 2 - all)
}

fn best_of_all(ways: &[Vec<u32>], count: usize) -> Vec<usize> {
    let mut set: Vec<usize> = (0..count).collect();
    let mut best = (value(ways, &set), set.clone());
    // The next set in the order of their numbers.
    while let Some(at) = (0..count).rev().find(|at| set[*at] < ways.len() - count + at) {
        set[at] += 1;
        for next in at + 1..count {
            set[next] = set[next - 1] + 1;
        }
        let value = value(ways, &set);
        if value > best.0 {
            best = (value, set.clone());
        }
    }
    best.1
}

/// The best pair, and then always the card that is best with those.
fn one_by_one(ways: &[Vec<u32>], count: usize) -> Vec<usize> {
    let mut set = if count >= 2 { best_of_all(ways, 2) } else { Vec::new() };
    while set.len() < count {
        let with = |at: usize| [&set[..], &[at]].concat();
        let others = (0..ways.len()).filter(|at| !set.contains(at));
        let Some(next) = others.max_by_key(|at| (value(ways, &with(*at)), std::cmp::Reverse(*at))) else { break };
        set.push(next);
    }
    set.sort_unstable();
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{GpuLink, made};

    /// So many cards, and the ways between some of them; the others have `SYS`.
    fn cards(count: usize, ways: &[(usize, usize, &str)]) -> Vec<Gpu> {
        let way = |one: usize, other: usize| {
            let is = |(a, b, _): &&(usize, usize, &str)| (*a, *b) == (one.min(other), one.max(other));
            ways.iter().find(is).map_or("SYS", |(_, _, way)| *way).to_owned()
        };
        let name = |place: usize| format!("GPU-{place}");
        let links = |one: usize| {
            let others = (0..count).filter(move |other| *other != one);
            others.map(move |other| GpuLink { to: name(other).parse().unwrap(), way: way(one, other) }).collect()
        };
        (0..count).map(|place| Gpu { links: links(place), ..made::card(&name(place), "x", 1_000) }).collect()
    }

    fn chosen(cards: &[Gpu], free: &[usize], count: usize) -> Vec<usize> {
        let free: Vec<&Gpu> = free.iter().map(|place| &cards[*place]).collect();
        let place = |card: &Gpu| cards.iter().position(|other| other.id == card.id).unwrap();
        choose(&free, count).into_iter().map(place).collect()
    }

    #[test]
    fn cards_that_are_given_together_have_the_best_ways() {
        // Two pairs with NVLink, one of them on one switch with a fifth card.
        let cards = cards(5, &[(0, 3, "NV4"), (1, 2, "NV4"), (1, 4, "PIX"), (2, 4, "PIX")]);
        let all = [0, 1, 2, 3, 4];
        assert_eq!(chosen(&cards, &all, 2), [0, 3], "of two equal pairs the one without further ways");
        assert_eq!(chosen(&cards, &[0, 1, 2, 4], 2), [1, 2]);
        assert_eq!(chosen(&cards, &all, 3), [1, 2, 4]);
        assert_eq!(chosen(&cards, &all, 4), [0, 1, 2, 3]);
        assert_eq!(chosen(&cards, &all, 1), [4], "one alone leaves the pairs whole");
        assert_eq!(chosen(&cards, &[0, 1, 4], 2), [1, 4]);
        assert_eq!(chosen(&cards, &all, 5), all);
    }

    #[test]
    fn without_ways_the_first_are_given_and_many_cards_take_no_longer() {
        let plain: Vec<Gpu> = (0..4).map(|place| made::card(&format!("GPU-{place}"), "x", 1)).collect();
        assert_eq!(chosen(&plain, &[0, 1, 2, 3], 2), [0, 1]);
        let many = cards(64, &[(40, 63, "NV18"), (40, 50, "NV18"), (50, 63, "NV2")]);
        let all: Vec<usize> = (0..64).collect();
        assert_eq!(chosen(&many, &all, 2), [40, 50], "the first of two equal pairs");
        assert_eq!(chosen(&many, &all, 3), [40, 50, 63]);
        assert_eq!(chosen(&many, &all, 32).len(), 32);
        assert_eq!((sets(8, 4), sets(5, 5), sets(64, 32) > MOST_SETS), (70, 1, true));
    }
}
