//! Whether a history can be explained by one register that does one thing at a time (Wing and Gong, with Lowe's memory of
//! configurations that led nowhere).

use std::{collections::HashSet, fmt};

/// Configurations looked at before the checker gives up. A history that needs more is too wide, not wrong.
const PATIENCE: usize = 20_000_000;

/// The register: a workload's generation and the value in its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Register {
    pub generation: u64,
    pub value: u64,
}

/// What a client did, and what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Read {
        saw: Register,
    },
    /// Each value is written once only. The generation that the write made, if it was told.
    Write {
        value: u64,
        made: Option<u64>,
    },
    /// Writes if the generation is still `expected`; whether it did, if that was told.
    Swap {
        expected: u64,
        value: u64,
        done: Option<bool>,
    },
}

/// One operation of a client. Times are nanoseconds since the history began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    pub client: usize,
    pub node: usize,
    pub begin: u64,
    /// None if it was never told what became of it: it may take effect at any time after `begin`, or never.
    pub end: Option<u64>,
    pub action: Action,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: u64| format!("{:.3}", time as f64 / 1e6);
        let end = self.end.map_or_else(|| "?".into(), ms);
        write!(f, "{:>12} .. {end:>12} ms  client {} at node {}: ", ms(self.begin), self.client, self.node)?;
        match self.action {
            Action::Read { saw } => write!(f, "read saw {} of generation {}", saw.value, saw.generation),
            Action::Write { value, made } => write!(f, "wrote {value}, made {made:?}"),
            Action::Swap { expected, value, done } => write!(f, "swapped {expected} for {value}: {done:?}"),
        }
    }
}

/// What the register is after an operation; none if the operation cannot have been told what it was.
pub fn step(now: Register, action: &Action) -> Option<Register> {
    match *action {
        Action::Read { saw } => (saw == now).then_some(now),
        Action::Write { value, made } => {
            let next = Register { generation: now.generation + 1, value };
            made.is_none_or(|made| made == next.generation).then_some(next)
        }
        Action::Swap { expected, value, done } => {
            let matches = now.generation == expected;
            let next = if matches { Register { generation: expected + 1, value } } else { now };
            done.is_none_or(|done| done == matches).then_some(next)
        }
    }
}

/// The operations' beginnings and ends in the order of time, as a list from which one can be taken out and put back.
struct Events {
    /// Beginning of operation `i` is `2 * i`, its end `2 * i + 1`; the last is where the list begins and ends.
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Ends in the list.
    ends: usize,
}

impl Events {
    fn of(history: &[Operation]) -> Self {
        let mut order: Vec<(u64, bool, usize)> = Vec::with_capacity(history.len() * 2);
        for (i, operation) in history.iter().enumerate() {
            order.push((operation.begin, false, 2 * i));
            order.extend(operation.end.map(|end| (end, true, 2 * i + 1)));
        }
        // What begins at the very moment at which another ends may have been at the same time.
        order.sort_unstable();
        let edge = 2 * history.len();
        let mut events = Self { next: vec![edge; edge + 1], previous: vec![edge; edge + 1], ends: 0 };
        let mut last = edge;
        for (_, is_end, event) in order {
            (events.next[last], events.previous[event]) = (event, last);
            events.ends += usize::from(is_end);
            last = event;
        }
        (events.next[last], events.previous[edge]) = (edge, last);
        events
    }

    fn first(&self) -> usize {
        self.next[self.next.len() - 1]
    }

    fn take_out(&mut self, event: usize) {
        let (before, after) = (self.previous[event], self.next[event]);
        (self.next[before], self.previous[after]) = (after, before);
    }

    fn put_back(&mut self, event: usize) {
        let (before, after) = (self.previous[event], self.next[event]);
        (self.next[before], self.previous[after]) = (event, event);
    }
}

/// Whether the operations on one register, which was `initial`, can be put into an order that explains all they were
/// told, in which each lies between its beginning and its end.
pub fn is_linearizable(initial: Register, history: &[Operation]) -> bool {
    let mut events = Events::of(history);
    let mut now = initial;
    let mut done = vec![0u64; history.len().div_ceil(64)];
    let mut seen = HashSet::new();
    let mut path: Vec<(usize, Register)> = Vec::new();
    let mut event = events.first();
    while events.ends > 0 {
        assert!(seen.len() < PATIENCE, "the history has too much at the same time to be checked");
        let operation = event / 2;
        if event.is_multiple_of(2) {
            let next = step(now, &history[operation].action);
            done[operation / 64] |= 1 << (operation % 64);
            if let Some(next) = next
                && seen.insert((done.clone(), next))
            {
                path.push((operation, now));
                now = next;
                events.take_out(event);
                if history[operation].end.is_some() {
                    events.take_out(event + 1);
                    events.ends -= 1;
                }
                event = events.first();
            } else {
                done[operation / 64] &= !(1 << (operation % 64));
                event = events.next[event];
            }
            continue;
        }
        // This one has ended and has not happened yet: the last choice was wrong.
        let Some((operation, before)) = path.pop() else { return false };
        now = before;
        done[operation / 64] &= !(1 << (operation % 64));
        if history[operation].end.is_some() {
            events.put_back(2 * operation + 1);
            events.ends += 1;
        }
        events.put_back(2 * operation);
        event = events.next[2 * operation];
    }
    true
}

/// The shortest beginning of a history that cannot be explained, without the reads that do not matter.
pub fn reduce(initial: Register, history: &[Operation]) -> Vec<Operation> {
    let until = |time: u64| -> Vec<Operation> {
        let begun = history.iter().filter(|operation| operation.begin <= time);
        begun.map(|o| forget(Operation { end: o.end.filter(|end| *end <= time), ..*o })).collect()
    };
    let mut ends: Vec<u64> = history.iter().filter_map(|operation| operation.end).collect();
    ends.sort_unstable();
    let at = ends.partition_point(|end| is_linearizable(initial, &until(*end)));
    let Some(time) = ends.get(at) else { return history.to_vec() };
    let mut left = until(*time);
    let mut i = 0;
    while i < left.len() {
        let without: Vec<_> = left.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, o)| *o).collect();
        let may_go = matches!(left[i].action, Action::Read { .. } | Action::Swap { done: Some(false), .. });
        if may_go && !is_linearizable(initial, &without) {
            left = without;
        } else {
            i += 1;
        }
    }
    left.sort_unstable_by_key(|operation| operation.begin);
    left
}

/// What an operation that has not ended was told is not known yet.
fn forget(operation: Operation) -> Operation {
    let action = match operation.action {
        Action::Write { value, .. } if operation.end.is_none() => Action::Write { value, made: None },
        Action::Swap { expected, value, .. } if operation.end.is_none() => Action::Swap { expected, value, done: None },
        action => action,
    };
    Operation { action, ..operation }
}
