//! Replays a recorded workload through the placement engine, by the protocol of the FGD paper: pods arrive one after
//! the other in a random order until more is asked for than there is, none leaves, and one that fits nowhere is
//! dropped but counts as arrived. Migration, which the protocol has not, is an option.

mod moves;
#[cfg(test)]
mod tests;
mod trace;

pub use trace::{Trace, TraceError, TraceNode, TracePod};

use super::place::{Gpus, Policy, Random};
use moves::Residents;
use trace::gpu_millis;

/// How a trace is replayed.
#[derive(Debug, Clone, Copy)]
pub struct Replay {
    /// Who decides.
    pub policy: Policy,
    /// Gives the order of the pods and the precedence of the nodes.
    pub seed: u64,
    /// How much arrives, in hundredths of all GPUs.
    pub until_percent: u32,
    /// How many instances may be moved for a pod with GPUs that fits nowhere.
    pub moves: usize,
}

/// What was seen while so much had arrived: means over the arrivals that round to it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Point {
    /// Part of all GPUs that is held, in hundredths.
    pub allocation: f64,
    /// The part of the idle GPUs that a pod of the mix cannot use, in hundredths.
    pub fragmentation: f64,
}

/// What came of a replay.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// By hundredths arrived, from 0 on.
    pub points: Vec<Point>,
    /// Pods that arrived.
    pub arrived: u64,
    /// Pods that found no place, without and with GPUs.
    pub dropped: (u64, u64),
    /// Instances that were moved.
    pub moves: u64,
}

impl Replay {
    /// Runs it.
    pub fn run(&self, trace: &Trace) -> Outcome {
        let mut random = Random::new(self.seed);
        let arrivals = trace.arrivals(self.until_percent, &mut random);
        let mut fleet = trace.fleet(self.policy, &mut random);
        let all = trace.gpu_millis();
        let (mut arrived, mut held) = (0, 0);
        let (mut dropped, mut moves, mut residents) = ((0, 0), 0, Residents::default());
        let mut meter = Meter::new(self.until_percent);
        for ask in &arrivals {
            let millis = gpu_millis(ask);
            arrived += millis;
            match fleet.place(ask, None) {
                Some(spot) => {
                    held += millis;
                    if self.moves > 0 {
                        residents.add(*ask, spot);
                    }
                }
                None if ask.gpus == Gpus::None => dropped.0 += 1,
                None => match residents.make_room(&mut fleet, ask, self.moves) {
                    Some(count) => {
                        held += millis;
                        moves += count as u64;
                    }
                    None => dropped.1 += 1,
                },
            }
            let idle = fleet.idle_thousandths();
            let fragmentation = if idle == 0 { 0.0 } else { 100.0 * fleet.fragmentation() / idle as f64 };
            let allocation = 100.0 * held as f64 / all as f64;
            meter.note((200 * arrived + all) / (2 * all), Point { allocation, fragmentation });
        }
        Outcome { points: meter.means(), arrived: arrivals.len() as u64, dropped, moves }
    }
}

/// Sums up points by hundredths arrived.
struct Meter(Vec<(Point, u32)>);

impl Meter {
    fn new(until_percent: u32) -> Self {
        Self(vec![(Point::default(), 0); until_percent as usize + 1])
    }

    fn note(&mut self, percent: u64, point: Point) {
        // What oversteps the end by a pod counts as the end.
        let last = self.0.len() - 1;
        let (sum, count) = &mut self.0[last.min(percent as usize)];
        sum.allocation += point.allocation;
        sum.fragmentation += point.fragmentation;
        *count += 1;
    }

    /// Where no arrival fell, nothing changed since the one before.
    fn means(self) -> Vec<Point> {
        let mut before = Point::default();
        let mean = |(sum, count): (Point, u32)| {
            if count > 0 {
                let count = f64::from(count);
                before = Point { allocation: sum.allocation / count, fragmentation: sum.fragmentation / count };
            }
            before
        };
        self.0.into_iter().map(mean).collect()
    }
}
