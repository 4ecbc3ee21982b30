//! Tests of the checker: histories that are known to be possible or not, and random ones of registers that work or do not.

use std::fmt::Write;

use super::checker::{Action, Operation, Register, is_linearizable, reduce, step};
use crate::harness::dice::Dice;

const INITIAL: Register = Register { generation: 1, value: 0 };

fn at(begin: u64, end: u64, action: Action) -> Operation {
    Operation { client: 0, node: 0, begin, end: Some(end), action }
}

fn lost(begin: u64, action: Action) -> Operation {
    Operation { end: None, ..at(begin, 0, action) }
}

fn read(generation: u64, value: u64) -> Action {
    Action::Read { saw: Register { generation, value } }
}

fn write(value: u64, made: u64) -> Action {
    Action::Write { value, made: Some(made) }
}

fn perhaps(value: u64) -> Action {
    Action::Write { value, made: None }
}

fn swap(expected: u64, value: u64, done: bool) -> Action {
    Action::Swap { expected, value, done: Some(done) }
}

#[track_caller]
fn check(expected: bool, history: &[Operation]) {
    assert_eq!(is_linearizable(INITIAL, history), expected);
    assert_eq!(by_force(INITIAL, history), expected, "the slow checker");
}

/// Tries every order.
fn by_force(now: Register, left: &[Operation]) -> bool {
    let first_end = left.iter().filter_map(|operation| operation.end).min();
    let Some(first_end) = first_end else { return true };
    (0..left.len()).any(|i| {
        let mut rest = left.to_vec();
        let chosen = rest.remove(i);
        chosen.begin <= first_end && step(now, &chosen.action).is_some_and(|next| by_force(next, &rest))
    })
}

#[test]
fn what_follows_in_time_follows_in_effect() {
    check(true, &[]);
    check(true, &[at(0, 1, write(7, 2)), at(2, 3, read(2, 7))]);
    check(false, &[at(0, 1, write(7, 2)), at(2, 3, read(1, 0))]);
    check(false, &[at(0, 1, read(2, 7)), at(2, 3, write(7, 2))]);
    check(false, &[at(0, 1, write(7, 3))]);
    check(false, &[at(0, 1, write(7, 2)), at(2, 3, write(8, 2))]);
}

#[test]
fn what_happens_at_the_same_time_may_have_either_order() {
    check(true, &[at(0, 9, write(7, 2)), at(1, 2, read(1, 0)), at(3, 4, read(2, 7))]);
    check(false, &[at(0, 9, write(7, 2)), at(1, 2, read(2, 7)), at(3, 4, read(1, 0))]);
    check(true, &[at(0, 9, write(7, 3)), at(0, 9, write(8, 2)), at(10, 11, read(3, 7))]);
    check(false, &[at(0, 9, write(7, 2)), at(0, 9, write(8, 2))]);
    check(true, &[at(0, 5, write(7, 2)), at(5, 6, read(1, 0))]);
}

#[test]
fn a_swap_tells_what_the_generation_was() {
    check(true, &[at(0, 1, swap(1, 7, true)), at(2, 3, swap(1, 8, false)), at(4, 5, read(2, 7))]);
    check(false, &[at(0, 1, swap(1, 7, true)), at(2, 3, swap(1, 8, true))]);
    check(false, &[at(0, 1, swap(1, 7, false))]);
    check(false, &[at(0, 1, swap(2, 7, true))]);
    check(true, &[at(0, 9, swap(1, 7, true)), at(0, 9, swap(1, 8, false)), at(10, 11, read(2, 7))]);
}

#[test]
fn what_was_not_answered_may_happen_once_at_any_later_time_or_never() {
    check(true, &[lost(0, perhaps(7)), at(1, 2, read(1, 0))]);
    check(true, &[lost(0, perhaps(7)), at(1, 2, read(2, 7))]);
    check(true, &[lost(0, perhaps(7)), at(1, 2, read(1, 0)), at(3, 4, read(2, 7))]);
    check(true, &[lost(0, perhaps(7)), at(1, 2, write(8, 2)), at(3, 4, read(2, 8)), at(5, 6, read(3, 7))]);
    check(false, &[lost(0, perhaps(7)), at(1, 2, read(2, 7)), at(3, 4, read(1, 0))]);
    check(false, &[lost(0, perhaps(7)), at(1, 2, read(2, 7)), at(3, 4, read(3, 7))]);
    check(false, &[at(1, 2, read(2, 7)), lost(3, perhaps(7))]);
    let swapped = Action::Swap { expected: 1, value: 7, done: None };
    check(true, &[lost(0, swapped), at(1, 2, write(8, 2)), at(3, 4, read(2, 8))]);
    check(false, &[lost(0, swapped), at(1, 2, write(8, 2)), at(3, 4, read(3, 7))]);
    check(true, &[lost(0, swapped), at(1, 2, read(2, 7))]);
}

#[test]
fn what_cannot_be_explained_is_cut_down_to_what_matters() {
    let mut history: Vec<_> = (0..50).map(|i| at(i * 10, i * 10 + 1, write(100 + i, i + 2))).collect();
    history.extend((0..50).map(|i| at(i * 10 + 2, i * 10 + 3, read(i + 2, 100 + i))));
    assert!(is_linearizable(INITIAL, &history));
    history.push(at(304, 305, read(31, 129)));
    history.push(at(306, 400, perhaps(9_999)));
    let reduced = reduce(INITIAL, &history);
    assert!(!is_linearizable(INITIAL, &reduced));
    assert!(reduced.iter().all(|operation| operation.begin <= 305), "{reduced:?}");
    let reads = reduced.iter().filter(|operation| matches!(operation.action, Action::Read { .. })).count();
    assert_eq!(reads, 1, "{reduced:?}");
}

/// How a register that does not work goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Reads what was true some operations ago.
    StaleRead,
    /// Acknowledges a write and forgets it.
    LostUpdate,
    /// Writes twice.
    DoubleApply,
    /// Swaps whatever the generation is.
    BlindSwap,
}

/// A history of `count` operations of `clients`, each of which takes effect in the middle of its time. The fault strikes
/// one operation in eight.
fn random(dice: &mut Dice, clients: usize, count: usize, fault: Fault) -> Vec<Operation> {
    let (mut now, mut past) = (INITIAL, vec![INITIAL]);
    let mut free = vec![0; clients];
    let mut history = Vec::new();
    for i in 0..count as u64 {
        // Effects happen at 100, 200, 300 and so on.
        let effect = (i + 1) * 100;
        let client = dice.below(clients as u64) as usize;
        let begin = u64::max(free[client], effect - 1 - dice.below(99 + 150 * clients as u64).min(effect - 1));
        let end = effect + 1 + dice.below(98);
        free[client] = end;
        let strikes = dice.below(8) == 0;
        let value = i + 1;
        let action = match dice.below(3) {
            0 => {
                let old = past[past.len().saturating_sub(1 + clients)];
                Action::Read { saw: if strikes && fault == Fault::StaleRead { old } else { now } }
            }
            1 => {
                let next = Register { generation: now.generation + 1, value };
                match fault {
                    Fault::LostUpdate if strikes => {}
                    Fault::DoubleApply if strikes => now = Register { generation: now.generation + 2, value },
                    _ => now = next,
                }
                Action::Write { value, made: Some(next.generation) }
            }
            _ => {
                let expected = now.generation.saturating_sub(dice.below(2));
                let matches = expected == now.generation || (strikes && fault == Fault::BlindSwap);
                if matches {
                    now = Register { generation: now.generation + 1, value };
                }
                Action::Swap { expected, value, done: Some(matches) }
            }
        };
        past.push(now);
        let mut operation = Operation { client, node: 0, begin, end: Some(end), action };
        if dice.below(10) == 0 && !matches!(action, Action::Read { .. }) {
            operation.end = None;
            operation.action = match action {
                Action::Write { value, .. } => Action::Write { value, made: None },
                Action::Swap { expected, value, .. } => Action::Swap { expected, value, done: None },
                read => read,
            };
        }
        history.push(operation);
    }
    history
}

#[test]
fn random_histories_of_a_register_that_works_are_explained() {
    let mut dice = Dice::new();
    for _ in 0..200 {
        let (clients, count) = (1 + dice.below(8) as usize, 1 + dice.below(300) as usize);
        let history = random(&mut dice, clients, count, Fault::None);
        assert!(is_linearizable(INITIAL, &history), "{}", text(&history));
    }
}

#[test]
fn random_histories_of_registers_that_do_not_work_are_found_out() {
    let mut dice = Dice::new();
    for fault in [Fault::StaleRead, Fault::LostUpdate, Fault::DoubleApply, Fault::BlindSwap] {
        let found = (0..40).filter(|_| {
            let history = random(&mut dice, 4, 200, fault);
            !is_linearizable(INITIAL, &history)
        });
        // Now and then a fault strikes where it does not show.
        let found = found.count();
        assert!(found >= 36, "{fault:?}: {found} of 40");
    }
}

#[test]
fn the_checker_agrees_with_one_that_tries_every_order() {
    let mut dice = Dice::new();
    let mut refused = 0;
    for round in 0..3_000 {
        let fault = [Fault::None, Fault::StaleRead, Fault::LostUpdate, Fault::DoubleApply, Fault::BlindSwap][round % 5];
        let (clients, count) = (1 + dice.below(4) as usize, 1 + dice.below(7) as usize);
        let history = random(&mut dice, clients, count, fault);
        let quick = is_linearizable(INITIAL, &history);
        assert_eq!(quick, by_force(INITIAL, &history), "{}", text(&history));
        refused += usize::from(!quick);
    }
    assert!((100..2_900).contains(&refused), "{refused} of 3000 were refused");
}

fn text(history: &[Operation]) -> String {
    history.iter().fold(String::new(), |mut text, operation| {
        writeln!(text, "{operation}").unwrap();
        text
    })
}
