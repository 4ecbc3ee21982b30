//! Packs the demo as an OCI image archive. The same program gives the same bytes: fixed times,
//! owners and order.

use std::io::Write;

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const IMAGE_NAME: &str = "docker.io/toft/demo:latest";
/// Not when it was built, which would change the bytes; some tools need a time to be there.
const CREATED: &str = "1970-01-01T00:00:00Z";
const PORT: &str = "8080/tcp";
/// Nobody: the port is above 1023 and no file is written.
const USER: &str = "65534:65534";

/// A tar of an OCI image layout with one layer that holds `program` as `/demo`.
pub fn archive(program: &[u8], rust_architecture: &str) -> Vec<u8> {
    let (architecture, variant) = match rust_architecture {
        "x86_64" => ("amd64", None),
        "aarch64" => ("arm64", Some("v8")),
        other => panic!("toft has no demo image for the architecture {other}"),
    };
    let layer = tar_of(&[File { path: "demo", mode: 0o755, content: program }]);
    let layer_blob = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", compress(&layer));

    let mut config = config(architecture, &digest(&layer));
    let mut platform = json!({ "architecture": architecture, "os": "linux" });
    if let Some(variant) = variant {
        config["variant"] = json!(variant);
        platform["variant"] = json!(variant);
    }
    let config_blob = Blob::of_json("application/vnd.oci.image.config.v1+json", &config);

    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config_blob.descriptor(),
        "layers": [layer_blob.descriptor()],
    });
    let manifest_blob = Blob::of_json("application/vnd.oci.image.manifest.v1+json", &manifest);

    let mut entry = manifest_blob.descriptor();
    entry["platform"] = platform;
    entry["annotations"] =
        json!({ "org.opencontainers.image.ref.name": IMAGE_NAME, "io.containerd.image.name": IMAGE_NAME });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });

    let blobs = [layer_blob, config_blob, manifest_blob];
    let paths: Vec<_> = blobs.iter().map(|blob| format!("blobs/sha256/{}", blob.sha256)).collect();
    let index = index.to_string();
    let mut files = vec![
        File { path: "oci-layout", mode: 0o644, content: br#"{"imageLayoutVersion":"1.0.0"}"# },
        File { path: "index.json", mode: 0o644, content: index.as_bytes() },
    ];
    files.extend(blobs.iter().zip(&paths).map(|(blob, path)| File { path, mode: 0o644, content: &blob.content }));
    tar_of(&files)
}

fn config(architecture: &str, layer_digest: &str) -> Value {
    json!({
        "created": CREATED,
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": USER,
            "ExposedPorts": { PORT: {} },
            "Env": ["PORT=8080"],
            "Entrypoint": ["/demo"],
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "Labels": {
                "org.opencontainers.image.title": "toft demo",
                "org.opencontainers.image.description": env!("CARGO_PKG_DESCRIPTION"),
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "Apache-2.0 OR MIT",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
        "history": [{ "created": CREATED, "created_by": "the build of toft", "comment": "one static program" }],
    })
}

/// A content-addressed part of the image.
struct Blob {
    media_type: &'static str,
    sha256: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, content: Vec<u8>) -> Self {
        Self { media_type, sha256: hex::encode(Sha256::digest(&content)), content }
    }

    fn of_json(media_type: &'static str, value: &Value) -> Self {
        Self::new(media_type, value.to_string().into_bytes())
    }

    fn descriptor(&self) -> Value {
        let digest = format!("sha256:{}", self.sha256);
        json!({ "mediaType": self.media_type, "digest": digest, "size": self.content.len() })
    }
}

/// One file of a tar.
struct File<'a> {
    path: &'a str,
    mode: u32,
    content: &'a [u8],
}

fn tar_of(files: &[File<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(file.mode);
        header.set_size(file.content.len() as u64);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, file.path, file.content).expect("a tar in memory can be written");
    }
    builder.into_inner().expect("a tar in memory can be written")
}

fn compress(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(content).expect("memory can be written");
    encoder.finish().expect("memory can be written")
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}
