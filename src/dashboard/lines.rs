//! What is different between two texts, line by line: for people who agree to a change, and for pages that are sent what
//! changed.

use std::{collections::HashMap, ops::Range};

/// Most pairs of lines that are compared with each other; longer stretches are cut at lines that are in each once.
const MOST_PAIRS: usize = 65_536;
/// How often a stretch is cut again before it counts as different as a whole.
const MOST_CUTS: usize = 8;

/// Lines that are others now; one of the two may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Changed {
    /// Their places before.
    pub(super) before: Range<usize>,
    /// Their places after.
    pub(super) after: Range<usize>,
}

/// What makes `after` of `before`, in order; between two changes is at least one line that stayed.
pub(super) fn changed(before: &[&str], after: &[&str]) -> Vec<Changed> {
    let mut found = Vec::new();
    look(before, after, Changed { before: 0..before.len(), after: 0..after.len() }, MOST_CUTS, &mut found);
    found
}

fn look(before: &[&str], after: &[&str], within: Changed, cuts: usize, found: &mut Vec<Changed>) {
    let Changed { before: mut old, after: mut new } = within;
    while !old.is_empty() && !new.is_empty() && before[old.start] == after[new.start] {
        (old.start, new.start) = (old.start + 1, new.start + 1);
    }
    while !old.is_empty() && !new.is_empty() && before[old.end - 1] == after[new.end - 1] {
        (old.end, new.end) = (old.end - 1, new.end - 1);
    }
    if old.is_empty() && new.is_empty() {
        return;
    }
    if old.is_empty() || new.is_empty() {
        return found.push(Changed { before: old, after: new });
    }
    if old.len().saturating_mul(new.len()) <= MOST_PAIRS {
        return compare(before, after, old, new, found);
    }
    let stayed = if cuts == 0 { Vec::new() } else { stayed(&before[old.clone()], &after[new.clone()]) };
    if stayed.is_empty() {
        return found.push(Changed { before: old, after: new });
    }
    let (mut i, mut j) = (old.start, new.start);
    for (old_at, new_at) in stayed {
        let (old_at, new_at) = (old.start + old_at, new.start + new_at);
        look(before, after, Changed { before: i..old_at, after: j..new_at }, cuts - 1, found);
        (i, j) = (old_at + 1, new_at + 1);
    }
    look(before, after, Changed { before: i..old.end, after: j..new.end }, cuts - 1, found);
}

/// Compares each line with each, for the most lines that can have stayed.
fn compare(before: &[&str], after: &[&str], old: Range<usize>, new: Range<usize>, found: &mut Vec<Changed>) {
    let width = new.len() + 1;
    // How many lines can stay from each place on.
    let mut common = vec![0u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = match before[old.start + i] == after[new.start + j] {
                true => common[(i + 1) * width + j + 1] + 1,
                false => common[(i + 1) * width + j].max(common[i * width + j + 1]),
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut from = (0, 0);
    let mut note = |from: (usize, usize), to: (usize, usize)| {
        if from != to {
            let before = old.start + from.0..old.start + to.0;
            found.push(Changed { before, after: new.start + from.1..new.start + to.1 });
        }
    };
    while i < old.len() && j < new.len() {
        if before[old.start + i] == after[new.start + j] {
            note(from, (i, j));
            (i, j) = (i + 1, j + 1);
            from = (i, j);
        } else if common[(i + 1) * width + j] >= common[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    note(from, (old.len(), new.len()));
}

/// The places of lines that are there once; `None` for the others.
fn once<'a>(lines: &[&'a str]) -> HashMap<&'a str, Option<usize>> {
    let mut places = HashMap::new();
    for (at, line) in lines.iter().enumerate() {
        places.entry(*line).and_modify(|place| *place = None).or_insert(Some(at));
    }
    places
}

/// Lines that are in each of the two once, as many as are in the same order in both.
fn stayed(old: &[&str], new: &[&str]) -> Vec<(usize, usize)> {
    let (in_old, in_new) = (once(old), once(new));
    let pairs = old.iter().enumerate().filter_map(|(at, line)| {
        in_old.get(*line).copied().flatten()?;
        Some((at, in_new.get(*line).copied().flatten()?))
    });
    // The longest run of places that grow: for each length the pair at which such a run ends first, and who is before each.
    let pairs: Vec<(usize, usize)> = pairs.collect();
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(pairs.len());
    for (at, (_, place)) in pairs.iter().enumerate() {
        let length = ends.partition_point(|end| pairs[*end].1 < *place);
        before.push(length.checked_sub(1).map(|shorter| ends[shorter]));
        if length == ends.len() { ends.push(at) } else { ends[length] = at }
    }
    let mut run = Vec::new();
    let mut at = ends.last().copied();
    while let Some(pair) = at {
        run.push(pairs[pair]);
        at = before[pair];
    }
    run.reverse();
    run
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn applied(before: &[&str], after: &[&str]) -> Vec<String> {
        let mut lines: Vec<String> = before.iter().map(|line| (*line).to_owned()).collect();
        for change in changed(before, after).into_iter().rev() {
            lines.splice(change.before, after[change.after].iter().map(|line| (*line).to_owned()));
        }
        lines
    }

    #[test]
    fn little_is_different_where_little_changed() {
        let check = |before: &str, after: &str, want: &str| {
            let (before, after): (Vec<&str>, Vec<&str>) = (before.split(' ').collect(), after.split(' ').collect());
            let told =
                changed(&before, &after).into_iter().map(|change| format!("{:?}>{:?}", change.before, change.after));
            assert_eq!(told.collect::<Vec<_>>().join(" "), want, "{before:?} {after:?}");
        };
        check("a b c", "a b c", "");
        check("a b c", "a x c", "1..2>1..2");
        check("a b c", "a c", "1..2>1..1");
        check("a c", "a b c", "1..1>1..2");
        check("a b c d e", "x b c y e", "0..1>0..1 3..4>3..4");
        check("a b", "b a", "0..1>0..0 2..2>1..2");
    }

    #[test]
    fn long_texts_are_cut_where_they_are_the_same() {
        let line = |number: usize| format!("row {number}");
        let before: Vec<String> = (0..3_000).flat_map(|number| [line(number), "<td>".into(), "</td>".into()]).collect();
        let mut after = before.clone();
        after[4] = "<td class>".into();
        after[8_000] = "<td class>".into();
        after.splice(6_000..6_003, []);
        after.insert(0, "new".into());
        let (before, after): (Vec<&str>, Vec<&str>) =
            (before.iter().map(String::as_str).collect(), after.iter().map(String::as_str).collect());
        let changes = changed(&before, &after);
        let come: usize = changes.iter().map(|change| change.after.len()).sum();
        assert!(changes.len() <= 5 && come <= 6, "{changes:?}");
        assert_eq!(applied(&before, &after), after);
        // Nothing in common, and nothing to cut at.
        let (ones, twos) = (vec!["one"; 2_000], vec!["two"; 2_000]);
        assert_eq!(changed(&ones, &twos).len(), 1);
    }

    proptest! {
        #[test]
        fn what_is_told_makes_the_one_of_the_other(
            before in proptest::collection::vec(0..12u8, 0..600),
            after in proptest::collection::vec(0..12u8, 0..600),
            unique in any::<bool>(),
        ) {
            let text = |lines: &[u8]| -> Vec<String> {
                lines.iter().enumerate().map(|(at, line)| if unique && at % 3 == 0 { format!("{at}") } else { format!("={line}") }).collect()
            };
            let (before, after) = (text(&before), text(&after));
            let (before, after): (Vec<&str>, Vec<&str>) =
                (before.iter().map(String::as_str).collect(), after.iter().map(String::as_str).collect());
            prop_assert_eq!(applied(&before, &after), after);
        }
    }
}
