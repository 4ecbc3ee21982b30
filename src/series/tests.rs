//! What is kept, for how long, in how much room, and what a damaged file costs.

use std::{fs, path::Path};

use toft_model::{
    gpu::GpuId,
    ids::InstanceId,
    series::{Measure, Series, Span, Subject},
};
use uuid::Uuid;

use super::{Store, tier::TIERS};

const SECOND: i64 = 1_000;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;
/// A moment at which every step begins a point.
const NOON: i64 = 20_000 * DAY + 12 * HOUR;

fn span(since_ms: i64, until_ms: i64, points: u32) -> Span {
    Span { since_ms, until_ms, points }
}

fn means(series: &Series, measure: Measure) -> Vec<Option<f32>> {
    series.line(measure).unwrap().mean.clone()
}

/// A sample of a machine whose CPU shows `cpu` and which measures nothing else.
fn only_cpu(cpu: f32) -> Vec<f32> {
    let mut values = vec![f32::NAN; Subject::Machine.measures().len()];
    values[0] = cpu;
    values
}

#[test]
fn what_waits_is_read_like_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("series.redb"));
    let read = |store: &Store| {
        let series = store.read(&Subject::Machine, span(NOON, NOON + 60 * SECOND, 6), NOON + 60 * SECOND).unwrap();
        assert_eq!((series.since_ms, series.step_ms), (NOON, 10 * SECOND));
        assert!(means(&series, Measure::Celsius).iter().all(Option::is_none));
        // Written values are a part in 65,534 off.
        means(&series, Measure::CpuPercent).iter().map(|mean| mean.map(f32::round)).collect::<Vec<_>>()
    };
    for second in [0, 10, 30] {
        store.record(&Subject::Machine, NOON + second * SECOND, &only_cpu(second as f32));
    }
    let want = [Some(0.0), Some(10.0), None, Some(30.0), None, None];
    assert_eq!(read(&store)[..6], want);
    store.flush().unwrap();
    assert_eq!(read(&store)[..6], want);
    drop(store);
    let again = Store::open(&dir.path().join("series.redb"));
    assert_eq!(read(&again)[..6], want, "it is there after a restart");
    again.record(&Subject::Machine, NOON + 20 * SECOND, &only_cpu(20.0));
    again.flush().unwrap();
    assert_eq!(read(&again)[2], Some(20.0), "a row goes on where it ended");
}

#[test]
fn coarser_steps_hold_means_and_peaks_however_often_it_is_written() {
    let store = Store::in_memory();
    // Two hours, each minute of which has one high sample; written every seven samples.
    for sample in 0..720 {
        let cpu = if sample % 6 == 0 { 70.0 } else { 10.0 };
        store.record(&Subject::Machine, NOON + sample * 10 * SECOND, &only_cpu(cpu));
        if sample % 7 == 0 {
            store.flush().unwrap();
        }
    }
    store.flush().unwrap();
    let end = NOON + 2 * HOUR;
    for (points, step_ms) in [(720, 10 * SECOND), (120, 60 * SECOND), (12, 600 * SECOND), (2, HOUR)] {
        let series = store.read(&Subject::Machine, span(NOON, end, points), end).unwrap();
        assert_eq!(series.step_ms, step_ms);
        let line = series.line(Measure::CpuPercent).unwrap();
        if points < 720 {
            let near = |value: &Option<f32>, want: f32| value.is_some_and(|value| (value - want).abs() < 0.01);
            assert!(line.mean[..points as usize].iter().all(|mean| near(mean, 20.0)), "{:?}", line.mean);
            assert!(line.peak[..points as usize].iter().all(|peak| near(peak, 70.0)), "{:?}", line.peak);
        }
    }
}

#[test]
fn what_is_old_goes_step_by_step() {
    let store = Store::in_memory();
    let day_of = |day: i64| NOON + day * DAY;
    for day in 0..40 {
        store.record(&Subject::Machine, day_of(day), &only_cpu(day as f32));
        store.flush().unwrap();
    }
    let now = day_of(39);
    let month = store.read(&Subject::Machine, span(now - 60 * DAY, now + SECOND, 800), now).unwrap();
    let days = means(&month, Measure::CpuPercent).iter().flatten().count();
    assert!((30..=35).contains(&days), "{days} of 40 days are kept");
    let hour = store.read(&Subject::Machine, span(now - HOUR, now + SECOND, 360), now).unwrap();
    assert_eq!(means(&hour, Measure::CpuPercent).iter().flatten().count(), 1);
    let nobody = store.read(&Subject::Instance(InstanceId(Uuid::nil())), span(0, now, 100), now).unwrap();
    assert!(nobody.lines.iter().all(|line| line.mean.iter().all(Option::is_none)));
}

#[test]
fn hostile_spans_are_answered_in_bounds() {
    let store = Store::in_memory();
    store.record(&Subject::Machine, NOON, &only_cpu(1.0));
    for (since, until, points) in [
        (i64::MIN / 4, i64::MAX / 4, u32::MAX),
        (NOON, NOON, 0),
        (NOON + DAY, NOON - DAY, 1),
        (0, NOON, 1_500),
        (NOON - 1, NOON + 1, 1_500),
    ] {
        let series = store.read(&Subject::Machine, span(since, until, points), NOON).unwrap();
        assert!(series.lines.iter().all(|line| (1..=1_501).contains(&line.mean.len())), "{since} {until} {points}");
        assert!(series.step_ms > 0);
    }
}

#[test]
fn a_damaged_file_is_set_aside_and_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("series.redb");
    let write = |path: &Path| {
        let store = Store::open(path);
        store.fill(&Subject::Machine, NOON, |_| only_cpu(1.0)).unwrap();
    };
    let begun_anew = || {
        let store = Store::open(&path);
        // What is broken may show only when it is read or written.
        store.record(&Subject::Machine, NOON, &only_cpu(5.0));
        store.flush().unwrap();
        let series = store.read(&Subject::Machine, span(NOON - HOUR, NOON + SECOND, 60), NOON).unwrap();
        assert!(means(&series, Measure::CpuPercent).contains(&Some(5.0)));
    };
    write(&path);
    fs::write(&path, b"this is no store").unwrap();
    begun_anew();
    assert!(dir.path().join("series.redb.damaged").exists());
    fs::remove_file(&path).unwrap();
    write(&path);
    let mut bytes = fs::read(&path).unwrap();
    let length = bytes.len();
    bytes[4_096..length].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    begun_anew();
}

#[test]
fn what_waits_is_bounded_while_nothing_can_be_written() {
    let store = Store::in_memory();
    for sample in 0..10_000 {
        store.record(&Subject::Machine, NOON + sample * 10 * SECOND, &only_cpu(1.0));
        store.record(&Subject::Instance(InstanceId(Uuid::from_u128(sample as u128))), NOON, &[0.0; 6]);
    }
    let waiting = store.waiting();
    assert!(waiting.len() <= super::MOST_SUBJECTS, "{}", waiting.len());
    assert_eq!(waiting[&Subject::Machine].len(), super::MOST_WAITING);
}

/// Restless values, so that nothing is small because it never changes.
fn restless(subject: &Subject, at_ms: i64) -> Vec<f32> {
    let seed = at_ms / TIERS[0].step_ms;
    let value = |place: usize| {
        let mixed = (seed as u64 ^ (place as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 40) as f32 * 1_000.0
    };
    (0..subject.measures().len()).map(value).collect()
}

/// Each node keeps its own: a month of 20 nodes with 4 cards and 10 instances each.
#[test]
fn a_month_of_twenty_nodes_and_two_hundred_instances_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = 0;
    for node in 0..20u128 {
        let path = dir.path().join(format!("{node}.redb"));
        let store = Store::open(&path);
        let card = |card: u32| Subject::Gpu(format!("GPU-{node}-{card}").parse::<GpuId>().unwrap());
        let instance = |instance: u128| Subject::Instance(InstanceId(Uuid::from_u128(node * 100 + instance)));
        let subjects: Vec<Subject> =
            [Subject::Machine].into_iter().chain((0..4).map(card)).chain((0..10).map(instance)).collect();
        for subject in &subjects {
            store.fill(subject, NOON, |at_ms| restless(subject, at_ms)).unwrap();
        }
        // Some hours more, as they come: what is written again and again must not make it grow.
        let hours = if node == 0 { 12 } else { 0 };
        for sample in 1..=hours * 360 {
            let at_ms = NOON + sample * 10 * SECOND;
            for subject in &subjects {
                store.record(subject, at_ms, &restless(subject, at_ms));
            }
            if sample % 30 == 0 {
                store.flush().unwrap();
            }
        }
        if hours > 0 {
            let end = NOON + hours * HOUR;
            let series = store.read(&subjects[7], span(end - HOUR, end, 360), end).unwrap();
            assert_eq!(means(&series, Measure::CpuPercent).iter().flatten().count(), 360);
        }
        drop(store);
        bytes += fs::metadata(&path).unwrap().len();
    }
    assert!(bytes < 200 << 20, "{} MiB", bytes >> 20);
    assert!(bytes > 5 << 20, "{} MiB: there is something to measure", bytes >> 20);
}
