//! Images that are large: for toft's memory, and for the disk.

use std::{
    fs,
    io::{self, Read, Write},
    path::PathBuf,
    time::Instant,
};

use nix::mount::{MsFlags, mount};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_util::sync::DropGuard;

use crate::harness::{
    appliance::Appliance,
    census::Census,
    dice::Dice,
    full,
    image::{Layout, busybox_layer, digest, gzip, here},
    machine::{Machine, wait_until},
    registry::OwnRegistry,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Most that toft's memory may grow while it pulls a layer, whatever its size.
const MOST_GROWTH_BYTES: u64 = 64 << 20;

/// Packs, and hashes what is packed.
struct Packing(flate2::write::GzEncoder<Vec<u8>>, Sha256);

impl Write for Packing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.0.write(bytes)?;
        self.1.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A layer, packed, and the digest of it unpacked: a file of so many zeros, one of so much noise that stays as large as
/// it is.
pub fn layer(zeros: u64, noise: usize) -> (Vec<u8>, String) {
    let packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(Packing(packed, Sha256::new()));
    let mut add = |path: &str, size: u64, content: &mut dyn Read| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).unwrap();
    };
    add("srv/zeros", zeros, &mut io::repeat(0).take(zeros));
    let mut dice = Dice::of(7);
    let noise: Vec<u8> =
        std::iter::repeat_with(|| dice.below(u64::MAX).to_le_bytes()).take(noise / 8).flatten().collect();
    add("srv/noise", noise.len() as u64, &mut noise.as_slice());
    let Packing(packed, unpacked) = builder.into_inner().unwrap();
    (packed.finish().unwrap(), format!("sha256:{}", hex::encode(unpacked.finalize())))
}

/// Puts an image of busybox and that layer into a registry.
fn put(registry: &OwnRegistry, (packed, unpacked): (Vec<u8>, String), tag: &str) -> String {
    let mut layout = Layout::new();
    let bottom = busybox_layer();
    let config = json!({"architecture": here(), "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(&bottom), unpacked]}});
    let layers = [layout.blob(GZIP, gzip(&bottom)), layout.blob(GZIP, packed)];
    let config = layout.blob("application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config).unwrap());
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    let target = layout.blob(MANIFEST, serde_json::to_vec(&manifest).unwrap());
    registry.put(&layout, &target, tag);
    format!("{}/large:{tag}", registry.address)
}

/// A number of kilobytes that the kernel tells of a process, in bytes.
fn memory(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_layer_of_any_size_is_pulled_with_little_memory() {
    let toft = Appliance::start();
    let (registry, _guard): (_, DropGuard) = OwnRegistry::start_on(&toft.machine);
    // What is loaded once is loaded now.
    toft.good(&format!("image pull {}", put(&registry, layer(1 << 20, 1 << 20), "small")));
    let (zeros, noise) = if full() { ((1 << 30) - (128 << 20), 128 << 20) } else { (144 << 20, 48 << 20) };
    let name = put(&registry, layer(zeros, noise), "large");
    let before = memory(toft.pid(), "VmRSS");
    // The greatest size begins anew.
    fs::write(format!("/proc/{}/clear_refs", toft.pid()), "5").unwrap();
    let began = Instant::now();
    let mut pull = toft.client(&["image", "pull", &name]);
    assert!(pull.output().unwrap().status.success());
    let peak = memory(toft.pid(), "VmHWM");
    let grown = peak.saturating_sub(before);
    println!(
        "{} MiB in {:.1} s, {} MiB more memory",
        (zeros + noise as u64) >> 20,
        began.elapsed().as_secs_f32(),
        grown >> 20
    );
    assert!(grown < MOST_GROWTH_BYTES, "{grown} bytes more in memory");
    let look = ["run", "--rm", "--network", "none", &name, "--", "sh", "-c", "busybox du -sk /srv | cat"];
    let kilobytes = toft.toft(&look).good();
    let kilobytes: u64 = kilobytes.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kilobytes.abs_diff((zeros + noise as u64) >> 10) < 100, "{kilobytes}");
}

/// An appliance whose containerd lies on a disk of 48 MiB, of which `ballast` MiB are taken.
fn on_a_small_disk(ballast: usize) -> (Appliance, PathBuf) {
    let mut toft = Appliance::prepare(&Machine::new(), "d");
    let disk = toft.data.join("containerd/root");
    fs::create_dir_all(&disk).unwrap();
    mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=48m")).unwrap();
    toft.up();
    toft.import_busybox();
    let file = disk.join("ballast");
    fs::write(&file, vec![1; ballast << 20]).unwrap();
    (toft, file)
}

#[test]
fn a_disk_that_fills_up_while_a_layer_is_unpacked_is_told_and_left_clean() {
    let (toft, ballast) = on_a_small_disk(24);
    let (registry, _guard) = OwnRegistry::start_on(&toft.machine);
    // Its bytes fit, its files do not: all of it has come when the disk is full.
    let unpacked_late = put(&registry, layer(30 << 20, 1 << 20), "late");
    // Already its bytes do not fit beside what is unpacked of them.
    let while_it_comes = put(&registry, layer(1 << 20, 14 << 20), "early");
    // Connections to registries are kept for half a minute.
    let before = Census::settled(&toft).without("open files of toft");
    for image in [&unpacked_late, &while_it_comes] {
        let told = toft.toft(&["image", "pull", image]).bad(1);
        let disk = toft.data.join("containerd/root").display().to_string();
        assert!(told.contains("no space is left") && told.contains(&disk), "{told}");
        assert!(told.contains("hint:") && told.contains("toft image prune"), "{told}");
        before.wait_until_again(&toft);
    }

    // Whoever waits for it gets it as soon as there is room.
    toft.good(&format!("run --no-wait -n web --network none {unpacked_late} -- sleep 1000"));
    let told = toft.instance_until("web", "says why it waits", |instance| {
        instance["reason"].as_str().is_some_and(|reason| reason.contains("no space is left"))
    });
    assert_ne!(told["state"], "running");
    fs::remove_file(ballast).unwrap();
    toft.instance_until("web", "runs", |instance| instance["state"] == "running");
    assert_eq!(toft.good("exec web-0 -- ls /srv"), "noise\nseeded\nzeros\n");
    toft.good("rm web");
    toft.good(&format!("image rm {unpacked_late}"));
    let free = || {
        let disk = nix::sys::statvfs::statvfs(&toft.data.join("containerd/root")).unwrap();
        disk.blocks_free() * disk.fragment_size()
    };
    wait_until("its room is free again", || (free() > 40 << 20).then_some(()));
}
