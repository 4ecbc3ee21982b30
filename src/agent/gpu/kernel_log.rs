//! Faults of cards that the kernel's log tells (`/dev/kmsg`): NVIDIA's Xids, also where its library tells no events, and resets of the
//! kernel's own drivers that failed. Read without waiting, with every look at the cards.
//!
//! Anybody who is root, in a privileged container too, can write to the log; only what the kernel itself wrote is believed.

use std::{
    collections::HashMap,
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::{
    fs::OFlags,
    time::{ClockId, clock_gettime},
};
use toft_model::gpu::GpuXid;

use super::{MOST_CARDS, sysfs::is_pci};

/// Largest record, in bytes; the kernel writes no larger ones.
const LARGEST: usize = 8_192;
/// Most records read at once; the rest is read with the next look.
const MOST_RECORDS: usize = 16_384;
/// Older faults, in milliseconds, are over, or were seen by the toft that ran then.
const OLDEST_MS: i64 = 600_000;
/// How NVIDIA's driver begins: what was wrong with cards before is over.
const LOADING: &str = "NVRM: loading NVIDIA UNIX";
/// What the kernel's own drivers write when a card does not come back, by the driver's name.
const FATAL: [(&str, &str, &str); 7] = [
    ("amdgpu", "device lost from bus", "it has fallen off the bus"),
    ("amdgpu", "GPU reset end with ret = -", "a reset failed"),
    ("amdgpu", ") failed", "a reset failed"),
    ("i915", "Failed to reset chip", "a reset failed"),
    ("i915", "GPU recovery timed out", "a reset failed"),
    ("i915", "wedged", "its driver gave it up"),
    ("xe", "wedged", "its driver gave it up"),
];

/// What the log told of one card last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoggedFaults {
    /// NVIDIA's fault.
    pub xid: Option<GpuXid>,
    /// Another driver's: what it means, and when, in milliseconds since 1970.
    pub reset: Option<(&'static str, i64)>,
}

/// The log as far as it was read.
pub struct KernelLog {
    source: Option<Box<dyn Read + Send>>,
    faults: HashMap<String, LoggedFaults>,
}

impl KernelLog {
    /// The log at `path`, from its beginning. One that cannot be read tells nothing.
    pub fn open(path: &Path) -> Self {
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
        if let Err(error) = &opened {
            tracing::info!(path = %path.display(), %error, "the kernel's log cannot be read: faults of GPUs that only it tells are not seen");
        }
        Self { source: opened.ok().map(|file| Box::new(file) as Box<dyn Read + Send>), faults: HashMap::new() }
    }

    /// One whose records come from elsewhere, each with one read.
    pub fn of(source: impl Read + Send + 'static) -> Self {
        Self { source: Some(Box::new(source)), faults: HashMap::new() }
    }

    /// None.
    pub fn none() -> Self {
        Self { source: None, faults: HashMap::new() }
    }

    /// Reads what is new.
    pub(super) fn read(&mut self, now_ms: i64) {
        let now = clock_gettime(ClockId::Monotonic);
        let up_ms = now.tv_sec.saturating_mul(1_000) + now.tv_nsec / 1_000_000;
        let mut bytes = [0; LARGEST];
        for _ in 0..MOST_RECORDS {
            let Some(source) = &mut self.source else { return };
            match source.read(&mut bytes) {
                Ok(0) => return,
                Ok(length) => {
                    let Some(record) = std::str::from_utf8(&bytes[..length]).ok().and_then(Record::parse) else {
                        continue;
                    };
                    let at_ms = now_ms - (up_ms - record.up_ms).max(0);
                    if now_ms - at_ms <= OLDEST_MS {
                        self.note(&record, at_ms);
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    // Records were overwritten before they were read; the next is the oldest that is left.
                    io::ErrorKind::BrokenPipe | io::ErrorKind::Interrupted => {}
                    _ => {
                        tracing::warn!(%error, "the kernel's log cannot be read any more");
                        self.source = None;
                    }
                },
            }
        }
    }

    fn note(&mut self, record: &Record<'_>, at_ms: i64) {
        if record.text.starts_with(LOADING) {
            self.faults.values_mut().for_each(|faults| faults.xid = None);
            return;
        }
        let Some((card, fault)) = record.fault() else { return };
        if self.faults.len() >= MOST_CARDS && !self.faults.contains_key(&card) {
            return;
        }
        let known = self.faults.entry(card).or_default();
        match fault {
            Fault::Xid(code) => known.xid = Some(GpuXid { code, at_ms }),
            Fault::Reset(meaning) => known.reset = Some((meaning, at_ms)),
        }
    }

    /// What was told last of the card at an address on the bus.
    pub(super) fn of_card(&self, pci: &str) -> LoggedFaults {
        self.faults.get(slot(pci)).copied().unwrap_or_default()
    }
}

/// The address without the function: NVIDIA's driver leaves it out.
fn slot(pci: &str) -> &str {
    pci.split_once('.').map_or(pci, |(slot, _)| slot)
}

/// A line of the kernel's own.
struct Record<'a> {
    /// When, in milliseconds since the machine was started.
    up_ms: i64,
    text: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
enum Fault {
    Xid(u64),
    Reset(&'static str),
}

impl<'a> Record<'a> {
    /// `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,...];TEXT`, and lines with more that begin with a blank. The priority's upper bits
    /// say who wrote it, 0 for the kernel.
    fn parse(record: &'a str) -> Option<Self> {
        let (head, rest) = record.split_once(';')?;
        let mut numbers = head.split(',').map(|number| number.parse::<u64>().ok());
        let (priority, _, micros) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let up_ms = i64::try_from(micros / 1_000).ok()?;
        (priority >> 3 == 0).then_some(Self { up_ms, text: rest.lines().next()? })
    }

    /// The card's slot on the bus, and what happened to it.
    fn fault(&self) -> Option<(String, Fault)> {
        self.xid().or_else(|| self.reset())
    }

    /// `NVRM: Xid (PCI:0000:01:00): 79, pid=1234, name=python, GPU has fallen off the bus.`
    fn xid(&self) -> Option<(String, Fault)> {
        let (place, rest) = self.text.strip_prefix("NVRM: Xid (")?.split_once("): ")?;
        let place = place.strip_prefix("PCI:").unwrap_or(place);
        let place = place.split_whitespace().next()?.to_ascii_lowercase();
        let (domain, rest_of_place) = place.split_once(':')?;
        let domain = u32::from_str_radix(domain, 16).ok()?;
        let card = slot(&format!("{domain:04x}:{rest_of_place}")).to_owned();
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let code = rest[..digits].parse().ok()?;
        is_pci(&format!("{card}.0")).then_some((card, Fault::Xid(code)))
    }

    /// `amdgpu 0000:03:00.0: amdgpu: GPU reset(3) failed`
    fn reset(&self) -> Option<(String, Fault)> {
        let (driver, rest) = self.text.split_once(' ')?;
        let (card, words) = rest.split_once(": ")?;
        if !is_pci(card) {
            return None;
        }
        let means = |(of, begin, _): &&(&str, &str, &str)| {
            *of == driver && words.contains(begin) && (*begin != ") failed" || words.contains("GPU reset("))
        };
        let (_, _, meaning) = FATAL.iter().find(means)?;
        Some((slot(card).to_ascii_lowercase(), Fault::Reset(meaning)))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, io::Write};

    use super::*;

    /// Gives a record with each read, as the kernel does.
    struct Records(VecDeque<Result<Vec<u8>, io::ErrorKind>>);

    impl Read for Records {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            match self.0.pop_front() {
                None => Err(io::ErrorKind::WouldBlock.into()),
                Some(Err(kind)) => Err(kind.into()),
                Some(Ok(record)) => {
                    let length = record.len().min(into.len());
                    into[..length].copy_from_slice(&record[..length]);
                    Ok(length)
                }
            }
        }
    }

    fn fault(record: &str) -> Option<(String, Fault)> {
        Record::parse(record)?.fault()
    }

    #[test]
    fn faults_are_read_as_drivers_write_them() {
        let card = |slot: &str, fault| Some((slot.to_owned(), fault));
        for (record, want) in [
            (
                "4,1,2000,-;NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n",
                card("0000:01:00", Fault::Xid(79)),
            ),
            ("4,1,2000,c;NVRM: Xid (0000:C1:00): 31, Ch 00000010\n KEY=x", card("0000:c1:00", Fault::Xid(31))),
            ("6,1,2,-,caller=T1;NVRM: Xid (PCI:0001:0a:00 GPU-I:05): 119", card("0001:0a:00", Fault::Xid(119))),
            (
                "3,9,9,-;amdgpu 0000:03:00.0: amdgpu: GPU reset(3) failed\n SUBSYSTEM=pci\n",
                card("0000:03:00", Fault::Reset("a reset failed")),
            ),
            (
                "3,9,9,-;amdgpu 0000:03:00.0: amdgpu: GPU reset end with ret = -62",
                card("0000:03:00", Fault::Reset("a reset failed")),
            ),
            (
                "3,9,9,-;xe 0000:07:00.0: [drm] device wedged, needs recovery",
                card("0000:07:00", Fault::Reset("its driver gave it up")),
            ),
            ("3,9,9,-;amdgpu 0000:03:00.0: amdgpu: GPU reset(4) succeeded!", None),
            ("3,9,9,-;amdgpu 0000:03:00.0: amdgpu: bo creation (x) failed", None),
            ("3,9,9,-;usb 1-1: device descriptor read failed", None),
        ] {
            assert_eq!(fault(record), want, "{record}");
        }
    }

    #[test]
    fn what_the_kernel_did_not_write_is_no_fault() {
        let line = "NVRM: Xid (PCI:0000:01:00): 79, x";
        for bad in [
            // Whoever is root wrote it.
            format!("12,1,2,-;{line}"),
            format!("4,1,2,-;x {line}"),
            format!("4,1,2,-;x\n {line}"),
            format!("4,1;{line}"),
            format!("-4,1,2,-;{line}"),
            format!("4,1,99999999999999999999,-;{line}"),
            line.to_owned(),
            String::new(),
            ";".into(),
            "4,1,2,-;".into(),
            "4,1,2,-;NVRM: Xid (PCI:0000:01:00): ".into(),
            "4,1,2,-;NVRM: Xid (PCI:0000:01:00): seventy".into(),
            "4,1,2,-;NVRM: Xid (PCI:../../x): 79".into(),
            "4,1,2,-;NVRM: Xid (PCI:): 79".into(),
            "4,1,2,-;NVRM: Xid (): 79".into(),
            "4,1,2,-;NVRM: Xid (PCI:0000:01:00): 99999999999999999999".into(),
            format!("4,1,2,-;NVRM: Xid ({}): 79", "0".repeat(8_000)),
            "4,1,2,-;amdgpu ../x: amdgpu: device lost from bus!".into(),
        ] {
            assert_eq!(fault(&bad), None, "{bad:.80}");
        }
    }

    #[test]
    fn the_newest_fault_of_each_card_is_kept_and_old_ones_are_over() {
        let now = clock_gettime(ClockId::Monotonic);
        let up_us = now.tv_sec * 1_000_000;
        let record = |at_us: i64, slot: &str, code: u64| {
            Ok(format!("4,1,{at_us},-;NVRM: Xid (PCI:{slot}): {code}, x").into_bytes())
        };
        let mut records = VecDeque::from([
            record(up_us - 5_000_000, "0000:01:00", 48),
            Err(io::ErrorKind::BrokenPipe),
            Ok(vec![0xff; LARGEST]),
            record(up_us, "0000:01:00", 79),
            record(up_us - 700_000_000, "0000:02:00", 79),
        ]);
        records.extend((0..2 * MOST_CARDS).map(|slot| record(up_us, &format!("{slot:04x}:05:00"), 79)));
        let mut log = KernelLog::of(Records(records));
        log.read(1_000_000_000);
        let xid = log.of_card("0000:01:00.0").xid.unwrap();
        assert!(xid.code == 79 && (999_990_000..=1_000_000_000).contains(&xid.at_ms), "{xid:?}");
        assert_eq!(log.of_card("0000:02:00.0"), LoggedFaults::default(), "too old");
        assert_eq!(log.faults.len(), MOST_CARDS);
        log.read(1_000_000_001);
        assert_eq!(log.of_card("0000:01:00.0").xid, Some(xid), "nothing new");
        let loading = b"5,1,9,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  570.86.10";
        let line = |at_us: i64| [format!("5,1,{at_us},-;").as_bytes(), &loading[8..]].concat();
        log.source = Some(Box::new(Records(VecDeque::from([Ok(line(up_us))]))));
        log.read(1_000_000_002);
        assert_eq!(log.of_card("0000:01:00.0").xid, None, "the driver was loaded anew");
        let mut none = KernelLog::open(Path::new("/no/such/kmsg"));
        none.read(0);
        assert_eq!(none.of_card("0000:01:00.0"), LoggedFaults::default());
    }

    #[test]
    fn a_line_that_somebody_writes_into_the_machines_log_is_not_believed() {
        let mut log = KernelLog::open(Path::new("/dev/kmsg"));
        log.read(1_000_000_000);
        let mut kmsg = OpenOptions::new().write(true).open("/dev/kmsg").unwrap();
        kmsg.write_all(b"<4>NVRM: Xid (PCI:fffe:1f:1f): 79, written by a test").unwrap();
        log.read(1_000_000_000);
        assert_eq!(log.of_card("fffe:1f:1f.0"), LoggedFaults::default());
        assert!(log.source.is_some());
    }
}
