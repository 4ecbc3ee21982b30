//! What a workload's instances wrote: the last lines as a page, the next ones as they come.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use askama::Template;
use axum::{
    extract::{Path, Query, State},
    http::HeaderMap,
    response::Response,
};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use toft_model::{
    ids::InstanceId,
    instance::InstanceState,
    log::{LogLine, LogQuery, LogStream},
    name::Name,
    units::format_bytes,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Dashboard, Frame,
    error::PageError,
    live::{self, Event},
    plain::plain,
    present::Moment,
    render,
    request::{encode, named},
    show,
};
use crate::control::{
    ControlError,
    ops::{
        Ops,
        logs::{InstanceLogs, NamedLine, merged},
    },
};

/// Lines on a page when nobody asked for another number.
pub(super) const LINES: usize = 200;
/// Numbers of lines the page offers; the last is the most.
const LINES_OFFERED: [usize; 4] = [LINES, 500, 1_000, 5_000];
/// Longest wait for the lines of a page.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Most lines that are read at once, most bytes of a page's lines, and about how many bytes there are in one event.
const CHUNK: usize = 200;
const MOST_BYTES: usize = 2 << 20;
const EVENT_BYTES: usize = 256 << 10;
/// Longest text that is looked for, in characters.
const LONGEST: usize = 200;
/// Least time between two events.
const PACE: Duration = Duration::from_millis(100);

/// Which lines.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    lines: Option<usize>,
    /// Only this instance's, when not empty.
    pub(super) instance: String,
    /// Only those at or after, in nanoseconds since 1970.
    since: Option<i64>,
    /// Only those with this text, in upper or lower case, when not empty.
    pub(super) text: String,
}

impl Asked {
    /// How many lines.
    pub(super) fn most(&self) -> usize {
        self.lines.unwrap_or(LINES).clamp(1, LINES_OFFERED[LINES_OFFERED.len() - 1])
    }

    /// The text that is looked for.
    pub(super) fn wanted(&self) -> String {
        self.text.trim().chars().take(LONGEST).collect()
    }
}

#[derive(Template)]
#[template(path = "logs/index.html")]
struct Page {
    frame: Frame,
    name: String,
    lines: Vec<Line>,
    trouble: Option<String>,
    /// Where the lines after these come from.
    follow: String,
    counts: Vec<(usize, bool)>,
    instances: Vec<(String, bool)>,
    /// The text that is looked for.
    text: String,
}

#[derive(Template)]
#[template(path = "logs/_lines.html")]
struct Fragment {
    lines: Vec<Line>,
}

pub(super) struct Line {
    pub(super) at: Moment,
    /// Whether the time is told with its date.
    pub(super) dated: bool,
    pub(super) error: bool,
    pub(super) instance: String,
    pub(super) text: String,
    pub(super) partial: bool,
}

impl Line {
    pub(super) fn of(instance: String, line: LogLine) -> Self {
        Self {
            at: Moment::clock(line.at_ns / 1_000_000),
            dated: false,
            error: line.stream == LogStream::Stderr,
            instance,
            text: plain(&line.text),
            partial: line.partial,
        }
    }

    /// One that may be of any day.
    pub(super) fn dated(instance: String, line: LogLine) -> Self {
        Self { at: Moment::dated(line.at_ns / 1_000_000), dated: true, ..Self::of(instance, line) }
    }
}

pub(super) async fn page(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, PageError> {
    let workload = dashboard.ops.workload(&named(&name)?).await?;
    let most = asked.most();
    let names: Vec<String> = workload.instances.iter().map(|instance| instance.name()).collect();
    let instance = names.iter().find(|name| **name == asked.instance);
    let text = asked.wanted();
    let read = newest(&dashboard.ops, &workload.row.spec.name, instance, (most, &text));
    let (lines, trouble) = in_time(read).await;
    let since = lines.iter().map(|(_, line)| line.at_ns + 1).max().unwrap_or(0);
    let instance = instance.map(String::as_str).unwrap_or_default();
    let counts = counts(most);
    show(&Page {
        frame: Frame::at("workloads"),
        follow: format!("/live/workloads/{name}/logs?instance={instance}&text={}&since={since}", encode(&text)),
        text,
        name,
        lines: lines.into_iter().map(|(instance, line)| Line::of(instance, line)).collect(),
        trouble,
        counts,
        instances: names.iter().map(|name| (name.clone(), name == instance)).collect(),
    })
}

/// The newest `most` lines of all instances or of one, oldest first.
async fn newest(
    ops: &Ops,
    name: &Name,
    only: Option<&String>,
    (most, text): (usize, &str),
) -> Result<Newest, ControlError> {
    let query = LogQuery { tail: Some(most), grep: pattern(text), ..LogQuery::default() };
    newest_of(ops.workload_logs(name, query).await?, only, most).await
}

/// What finds a text in upper or lower case.
pub(super) fn pattern(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| format!("(?i){}", regex::escape(text)))
}

/// The numbers of lines a page offers, with the one it has.
pub(super) fn counts(most: usize) -> Vec<(usize, bool)> {
    let mut counts: Vec<(usize, bool)> = LINES_OFFERED.iter().map(|count| (*count, *count == most)).collect();
    if !LINES_OFFERED.contains(&most) {
        counts.insert(0, (most, true));
    }
    counts
}

/// Lines with the instance that wrote each; or what is to be said of them.
pub(super) type Read = (Vec<(String, LogLine)>, Option<String>);

/// The lines of a page, or what is in the way.
pub(super) async fn in_time(read: impl Future<Output = Result<Newest, ControlError>>) -> Read {
    match tokio::time::timeout(READ_TIMEOUT, read).await {
        Ok(Ok(Newest { lines, cut })) => {
            let told = format!("the lines are long: these are the newest {}", format_bytes(MOST_BYTES as u64));
            (lines.into(), cut.then_some(told))
        }
        Ok(Err(error)) => (Vec::new(), Some(error.message)),
        Err(_) => (Vec::new(), Some(format!("no answer came within {} seconds", READ_TIMEOUT.as_secs()))),
    }
}

/// The newest lines, oldest first.
pub(super) struct Newest {
    lines: VecDeque<(String, LogLine)>,
    /// Whether there would be more, were they shorter.
    cut: bool,
}

/// The newest `most` lines of those who wrote, or of one, oldest first, of at most [`MOST_BYTES`].
pub(super) async fn newest_of(
    logs: Vec<InstanceLogs>,
    only: Option<&String>,
    most: usize,
) -> Result<Newest, ControlError> {
    let (mut newest, mut cut) = (VecDeque::new(), false);
    for mut output in logs {
        if only.is_some_and(|only| *only != output.instance) {
            continue;
        }
        // Its own newest; then the newest of all.
        let (mut its_own, mut bytes) = (VecDeque::new(), 0);
        while let Some(line) = output.lines.next().await {
            let line = line?;
            bytes += line.text.len();
            its_own.push_back((output.instance.clone(), line));
            cut |= shorten(&mut its_own, &mut bytes, most);
        }
        newest.extend(its_own);
        // Sorting is stable: lines of one moment stay in the order they were written.
        newest.make_contiguous().sort_by_key(|(_, line): &(String, LogLine)| line.at_ns);
        let mut bytes = newest.iter().map(|(_, line)| line.text.len()).sum();
        cut |= shorten(&mut newest, &mut bytes, most);
    }
    Ok(Newest { lines: newest, cut })
}

/// Leaves the last `most` lines of at most [`MOST_BYTES`]; whether it was the bytes that were too many.
fn shorten(lines: &mut VecDeque<(String, LogLine)>, bytes: &mut usize, most: usize) -> bool {
    let mut cut = false;
    while lines.len() > most || *bytes > MOST_BYTES {
        let long = lines.len() <= most;
        let Some((_, first)) = lines.pop_front() else { break };
        *bytes -= first.text.len();
        cut |= long;
    }
    cut
}

type Chunks = stream::BoxStream<'static, Vec<NamedLine>>;

/// Reads on for as long as the workload exists, whichever instances it has and however often they start.
struct Follow {
    ops: Ops,
    name: Name,
    only: String,
    text: String,
    since_ns: i64,
    moved: watch::Receiver<u64>,
    shutdown: CancellationToken,
    /// The instances whose output is being read, with the start it belongs to.
    writing: HashSet<(InstanceId, u64)>,
    chunks: Option<Chunks>,
    /// Lines that came and are still to be sent.
    waiting: VecDeque<NamedLine>,
    sent: Option<Instant>,
}

impl Follow {
    /// The next lines; `None` when the workload is gone or the appliance shuts down.
    async fn next(&mut self) -> Option<Vec<Line>> {
        let shutdown = self.shutdown.clone();
        let lines = tokio::select! {
            () = shutdown.cancelled() => None,
            lines = self.read_on() => lines,
        };
        self.sent = Some(Instant::now());
        lines
    }

    async fn read_on(&mut self) -> Option<Vec<Line>> {
        if let Some(sent) = self.sent {
            tokio::time::sleep_until(sent + PACE).await;
        }
        loop {
            if !self.waiting.is_empty() {
                let lines = self.take();
                if !lines.is_empty() {
                    return Some(lines);
                }
            }
            let Some(chunks) = &mut self.chunks else {
                self.chunks = Some(self.open().await.ok()?);
                continue;
            };
            tokio::select! {
                chunk = chunks.next() => match chunk {
                    Some(chunk) => self.waiting.extend(chunk),
                    None => {
                        // All are down; whichever writes next is new.
                        self.chunks = Some(stream::pending().boxed());
                        self.writing.clear();
                    }
                },
                moved = self.moved.changed() => {
                    moved.ok()?;
                    let writing = writing(&self.ops, &self.name).await?;
                    if !writing.is_subset(&self.writing) {
                        self.chunks = None;
                    }
                    self.writing = writing;
                }
            }
        }
    }

    async fn open(&mut self) -> Result<Chunks, ControlError> {
        let grep = pattern(&self.text);
        let query = LogQuery { since_ns: Some(self.since_ns), follow: true, grep, ..LogQuery::default() };
        let mut logs = self.ops.workload_logs(&self.name, query).await?;
        logs.retain(|log| self.only.is_empty() || log.instance == self.only);
        Ok(merged(logs).ready_chunks(CHUNK).boxed())
    }

    /// As many of the lines that wait as go into one event.
    fn take(&mut self) -> Vec<Line> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while bytes < EVENT_BYTES
            && let Some((instance, line)) = self.waiting.pop_front()
        {
            let Ok(line) = line else { continue };
            self.since_ns = self.since_ns.max(line.at_ns + 1);
            bytes += line.text.len();
            lines.push(Line::of(instance, line));
        }
        lines
    }
}

/// The instances that may write, each with its start; `None` when the workload is gone.
async fn writing(ops: &Ops, name: &Name) -> Option<HashSet<(InstanceId, u64)>> {
    let workload = ops.workload(name).await.ok()?;
    let live = workload
        .instances
        .iter()
        .filter(|instance| !matches!(instance.state(), InstanceState::Finished { .. } | InstanceState::Stopped { .. }));
    Some(live.map(|instance| (instance.row.id, instance.row.epoch)).collect())
}

pub(super) async fn live(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Result<Response, PageError> {
    let name = named(&name)?;
    dashboard.ops.workload(&name).await?;
    // A browser that connects again tells what it got last.
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let follow = Follow {
        ops: dashboard.ops.clone(),
        text: asked.wanted(),
        only: asked.instance,
        since_ns: seen.or(asked.since).unwrap_or(0),
        moved: dashboard.ops.state().watch(),
        shutdown: dashboard.shutdown.clone(),
        writing: writing(&dashboard.ops, &name).await.unwrap_or_default(),
        name,
        chunks: None,
        waiting: VecDeque::new(),
        sent: None,
    };
    let events = stream::unfold(follow, |mut follow| async move {
        let lines = follow.next().await?;
        let fragment = render(&Fragment { lines }).ok()?;
        Some((Arc::new(Event::with_id("lines", follow.since_ns, &fragment)), follow))
    });
    Ok(live::answer(&dashboard, events))
}
