//! Tables, JSON and short words.

use std::panic;

use comfy_table::{Table, TableStyle};
use jiff::Timestamp;
use serde::Serialize;
use toft_model::{
    instance::PublishedPort,
    units::{format_bytes, format_span_ms},
};

use super::Failure;
use crate::api::types::{Instance, LastExit};

/// Ends this process without a word when whoever reads its output has seen enough, as in `toft ps | head -3`: the standard
/// library has `println!` panic then. Not for daemons, which have more to do than to print.
pub(super) fn end_with_the_reader() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let said = info.payload_as_str().unwrap_or_default();
        // The second is how completions say it.
        if said.starts_with("failed") && (said.contains("Broken pipe") || said.contains("BrokenPipe")) {
            std::process::exit(0);
        }
        usual(info);
    }));
}

/// Prints a table without lines, as `docker ps` does.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    print!("{}", table_text(header, rows));
}

/// Such a table as text.
pub(super) fn table_text(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Prints JSON, indented.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::of(1, e.to_string()))?;
    println!("{text}");
    Ok(())
}

/// How long ago an RFC 3339 time was.
pub(super) fn age(time: &str) -> String {
    span_to(time).map_or_else(|| time.to_owned(), |ms| format_span_ms(-ms))
}

/// How long it is to an RFC 3339 time: `for 23h`.
pub(super) fn until(time: &str) -> String {
    span_to(time).map_or_else(|| time.to_owned(), |ms| format!("for {}", format_span_ms(ms)))
}

fn span_to(time: &str) -> Option<i64> {
    let time: Timestamp = time.parse().ok()?;
    Some(time.as_millisecond() - Timestamp::now().as_millisecond())
}

/// `18080->8080/tcp, ...`
pub(super) fn ports(ports: &[PublishedPort]) -> String {
    let texts: Vec<String> =
        ports.iter().map(|port| format!("{}->{}/{}", port.host, port.container, port.protocol)).collect();
    texts.join(", ")
}

/// State with what matters of it: `running 3m 20s`, `back_off (exited with code 1), next try in 4s`.
pub(super) fn state(instance: &Instance) -> String {
    let code = |exit: &LastExit| match exit.code {
        _ if exit.gpu_out_of_memory => "GpuOutOfMemory".to_owned(),
        _ if exit.out_of_memory => "out of memory".to_owned(),
        Some(code) => format!("exit code {code}"),
        None => "vanished".to_owned(),
    };
    match (instance.state.as_str(), &instance.reason, &instance.started_at, &instance.last_exit) {
        ("running", _, Some(since), _) => match instance.health {
            Some(health) => format!("running {} ({})", age(since), health.as_str()),
            None => format!("running {}", age(since)),
        },
        ("back_off", Some(reason), _, _) => {
            let next = instance.retry_at.as_deref().and_then(span_to).filter(|ms| *ms > 0);
            let next = next.map_or_else(String::new, |ms| format!(", next try in {}", format_span_ms(ms + 999)));
            format!("back_off ({reason}){next}")
        }
        ("assigned" | "starting", Some(pull), _, _) => pull.clone(),
        (word @ ("finished" | "stopped"), _, _, Some(exit)) => format!("{word} ({})", code(exit)),
        (word, ..) => word.to_owned(),
    }
}

/// An amount of memory or disk.
pub(super) fn bytes(bytes: u64) -> String {
    format_bytes(bytes)
}

/// The characters of a text from outside that a terminal would take as commands, shown instead of sent.
pub(super) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}
