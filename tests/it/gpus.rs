//! GPUs in containers: what a container is given on a real containerd, and an appliance whose cards are made up but whose library,
//! devices and containers are real.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};
use toft::agent::{
    gpu::{Card, GpuWatch, Handle, SeenGpu, Sight, cdi::Injector, fake},
    runtime::{ContainerSpec, Runtime},
};
use toft_model::{
    gpu::{GpuFacts, GpuHold},
    workload::ProcessSpec,
};
use tokio::sync::watch;

use crate::{
    harness::{
        appliance::Appliance,
        containerd::Lab,
        image,
        machine::{Machine, wait_until},
        nvml::NvmlStub,
    },
    runtime_conformance::{next_end, spec},
};

pub const VERSION: &str = "570.86.10";

/// A character device with those numbers.
pub fn device(path: &Path, major: u64, minor: u64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor)).unwrap();
}

/// A machine's files: two cards and a driver. The first card is `/dev/fuse` by its numbers, which no container may use
/// by itself.
pub fn root() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for (name, major, minor) in [("nvidiactl", 1, 3), ("nvidia-uvm", 1, 3), ("nvidia0", 10, 229), ("nvidia1", 1, 5)] {
        device(&root.join("dev").join(name), major, minor);
    }
    install(root, VERSION);
    dir
}

/// Puts the driver of a version in place of the one that is there.
pub fn install(root: &Path, version: &str) {
    let libraries = root.join("usr/lib64");
    let _ = fs::remove_dir_all(&libraries);
    fs::create_dir_all(&libraries).unwrap();
    fs::write(libraries.join(format!("libcuda.so.{version}")), format!("cuda {version}\n")).unwrap();
    symlink(format!("libcuda.so.{version}"), libraries.join("libcuda.so.1")).unwrap();
    let proc = root.join("proc/driver/nvidia");
    fs::create_dir_all(&proc).unwrap();
    fs::write(proc.join("version"), format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue\n"))
        .unwrap();
}

/// Two cards, seen.
pub fn sight() -> (watch::Sender<Option<Arc<Sight>>>, GpuWatch) {
    let seen = |(place, name): (u32, &str)| {
        let card: Card = fake::card(&name.parse().unwrap(), 24_564);
        let gpu = json!({ "id": name, "vendor": "nvidia", "model": card.model, "memory_mib": 24_564,
            "place": place, "measured": {}, "driver": VERSION });
        let facts: GpuFacts = serde_json::from_value(gpu).unwrap();
        SeenGpu { facts, handle: Handle { index: place, minor: Some(place), ..Handle::default() } }
    };
    let gpus = [(0, "GPU-1"), (1, "GPU-2")].into_iter().map(seen).collect();
    watch::channel(Some(Arc::new(Sight { gpus, away: Vec::new() })))
}

pub fn hold(name: &str) -> Vec<GpuHold> {
    vec![GpuHold { gpu: name.parse().unwrap(), vram_mib: None }]
}

/// Gives cards on a machine whose files lie below `root`.
pub fn injector(root: &Path, specifications: &[PathBuf], gpus: GpuWatch) -> Injector {
    let program = Path::new(env!("CARGO_BIN_EXE_toft"));
    Injector::new(specifications.to_vec(), gpus).with_root(root).with_program(program)
}

/// Runs a container's process to its end; gives its exit code and what it wrote.
pub async fn run(lab: &Lab, runtime: &dyn Runtime, order: &ContainerSpec) -> (Option<i32>, String) {
    let mut events = runtime.events();
    runtime.create_task(order.id, &lab.logger()).await.unwrap();
    runtime.start_task(order.id).await.unwrap();
    let exit = next_end(&mut events, order.id).await;
    runtime.delete_task(order.id).await.unwrap();
    let read = |what: &str| fs::read_to_string(lab.dir.join(format!("{}.{what}", order.id))).unwrap();
    (exit.code, read("out") + &read("err"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_sees_its_cards_and_no_others() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    let archive = image::busybox("busybox", json!({"Cmd": ["sh"], "Env": ["NVIDIA_VISIBLE_DEVICES=all"]}));
    runtime.import_image(Box::new(std::io::Cursor::new(archive)), None).await.unwrap();
    let root = root();
    let (_seen, gpus) = sight();
    let (injector, plain) = (injector(root.path(), &[], gpus), ProcessSpec::default());

    let script = "echo $NVIDIA_VISIBLE_DEVICES; cd /dev; ls -d nvidia*; dd if=nvidia0 count=0 2>&1 && echo opened; \
        cat /usr/lib64/libcuda.so.1 /usr/lib/x86_64-linux-gnu/libcuda.so.570.86.10; echo x >/usr/lib64/libcuda.so.1";
    let first =
        ContainerSpec { edits: injector.edits(&hold("GPU-1"), &plain).await.unwrap(), ..spec(&["sh", "-c", script]) };
    runtime.create_container(&first).await.unwrap();
    let (_, out) = run(&lab, runtime, &first).await;
    assert!(out.starts_with("GPU-1\nnvidia-uvm\nnvidia0\nnvidiactl\n"), "{out}");
    assert!(out.contains("opened") && out.contains("cuda 570.86.10\ncuda 570.86.10\n"), "{out}");
    assert!(out.contains("Read-only"), "{out}");

    // The other card's container cannot reach the first, even with a node that it makes for itself.
    let script = "echo $NVIDIA_VISIBLE_DEVICES; cd /dev; ls -d nvidia*; mknod /tmp/n c 10 229; dd if=/tmp/n count=0";
    let second =
        ContainerSpec { edits: injector.edits(&hold("GPU-2"), &plain).await.unwrap(), ..spec(&["sh", "-c", script]) };
    runtime.create_container(&second).await.unwrap();
    let (code, out) = run(&lab, runtime, &second).await;
    assert!(out.starts_with("GPU-2\nnvidia-uvm\nnvidia1\nnvidiactl\n"), "{out}");
    assert!(code != Some(0) && out.contains("not permitted"), "{code:?} {out}");

    // Who was given none has none, whatever the image asks for.
    let none = spec(&["sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES; ls /dev"]);
    runtime.create_container(&none).await.unwrap();
    let (_, out) = run(&lab, runtime, &none).await;
    assert!(out.starts_with("void\n") && !out.contains("nvidia"), "{out}");
    assert!(runtime.edit_container(none.id, &first.edits).await.is_err());

    // After an upgrade of the driver the same container gets the new one's files.
    install(root.path(), "575.51");
    let fresh = injector.edits(&hold("GPU-1"), &plain).await.unwrap();
    assert_ne!(fresh, first.edits);
    runtime.edit_container(first.id, &fresh).await.unwrap();
    let (_, out) = run(&lab, runtime, &first).await;
    assert!(out.contains("cuda 575.51\n") && out.contains("opened"), "{out}");
    for order in [first, second, none] {
        runtime.delete_container(order.id).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_card_needs_is_named_when_it_is_missing() {
    let root = root();
    let (seen, gpus) = sight();
    let (injector, plain) = (injector(root.path(), &[], gpus), ProcessSpec::default());
    let why = injector.edits(&hold("GPU-9"), &plain).await.unwrap_err();
    assert_eq!(why.to_string(), "the GPU `GPU-9` is not on this node now");
    fs::remove_file(root.path().join("dev/nvidia1")).unwrap();
    let why = injector.edits(&hold("GPU-2"), &plain).await.unwrap_err().to_string();
    assert!(why.contains("the device /dev/nvidia1 is not on this node") && why.contains("toft doctor"), "{why}");
    assert!(injector.edits(&[], &plain).await.unwrap().is_empty());

    // A share, where NVIDIA's service for sharing runs.
    fs::create_dir_all(root.path().join("tmp/nvidia-mps")).unwrap();
    fs::write(root.path().join("tmp/nvidia-mps/control"), "").unwrap();
    let share = [GpuHold { gpu: "GPU-1".parse().unwrap(), vram_mib: Some(8_192) }];
    let edits = injector.edits(&share, &plain).await.unwrap();
    assert!(edits.env.contains(&"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=8192M".to_owned()), "{:?}", edits.env);
    assert!(edits.mounts.iter().any(|mount| mount.container_path == Path::new("/tmp/nvidia-mps")));
    assert!(!injector.edits(&hold("GPU-1"), &plain).await.unwrap().env.iter().any(|pair| pair.starts_with("CUDA_MPS")));
    drop(seen);
}

/// An appliance with two made-up cards: NVIDIA's library is a stand-in, their devices others of the machine's.
struct Box2 {
    toft: Appliance,
    stub: NvmlStub,
    _devices: tempfile::TempDir,
}

const FIRST: &str = "card uuid=GPU-1 name=NVIDIA_GeForce_RTX_4090 minor=0 pci=00000000:01:00.0 total=24564 reserved=0 \
    temp=50 slowdown=93 used=";
const SECOND: &str =
    "card uuid=GPU-2 name=NVIDIA_GeForce_RTX_3090 minor=1 pci=00000000:02:00.0 total=24576 reserved=0 temp=40 used=0\n";

/// What the stand-in tells: memory in use on the first card, and what else stands behind it.
fn told(used: u32, besides: &str) -> String {
    format!("driver {VERSION}\ncuda 12080\nepoch 1\n{FIRST}{used} {besides}\n{SECOND}")
}

impl Box2 {
    fn start() -> Self {
        let stub = NvmlStub::new(&told(0, ""));
        let devices = tempfile::tempdir().unwrap();
        let (cdi, dev) = (devices.path().join("cdi"), devices.path().join("dev"));
        fs::create_dir_all(&cdi).unwrap();
        for (name, minor) in [("nvidia0", 3), ("nvidia1", 5), ("nvidiactl", 7)] {
            device(&dev.join(name), 1, minor);
        }
        let node = |name: &str| json!({ "path": format!("/dev/{name}"), "hostPath": dev.join(name) });
        let card = |place: u32| {
            json!({ "name": place.to_string(),
                "containerEdits": { "deviceNodes": [node(&format!("nvidia{place}"))] } })
        };
        let library = json!({ "cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": [card(0), card(1)],
            "containerEdits": { "deviceNodes": [node("nvidiactl")] } });
        fs::write(cdi.join("nvidia.json"), library.to_string()).unwrap();
        let mut toft = Appliance::prepare(&Machine::new(), "d");
        let paths = |path: PathBuf| path.display().to_string();
        let config = format!("[gpu]\nnvml = \"{}\"\ncdi_dirs = [\"{}\"]\n", paths(stub.library()), paths(cdi));
        fs::write(toft.data.join("toft.toml"), config).unwrap();
        toft.up();
        toft.import_busybox();
        Self { toft, stub, _devices: devices }
    }

    fn gpus(&self) -> Value {
        self.toft.json("gpu ls --json")
    }

    fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait_until(what, || Some(self.gpus()).filter(&is))
    }
}

#[test]
fn cards_are_told_given_guarded_and_moved_away_from() {
    let mut it = Box2::start();
    let gpus = it.until("both cards are registered", |gpus| gpus.as_array().unwrap().len() == 2);
    assert_eq!((&gpus[0]["id"], &gpus[0]["policy"]), (&"GPU-1".into(), &"shared".into()));
    assert_eq!(gpus[0]["facts"]["measured"]["temperature_celsius"], 50);
    let node = it.toft.json("node ls --json")[0]["name"].as_str().unwrap().to_owned();
    let inspected = it.toft.good(&format!("node inspect {node}"));
    assert!(
        inspected.contains("0: NVIDIA GeForce RTX 4090, 24.0 GiB") || inspected.contains("0: NVIDIA GeForce RTX 4090")
    );
    assert!(it.toft.good("gpu top --no-stream").contains("RTX 3090"));

    // The doctor's last word is a container with a card that is free.
    let checks: Value = serde_json::from_str(&it.toft.own(&["doctor", "gpu", "--json"]).out).unwrap();
    let tried = checks.as_array().unwrap().iter().find(|check| check["name"] == "container").unwrap();
    assert!(tried["verdict"] == "ok" && tried["message"].as_str().unwrap().contains("RTX 4090"), "{checks}");
    wait_until("its container is gone", || it.toft.json("ls --json").as_array().unwrap().is_empty().then_some(()));

    // A share of a card.
    let script = "echo $NVIDIA_VISIBLE_DEVICES; ls -d /dev/nvidia*; sleep 1000";
    it.toft.toft(&["run", "-n", "llm", "--gpus", "vram=1GiB", "busybox", "--", "sh", "-c", script]).good();
    wait_until("it wrote", || (it.toft.logs("llm").len() == 3).then_some(()));
    assert_eq!(it.toft.logs("llm"), ["GPU-1", "/dev/nvidia0", "/dev/nvidiactl"]);
    let llm = it.toft.instance("llm");
    let pid = llm["pid"].as_u64().unwrap();
    assert_eq!(it.gpus()[0]["holders"][0]["instance"], "llm-0");
    assert_eq!(it.gpus()[0]["reserved_mib"], 1_024);

    // What users say of a card.
    it.toft.good("gpu cordon 1");
    let error = it.toft.toft(&["gpu", "set", "7", "--policy", "shared"]).bad(1);
    assert!(error.contains("there is no GPU `7`"), "{error}");
    it.toft.toft(&["run", "-d", "-n", "second", "--gpus", "device=1", "busybox", "--", "sleep", "1000"]);
    let waits = wait_until("it waits", || it.toft.json("inspect second")["pending"].as_str().map(str::to_owned));
    assert!(waits.contains("it is cordoned"), "{waits}");
    it.toft.good("gpu uncordon 1");
    it.toft.instance_until("second", "it runs", |instance| instance["state"] == "running");
    it.toft.good("rm second");

    // A restart of the daemon moves nothing.
    it.toft.stop();
    it.toft.up();
    assert_eq!(it.toft.instance("llm")["pid"], pid);

    // What others use is told in steps.
    it.stub.tell(&told(5_000, ""));
    it.until("the memory used outside is told", |gpus| gpus[0]["outside_mib"] == 5_120);

    // Who holds more than its share is warned, then stopped and started again.
    it.stub.tell(&told(2_000, &format!("\nprocess pid={pid} mib=1900")));
    it.until("the process is known", |gpus| gpus[0]["facts"]["processes"][0]["instance_id"] == llm["id"]);
    let stopped = it.toft.instance_until("llm", "it was stopped", |instance| {
        instance["last_exit"]["gpu_out_of_memory"] == true && instance["state"] == "running"
    });
    assert!(stopped["restarts"].as_u64() >= Some(1) && stopped["pid"] != pid, "{stopped}");
    let events = it.toft.good("events");
    assert!(events.contains("GpuOutOfMemory"), "{events}");
    it.stub.tell(&told(0, ""));

    // A card that falls off takes no work, and its instances go to the other.
    it.stub.tell(&told(0, "lost=1"));
    let lost = Instant::now();
    it.until("the card is sick", |gpus| gpus[0]["sick"] == "it has fallen off the bus");
    assert!(lost.elapsed() < Duration::from_secs(15), "{:?}", lost.elapsed());
    it.until("the instance has the other card", |gpus| gpus[1]["holders"][0]["instance"] == "llm-0");
    it.toft.instance_until("llm", "it runs there", |instance| instance["state"] == "running");
    wait_until("it sees the other card", || {
        it.toft.logs("llm").ends_with(&["GPU-2".into(), "/dev/nvidia1".into(), "/dev/nvidiactl".into()]).then_some(())
    });
    assert!(it.toft.good("gpu ls").contains("fallen off the bus"));
    it.toft.good("rm llm");

    // A card that is named as specifications call it is held as any other.
    it.toft.toft(&["run", "-n", "named", "--device", "nvidia.com/gpu=1", "busybox", "--", "sleep", "1000"]).good();
    it.until("it is held", |gpus| gpus[1]["holders"][0]["instance"] == "named-0" && gpus[1]["reserved_mib"] == 24_576);
    let both = ["run", "-n", "both", "--device", "nvidia.com/gpu=1", "--gpus", "1", "busybox"];
    assert!(it.toft.toft(&both).bad(125).contains("`gpus` asks for some already"));
    it.toft.good("rm named");

    // What cards draw is what the node draws, and has its price.
    it.toft.good("cluster set placement.electricity_price=0.5");
    it.toft.good(&format!("node set {node} --base-watts 100"));
    it.stub.tell(&told(0, "power=200000"));
    it.until("the power is told", |gpus| gpus[0]["watts"] == 200);
    let told_of_node = it.toft.json(&format!("node inspect {node} --json"));
    assert_eq!((&told_of_node["watts"], &told_of_node["cost_per_hour"]), (&300.into(), &0.15.into()));
    let top = it.toft.good("gpu top --no-stream");
    assert!(top.contains("300 W") && top.contains("0.1500"), "{top}");

    // It comes back by itself.
    let well = it.until("the card is well", |gpus| gpus[0]["sick"].is_null());
    assert_eq!(well.as_array().unwrap().len(), 2);
    it.toft.toft(&["run", "-n", "back", "--gpus", "device=0", "busybox", "--", "sleep", "1000"]).good();
    it.toft.good("rm back");
}
