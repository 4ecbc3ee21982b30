"""`scale`: a leader with 200 nodes and 10,000 instances. Only the machines under the nodes are made up (`toft dev`): state,
consensus, scheduler, agents and doors are real. Those that vote have processes of their own, the others share one."""

import argparse
import json
import os
import time

import report
from processes import BenchError, daemon, end, quietly, wait_until
from unix_http import ask

# Members that vote, the leader among them.
VOTERS = 5
PER_WORKLOAD = 100
# New workloads come so often, in seconds: often enough to meet the leader's other work, not so often that they queue.
PACE = 0.25
SETTLE_SECONDS = 20
STEP_SECONDS = 1800


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--toft", required=True)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--out")
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--runs", type=int, default=0)
    options = parser.parse_args()
    try:
        result = run(options)
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from error
    if options.out:
        report.write(options.out, result)


def run(options):
    leader = Cluster(options)
    about = report.machine([quietly([options.toft, "--version"]).strip()], options.profile)
    try:
        joined = leader.start()
        idle_empty = leader.watch(options.seconds or 30)
        placed = leader.fill()
        time.sleep(SETTLE_SECONDS)
        idle = leader.watch(options.seconds or 60)
        times = leader.place_new(options.runs or 200)
    finally:
        leader.end()
    result = {"bench": "scale", "machine": about, "nodes": options.nodes, "instances": options.instances,
              "joined_seconds": joined, "running_seconds": placed, "idle_empty": idle_empty, "idle": idle,
              "placed_ms": times}
    show(result)
    return result


class Cluster:
    def __init__(self, options):
        self.options = options
        self.processes = []
        self.socket = os.path.join(options.work, "leader-", "node-1", "toft.sock")

    def dev(self, prefix, nodes, *more):
        """Starts a process with made-up nodes."""
        # Machines of their own would take neither the processors nor the disk from those that vote, and hundreds that wait for
        # one disk would be late.
        modest = ["nice", "-n", "19", "eatmydata"] if nodes > 1 else []
        argv = [*modest, self.options.toft, "dev", "--nodes", str(nodes), "--prefix", prefix, "--bind", "127.0.0.1:0", "--data-dir",
                os.path.join(self.options.work, prefix), *more]
        log = os.path.join(self.options.work, f"{prefix}log")
        process = daemon(argv, log)
        self.processes.append((process, log))
        return process

    def start(self):
        """Starts all nodes; gives the seconds until the last had joined."""
        self.leader = self.dev("leader-", 1)
        wait_until(lambda: self.ask("GET", "/api/v1/nodes"), "the leader")
        token = self.ask("POST", "/api/v1/tokens", {"uses": self.options.nodes})
        path = os.path.join(self.options.work, "token")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(token["token"])
        join = ["--join", token["addresses"][0], "--token-file", path]
        for number in range(1, VOTERS):
            self.dev(f"voter-{number}-", 1, *join)
        wait_until(lambda: self.ready(VOTERS), "the voters", pause=0.2)
        begun = time.monotonic()
        self.dev("other-", self.options.nodes - VOTERS, *join)
        wait_until(lambda: self.ready(self.options.nodes), "all nodes", seconds=STEP_SECONDS, pause=0.5)
        return time.monotonic() - begun

    def ready(self, count):
        self.check()
        return sum(node["state"] == "ready" for node in self.all("/api/v1/nodes")) == count

    def check(self):
        for process, log in self.processes:
            if process.poll() is not None:
                with open(log, errors="replace") as file:
                    raise BenchError(f"made-up nodes ended by themselves: {file.read()[-2000:]}")

    def ask(self, method, target, body=None):
        status, answer = ask(self.socket, method, target, body)
        if status == 0:
            return None
        if status >= 300:
            raise BenchError(f"{method} {target}: {status} {answer[:500]}")
        return json.loads(answer) if answer else {}

    def all(self, target):
        """Every item of a list."""
        items, after = [], None
        while True:
            page = self.ask("GET", f"{target}?consistency=local" + (f"&after={after}" if after else "")) or {"items": []}
            items += page["items"]
            after = page.get("next")
            if after is None:
                return items

    def fill(self):
        """Runs all instances; gives the seconds until the last ran."""
        begun = time.monotonic()
        for number in range(self.options.instances // PER_WORKLOAD):
            self.ask("POST", "/api/v1/workloads", workload(f"w{number}", PER_WORKLOAD))
        wait_until(self.all_run, "all instances", seconds=STEP_SECONDS, pause=1.0)
        return time.monotonic() - begun

    def all_run(self):
        self.check()
        rows = self.all("/api/v1/workloads")
        return sum(row["running"] for row in rows) >= self.options.instances

    def watch(self, seconds):
        """What the leader uses while nothing is asked of it."""
        before, begun = self.cpu_ms(), time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - begun
        self.check()
        memory = self.memory_mb()
        return {"seconds": passed, "cpu_percent": (self.cpu_ms() - before) / 10 / passed, **memory}

    def cpu_ms(self):
        with open(f"/proc/{self.leader.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")

    def memory_mb(self):
        sizes = {}
        with open(f"/proc/{self.leader.pid}/smaps_rollup") as file:
            for line in file:
                words = line.split()
                if words[0] in ("Rss:", "Pss:"):
                    sizes[words[0][:-1].lower() + "_mb"] = int(words[1]) * 1024 / 1e6
        return sizes

    def place_new(self, count):
        """Milliseconds from asking for a workload until the leader's state says on which node it is to run."""
        times = []
        for number in range(count):
            name = f"new{number}"
            begun = time.monotonic()
            self.ask("POST", "/api/v1/workloads", workload(name, 1))
            while not (self.ask("GET", f"/api/v1/workloads/{name}") or {}).get("instances"):
                if time.monotonic() - begun > 30:
                    raise BenchError(f"`{name}` was not placed")
                time.sleep(0.001)
            times.append((time.monotonic() - begun) * 1e3)
            time.sleep(max(0.0, PACE - (time.monotonic() - begun)))
        return times

    def end(self):
        for process, _ in reversed(self.processes):
            end(process, patience=60)


def workload(name, replicas):
    return {"name": name, "image": "made-up:1", "replicas": replicas, "resources": {"cpu_millis": 10, "memory_bytes": 16 << 20}}


def show(result):
    report.print_machine(result["machine"])
    rows = [["no instances", result["idle_empty"]["cpu_percent"], result["idle_empty"]["rss_mb"]],
            [f"{result['instances']} instances", result["idle"]["cpu_percent"], result["idle"]["rss_mb"]]]
    report.print_table(f"the leader of {result['nodes']} nodes while nothing happens", ["", "CPU in % of a core", "RSS in MB"],
                       rows)
    times = result["placed_ms"]
    report.print_table(f"from asking for a workload until it has a place, {len(times)} workloads, milliseconds",
                       ["", "median", "p90", "p99", "most"],
                       [["toft", report.median(times), report.percentile(times, 90), report.percentile(times, 99), max(times)]])
    print(f"\n{result['nodes']} nodes had joined after {result['joined_seconds']:.0f} s, "
          f"{result['instances']} instances ran after {result['running_seconds']:.0f} s")
    goals = [("the leader's CPU in % of a core", result["idle"]["cpu_percent"], 5),
             ("the leader's memory in MB", result["idle"]["rss_mb"], 300),
             ("placing a new workload, p99 in ms", report.percentile(times, 99), 50)]
    report.print_goals(goals)
    result["goals"] = [{"goal": text, "value": value, "at_most": limit} for text, value, limit in goals]


main()
