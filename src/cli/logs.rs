//! `logs`.

use std::io::{self, Write};

use http_body_util::BodyExt;
use toft_model::log::LogStream;

use super::{
    Failure,
    args::LogsArgs,
    client::{Client, query_value},
};
use crate::api::types::LogRecord;

/// How lines are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    pub(super) timestamps: bool,
    pub(super) json: bool,
    pub(super) instance_names: bool,
}

pub(super) async fn logs(client: &Client, args: LogsArgs) -> Result<i32, Failure> {
    let workload: crate::api::types::Workload = client.get(&format!("/api/v1/workloads/{}", args.name)).await?;
    let mut path = format!("/api/v1/workloads/{}/logs?follow={}", args.name, args.follow);
    if let Some(tail) = args.tail {
        path.push_str(&format!("&tail={tail}"));
    }
    if let Some(since) = &args.since {
        path.push_str(&format!("&since={}", query_value(since)));
    }
    let instance_names = workload.instances.len() > 1;
    show(client, &path, Shown { timestamps: args.timestamps, json: args.json, instance_names }).await?;
    Ok(0)
}

/// Shows a workload's output until it has ended.
pub(super) async fn follow(client: &Client, name: &str, shown: Shown) -> Result<(), Failure> {
    show(client, &format!("/api/v1/workloads/{name}/logs?follow=true"), shown).await
}

/// Shows what a path of logs gives, to its end.
pub(super) async fn show(client: &Client, path: &str, shown: Shown) -> Result<(), Failure> {
    let mut body = client.stream(path).await?;
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::of(1, format!("the logs broke off: {e}")))?;
        let Some(data) = frame.data_ref() else { continue };
        rest.extend_from_slice(data);
        let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
        let lines: Vec<u8> = rest.drain(..=end).collect();
        match print(&lines, shown) {
            Ok(()) => {}
            // Whoever read our output has seen enough.
            Err(Printing::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(Printing::Output(error)) => {
                return Err(Failure::of(1, format!("the output could not be written: {error}")));
            }
            Err(Printing::Record(error)) => {
                return Err(Failure::of(1, format!("a log line was not understood: {error}")));
            }
        }
    }
    Ok(())
}

enum Printing {
    Output(io::Error),
    Record(serde_json::Error),
}

impl From<io::Error> for Printing {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn print(lines: &[u8], shown: Shown) -> Result<(), Printing> {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        if shown.json {
            out.write_all(line)?;
            out.write_all(b"\n")?;
            continue;
        }
        let record: LogRecord = serde_json::from_slice(line).map_err(Printing::Record)?;
        let target: &mut dyn Write = match record.stream {
            LogStream::Stdout => &mut out,
            LogStream::Stderr => &mut err,
        };
        if shown.timestamps {
            write!(target, "{} ", record.at)?;
        }
        if shown.instance_names {
            write!(target, "{}  ", record.instance)?;
        }
        target.write_all(record.text.as_bytes())?;
        if !record.partial {
            target.write_all(b"\n")?;
        }
    }
    out.flush()?;
    err.flush()?;
    Ok(())
}
