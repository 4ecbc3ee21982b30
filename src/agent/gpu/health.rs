//! Whether a card is well. Pure: what was seen and the time in, a reason out. A card that fell ill is well again only after
//! it was so for a while, so that work does not come and go with every breath.

use toft_model::gpu::GpuMeasured;

/// How long a card that had a fault must be without one.
const WELL_FOR_MS: i64 = 30_000;
/// The same after a fault inside the chip, which often comes again: doubled with each, up to the second number.
const AFTER_XID_MS: i64 = 600_000;
const LONGEST_AFTER_XID_MS: i64 = 6 * 3_600_000;
/// The same fault again within so long is the same.
const SAME_MS: i64 = 60_000;
/// Looks in a row that must find a card hot, or cool.
const LOOKS: u32 = 3;
/// Degrees below its limit at which a hot card is cool again.
const COOLER_BY: u32 = 10;
/// Where a card slows itself down, when it does not tell, in degrees Celsius.
const USUAL_SLOWDOWN: u32 = 95;

/// Faults after which work on the card fails until it was reset, by NVIDIA's list of Xid errors. Those that a program causes
/// (13, 31, 43, 45, 68, 69, 94, 109 and others) are not in here: its program alone suffers.
const FATAL_XIDS: [(u64, &str); 12] = [
    (46, "it stopped processing"),
    (48, "a memory error could not be corrected"),
    (61, "its controller halted"),
    (62, "its controller halted"),
    (64, "a bad page of memory could not be replaced"),
    (74, "a fault of NVLink"),
    (79, "it has fallen off the bus"),
    (95, "a memory error could not be contained"),
    (119, "its system processor does not answer"),
    (120, "a fault of its system processor"),
    (140, "memory errors could not be corrected"),
    (143, "a fault while it was started"),
];

/// What is remembered of one card.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    /// Why it is ill and until when at least.
    ill: Option<(String, i64)>,
    /// The newest fatal fault that was judged: what it is, and when.
    xid: Option<(u64, i64)>,
    /// When the newest reset that failed was.
    reset_at_ms: Option<i64>,
    /// How many there were.
    xids: u32,
    /// Uncorrected errors when it was last looked at.
    uncorrected: Option<u64>,
    hot: bool,
    /// Looks in a row that would change `hot`.
    looks: u32,
}

impl Health {
    /// Takes what was seen at `now_ms` and says why the card takes no work, if so. `fault` is the driver's own word.
    pub(super) fn look(&mut self, fault: Option<&str>, measured: &GpuMeasured, now_ms: i64) -> Option<String> {
        if let Some(fault) = fault {
            self.fall_ill(fault.to_owned(), now_ms + WELL_FOR_MS);
        }
        self.look_for_xids(measured, now_ms);
        self.look_for_memory_errors(measured, now_ms);
        if let Some(hot) = self.look_for_heat(measured) {
            return Some(hot);
        }
        if self.ill.as_ref().is_some_and(|(_, until_ms)| *until_ms <= now_ms) {
            self.ill = None;
        }
        self.ill.as_ref().map(|(reason, _)| reason.clone())
    }

    /// The driver was loaded anew: what was wrong inside the chip is over.
    pub(super) fn driver_is_new(&mut self) {
        // What was judged is not judged again.
        *self = Self { xid: self.xid, reset_at_ms: self.reset_at_ms, ..Self::default() };
    }

    /// Its driver tells that it did not come back from a reset.
    pub(super) fn was_reset(&mut self, meaning: &str, at_ms: i64, now_ms: i64) {
        if self.reset_at_ms.is_some_and(|known| at_ms - known < SAME_MS) {
            return;
        }
        self.reset_at_ms = Some(at_ms);
        let until_ms = at_ms.min(now_ms) + self.hold_ms();
        self.fall_ill(format!("the kernel's log: {meaning}"), until_ms);
    }

    fn fall_ill(&mut self, reason: String, until_ms: i64) {
        match &mut self.ill {
            // The newest reason; the longest time.
            Some((known, until)) => {
                *known = reason;
                *until = until_ms.max(*until);
            }
            None => self.ill = Some((reason, until_ms)),
        }
    }

    fn hold_ms(&mut self) -> i64 {
        let hold = AFTER_XID_MS << self.xids.min(16);
        self.xids = self.xids.saturating_add(1);
        hold.min(LONGEST_AFTER_XID_MS)
    }

    fn look_for_xids(&mut self, measured: &GpuMeasured, now_ms: i64) {
        let Some(xid) = measured.xid else { return };
        let Some((_, meaning)) = FATAL_XIDS.iter().find(|(code, _)| *code == xid.code) else { return };
        let old = |(code, at_ms): (u64, i64)| xid.at_ms <= at_ms || (code == xid.code && xid.at_ms - at_ms < SAME_MS);
        if self.xid.is_some_and(old) {
            return;
        }
        self.xid = Some((xid.code, xid.at_ms));
        let until_ms = xid.at_ms.min(now_ms) + self.hold_ms();
        self.fall_ill(format!("Xid {}: {meaning}", xid.code), until_ms);
    }

    fn look_for_memory_errors(&mut self, measured: &GpuMeasured, now_ms: i64) {
        let Some(count) = measured.ecc_uncorrected else { return };
        let before = self.uncorrected.replace(count);
        if before.is_some_and(|before| count > before) {
            let until_ms = now_ms + self.hold_ms();
            self.fall_ill(format!("{count} memory errors could not be corrected"), until_ms);
        }
    }

    fn look_for_heat(&mut self, measured: &GpuMeasured) -> Option<String> {
        let degrees = measured.temperature_celsius?;
        let limit = measured.slowdown_celsius.filter(|limit| (50..=150).contains(limit)).unwrap_or(USUAL_SLOWDOWN);
        let changes = if self.hot { degrees + COOLER_BY <= limit } else { degrees >= limit };
        self.looks = if changes { self.looks + 1 } else { 0 };
        if self.looks >= LOOKS {
            (self.hot, self.looks) = (!self.hot, 0);
        }
        self.hot.then(|| format!("it is too hot: from {limit} C on it slows itself down"))
    }
}

#[cfg(test)]
mod tests {
    use toft_model::gpu::GpuXid;

    use super::*;

    fn well() -> GpuMeasured {
        GpuMeasured { temperature_celsius: Some(60), slowdown_celsius: Some(90), ..GpuMeasured::default() }
    }

    #[test]
    fn a_fault_keeps_a_card_away_for_a_while_after_it_ended() {
        let mut health = Health::default();
        assert_eq!(health.look(None, &well(), 0), None);
        assert_eq!(health.look(Some("it is lost"), &well(), 1_000).as_deref(), Some("it is lost"));
        assert_eq!(health.look(None, &well(), 30_999).as_deref(), Some("it is lost"));
        assert_eq!(health.look(None, &well(), 31_000), None);
    }

    #[test]
    fn fatal_xids_count_and_those_of_programs_do_not() {
        let with = |code, at_ms| GpuMeasured { xid: Some(GpuXid { code, at_ms }), ..well() };
        let mut health = Health::default();
        assert_eq!(health.look(None, &with(31, 1), 1), None, "a page fault of a program");
        assert_eq!(health.look(None, &with(79, 5), 5).as_deref(), Some("Xid 79: it has fallen off the bus"));
        assert!(health.look(None, &with(79, 5), 600_004).is_some());
        assert_eq!(health.look(None, &with(79, 5), 600_005), None, "the same fault is not judged again");
        assert!(health.look(None, &with(79, 700_000), 700_000).is_some());
        assert!(health.look(None, &with(79, 700_000), 1_800_000).is_some(), "the second time twice as long");
        for at_ms in (1..12).map(|hour| hour * 100_000_000) {
            assert!(health.look(None, &with(79, at_ms), at_ms).is_some());
            assert_eq!(health.look(None, &with(79, at_ms), at_ms + LONGEST_AFTER_XID_MS), None, "six hours at most");
        }
        assert!(health.look(None, &with(79, 2_000_000_000), 2_000_000_000).is_some());
        health.driver_is_new();
        assert_eq!(health.look(None, &with(79, 2_000_000_000), 2_000_000_001), None, "it is over with the driver");
    }

    #[test]
    fn one_fault_that_is_told_in_two_ways_or_often_is_one() {
        let with = |code, at_ms| GpuMeasured { xid: Some(GpuXid { code, at_ms }), ..well() };
        let mut health = Health::default();
        for at_ms in [1_000, 1_003, 4_000, 50_000] {
            assert!(health.look(None, &with(79, at_ms), at_ms).is_some());
        }
        assert_eq!(health.look(None, &with(79, 50_000), 601_000), None, "held from the first on, and not doubled");
        let mut health = Health::default();
        health.was_reset("a reset failed", 500, 1_000);
        assert_eq!(health.look(None, &well(), 1_000).as_deref(), Some("the kernel's log: a reset failed"));
        health.was_reset("a reset failed", 500, 600_501);
        assert_eq!(health.look(None, &well(), 600_501), None);
    }

    #[test]
    fn new_memory_errors_count_and_old_ones_do_not() {
        let with = |count| GpuMeasured { ecc_uncorrected: Some(count), ..well() };
        let mut health = Health::default();
        assert_eq!(health.look(None, &with(4), 0), None, "from before this daemon");
        assert_eq!(health.look(None, &with(5), 1).as_deref(), Some("5 memory errors could not be corrected"));
        assert!(health.look(None, &with(5), 600_000).is_some());
        assert_eq!(health.look(None, &with(5), 600_001), None);
        assert_eq!(health.look(None, &with(0), 600_002), None, "the counter began anew");
    }

    #[test]
    fn heat_has_two_limits_and_takes_some_looks() {
        let at = |degrees| GpuMeasured { temperature_celsius: Some(degrees), ..well() };
        let mut health = Health::default();
        let mut looks = |degrees: &[u32]| {
            degrees.iter().map(|degrees| health.look(None, &at(*degrees), 0).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(looks(&[90, 91, 89, 90, 90, 90]), [false, false, false, false, false, true]);
        assert_eq!(looks(&[85, 81, 80, 80, 81]), [true; 5], "not cool for long enough");
        assert_eq!(looks(&[80, 80, 80, 89]), [true, true, false, false]);
        let untold = GpuMeasured { temperature_celsius: Some(94), slowdown_celsius: None, ..well() };
        assert_eq!(Health::default().look(None, &untold, 0), None);
    }
}
