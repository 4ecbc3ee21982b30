//! `explain`: why a workload's instances are where they are, why not elsewhere, and what would make one more fit.

use std::{collections::BTreeSet, fmt::Write};

use toft_model::{
    name::Name,
    schedule::{Explanation, InstanceVerdict, NodeVerdict, Points, Term},
    workload::Rollout,
};

use super::{Failure, client::Client, output};

/// Columns that a line has at most.
const WIDTH: usize = 100;

pub(super) async fn explain(client: &Client, name: &Name, json: bool) -> Result<i32, Failure> {
    let explanation: Explanation = client.get(&format!("/api/v1/workloads/{name}/explain")).await?;
    if json {
        output::json(&explanation)?;
    } else {
        print!("{}", told(&explanation));
    }
    Ok(0)
}

/// One line of a table with a last column that wraps.
struct Line {
    cells: Vec<String>,
    why: Vec<String>,
}

fn told(explanation: &Explanation) -> String {
    let Explanation { workload, wanted, policy, priority, .. } = explanation;
    // One and its successor have the same name.
    let placed: BTreeSet<&String> =
        explanation.instances.iter().filter(|one| !one.leaving).map(|one| &one.instance).collect();
    let placed = placed.len() + explanation.more_instances;
    let copies = if *wanted == 1 { "copy" } else { "copies" };
    let mut text = format!("{workload}: {placed} of {wanted} {copies} placed; policy {policy}, priority {priority}\n");
    if let Some(rollout) = rollout(explanation) {
        paragraph(&mut text, "rollout: ", &rollout);
    }
    if let Some(why) = &explanation.pending {
        paragraph(&mut text, "waits: ", why);
    }
    if !explanation.would_make_room.is_empty() {
        let who = explanation.would_make_room.join(", ");
        paragraph(&mut text, "would make room: ", &who);
    }
    if let Some(why) = &explanation.expression_fails {
        paragraph(&mut text, "the expression fails: ", why);
    }
    if !explanation.instances.is_empty() {
        text.push('\n');
        table(&mut text, &["INSTANCE", "NODE", "SCORE", "WHY HERE"], explanation.instances.iter().map(instance));
        if explanation.more_instances > 0 {
            let _ = writeln!(text, "and {} more", explanation.more_instances);
        }
    }
    if !explanation.nodes.is_empty() {
        text.push('\n');
        let heading = if placed < *wanted as usize { "FOR THE NEXT COPY" } else { "FOR ONE MORE COPY" };
        table(&mut text, &["NODE", "SCORE", heading], explanation.nodes.iter().map(node));
    }
    if let Some(key) = key(explanation) {
        text.push('\n');
        text.push_str(&key);
    }
    text
}

/// How far the newest specification came, unless all have it.
fn rollout(explanation: &Explanation) -> Option<String> {
    let generation = explanation.generation;
    let behind = explanation.instances.iter().filter(|one| one.outdated).count();
    let behind = match behind {
        0 => String::new(),
        1 => "; 1 instance is of an earlier one".to_owned(),
        more => format!("; {more} instances are of an earlier one"),
    };
    match &explanation.rollout {
        Rollout::Done => None,
        Rollout::Rolling => Some(format!("generation {generation} is on its way{behind}")),
        Rollout::Failed { reason } => Some(format!("generation {generation} failed ({reason}){behind}")),
    }
}

fn instance(one: &InstanceVerdict) -> Line {
    let mut why = match one {
        one if one.given_up => vec![format!("{} is lost; this one is removed there when it is back", one.node)],
        one if one.leaving => vec!["it is stopping".to_owned()],
        one if one.outdated => vec!["it is of an earlier generation, and serves until its successor works".to_owned()],
        one => reasons(&one.verdict),
    };
    if let (Some(better), false) = (&one.better, one.leaving || one.outdated) {
        why.push(format!("{better} would be taken now; `toft rebalance` moves what runs"));
    }
    if let (Some(to), false) = (&one.moves_to, one.leaving) {
        why.push(format!("it is to be moved to {to}"));
    }
    Line { cells: vec![one.instance.clone(), one.node.clone(), score(&one.verdict)], why }
}

fn node(verdict: &NodeVerdict) -> Line {
    Line { cells: vec![verdict.node.clone(), score(verdict)], why: reasons(verdict) }
}

fn score(verdict: &NodeVerdict) -> String {
    verdict.score.map_or_else(|| "no".to_owned(), |score| format!("{:.1}", score + 0.0))
}

fn reasons(verdict: &NodeVerdict) -> Vec<String> {
    if verdict.score.is_none() {
        let lines = verdict.refused.iter();
        return lines.map(|refused| format!("{}: {} -> {}", refused.filter, refused.message, refused.remedy)).collect();
    }
    let told = |one: &Points| {
        let why = one.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        format!("{} {:+.1}{why}", one.term, one.points)
    };
    let counted: Vec<String> = verdict.points.iter().filter(|one| one.points != 0.0).map(told).collect();
    vec![if counted.is_empty() { "nothing speaks for or against it".to_owned() } else { counted.join(", ") }]
}

/// What the terms that were told mean.
fn key(explanation: &Explanation) -> Option<String> {
    let verdicts = explanation.instances.iter().map(|one| &one.verdict).chain(&explanation.nodes);
    let mut terms: Vec<Term> =
        verdicts.flat_map(|verdict| &verdict.points).filter(|one| one.points != 0.0).map(|one| one.term).collect();
    terms.sort();
    terms.dedup();
    let lines =
        terms.into_iter().map(|term| Line { cells: vec![term.to_string()], why: vec![meaning(term).to_owned()] });
    let mut text = String::new();
    table(&mut text, &["POINTS", "FOR"], lines);
    (text.lines().count() > 1).then_some(text)
}

fn meaning(term: Term) -> &'static str {
    match term {
        Term::Fit => "how much of what is asked for would be reserved there",
        Term::Copies => "more copies of the workload there than elsewhere",
        Term::Instances => "instances there",
        Term::Gpus => "what is left of the cards for others",
        Term::Image => "something of the same image runs there",
        Term::Cost => "what the node costs, compared with the dearest",
        Term::Watts => "what the node draws, compared with the most",
        Term::Affinity => "which affinities of the workload hold",
        Term::Spread => "copies in the same part of what they are to be spread over",
        Term::Taints => "a taint says that others go first",
        Term::Random => "chance",
        Term::Expression => "the cluster's expression",
    }
}

fn paragraph(text: &mut String, begin: &str, rest: &str) {
    for (i, line) in wrapped(&output::harmless(rest), WIDTH - begin.len()).into_iter().enumerate() {
        let begin = if i == 0 { begin.to_owned() } else { " ".repeat(begin.len()) };
        let _ = writeln!(text, "{begin}{line}");
    }
}

fn table(text: &mut String, header: &[&str], lines: impl Iterator<Item = Line>) {
    let lines: Vec<Line> = lines.collect();
    let last = header.len() - 1;
    let widths: Vec<usize> = (0..last)
        .map(|i| lines.iter().map(|line| line.cells[i].chars().count()).max().unwrap_or(0).max(header[i].len()))
        .collect();
    let begin =
        |cells: &[&str]| {
            let cells = cells.iter().zip(&widths).enumerate();
            // Numbers end at the same place.
            let cells = cells.map(|(i, (cell, width))| {
                if header[i] == "SCORE" { format!("{cell:>width$}   ") } else { format!("{cell:width$}   ") }
            });
            cells.collect::<String>()
        };
    let _ = writeln!(text, "{}{}", begin(&header[..last]), header[last]);
    let indent: usize = widths.iter().map(|width| width + 3).sum();
    for line in lines {
        let cells: Vec<&str> = line.cells.iter().map(String::as_str).collect();
        let mut begins = begin(&cells);
        for why in line.why.iter().flat_map(|why| wrapped(&output::harmless(why), WIDTH.saturating_sub(indent).max(30)))
        {
            let _ = writeln!(text, "{}", format!("{begins}{why}").trim_end());
            begins = " ".repeat(indent);
        }
    }
}

/// The words of a text in lines of at most `width` characters; a longer word has a line of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one at least");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(format!("  {word}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use toft_model::schedule::{Policy, Refused};

    use super::*;

    fn verdict(node: &str, points: &[(Term, f64)]) -> NodeVerdict {
        let points: Vec<Points> = points
            .iter()
            .map(|(term, points)| Points {
                term: *term,
                value: *points / 100.0,
                weight: 100,
                points: *points,
                why: None,
            })
            .collect();
        let score = Some(points.iter().map(|one| one.points).sum());
        NodeVerdict { node: node.into(), score, points, refused: Vec::new() }
    }

    fn refused(node: &str, reasons: &[(&str, &str, &str)]) -> NodeVerdict {
        let refused = reasons.iter().map(|(filter, message, remedy)| Refused {
            filter: (*filter).into(),
            message: (*message).into(),
            remedy: (*remedy).into(),
        });
        NodeVerdict { node: node.into(), score: None, points: Vec::new(), refused: refused.collect() }
    }

    #[test]
    fn it_reads_well_in_a_hundred_columns() {
        let explanation = Explanation {
            workload: "web".into(),
            priority: 200,
            wanted: 3,
            generation: 2,
            rollout: Rollout::Rolling,
            policy: Policy::BestFit,
            pending: Some("attic: 2 cores are to be reserved and 0.5 are left; cellar: it is cordoned; a-very-long-node-name: it is being drained".into()),
            instances: vec![
                InstanceVerdict {
                    instance: "web-0".into(),
                    node: "attic".into(),
                    leaving: false,
                    given_up: false,
                    outdated: false,
                    moves_to: None,
                    verdict: verdict("attic", &[(Term::Fit, 75.0), (Term::Copies, -200.0), (Term::Image, 20.0), (Term::Cost, 0.0)]),
                    better: Some("cellar".into()),
                },
                InstanceVerdict {
                    instance: "web-1".into(),
                    node: "cellar".into(),
                    leaving: true,
                    given_up: false,
                    outdated: false,
                    moves_to: None,
                    verdict: refused("cellar", &[]),
                    better: None,
                },
                InstanceVerdict {
                    instance: "web-2".into(),
                    node: "desk".into(),
                    leaving: false,
                    given_up: false,
                    outdated: true,
                    moves_to: None,
                    verdict: verdict("desk", &[]),
                    better: Some("attic".into()),
                },
                InstanceVerdict {
                    instance: "web-1".into(),
                    node: "hut".into(),
                    leaving: true,
                    given_up: true,
                    outdated: false,
                    moves_to: None,
                    verdict: refused("hut", &[]),
                    better: None,
                },
            ],
            nodes: vec![
                verdict("desk", &[]),
                refused(
                    "a-very-long-node-name",
                    &[
                        ("availability", "it is being drained", "toft node uncordon a-very-long-node-name"),
                        ("cpu", "2 cores are to be reserved and 0.5 are left", "1.5 cores more free, or reserved less"),
                    ],
                ),
            ],
            more_instances: 0,
            would_make_room: vec!["batch-0 on attic".into()],
            expression_fails: Some("it divides\x1b[31m by zero".into()),
        };
        let text = told(&explanation);
        assert_eq!(
            text,
            "\
web: 2 of 3 copies placed; policy best-fit, priority 200
rollout: generation 2 is on its way; 1 instance is of an earlier one
waits: attic: 2 cores are to be reserved and 0.5 are left; cellar: it is cordoned;
         a-very-long-node-name: it is being drained
would make room: batch-0 on attic
the expression fails: it divides\u{fffd}[31m by zero

INSTANCE   NODE      SCORE   WHY HERE
web-0      attic    -105.0   fit +75.0, copies -200.0, image +20.0
                             cellar would be taken now; `toft rebalance` moves what runs
web-1      cellar       no   it is stopping
web-2      desk        0.0   it is of an earlier generation, and serves until its successor works
web-1      hut          no   hut is lost; this one is removed there when it is back

NODE                    SCORE   FOR THE NEXT COPY
desk                      0.0   nothing speaks for or against it
a-very-long-node-name      no   availability: it is being drained -> toft node uncordon
                                  a-very-long-node-name
                                cpu: 2 cores are to be reserved and 0.5 are left -> 1.5 cores more
                                  free, or reserved less

POINTS   FOR
fit      how much of what is asked for would be reserved there
copies   more copies of the workload there than elsewhere
image    something of the same image runs there
"
        );
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }
}
