"""`dns`: questions for a name of the zone, asked over UDP from inside a container's network, beside dnsmasq."""

import json
import os
import subprocess

import image
import report
from engines import Toft, expect
from processes import BenchError, Group, daemon, end, quietly, wait_until
from unix_http import ask

NAME = "web.toft.internal"
PEER_PORT = 5399
OUTSTANDING = (1, 16, 64)


def run(options):
    home = Group(f"{os.path.basename(options.work)}/driver")
    toft = Toft(options.work, options.toft)
    runs, seconds = options.runs or 5, options.seconds or 3
    program = os.path.join(options.work, "ask")
    source = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "ask.c")
    quietly(["cc", "-O2", "-o", program, source])
    peer = None
    points = {f"{engine} {outstanding}": [] for engine in ("toft", "dnsmasq") for outstanding in OUTSTANDING}
    try:
        toft.begin()
        home.enter()
        toft.import_image(options.archive)
        spec = {"name": "web", "image": image.NAME, "command": ["sleep", "100000"]}
        expect(ask(toft.socket, "POST", "/api/v1/workloads", spec))
        web = wait_until(lambda: running(toft), "the container")
        gateway = web["address"].rsplit(".", 1)[0] + ".1"
        peer = daemon(["dnsmasq", "--keep-in-foreground", "--user=root", "--no-resolv", "--no-hosts", "--no-daemon",
                       "--bind-interfaces", f"--listen-address={gateway}", f"--port={PEER_PORT}",
                       f"--host-record={NAME},{web['address']},1", "--local=/toft.internal/", "--pid-file="],
                      os.path.join(options.work, "dnsmasq.log"))
        servers = {"toft": 53, "dnsmasq": PEER_PORT}
        for port in servers.values():
            wait_until(lambda: point(program, web["pid"], gateway, port, 0.1, 1), f"an answer on port {port}")
        versions = [toft.version(), quietly(["dnsmasq", "--version"]).splitlines()[0]]
        for _ in range(runs):
            for outstanding in OUTSTANDING:
                for engine, port in servers.items():
                    measured = point(program, web["pid"], gateway, port, seconds, outstanding)
                    if measured is None:
                        raise BenchError(f"{engine} gave a wrong answer")
                    points[f"{engine} {outstanding}"].append(measured)
        about = report.machine(versions, options.profile)
    finally:
        home.enter()
        if peer is not None:
            end(peer)
        toft.end()
    result = {"bench": "dns", "runs": runs, "seconds": seconds, "machine": about, "points": points}
    show(result)
    report.write(options.result, result)


def running(toft):
    """The container, once it runs."""
    status, body = ask(toft.socket, "GET", "/api/v1/workloads/web")
    instances = json.loads(body)["instances"] if status == 200 else []
    return next((one for one in instances if one["state"] == "running"), None)


def point(program, pid, gateway, port, seconds, outstanding):
    """One point; nothing when an answer was wrong."""
    argv = ["nsenter", f"--net=/proc/{pid}/ns/net", program, gateway, str(port), NAME, str(seconds), str(outstanding)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    answers, taken, half, most, lost = done.stdout.split()
    return {"per_second": int(answers) / float(taken), "p50_us": int(half) / 1000, "p99_us": int(most) / 1000,
            "lost": int(lost)}


def show(result):
    report.print_machine(result["machine"])
    rows = []
    for name, measured in result["points"].items():
        middle = [report.median([one[key] for one in measured]) for key in ("per_second", "p50_us", "p99_us")]
        rows.append([name, *middle, sum(one["lost"] for one in measured)])
    report.print_table(f"Questions for {NAME}, medians of {result['runs']} runs of {result['seconds']} s",
                       ["outstanding at once", "a second", "p50 us", "p99 us", "lost"], rows)
