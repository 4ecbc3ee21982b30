//! Amounts as people write them: `4GiB`, `512m`, `1.5` cores, `30s`.

use crate::invalid::Invalid;

/// Parses an amount of memory into bytes. Accepts a number with `B`, `KiB`..`TiB` (1024), `kB`..`TB` (1000) or
/// Docker's `b`, `k`, `m`, `g`, `t` (1024); a bare number is bytes.
pub fn parse_bytes(text: &str) -> Result<u64, Invalid> {
    let bad = || {
        Invalid::value(
            format!("`{}` is no amount of memory", text.chars().take(40).collect::<String>()),
            "write a number and a unit, such as `512MiB`, `4GiB` or `1.5g`",
        )
    };
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..split].parse().map_err(|_| bad())?;
    let factor: u64 = match text[split..].trim_start() {
        "" | "B" | "b" => 1,
        "k" | "K" | "KiB" | "Ki" => 1 << 10,
        "m" | "M" | "MiB" | "Mi" => 1 << 20,
        "g" | "G" | "GiB" | "Gi" => 1 << 30,
        "t" | "T" | "TiB" | "Ti" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(bad()),
    };
    let bytes = number * factor as f64;
    if !bytes.is_finite() || bytes > (1u64 << 53) as f64 {
        return Err(bad());
    }
    Ok(bytes as u64)
}

/// Parses an amount of CPU (`2`, `0.5`, `250m`) into thousandths of a core.
pub fn parse_cpu_millis(text: &str) -> Result<u32, Invalid> {
    let bad = || {
        Invalid::value(
            format!("`{}` is no amount of CPU", text.chars().take(40).collect::<String>()),
            "write cores, such as `2` or `0.5`, or thousandths, such as `250m`",
        )
    };
    let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.');
    let millis = match text.strip_suffix('m') {
        Some(number) if plain(number) => number.parse::<f64>().map_err(|_| bad())?,
        None if plain(text) => text.parse::<f64>().map_err(|_| bad())? * 1000.0,
        _ => return Err(bad()),
    };
    if !(1.0..=1_024_000.0).contains(&millis) {
        return Err(bad());
    }
    Ok(millis.round() as u32)
}

/// Parses a span of time (`30s`, `15m`, `24h`, `7d`) into milliseconds.
pub fn parse_span_ms(text: &str) -> Result<u64, Invalid> {
    let bad = || {
        Invalid::value(
            format!("`{}` is no span of time", text.chars().take(40).collect::<String>()),
            "write a whole number and a unit, such as `30s`, `15m`, `24h` or `7d`",
        )
    };
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let number: u64 = text[..split].parse().map_err(|_| bad())?;
    let unit_ms = match &text[split..] {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    // A century; no one waits longer, and sums of times stay in range.
    number.checked_mul(unit_ms).filter(|ms| *ms <= 36_525 * 86_400_000).ok_or_else(bad)
}

/// Writes bytes the way people read them: `1.5 GiB`, `640 KiB`, `12 B`.
pub fn format_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value < 10.0 && unit != "B" { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// Writes a span of time as its largest unit or two: `8s`, `3m 20s`, `5h`, `2d`.
pub fn format_span_ms(ms: i64) -> String {
    let s = ms.max(0) / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..600 => format!("{}m {}s", s / 60, s % 60),
        600..3_600 => format!("{}m", s / 60),
        3_600..172_800 => format!("{}h", s / 3_600),
        _ => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_amounts() {
        for (text, want) in [("4GiB", 4 << 30), ("512m", 512 << 20), ("1.5g", 3 << 29), ("10MB", 10_000_000), ("7", 7)]
        {
            assert_eq!(parse_bytes(text).unwrap(), want, "{text}");
        }
        for bad in ["", "GiB", "4 XiB", "-1", "1e9", "4GiBs", "999999999999TiB", "."] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_amounts() {
        for (text, want) in [("2", 2000), ("0.5", 500), ("250m", 250)] {
            assert_eq!(parse_cpu_millis(text).unwrap(), want, "{text}");
        }
        for bad in ["", "0", "-1", "m", "1e3", "nan", "99999999"] {
            assert!(parse_cpu_millis(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_of_time() {
        for (text, want) in [("30s", 30_000), ("15m", 900_000), ("24h", 86_400_000), ("7d", 604_800_000), ("0s", 0)] {
            assert_eq!(parse_span_ms(text).unwrap(), want, "{text}");
        }
        for bad in ["", "s", "10", "-1s", "1.5h", "1 h", "1w", "99999999999999999999s", "36526d"] {
            assert!(parse_span_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts_are_written_short() {
        assert_eq!(format_bytes(1536), "1.5 KiB");
        assert_eq!(format_bytes(12), "12 B");
        assert_eq!(format_span_ms(200_000), "3m 20s");
    }
}
