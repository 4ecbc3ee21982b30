"""`pull`: images of 512 MiB from a registry on loopback, with one layer and with eight, gzip and zstd.

The layers hold the machine's own programs and data from /usr, so they pack as images do. Before each pull the engine
has forgotten the image with all its layers, and the disk is quiet."""

import hashlib
import http.client
import json
import os
import subprocess
import sys
import tarfile

import report
from engines import ENGINES
from processes import BenchError, Group, daemon, end, quietly, timed, wait_until
from start import in_group, rounds

REGISTRY = "127.0.0.1:5000"
MIB = 1 << 20
# (name, kind, packed size of each layer in MiB)
IMAGES = [("gzip-1x512", "gzip", [512]), ("gzip-8x64", "gzip", [64] * 8), ("zstd-8x64", "zstd", [64] * 8)]
PACKERS = {"gzip": ["gzip", "-6", "-n"], "zstd": ["zstd", "-3", "-q"]}
MEDIA = "application/vnd.oci.image"
# Where the engines keep their images; a file with holes.
DISK_BYTES = 32 << 30
# Files larger than that would make layers too unequal.
LARGEST_FILE = 8 * MIB


def run(options):
    home = Group(f"{os.path.basename(options.work)}/driver")
    names = [name for name in options.engines.split(",") if name != "runc"]
    if unknown := [name for name in names if name not in ENGINES]:
        raise BenchError(f"there is no engine {', '.join(unknown)}")
    own_disk(options.work, names)
    engines = [ENGINES[name](options.work, options.toft) for name in names]
    registry = start_registry(options.work)
    try:
        sizes = {name: push(options.work, name, kind, layers) for name, kind, layers in IMAGES}
        for engine in engines:
            engine.begin()
            home.enter()
        about = report.machine([engine.version() for engine in engines], options.profile)
        report.print_machine(about)
        result = {"bench": "pull", "runs": options.runs or 3, "machine": about, "sizes": sizes, "pull": {}}
        for name, kind, _ in IMAGES:
            able = [engine for engine in engines if kind in engine.unpacks]
            result["pull"][name] = measure(able, home, name, result["runs"])
            # What was measured is told at once: a whole bench takes most of an hour.
            show(result, name)
            report.write(options.result, result)
    finally:
        home.enter()
        for engine in engines:
            engine.end()
        end(registry)
    judge(result)
    report.write(options.result, result)


def own_disk(work, names):
    """A file system of the bench's own below each engine's directory. The inodes of files that were deleted in the last minutes
    are passed over by ext4, so that a pull after the removal of its image would be slower than any first one; XFS has no such
    memory."""
    image, disk = os.path.join(work, "disk.img"), os.path.join(work, "disk")
    with open(image, "wb") as file:
        file.truncate(DISK_BYTES)
    quietly(["mkfs.xfs", "-q", image])
    os.makedirs(disk)
    quietly(["mount", "-o", "loop", image, disk])
    for name in names:
        for place in (os.path.join(disk, name), os.path.join(work, name)):
            os.makedirs(place, exist_ok=True)
        quietly(["mount", "--bind", os.path.join(disk, name), os.path.join(work, name)])


def start_registry(work):
    """Debian's docker-registry, on loopback without TLS."""
    place = os.path.join(work, "registry")
    os.makedirs(place)
    config = os.path.join(place, "config.yml")
    with open(config, "w") as out:
        out.write(f"version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n"
                  f"    rootdirectory: {place}/data\nhttp:\n  addr: {REGISTRY}\n")
    process = daemon(["docker-registry", "serve", config], os.path.join(place, "log"))
    wait_until(lambda: ask("GET", "/v2/")[0] == 200, "the registry")
    return process


def ask(method, path, body=None, headers=None):
    """One request to the registry: status, headers, body."""
    connection = http.client.HTTPConnection(REGISTRY, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    except ConnectionRefusedError:
        return 0, {}, b""
    finally:
        connection.close()


def push(work, name, kind, layers):
    """Makes an image and gives it to the registry; its packed and its unpacked size in bytes."""
    files = source_files()
    descriptors, diff_ids, unpacked = [], [], 0
    for number, mib in enumerate(layers):
        path = os.path.join(work, f"{name}-{number}")
        diff_id, size = make_layer(path, PACKERS[kind], mib * MIB, f"layer{number}", files)
        descriptors.append(upload(name, path, f"{MEDIA}.layer.v1.tar+{kind}"))
        diff_ids.append(diff_id)
        unpacked += size
        os.remove(path)
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux", "config": {"Cmd": ["/bin/sh"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    path = os.path.join(work, "config")
    with open(path, "w") as out:
        json.dump(config, out)
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": upload(name, path, f"{MEDIA}.config.v1+json"), "layers": descriptors,
    })
    status, _, body = ask("PUT", f"/v2/bench/{name}/manifests/1", manifest, {"Content-Type": f"{MEDIA}.manifest.v1+json"})
    if status != 201:
        raise BenchError(f"the registry refused a manifest: {status} {body[:500]}")
    return {"packed": sum(layer["size"] for layer in descriptors), "unpacked": unpacked}


def source_files():
    """Files of the machine, again and again in the same order."""
    found = []
    for folder, folders, names in os.walk("/usr"):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) <= LARGEST_FILE:
                found.append(path)
    turn = 0
    while True:
        for path in found:
            yield f"{turn}{path}", path
        turn += 1


def make_layer(path, packer, size, folder, files):
    """Packs files until the layer has its size; the digest and size of what was packed."""

    class Counted:
        """Hashes on the way to the packer."""

        def __init__(self, sink):
            self.sink, self.digest, self.count = sink, hashlib.sha256(), 0

        def write(self, data):
            self.digest.update(data)
            self.count += len(data)
            return self.sink.write(data)

    with open(path, "wb") as out, subprocess.Popen(packer, stdin=subprocess.PIPE, stdout=out) as packing:
        counted = Counted(packing.stdin)
        with tarfile.open(fileobj=counted, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            while os.path.getsize(path) < size:
                name, source = next(files)
                tar.add(source, f"{folder}/{name}", recursive=False)
        packing.stdin.close()
        if packing.wait() != 0:
            raise BenchError(f"`{' '.join(packer)}` failed")
    return "sha256:" + counted.digest.hexdigest(), counted.count


def upload(name, path, media_type):
    """Gives a blob to the registry."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(MIB):
            digest.update(piece)
        digest, size = "sha256:" + digest.hexdigest(), file.tell()
        status, headers, _ = ask("POST", f"/v2/bench/{name}/blobs/uploads/")
        if status != 202:
            raise BenchError(f"the registry refused to begin an upload: {status}")
        where = headers["Location"].split(REGISTRY, 1)[1]
        file.seek(0)
        status, _, body = ask("PUT", f"{where}&digest={digest}", file,
                              {"Content-Type": "application/octet-stream", "Content-Length": str(size)})
        if status != 201:
            raise BenchError(f"the registry refused a blob: {status} {body[:500]}")
    return {"mediaType": media_type, "digest": digest, "size": size}


def measure(engines, home, name, count):
    """Wall and CPU time of complete pulls, the registry's own CPU time apart."""
    image = f"{REGISTRY}/bench/{name}:1"
    samples = {engine.name: {"wall_ms": [], "cpu_ms": []} for engine in engines}
    for turn, engine in rounds(engines, count):
        os.sync()
        command = engine.pull(image)
        wall_ns, _, cpu_us = in_group(engine, home, lambda: timed(command, engine.errors))
        engine.forget(image)
        if turn >= 0:
            samples[engine.name]["wall_ms"].append(wall_ns / 1e6)
            samples[engine.name]["cpu_ms"].append(cpu_us / 1e3)
    return samples


def show(result, name):
    """The table of one image."""
    samples, size = result["pull"][name], result["sizes"][name]
    toft = report.median(samples["toft"]["wall_ms"]) if "toft" in samples else None
    rows = []
    for engine, sample in samples.items():
        wall = sample["wall_ms"]
        rows.append([engine, report.median(wall), report.percentile(wall, 90), min(wall), report.median(sample["cpu_ms"]),
                     toft / report.median(wall) if toft else None])
    report.print_table(f"pull and unpack of {name}, {size['packed'] / MIB:.0f} MiB packed, "
                       f"{size['unpacked'] / MIB:.0f} MiB unpacked, {result['runs']} runs, milliseconds",
                       ["", "median", "p90", "least", "CPU median", "toft / this"], rows)
    sys.stdout.flush()


def judge(result):
    """The goals: of every image packed with gzip."""
    goals = []
    for name, samples in result["pull"].items():
        if "toft" in samples and "ctr" in samples and name.startswith("gzip"):
            toft, ctr = (report.median(samples[engine]["wall_ms"]) for engine in ("toft", "ctr"))
            goals.append((f"pull of {name}, of ctr's time", toft / ctr, 0.5))
    if goals:
        report.print_goals(goals)
    result["goals"] = [{"goal": text, "value": value, "at_most": limit} for text, value, limit in goals]
