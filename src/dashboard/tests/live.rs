//! What live streams send, and when.

use std::time::{Duration, Instant};

use axum::{
    body::{Body, BodyDataStream},
    http::Request,
};
use futures_util::StreamExt;
use toft_model::{
    instance::InstanceState,
    log::LogStream,
    pull::{LayerProgress, LayerState, PullProgress},
};
use tokio::time::timeout;
use tower::ServiceExt;

use super::{
    cluster::card,
    house::{DEADLINE, House},
};
use crate::control::{node_access::ImagePull, ops::now_ms};

/// A reader of events.
struct Events {
    body: BodyDataStream,
    text: String,
}

impl Events {
    async fn open(house: &House, path: &str) -> Self {
        let answer = house.app.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        Self { body: answer.into_body().into_data_stream(), text: String::new() }
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.to_owned();
                self.text = rest.to_owned();
                return Some(event);
            }
            let bytes = timeout(DEADLINE, self.body.next()).await.expect("no event came")?.unwrap();
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    /// Events until one holds `text`; tells how many came.
    async fn until(&mut self, text: &str) -> usize {
        for count in 1.. {
            let event = self.next().await.expect("the stream goes on");
            if event.contains(text) {
                return count;
            }
        }
        0
    }
}

#[tokio::test]
async fn a_pull_is_followed_while_it_lasts() {
    let house = House::new().await;
    let mut events = Events::open(&house, "/live/images").await;
    events.until("No images yet").await;
    let progress = |done_bytes| {
        let layer = LayerProgress {
            digest: "sha256:aa".into(),
            size_bytes: 10 << 20,
            done_bytes,
            state: LayerState::Downloading,
            from: None,
        };
        PullProgress { image: "ghcr.io/org/app:2".into(), layers: vec![layer], by_word_of: None }
    };
    house.node.set_pull(ImagePull { progress: progress(1 << 20), failure: None });
    events.until("1.0 MiB of 10 MiB").await;
    // Nobody tells of each step; the page looks again by itself.
    house.node.pulls.lock().unwrap()[0].progress = progress(4 << 20);
    events.until("4.0 MiB of 10 MiB").await;
}

#[tokio::test]
async fn tables_are_sent_again_when_they_change() {
    let house = House::new().await;
    let mut events = Events::open(&house, "/live/workloads").await;
    assert!(events.next().await.unwrap().contains("retry: 2000"));
    let first = events.next().await.unwrap();
    assert!(first.starts_with("event: fragment") && first.contains("No workloads yet"), "{first}");
    assert!(!first.contains("<html"), "only the fragment is sent");
    house.run_up("web", |_| {}).await;
    events.until("pill ok").await;
    house.ops.power_workload("web".parse().unwrap(), toft_model::state::PowerAction::Stop).await.unwrap();
    events.until("stopping").await;
}

#[tokio::test]
async fn what_did_not_change_is_not_sent() {
    let house = House::new().await;
    let mut list = Events::open(&house, "/live/workloads/web").await;
    list.until("web is gone").await;
    house.run_up("other", |_| {}).await;
    let more = timeout(Duration::from_millis(800), list.next()).await;
    assert!(more.is_err(), "another workload's changes were sent: {more:?}");
    house.run("web", |_| {}).await;
    list.until("<h1>web</h1>").await;
}

#[tokio::test]
async fn what_cards_do_moves_on_every_page_while_nothing_else_does() {
    let house = House::new().await;
    house.add_card(card("GPU-a", None)).await;
    let mut readers = Vec::new();
    for (path, before, after) in [
        ("/live/overview", "0%", "57%"),
        ("/live/gpus", "0 %", "57 %"),
        ("/live/gpus/attic/0", "0 %", "57 %"),
        ("/live/nodes/attic", "0 %", "57 %"),
    ] {
        let mut reader = Events::open(&house, path).await;
        reader.until(&format!("data: {before}")).await;
        readers.push((path, after, reader));
    }
    house.node.cards.lock().unwrap()[0].measured.busy_percent = Some(57);
    for (path, after, reader) in &mut readers {
        // Well before pages come again because ages grow.
        let moved = timeout(Duration::from_secs(8), reader.until(after)).await;
        assert!(moved.is_ok(), "{path} stays as it was");
    }
    house.get("/").await.shows("57%");
    house.get("/gpus").await.shows("57 %");
}

/// A reader as browsers are: what comes is packed.
struct Packed {
    body: BodyDataStream,
    all: Vec<u8>,
    /// The largest message, after the first whole one.
    largest: usize,
}

impl Packed {
    async fn open(house: &House, path: &str) -> Self {
        let request =
            Request::get(path).header("accept-encoding", "gzip, deflate, br").header("host", "attic.lan:7443");
        let answer = house.app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.headers()["content-encoding"], "gzip");
        let mut packed = Self { body: answer.into_body().into_data_stream(), all: Vec::new(), largest: 0 };
        // How it begins, how long to wait, and the whole.
        for _ in 0..3 {
            let piece = timeout(DEADLINE, packed.body.next()).await.unwrap().unwrap().unwrap();
            packed.all.extend(piece);
        }
        packed
    }

    /// Reads until nothing comes for a while.
    async fn drain(&mut self) {
        while let Ok(piece) = timeout(Duration::from_millis(700), self.body.next()).await {
            let piece = piece.unwrap().unwrap();
            self.largest = self.largest.max(piece.len());
            self.all.extend(piece);
        }
    }

    /// What a page shows that does with all events as its script does; and how many there were.
    fn shown(&self) -> (String, usize) {
        let mut text = String::new();
        // The stream goes on, so that its end is missing.
        let _ = std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(self.all.as_slice()), &mut text);
        let (mut lines, mut count): (Vec<String>, usize) = (Vec::new(), 0);
        for event in text.split("\n\n") {
            let data: Vec<&str> = event.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
            if event.starts_with("event: fragment") {
                lines = data.iter().map(|line| (*line).to_owned()).collect();
            } else if event.starts_with("event: changes") {
                let changes: Vec<(usize, usize, Vec<String>)> = serde_json::from_str(data[0]).unwrap();
                for (at, gone, come) in changes.into_iter().rev() {
                    lines.splice(at..at + gone, come);
                }
                count += 1;
            }
        }
        (lines.join("\n"), count)
    }
}

#[tokio::test]
async fn what_changes_on_a_full_page_is_a_small_message() {
    const MOST: usize = 5 * 1_024;
    let house = House::new().await;
    for number in 0..110 {
        let name = format!("w-{number:03}");
        house
            .run_up(&name, |spec| {
                spec.replicas = 2;
                spec.env = (0..20).map(|key| (format!("KEY_{key}"), "value ".repeat(8))).collect();
                spec.ports = vec!["8080".parse().unwrap()];
            })
            .await;
    }
    // Rich in what happened, so that lists are full.
    for restarts in 1..=40 {
        let state =
            InstanceState::BackOff { until_ms: now_ms(), reason: format!("it fell over for the {restarts}. time") };
        house.report("w-007", 0, state, restarts).await;
    }
    let paths = ["/live/overview", "/live/workloads", "/live/events", "/live/nodes", "/live/workloads/w-007"];
    let mut streams = Vec::new();
    for path in paths {
        let mut stream = Packed::open(&house, path).await;
        stream.drain().await;
        stream.largest = 0;
        streams.push(stream);
    }
    // A busy while: many things at once, again and again.
    for round in 0..4 {
        for number in 0..12 {
            let name = format!("w-{:03}", (number * 9 + 7) % 108);
            let state = match (round + number) % 3 {
                0 => InstanceState::BackOff { until_ms: now_ms(), reason: format!("code {round} of {name}") },
                1 => InstanceState::Running { pid: 9 + round, since_ms: now_ms() },
                _ => InstanceState::Stopped { exit: None },
            };
            house.report(&name, 1, state, round + 1).await;
        }
        house.ops.power_workload("w-007".parse().unwrap(), toft_model::state::PowerAction::Restart).await.unwrap();
        house.run_up(&format!("new-{round}"), |_| {}).await;
        for stream in &mut streams {
            stream.drain().await;
        }
    }
    for (path, stream) in paths.iter().zip(&streams) {
        let (shown, count) = stream.shown();
        assert!((2..60).contains(&count) || *path == "/live/nodes", "{path}: {count} changes");
        assert!(stream.largest <= MOST, "{path}: {} bytes at once", stream.largest);
        // And it is what somebody sees who comes only now.
        let whole = Packed::open(&house, path).await.shown().0;
        assert!(shown == whole, "{path} shows\n{shown}\ninstead of\n{whole}");
        assert!(whole.len() > 500, "{path}: {whole}");
    }
}

#[tokio::test]
async fn many_changes_become_few_events() {
    let house = House::new().await;
    house.run("web", |_| {}).await;
    let mut events = Events::open(&house, "/live/workloads").await;
    events.until("starting").await;
    let begun = Instant::now();
    for restarts in 1..=200 {
        let state = InstanceState::BackOff { until_ms: now_ms(), reason: format!("try {restarts}.") };
        house.report("web", 0, state, restarts).await;
    }
    let count = events.until("try 200.").await;
    let most = begun.elapsed().as_millis() as usize / 250 + 2;
    assert!(count <= most, "{count} events in {:?}", begun.elapsed());
}

#[tokio::test]
async fn the_overview_and_one_workload_are_live_too() {
    let house = House::new().await;
    let mut overview = Events::open(&house, "/live/overview").await;
    overview.until("Nothing runs yet").await;
    house.run_up("web", |_| {}).await;
    overview.until("<strong>1</strong> running").await;
    let mut one = Events::open(&house, "/live/workloads/web").await;
    one.until("process 4242").await;
    house.report("web", 0, InstanceState::BackOff { until_ms: now_ms(), reason: "it fell over".into() }, 1).await;
    one.until("it fell over").await;
}

#[tokio::test]
async fn logs_go_on_across_restarts_without_repeating_a_line() {
    let house = House::new().await;
    let web = house.run_up("web", |_| {}).await;
    let id = web.instances[0].row.id;
    house.node.write(id, LogStream::Stdout, "before");
    let page = house.get("/workloads/web/logs").await;
    let follow = page.text.split("data-follow=\"").nth(1).unwrap().split('"').next().unwrap();
    let follow = follow.replace("&amp;", "&").replace("&#38;", "&");
    let mut events = Events::open(&house, &follow).await;
    events.next().await;
    house.node.write(id, LogStream::Stderr, "one <b>\u{1b}[1m!");
    let event = events.next().await.unwrap();
    assert!(event.contains("event: lines") && event.contains("line err") && event.contains("!"), "{event}");
    assert!(!event.contains("before") && !event.contains("<b>") && !event.contains('\u{1b}'), "{event}");

    house.report("web", 0, InstanceState::Stopping, 0).await;
    house.report("web", 0, InstanceState::Stopped { exit: None }, 0).await;
    house.report("web", 0, InstanceState::Assigned, 1).await;
    house.report("web", 0, InstanceState::Running { pid: 9, since_ms: now_ms() }, 1).await;
    house.node.write(id, LogStream::Stdout, "two");
    let event = events.next().await.unwrap();
    assert!(event.contains(">two<") && !event.contains("one"), "{event}");
}

#[tokio::test]
async fn what_instances_use_is_on_their_page_and_goes_on() {
    let house = House::new().await;
    house.run_up("web", |_| {}).await;
    house.get("/workloads/web").await.shows("12.3 %").shows("48 MiB of 256 MiB");
    let mut events = Events::open(&house, "/live/workloads/web/usage").await;
    events.until("retry").await;
    let used = r#"data: {"web-0":{"cpu":"12.3 %","memory":"48 MiB of 256 MiB"}}"#;
    assert!(events.next().await.unwrap().contains(used));
    house.report("web", 0, InstanceState::Stopped { exit: None }, 0).await;
    events.until("data: {}").await;
    assert!(!house.get("/workloads/web").await.text.contains("12.3 %"));
    assert_eq!(house.get("/live/workloads/nobody/usage").await.status, axum::http::StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn streams_end_when_the_appliance_does() {
    let house = House::new().await;
    house.run_up("web", |_| {}).await;
    for path in [
        "/live/overview",
        "/live/workloads",
        "/live/workloads/web",
        "/live/workloads/web/logs",
        "/live/workloads/web/usage",
    ] {
        let mut events = Events::open(&house, path).await;
        events.next().await;
        house.shutdown.cancel();
        while events.next().await.is_some() {}
    }
}
