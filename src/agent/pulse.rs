//! What the machine does, read from the kernel's counters every few seconds: four small files and one question to the
//! file system. Nothing is started, and no disk is woken.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::fs::statvfs;
use sysinfo::Components;
use toft_model::series::{Measure, Subject};

/// Looks at sensors only once in so many beats: some drivers take their time.
const SENSORS_EVERY: u32 = 6;
/// Highest temperature that is believed, in degrees Celsius.
const HOTTEST: f32 = 150.0;

/// What tells how the machine is.
pub trait Pulse: Send {
    /// What was measured since the beat before, in the order of the machine's measures; NaN where nothing was. Blocks for
    /// a moment.
    fn beat(&mut self) -> Vec<f32>;

    /// What a subject would have measured at some moment, on machines that are made up; `None` on real ones.
    fn past(&self, _subject: &Subject, _at_ms: i64) -> Option<Vec<f32>> {
        None
    }
}

/// The machine this runs on.
pub struct KernelPulse {
    data: PathBuf,
    before: Option<(Instant, Counters)>,
    beats: u32,
    celsius: f32,
}

/// What the kernel counts since the machine was started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Counters {
    /// Time of all cores, and the part of it in which they worked, in the kernel's ticks.
    cpu: Option<(u64, u64)>,
    /// Bytes received and sent.
    network: Option<(u64, u64)>,
    /// Bytes read and written.
    disk: Option<(u64, u64)>,
}

impl KernelPulse {
    /// That of this machine; `data` lies on the file system whose room is told.
    pub fn new(data: &Path) -> Self {
        Self { data: data.to_owned(), before: None, beats: 0, celsius: f32::NAN }
    }
}

impl Pulse for KernelPulse {
    fn beat(&mut self) -> Vec<f32> {
        let now = Instant::now();
        let counters = Counters {
            cpu: read("/proc/stat").as_deref().and_then(cpu),
            network: read("/proc/net/dev").map(|text| network(&text, is_way_out)),
            disk: read("/proc/diskstats").map(|text| disk(&text, is_whole_disk)),
        };
        let before = self.before.replace((now, counters));
        if self.beats.is_multiple_of(SENSORS_EVERY) {
            self.celsius = hottest();
        }
        self.beats = self.beats.wrapping_add(1);
        let rate = |of: fn(&Counters) -> Option<u64>| {
            let (at, counted) = before.as_ref()?;
            let seconds = now.duration_since(*at).as_secs_f64();
            Some((of(&counters)?.checked_sub(of(counted)?)? as f64 / seconds.max(0.001)) as f32)
        };
        let value = |measure: &Measure| match measure {
            Measure::CpuPercent => cpu_percent(before.and_then(|(_, before)| before.cpu), counters.cpu),
            Measure::MemoryBytes => read("/proc/meminfo").as_deref().and_then(memory_used),
            Measure::ReceivedPerSecond => rate(|counters| Some(counters.network?.0)),
            Measure::SentPerSecond => rate(|counters| Some(counters.network?.1)),
            Measure::ReadPerSecond => rate(|counters| Some(counters.disk?.0)),
            Measure::WrittenPerSecond => rate(|counters| Some(counters.disk?.1)),
            Measure::DiskUsedBytes => disk_used(&self.data),
            Measure::Celsius => Some(self.celsius),
            Measure::BusyPercent | Measure::Watts => None,
        };
        Subject::Machine.measures().iter().map(|measure| value(measure).unwrap_or(f32::NAN)).collect()
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// `cpu  USER NICE SYSTEM IDLE IOWAIT IRQ SOFTIRQ STEAL ...`: all time, and the time of work. Time that the machine's host
/// took away is not ours.
fn cpu(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|number| number.parse().ok()).collect();
    let idle = ticks.get(3)? + ticks.get(4).unwrap_or(&0);
    let all: u64 = ticks.iter().sum();
    Some((all, all - idle))
}

fn cpu_percent(before: Option<(u64, u64)>, now: Option<(u64, u64)>) -> Option<f32> {
    let ((all_before, busy_before), (all, busy)) = (before?, now?);
    let (all, busy) = (all.checked_sub(all_before)?, busy.saturating_sub(busy_before));
    (all > 0).then(|| (busy as f64 * 100.0 / all as f64) as f32)
}

/// What programs hold and the kernel cannot take back.
fn memory_used(meminfo: &str) -> Option<f32> {
    let kib = |key: &str| {
        let rest = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((kib("MemTotal")?.saturating_sub(kib("MemAvailable")?) * 1024) as f32)
}

/// Bytes received and sent by the interfaces that `counts`.
fn network(text: &str, counts: impl Fn(&str) -> bool) -> (u64, u64) {
    let (mut received, mut sent) = (0, 0);
    for (name, numbers) in text.lines().filter_map(|line| line.split_once(':')) {
        if counts(name.trim()) {
            let mut numbers = numbers.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
            received += numbers.next().unwrap_or(0);
            sent += numbers.nth(7).unwrap_or(0);
        }
    }
    (received, sent)
}

/// What is carried by a device goes out of the machine; bridges, tunnels and the ends of containers would count it again.
/// A machine that is a container itself has no device, and its `eth0` is its way out.
fn is_way_out(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).join("device").exists() || name.starts_with("eth")
}

/// Bytes that were read from and written to the devices that `counts`: fields 6 and 10, in sectors of 512 bytes.
fn disk(text: &str, counts: impl Fn(&str) -> bool) -> (u64, u64) {
    let (mut read, mut written) = (0u64, 0u64);
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |place: usize| fields.get(place).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        if fields.get(2).is_some_and(|name| counts(name)) {
            read += number(5).saturating_mul(512);
            written += number(9).saturating_mul(512);
        }
    }
    (read, written)
}

/// Partitions are part of their disk, and what lies above disks would count them twice.
fn is_whole_disk(name: &str) -> bool {
    Path::new("/sys/block").join(name).join("device").exists()
}

fn disk_used(path: &Path) -> Option<f32> {
    let told = statvfs(path).ok()?;
    Some((told.f_blocks.saturating_sub(told.f_bfree).saturating_mul(told.f_frsize)) as f32)
}

fn hottest() -> f32 {
    let Ok(sensors) = Components::new_with_refreshed_list() else { return f32::NAN };
    let told = sensors.iter().filter_map(|sensor| sensor.temperature());
    told.filter(|celsius| (0.0..HOTTEST).contains(celsius)).fold(f32::NAN, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_as_the_kernel_writes_them() {
        let at = |text: &str| cpu(text).unwrap();
        let (before, now) = (at("cpu  10 0 10 70 10 0 0 0 5 5\ncpu0 1\n"), at("cpu  40 0 20 120 20 0 0 0 9 9\n"));
        assert_eq!((before, now), ((100, 20), (200, 60)));
        assert_eq!(cpu_percent(Some(before), Some(now)), Some(40.0));
        assert_eq!(cpu_percent(Some(now), Some(before)), None, "a counter that went back says nothing");
        assert_eq!((cpu("nonsense"), cpu(""), cpu("cpu  1 2")), (None, None, None));
        assert_eq!(memory_used("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   60 kB\n"), Some(40.0 * 1024.0));
        assert_eq!(memory_used("MemTotal: 100 kB\n"), None);
        let devices = "head\n  lo: 9 1 0 0 0 0 0 0 9\n eth0: 100 1 2 3 4 5 6 7 200 1\nveth1:5 0 0 0 0 0 0 0 5\n";
        assert_eq!(network(devices, |name| name == "eth0"), (100, 200));
        let disks = " 8 0 sda 1 2 4 3 5 6 8 7 0 0 0\n 8 1 sda1 1 2 99 3 5 6 99 7 0 0 0\n short\n";
        assert_eq!(disk(disks, |name| name == "sda"), (4 * 512, 8 * 512));
    }

    #[test]
    fn this_machine_has_a_pulse() {
        let mut pulse = KernelPulse::new(&std::env::temp_dir());
        pulse.beat();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let values = pulse.beat();
        let of = |wanted: Measure| {
            let place = Subject::Machine.measures().iter().position(|measure| *measure == wanted).unwrap();
            values[place]
        };
        assert!((0.0..=100.0).contains(&of(Measure::CpuPercent)), "{values:?}");
        assert!(of(Measure::MemoryBytes) > 0.0 && of(Measure::DiskUsedBytes) > 0.0, "{values:?}");
        assert!(pulse.past(&Subject::Machine, 0).is_none());
    }
}
