//! `logs`.

use std::io::{self, Write};

use futures_util::future::try_join_all;
use http_body_util::BodyExt;
use toft_model::{log::LogStream, name::Name};

use super::{
    Failure,
    args::LogsArgs,
    client::{Client, query_value},
};
use crate::api::types::{LogItem, LogTrouble, Workload};

/// How lines are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    pub(super) timestamps: bool,
    pub(super) json: bool,
    pub(super) instance_names: bool,
}

pub(super) async fn logs(client: &Client, args: LogsArgs) -> Result<i32, Failure> {
    let mut asked = String::new();
    if let Some(tail) = args.tail {
        asked.push_str(&format!("&tail={tail}"));
    }
    for (key, value) in [("since", &args.since), ("until", &args.until), ("grep", &args.grep)] {
        if let Some(value) = value {
            asked.push_str(&format!("&{key}={}", query_value(value)));
        }
    }
    if args.gone {
        asked.push_str("&gone=true");
    }
    let mut paths = Vec::with_capacity(args.names.len());
    let mut instance_names = args.names.len() > 1;
    for name in &args.names {
        let Meant { name, index, instances } = meant(client, name).await?;
        instance_names |= index.is_none() && (args.gone || instances.is_none_or(|count| count > 1));
        let index = index.map_or_else(String::new, |index| format!("&index={index}"));
        paths.push(format!("/api/v1/workloads/{name}/logs?follow={}{asked}{index}", args.follow));
    }
    let mut whole = true;
    let shown = Shown { timestamps: args.timestamps, json: args.json, instance_names };
    if args.follow {
        whole = try_join_all(paths.iter().map(|path| show(client, path, shown))).await?.into_iter().all(|whole| whole);
    } else {
        for path in &paths {
            whole &= show(client, path, shown).await?;
        }
    }
    Ok(if whole { 0 } else { 1 })
}

/// A workload, or one instance of it.
struct Meant {
    name: String,
    index: Option<u32>,
    /// How many it has; nothing when the workload is gone.
    instances: Option<usize>,
}

impl Meant {
    fn of(workload: Workload, index: Option<u32>) -> Self {
        Self { name: workload.name, index, instances: Some(workload.instances.len()) }
    }
}

async fn meant(client: &Client, name: &Name) -> Result<Meant, Failure> {
    let unknown = match client.get(&format!("/api/v1/workloads/{name}")).await {
        Ok(workload) => return Ok(Meant::of(workload, None)),
        Err(failure) if failure.is("not_found") => failure,
        Err(failure) => return Err(failure),
    };
    let Some((base, Ok(index))) = name.as_str().rsplit_once('-').map(|(base, number)| (base, number.parse())) else {
        return gone(client, name.as_str(), None, unknown).await;
    };
    match client.get(&format!("/api/v1/workloads/{base}")).await {
        Ok(workload) => Ok(Meant::of(workload, Some(index))),
        Err(failure) if failure.is("not_found") || failure.is("invalid") => {
            match gone(client, name.as_str(), None, unknown).await {
                // What was typed is what is not there, unless it was an instance.
                Err(unknown) => gone(client, base, Some(index), unknown).await,
                meant => meant,
            }
        }
        Err(failure) => Err(failure),
    }
}

/// A workload that is gone, or an instance of one, if its logs are kept; else `unknown`.
async fn gone(client: &Client, name: &str, index: Option<u32>, unknown: Failure) -> Result<Meant, Failure> {
    let asked = index.map_or_else(String::new, |index| format!("&index={index}"));
    match client.stream(&format!("/api/v1/workloads/{name}/logs?tail=0{asked}")).await {
        Ok(_) => Ok(Meant { name: name.to_owned(), index, instances: None }),
        Err(failure) if failure.is("not_found") || failure.is("invalid") => Err(unknown),
        Err(failure) => Err(failure),
    }
}

/// Shows a workload's output until it has ended.
pub(super) async fn follow(client: &Client, name: &str, shown: Shown) -> Result<(), Failure> {
    show(client, &format!("/api/v1/workloads/{name}/logs?follow=true"), shown).await.map(drop)
}

/// Shows what a path of logs gives, to its end; gives whether nothing was missing.
pub(super) async fn show(client: &Client, path: &str, shown: Shown) -> Result<bool, Failure> {
    let mut body = client.stream(path).await?;
    let (mut rest, mut whole) = (Vec::new(), true);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::of(1, format!("the logs broke off: {e}")))?;
        let Some(data) = frame.data_ref() else { continue };
        rest.extend_from_slice(data);
        let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
        let lines: Vec<u8> = rest.drain(..=end).collect();
        match print(&lines, shown) {
            Ok(told) => whole &= told,
            // Whoever read our output has seen enough.
            Err(Printing::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(whole),
            Err(Printing::Output(error)) => {
                return Err(Failure::of(1, format!("the output could not be written: {error}")));
            }
            Err(Printing::Record(error)) => {
                return Err(Failure::of(1, format!("a log line was not understood: {error}")));
            }
        }
    }
    Ok(whole)
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

/// Prints lines; `false` when some are missing.
fn print(lines: &[u8], shown: Shown) -> Result<bool, Printing> {
    let mut whole = true;
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let item = serde_json::from_slice(line).map_err(Printing::Record)?;
        if matches!(item, LogItem::Trouble(_)) {
            whole = false;
        }
        if shown.json {
            out.write_all(line)?;
            out.write_all(b"\n")?;
            continue;
        }
        let record = match item {
            LogItem::Line(record) => record,
            LogItem::Trouble(LogTrouble { instance, error }) => {
                writeln!(err, "toft: the output of {instance} is not whole: {}", error.message)?;
                continue;
            }
        };
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
    Ok(whole)
}
