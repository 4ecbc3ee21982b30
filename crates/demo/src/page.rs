//! What the demo knows of itself, as a page and as JSON. Every value is escaped.

use std::ffi::{c_char, c_int};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

unsafe extern "C" {
    fn gethostname(name: *mut c_char, length: usize) -> c_int;
}

/// Where this copy runs, and how much it has served.
pub struct Facts {
    node: Option<String>,
    workload: Option<String>,
    instance: Option<String>,
    hostname: String,
    started: Instant,
    requests: AtomicU64,
}

/// What changes from one answer to the next.
pub struct Counts {
    requests: u64,
    uptime_seconds: u64,
}

impl Facts {
    /// Reads the environment and the host name.
    pub fn gather() -> Self {
        let variable = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self {
            node: variable("TOFT_NODE"),
            workload: variable("TOFT_WORKLOAD"),
            instance: variable("TOFT_INSTANCE"),
            hostname: hostname(),
            started: Instant::now(),
            requests: AtomicU64::new(0),
        }
    }

    /// Counts one more page or JSON answer. Health checks are not counted: nobody sees them.
    pub fn count_request(&self) -> Counts {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        Counts { requests, uptime_seconds: self.started.elapsed().as_secs() }
    }

    /// The facts as one JSON object; what is not known is null.
    pub fn json(&self, counts: &Counts) -> String {
        let text = |value: &Option<String>| value.as_deref().map_or("null".to_owned(), json_string);
        format!(
            "{{\"node\":{},\"workload\":{},\"instance\":{},\"hostname\":{},\"requests\":{},\"uptime_seconds\":{}}}\n",
            text(&self.node),
            text(&self.workload),
            text(&self.instance),
            json_string(&self.hostname),
            counts.requests,
            counts.uptime_seconds,
        )
    }

    /// The facts as a page. Each instance has a colour of its own, so that a reload shows when
    /// another one answers.
    pub fn html(&self, counts: &Counts) -> String {
        let text = |value: &Option<String>| html_text(value.as_deref().unwrap_or("unknown"));
        let hue = hue(self.instance.as_deref().unwrap_or(&self.hostname));
        let values = [
            ("{{hue}}", hue.to_string()),
            ("{{node}}", text(&self.node)),
            ("{{workload}}", text(&self.workload)),
            ("{{instance}}", text(&self.instance)),
            ("{{hostname}}", html_text(&self.hostname)),
            ("{{requests}}", counts.requests.to_string()),
            ("{{uptime}}", uptime_text(counts.uptime_seconds)),
        ];
        fill(include_str!("page.html"), &values)
    }
}

/// Replaces every placeholder of `template` in one pass, so that no value is read as one.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut page = String::with_capacity(template.len() + 512);
    let mut rest = template;
    while let Some(start) = rest.find("{{") {
        page.push_str(&rest[..start]);
        rest = &rest[start..];
        let known = values.iter().find(|(name, _)| rest.starts_with(name));
        let (name, value) = known.map_or(("{{", "{{"), |(name, value)| (name, value.as_str()));
        page.push_str(value);
        rest = &rest[name.len()..];
    }
    page.push_str(rest);
    page
}

fn html_text(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other if other.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

fn json_string(value: &str) -> String {
    let mut quoted = String::from("\"");
    for character in value.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            other if other.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(other));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// A colour angle in degrees that stays the same for the same name.
fn hue(name: &str) -> u32 {
    // FNV-1a.
    name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)) % 360
}

fn uptime_text(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min {} s", seconds % 60),
        3_600..86_400 => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn hostname() -> String {
    let mut name = [0_u8; 256];
    // SAFETY: the buffer is ours and one byte longer than we say, so it ends in a zero.
    let failed = unsafe { gethostname(name.as_mut_ptr().cast(), name.len() - 1) } != 0;
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(0);
    if failed || end == 0 { "unknown".to_owned() } else { String::from_utf8_lossy(&name[..end]).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(value: &str) -> Facts {
        let value = || Some(value.to_owned());
        Facts { node: value(), workload: None, instance: value(), hostname: "h".into(), ..Facts::gather() }
    }

    #[test]
    fn hostile_names_stay_text() {
        let name = "<script>\"'&{{node}}</script>\u{1b}";
        let facts = facts(name);
        let page = facts.html(&facts.count_request());
        assert!(!page.contains("<script>") && !page.contains('\u{1b}'));
        assert!(page.contains("&lt;script&gt;&quot;&#39;&amp;{{node}}&lt;/script&gt;\u{fffd}"));
    }

    #[test]
    fn every_placeholder_of_the_page_is_filled() {
        let facts = facts("n1");
        assert!(!facts.html(&facts.count_request()).contains("{{"));
    }

    #[test]
    fn json_escapes_and_knows_null() {
        let facts = facts("a\"b\\c\n\u{7f}é");
        let json = facts.json(&facts.count_request());
        let name = r#""a\"b\\c\u000a\u007fé""#;
        let expected = format!(
            r#"{{"node":{name},"workload":null,"instance":{name},"hostname":"h","requests":1,"uptime_seconds":0}}"#
        );
        assert_eq!(json.trim_end(), expected);
    }

    #[test]
    fn uptime_reads_like_a_person_would_say_it() {
        for (seconds, expected) in
            [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3_660, "1 h 1 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(uptime_text(seconds), expected);
        }
    }

    #[test]
    fn the_host_has_a_name() {
        assert!(!hostname().is_empty());
    }
}
