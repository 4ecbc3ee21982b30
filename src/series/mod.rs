//! What this node measured over time: its machine, its cards and its instances.
//!
//! A sample arrives every ten seconds and waits in memory. [`Store::flush`] writes what waits, every few minutes and in
//! one transaction: homelab disks are spared, and a crash costs those minutes and nothing else. Samples are kept in
//! steps that grow coarser with age ([`tier`]), so the file is bounded, and so is what waits. Nothing here ever becomes
//! a command, and nothing depends on it: a file that is damaged is set aside and begun anew.

mod block;
mod fold;
mod tier;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use redb::{Database, ReadableDatabase, TableDefinition, backends::InMemoryBackend};
use toft_model::series::{KEPT_MS, Line, MOST_POINTS, Series, Span, Subject};

use block::Block;
use tier::TIERS;

use crate::observe::chain;

/// Time between two samples.
pub const PACE: Duration = Duration::from_secs(10);
/// Time between two writes.
pub const FLUSH: Duration = Duration::from_secs(300);

const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("blocks");
/// Page cache in bytes.
const CACHE_BYTES: usize = 1 << 20;
/// Most subjects whose samples wait, and most samples of each that do: a quarter of an hour.
const MOST_SUBJECTS: usize = 4_096;
const MOST_WAITING: usize = 90;

/// Why samples cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SeriesError {
    /// The store failed.
    #[error("the samples could not be read or written")]
    Store(#[source] Box<redb::Error>),
    /// The file is not what it should be.
    #[error("the file of samples is damaged")]
    Damaged,
}

impl<E: Into<redb::Error>> From<E> for SeriesError {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::Corrupted(_) => Self::Damaged,
            other => Self::Store(Box::new(other)),
        }
    }
}

/// What was measured at one moment, in the order of [`Subject::measures`]; NaN where nothing was.
#[derive(Debug, Clone)]
struct Sample {
    at_ms: i64,
    values: Box<[f32]>,
}

/// The samples of this node. Clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    /// Absent when it lies in memory.
    path: Option<PathBuf>,
    database: RwLock<Database>,
    waiting: Mutex<HashMap<Subject, Vec<Sample>>>,
}

impl Store {
    /// Opens or makes the file. One that cannot be used is set aside; where none can be made, samples are kept in memory
    /// for as long as the daemon runs.
    pub fn open(path: &Path) -> Self {
        let opened = guarded(|| open(path)).or_else(|error| {
            tracing::warn!(error = chain(&error), "the file of samples cannot be used and is begun anew");
            set_aside(path);
            guarded(|| open(path))
        });
        match opened {
            Ok(database) => Self::of(Some(path.to_owned()), database),
            Err(error) => {
                tracing::warn!(error = chain(&error), "samples are kept in memory, until toft is started again");
                Self::in_memory()
            }
        }
    }

    /// One without a file.
    pub fn in_memory() -> Self {
        let database = Database::builder().create_with_backend(InMemoryBackend::new());
        Self::of(None, database.expect("memory holds an empty store"))
    }

    fn of(path: Option<PathBuf>, database: Database) -> Self {
        Self { inner: Arc::new(Inner { path, database: RwLock::new(database), waiting: Mutex::default() }) }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Subject, Vec<Sample>>> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a sample: a value for each of the subject's measures, NaN where there is none.
    pub fn record(&self, subject: &Subject, at_ms: i64, values: &[f32]) {
        let mut waiting = self.waiting();
        if !waiting.contains_key(subject) && waiting.len() >= MOST_SUBJECTS {
            return;
        }
        let samples = waiting.entry(subject.clone()).or_default();
        if samples.len() >= MOST_WAITING {
            samples.remove(0);
        }
        samples.push(Sample { at_ms, values: values.into() });
    }

    /// Writes what waits and forgets what is old. Blocks for one flush of the disk.
    pub fn flush(&self) -> Result<(), SeriesError> {
        let waiting = self.waiting().clone();
        let Some(newest) = waiting.values().flatten().map(|sample| sample.at_ms).max() else { return Ok(()) };
        self.mended(|database| {
            let transaction = database.begin_write()?;
            {
                let mut rows = transaction.open_table(ROWS)?;
                for (subject, samples) in &waiting {
                    fold::add(&mut rows, subject, samples)?;
                }
                fold::forget(&mut rows, newest)?;
            }
            Ok(transaction.commit()?)
        })?;
        let mut left = self.waiting();
        left.retain(|subject, samples| {
            let written = waiting.get(subject).and_then(|written| written.last()).map(|last| last.at_ms);
            samples.retain(|sample| written.is_none_or(|written| sample.at_ms > written));
            !samples.is_empty()
        });
        Ok(())
    }

    /// Writes a whole past of a subject up to `until_ms`, for machines that are made up.
    pub fn fill(&self, subject: &Subject, until_ms: i64, values: impl Fn(i64) -> Vec<f32>) -> Result<(), SeriesError> {
        self.mended(|database| {
            let transaction = database.begin_write()?;
            fold::fill(&mut transaction.open_table(ROWS)?, subject, until_ms, &values)?;
            Ok(transaction.commit()?)
        })
    }

    /// What was measured of a subject, as of `now_ms`. Blocks for some reads of the disk.
    pub fn read(&self, subject: &Subject, span: Span, now_ms: i64) -> Result<Series, SeriesError> {
        let mut sums = Sums::new(subject, span, now_ms);
        self.mended(|database| {
            let transaction = database.begin_read()?;
            let rows = match transaction.open_table(ROWS) {
                Ok(rows) => rows,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let tier = &TIERS[sums.tier];
            let (first, _) = tier.place(tier.slot(sums.since_ms));
            let (last, _) = tier.place(tier.slot(sums.end_ms() - 1));
            for number in first..=last {
                let row = rows.get(fold::key(sums.tier, number, subject).as_slice())?;
                let columns = fold::columns(sums.tier, subject);
                if let Some(block) = row.and_then(|row| Block::decode(row.value(), columns, tier.block_points())) {
                    sums.add_block(number, &block);
                }
            }
            Ok(())
        })?;
        if let Some(samples) = self.waiting().get(subject) {
            for sample in samples {
                for (column, value) in sample.values.iter().enumerate() {
                    sums.add(column, sample.at_ms, (*value, *value), 1.0);
                }
            }
        }
        Ok(sums.series(subject))
    }

    /// Does `work`; if the file turns out to be damaged, it is begun anew.
    fn mended<T>(&self, mut work: impl FnMut(&Database) -> Result<T, SeriesError>) -> Result<T, SeriesError> {
        let done = {
            let database = self.inner.database.read().unwrap_or_else(PoisonError::into_inner);
            guarded(|| work(&database))
        };
        match (done, &self.inner.path) {
            (Err(SeriesError::Damaged), Some(path)) => {
                tracing::warn!("the file of samples `{}` is damaged; it is set aside and begun anew", path.display());
                let mut database = self.inner.database.write().unwrap_or_else(PoisonError::into_inner);
                set_aside(path);
                *database = guarded(|| open(path))?;
                guarded(|| work(&database))
            }
            (done, _) => done,
        }
    }
}

fn open(path: &Path) -> Result<Database, SeriesError> {
    Ok(Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(redb::Error::from)?)
}

/// The newest damaged file is kept, for whoever wants to know why.
fn set_aside(path: &Path) {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    if let Err(error) = std::fs::rename(path, aside) {
        tracing::warn!(%error, "`{}` could not be set aside", path.display());
    }
}

/// A store that reads nonsense may panic instead of saying so.
fn guarded<T>(work: impl FnOnce() -> Result<T, SeriesError>) -> Result<T, SeriesError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(SeriesError::Damaged))
}

/// Points that are being summed up.
struct Sums {
    tier: usize,
    since_ms: i64,
    step_ms: i64,
    /// Of each measure and point: sum, weight and peak.
    points: Vec<Vec<(f64, f64, f32)>>,
}

impl Sums {
    fn new(subject: &Subject, span: Span, now_ms: i64) -> Self {
        let points = i64::from(span.points.clamp(1, MOST_POINTS));
        let until_ms = span.until_ms.min(now_ms + 1);
        let since_ms = span.since_ms.max(now_ms - KEPT_MS).min(until_ms - 1);
        let wanted = (until_ms - since_ms).div_euclid(points).max(1);
        let tier = tier::chosen(now_ms - since_ms, wanted);
        let fine = TIERS[tier].step_ms;
        let step_ms = (wanted + fine - 1).div_euclid(fine) * fine;
        let since_ms = since_ms.div_euclid(step_ms) * step_ms;
        let count = (until_ms - since_ms + step_ms - 1).div_euclid(step_ms).max(1);
        let point = vec![(0.0, 0.0, f32::NAN); usize::try_from(count).unwrap_or(1)];
        Self { tier, since_ms, step_ms, points: vec![point; subject.measures().len()] }
    }

    fn end_ms(&self) -> i64 {
        self.since_ms + self.step_ms * self.points.first().map_or(0, Vec::len) as i64
    }

    fn add(&mut self, column: usize, at_ms: i64, (mean, peak): (f32, f32), weight: f64) {
        let place = usize::try_from((at_ms - self.since_ms).div_euclid(self.step_ms));
        let point = place.ok().and_then(|place| self.points.get_mut(column)?.get_mut(place));
        let Some((sum, weights, highest)) = point.filter(|_| mean.is_finite()) else { return };
        *sum += f64::from(mean) * weight;
        *weights += weight;
        *highest = highest.max(peak);
    }

    fn add_block(&mut self, number: i64, block: &Block) {
        let tier = &TIERS[self.tier];
        let weight = (tier.step_ms / TIERS[0].step_ms) as f64;
        let measures = self.points.len();
        for place in 0..tier.block_points() {
            let at_ms = (number * tier.block_points() as i64 + place as i64) * tier.step_ms;
            for column in 0..measures {
                let Some(mean) = block.get(column, place) else { continue };
                let peak = if self.tier == 0 { None } else { block.get(measures + column, place) };
                self.add(column, at_ms, (mean, peak.unwrap_or(mean)), weight);
            }
        }
    }

    fn series(self, subject: &Subject) -> Series {
        let line = |(measure, points): (&toft_model::series::Measure, Vec<(f64, f64, f32)>)| Line {
            measure: *measure,
            mean: points.iter().map(|(sum, weight, _)| (*weight > 0.0).then(|| (sum / weight) as f32)).collect(),
            peak: points.iter().map(|(_, weight, peak)| (*weight > 0.0).then_some(*peak)).collect(),
        };
        let lines = subject.measures().iter().zip(self.points).map(line).collect();
        Series { since_ms: self.since_ms, step_ms: self.step_ms, lines }
    }
}
