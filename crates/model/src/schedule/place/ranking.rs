//! Nodes in the order of their score for one class of requests.

use std::{cmp::Reverse, collections::BinaryHeap};

/// A tournament: the leaves are the nodes' keys, every inner node is the greater of its two children. The greatest key
/// wins, the lowest place on a tie; changing a key costs the height of the tree at most.
#[derive(Debug)]
pub(super) struct Ranking {
    /// `keys[1]` is the root, the children of `i` are `2 i` and `2 i + 1`, the leaves begin at `keys.len() / 2`.
    keys: Vec<u32>,
}

impl Ranking {
    /// The key of a node that cannot serve.
    pub(super) const OUT: u32 = 0;

    /// With room for `places` nodes, all of them out.
    pub(super) fn new(places: usize) -> Self {
        Self { keys: vec![Self::OUT; 2 * places.max(1).next_power_of_two()] }
    }

    fn leaves(&self) -> usize {
        self.keys.len() / 2
    }

    /// Sets every key, in order of place.
    pub(super) fn fill(&mut self, keys: impl Iterator<Item = u32>) {
        let leaves = self.leaves();
        for (leaf, key) in self.keys[leaves..].iter_mut().zip(keys.chain(std::iter::repeat(Self::OUT))) {
            *leaf = key;
        }
        for i in (1..leaves).rev() {
            self.keys[i] = self.keys[2 * i].max(self.keys[2 * i + 1]);
        }
    }

    /// Sets one key.
    pub(super) fn set(&mut self, place: usize, key: u32) {
        let mut i = self.leaves() + place;
        self.keys[i] = key;
        while i > 1 {
            let parent = i / 2;
            let winner = self.keys[i].max(self.keys[i ^ 1]);
            if self.keys[parent] == winner {
                break;
            }
            self.keys[parent] = winner;
            i = parent;
        }
    }

    /// The first place in order that `may` serve.
    pub(super) fn first(&self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let best = self.winner(1)?;
        if may(best) { Some(best) } else { self.search(may) }
    }

    /// The lowest place with the greatest key below the tree's node `i`.
    fn winner(&self, mut i: usize) -> Option<usize> {
        if self.keys[i] == Self::OUT {
            return None;
        }
        while i < self.leaves() {
            i = if self.keys[2 * i] == self.keys[i] { 2 * i } else { 2 * i + 1 };
        }
        Some(i - self.leaves())
    }

    /// Best first: a subtree is opened only when nothing better is known.
    fn search(&self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let leaves = self.leaves();
        let mut open = BinaryHeap::from([(self.keys[1], Reverse(0_usize), Reverse(1_usize))]);
        while let Some((key, Reverse(left), Reverse(i))) = open.pop() {
            if key == Self::OUT {
                return None;
            }
            if i >= leaves {
                if may(i - leaves) {
                    return Some(i - leaves);
                }
                continue;
            }
            let half = (leaves >> i.ilog2()) / 2;
            open.push((self.keys[2 * i], Reverse(left), Reverse(2 * i)));
            open.push((self.keys[2 * i + 1], Reverse(left + half), Reverse(2 * i + 1)));
        }
        None
    }
}
