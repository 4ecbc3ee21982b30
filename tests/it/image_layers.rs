//! What a pull unpacks is what containerd would have unpacked, file by file.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::json;
use tar::{Builder, EntryType, Header};
use toft::agent::{
    image::{Pulls, Registries, Settings, TagWord},
    runtime::Runtime,
};
use toft_model::image::ImageRef;
use tokio_util::sync::CancellationToken;

use crate::harness::{
    containerd::{Connected, Disk, Lab},
    image::{Layout, busybox_layer, digest, gzip, here},
    registry::OwnRegistry,
};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An archive, file by file.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, name: &str, mode: u32, link: &str, contents: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000 + u64::from(mode));
        header.set_gid(50);
        header.set_mtime(1_500_000_000 + u64::from(mode));
        header.set_size(contents.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        if link.is_empty() {
            self.0.append_data(&mut header, name, contents.as_bytes()).unwrap();
        } else {
            self.0.append_link(&mut header, name, link).unwrap();
        }
        self
    }

    fn file(self, name: &str, contents: &str) -> Self {
        self.add(EntryType::Regular, name, 0o640, "", contents)
    }

    fn directory(self, name: &str, mode: u32) -> Self {
        self.add(EntryType::Directory, name, mode, "", "")
    }

    fn records(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Layers with everything that builders put into them.
fn layers() -> Vec<Vec<u8>> {
    let long = format!("srv/{}/{}", "long".repeat(30), "name".repeat(40));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let second = Layer::new()
        .directory("etc/", 0o750)
        .file("etc/shadow", "root:*")
        .directory("etc/conf.d", 0o701)
        .file("etc/conf.d/one", "1")
        .file("etc/conf.d/two", "22")
        .add(EntryType::Symlink, "etc/mtab", 0o777, "../proc/self/mounts", "")
        .add(EntryType::Link, "etc/shadow-", 0o640, "etc/shadow", "")
        .add(EntryType::Regular, "bin/su", 0o6755, "", "#!")
        .records(&[("SCHILY.xattr.security.capability", &capability), ("mtime", b"1500000000.123456789")])
        .file("bin/ping", "#!/bin/sh")
        .add(EntryType::Fifo, "run.fifo", 0o600, "", "")
        .add(EntryType::Char, "null", 0o666, "", "")
        .file(&long, "x")
        .directory("cache", 0o1777)
        .file("cache/old", "old")
        .directory("home/someone/.ssh", 0o700)
        .file("home/someone/.ssh/id", "secret")
        .file("gone", "soon");
    let third = Layer::new()
        .file("etc/conf.d/three", "333")
        .file("etc/.wh.shadow-", "")
        .file("etc/conf.d/.wh.one", "")
        .file("cache/.wh..wh..opq", "")
        .file("cache/new", "new")
        .file(".wh.gone", "")
        .file("home/someone/.ssh/known", "hosts")
        .add(EntryType::Symlink, "var/run", 0o777, "/run", "")
        .file("bin/su", "replaced");
    let fourth = Layer::new().directory("etc/conf.d", 0o711).file("deep/er/than/before", "4").file("cache/newer", "4");
    vec![busybox_layer(), second.bytes(), third.bytes(), fourth.bytes()]
}

/// Every file of the image in `namespace`, with all that can be said of it.
fn tree(socket: &Path, namespace: &str, top: &str, dir: &Path) -> String {
    let (key, target) = (format!("look-{namespace}"), dir.join(format!("look-{namespace}")));
    std::fs::create_dir(&target).unwrap();
    let script = r#"
        set -eu
        ctr="ctr --address $1 --namespace $2"
        mount=$($ctr snapshots view --target "$5" "$3" "$4" 2>/dev/null || $ctr snapshots view "$3" "$4")
        eval "$($ctr snapshots mounts "$5" "$3")"
        cd "$5"
        find . -mindepth 1 -type d -printf '%p d %m %U:%G\n' | sort
        find . -mindepth 1 ! -type d -printf '%p %y %m %U:%G %n %T@ %l ' \( -type f -exec sha256sum -- {} \; -o -printf '\n' \) |
            sed -E 's/ 1[6-9][0-9]{8}\.[0-9]+ / now /' | sort
        find . -type f -exec getfattr --absolute-names --no-dereference --dump --match - -- {} + | grep -v overlay | sort
    "#;
    let out = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(socket)
        .args([namespace, &key, top])
        .arg(&target)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Serves the image as `all:1`; gives its name, and that of its uppermost snapshot.
fn publish(registry: &OwnRegistry) -> (String, String) {
    let (layers, mut layout) = (layers(), Layout::new());
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let described: Vec<_> = layers.iter().map(|layer| layout.blob(LAYER, gzip(layer))).collect();
    let config = json!({"architecture": here(), "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = layout.blob("application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config).unwrap());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": described});
    let target = layout.blob(kind, serde_json::to_vec(&manifest).unwrap());
    registry.put(&layout, &target, "1");
    let top = diff_ids.into_iter().reduce(|below, layer| digest(format!("{below} {layer}").as_bytes())).unwrap();
    (format!("{}/all:1", registry.address), top)
}

/// Pulls an image as a node does.
async fn pull(runtime: &Connected, image: &ImageRef) {
    let (pulls, puller) =
        Pulls::new(runtime.runtime.clone(), Registries::new(Settings::default(), super::image_pull::nobody()));
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(puller.run(stop));
    pulls.pull(image, TagWord::Registry).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_unpacks_what_containerd_unpacks() {
    let lab = Lab::start().await;
    let runtime = lab.connect().await;
    let registry = OwnRegistry::start().await;
    let (name, top) = publish(&registry);
    let image: ImageRef = name.parse().unwrap();
    pull(&runtime, &image).await;
    let config = lab.config();
    let out = Command::new("ctr")
        .arg("--address")
        .arg(&config.address)
        .args(["--namespace", "other", "images", "pull", "--plain-http", &name])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));

    let (address, dir) = (config.address.clone(), lab.dir.clone());
    let [ours, theirs] = [config.namespace.as_str(), "other"].map(|namespace| tree(&address, namespace, &top, &dir));
    assert!(ours.contains("./etc/conf.d/three") && !ours.contains("./etc/conf.d/one"), "{ours}");
    assert!(ours.contains("security.capability"), "{ours}");
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours, theirs);
    assert!(runtime.runtime.remove_image(&image).await.unwrap());
}

/// Every file of all snapshots below containerd's folder, with a digest of what is in it.
fn snapshots(containerd: &Path) -> BTreeSet<String> {
    let script = r#"
        set -eu
        cd "$(find "$1" -type d -path '*overlayfs/snapshots')"
        find . -path '*/fs/*' -printf '%p %y %m %U:%G %l '  \( -type f -exec sha256sum -- {} \; -o -printf '\n' \)
    "#;
    let out = Command::new("sh").args(["-c", script, "sh"]).arg(containerd).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_there_is_there_after_a_power_cut() {
    let lab = Lab::start_on(Disk::File(256)).await;
    let runtime = lab.connect().await;
    let registry = OwnRegistry::start().await;
    let image: ImageRef = publish(&registry).0.parse().unwrap();
    pull(&runtime, &image).await;
    let kept = snapshots(&lab.after_a_power_cut());
    let made = snapshots(&lab.dir.join("c"));
    assert!(made.iter().any(|file| file.contains("/bin/busybox ")), "{made:#?}");
    let lost: Vec<_> = made.difference(&kept).collect();
    assert!(lost.is_empty(), "{lost:#?}");
}
