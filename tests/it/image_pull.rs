//! Images from registries into a real containerd: from Debian's `docker-registry`, and from one that misbehaves.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde_json::{Value, json};
use toft::agent::{
    image::{
        Login, LoginFiles, Logins, Patience, PullError, PullErrorKind, Pulls, Registries, RegistrySettings, Settings,
        TagWord,
    },
    runtime::{Image, Runtime, containerd::ContainerdRuntime},
};
use toft_model::{image::ImageRef, pull::LayerState};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    harness::{
        containerd::{Connected, Lab},
        image::{self, Layout, busybox_layer, digest, gzip, here},
        registry::{LOGIN, OwnRegistry, Registry, breaks_after},
    },
    image_sizes::layer,
    runtime_conformance::{next_end, spec},
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A way to pack bytes.
type Pack = fn(&[u8]) -> Vec<u8>;
/// Kinds of layers that came late or that their makers keep to themselves.
const FOREIGN_AND_LATE: [(&str, Pack); 7] = [
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", zstd),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar", <[u8]>::to_vec),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", gzip),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar.zstd", zstd),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", <[u8]>::to_vec),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", gzip),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", zstd),
];

struct Given(Option<Login>);

#[async_trait]
impl Logins for Given {
    async fn login(&self, _registry: &str) -> Result<Option<Login>, String> {
        Ok(self.0.clone())
    }
}

pub fn nobody() -> Arc<dyn Logins> {
    Arc::new(Given(None))
}

pub fn login(password: &str) -> Arc<dyn Logins> {
    Arc::new(Given(Some(Login { username: LOGIN.0.to_owned(), password: password.to_owned().into() })))
}

/// Settings that lose no time.
pub fn quick() -> Settings {
    let patience = Patience { tries: 3, first_wait: Duration::from_millis(5), silence: Duration::from_secs(5) };
    Settings { patience, ..Settings::default() }
}

/// What pulls into a containerd.
pub struct Node {
    pub pulls: Pulls,
    _stop: DropGuard,
}

pub fn node(runtime: &Connected, settings: Settings, logins: Arc<dyn Logins>) -> Node {
    node_with(runtime, Registries::new(settings, logins))
}

pub fn node_with(runtime: &Connected, registries: Registries) -> Node {
    let (pulls, puller) = Pulls::new(runtime.runtime.clone(), registries);
    let stop = CancellationToken::new();
    tokio::spawn(puller.run(stop.clone()));
    Node { pulls, _stop: stop.drop_guard() }
}

impl Node {
    pub async fn pull(&self, name: &str) -> Result<Image, PullError> {
        let image: ImageRef = name.parse().unwrap();
        tokio::time::timeout(Duration::from_secs(60), self.pulls.pull(&image, TagWord::RegistryOrNode))
            .await
            .expect("the pull ends")
    }

    pub async fn refuses(&self, name: &str, kind: PullErrorKind, words: &str) -> PullError {
        let error = self.pull(name).await.expect_err(words);
        assert_eq!(error.kind, kind, "{error}");
        let text = format!("{error} {}", error.hint.as_deref().unwrap_or_default());
        assert!(text.contains(words), "`{words}` is not in: {text}");
        error
    }
}

/// That the image of that name runs.
pub async fn runs(lab: &Lab, runtime: &ContainerdRuntime, name: &str) {
    let mut spec = spec(&["cat", "/etc/group"]);
    spec.image = name.parse().unwrap();
    let mut events = runtime.events();
    runtime.create_container(&spec).await.unwrap();
    runtime.create_task(spec.id, &lab.logger()).await.unwrap();
    runtime.start_task(spec.id).await.unwrap();
    assert_eq!(next_end(&mut events, spec.id).await.code, Some(0));
    runtime.delete_task(spec.id).await.unwrap();
    runtime.delete_container(spec.id).await.unwrap();
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut packing =
        Command::new("zstd").args(["-q", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = packing.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let out = packing.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(out.status.success());
    out.stdout
}

/// An image of layers as they are, packed or not: kind, packed bytes, digest unpacked.
pub fn layered(layout: &mut Layout, architecture: &str, layers: &[(&str, Vec<u8>, String)]) -> Value {
    let diff_ids: Vec<&String> = layers.iter().map(|(_, _, unpacked)| unpacked).collect();
    let config = json!({"architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let layers: Vec<Value> = layers.iter().map(|(kind, bytes, _)| layout.blob(kind, bytes.clone())).collect();
    let config = layout.blob(CONFIG, serde_json::to_vec(&config).unwrap());
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    layout.blob(MANIFEST, serde_json::to_vec(&manifest).unwrap())
}

/// A layer with one file of noise, which no packing makes smaller.
pub fn noise(name: &str, bytes: usize) -> (&'static str, Vec<u8>, String) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ name.len() as u64 ^ digest(name.as_bytes()).as_bytes()[9] as u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(bytes)
    .collect();
    let layer = image::tar(&[(format!("srv/{name}"), noise)]);
    (GZIP, gzip(&layer), digest(&layer))
}

pub fn bottom() -> (&'static str, Vec<u8>, String) {
    let layer = busybox_layer();
    (GZIP, gzip(&layer), digest(&layer))
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_from_a_real_registry_with_and_without_a_password() {
    let lab = Lab::start().await;
    let runtime = lab.connect().await;
    let mut layout = Layout::new();
    let other = if here() == "amd64" { "arm64" } else { "amd64" };
    let mine = layout.image(here(), json!({"Env": ["PATH=/bin"]}));
    let foreign = layout.image(other, json!({"Env": ["OTHER=1"]}));
    let index = layout.index(&[(foreign, other), (mine, here())]);
    let index_digest = index["digest"].as_str().unwrap().to_owned();
    layout.name(index, image::REF_NAME, "multi");

    let open = Registry::open();
    open.push(&layout.archive(), "team/multi:1");
    let name = format!("{}/team/multi:1", open.address);
    let anybody = node(&runtime, quick(), nobody());
    let pulled = anybody.pull(&name).await.unwrap();
    assert_eq!((pulled.name.as_str(), pulled.digest.as_str()), (name.as_str(), index_digest.as_str()));
    assert_eq!(pulled.platform, format!("linux/{}", here()));
    runs(&lab, &runtime.runtime, &name).await;
    let pinned = format!("{}/team/multi@{index_digest}", open.address);
    assert_eq!(anybody.pull(&pinned).await.unwrap().digest, index_digest);
    anybody.refuses(&format!("{}/team/multi:2", open.address), PullErrorKind::NoSuchImage, "the tag `2`").await;
    assert!(runtime.runtime.remove_image(&pinned.parse().unwrap()).await.unwrap());

    let closed = Registry::with_password();
    closed.push(&layout.archive(), "team/multi:1");
    let name = format!("{}/team/multi:1", closed.address);
    let untrusted = anybody.refuses(&name, PullErrorKind::Denied, "ca_file").await;
    assert!(untrusted.reason.contains("nobody here trusts"), "{untrusted}");
    let mut trusting = quick();
    let settings = RegistrySettings { ca_file: Some(closed.certificate()), ..RegistrySettings::default() };
    trusting.registries.insert(closed.address.to_string(), settings);
    node(&runtime, trusting.clone(), nobody()).refuses(&name, PullErrorKind::Denied, "password_file").await;
    let stranger = node(&runtime, trusting.clone(), login("wrong"));
    let refused = stranger.refuses(&name, PullErrorKind::Denied, "refuses the login of `keeper`").await;
    assert!(!format!("{refused:?}").contains("wrong"), "the password is told: {refused:?}");
    let file = lab.dir.join("password");
    let settings = trusting.registries.get_mut(&closed.address.to_string()).unwrap();
    settings.login = Some((LOGIN.0.to_owned(), file.clone()));
    let by_file = node(&runtime, trusting.clone(), Arc::new(LoginFiles(trusting.clone())));
    by_file.refuses(&name, PullErrorKind::Denied, "cannot be had from").await;
    std::fs::write(&file, format!("{}\n", LOGIN.1)).unwrap();
    assert_eq!(by_file.pull(&name).await.unwrap().digest, index_digest);
    assert!(runtime.runtime.remove_image(&name.parse().unwrap()).await.unwrap());
    assert_eq!(node(&runtime, trusting, login(LOGIN.1)).pull(&name).await.unwrap().digest, index_digest);
    runs(&lab, &runtime.runtime, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_every_kind_are_pulled_once_and_other_things_are_refused() {
    let lab = Lab::start().await;
    let runtime = lab.connect().await;
    let registry = OwnRegistry::start().await;
    let node = node(&runtime, quick(), nobody());
    let name = |tag: &str| format!("{}/a:{tag}", registry.address);

    let plain = busybox_layer();
    let more = image::tar(&[("srv/more".to_owned(), b"more".to_vec())]);
    let mut layers = vec![
        ("application/vnd.oci.image.layer.v1.tar+zstd", zstd(&plain), digest(&plain)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip(&more), digest(&more)),
    ];
    for (kind, compress) in FOREIGN_AND_LATE {
        let layer = image::tar(&[(format!("srv/{}", digest(kind.as_bytes())), kind.as_bytes().to_vec())]);
        layers.push((kind, compress(&layer), digest(&layer)));
    }
    for number in 0..31 {
        let layer = image::tar(&[(format!("srv/{number}"), vec![b'x'; 100])]);
        layers.push(("application/vnd.oci.image.layer.v1.tar", layer.clone(), digest(&layer)));
    }
    let mut layout = Layout::new();
    let target = layered(&mut layout, here(), &layers);
    registry.put(&layout, &target, "mixed");
    // Many ask at once, and one pull serves them all.
    let (mixed, asking) = (name("mixed"), (0..20).collect::<Vec<_>>());
    let all = futures_util::future::join_all(asking.iter().map(|_| node.pull(&mixed))).await;
    assert!(all.iter().all(|pulled| pulled.as_ref().is_ok_and(|image| image.digest == target["digest"])), "{all:?}");
    let mut asked = registry.asked();
    asked.retain(|path| path.contains("/blobs/") || path.contains("/manifests/"));
    assert_eq!(asked.len(), 42, "a manifest, a config and 40 layers, once each: {asked:#?}");
    runs(&lab, &runtime.runtime, &name("mixed")).await;

    // Pulled again, only what is new is fetched.
    layers.push(noise("new", 1000));
    let mut layout = Layout::new();
    let target = layered(&mut layout, here(), &layers);
    registry.put(&layout, &target, "mixed");
    assert_eq!(node.pull(&name("mixed")).await.unwrap().digest, target["digest"].as_str().unwrap());
    assert_eq!(registry.asked().iter().filter(|path| path.contains("/blobs/")).count(), 2, "a config and a layer");
    runs(&lab, &runtime.runtime, &name("mixed")).await;

    for (kind, words) in [("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "unknown kind"), ("", "unknown kind")]
    {
        let mut layout = Layout::new();
        let target = layered(&mut layout, here(), &[(kind, gzip(&more), digest(&more))]);
        registry.put(&layout, &target, "foreign");
        node.refuses(&name("foreign"), PullErrorKind::Unusable, words).await;
    }
    // A registry need not have a layer that is foreign.
    let absent = image::tar(&[("srv/absent".to_owned(), b"absent".to_vec())]);
    let mut layout = Layout::new();
    let target = layered(&mut layout, here(), &[(FOREIGN_AND_LATE[2].0, gzip(&absent), digest(&absent))]);
    layout.blobs.retain(|(path, _)| !path.ends_with(digest(&gzip(&absent)).trim_start_matches("sha256:")));
    registry.put(&layout, &target, "elsewhere");
    node.refuses(&name("elsewhere"), PullErrorKind::BadContent, "need not hand out layers of the kind").await;
    let mut layout = Layout::new();
    let target = layered(&mut layout, "s390x", &[bottom()]);
    registry.put(&layout, &target, "other");
    node.refuses(&name("other"), PullErrorKind::Unusable, "made for linux/s390x").await;
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    registry.put_manifest(old, br#"{"schemaVersion":1,"config":{"digest":"x","size":1}}"#, "old");
    node.refuses(&name("old"), PullErrorKind::Unusable, "too old").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_pull_goes_on_where_it_broke_off() {
    let lab = Lab::start().await;
    let runtime = lab.connect().await;
    let registry = OwnRegistry::start().await;
    let node = node(&runtime, quick(), nobody());
    let name = format!("{}/big:1", registry.address);
    let big = noise("big", 6 << 20);
    let mut layout = Layout::new();
    let target = layered(&mut layout, here(), &[bottom(), big.clone()]);
    registry.put(&layout, &target, "1");
    let path = format!("/v2/big/blobs/{}", digest(&big.1));

    // Every answer breaks off after a MiB; what came is not asked for again.
    let (bytes, wanted) = (big.1.clone(), path.clone());
    registry.misbehave(move |path, headers| {
        let range = headers.get(header::RANGE).map_or("bytes=0-", |range| range.to_str().unwrap());
        let from: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
        (path == wanted).then(|| {
            let mut answer = breaks_after(&bytes[from..], (1 << 20).min(bytes.len() - from));
            if from > 0 {
                *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
                let told = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                answer.headers_mut().insert(header::CONTENT_RANGE, told.parse().unwrap());
            }
            answer
        })
    });
    node.pull(&name).await.unwrap();
    let ranges: Vec<String> = registry.asked().into_iter().filter(|asked| asked.starts_with(&path)).collect();
    assert!(ranges.len() >= 6 && ranges[1].ends_with("bytes=1048576-"), "{ranges:?}");
    assert!(runtime.runtime.remove_image(&name.parse().unwrap()).await.unwrap());

    // The registry dies for good in the middle: told as such, and another pull later goes on from there.
    let big = noise("other", 3 << 20);
    let mut layout = Layout::new();
    let target = layered(&mut layout, here(), &[bottom(), big.clone()]);
    registry.put(&layout, &target, "1");
    let path = format!("/v2/big/blobs/{}", digest(&big.1));
    let (bytes, wanted, mut first) = (big.1.clone(), path.clone(), true);
    registry.misbehave(move |path, _| {
        (path == wanted).then(|| match std::mem::take(&mut first) {
            true => breaks_after(&bytes, 2 << 20),
            false => StatusCode::BAD_GATEWAY.into_response(),
        })
    });
    node.refuses(&name, PullErrorKind::Busy, "502").await;
    registry.behave();
    registry.asked();
    node.pull(&name).await.unwrap();
    let ranges: Vec<String> = registry.asked().into_iter().filter(|asked| asked.starts_with(&path)).collect();
    assert_eq!(ranges, [format!("{path} bytes=2097152-")]);
    runs(&lab, &runtime.runtime, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registry_may_die_in_the_middle_and_come_back() {
    let lab = Lab::start().await;
    let runtime = lab.connect().await;
    let mut registry = Registry::open();
    let (packed, unpacked) = layer(1 << 20, 96 << 20);
    let mut layout = Layout::new();
    let target = layered(&mut layout, here(), &[bottom(), (GZIP, packed, unpacked)]);
    layout.name(target.clone(), image::REF_NAME, "large");
    registry.push(&layout.archive(), "large:1");
    let image: ImageRef = format!("{}/large:1", registry.address).parse().unwrap();
    let node = node(&runtime, Settings::default(), nobody());
    let mut pulling = node.pulls.begin(&image, TagWord::RegistryOrNode).unwrap();
    // More than nothing has come, and not all.
    let middle = pulling.wait_for(|status| {
        let layer = status.progress.layers.get(1);
        status.end.is_some() || layer.is_some_and(|layer| layer.done_bytes > 4 << 20)
    });
    let middle = tokio::time::timeout(Duration::from_secs(30), middle).await.unwrap().unwrap().clone();
    registry.kill();
    assert!(middle.end.is_none() && middle.progress.layers[1].state == LayerState::Downloading, "{middle:?}");
    registry.restart();
    assert_eq!(node.pull(image.as_str()).await.unwrap().digest, target["digest"].as_str().unwrap());
    runs(&lab, &runtime.runtime, image.as_str()).await;

    // One that stays away is told of as such, and what has come waits for it.
    assert!(runtime.runtime.remove_image(&image).await.unwrap());
    registry.kill();
    node.refuses(image.as_str(), PullErrorKind::Unreachable, "cannot be reached").await;
    registry.restart();
    node.pull(image.as_str()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_registry_is_seen_through_and_leaves_nothing_behind() {
    let lab = Lab::start().await;
    let runtime = lab.connect().await;
    let registry = OwnRegistry::start().await;
    let address = registry.address;
    let node = node(&runtime, quick(), nobody());
    let name = format!("{address}/a:1");
    let mut layout = Layout::new();
    let target = layered(&mut layout, here(), &[bottom(), noise("x", 700_000)]);
    registry.put(&layout, &target, "1");
    let layer = digest(&noise("x", 700_000).1);
    let at = |part: &str| {
        let part = part.to_owned();
        move |path: &str| path.contains(&part)
    };

    // Another blob of the same length under the digest, whatever was asked before.
    let (is_layer, mut wrong) = (at(&layer), noise("x", 700_000).1);
    wrong[600_000] ^= 1;
    registry.misbehave(move |path, _| is_layer(path).then(|| wrong.clone().into_response()));
    node.refuses(&name, PullErrorKind::BadContent, "something else under the digest").await;
    // An endless body, without and with a length that says so.
    let is_layer = at(&layer);
    registry.misbehave(move |path, _| {
        is_layer(path).then(|| {
            let piece = || Ok::<_, std::io::Error>(axum::body::Bytes::from(vec![0_u8; 64 << 10]));
            axum::body::Body::from_stream(futures_util::stream::repeat_with(piece)).into_response()
        })
    });
    node.refuses(&name, PullErrorKind::BadContent, "something else under the digest").await;
    let is_layer = at(&layer);
    registry.misbehave(move |path, _| is_layer(path).then(|| vec![0_u8; 900_000].into_response()));
    node.refuses(&name, PullErrorKind::BadContent, "900000 bytes instead of").await;
    // A blob that is always too short, and one that is not there.
    let (is_layer, short) = (at(&layer), noise("x", 700_000).1);
    registry.misbehave(move |path, _| is_layer(path).then(|| breaks_after(&short, 1000)));
    node.refuses(&name, PullErrorKind::Unreachable, "broke off").await;
    let is_layer = at(&layer);
    registry.misbehave(move |path, _| is_layer(path).then(|| StatusCode::NOT_FOUND.into_response()));
    node.refuses(&name, PullErrorKind::BadContent, "lacks a part").await;
    // A config that is another.
    let is_config = at(layout.blobs.iter().rev().nth(1).unwrap().0.rsplit('/').next().unwrap());
    registry.misbehave(move |path, _| is_config(path).then(|| StatusCode::NOT_FOUND.into_response()));
    node.refuses(&name, PullErrorKind::BadContent, "lacks a part").await;

    // Manifests that are none.
    registry.behave();
    for (kind, text, words) in [
        (MANIFEST, "[".repeat(100_000), "cannot be read"),
        (MANIFEST, " ".repeat(5 << 20), "larger than 4 MiB"),
        (MANIFEST, format!(r#"{{"mediaType":"{INDEX}","manifests":[]}}"#), "two kinds at once"),
        (INDEX, r#"{"manifests":[{"digest":"../../etc/passwd","size":1}]}"#.to_owned(), "no digest"),
        (
            MANIFEST,
            format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"{CONFIG}","digest":"x","size":1}}}}"#),
            "no digest",
        ),
    ] {
        registry.put_manifest(kind, text.as_bytes(), "bad");
        node.refuses(&format!("{address}/a:bad"), PullErrorKind::BadContent, words).await;
    }
    let mut layout = Layout::new();
    let layers = vec![bottom(); 600];
    let target = layered(&mut layout, here(), &layers);
    registry.put(&layout, &target, "deep");
    node.refuses(&format!("{address}/a:deep"), PullErrorKind::Unusable, "600 layers").await;
    // Another manifest than the one the reference is pinned to.
    let pinned = format!("{address}/a@sha256:{}", "0".repeat(64));
    registry.misbehave(|path, _| {
        path.contains("/manifests/").then(|| ([(header::CONTENT_TYPE, MANIFEST)], "{}").into_response())
    });
    node.refuses(&pinned, PullErrorKind::BadContent, "that is not `sha256:000").await;

    // Redirects without an end, and to places nobody should follow to.
    registry.misbehave(move |path, _| Some((StatusCode::FOUND, [(header::LOCATION, path.to_owned())]).into_response()));
    node.refuses(&name, PullErrorKind::BadAnswer, "more than 5 times").await;
    for place in ["file:///etc/passwd", "", "http://name:word@127.0.0.1/"] {
        registry.misbehave(move |path, _| {
            (path != "/v2/").then(|| (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, place)]).into_response())
        });
        node.refuses(&name, PullErrorKind::BadAnswer, "redirects").await;
    }
    // Answers that come and go, and ones that stay; a wait that is asked for is not endless.
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    registry.misbehave(move |path, _| {
        let busy = path.contains("/manifests/") && counted.fetch_add(1, Ordering::Relaxed) < 2;
        busy.then(|| (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "0")]).into_response())
    });
    node.pull(&name).await.unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 3);
    runs(&lab, &runtime.runtime, &name).await;
    registry.misbehave(|_, _| Some(StatusCode::INTERNAL_SERVER_ERROR.into_response()));
    node.refuses(&name, PullErrorKind::Busy, "500").await;
    let told = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\u001b[31m down"}]}"#;
    registry.misbehave(move |_, _| Some((StatusCode::TOO_MANY_REQUESTS, told).into_response()));
    let busy = node.refuses(&name, PullErrorKind::Busy, "slow[31m down").await;
    assert!(!busy.to_string().contains('\u{1b}'));
    // Bearer tokens: a realm without an end, and one that answers with rubbish.
    registry.misbehave(move |path, _| match path.starts_with("/token") {
        true => Some("no token".into_response()),
        false => {
            let realm = format!("Bearer realm=\"http://{address}/token\",service=\"x\"");
            Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm)]).into_response())
        }
    });
    node.refuses(&name, PullErrorKind::BadAnswer, "hands out no token").await;
    registry.misbehave(move |path, headers| {
        if path.starts_with("/token") {
            assert!(path.contains("scope=repository:a:pull"), "{path}");
            return Some(r#"{"access_token":"t0ken"}"#.into_response());
        }
        let known = headers.get(header::AUTHORIZATION).is_some_and(|value| value == "Bearer t0ken");
        let realm = format!("Bearer realm=\"http://{address}/token\",service=\"x\"");
        (!known).then(|| (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm)]).into_response())
    });
    node.pull(&name).await.unwrap();

    // Nothing of all that is left: one image, and nothing half done.
    let images = runtime.runtime.images().await.unwrap();
    assert_eq!(images.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), [name.as_str()]);
    node.refuses("127.0.0.1:1/a:1", PullErrorKind::Unreachable, "cannot be reached").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_and_missed_without_harm() {
    let lab = Lab::start().await;
    let runtime = lab.connect().await;
    let (mirror, home) = (OwnRegistry::start().await, OwnRegistry::start().await);
    let mut layout = Layout::new();
    let target = layered(&mut layout, here(), &[bottom()]);
    home.put(&layout, &target, "1");
    mirror.put(&layout, &target, "1");
    let mut settings = quick();
    let mirrors = vec!["127.0.0.1:1".to_owned(), mirror.address.to_string()];
    settings.registries.insert(home.address.to_string(), RegistrySettings { mirrors, ..Default::default() });
    let node = node(&runtime, settings, nobody());
    let name = format!("{}/a:1", home.address);
    node.pull(&name).await.unwrap();
    assert_eq!(home.asked(), [] as [String; 0], "the mirror had all");
    assert!(runtime.runtime.remove_image(&name.parse().unwrap()).await.unwrap());
    mirror.misbehave(|_, _| Some(StatusCode::INTERNAL_SERVER_ERROR.into_response()));
    node.pull(&name).await.unwrap();
    assert!(!home.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fake_runtime_pulls_as_a_real_one_does() {
    let registry = OwnRegistry::start().await;
    let mut layout = Layout::new();
    let target = layered(&mut layout, here(), &[bottom()]);
    registry.put(&layout, &target, "1");
    let lab = Lab::start().await;
    let real = lab.connect().await;
    let fake = toft::agent::runtime::fake::FakeRuntime::new();
    let subjects: [Arc<dyn Runtime>; 2] = [real.runtime.clone(), Arc::new(fake)];
    for runtime in subjects {
        let (pulls, puller) = Pulls::new(runtime.clone(), Registries::new(quick(), nobody()));
        let stop = CancellationToken::new();
        let pulling = tokio::spawn(puller.run(stop.clone()));
        let name: ImageRef = format!("{}/a:1", registry.address).parse().unwrap();
        let pulled = pulls.pull(&name, TagWord::Registry).await.unwrap();
        assert_eq!(pulled.digest, target["digest"].as_str().unwrap());
        assert_eq!(
            pulls.pull(&name, TagWord::Registry).await.unwrap().digest,
            pulled.digest,
            "pulling twice changes nothing"
        );
        assert_eq!(runtime.images().await.unwrap().len(), 1);
        assert_eq!(pulls.progress(&name), None, "what ended is not under way");
        let missing = format!("{}/a:2", registry.address).parse().unwrap();
        let error = pulls.pull(&missing, TagWord::Registry).await.unwrap_err();
        assert_eq!(error.kind, PullErrorKind::NoSuchImage, "{error}");
        assert_eq!(runtime.images().await.unwrap(), [pulled]);
        stop.cancel();
        pulling.await.unwrap();
        assert_eq!(pulls.pull(&name, TagWord::Registry).await.unwrap_err().kind, PullErrorKind::Cancelled);
    }
}
