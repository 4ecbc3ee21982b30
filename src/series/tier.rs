//! The steps in which samples are kept, from fine to coarse.

/// One step.
pub(super) struct Tier {
    /// Milliseconds from point to point; a multiple of the step before.
    pub(super) step_ms: i64,
    /// Points in one row.
    block_points: i64,
    /// How long points are kept, in milliseconds. Longer than a row of the next step needs to be counted anew.
    pub(super) kept_ms: i64,
}

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Ten seconds for six hours, a minute for two days, ten minutes for ten days, an hour for a month.
pub(super) const TIERS: [Tier; 4] = [
    Tier { step_ms: 10_000, block_points: 30, kept_ms: 6 * HOUR },
    Tier { step_ms: MINUTE, block_points: 60, kept_ms: 2 * DAY },
    Tier { step_ms: 10 * MINUTE, block_points: 72, kept_ms: 10 * DAY },
    Tier { step_ms: HOUR, block_points: 72, kept_ms: toft_model::series::KEPT_MS },
];

impl Tier {
    pub(super) fn block_points(&self) -> usize {
        self.block_points as usize
    }

    /// The point that a moment belongs to.
    pub(super) fn slot(&self, at_ms: i64) -> i64 {
        at_ms.div_euclid(self.step_ms)
    }

    /// The row of a point, and its place in there.
    pub(super) fn place(&self, slot: i64) -> (i64, usize) {
        (slot.div_euclid(self.block_points), slot.rem_euclid(self.block_points) as usize)
    }
}

/// The step from which a span is read: the coarsest that gives as many points as are wanted, of those that reach back so
/// far.
pub(super) fn chosen(reach_ms: i64, wanted_step_ms: i64) -> usize {
    let last = TIERS.len() - 1;
    let first = TIERS.iter().position(|tier| tier.kept_ms >= reach_ms).unwrap_or(last);
    (first..=last).rev().find(|tier| TIERS[*tier].step_ms <= wanted_step_ms).unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_follows_how_far_back_and_how_fine() {
        for (reach, points, want) in
            [(HOUR, 360, 0), (HOUR, 60, 1), (6 * HOUR, 360, 1), (DAY, 360, 1), (DAY, 144, 2), (7 * DAY, 360, 2)]
        {
            assert_eq!(chosen(reach, reach / points), want, "{reach} {points}");
        }
        assert_eq!(chosen(30 * DAY, 30 * DAY / 1_500), 3, "nothing finer reaches back a month");
        assert_eq!(chosen(90 * DAY, HOUR), 3);
    }

    #[test]
    fn a_coarser_step_holds_whole_points_of_the_finer() {
        for pair in TIERS.windows(2) {
            assert_eq!(pair[1].step_ms % pair[0].step_ms, 0);
            assert!(pair[0].kept_ms >= 2 * pair[1].step_ms, "a point is counted anew from the finer ones");
        }
    }
}
