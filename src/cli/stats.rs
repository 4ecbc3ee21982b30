//! `stats` and `top`: what instances use, and their processes.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
};

use http_body_util::BodyExt;
use toft_model::{
    name::Name,
    units::format_span_ms,
    usage::{Pressure, Process, Usage},
};

use super::{
    Failure,
    client::{Client, query_value},
    output,
    stats_args::{StatsArgs, TopArgs},
};
use crate::api::types::{Stats, Workload};

pub(super) async fn stats(client: &Client, args: StatsArgs) -> Result<i32, Failure> {
    let mut query = format!("?pss={}", args.pss);
    if !args.names.is_empty() {
        let names: Vec<&str> = args.names.iter().map(Name::as_str).collect();
        query.push_str(&format!("&workloads={}", query_value(&names.join(","))));
    }
    if args.no_stream {
        let stats: Stats = client.get(&format!("/api/v1/stats{query}")).await?;
        if args.json {
            output::json(&stats)?;
        } else {
            print!("{}", table(&stats));
            tell_away(&stats);
        }
        return Ok(0);
    }
    let mut body = client.stream(&format!("/api/v1/stats/stream{query}")).await?;
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::of(1, format!("the stream broke off: {e}")))?;
        let Some(data) = frame.data_ref() else { continue };
        rest.extend_from_slice(data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            match shown(&line, args.json)? {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
                Err(error) => return Err(Failure::of(1, format!("the output could not be written: {error}"))),
                Ok(()) => {}
            }
        }
    }
    // It goes on for as long as there is something to measure.
    Err(Failure::of(1, "the stream ended: toft stops, or a workload was removed"))
}

fn shown(line: &[u8], json: bool) -> Result<io::Result<()>, Failure> {
    let mut out = io::stdout().lock();
    if json {
        return Ok(out.write_all(line).and_then(|()| out.flush()));
    }
    let stats: Stats = serde_json::from_slice(line)
        .map_err(|e| Failure::of(1, format!("what was measured is not understood: {e}")))?;
    let mut text = table(&stats);
    if out.is_terminal() {
        // Over what was there, so that nothing flickers; then the rest of the screen is wiped.
        for away in &stats.away {
            text.push_str(&format!("nothing is told of {}: {}\n", away.node, away.error.message));
        }
        text = format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"));
    }
    Ok(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

fn tell_away(stats: &Stats) {
    for away in &stats.away {
        eprintln!("toft: nothing is told of the instances on {}: {}", away.node, away.error.message);
    }
}

fn table(stats: &Stats) -> String {
    let all: Vec<&Usage> = stats.instances.iter().map(|instance| &instance.usage).collect();
    let (pss, pressure) =
        (all.iter().any(|usage| usage.memory_pss_bytes.is_some()), all.iter().any(|usage| usage.pressure.is_some()));
    let mut header = vec!["INSTANCE", "CPU %", "MEMORY / LIMIT", "MEM %"];
    header.extend(pss.then_some("PSS"));
    header.extend(["NET IN / OUT", "DISK READ / WRITTEN", "PIDS"]);
    header.extend(pressure.then_some("WAITS CPU / MEM / IO"));
    let rows = stats.instances.iter().map(|instance| {
        let usage = &instance.usage;
        let part = match usage.memory_limit_bytes {
            0 => 0.0,
            limit => usage.memory_bytes as f64 * 100.0 / limit as f64,
        };
        let mut row = vec![
            instance.instance.clone(),
            format!("{:.2}%", usage.cpu_percent),
            format!("{} / {}", output::bytes(usage.memory_bytes), output::bytes(usage.memory_limit_bytes)),
            format!("{part:.2}%"),
        ];
        row.extend(pss.then(|| usage.memory_pss_bytes.map_or_else(|| "-".to_owned(), output::bytes)));
        row.push(pair(usage.received_bytes, usage.sent_bytes));
        row.push(pair(usage.read_bytes, usage.written_bytes));
        row.push(usage.pids.to_string());
        row.extend(pressure.then(|| usage.pressure.map_or_else(|| "-".to_owned(), waits)));
        row
    });
    output::table_text(&header, rows)
}

fn pair(one: Option<u64>, other: Option<u64>) -> String {
    match (one, other) {
        (Some(one), Some(other)) => format!("{} / {}", output::bytes(one), output::bytes(other)),
        _ => "-".to_owned(),
    }
}

fn waits(pressure: Pressure) -> String {
    format!("{:.1}% / {:.1}% / {:.1}%", pressure.cpu, pressure.memory, pressure.io)
}

pub(super) async fn top(client: &Client, args: TopArgs) -> Result<i32, Failure> {
    let name = &args.name;
    let instances = match client.get::<Workload>(&format!("/api/v1/workloads/{name}")).await {
        Ok(workload) => {
            let running = workload.instances.iter().filter(|instance| instance.state == "running");
            let names: Vec<String> = running.map(|instance| instance.name.clone()).collect();
            if names.is_empty() {
                return Err(Failure::of(1, format!("no instance of `{name}` runs")).hint("`toft ps` shows what runs"));
            }
            names
        }
        // It may be an instance's; the node knows.
        Err(failure) if failure.is("not_found") => vec![name.to_string()],
        Err(failure) => return Err(failure),
    };
    let mut all: BTreeMap<String, Vec<Process>> = BTreeMap::new();
    for instance in instances {
        let processes = client.get(&format!("/api/v1/instances/{instance}/processes")).await?;
        all.insert(instance, processes);
    }
    if args.json {
        output::json(&all)?;
        return Ok(0);
    }
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let several = all.len() > 1;
    let mut header = vec!["UID", "PID", "PPID", "STATE", "CPU", "TIME", "MEMORY", "STARTED", "COMMAND"];
    if several {
        header.insert(0, "INSTANCE");
    }
    let rows = all.iter().flat_map(|(instance, processes)| {
        processes.iter().map(move |process| {
            let mut row = row(process, now_ms);
            if several {
                row.insert(0, instance.clone());
            }
            row
        })
    });
    output::table(&header, rows);
    Ok(0)
}

fn row(process: &Process, now_ms: i64) -> Vec<String> {
    let age_ms = (now_ms - process.started_at_ms).max(1);
    vec![
        process.uid.to_string(),
        process.pid.to_string(),
        process.parent.to_string(),
        process.state.to_string(),
        format!("{:.1}%", process.cpu_ms as f64 * 100.0 / age_ms as f64),
        format!("{}:{:02}", process.cpu_ms / 60_000, process.cpu_ms / 1_000 % 60),
        output::bytes(process.memory_bytes),
        format!("{} ago", format_span_ms(age_ms)),
        output::harmless(&process.command),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::InstanceStats;

    fn usage() -> Usage {
        Usage {
            cpu_percent: 150.0,
            cpu_ns: 1,
            memory_bytes: 64 << 20,
            memory_limit_bytes: 256 << 20,
            memory_pss_bytes: None,
            received_bytes: Some(2048),
            sent_bytes: Some(0),
            read_bytes: None,
            written_bytes: None,
            pids: 4,
            pressure: None,
        }
    }

    #[test]
    fn columns_appear_when_there_is_something_in_them() {
        let stats = |usage: Usage| Stats {
            at: String::new(),
            away: Vec::new(),
            instances: vec![InstanceStats {
                instance: "web-0".into(),
                workload: "web".into(),
                node: "box".into(),
                usage,
            }],
        };
        let plain = table(&stats(usage()));
        assert!(!plain.contains("PSS") && !plain.contains("WAITS"), "{plain}");
        let line = plain.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(line, "web-0 150.00% 64 MiB / 256 MiB 25.00% 2.0 KiB / 0 B - 4");
        let pressure = Some(Pressure { cpu: 1.0, memory: 0.0, io: 2.5 });
        let full = table(&stats(Usage { memory_pss_bytes: Some(1024), pressure, ..usage() }));
        assert!(full.contains("1.0 KiB") && full.contains("1.0% / 0.0% / 2.5%"), "{full}");
        table(&stats(Usage { memory_limit_bytes: 0, ..usage() }));
    }

    #[test]
    fn a_command_line_cannot_command_the_terminal() {
        let process = Process {
            pid: 1,
            parent: 0,
            uid: 0,
            state: 'R',
            cpu_ms: 61_000,
            memory_bytes: 1,
            started_at_ms: 0,
            command: "\x1b[2Jevil".into(),
        };
        let row = row(&process, 122_000);
        assert_eq!((row[4].as_str(), row[5].as_str(), row[8].as_str()), ("50.0%", "1:01", "\u{fffd}[2Jevil"));
    }
}
