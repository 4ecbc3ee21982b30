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

use super::house::{DEADLINE, House};
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
