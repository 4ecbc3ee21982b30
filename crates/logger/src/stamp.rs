//! The record format: `2026-11-21T03:54:33.123456789Z stdout F text`, as Kubernetes' container
//! runtimes write it, so that existing log shippers can read the files.

use std::time::Duration;

use crate::lines::Piece;

/// The bytes of a record around its text: time, stream, tag, spaces and newline.
pub const FRAME_BYTES: usize = "2026-11-21T03:54:33.123456789Z stdout F \n".len();

/// Which stream of the container a record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The container's standard output.
    Stdout,
    /// The container's standard error.
    Stderr,
}

/// Writes records, remembering the current second's text since most records share it.
pub struct Stamper {
    second: u64,
    text: [u8; 20],
}

impl Stamper {
    /// Starts at 1970.
    pub fn new() -> Self {
        Self { second: 0, text: second_text(0) }
    }

    /// Appends one record to `out`; `time` counts from 1970 in UTC.
    pub fn write(&mut self, out: &mut Vec<u8>, source: Source, piece: Piece<'_>, time: Duration) {
        if time.as_secs() != self.second {
            self.second = time.as_secs();
            self.text = second_text(self.second);
        }
        out.extend_from_slice(&self.text);
        let mut nanos = [b'0'; 9];
        write_digits(&mut nanos, u64::from(time.subsec_nanos()));
        out.extend_from_slice(&nanos);
        out.extend_from_slice(match (source, piece.last) {
            (Source::Stdout, true) => b"Z stdout F ",
            (Source::Stdout, false) => b"Z stdout P ",
            (Source::Stderr, true) => b"Z stderr F ",
            (Source::Stderr, false) => b"Z stderr P ",
        });
        out.extend_from_slice(piece.text);
        out.push(b'\n');
    }
}

/// A second since 1970 as `2026-11-21T03:54:33.`, in the Gregorian calendar.
fn second_text(second: u64) -> [u8; 20] {
    let (days, of_day) = (second / 86_400, second % 86_400);
    // Years counted from March, in eras of 400 years: the leap day is then the last of a year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);

    let mut text = *b"0000-00-00T00:00:00.";
    write_digits(&mut text[0..4], year);
    write_digits(&mut text[5..7], month);
    write_digits(&mut text[8..10], day);
    write_digits(&mut text[11..13], of_day / 3_600);
    write_digits(&mut text[14..16], of_day / 60 % 60);
    write_digits(&mut text[17..19], of_day % 60);
    text
}

/// Fills `field` with the low decimal digits of `number`.
fn write_digits(field: &mut [u8], mut number: u64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_read_as_calendar_dates() {
        let check = |second: u64, expected: &str| {
            assert_eq!(std::str::from_utf8(&second_text(second)), Ok(expected));
        };
        check(0, "1970-01-01T00:00:00.");
        check(951_782_399, "2000-02-28T23:59:59.");
        check(951_782_400, "2000-02-29T00:00:00.");
        check(951_868_800, "2000-03-01T00:00:00.");
        check(1_709_164_800, "2024-02-29T00:00:00.");
        check(1_795_233_273, "2026-11-21T03:54:33.");
        check(4_107_542_399, "2100-02-28T23:59:59.");
        check(4_107_542_400, "2100-03-01T00:00:00.");
        check(253_402_300_799, "9999-12-31T23:59:59.");
    }

    #[test]
    fn a_record_has_time_stream_tag_and_text() {
        let mut stamper = Stamper::new();
        let mut out = Vec::new();
        let time = Duration::new(1_795_233_273, 123_456_789);
        stamper.write(&mut out, Source::Stdout, Piece { text: b"hello", last: true }, time);
        assert_eq!(out.len(), FRAME_BYTES + 5);
        stamper.write(&mut out, Source::Stderr, Piece { text: b"", last: false }, Duration::new(0, 7));
        assert_eq!(
            String::from_utf8_lossy(&out),
            "2026-11-21T03:54:33.123456789Z stdout F hello\n1970-01-01T00:00:00.000000007Z stderr P \n"
        );
    }
}
