//! Output of programs as plain text: what a terminal would obey is taken out.

/// The text without escape sequences and control characters. Of a line that was overwritten with carriage returns the
/// last state remains, as on a terminal.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut overwritten = 0..0;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => escape(&mut chars),
            '\u{9b}' => control_sequence(&mut chars),
            '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}' => string(&mut chars),
            '\r' => overwritten = 0..out.len(),
            '\t' => out.push('\t'),
            c if c.is_control() => {}
            c => {
                if !overwritten.is_empty() {
                    out.drain(std::mem::take(&mut overwritten));
                }
                out.push(c);
            }
        }
    }
    out
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Skips what follows an escape character.
fn escape(chars: &mut Chars<'_>) {
    match chars.peek() {
        Some('[') => {
            chars.next();
            control_sequence(chars);
        }
        Some(']' | 'P' | 'X' | '^' | '_') => {
            chars.next();
            string(chars);
        }
        Some(' '..='/') => {
            while chars.next_if(|c| matches!(c, ' '..='/')).is_some() {}
            chars.next_if(|c| matches!(c, '0'..='~'));
        }
        Some('0'..='~') => drop(chars.next()),
        _ => {}
    }
}

/// Skips parameters up to the final character; what cannot be part of the sequence ends it and stays.
fn control_sequence(chars: &mut Chars<'_>) {
    while chars.next_if(|c| matches!(c, ' '..='?')).is_some() {}
    chars.next_if(|c| matches!(c, '@'..='~'));
}

/// Skips a title, a link or the like, up to its terminator. One without a terminator ends with the line.
fn string(chars: &mut Chars<'_>) {
    while let Some(c) = chars.next() {
        match c {
            '\u{7}' | '\u{9c}' => return,
            '\u{1b}' => {
                chars.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn terminal_sequences_are_taken_out() {
        let check = |text: &str, want: &str| assert_eq!(plain(text), want, "{text:?}");
        check("\u{1b}[1;31mred\u{1b}[0m <b>", "red <b>");
        check("\u{1b}]0;title\u{7}a\u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{1b}\\", "alink");
        check("a\u{1b}(Bb\u{1b}7c\u{1b}=d", "abcd");
        check("\u{9b}31mx\u{85}y\0z\u{8}", "xyz");
        check("10%\r50%\r100%\r", "100%");
        check("tab\there äöü 日本", "tab\there äöü 日本");
        check("\u{1b}[31", "");
        check("\u{1b}[3ä", "ä");
        check("\u{1b}", "");
    }

    proptest! {
        #[test]
        fn nothing_a_terminal_obeys_remains(text in ".*") {
            prop_assert!(plain(&text).chars().all(|c| c == '\t' || !c.is_control()));
        }
    }
}
