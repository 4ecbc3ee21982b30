//! A dashboard full of things, to be looked at: `TOFT_LOOK=127.0.0.1:8099 cargo test --lib look_at_it -- --ignored`.

use toft_model::{
    instance::InstanceState,
    log::LogStream,
    pull::{LayerProgress, LayerState, PullProgress},
    state::PutMode,
};

use super::house::House;
use crate::control::{ControlError, ErrorKind, node_access::ImagePull, ops::now_ms};

#[tokio::test]
#[ignore = "serves until it is interrupted"]
async fn look_at_it() {
    let address = std::env::var("TOFT_LOOK").unwrap_or_else(|_| "127.0.0.1:8099".into());
    let house = House::new().await;
    if std::env::var_os("TOFT_LOOK_EMPTY").is_none() {
        furnish(&house).await;
    }
    if let Ok(trouble) = std::env::var("TOFT_LOOK_TROUBLE") {
        *house.node.trouble.lock().unwrap() = Some(trouble);
    }
    let listener = tokio::net::TcpListener::bind(&address).await.unwrap();
    axum::serve(listener, house.app.clone()).await.unwrap();
}

/// A pull under way, with layers in every state, and one in vain.
fn pull(house: &House) {
    let states = [
        (3 << 20, LayerState::Done, 3 << 20),
        (412 << 20, LayerState::Unpacking, 412 << 20),
        (28 << 20, LayerState::Downloaded, 28 << 20),
        (2_900 << 20, LayerState::Downloading, 1_250 << 20),
        (180, LayerState::Waiting, 0),
    ];
    let layers = states.iter().enumerate().map(|(i, (size_bytes, state, done_bytes))| LayerProgress {
        digest: format!("sha256:{}", format!("{i}b7{i}0c").repeat(12)),
        size_bytes: *size_bytes,
        done_bytes: *done_bytes,
        state: *state,
        from: None,
    });
    let progress =
        PullProgress { image: "docker.io/library/postgres:17.2".into(), layers: layers.collect(), by_word_of: None };
    house.node.set_pull(ImagePull { progress, failure: None });
    let error =
        ControlError::new(ErrorKind::NotFound, "`ghcr.io` has no repository `org/ap`, or it is not for everybody")
            .hint("check the name, or log in: `toft registry login ghcr.io`");
    let progress = PullProgress { image: "ghcr.io/org/ap:2".into(), ..PullProgress::default() };
    house.node.set_pull(ImagePull { progress, failure: Some((now_ms() - 130_000, error)) });
}

async fn furnish(house: &House) {
    pull(house);
    for (name, size) in [("toft/demo:latest", 3), ("library/nginx:1.29", 71), ("library/postgres:17.2", 151)] {
        house.node.add_image(&format!("docker.io/{name}"), size << 20);
    }
    house.node.add_image("ghcr.io/some-organisation/inference-server-with-a-long-name:v0.11.2-cuda12.8", 7_800 << 20);
    for (name, value) in [
        ("db-password", "x".repeat(24)),
        ("session-key", "y".repeat(64)),
        ("tls-certificate-of-the-house", "z".repeat(3_271)),
    ] {
        house.ops.put_secret(name.parse().unwrap(), value.into_bytes().into(), PutMode::Create).await.unwrap();
    }
    for (instance, workload, hours) in
        [("demo-0", "demo", 2), ("old-blog-0", "old-blog", 30), ("old-blog-1", "old-blog", 31)]
    {
        for line in ["listening on 0.0.0.0:8080", "GET / 200 in 3 ms", "asked to stop; goodbye"] {
            house.node.let_go(instance, workload, hours * 3_600_000, line);
        }
    }
    let demo = house.run_up("demo", |spec| spec.ports = vec!["18080:8080".parse().unwrap()]).await;
    let web = house
        .run_up("web", |spec| {
            spec.image = "nginx:1.29".parse().unwrap();
            spec.replicas = 3;
            spec.ports = vec!["80".parse().unwrap(), "443".parse().unwrap()];
            spec.env = [("MODE".into(), "production".into()), ("TOKEN".into(), "s3cret".into())].into();
            spec.command = vec!["nginx".into(), "-g".into(), "daemon off;".into()];
            spec.resources.memory_bytes = Some(512 << 20);
            spec.resources.cpu_millis = Some(1_500);
            spec.secrets = vec!["db-password".parse().unwrap(), "session-key,target=key,mode=0400".parse().unwrap()];
        })
        .await;
    house.run("inference", |spec| spec.resources.memory_bytes = Some(512 << 30)).await;
    house
        .run("flaky", |spec| {
            spec.image = "ghcr.io/some-organisation/inference-server-with-a-long-name:v0.11.2".parse().unwrap()
        })
        .await;
    let reason = "exited with code 3 after 2s".into();
    house.report("flaky", 0, InstanceState::BackOff { until_ms: now_ms() + 95_000, reason }, 7).await;
    house.run("migrate", |spec| spec.restart = Some("no".parse().unwrap())).await;
    house.fail("migrate", 137).await;
    house.run("postgres", |spec| spec.image = "postgres:17.2".parse().unwrap()).await;
    house.report("postgres", 0, InstanceState::Starting, 0).await;
    house.run("dns", |spec| spec.ports = vec!["5353:53/udp".parse().unwrap(), "5353:53".parse().unwrap()]).await;
    house.post("/workloads/dns/stop", "").await;
    house.report("dns", 0, InstanceState::Stopped { exit: None }, 0).await;
    let long = "x".repeat(300);
    let lines = [
        (LogStream::Stdout, "\u{1b}[32mready\u{1b}[0m on port 8080"),
        (LogStream::Stdout, "GET / 200 in 3 ms"),
        (LogStream::Stderr, "warning: the cache directory is missing, <nothing> is kept & that is fine"),
        (LogStream::Stdout, long.as_str()),
        (LogStream::Stdout, "GET /metrics 200 in 1 ms"),
    ];
    for i in 0..12 {
        for (stream, text) in lines {
            house.node.write(demo.instances[0].row.id, stream, text);
            house.node.write(web.instances[i % 3].row.id, stream, text);
        }
    }
}
