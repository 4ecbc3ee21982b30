//! Signals by the names images use.

/// What asks a process to end when nobody says otherwise.
pub(super) const TERM: i32 = 15;
/// What ends a process without asking.
pub(super) const KILL: i32 = 9;

/// Reads `SIGQUIT`, `quit`, `3` or `SIGRTMIN+3`.
pub(super) fn parse(text: &str) -> Option<i32> {
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    let text = text.trim();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<i32>().ok()? };
        return (0..=RTMAX - RTMIN).contains(&offset).then_some(RTMIN + offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse::<i32>().ok()? };
        return (0..=RTMAX - RTMIN).contains(&offset).then_some(RTMAX - offset);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, want) in [
            ("SIGQUIT", Some(3)),
            ("quit", Some(3)),
            ("15", Some(TERM)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("", None),
            ("0", None),
            ("SIGNOPE", None),
            ("RTMIN+99", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }
}
