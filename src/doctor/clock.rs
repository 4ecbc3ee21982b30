//! The clock.

use nix::libc;

use super::{Check, Said, failure, ok, warning};

/// A clock that is before this was never set.
const BUILT: &str = "2026-01-01T00:00:00Z";
const FIX: &str = "sudo timedatectl set-ntp true    (or install one that sets it: sudo apt-get install chrony)";

pub(super) fn checks() -> Vec<Check> {
    vec![judge(jiff::Timestamp::now(), synchronised()).of("system", "clock")]
}

fn judge(now: jiff::Timestamp, synchronised: Option<bool>) -> Said {
    if BUILT.parse::<jiff::Timestamp>().is_ok_and(|built| now < built) {
        return failure(format!("says {}, which is long ago; certificates do not hold then", now.strftime("%F")), FIX);
    }
    match synchronised {
        Some(true) => ok("is synchronised"),
        Some(false) => warning("is not synchronised; nodes of a cluster and their logs drift apart", FIX),
        None => ok("is set; whether it is synchronised cannot be told"),
    }
}

/// Whether something keeps the clock at the time of others, as the kernel knows.
fn synchronised() -> Option<bool> {
    // SAFETY: all zeroes is a valid value, and asks for nothing to be changed.
    let mut told: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure it is given.
    let state = unsafe { libc::adjtimex(&raw mut told) };
    (state >= 0).then_some(told.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_clock_is_judged_by_its_date_and_by_what_keeps_it() {
        let now = |text: &str| text.parse().unwrap();
        assert_eq!(judge(now("2027-01-01T00:00:00Z"), Some(true)).verdict, Verdict::Ok);
        assert_eq!(judge(now("2027-01-01T00:00:00Z"), None).verdict, Verdict::Ok);
        let drifts = judge(now("2027-01-01T00:00:00Z"), Some(false));
        assert_eq!(drifts.verdict, Verdict::Warning);
        let unset = judge(now("1970-01-01T00:00:09Z"), Some(true));
        assert!(unset.verdict == Verdict::Failure && unset.message.contains("1970-01-01"));
        assert!(unset.fix.unwrap().contains("timedatectl"));
    }
}
