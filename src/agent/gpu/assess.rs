//! Makes of what drivers show what is told: memory used outside toft, sickness, whose processes they are, and who holds more
//! than its share. Pure but for [`Owners`], which reads whose a process is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use toft_model::{
    gpu::{Gpu, GpuFacts, GpuHold, GpuId, GpuProcess, GpuVendor},
    ids::InstanceId,
};

use super::{
    Card, CardProcess, DriverError, Handle, MOST_CARDS, MOST_PROCESSES, health::Health, kernel_log::KernelLog, mib,
    owners::Owners, power::Power,
};

/// Steps in which the memory used outside toft is told, in MiB.
const STEP_MIB: u32 = 256;
/// How far below a step it must fall before the step below is told, in MiB.
const SLACK_MIB: u32 = 64;
/// So much, in MiB, is a driver's own bookkeeping.
const NOTHING_MIB: u32 = 32;
/// How long an instance may hold more than its share after it was warned.
const PATIENCE_MS: i64 = 10_000;
/// Longest name of a model, and longest reason, in characters.
const LONGEST_TEXT: usize = 160;

/// All that is seen at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sight {
    /// Cards in the order in which people count them; parts of cards come after all cards.
    pub gpus: Vec<SeenGpu>,
    /// Drivers that are away, and why.
    pub away: Vec<(GpuVendor, String)>,
}

impl Sight {
    /// What matters for placement.
    pub fn inventory(&self) -> Vec<Gpu> {
        self.gpus.iter().map(|seen| seen.facts.gpu.clone()).collect()
    }

    /// What is told when somebody asks.
    pub fn facts(&self) -> Vec<GpuFacts> {
        self.gpus.iter().map(|seen| seen.facts.clone()).collect()
    }

    /// One card.
    pub fn of(&self, id: &GpuId) -> Option<&SeenGpu> {
        self.gpus.iter().find(|seen| seen.facts.gpu.id == *id)
    }
}

/// A card, or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenGpu {
    /// What is told of it.
    pub facts: GpuFacts,
    /// How the machine calls it.
    pub handle: Handle,
}

/// An instance that holds more of a card than its share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    /// The instance.
    pub instance: InstanceId,
    /// The card.
    pub gpu: GpuId,
    /// What it holds, in MiB.
    pub held_mib: u32,
    /// What it may hold, in MiB.
    pub share_mib: u32,
    /// Whether it was warned long enough ago.
    pub stop: bool,
}

/// What each instance may hold.
pub type Shares = BTreeMap<InstanceId, Vec<GpuHold>>;

/// What is remembered from look to look.
pub struct Assessor {
    owners: Owners,
    log: KernelLog,
    memory: HashMap<GpuId, Memory>,
    /// Cards as each driver last showed them.
    known: BTreeMap<GpuVendor, Vec<Card>>,
    /// Since when an instance holds more than its share of a card.
    offences: BTreeMap<(InstanceId, GpuId), i64>,
}

#[derive(Debug, Default)]
struct Memory {
    health: Health,
    power: Power,
    outside_mib: u32,
    driver: Option<String>,
}

/// Who holds how much of a card, in bytes; `None` is nobody of toft's.
type Holders = BTreeMap<Option<InstanceId>, u64>;

impl Assessor {
    /// One that knows nothing yet.
    pub fn new(owners: Owners) -> Self {
        let log = KernelLog::none();
        Self { owners, log, memory: HashMap::new(), known: BTreeMap::new(), offences: BTreeMap::new() }
    }

    /// The same that hears of faults by the kernel's log too.
    pub fn with_kernel_log(mut self, log: KernelLog) -> Self {
        self.log = log;
        self
    }

    /// Takes what every driver showed at `now_ms`. The cards of one that is away are still there, and sick.
    pub fn look(
        &mut self,
        shown: Vec<(GpuVendor, Result<Vec<Card>, DriverError>)>,
        shares: &Shares,
        now_ms: i64,
    ) -> (Sight, Vec<Offence>) {
        self.log.read(now_ms);
        let mut sight = Sight::default();
        let mut cards: Vec<Card> = Vec::new();
        for (vendor, shown) in shown {
            match shown {
                Ok(shown) => {
                    cards.extend(shown.iter().cloned());
                    self.known.insert(vendor, shown);
                }
                Err(error) => {
                    sight.away.push((vendor, error.to_string()));
                    let known = self.known.get(&vendor).into_iter().flatten().cloned();
                    cards.extend(known.map(|card| ill(card, &error)));
                }
            }
        }
        let mut named = BTreeSet::new();
        cards.retain(|card| named.insert(card.id.clone()));
        cards.sort_by_key(|card| (card.parent.is_some(), card.vendor));
        cards.truncate(MOST_CARDS);
        let mut offences = Vec::new();
        for (place, mut card) in (0..).zip(cards) {
            let logged = card.handle.pci.as_deref().map(|pci| self.log.of_card(pci)).unwrap_or_default();
            let told = card.measured.xid.filter(|told| logged.xid.is_none_or(|logged| logged.at_ms <= told.at_ms));
            card.measured.xid = told.or(logged.xid);
            let (processes, holders) = self.processes(&card);
            offences.extend(over(&card, &holders, shares));
            let facts = self.facts((place, logged.reset), &card, processes, &holders, shares, now_ms);
            sight.gpus.push(SeenGpu { facts, handle: card.handle });
        }
        let there: BTreeSet<&GpuId> = sight.gpus.iter().map(|seen| &seen.facts.gpu.id).collect();
        self.memory.retain(|id, _| there.contains(id));
        (sight, self.judge(offences, now_ms))
    }

    fn processes(&self, card: &Card) -> (Vec<GpuProcess>, Holders) {
        let mut holders = Holders::new();
        let mut processes = Vec::new();
        for CardProcess { pid, memory_bytes } in card.processes.iter().take(MOST_PROCESSES) {
            let instance_id = self.owners.of(*pid);
            *holders.entry(instance_id).or_default() += memory_bytes.unwrap_or(0);
            let name = self.owners.name(*pid);
            processes.push(GpuProcess { pid: *pid, name, memory_mib: memory_bytes.map(mib), instance_id });
        }
        processes.sort_by_key(|process| (std::cmp::Reverse(process.memory_mib), process.pid));
        (processes, holders)
    }

    fn facts(
        &mut self,
        (place, reset): (u32, Option<(&'static str, i64)>),
        card: &Card,
        processes: Vec<GpuProcess>,
        holders: &Holders,
        shares: &Shares,
        now_ms: i64,
    ) -> GpuFacts {
        let memory = self.memory.entry(card.id.clone()).or_default();
        if card.driver.is_some() && memory.driver.as_ref().is_some_and(|known| card.driver.as_ref() != Some(known)) {
            memory.health.driver_is_new();
        }
        memory.driver = card.driver.clone().or(memory.driver.take());
        if let Some((meaning, at_ms)) = reset {
            memory.health.was_reset(meaning, at_ms, now_ms);
        }
        let sick = memory.health.look(card.fault.as_deref(), &card.measured, now_ms);
        // A card that tells nothing now is used as it was.
        if let Some(used) = card.measured.memory_used_mib {
            let inside: u64 = shares
                .iter()
                .filter_map(|(instance, holds)| {
                    let hold = holds.iter().find(|hold| hold.gpu == card.id)?;
                    let held = holders.get(&Some(*instance)).copied().unwrap_or(0);
                    // What it holds beyond its share is there for nobody else.
                    Some(hold.vram_mib.map_or(held, |share| held.min(u64::from(share) << 20)))
                })
                .sum();
            let reserved = card.measured.memory_reserved_mib.unwrap_or(0);
            let outside = used.saturating_sub(u32::try_from(inside >> 20).unwrap_or(u32::MAX));
            memory.outside_mib = step(memory.outside_mib, outside.saturating_add(reserved)).min(card.memory_mib);
        }
        let gpu = Gpu {
            id: card.id.clone(),
            vendor: card.vendor,
            model: short(&card.model),
            memory_mib: card.memory_mib,
            outside_mib: memory.outside_mib,
            parent: card.parent.clone(),
            sick: sick.as_deref().map(short),
            watts: memory.power.look(card.measured.power_watts.filter(|_| card.parent.is_none()), now_ms),
            links: card.links.clone(),
        };
        GpuFacts {
            gpu,
            place,
            pci: card.handle.pci.clone(),
            driver: card.driver.clone(),
            cuda: card.cuda.clone(),
            measured: card.measured.clone(),
            processes,
        }
    }

    /// Warns at once, and has who goes on stopped.
    fn judge(&mut self, offences: Vec<Offence>, now_ms: i64) -> Vec<Offence> {
        let key = |offence: &Offence| (offence.instance, offence.gpu.clone());
        let now: BTreeSet<_> = offences.iter().map(key).collect();
        self.offences.retain(|known, _| now.contains(known));
        let judged = offences.into_iter().filter_map(|offence| match self.offences.get(&key(&offence)) {
            None => {
                self.offences.insert(key(&offence), now_ms);
                Some(offence)
            }
            Some(since_ms) if now_ms - since_ms >= PATIENCE_MS => Some(Offence { stop: true, ..offence }),
            Some(_) => None,
        });
        judged.collect()
    }
}

/// A card whose driver is away, as it was seen last.
fn ill(card: Card, error: &DriverError) -> Card {
    Card { fault: Some(error.to_string()), measured: Default::default(), processes: Vec::new(), ..card }
}

/// Who holds more of `card` than its share.
fn over(card: &Card, holders: &Holders, shares: &Shares) -> Vec<Offence> {
    let of = |(instance, held): (&Option<InstanceId>, &u64)| {
        let instance = (*instance)?;
        let hold = shares.get(&instance)?.iter().find(|hold| hold.gpu == card.id)?;
        let share_mib = hold.vram_mib?;
        let held_mib = mib(*held);
        let offence = Offence { instance, gpu: card.id.clone(), held_mib, share_mib, stop: false };
        (held_mib > share_mib).then_some(offence)
    };
    holders.iter().filter_map(of).collect()
}

/// The step that is told for `actual`, when `told` was before. Up at once; down only when it is well below.
fn step(told: u32, actual: u32) -> u32 {
    let actual = if actual < NOTHING_MIB { 0 } else { actual };
    let up = actual.div_ceil(STEP_MIB).saturating_mul(STEP_MIB);
    if up >= told || actual.saturating_add(STEP_MIB + SLACK_MIB) <= told || actual == 0 { up } else { told }
}

/// A text from outside, of bearable length and without commands for terminals.
fn short(text: &str) -> String {
    text.chars().take(LONGEST_TEXT).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::agent::gpu::fake::card;

    const ONE: &str = "0192f0c0-0000-7000-8000-000000000001";
    const TWO: &str = "0192f0c0-0000-7000-8000-000000000002";

    /// Processes 1 and 2 of two instances, 3 of a desktop.
    fn machine() -> (tempfile::TempDir, Assessor) {
        let dir = tempfile::tempdir().unwrap();
        for (pid, group) in [(1, format!("/toft/{ONE}")), (2, format!("/toft/{TWO}/inner")), (3, "/user.slice".into())]
        {
            let process = dir.path().join(pid.to_string());
            fs::create_dir(&process).unwrap();
            fs::write(process.join("cgroup"), format!("0::{group}\n")).unwrap();
            fs::write(process.join("comm"), format!("program{pid}\n")).unwrap();
        }
        let assessor = Assessor::new(Owners::new(Path::new(dir.path()), "toft"));
        (dir, assessor)
    }

    fn id(text: &str) -> GpuId {
        text.parse().unwrap()
    }

    fn used(name: &str, used_mib: u32, processes: &[(u32, u64)]) -> Card {
        let mut card = card(&id(name), 24_564);
        card.measured.memory_used_mib = Some(used_mib);
        card.processes =
            processes.iter().map(|(pid, mib)| CardProcess { pid: *pid, memory_bytes: Some(mib << 20) }).collect();
        card
    }

    fn shares(of: &[(&str, &str, Option<u32>)]) -> Shares {
        let mut shares = Shares::new();
        for (instance, gpu, vram_mib) in of {
            let hold = GpuHold { gpu: id(gpu), vram_mib: *vram_mib };
            shares.entry(instance.parse().unwrap()).or_default().push(hold);
        }
        shares
    }

    fn look(assessor: &mut Assessor, cards: Vec<Card>, shares: &Shares, now_ms: i64) -> (Sight, Vec<Offence>) {
        assessor.look(vec![(GpuVendor::Nvidia, Ok(cards))], shares, now_ms)
    }

    #[test]
    fn faults_that_only_the_kernels_log_tells_make_a_card_sick() {
        let (_dir, assessor) = machine();
        let up_us = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec * 1_000_000;
        let line = format!("4,1,{up_us},-;NVRM: Xid (PCI:0000:01:00): 79, x");
        let mut assessor = assessor.with_kernel_log(KernelLog::of(std::io::Cursor::new(line.into_bytes())));
        let at = |name: &str, pci: &str| {
            let mut card = card(&id(name), 1_000);
            card.handle.pci = Some(pci.into());
            card
        };
        let cards = vec![at("GPU-0", "0000:01:00.0"), at("GPU-1", "0000:02:00.0")];
        let (sight, _) = look(&mut assessor, cards, &Shares::new(), 5_000_000);
        let sick: Vec<_> = sight.inventory().into_iter().map(|gpu| gpu.sick).collect();
        assert_eq!(sick, [Some("Xid 79: it has fallen off the bus".to_owned()), None]);
        assert_eq!(sight.gpus[0].facts.measured.xid.unwrap().code, 79);
    }

    #[test]
    fn steps_go_up_at_once_and_down_late() {
        let mut told = 0;
        for (actual, want) in [
            (0, 0),
            (31, 0),
            (32, 256),
            (256, 256),
            (257, 512),
            (200, 512),
            (193, 512),
            (192, 256),
            (5_000, 5_120),
            (4_801, 5_120),
            (4_800, 4_864),
            (0, 0),
        ] {
            told = step(told, actual);
            assert_eq!(told, want, "{actual}");
        }
        assert_eq!(step(0, u32::MAX), u32::MAX);
    }

    #[test]
    fn what_no_instance_holds_by_right_is_outside() {
        let (_dir, mut assessor) = machine();
        let shares = shares(&[(ONE, "GPU-0", Some(4_096)), (TWO, "GPU-1", None)]);
        let cards =
            vec![used("GPU-0", 9_000, &[(1, 5_000), (2, 1_000), (3, 3_000)]), used("GPU-1", 8_000, &[(2, 8_000)])];
        let (sight, _) = look(&mut assessor, cards, &shares, 0);
        let outside: Vec<u32> = sight.inventory().iter().map(|gpu| gpu.outside_mib).collect();
        // 9,000 less the 4,096 of the share: what is over it, another's, and the desktop's are there for nobody.
        assert_eq!(outside, [5_120, 0]);
        let processes = &sight.gpus[0].facts.processes;
        let told: Vec<_> = processes.iter().map(|p| (p.pid, p.name.as_str(), p.instance_id.is_some())).collect();
        assert_eq!(told, [(1, "program1", true), (3, "program3", false), (2, "program2", true)]);
    }

    #[test]
    fn who_holds_too_much_is_warned_once_and_stopped_when_it_goes_on() {
        let (_dir, mut assessor) = machine();
        let shares = shares(&[(ONE, "GPU-0", Some(1_000)), (TWO, "GPU-0", Some(1_000))]);
        let mut at = |now_ms, one, two| {
            let cards = vec![used("GPU-0", 3_000, &[(1, one), (2, two)])];
            let (_, offences) = look(&mut assessor, cards, &shares, now_ms);
            offences.iter().map(|o| (o.instance.to_string() == ONE, o.held_mib, o.stop)).collect::<Vec<_>>()
        };
        assert_eq!(at(0, 1_000, 1_000), []);
        assert_eq!(at(1, 1_001, 1_000), [(true, 1_001, false)]);
        assert_eq!(at(5_000, 1_100, 1_000), [], "it was warned");
        assert_eq!(at(10_001, 1_100, 1_002), [(true, 1_100, true), (false, 1_002, false)]);
        assert_eq!(at(11_000, 900, 1_000), []);
        assert_eq!(at(90_000, 1_200, 1_000), [(true, 1_200, false)], "it gave back and begins anew");
    }

    #[test]
    fn cards_of_a_driver_that_is_away_are_sick_and_come_back() {
        let (_dir, mut assessor) = machine();
        let none = Shares::new();
        let mut part = card(&id("MIG-1"), 5_000);
        part.parent = Some(id("GPU-0"));
        let cards = || vec![used("GPU-0", 1_000, &[]), part.clone(), used("GPU-1", 0, &[])];
        let (sight, _) = look(&mut assessor, cards(), &none, 0);
        let names: Vec<_> = sight.inventory().iter().map(|gpu| gpu.id.to_string()).collect();
        assert_eq!(names, ["GPU-0", "GPU-1", "MIG-1"], "parts come after all cards");
        let away = Err(DriverError::Away("reloading".into()));
        let (sight, _) = assessor.look(vec![(GpuVendor::Nvidia, away)], &none, 1_000);
        assert_eq!(sight.away, [(GpuVendor::Nvidia, "the driver is away: reloading".to_owned())]);
        assert!(sight.inventory().iter().all(|gpu| gpu.sick.as_deref() == Some("the driver is away: reloading")));
        assert_eq!(sight.inventory()[0].outside_mib, 1_024, "as it was");
        let (sight, _) = look(&mut assessor, cards(), &none, 2_000);
        assert!(sight.inventory()[0].sick.is_some(), "not at once");
        let mut newer = cards();
        newer.iter_mut().for_each(|card| card.driver = Some("575.1".into()));
        let (sight, _) = look(&mut assessor, newer, &none, 3_000);
        assert_eq!(sight.inventory()[0].sick, None, "another driver is a new beginning");
        let (sight, _) = look(&mut assessor, vec![used("GPU-1", 0, &[])], &none, 4_000);
        assert_eq!(sight.gpus.len(), 1, "what is taken out is gone");
    }

    #[test]
    fn hostile_words_are_cut() {
        let (_dir, mut assessor) = machine();
        let mut card = used("GPU-0", 0, &[]);
        (card.model, card.fault) = ("\x1b[2J".repeat(100), Some("y".repeat(5_000)));
        card.processes = (0..5_000).map(|pid| CardProcess { pid, memory_bytes: None }).collect();
        let twice = vec![card.clone(), card];
        let (sight, _) = look(&mut assessor, twice, &Shares::new(), 0);
        let gpu = &sight.inventory()[0];
        assert!(gpu.model.chars().count() == 160 && !gpu.model.contains('\x1b') && sight.gpus.len() == 1);
        assert_eq!(gpu.sick.as_ref().unwrap().len(), 160);
        assert_eq!(sight.gpus[0].facts.processes.len(), MOST_PROCESSES);
    }
}
