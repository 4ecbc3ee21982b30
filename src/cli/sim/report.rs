//! What came of many replays: means, for people and programs.

use serde::Serialize;
use toft_model::schedule::{
    place::Policy,
    replay::{Outcome, Point},
};

/// A mean with the standard deviation of what it is made from.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(super) struct Mean {
    pub(super) mean: f64,
    /// Of the sample; 0 when there is one value.
    pub(super) deviation: f64,
}

impl Mean {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let count = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / count.max(1.0);
        let squares: f64 = values.map(|value| (value - mean).powi(2)).sum();
        Self { mean, deviation: if count > 1.0 { (squares / (count - 1.0)).sqrt() } else { 0.0 } }
    }
}

/// So much had arrived.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Load {
    /// In hundredths of all GPUs.
    pub(super) arrived_percent: u32,
    /// Part of all GPUs that was held, in hundredths.
    pub(super) allocation_percent: Mean,
    /// Part of the idle GPUs that a pod of the mix could not use, in hundredths.
    pub(super) fragmentation_percent: Mean,
}

/// What moving instances gained.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Migration {
    /// Instances moved in a run.
    pub(super) moves: Mean,
    /// What was held at the end, in hundredths of all GPUs.
    pub(super) allocation_percent: Mean,
    /// What was gained for each hundred moves, in hundredths of all GPUs; nothing when none was made.
    pub(super) gained_per_hundred_moves: Option<f64>,
}

impl Migration {
    /// From runs of the same seeds without and with moves.
    pub(super) fn new(without: &[Timed], with: &[Timed]) -> Self {
        let moves = Mean::of(with.iter().map(|(outcome, _)| outcome.moves as f64));
        let (before, after) = (Mean::of(without.iter().map(last)), Mean::of(with.iter().map(last)));
        let gained = (moves.mean > 0.0).then(|| 100.0 * (after.mean - before.mean) / moves.mean);
        Self { moves, allocation_percent: after, gained_per_hundred_moves: gained }
    }
}

/// What a run held at its end.
fn last((outcome, _): &Timed) -> f64 {
    outcome.points.last().map_or(0.0, |point| point.allocation)
}

/// What a policy made of a trace.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) policy: &'static str,
    /// From 0 percent on.
    pub(super) loads: Vec<Load>,
    /// Part of the GPUs that nobody held at the end, in GPUs.
    pub(super) unallocated_gpus: Mean,
    /// Pods that found no place: without GPUs, and with.
    pub(super) dropped_without_gpus: Mean,
    pub(super) dropped_with_gpus: Mean,
    pub(super) decisions_per_second: Mean,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) migration: Option<Migration>,
}

/// One replay, and how long it took in seconds.
pub(super) type Timed = (Outcome, f64);

impl Report {
    /// Of at least one run.
    pub(super) fn new(policy: Policy, gpus: f64, runs: &[Timed], migration: Option<Migration>) -> Self {
        let over = |value: &dyn Fn(&Timed) -> f64| Mean::of(runs.iter().map(value));
        let percents = runs.iter().map(|(outcome, _)| outcome.points.len()).min().unwrap_or(0);
        let load = |percent: usize| {
            let at = |value: fn(&Point) -> f64| over(&|(outcome, _)| value(&outcome.points[percent]));
            Load {
                arrived_percent: percent as u32,
                allocation_percent: at(|point| point.allocation),
                fragmentation_percent: at(|point| point.fragmentation),
            }
        };
        Self {
            policy: policy.as_str(),
            loads: (0..percents).map(load).collect(),
            unallocated_gpus: over(&|run| gpus * (1.0 - last(run) / 100.0)),
            dropped_without_gpus: over(&|(outcome, _)| outcome.dropped.0 as f64),
            dropped_with_gpus: over(&|(outcome, _)| outcome.dropped.1 as f64),
            decisions_per_second: over(&|(outcome, seconds)| outcome.arrived as f64 / seconds.max(1e-9)),
            migration,
        }
    }

    /// A row of the table that [`head`] begins.
    pub(super) fn row(&self, percents: &[u32]) -> Vec<String> {
        let at = |percent: &u32| self.loads.get(*percent as usize);
        let both = |load: &Load| {
            let (held, broken) = (load.allocation_percent, load.fragmentation_percent);
            format!("{:.2}±{:.2} / {:.1}", held.mean, held.deviation, broken.mean)
        };
        let mut row = vec![self.policy.to_owned()];
        row.extend(percents.iter().map(|percent| at(percent).map_or("-".to_owned(), both)));
        row.push(format!("{:.0}", self.unallocated_gpus.mean));
        row.push(format!("{:.0}", self.decisions_per_second.mean));
        if let Some(Migration { moves, allocation_percent, gained_per_hundred_moves }) = &self.migration {
            row.push(format!("{:.2}±{:.2}", allocation_percent.mean, allocation_percent.deviation));
            row.push(format!("{:.0}", moves.mean));
            row.push(gained_per_hundred_moves.map_or("-".to_owned(), |gained| format!("{gained:.2}")));
        }
        row
    }
}

/// The loads that a table shows: from 80 on each ten, and the end.
pub(super) fn shown(until: u32) -> Vec<u32> {
    let mut percents: Vec<u32> = (80..until).step_by(10).take(8).collect();
    percents.push(until);
    percents
}

/// Its head; with columns for migration.
pub(super) fn head(percents: &[u32], migration: bool) -> Vec<String> {
    let mut head = vec!["POLICY".to_owned()];
    head.extend(percents.iter().map(|percent| format!("AT {percent}%")));
    head.extend(["GPUS LEFT", "DECISIONS/S"].map(str::to_owned));
    if migration {
        head.extend(["WITH MOVES", "MOVES", "GAINED/100"].map(str::to_owned));
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_the_seeds() {
        let run = |allocation: f64, moves: u64| {
            let points = vec![Point::default(), Point { allocation, fragmentation: 40.0 }];
            (Outcome { points, arrived: 100, dropped: (1, 2), moves }, 0.5)
        };
        let runs = [run(90.0, 0), run(94.0, 0)];
        let report = Report::new(Policy::Fgd, 50.0, &runs, None);
        assert_eq!(report.loads[1].allocation_percent.mean, 92.0);
        assert!((report.loads[1].allocation_percent.deviation - 8.0_f64.sqrt()).abs() < 1e-9);
        assert_eq!(report.row(&[1, 7]), ["fgd", "92.00±2.83 / 40.0", "-", "4", "200"]);
        let one = Report::new(Policy::Fgd, 50.0, &runs[..1], None);
        assert_eq!(one.loads[1].allocation_percent.deviation, 0.0);

        let migration = Migration::new(&runs, &[run(91.0, 40), run(94.0, 10)]);
        assert_eq!(migration.gained_per_hundred_moves, Some(2.0));
        let row = Report::new(Policy::Fgd, 50.0, &runs, Some(migration)).row(&[1]);
        assert_eq!(row[4..], ["92.50±2.12", "25", "2.00"]);
        assert_eq!(row.len(), head(&[1], true).len());
        assert_eq!(Migration::new(&runs, &runs).gained_per_hundred_moves, None);
    }

    #[test]
    fn tables_show_each_ten_and_the_end() {
        assert_eq!(shown(130), [80, 90, 100, 110, 120, 130]);
        assert_eq!((shown(50), shown(80)), (vec![50], vec![80]));
    }
}
