//! `sim`: replays a recorded workload through the scheduler's placement engine.

mod plot;
mod report;
mod trace;

use std::{fs, path::Path, time::Instant};

use serde::Serialize;
use toft_model::schedule::{
    place::Policy,
    replay::{Replay, Trace},
};

use super::{Failure, output, progress, sim_args::SimArgs};
use report::{Migration, Report, Timed};

/// What is printed as JSON.
#[derive(Serialize)]
struct Printed<'a> {
    nodes: usize,
    gpus: f64,
    pods: usize,
    /// Classes of pods, and how many of them the mix has.
    classes: usize,
    classes_in_mix: usize,
    first_seed: u64,
    seeds: u64,
    until_percent: u32,
    policies: &'a [Report],
}

pub(super) fn sim(args: SimArgs) -> Result<i32, Failure> {
    let (nodes, pods) = (trace::nodes(&args.nodes)?, trace::pods(&args.pods)?);
    let trace = Trace::new(&nodes, &pods)
        .map_err(|e| Failure::of(1, format!("{} and {} are no trace: {e}", shown(&args.nodes), shown(&args.pods))))?;
    let gpus = trace.gpu_millis() as f64 / 1000.0;
    let mut policies: Vec<Policy> = Vec::new();
    for policy in &args.policy {
        if !policies.contains(policy) {
            policies.push(*policy);
        }
    }
    let kinds = if args.migrate > 0 { 2 } else { 1 };
    let bar = progress::steps("replaying", policies.len() as u64 * args.seeds * kinds);
    let mut reports = Vec::with_capacity(policies.len());
    for policy in policies {
        let runs = |moves: usize| -> Vec<Timed> {
            let replay = |seed: u64| Replay { policy, seed, until_percent: args.until, moves };
            let timed = |i: u64| {
                let began = Instant::now();
                let outcome = replay(args.first_seed.wrapping_add(i)).run(&trace);
                bar.inc(1);
                (outcome, began.elapsed().as_secs_f64())
            };
            (0..args.seeds).map(timed).collect()
        };
        let without = runs(0);
        let migration = (args.migrate > 0).then(|| Migration::new(&without, &runs(args.migrate)));
        reports.push(Report::new(policy, gpus, &without, migration));
    }
    bar.finish_and_clear();
    if let Some(path) = &args.svg {
        fs::write(path, plot::svg(&reports, args.until))
            .map_err(|e| Failure::of(1, format!("{} cannot be written: {e}", shown(path))))?;
    }
    let (classes, classes_in_mix) = trace.classes();
    if args.json {
        output::json(&Printed {
            nodes: nodes.len(),
            gpus,
            pods: pods.len(),
            classes,
            classes_in_mix,
            first_seed: args.first_seed,
            seeds: args.seeds,
            until_percent: args.until,
            policies: &reports,
        })?;
        return Ok(0);
    }
    println!(
        "{} nodes, {gpus:.0} GPUs, {} pods of {classes} classes ({classes_in_mix} in the mix), {} seeds",
        nodes.len(),
        pods.len(),
        args.seeds
    );
    println!("allocated % of all GPUs ± deviation / fragmented % of the idle ones, by what has arrived\n");
    let percents = report::shown(args.until);
    let head = report::head(&percents, args.migrate > 0);
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    output::table(&head, reports.iter().map(|report| report.row(&percents)));
    Ok(0)
}

fn shown(path: &Path) -> String {
    output::harmless(&path.display().to_string())
}
