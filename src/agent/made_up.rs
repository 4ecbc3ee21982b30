//! What made-up machines measure: slow waves that look like days, loads and requests, the same for whoever asks about the
//! same moment. So the past can be told as well as the present, and counters agree with what is told of them.

use std::f64::consts::TAU;

use toft_model::series::{Measure, Subject};

use super::pulse::Pulse;

/// Parts of a wave: how high, compared with its middle, and how long, in seconds.
const PARTS: [(f64, f64); 4] = [(0.34, 86_400.0), (0.2, 9_700.0), (0.12, 1_930.0), (0.05, 233.0)];

/// Something that goes up and down around its middle and never below nothing.
#[derive(Debug, Clone, Copy)]
pub struct Wave {
    middle: f64,
    phase: u64,
}

impl Wave {
    /// The wave of what `name` says, around `middle`.
    pub fn new(name: &str, middle: f64) -> Self {
        Self { middle, phase: hash(name) }
    }

    fn phase(&self, part: usize) -> f64 {
        let turned = self.phase.rotate_left(u32::try_from(part * 13).unwrap_or(0)) % 1_000;
        turned as f64 / 1_000.0 * TAU
    }

    /// How high it is.
    pub fn at(&self, at_ms: i64) -> f64 {
        let seconds = at_ms as f64 / 1_000.0;
        let part = |(place, (height, length)): (usize, &(f64, f64))| {
            height * (seconds / length * TAU + self.phase(place)).sin()
        };
        self.middle * (1.0 + PARTS.iter().enumerate().map(part).sum::<f64>())
    }

    /// What it is between two moments, summed up over seconds.
    pub fn between(&self, since_ms: i64, until_ms: i64) -> f64 {
        let whole = |at_ms: i64| {
            let seconds = at_ms as f64 / 1_000.0;
            let part = |(place, (height, length)): (usize, &(f64, f64))| {
                let speed = TAU / length;
                -height / speed * (seconds * speed + self.phase(place)).cos()
            };
            seconds + PARTS.iter().enumerate().map(part).sum::<f64>()
        };
        (self.middle * (whole(until_ms) - whole(since_ms))).max(0.0)
    }
}

/// The same number for the same name, on every machine.
pub fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What an instance does: cores, bytes of memory, and bytes a second of network and disk.
pub struct Work {
    /// Cores in use.
    pub cores: Wave,
    /// Memory in use.
    pub memory: Wave,
    /// Received and sent.
    pub network: (Wave, Wave),
    /// Read and written.
    pub disk: (Wave, Wave),
}

impl Work {
    /// That of the instance with that id.
    pub fn of(id: &str) -> Self {
        let size = 0.25 + (hash(id) % 8) as f64 / 4.0;
        let wave = |what: &str, middle: f64| Wave::new(&format!("{what} {id}"), middle * size);
        Self {
            cores: wave("cores", 0.3),
            memory: wave("memory", 220e6),
            network: (wave("received", 60e3), wave("sent", 240e3)),
            disk: (wave("read", 4e3), wave("written", 22e3)),
        }
    }
}

/// How busy a made-up card is while it is held, in percent.
pub fn busy_percent(card: &str, at_ms: i64) -> f64 {
    Wave::new(card, 62.0).at(at_ms).clamp(0.0, 100.0)
}

/// Degrees and watts of a card that is so busy.
pub fn warmth(busy_percent: f64, watts_limit: f64) -> (f64, f64) {
    (34.0 + busy_percent * 0.39, watts_limit * (0.07 + busy_percent * 0.0082))
}

/// A machine that is made up.
pub struct MadeUpPulse {
    name: String,
    memory_bytes: f64,
    has_past: bool,
    at_ms: fn() -> i64,
}

impl MadeUpPulse {
    /// The pulse of the machine `name` with so much memory. Without a past it was never measured before.
    pub fn new(name: &str, memory_bytes: u64, has_past: bool) -> Self {
        let at_ms = || jiff::Timestamp::now().as_millisecond();
        Self { name: name.to_owned(), memory_bytes: memory_bytes as f64, has_past, at_ms }
    }

    fn machine(&self, at_ms: i64) -> Vec<f32> {
        let wave = |what: &str, middle: f64| Wave::new(&format!("{what} {}", self.name), middle).at(at_ms);
        let value = |measure: &Measure| match measure {
            Measure::CpuPercent => wave("cpu", 14.0 + (hash(&self.name) % 30) as f64).min(100.0),
            Measure::MemoryBytes => wave("memory", self.memory_bytes * 0.42).min(self.memory_bytes),
            Measure::ReceivedPerSecond => wave("received", 2.2e6),
            Measure::SentPerSecond => wave("sent", 5.1e6),
            Measure::ReadPerSecond => wave("read", 0.9e6),
            Measure::WrittenPerSecond => wave("written", 1.6e6),
            Measure::DiskUsedBytes => 311e9 + at_ms.rem_euclid(40 * 86_400_000) as f64 * 12.0,
            Measure::Celsius => 38.0 + wave("cpu", 20.0) * 0.5,
            Measure::BusyPercent | Measure::Watts => f64::NAN,
        };
        Subject::Machine.measures().iter().map(|measure| value(measure) as f32).collect()
    }
}

impl Pulse for MadeUpPulse {
    fn beat(&mut self) -> Vec<f32> {
        self.machine((self.at_ms)())
    }

    fn past(&self, subject: &Subject, at_ms: i64) -> Option<Vec<f32>> {
        self.has_past.then(|| match subject {
            Subject::Machine => self.machine(at_ms),
            Subject::Gpu(id) => {
                let busy = busy_percent(id.as_str(), at_ms);
                let (celsius, watts) = warmth(busy, 350.0);
                let memory = Wave::new(&format!("memory {}", id.as_str()), 14e9).at(at_ms);
                [busy, memory, watts, celsius].map(|value| value as f32).to_vec()
            }
            Subject::Instance(id) => {
                let work = Work::of(&id.to_string());
                let values = [
                    work.cores.at(at_ms) * 100.0,
                    work.memory.at(at_ms),
                    work.network.0.at(at_ms),
                    work.network.1.at(at_ms),
                    work.disk.0.at(at_ms),
                    work.disk.1.at(at_ms),
                ];
                values.map(|value| value as f32).to_vec()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_agrees_with_what_is_counted_of_it() {
        let wave = Wave::new("a", 50.0);
        let begin = 1_800_000_000_000;
        let counted = wave.between(begin, begin + 600_000);
        let summed: f64 = (0..6_000).map(|tenth| wave.at(begin + tenth * 100 + 50) * 0.1).sum();
        assert!((counted - summed).abs() < 1.0, "{counted} {summed}");
        assert!((0..100_000).all(|minute| wave.at(begin + minute * 60_000) >= 0.0));
        assert_ne!(wave.at(begin), Wave::new("b", 50.0).at(begin));
    }

    #[test]
    fn every_subject_has_a_past_of_its_measures() {
        let pulse = MadeUpPulse::new("attic", 64 << 30, true);
        let card = Subject::Gpu("GPU-1".parse().expect("it is a name"));
        let instance = Subject::Instance(toft_model::ids::InstanceId(uuid::Uuid::nil()));
        for subject in [Subject::Machine, card, instance] {
            let values = pulse.past(&subject, 1_800_000_000_000).expect("it is made up");
            assert_eq!(values.len(), subject.measures().len());
            assert!(values.iter().all(|value| value.is_finite() && *value >= 0.0), "{values:?}");
        }
    }
}
