//! What a card draws over minutes: an average that moves slowly, told in steps, so that decisions do not follow every breath. Pure.

/// How long a change takes until most of it is seen, in milliseconds.
const MEMORY_MS: f64 = 600_000.0;
/// Steps in which it is told, in watts.
const STEP: f64 = 25.0;
/// How far from the told step the average must be before another is told, in watts.
const SLACK: f64 = 20.0;

/// Of one card.
#[derive(Debug, Clone, Default)]
pub(super) struct Power {
    /// The average in watts, and when it was made.
    average: Option<(f64, i64)>,
    told: Option<u32>,
}

impl Power {
    /// Takes what it draws at `now_ms` and gives what is told. What is not measured changes nothing.
    pub(super) fn look(&mut self, watts: Option<f64>, now_ms: i64) -> Option<u32> {
        let Some(watts) = watts.filter(|watts| watts.is_finite()).map(|watts| watts.clamp(0.0, 100_000.0)) else {
            return self.told;
        };
        let average = match self.average {
            None => watts,
            Some((average, at_ms)) => {
                let passed = (now_ms - at_ms).max(0) as f64;
                watts + (average - watts) * (-passed / MEMORY_MS).exp()
            }
        };
        self.average = Some((average, now_ms));
        if self.told.is_none_or(|told| (average - f64::from(told)).abs() > SLACK) {
            self.told = Some(((average / STEP).round() * STEP) as u32);
        }
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_stays_is_told_in_minutes_and_one_that_passes_is_not() {
        let mut power = Power::default();
        assert_eq!(power.look(None, 0), None);
        assert_eq!(power.look(Some(31.0), 0), Some(25));
        for second in 1..10 {
            assert_eq!(power.look(Some(450.0), second * 1_000), Some(25), "{second}");
        }
        let mut steps = 0;
        let mut told = Some(25);
        for second in (12..3_600).step_by(3) {
            let next = power.look(Some(450.0), second * 1_000);
            assert!(next >= told, "it only rises");
            steps += u32::from(next != told);
            told = next;
        }
        assert!(told == Some(450) && steps <= 17, "{told:?} in {steps} steps");
        assert_eq!(power.look(None, 3_700_000), Some(450), "a card that is away drew what it drew");
        for second in 3_600..3_900 {
            let watts = if second % 2 == 0 { 440.0 } else { 455.0 };
            assert_eq!(power.look(Some(watts), second * 1_000), Some(450), "it breathes");
        }
    }

    #[test]
    fn nonsense_is_no_harm() {
        let mut power = Power::default();
        assert_eq!(power.look(Some(f64::NAN), 0), None);
        assert_eq!(power.look(Some(-5.0), 0), Some(0));
        assert_eq!(power.look(Some(1e300), i64::MAX), Some(100_000));
        assert_eq!(power.look(Some(0.0), 0), Some(100_000), "a clock that goes back");
    }
}
