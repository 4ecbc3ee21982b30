//! How samples become rows: each is written in the finest step, and what it touches in every coarser one is counted
//! anew from the step below. So a row is right whenever it is read, and whoever dies in between loses nothing but the
//! samples that were not written.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use redb::{ReadableTable, Table};
use toft_model::series::Subject;

use super::{Sample, SeriesError, block::Block, tier::TIERS};

/// Key and value are bytes: see [`key`].
pub(super) type Rows<'a> = Table<'a, &'static [u8], &'static [u8]>;

/// Step, block and subject: what is old lies together, and what is written at one time too.
pub(super) fn key(tier: usize, block: i64, subject: &Subject) -> Vec<u8> {
    let mut key = begin(tier, block);
    key.extend(name(subject).as_bytes());
    key
}

/// How the keys of a block begin.
pub(super) fn begin(tier: usize, block: i64) -> Vec<u8> {
    let block = u32::try_from(block.max(0)).unwrap_or(u32::MAX);
    [&[u8::try_from(tier).unwrap_or(u8::MAX)][..], &block.to_be_bytes()].concat()
}

fn name(subject: &Subject) -> String {
    match subject {
        Subject::Machine => "machine".to_owned(),
        Subject::Gpu(id) => format!("gpu/{}", id.as_str()),
        Subject::Instance(id) => format!("instance/{id}"),
    }
}

/// Columns of a subject's rows: the means, and above the finest step the peaks.
pub(super) fn columns(tier: usize, subject: &Subject) -> usize {
    subject.measures().len() * if tier == 0 { 1 } else { 2 }
}

/// The rows of one subject while they are changed.
struct Changed<'a, 'b> {
    rows: &'a mut Rows<'b>,
    subject: &'a Subject,
    known: BTreeMap<(usize, i64), Block>,
}

/// Mean and peak of each thing at one point.
type Point = Vec<(f32, f32)>;

impl Changed<'_, '_> {
    fn block(&mut self, tier: usize, number: i64) -> Result<&mut Block, SeriesError> {
        match self.known.entry((tier, number)) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(unknown) => {
                let (columns, points) = (columns(tier, self.subject), TIERS[tier].block_points());
                let row = self.rows.get(key(tier, number, self.subject).as_slice())?;
                let read = row.and_then(|row| Block::decode(row.value(), columns, points));
                Ok(unknown.insert(read.unwrap_or_else(|| Block::empty(columns, points))))
            }
        }
    }

    fn set(&mut self, tier: usize, slot: i64, point: &Point) -> Result<(), SeriesError> {
        let (number, place) = TIERS[tier].place(slot);
        let block = self.block(tier, number)?;
        for (column, (mean, peak)) in point.iter().enumerate() {
            block.set(column, place, *mean);
            if tier > 0 {
                block.set(point.len() + column, place, *peak);
            }
        }
        Ok(())
    }

    /// What the points of a step are together.
    fn summary(&mut self, tier: usize, slots: std::ops::Range<i64>) -> Result<Point, SeriesError> {
        let measures = self.subject.measures().len();
        let mut sums = vec![(0.0f64, 0u32, f32::NAN); measures];
        for slot in slots {
            let (number, place) = TIERS[tier].place(slot);
            let block = self.block(tier, number)?;
            for (column, (sum, count, peak)) in sums.iter_mut().enumerate() {
                let Some(mean) = block.get(column, place) else { continue };
                *sum += f64::from(mean);
                *count += 1;
                let highest = if tier == 0 { Some(mean) } else { block.get(measures + column, place) };
                *peak = peak.max(highest.unwrap_or(mean));
            }
        }
        let point = |(sum, count, peak): (f64, u32, f32)| match count {
            0 => (f32::NAN, f32::NAN),
            count => ((sum / f64::from(count)) as f32, peak),
        };
        Ok(sums.into_iter().map(point).collect())
    }

    fn write(self) -> Result<(), SeriesError> {
        let Self { rows, subject, known } = self;
        for ((tier, number), block) in &known {
            rows.insert(key(*tier, *number, subject).as_slice(), block.encode().as_slice())?;
        }
        Ok(())
    }
}

/// Adds the samples of one subject.
pub(super) fn add(rows: &mut Rows<'_>, subject: &Subject, samples: &[Sample]) -> Result<(), SeriesError> {
    let mut changed = Changed { rows, subject, known: BTreeMap::new() };
    let mut touched = BTreeSet::new();
    for sample in samples {
        let slot = TIERS[0].slot(sample.at_ms);
        let point: Point = sample.values.iter().map(|value| (*value, *value)).collect();
        changed.set(0, slot, &point)?;
        touched.insert(slot);
    }
    for tier in 1..TIERS.len() {
        let ratio = TIERS[tier].step_ms / TIERS[tier - 1].step_ms;
        touched = touched.iter().map(|slot| slot.div_euclid(ratio)).collect();
        for slot in &touched {
            let point = changed.summary(tier - 1, slot * ratio..(slot + 1) * ratio)?;
            changed.set(tier, *slot, &point)?;
        }
    }
    changed.write()
}

/// Removes what is older than its step is kept, as of `now_ms`.
pub(super) fn forget(rows: &mut Rows<'_>, now_ms: i64) -> Result<(), SeriesError> {
    for (number, tier) in TIERS.iter().enumerate() {
        let (oldest, _) = tier.place(tier.slot(now_ms - tier.kept_ms));
        let (from, to) = (begin(number, 0), begin(number, oldest));
        rows.retain_in(from.as_slice()..to.as_slice(), |_, _| false)?;
    }
    Ok(())
}

/// Writes a whole past up to `until_ms`, for machines that are made up.
pub(super) fn fill(
    rows: &mut Rows<'_>,
    subject: &Subject,
    until_ms: i64,
    values: &dyn Fn(i64) -> Vec<f32>,
) -> Result<(), SeriesError> {
    let measures = subject.measures().len();
    for (number, tier) in TIERS.iter().enumerate() {
        let newest = tier.slot(until_ms);
        let mut slot = tier.slot(until_ms - tier.kept_ms);
        while slot <= newest {
            let (block_number, first) = tier.place(slot);
            let mut block = Block::empty(columns(number, subject), tier.block_points());
            for place in first..tier.block_points() {
                let at_ms = slot * tier.step_ms;
                if at_ms > until_ms {
                    break;
                }
                let (mean, later) = (values(at_ms), values(at_ms + tier.step_ms / 2));
                for column in 0..measures {
                    block.set(column, place, mean[column]);
                    block.set(measures + column, place, mean[column].max(later[column]));
                }
                slot += 1;
            }
            rows.insert(key(number, block_number, subject).as_slice(), block.encode().as_slice())?;
        }
    }
    Ok(())
}
