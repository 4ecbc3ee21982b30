"""`mesh`: TCP through a WireGuard tunnel between two network namespaces, carried by toft itself, beside Debian's
wireguard-go. Runs in namespaces of its own, which bench/run.sh makes."""

import argparse
import json
import os
import subprocess

import report
from processes import BenchError, daemon, end, quietly, wait_until

ENGINES = ("toft", "wireguard-go")
PORT = 51820
MTU = 1420
TICKS = os.sysconf("SC_CLK_TCK")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--toft", required=True, help="the example program mesh_peer")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--out")
    options = parser.parse_args()
    version = subprocess.run(["wireguard-go", "--version"], capture_output=True, text=True, check=False)
    versions = [f"toft {quietly(['git', '-C', os.path.dirname(__file__), 'rev-parse', '--short', 'HEAD']).strip()}",
                (version.stdout or version.stderr).splitlines()[0],
                quietly(["iperf3", "--version"]).splitlines()[0]]
    about = report.machine(versions, options.profile)
    nodes = [daemon(["unshare", "-n", "sleep", "100000"], os.path.join(options.work, f"node{n}.log")) for n in (0, 1)]
    runs = {engine: [] for engine in ENGINES}
    try:
        for n, node in enumerate(nodes):
            wait_until(lambda node=node: own_namespace(node), "a namespace")
            ip(node, "link", "set", "lo", "up")
            if n == 1:
                ip(nodes[0], "link", "add", "under", "type", "veth", "peer", "name", "under", "netns", str(node.pid))
        for n, node in enumerate(nodes):
            ip(node, "addr", "add", f"192.0.2.{n + 1}/24", "dev", "under")
            ip(node, "link", "set", "under", "up")
        # One after the other, so that what else the machine does hits all alike.
        for run in range(options.runs):
            for engine in ENGINES if run % 2 == 0 else reversed(ENGINES):
                runs[engine].append(measure(engine, nodes, options))
    finally:
        for node in nodes:
            end(node)
    result = {"bench": "mesh", "runs": options.runs, "seconds": options.seconds, "machine": about, "engines": runs}
    show(result)
    if options.out:
        report.write(options.out, result)


def own_namespace(node):
    return os.readlink(f"/proc/{node.pid}/ns/net") != os.readlink("/proc/self/ns/net")


def within(node, argv):
    return ["nsenter", f"--net=/proc/{node.pid}/ns/net", *argv]


def ip(node, *arguments):
    quietly(within(node, ["ip", *arguments]))


def measure(engine, nodes, options):
    """One run: gigabits a second, and the CPU time that each gigabit cost."""
    begin = {"toft": begin_toft, "wireguard-go": begin_wireguard_go}[engine]
    tunnels = []
    server = None
    try:
        begin(nodes, options, tunnels)
        log = os.path.join(options.work, "iperf3.log")
        server = daemon(within(nodes[1], ["iperf3", "--server", "--bind", "10.99.0.2"]), log)
        wait_until(lambda: talks(nodes[0]), f"an answer through {engine}", pause=0.5)
        # The server may still be busy with the end of the first one.
        told, spent, busy = wait_until(lambda: attempt(nodes[0], options.seconds, tunnels), "iperf3", pause=0.5)
    finally:
        for process in [*tunnels, *([server] if server else [])]:
            end(process)
        wait_until(lambda: not any(linked(node) for node in nodes), "the end of the tunnel")
    received = told["end"]["sum_received"]
    gigabits = received["bytes"] * 8 / 1e9
    return {"gbit_per_second": gigabits / received["seconds"], "cpu_per_gbit": spent / gigabits,
            "machine_cpu_per_gbit": busy / gigabits}


def attempt(node, seconds, tunnels):
    """What iperf3 tells, and the CPU time meanwhile; nothing when it did not run."""
    before, busy_before = sum(map(cpu_seconds, tunnels)), busy_seconds()
    try:
        told = iperf(node, seconds)
    except BenchError:
        return None
    return told, sum(map(cpu_seconds, tunnels)) - before, busy_seconds() - busy_before


def linked(node):
    return "tunnel" in quietly(within(node, ["ip", "-brief", "link"]))


def iperf(node, seconds):
    done = subprocess.run(within(node, ["iperf3", "--json", "--client", "10.99.0.2", "--time", str(round(seconds))]),
                          capture_output=True, text=True, check=False)
    told = json.loads(done.stdout or "{}")
    if done.returncode != 0 or "error" in told:
        raise BenchError(f"iperf3: {told.get('error', done.stderr.strip())}")
    return told


def talks(node):
    try:
        return iperf(node, 1)
    except BenchError:
        return None


def begin_toft(nodes, options, tunnels):
    folders = [os.path.join(options.work, f"keys{n}") for n in (0, 1)]
    keys = [quietly([options.toft, "key", folder]).strip() for folder in folders]
    for n, node in enumerate(nodes):
        other = 1 - n
        peer = {"next_key": None, "allowed": [f"10.99.0.{other + 1}/32"], "keepalive_s": 25,
                "endpoints": [{"address": f"192.0.2.{other + 1}:{PORT}", "path": "direct"}]}
        config = {"key": keys[n], "listen_port": PORT, "addresses": [f"10.99.0.{n + 1}"], "mtu": MTU,
                  "peers": {keys[other]: peer}}
        path = os.path.join(options.work, f"mesh{n}.json")
        with open(path, "w") as file:
            json.dump(config, file)
        log = os.path.join(options.work, f"toft{n}.log")
        # What an earlier run said is not this one's word.
        open(log, "w").close()
        tunnels.append(daemon(within(node, [options.toft, "run", folders[n], "tunnel", path]), log))
        wait_until(lambda log=log: "ready" in open(log).read(), "toft's device")


def begin_wireguard_go(nodes, options, tunnels):
    secrets = [quietly(["wg", "genkey"]).strip() for _ in nodes]
    keys = [subprocess.run(["wg", "pubkey"], input=one, capture_output=True, text=True, check=True).stdout.strip()
            for one in secrets]
    for n, node in enumerate(nodes):
        other = 1 - n
        path = os.path.join(options.work, f"secret{n}")
        with open(path, "w") as file:
            file.write(secrets[n])
        # The control socket is called like the interface, so each is made with a name of its own.
        name = f"tunnel{n}"
        log = os.path.join(options.work, f"wireguard{n}.log")
        tunnels.append(daemon(within(node, ["wireguard-go", "--foreground", name]), log))
        wait_until(lambda name=name: os.path.exists(f"/run/wireguard/{name}.sock"), "wireguard-go")
        quietly(within(node, ["wg", "set", name, "listen-port", str(PORT), "private-key", path, "peer", keys[other],
                              "endpoint", f"192.0.2.{other + 1}:{PORT}", "allowed-ips", f"10.99.0.{other + 1}/32",
                              "persistent-keepalive", "25"]))
        ip(node, "addr", "add", f"10.99.0.{n + 1}/32", "dev", name)
        ip(node, "link", "set", name, "mtu", str(MTU), "up")
        ip(node, "route", "add", f"10.99.0.{other + 1}/32", "dev", name)


def cpu_seconds(process):
    """User and system time of a process, in which its threads are counted."""
    with open(f"/proc/{process.pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy_seconds():
    """Time that all processors spent on anything."""
    with open("/proc/stat") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def show(result):
    report.print_machine(result["machine"])
    middle = {engine: {key: report.median([run[key] for run in runs]) for key in runs[0]}
              for engine, runs in result["engines"].items()}
    rows = [[engine, f"{one['gbit_per_second']:.2f}", f"{one['cpu_per_gbit']:.3f}", f"{one['machine_cpu_per_gbit']:.3f}"]
            for engine, one in middle.items()]
    report.print_table(f"TCP through the tunnel, medians of {result['runs']} runs of {result['seconds']:g} s",
                       ["both ends", "Gb/s", "CPU s/Gbit", "whole machine"], rows)
    ours, others = middle["toft"], middle["wireguard-go"]
    report.print_goals([
        ("throughput: wireguard-go's Gb/s as a share of toft's", others["gbit_per_second"] / ours["gbit_per_second"], 0.5),
        ("CPU time of a gigabit: toft's as a share of wireguard-go's", ours["cpu_per_gbit"] / others["cpu_per_gbit"], 0.5),
    ])


main()
