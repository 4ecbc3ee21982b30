"""The one image every engine runs: busybox and the stamp program. One archive that is both an OCI layout and what
`docker save` writes, and the same files as a directory for runc."""

import hashlib
import io
import json
import os
import shutil
import tarfile

NAME = "localhost/bench/busybox:1"
APPLETS = ("sh", "true", "sleep", "cat", "ls", "echo", "httpd")
FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "srv", "sys", "tmp")
# Answers any request for `/` with the page `up` on port 80.
WEB_SERVER = ["httpd", "-f", "-p", "80", "-h", "/srv"]


def make_rootfs(directory, busybox, stamp):
    """Writes the files of the image."""
    for folder in FOLDERS:
        os.makedirs(os.path.join(directory, folder))
    for source, name in ((busybox, "busybox"), (stamp, "stamp")):
        shutil.copyfile(source, os.path.join(directory, "bin", name))
        os.chmod(os.path.join(directory, "bin", name), 0o755)
    for applet in APPLETS:
        os.symlink("busybox", os.path.join(directory, "bin", applet))
    lines = (("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("etc/group", "root:x:0:\n"), ("srv/index.html", "up\n"))
    for file, line in lines:
        with open(os.path.join(directory, file), "w") as out:
            out.write(line)


def make_archive(rootfs, file):
    """Packs the files as an image of one layer."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(os.listdir(rootfs)):
            tar.add(os.path.join(rootfs, name), arcname=name, filter=_plain)
    layer = layer.getvalue()
    config = _json({
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        "history": [{"created_by": "bench"}],
    })
    oci = "application/vnd.oci.image"
    manifest = _json({
        "schemaVersion": 2,
        "mediaType": f"{oci}.manifest.v1+json",
        "config": _descriptor(f"{oci}.config.v1+json", config),
        "layers": [_descriptor(f"{oci}.layer.v1.tar", layer)],
    })
    named = _descriptor(f"{oci}.manifest.v1+json", manifest)
    named["annotations"] = {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": NAME}
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [named]}),
        "manifest.json": _json([{"Config": _blob(config), "RepoTags": [NAME], "Layers": [_blob(layer)]}]),
        _blob(config): config,
        _blob(manifest): manifest,
        _blob(layer): layer,
    }
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(content))


def _plain(entry):
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def _json(value):
    return json.dumps(value).encode()


def _digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _blob(content):
    return "blobs/sha256/" + hashlib.sha256(content).hexdigest()


def _descriptor(media_type, content):
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}
