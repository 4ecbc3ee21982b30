//! Nodes in the order of their score, for each class of requests that a score cannot tell apart.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    hash::Hash,
};

/// A tournament: the leaves are the nodes' keys, every inner node names the leaf with the greater key of the two below
/// it. The greatest key wins, the lowest place on a tie; changing a key costs the height of the tree at most. A node whose key
/// is `None` is out.
#[derive(Debug)]
pub(in crate::schedule) struct Ranking<K> {
    keys: Vec<Option<K>>,
    /// `winners[1]` is the root, the children of `i` are `2 i` and `2 i + 1`; a child beyond the end is the leaf itself.
    winners: Vec<u32>,
}

impl<K: Ord + Copy> Ranking<K> {
    /// Of places with these keys, ascending.
    pub(in crate::schedule) fn of(keys: impl Iterator<Item = Option<K>>) -> Self {
        let mut keys: Vec<Option<K>> = keys.collect();
        let leaves = keys.len().max(2).next_power_of_two();
        keys.resize(leaves, None);
        let mut ranking = Self { keys, winners: vec![0; leaves] };
        for i in (1..leaves).rev() {
            ranking.winners[i] = ranking.play(i);
        }
        ranking
    }

    fn leaves(&self) -> usize {
        self.keys.len()
    }

    /// The winner below a node of the tree.
    fn winner(&self, i: usize) -> u32 {
        if i < self.leaves() { self.winners[i] } else { (i - self.leaves()) as u32 }
    }

    fn play(&self, i: usize) -> u32 {
        let (left, right) = (self.winner(2 * i), self.winner(2 * i + 1));
        if self.keys[right as usize] > self.keys[left as usize] { right } else { left }
    }

    /// The key of a place.
    pub(in crate::schedule) fn key(&self, place: usize) -> Option<K> {
        self.keys.get(place).copied().flatten()
    }

    /// Sets one key.
    pub(in crate::schedule) fn set(&mut self, place: usize, key: Option<K>) {
        if self.keys[place] == key {
            return;
        }
        self.keys[place] = key;
        let mut i = (self.leaves() + place) / 2;
        while i > 0 {
            let winner = self.play(i);
            // Who won before and still does is another, so nothing above learns of this change.
            if self.winners[i] == winner && winner as usize != place {
                return;
            }
            self.winners[i] = winner;
            i /= 2;
        }
    }

    /// The first place in order that `may` serve. Best first: a part of the tree is opened only when nothing better is known.
    pub(in crate::schedule) fn first(&self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let (key, Reverse(best)) = self.standing(1);
        key?;
        if may(best as usize) {
            return Some(best as usize);
        }
        let mut open = BinaryHeap::from([(self.standing(1), 1)]);
        while let Some(((key, Reverse(place)), i)) = open.pop() {
            key?;
            if i >= self.leaves() {
                if place != best && may(place as usize) {
                    return Some(place as usize);
                }
                continue;
            }
            open.push((self.standing(2 * i), 2 * i));
            open.push((self.standing(2 * i + 1), 2 * i + 1));
        }
        None
    }

    fn standing(&self, i: usize) -> (Option<K>, Reverse<u32>) {
        let winner = self.winner(i);
        (self.keys[winner as usize], Reverse(winner))
    }
}

/// The rankings of many classes over nodes that change. A class that is asked for follows what changed since it was last.
#[derive(Debug)]
pub(in crate::schedule) struct Rankings<C, K> {
    classes: HashMap<C, Class<K>>,
    /// How many places there are.
    places: usize,
    /// Places that changed, oldest first; the first entry is change number `forgotten`.
    changes: Vec<u32>,
    forgotten: u64,
    /// The walk through the changes that last saw each place.
    walks: Vec<u64>,
    walk: u64,
}

#[derive(Debug)]
struct Class<K> {
    ranking: Ranking<K>,
    /// The changes up to here are in `ranking`.
    seen: u64,
}

/// How many classes are remembered, and how many keys they have together; then all are forgotten, which costs time only.
const CLASSES: usize = 2_048;
const KEYS: usize = 1 << 22;

impl<C: Eq + Hash + Clone, K: Ord + Copy> Rankings<C, K> {
    /// Without places yet.
    pub(in crate::schedule) fn new() -> Self {
        Self { classes: HashMap::new(), places: 0, changes: Vec::new(), forgotten: 0, walks: Vec::new(), walk: 0 }
    }

    /// There are so many places now.
    pub(in crate::schedule) fn resize(&mut self, places: usize) {
        self.places = places;
        self.walks.resize(places, 0);
        self.forget();
    }

    /// All scores may be others now.
    pub(in crate::schedule) fn forget(&mut self) {
        self.classes.clear();
    }

    /// A place changed.
    pub(in crate::schedule) fn changed(&mut self, place: usize) {
        self.changes.push(place as u32);
        // Who has not asked for so long looks at every node again.
        if self.changes.len() > 4 * self.places + 1024 {
            let half = self.changes.len() / 2;
            self.changes.drain(..half);
            self.forgotten += half as u64;
        }
    }

    /// The ranking of a class as things are now.
    pub(in crate::schedule) fn of(&mut self, class: &C, mut key: impl FnMut(usize) -> Option<K>) -> &Ranking<K> {
        let now = self.forgotten + self.changes.len() as u64;
        let follows = self.classes.get(class).is_some_and(|known| known.seen >= self.forgotten);
        if !follows {
            let ranking = Ranking::of((0..self.places).map(&mut key));
            let most = (KEYS / ranking.leaves()).clamp(16, CLASSES);
            if self.classes.len() >= most {
                self.classes.clear();
            }
            self.classes.insert(class.clone(), Class { ranking, seen: now });
        }
        let known = self.classes.get_mut(class).expect("it was there or has just been put there");
        if known.seen < now {
            self.walk += 1;
            for place in &self.changes[(known.seen - self.forgotten) as usize..] {
                let place = *place as usize;
                if std::mem::replace(&mut self.walks[place], self.walk) != self.walk {
                    known.ranking.set(place, key(place));
                }
            }
            known.seen = now;
        }
        &known.ranking
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::place::Random;

    #[test]
    fn the_first_is_that_of_a_scan() {
        let mut random = Random::new(3);
        for places in [1, 2, 3, 7, 8, 33] {
            let mut keys: Vec<Option<u32>> = vec![None; places];
            let mut ranking = Ranking::of(keys.iter().copied());
            for _ in 0..300 {
                let place = random.below(places);
                keys[place] = (random.below(4) > 0).then(|| random.below(5) as u32);
                ranking.set(place, keys[place]);
                let barred = random.below(places);
                let may = |place: usize| place % 3 != barred % 3;
                let scan = (0..places).filter(|place| may(*place) && keys[*place].is_some());
                let best = scan.max_by_key(|place| (keys[*place], Reverse(*place)));
                assert_eq!(ranking.first(may), best, "{keys:?} without {barred}");
                let all = (0..places).filter(|place| keys[*place].is_some());
                assert_eq!(ranking.first(|_| true), all.max_by_key(|place| (keys[*place], Reverse(*place))));
            }
        }
    }
}
