"""Runs one bench inside the namespaces that bench/run.sh made."""

import argparse
import os
import shutil
import sys

import density
import dns
import failover
import idle
import image
import pull
import start
import state
from processes import BenchError


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench", choices=["start", "idle", "state", "pull", "dns", "density", "failover"])
    parser.add_argument("--work", required=True)
    parser.add_argument("--toft", required=True)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--losses", default="machine,leader")
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--engines", default="toft,ctr,docker,podman,runc,swarm")
    options = parser.parse_args()
    options.work = os.path.realpath(options.work)
    options.result = os.path.join(options.work, "result.json")
    options.archive = os.path.join(options.work, "image.tar")
    with open(os.path.join(options.work, "cgroups"), "w"):
        pass
    rootfs = os.path.join(options.work, "rootfs")
    busybox = shutil.which("busybox") or "/bin/busybox"
    image.make_rootfs(rootfs, busybox, os.path.join(options.work, "stamp"))
    image.make_archive(rootfs, options.archive)
    os.environ["HOME"] = options.work
    try:
        benches = {"start": start, "idle": idle, "state": state, "pull": pull, "dns": dns, "density": density,
                   "failover": failover}
        benches[options.bench].run(options)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    finally:
        with open(os.path.join(options.work, "cgroups"), "a") as file:
            file.write(f"{os.path.basename(options.work)}\n")


main()
