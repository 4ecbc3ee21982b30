//! What only a real containerd shows: images of every make, hostile archives, a containerd that dies, a daemon that
//! comes back, a machine that was switched off.

use std::{fs, io::Cursor, path::PathBuf, process::Command, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use toft::agent::runtime::{
    Availability, ContainerSpec, Image, NetworkNamespace, Runtime, RuntimeError, RuntimeEvent, TaskState,
    supervisor::find_running,
};
use toft_model::{ids::InstanceId, workload::Resources};

use crate::{
    harness::{
        containerd::{Disk, Lab, wait_up},
        image::{self, FULL_NAME, Layout, REF_NAME},
        slowness,
    },
    runtime_conformance::{next_end, spec, state},
};

const SIGKILL: i32 = 9;

async fn import(runtime: &dyn Runtime, archive: Vec<u8>, name: Option<&str>) -> Result<Vec<Image>, RuntimeError> {
    let name = name.map(|name| name.parse().unwrap());
    runtime.import_image(Box::new(Cursor::new(archive)), name.as_ref()).await
}

fn plain() -> Vec<u8> {
    image::busybox("busybox", json!({"Cmd": ["sh"]}))
}

/// Runs a container to its end; gives its exit code and what it wrote to stdout and stderr.
async fn run(lab: &Lab, runtime: &dyn Runtime, spec: &ContainerSpec) -> (Option<i32>, String, String) {
    let mut events = runtime.events();
    runtime.create_container(spec).await.unwrap();
    runtime.create_task(spec.id, &lab.logger()).await.unwrap();
    runtime.start_task(spec.id).await.unwrap();
    let exit = next_end(&mut events, spec.id).await;
    assert_eq!(runtime.delete_task(spec.id).await.unwrap(), Some(exit));
    runtime.delete_container(spec.id).await.unwrap();
    let read = |what: &str| fs::read_to_string(lab.dir.join(format!("{}.{what}", spec.id))).unwrap();
    (exit.code, read("out"), read("err"))
}

async fn running(lab: &Lab, runtime: &dyn Runtime, command: &[&str]) -> InstanceId {
    let spec = spec(command);
    runtime.create_container(&spec).await.unwrap();
    runtime.create_task(spec.id, &lab.logger()).await.unwrap();
    runtime.start_task(spec.id).await.unwrap();
    spec.id
}

/// Everything in the content store and the snapshotter.
fn store(lab: &Lab) -> Vec<String> {
    let mut found = Vec::new();
    for args in [&["content", "ls", "-q"][..], &["snapshots", "ls"], &["leases", "ls", "-q"]] {
        let output = Command::new("ctr")
            .arg("-a")
            .arg(lab.supervisor.address())
            .args(["-n", &lab.name])
            .args(args)
            .output()
            .expect("ctr is installed");
        found.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
    }
    found
}

/// Waits until the store is as it was; a collection that runs already may miss what comes last.
async fn settles(lab: &Lab, before: &[String]) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while store(lab) != before {
        assert!(std::time::Instant::now() < deadline, "something is left: {:?}", store(lab));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_is_what_the_order_says() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    import(runtime, plain(), None).await.unwrap();
    let script = "echo $A $HOSTNAME; id -u; cat /etc/hosts; echo oops >&2; echo x >/etc/hosts; exit 3";
    let hosts = lab.dir.join("hosts");
    fs::write(&hosts, "1.2.3.4 there\n").unwrap();
    let order = ContainerSpec {
        env: [("A".to_owned(), "b c".to_owned())].into(),
        files: [(PathBuf::from("/etc/hosts"), hosts)].into(),
        resources: Resources { cpu_millis: Some(500), memory_bytes: Some(64 << 20), ..Resources::default() },
        network: NetworkNamespace::Host,
        ..spec(&["sh", "-c", script])
    };
    let (code, out, err) = run(&lab, runtime, &order).await;
    assert_eq!((code, out.as_str()), (Some(3), "b c box\n0\n1.2.3.4 there\n"));
    assert!(err.starts_with("oops\n") && err.contains("Read-only"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_control_groups_are_in_force() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    import(runtime, plain(), None).await.unwrap();
    let mut events = runtime.events();
    // dd fills its buffer, which is larger than the limit; the shim begins to watch for that a moment after the start.
    let order = ContainerSpec {
        resources: Resources { cpu_millis: Some(500), memory_bytes: Some(16 << 20), ..Resources::default() },
        ..spec(&["sh", "-c", "sleep 2; dd if=/dev/zero of=/dev/null bs=64M count=1; sleep 1000"])
    };
    runtime.create_container(&order).await.unwrap();
    runtime.create_task(order.id, &lab.logger()).await.unwrap();
    let groups = lab.control_groups();
    assert!(groups.iter().any(|group| group.join(order.id.to_string()).is_dir()), "{groups:?}");
    runtime.start_task(order.id).await.unwrap();
    let oom = async { while events.recv().await.unwrap() != (RuntimeEvent::OutOfMemory { id: order.id }) {} };
    tokio::time::timeout(Duration::from_secs(20) * slowness(), oom).await.expect("the kill is told");
    let mut events = runtime.events();
    runtime.signal_task(order.id, SIGKILL).await.unwrap();
    next_end(&mut events, order.id).await;
    runtime.delete_task(order.id).await.unwrap();
    runtime.delete_container(order.id).await.unwrap();
    assert!(!groups.iter().any(|group| group.join(order.id.to_string()).is_dir()), "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_looked_up_in_the_image() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    for (user, want) in [("web", "uid=1000(web) gid=1001(web) groups=1001(web),1002(log)\n"), ("7:8", "uid=7 gid=8")] {
        import(runtime, image::busybox("busybox", json!({"User": user})), None).await.unwrap();
        let (code, out, _) = run(&lab, runtime, &spec(&["id"])).await;
        assert_eq!(code, Some(0));
        assert!(out.starts_with(want.trim_end()), "{out}");
    }
    import(runtime, image::busybox("busybox", json!({"User": "nobody"})), None).await.unwrap();
    let error = runtime.create_container(&spec(&["id"])).await.unwrap_err();
    assert!(error.to_string().contains("`nobody` is not in its /etc/passwd"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_word_reaches_the_logger_before_the_process_is_removed() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    import(runtime, plain(), None).await.unwrap();
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    let order = spec(&["sh", "-c", script]);
    let (_, out, _) = run(&lab, runtime, &order).await;
    assert_eq!(out.lines().count(), 20_000);
    assert_eq!(out.lines().last(), Some("line 19999"));
    assert!(lab.dir.join(format!("{}.done", order.id)).exists(), "the logger had ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_every_make_are_imported() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    // docker save, old layout, plain and gzip.
    let saved = image::docker_save("toft/saved:v1");
    let images = import(runtime, saved.clone(), None).await.unwrap();
    assert_eq!(images[0].name, "docker.io/toft/saved:v1");
    assert_eq!(import(runtime, image::gzip(&saved), None).await.unwrap(), images);
    let order = ContainerSpec { image: "toft/saved:v1".parse().unwrap(), ..spec(&["cat", "/srv/marker"]) };
    assert_eq!(run(&lab, runtime, &order).await.1, "here");
    // Several platforms, everything there: the name stands for the index.
    let mut layout = Layout::new();
    let (ours, foreign) = (layout.image(image::here(), json!({})), layout.image("riscv64", json!({})));
    let index = layout.index(&[(foreign.clone(), "riscv64"), (ours.clone(), image::here())]);
    layout.name(index.clone(), REF_NAME, "toft/many:v1");
    let images = import(runtime, layout.archive(), None).await.unwrap();
    assert_eq!((images[0].name.as_str(), &json!(images[0].digest)), ("docker.io/toft/many:v1", &index["digest"]));
    // The other platform's manifest is missing: the name stands for ours.
    let missing = foreign["digest"].as_str().unwrap().replace(':', "/");
    layout.blobs.retain(|(path, _)| !path.ends_with(&missing));
    let images = import(runtime, layout.archive(), None).await.unwrap();
    assert_eq!(json!(images[0].digest), index["digest"], "what an earlier import brought is there still");
    assert!(runtime.remove_image(&"toft/many:v1".parse().unwrap()).await.unwrap());
    // A bare tag is no name.
    let mut layout = Layout::new();
    let manifest = layout.image(image::here(), json!({"Cmd": ["sh"]}));
    layout.name(manifest, REF_NAME, "latest");
    let error = import(runtime, layout.archive(), None).await.unwrap_err();
    assert!(error.to_string().contains("`latest`"), "{error}");
    let images = import(runtime, layout.archive(), Some("mine")).await.unwrap();
    assert_eq!(images[0].name, "docker.io/library/mine:latest");
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_skopeo_writes_are_imported() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let mut layout = Layout::new();
    let manifest = layout.image(image::here(), json!({"Cmd": ["sh"]}));
    layout.name(manifest, REF_NAME, "toft/skopeo:v1");
    let from = lab.dir.join("from.tar");
    fs::write(&from, layout.archive()).unwrap();
    for (kind, name) in [("docker-archive", "docker.io/toft/d:v1"), ("oci-archive", "docker.io/toft/o:v1")] {
        let to = lab.dir.join(kind);
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy"])
            .arg(format!("oci-archive:{}", from.display()))
            .arg(format!("{kind}:{}:{name}", to.display()))
            .output()
            .expect("skopeo is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let images = import(&*connected.runtime, fs::read(&to).unwrap(), None).await.unwrap();
        assert_eq!(images[0].name, name);
        let order = ContainerSpec { image: name.parse().unwrap(), ..spec(&["echo", kind]) };
        assert_eq!(run(&lab, &*connected.runtime, &order).await.1.trim(), kind);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_archives_are_refused_with_a_reason_and_leave_nothing() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    let before = store(&lab);
    let good = || {
        let mut layout = Layout::new();
        let manifest = layout.image(image::here(), json!({}));
        layout.name(manifest, FULL_NAME, "x");
        layout
    };
    let with_index = |index: Vec<u8>| {
        let mut files = good().blobs;
        files.push(("index.json".into(), index));
        image::tar(&files)
    };
    let spoiled = |change: &dyn Fn(&mut Layout)| {
        let mut layout = good();
        change(&mut layout);
        layout.archive()
    };
    let foreign = {
        let mut layout = Layout::new();
        let manifest = layout.image("riscv64", json!({}));
        layout.name(manifest, FULL_NAME, "x");
        layout.archive()
    };
    let swapped = {
        let mut layout = Layout::new();
        let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", image::busybox_layer());
        let config = json!({"architecture": image::here(), "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [image::digest(b"another")]}});
        let config = layout.blob("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let manifest = layout.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
        layout.name(manifest, FULL_NAME, "x");
        layout.archive()
    };
    let whole = good().archive();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("middle of", whole[..whole.len() / 2].to_vec()),
        ("does not hold what its name says", spoiled(&|l| l.blobs[0].1[100] ^= 1)),
        ("not named like a blob", spoiled(&|l| l.blobs.push(("blobs/sha256/x".into(), vec![1])))),
        ("is missing", spoiled(&|l| drop(l.blobs.remove(0)))),
        ("is missing", spoiled(&|l| drop(l.blobs.pop()))),
        ("larger than 4 MiB", with_index(vec![b' '; (4 << 20) + 1])),
        ("`index.json` cannot be read", with_index(b"{".to_vec())),
        ("no image in it", with_index(b"{}".to_vec())),
        ("neither an `index.json`", image::tar(&[("a.txt".to_owned(), b"hello".to_vec())])),
        ("made for linux/riscv64", foreign),
        ("something else than its config says", swapped),
        ("named wrongly", spoiled(&|l| l.manifests[0]["annotations"][FULL_NAME] = Value::from("A B"))),
        ("has no name", spoiled(&|l| drop(l.manifests[0].as_object_mut().unwrap().remove("annotations")))),
        ("`x.json` is missing", image::tar(&[("manifest.json".into(), br#"[{"Config":"x.json"}]"#.to_vec())])),
    ];
    for (words, archive) in cases {
        let error = import(runtime, archive, None).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::BadArchive { reason } if reason.contains(words)), "{words}: {error:?}");
        settles(&lab, &before).await;
    }
    assert_eq!(runtime.images().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_nothing_is_left() {
    let lab = Lab::start_on(Disk::Memory(40)).await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    let before = store(&lab);
    let large = |compressed: bool| {
        let mut layout = Layout::new();
        let layer = image::tar(&[("large".to_owned(), vec![0; 60 << 20])]);
        let diff = image::digest(&layer);
        let kind = "application/vnd.oci.image.layer.v1.tar";
        let layer = match compressed {
            true => layout.blob(&format!("{kind}+gzip"), image::gzip(&layer)),
            false => layout.blob(kind, layer),
        };
        let config = json!({"architecture": image::here(), "os": "linux", "rootfs": {"diff_ids": [diff]}});
        let config = layout.blob("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let manifest = layout.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
        layout.name(manifest, FULL_NAME, "large");
        layout.archive()
    };
    for compressed in [false, true] {
        let error = import(runtime, large(compressed), None).await.unwrap_err();
        assert!(matches!(error, RuntimeError::DiskFull { .. }), "{compressed}: {error:?}");
        settles(&lab, &before).await;
    }
    // containerd may give the room back a little later.
    let fits = async {
        while import(runtime, plain(), None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), fits).await.expect("there is room for a small one");
    assert_eq!(run(&lab, runtime, &spec(&["echo", "fits"])).await.1, "fits\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containerd_that_is_killed_comes_back_and_the_process_never_notices() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    import(runtime, plain(), None).await.unwrap();
    let id = running(&lab, runtime, &["sleep", "1000"]).await;
    let before = state(runtime, id).await;
    let mut availability = runtime.availability();
    availability.borrow_and_update();
    kill(Pid::from_raw(lab.pid().unwrap() as i32), Signal::SIGKILL).unwrap();
    let down = availability.wait_for(|now| matches!(now, Availability::Down(_)));
    tokio::time::timeout(Duration::from_secs(1), down).await.expect("noticed within a second").unwrap();
    wait_up(runtime).await;
    assert_eq!(state(runtime, id).await, before);
    let mut events = runtime.events();
    runtime.signal_task(id, SIGKILL).await.unwrap();
    assert_eq!(next_end(&mut events, id).await.code, Some(128 + SIGKILL));
    runtime.delete_task(id).await.unwrap();
    runtime.delete_container(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_adopts_containerd_and_its_containers() {
    let mut lab = Lab::start().await;
    let connected = lab.connect().await;
    import(&*connected.runtime, plain(), None).await.unwrap();
    let id = running(&lab, &*connected.runtime, &["sleep", "1000"]).await;
    let (before, pid) = (state(&*connected.runtime, id).await, lab.pid());
    drop(connected);
    lab.desert().await;
    lab.supervise();
    let connected = lab.connect().await;
    assert_eq!(state(&*connected.runtime, id).await, before);
    assert_eq!(lab.pid(), pid, "it was not started again");
    let address = lab.supervisor.address().to_owned();
    assert_eq!(find_running(&["/nowhere".into(), address.clone()]).await, Some(address.clone()));
    lab.desert().await;
    lab.supervisor.shut_down().await;
    assert_eq!(lab.pid(), None);
    assert_eq!(find_running(&[address]).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_containers_are_there_without_processes() {
    let mut lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    import(runtime, plain(), None).await.unwrap();
    let id = running(&lab, runtime, &["sh", "-c", "echo x >>/count; cat /count; sleep 1000"]).await;
    lab.desert().await;
    lab.switch_off();
    lab.supervise();
    wait_up(runtime).await;
    let gone = async {
        while state(runtime, id).await != TaskState::None {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the process is gone");
    runtime.create_task(id, &lab.logger()).await.unwrap();
    runtime.start_task(id).await.unwrap();
    assert!(matches!(state(runtime, id).await, TaskState::Running { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_is_killed_takes_its_process_along_and_everything_can_be_removed() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    import(runtime, plain(), None).await.unwrap();
    let mut events = runtime.events();
    let id = running(&lab, runtime, &["sleep", "1000"]).await;
    for pid in lab.shims(&id.to_string()) {
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    }
    assert_eq!(next_end(&mut events, id).await.code, Some(128 + SIGKILL));
    runtime.delete_task(id).await.unwrap();
    runtime.delete_container(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_without_containerd_says_so() {
    let address = std::env::temp_dir().join("toft-test-nothing-here.sock");
    let stop = tokio_util::sync::CancellationToken::new();
    let config = toft::agent::runtime::containerd::ContainerdConfig::at(address);
    let (runtime, watching) = toft::agent::runtime::containerd::ContainerdRuntime::start(config, stop.clone()).unwrap();
    let watching = tokio::spawn(watching);
    let error = runtime.containers().await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Unavailable { .. }), "{error}");
    assert!(matches!(&*runtime.availability().borrow(), Availability::Down(_)));
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), watching).await.expect("it ends when asked").unwrap();
}

/// What starting a container costs, beside `ctr` and bare `runc`; run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn start_cost() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    import(runtime, plain(), None).await.unwrap();
    let bundle = lab.dir.join("bundle");
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    tar::Archive::new(Cursor::new(image::busybox_layer())).unpack(bundle.join("rootfs")).unwrap();
    assert!(Command::new("runc").arg("spec").current_dir(&bundle).status().unwrap().success());
    let config = fs::read_to_string(bundle.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["sleep", "1000"]);
    config["process"]["rlimits"] = json!([]);
    config["linux"]["cgroupsPath"] = json!(format!("/{}/bare", lab.name));
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let quiet = |mut command: Command| {
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let begun = std::time::Instant::now();
        assert!(command.status().unwrap().success());
        begun.elapsed()
    };
    let ctr = |args: &[&str]| {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(lab.supervisor.address()).args(["-n", &lab.name]).args(args);
        command
    };
    let runc = |args: &[&str]| {
        let mut command = Command::new("runc");
        command.current_dir(&bundle).arg("--root").arg(lab.dir.join("runc")).args(args);
        command
    };
    let mut spent: Vec<[Duration; 6]> = Vec::new();
    for _ in 0..30 {
        let order = spec(&["sleep", "1000"]);
        let begun = std::time::Instant::now();
        runtime.create_container(&order).await.unwrap();
        let created = begun.elapsed();
        runtime.create_task(order.id, &lab.logger()).await.unwrap();
        let prepared = begun.elapsed();
        runtime.start_task(order.id).await.unwrap();
        let started = begun.elapsed();
        let mut events = runtime.events();
        runtime.signal_task(order.id, SIGKILL).await.unwrap();
        next_end(&mut events, order.id).await;
        runtime.delete_task(order.id).await.unwrap();
        runtime.delete_container(order.id).await.unwrap();
        let with_ctr =
            quiet(ctr(&["run", "-d", "--null-io", "docker.io/library/busybox:latest", "x", "sleep", "1000"]));
        quiet(ctr(&["task", "kill", "-s", "9", "x"]));
        while !ctr(&["task", "rm", "x"]).output().unwrap().status.success() {}
        quiet(ctr(&["container", "rm", "x"]));
        let bare = quiet(runc(&["run", "-d", "bare"]));
        quiet(runc(&["delete", "-f", "bare"]));
        spent.push([created, prepared - created, started - prepared, started, with_ctr, bare]);
    }
    let names = ["create_container", "create_task", "start_task", "all three", "ctr run -d", "runc run -d"];
    for (i, name) in names.iter().enumerate() {
        let mut times: Vec<Duration> = spent.iter().map(|row| row[i]).collect();
        times.sort();
        println!("{name:>18}: median {:?}, fastest {:?}, slowest {:?}", times[15], times[0], times[29]);
    }
}

/// Time and memory an archive with a layer of 1 GiB costs; run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn import_cost() {
    const SIZE: u64 = 1 << 30;
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let layer = lab.dir.join("layer.tar");
    let mut builder = tar::Builder::new(fs::File::create(&layer).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(SIZE);
    builder.append_data(&mut header, "large", std::io::Read::take(std::io::repeat(7), SIZE)).unwrap();
    drop(builder.into_inner().unwrap());
    let mut hash = <sha2::Sha256 as sha2::Digest>::new();
    std::io::copy(&mut fs::File::open(&layer).unwrap(), &mut HashWriter(&mut hash)).unwrap();
    let diff = format!("sha256:{}", hex::encode(sha2::Digest::finalize(hash)));
    let config = json!({"architecture": image::here(), "os": "linux", "rootfs": {"diff_ids": [diff]}}).to_string();
    let archive = lab.dir.join("archive.tar");
    let mut builder = tar::Builder::new(fs::File::create(&archive).unwrap());
    let manifest = json!([{"Config": "c.json", "RepoTags": ["large:v1"], "Layers": ["l.tar"]}]).to_string();
    for (path, text) in [("c.json", config), ("manifest.json", manifest)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    builder.append_path_with_name(&layer, "l.tar").unwrap();
    drop(builder.into_inner().unwrap());
    let peak = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find(|line| line.starts_with("VmHWM")).unwrap().to_owned()
    };
    let (before, begun) = (peak(), std::time::Instant::now());
    let file = tokio::fs::File::open(&archive).await.unwrap();
    connected.runtime.import_image(Box::new(file), None).await.unwrap();
    println!("1 GiB in {:?}; before {before}, after {}", begun.elapsed(), peak());
}

struct HashWriter<'a>(&'a mut sha2::Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        sha2::Digest::update(self.0, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
