"""`scale`: a leader with 200 nodes and 10,000 instances. Only the machines under the nodes are made up (`toft dev`): state,
consensus, scheduler, agents and doors are real. Those that vote have processes of their own, the others share one."""

import os
import time

import made_up
import report
from processes import BenchError, quietly, wait_until

# Members that vote, the leader among them.
VOTERS = 5
PER_WORKLOAD = 20
# Instances that are on their way at a time while all are started: 195 nodes share the processors of one machine here, and
# nodes that have no time to answer count as lost. What they have is not started elsewhere then: nothing is measured meanwhile.
ON_THEIR_WAY = 200
# New workloads come so often, in seconds: often enough to meet the leader's other work, not so often that they queue.
PACE = 0.25
SETTLE_SECONDS = 20


def run(options):
    leader = Leader(options)
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


class Leader(made_up.Cluster):
    def __init__(self, options):
        super().__init__(options, "leader-")
        self.leading = 0

    def measured(self):
        return self.processes[self.leading][0]

    def find(self):
        """Looks which process leads: while hundreds join, another may be elected."""
        name = self.ask("GET", "/api/v1/cluster")["leader"]
        names = ["leader-", *(f"voter-{number}-" for number in range(1, VOTERS))]
        self.leading = next(place for place, prefix in enumerate(names) if name and name.startswith(prefix))

    def dev(self, prefix, nodes, *more):
        """Starts a process with made-up nodes."""
        # Machines of their own would take neither the processors nor the disk from those that vote, so they run when nobody else
        # wants to; and hundreds that wait for one disk would be late.
        modest = ["chrt", "--idle", "0", "eatmydata"] if nodes > 1 else []
        self.start_process(prefix, nodes, "--prefix", prefix, *more, before=modest)

    def start(self):
        """Starts all nodes; gives the seconds until the last had joined."""
        self.dev("leader-", 1)
        wait_until(lambda: self.ask("GET", "/api/v1/nodes"), "the leader")
        token = self.ask("POST", "/api/v1/tokens", {"uses": self.options.nodes})
        path = os.path.join(self.options.work, "token")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(token["token"])
        join = ["--join", token["addresses"][0], "--token-file", path]
        for number in range(1, VOTERS):
            self.dev(f"voter-{number}-", 1, *join)
        self.wait_for_nodes(VOTERS, "the voters")
        begun = time.monotonic()
        self.dev("other-", self.options.nodes - VOTERS, *join)
        self.wait_for_nodes(self.options.nodes, "all nodes")
        return time.monotonic() - begun

    def fill(self):
        """Runs all instances; gives the seconds until the last ran."""
        begun = time.monotonic()
        for number in range(self.options.instances // PER_WORKLOAD):
            self.ask("POST", "/api/v1/workloads", workload(f"w{number}", PER_WORKLOAD))
            wanted = (number + 1) * PER_WORKLOAD - ON_THEIR_WAY
            wait_until(lambda: self.running() >= wanted, "instances", seconds=made_up.STEP_SECONDS, pause=0.5)
        wait_until(lambda: self.running() >= self.options.instances, "all instances", seconds=made_up.STEP_SECONDS, pause=1.0)
        return time.monotonic() - begun

    def watch(self, seconds):
        """What the leader uses while nothing is asked of it."""
        self.find()
        percent = self.cpu_percent(seconds)
        self.check()
        return {"seconds": seconds, "cpu_percent": percent, **self.memory_mb()}

    def memory_mb(self):
        sizes = {}
        with open(f"/proc/{self.measured().pid}/smaps_rollup") as file:
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
            # Asked often: what a node has itself, so that the looks cost the others nothing.
            while not (self.ask("GET", f"/api/v1/workloads/{name}?consistency=local") or {}).get("instances"):
                if time.monotonic() - begun > 30:
                    raise BenchError(f"`{name}` was not placed")
                time.sleep(0.001)
            times.append((time.monotonic() - begun) * 1e3)
            time.sleep(max(0.0, PACE - (time.monotonic() - begun)))
        return times


def workload(name, replicas):
    return {"name": name, "image": "made-up:1", "replicas": replicas, "on_node_loss": "wait",
            "resources": {"cpu_millis": 10, "memory_bytes": 16 << 20}}


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


made_up.main(run, nodes=200, instances=10_000)
