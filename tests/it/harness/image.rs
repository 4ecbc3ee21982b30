//! Image archives, made here from `/bin/busybox` without any tool or network.

use std::io::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Commands the image has, all of them busybox.
const COMMANDS: [&str; 10] = ["sh", "sleep", "true", "false", "echo", "cat", "id", "env", "ls", "dd"];

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A tar archive from paths and contents.
pub fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The one layer: busybox, links to it, users.
pub fn busybox_layer() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8], mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        builder.append_data(&mut header, path, content).unwrap();
    };
    add("bin/busybox", &std::fs::read("/bin/busybox").expect("busybox-static is installed"), 0o755);
    add("etc/passwd", b"root:x:0:0:root:/:/bin/sh\nweb:x:1000:1001::/:/bin/sh\n", 0o644);
    add("etc/group", b"root:x:0:\nweb:x:1001:\nlog:x:1002:web\n", 0o644);
    add("etc/noexec", b"text", 0o644);
    for command in COMMANDS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        builder.append_link(&mut header, format!("bin/{command}"), "busybox").unwrap();
    }
    for dir in ["proc", "sys", "dev", "tmp"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o1777);
        builder.append_data(&mut header, dir, std::io::empty()).unwrap();
    }
    // What a volume is filled with.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o750);
    header.set_uid(1000);
    header.set_gid(1001);
    builder.append_data(&mut header, "srv/seeded", std::io::empty()).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o640);
    header.set_uid(7);
    header.set_gid(8);
    builder.append_data(&mut header, "srv/seeded/seed", b"seed\n".as_slice()).unwrap();
    builder.into_inner().unwrap()
}

pub fn here() -> &'static str {
    if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" }
}

/// An image in the making. The blobs are kept by path, so tests can spoil them.
#[derive(Clone)]
pub struct Layout {
    pub blobs: Vec<(String, Vec<u8>)>,
    pub manifests: Vec<Value>,
}

impl Layout {
    pub fn new() -> Self {
        Self { blobs: Vec::new(), manifests: Vec::new() }
    }

    pub fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.blobs.push((format!("blobs/{}", digest.replace(':', "/")), bytes));
        descriptor
    }

    /// Adds manifest, config and layer of one platform.
    pub fn image(&mut self, architecture: &str, process: Value) -> Value {
        self.image_of(architecture, process, &[busybox_layer()])
    }

    /// The same of these layers.
    pub fn image_of(&mut self, architecture: &str, process: Value, layers: &[Vec<u8>]) -> Value {
        let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({"architecture": architecture, "os": "linux", "config": process,
            "rootfs": {"type": "layers", "diff_ids": ids}});
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(kind, gzip(layer))).collect();
        let config = self.blob("application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config).unwrap());
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers});
        self.blob("application/vnd.oci.image.manifest.v1+json", serde_json::to_vec(&manifest).unwrap())
    }

    /// Adds an index over some manifests, each with its architecture.
    pub fn index(&mut self, manifests: &[(Value, &str)]) -> Value {
        let manifests: Vec<Value> = manifests
            .iter()
            .map(|(manifest, architecture)| {
                let mut manifest = manifest.clone();
                manifest["platform"] = json!({"os": "linux", "architecture": architecture});
                manifest
            })
            .collect();
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        self.blob("application/vnd.oci.image.index.v1+json", serde_json::to_vec(&index).unwrap())
    }

    /// Names what the archive holds.
    pub fn name(&mut self, mut target: Value, key: &str, name: &str) {
        target["annotations"] = json!({ key: name });
        self.manifests.push(target);
    }

    pub fn index_json(&self) -> Vec<u8> {
        serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": self.manifests})).unwrap()
    }

    /// The archive, documents last as some writers do.
    pub fn archive(&self) -> Vec<u8> {
        let mut files = self.blobs.clone();
        files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        files.push(("index.json".into(), self.index_json()));
        tar(&files)
    }
}

pub const FULL_NAME: &str = "io.containerd.image.name";
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An archive of busybox under `name`, its process as given.
pub fn busybox(name: &str, process: Value) -> Vec<u8> {
    let mut layout = Layout::new();
    let manifest = layout.image(here(), process);
    layout.name(manifest, FULL_NAME, name);
    layout.archive()
}

/// The same with files besides.
pub fn busybox_with(name: &str, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut layout = Layout::new();
    let manifest = layout.image_of(here(), json!({"Cmd": ["sh"]}), &[busybox_layer(), tar(files)]);
    layout.name(manifest, FULL_NAME, name);
    layout.archive()
}

/// What `docker save` wrote before it knew OCI: a directory a layer, with a link for a layer used twice.
pub fn docker_save(tag: &str) -> Vec<u8> {
    let layer = busybox_layer();
    let empty = tar(&[("srv/marker".to_owned(), b"here".to_vec())]);
    let config = json!({"architecture": here(), "os": "linux", "config": {"Cmd": ["sh"], "Entrypoint": null},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer), digest(&empty), digest(&empty)]}});
    let config = serde_json::to_vec(&config).unwrap();
    let config_name = format!("{}.json", digest(&config).trim_start_matches("sha256:"));
    let manifest = json!([{"Config": config_name, "RepoTags": [tag],
        "Layers": ["aaa/layer.tar", "bbb/layer.tar", "ccc/layer.tar"]}]);
    let mut builder = tar::Builder::new(Vec::new());
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "ccc/layer.tar", "../bbb/layer.tar").unwrap();
    for (path, content) in [
        ("aaa/VERSION", b"1.0".to_vec()),
        ("aaa/json", b"{}".to_vec()),
        ("aaa/layer.tar", layer),
        ("bbb/layer.tar", empty),
        (config_name.as_str(), config),
        ("repositories", b"{}".to_vec()),
        ("manifest.json", serde_json::to_vec(&manifest).unwrap()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}
