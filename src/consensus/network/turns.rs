//! When a member is told that does not vote, where there are many: each has a turn of its own in every round.
//!
//! ```text
//! leader     entry 7      entry 8, committed 7           entry 9
//! member a        |--10 ms-->[7]                            [8 9]      one round later
//! member b             |--------------->[7 8]                    [9]
//! ```
//!
//! Were all of them called when an entry is there, the hundreds of calls would hold up the few on whom the next entry waits.

use std::time::{Duration, Instant};

use super::super::types::MemberId;

/// How much later than the voters those learn of entries that do not vote: most of what belongs to one change is there by then.
const AFTER_VOTERS: Duration = Duration::from_millis(10);
/// How long a round takes for each member there is, and at most. So a cluster in which something happens all the time costs a
/// thousand calls a second, however large it is.
const ROUND: Duration = Duration::from_millis(1);
const LONGEST_ROUND: Duration = Duration::from_millis(150);
/// Least time between two calls where they take so long that whoever is called has no time for more.
const BUSY: Duration = Duration::from_secs(1);

/// The rounds.
#[derive(Clone, Copy)]
pub(super) struct Turns {
    began: Instant,
}

impl Turns {
    pub(super) fn from_now() -> Self {
        Self { began: Instant::now() }
    }

    /// How long a member waits from now on. Its last call took `took` and began `since` ago, if there was one: who answers late is
    /// called for at most a third of the time, but about once a second.
    pub(super) fn until(self, id: MemberId, members: usize, took: Duration, since: Option<Duration>) -> Duration {
        wait(self.began.elapsed(), id, round(members), took, since)
    }
}

fn round(members: usize) -> Duration {
    (ROUND * u32::try_from(members).unwrap_or(u32::MAX)).min(LONGEST_ROUND)
}

fn wait(now: Duration, id: MemberId, round: Duration, took: Duration, since: Option<Duration>) -> Duration {
    let busy = (took * 3).min(BUSY);
    let rests =
        if busy > round { since.map_or(Duration::ZERO, |since| busy.saturating_sub(since)) } else { Duration::ZERO };
    let least = AFTER_VOTERS.max(rests);
    let passed = Duration::from_nanos_u128((now + least).as_nanos() % round.as_nanos());
    let own = place(id, round);
    least + if own >= passed { own - passed } else { round + own - passed }
}

/// Where in a round a member has its turn. Multiples of the golden ratio lie apart, however many there are (Knuth, The Art of
/// Computer Programming, 6.4).
fn place(id: MemberId, round: Duration) -> Duration {
    let share = id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    Duration::from_nanos_u128((round.as_nanos() * u128::from(share)) >> u64::BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn turns_are_spread_over_the_round_and_come_once_in_it() {
        for members in [17, 40, 200, 5_000] {
            let round = round(members);
            assert!(round >= ms(17) && round <= LONGEST_ROUND, "{round:?}");
            let now = ms(98_765);
            let mut at: Vec<Duration> = (1..=members as u64).map(|id| now + wait(id, now, round)).collect();
            at.sort_unstable();
            assert!(at[0] >= now + AFTER_VOTERS && at[members - 1] < now + AFTER_VOTERS + round);
            // No tenth of the round has twice its share.
            for window in at.windows(members / 5 + 2) {
                assert!(window[window.len() - 1] - window[0] >= round / 10, "{members}: {window:?}");
            }
            // Whoever asks again at its turn waits for the next.
            for (id, at) in (1..=members as u64).map(|id| (id, now + wait(id, now, round))) {
                let again = at + wait(id, at, round);
                let apart = again.abs_diff(at + round);
                assert!(apart < Duration::from_micros(1), "{members} {id}: {apart:?}");
            }
        }

        fn wait(id: MemberId, now: Duration, round: Duration) -> Duration {
            super::wait(now, id, round, Duration::ZERO, None)
        }
    }

    #[test]
    fn who_answers_late_is_called_less_often() {
        for (members, took, least) in [
            (20, ms(0), ms(20)),
            (20, ms(30), ms(90)),
            (200, ms(30), ms(150)),
            (200, ms(100), ms(300)),
            (200, ms(9_000), ms(1_000)),
        ] {
            let round = round(members);
            let mut at = wait(ms(0), 5, round, took, None);
            for _ in 0..9 {
                // It is asked to be told again as soon as it has answered.
                let since = took.min(ms(1));
                let next = at + since + wait(at + since, 5, round, took, Some(since));
                assert!(
                    next - at + ms(1) >= least && next - at <= least + round,
                    "{members} {took:?}: {:?}",
                    next - at
                );
                at = next;
            }
        }
    }
}
