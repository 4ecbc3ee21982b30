//! Images from a registry as people meet them: `toft run` of what is not there, `toft image pull`, `toft image prune`.

use std::time::{Duration, Instant};

use axum::{http::StatusCode, response::IntoResponse};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

use crate::harness::{
    appliance::Appliance,
    image::{Layout, here},
    machine::wait_until,
    registry::{OwnRegistry, held_back},
};

/// An appliance, and a registry on its machine that has the image `app:1`.
struct Scene {
    toft: Appliance,
    registry: OwnRegistry,
    image: String,
    layer: Vec<u8>,
    manifest: Value,
    _guard: DropGuard,
}

fn scene() -> Scene {
    let toft = Appliance::start();
    let (registry, guard) = OwnRegistry::start_on(&toft.machine);
    let mut layout = Layout::new();
    let manifest = layout.image(here(), json!({"Cmd": ["sleep", "600"]}));
    registry.put(&layout, &manifest, "1");
    let (image, layer) = (format!("{}/app:1", registry.address), layout.blobs[0].1.clone());
    Scene { toft, registry, image, layer, manifest, _guard: guard }
}

impl Scene {
    /// From now on layers stop half-way until `true` is sent.
    fn hold_layers(&self) -> watch::Sender<bool> {
        let (release, released) = watch::channel(false);
        let layer = self.layer.clone();
        let digest = crate::harness::image::digest(&layer);
        self.registry.misbehave(move |path, _| path.ends_with(&digest).then(|| held_back(&layer, released.clone())));
        release
    }

    fn manifests_asked(&self) -> usize {
        self.registry.asked().iter().filter(|path| path.contains("/manifests/")).count()
    }
}

#[test]
fn what_is_not_there_is_pulled_once_and_told_how_far_it_is() {
    let s = scene();
    let release = s.hold_layers();
    s.toft.good(&format!("run --no-wait -n web --replicas 5 --network none {}", s.image));
    let first = s.toft.instance_until("web", "tells of the pull", |i| {
        i["reason"].as_str().is_some_and(|reason| reason.starts_with("pulling 0/1 layers, "))
    });
    assert_eq!(first["state"], "starting");
    assert!(s.toft.good("ps").contains("pulling 0/1 layers"), "people see it too");
    let list = s.toft.get("/api/v1/workloads").good();
    let told = list["items"][0]["instances"][0]["reason"].as_str().unwrap_or_default().to_owned();
    assert!(told.starts_with("pulling 0/1 layers"), "so does the list: {list}");
    // Nothing of the progress goes through the log.
    let applied = || s.toft.get("/api/v1/cluster").good()["applied"].as_u64().unwrap();
    let before = wait_until("the starts are settled", || {
        let before = applied();
        std::thread::sleep(Duration::from_secs(2));
        (applied() == before).then_some(before)
    });
    let mut pull = s.toft.client(&["image", "pull", "--json", &s.image]);
    let pulling = std::thread::spawn(move || pull.output().unwrap());
    wait_until("the trail tells of the order", || (applied() == before + 1).then_some(()));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(applied(), before + 1);
    release.send_replace(true);
    let out = String::from_utf8(pulling.join().unwrap().stdout).unwrap();
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["progress"]["layers"][0]["size_bytes"].as_u64().is_some_and(|size| size > 0), "{out}");
    assert_eq!(lines.last().unwrap()["image"]["digest"], s.manifest["digest"], "{out}");
    wait_until("all run", || {
        let web = s.toft.get("/api/v1/workloads/web").good();
        (web["running"] == 5).then_some(())
    });
    assert_eq!(s.manifests_asked(), 1, "one pull for all of them");
}

#[test]
fn an_order_that_changes_does_not_wait_for_the_pull() {
    let s = scene();
    let _release = s.hold_layers();
    s.toft.good(&format!("run --no-wait -n web --network none {}", s.image));
    s.toft.instance_until("web", "is pulled", |i| i["reason"].as_str().is_some_and(|r| r.starts_with("pulling")));
    let began = Instant::now();
    s.toft.good("rm web");
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
}

#[test]
fn a_failed_pull_says_why_and_is_tried_again() {
    let s = scene();
    s.registry.misbehave(|_, _| Some(StatusCode::SERVICE_UNAVAILABLE.into_response()));
    let error = s.toft.toft(&["run", "-n", "web", "--network", "none", &s.image]).bad(125);
    assert!(error.contains("could not be pulled") && error.contains("503"), "{error}");
    wait_until("people see why", || s.toft.good("ps").contains("503").then_some(()));
    let error = s.toft.toft(&["image", "pull", &s.image]).bad(1);
    assert!(error.contains("503"), "{error}");
    let pulls = || s.toft.get("/api/v1/images/pulls").good();
    let told = |text: &str| text.contains("503");
    wait_until("the failure is remembered", || pulls()[0]["error"]["message"].as_str().is_some_and(told).then_some(()));
    s.registry.behave();
    s.toft.instance_until("web", "runs", |i| i["state"] == "running");
    assert_eq!(pulls(), json!([]), "what went well is no failure any more");

    let missing = s.image.replace("app:1", "app:2");
    let error = s.toft.toft(&["image", "pull", &missing]).bad(1);
    assert!(error.contains("the tag `2`") && error.contains("hint:"), "{error}");
    let answer = s.toft.post("/api/v1/images/pull", &json!({"image": "A B"}));
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(s.toft.post("/api/v1/images/pull", &json!({"image": "a", "force": true})).status, 400);
}

#[test]
fn policies_decide_when_the_registry_is_asked() {
    let s = scene();
    let run =
        |name: &str, policy: &str| s.toft.toft(&["run", "-n", name, "--network", "none", "--pull", policy, &s.image]);
    let error = run("a", "never").bad(125);
    assert!(error.contains("is not on this node"), "{error}");
    assert_eq!(s.manifests_asked(), 0);
    s.toft.good("rm a");
    assert_eq!(s.toft.good(&format!("image pull -q {}", s.image)), format!("{}\n", s.image));
    assert_eq!(s.manifests_asked(), 1);
    run("b", "missing").good();
    run("c", "never").good();
    assert_eq!(s.manifests_asked(), 0, "it is there");
    run("d", "always").good();
    assert_eq!(s.manifests_asked(), 1);
    assert_eq!(s.toft.json("inspect d")["spec"]["pull_policy"], "always");
}

#[test]
fn pruning_removes_what_nothing_uses_and_nothing_else() {
    let s = scene();
    s.toft.import_busybox();
    s.toft.good(&format!("run -n web --network none {}", s.image));
    let error = s.toft.toft(&["image", "prune"]).bad(1);
    assert!(error.contains("--yes"), "{error}");
    assert_eq!(s.toft.good("image prune --yes"), "busybox:latest\n");
    assert_eq!(s.toft.good("image ls -q"), format!("{}\n", s.image));
    let error = s.toft.toft(&["image", "rm", &s.image]).bad(1);
    assert!(error.contains("used by `web`"), "{error}");
    s.toft.good("restart web");
    s.toft.good("rm web");
    assert_eq!(s.toft.good("image prune --yes"), format!("{}\n", s.image));
}

#[test]
fn a_disk_that_fills_up_loses_images_that_nothing_uses() {
    let mut s = scene();
    s.toft.good(&format!("image pull {}", s.image));
    s.toft.import_busybox();
    s.toft.good("run -n web --network none busybox -- sleep 600");
    let names = |toft: &Appliance| -> Vec<String> {
        let list = toft.json("image ls --json");
        list.as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap().to_owned()).collect()
    };
    assert!(names(&s.toft).contains(&s.image));
    assert_eq!(s.toft.stop(), 0);
    // Every disk is as full as that.
    let limits = "[images]\ngc_high_percent = 1\ngc_low_percent = 1\n";
    let config = s.toft.data.join("toft.toml");
    std::fs::write(&config, limits).unwrap();
    s.toft.up();
    std::thread::sleep(Duration::from_secs(12));
    assert!(names(&s.toft).contains(&s.image), "it has only just come");
    assert_eq!(s.toft.stop(), 0);
    std::fs::write(&config, format!("{limits}gc_min_age = \"0s\"\n")).unwrap();
    s.toft.up();
    wait_until("what nothing uses is gone", || (!names(&s.toft).contains(&s.image)).then_some(()));
    assert!(names(&s.toft).iter().any(|name| name.contains("busybox")), "what is used stays");
    assert_eq!(s.toft.get("/api/v1/workloads/web").good()["running"], 1);
    assert!(s.toft.log().contains("made room on the disk"), "{}", s.toft.log());
}
