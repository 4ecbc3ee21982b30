"""`state`: how many small durable writes a second, with one node and with three, beside etcd on the same disk."""

import base64
import json
import os
import re
import shutil
import threading
import time

import report
from engines import Engine, Toft, expect
from idle import pss_mb
from processes import BenchError, Group, quietly, wait_until
from unix_http import ask

CONNECTIONS = (1, 16, 64, 256)
NODES = (1, 3)
# Workloads and etcd keys that are written in turn; also the length of the list that is read.
KEYS = 1000
WARM_UP_SECONDS = 1
MEMORY_MB = 100
MILLION = 1_000_000

# Every request writes another 256 bytes under the next key. What wrk found out is printed as one line of JSON.
SCRIPT = r"""
local n = math.random(0, 1000000) * 1000
local filler = string.rep("toft bench ", 24)
%(request)s
wrk.headers["Content-Type"] = "application/json"
%(headers)s
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %%d, "us": %%d, "failed": %%d, "p50_us": %%d, "p99_us": %%d, "max_us": %%d}\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.timeout + e.status,
    latency:percentile(50), latency:percentile(99), latency.max))
end
"""
TOFT_WRITE = r"""
request = function()
  n = n + 1
  local value = string.sub(string.format("%d ", n) .. filler, 1, 256)
  return wrk.format("PATCH", "/api/v1/workloads/bench-" .. n % 1000 .. "/labels", nil, '{"value":"' .. value .. '"}')
end
"""
# Base64 as the gateway wants it: 344 characters are 256 bytes, 12 are a key of 9.
ETCD_WRITE = r"""
request = function()
  n = n + 1
  local value = string.sub(string.format("%012d", n) .. string.rep("dG9mdCBiZW5j", 28), 1, 342) .. "A="
  return wrk.format("POST", "/v3/kv/put", nil, string.format('{"key":"%012d","value":"%s"}', n % 1000, value))
end
"""
TOFT_LIST = r"""
request = function() return wrk.format("GET", "/api/v1/workloads?limit=1000") end
"""
ETCD_LIST = r"""
request = function() return wrk.format("POST", "/v3/kv/range", nil, '{"key":"AA==","range_end":"AA=="}') end
"""


class ToftCluster(Engine):
    """Appliances that share one state, each with a directory, an address and a containerd of its own."""

    name = "toft"
    write, list = TOFT_WRITE, TOFT_LIST

    def __init__(self, work, toft):
        super().__init__(work, toft)
        self.members = []

    def begin_members(self, count):
        token = os.path.join(self.place, "token")
        for i in range(count):
            member = Toft(self.place, self.toft)
            member.data = os.path.join(self.place, f"node{i}")
            member.socket = os.path.join(member.data, "toft.sock")
            os.makedirs(member.data)
            with open(os.path.join(member.data, "toft.toml"), "w") as config:
                config.write(f'[node]\nname = "node{i}"\n[api]\nbind = "127.0.0.1:{7600 + i}"\n'
                             f'[cluster]\nbind = "127.0.0.1:{7610 + i}"\n[mesh]\nenabled = false\n')
            join = ["--join", "127.0.0.1:7610", "--token-file", token] if i else []
            self.members.append(member)
            self.start_daemon([*self.prefix(i), self.toft, "up", "--data-dir", member.data, *join])
            wait_until(member.ready, f"toft {i}")
            if not i and count > 1:
                told = json.loads(expect(ask(member.socket, "POST", "/api/v1/tokens", {"uses": count - 1})))
                with open(token, "w") as file:
                    file.write(told["token"])
        wait_until(lambda: self.voters() == count, "every node's vote", pause=0.05)
        first = self.members[0]
        for i in range(KEYS):
            spec = {"name": f"bench-{i}", "image": "localhost/bench/busybox:1", "replicas": 0}
            expect(ask(first.socket, "POST", "/api/v1/workloads", spec))
        with open(os.path.join(first.data, "admin-password")) as file:
            self.password = file.read().strip()

    def prefix(self, _member):
        return []

    def voters(self):
        status = json.loads(expect(ask(self.members[0].socket, "GET", "/api/v1/cluster")))
        return sum(member["votes"] for member in status["members"])

    def url(self):
        return "http://127.0.0.1:7600"

    def headers(self):
        login = base64.b64encode(f"admin:{self.password}".encode()).decode()
        return f'wrk.headers["Authorization"] = "Basic {login}"'

    def data_bytes(self):
        return sum(disk_bytes(member.data, "containerd") for member in self.members)

    def version(self):
        return quietly([self.toft, "--version"]).strip()

    def end(self):
        self.end_daemons()
        for member in self.members:
            quietly([self.toft, "down", "--data-dir", member.data])
            shutil.rmtree(member.data)
        self.members = []


class TracedToft(ToftCluster):
    """One appliance whose system calls are written down."""

    name = "traced"

    def prefix(self, _member):
        self.trace = os.path.join(self.place, "trace")
        return ["strace", "-f", "-ttt", "-T", "-y", "-s", "16", "-e", "trace=fdatasync,fsync,recvfrom,sendto,writev",
                "-o", self.trace]


class Etcd(Engine):
    """etcd with its defaults, asked through its JSON gateway."""

    name = "etcd"
    write, list = ETCD_WRITE, ETCD_LIST

    def begin_members(self, count):
        self.count = count
        peers = ",".join(f"node{i}=http://127.0.0.1:{7630 + i}" for i in range(count))
        for i in range(count):
            client, peer = f"http://127.0.0.1:{7620 + i}", f"http://127.0.0.1:{7630 + i}"
            self.start_daemon([
                "etcd", "--name", f"node{i}", "--data-dir", os.path.join(self.place, f"node{i}"), "--log-level", "error",
                "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
                "--initial-advertise-peer-urls", peer, "--initial-cluster", peers,
            ])
        self.leading = wait_until(self.leader, "etcd's leader", pause=0.05)

    def leader(self):
        """The address of the member that leads; None when none does yet."""
        for i in range(self.count):
            address = f"http://127.0.0.1:{7620 + i}"
            try:
                told = json.loads(quietly(["curl", "-sS", "--max-time", "2", "-d", "{}",
                                           f"{address}/v3/maintenance/status"]))
            except BenchError:
                return None
            if told.get("leader") and told["leader"] == told["header"]["member_id"]:
                return address
        return None

    def url(self):
        return self.leading

    def headers(self):
        return ""

    def data_bytes(self):
        return sum(disk_bytes(os.path.join(self.place, f"node{i}")) for i in range(self.count))

    def version(self):
        return quietly(["etcd", "--version"]).splitlines()[0]

    def end(self):
        self.end_daemons()
        for i in range(getattr(self, "count", 0)):
            shutil.rmtree(os.path.join(self.place, f"node{i}"), ignore_errors=True)


def disk_bytes(directory, besides=None):
    """What the files of a directory take on the disk, those of the folder `besides` in it left out."""
    total = 0
    for folder, folders, names in os.walk(directory):
        if folder == directory and besides in folders:
            folders.remove(besides)
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                pass
    return total


def run(options):
    home = Group(f"{os.path.basename(options.work)}/driver")
    engines = [ToftCluster(options.work, options.toft), Etcd(options.work, options.toft)]
    runs, seconds = options.runs or 3, options.seconds or 5
    writes = {nodes: {engine.name: {n: [] for n in CONNECTIONS} for engine in engines} for nodes in NODES}
    lists = {engine.name: [] for engine in engines}
    try:
        for nodes in NODES:
            for turn in range(runs):
                for engine in engines[turn % 2:] + engines[:turn % 2]:
                    engine.begin_members(nodes)
                    home.enter()
                    measure(engine, "write", 16, WARM_UP_SECONDS, options.work)
                    for connections in CONNECTIONS:
                        writes[nodes][engine.name][connections].append(
                            measure(engine, "write", connections, seconds, options.work))
                    if nodes == 1:
                        lists[engine.name].append(measure(engine, "list", 1, seconds, options.work))
                    engine.end()
        traced = prove_syncs(options, home)
        million = write_a_million(engines, options.work, home) if options.million else None
        about = report.machine([engine.version() for engine in engines], options.profile)
    finally:
        home.enter()
        for engine in engines:
            engine.end()
    result = {"bench": "state", "runs": runs, "seconds": seconds, "machine": about, "writes": writes, "lists": lists,
              "syncs": traced, "million": million}
    show(result)
    report.write(options.result, result)


def measure(engine, what, connections, seconds, work):
    """Lets wrk loose; gives what it counted, the CPU time of the daemons for one request, and their memory at the end."""
    script = os.path.join(work, "wrk.lua")
    with open(script, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(SCRIPT % {"request": getattr(engine, what), "headers": engine.headers()})
    before = engine.group.cpu_us()
    printed = quietly(["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s",
                       "--timeout", "30s", "--latency", "--script", script, engine.url()])
    cpu_us = engine.group.cpu_us() - before
    told = json.loads(re.search(r"^RESULT (.*)$", printed, re.MULTILINE).group(1))
    if told["failed"] or not told["requests"]:
        raise BenchError(f"{engine.name}: {told['failed']} of {told['requests']} requests failed: {printed[-1000:]}")
    return {
        "rate": told["requests"] * 1e6 / told["us"], "p50_ms": told["p50_us"] / 1e3, "p99_ms": told["p99_us"] / 1e3,
        "max_ms": told["max_us"] / 1e3, "cpu_us": cpu_us / told["requests"], "requests": told["requests"],
        "memory_mb": max(pss_mb(process.pid) for process in engine.processes),
    }


def prove_syncs(options, home):
    """Writes while system calls are written down: how many answers there were, how many syncs of the log, and how many
    answers were sent without one that began after the request had come."""
    engine = TracedToft(options.work, options.toft)
    try:
        engine.begin_members(1)
        home.enter()
        with open(engine.trace) as trace:
            skipped = len(trace.read())
        told = measure(engine, "write", 16, 3, options.work)
        # The tracer writes its lines a little later.
        time.sleep(1)
        with open(engine.trace) as trace:
            trace.seek(skipped)
            lines = trace.readlines()
    finally:
        home.enter()
        engine.end()
    return {**check_syncs(lines), "requests": told["requests"]}


CALL = re.compile(r"^(\d+) +([0-9.]+) (<\.\.\. )?(\w+)( resumed>)?(?:\((\d+)<([^>]*)>)?(.*)$")


def check_syncs(lines):
    """Pairs requests, syncs of the log and answers of a trace by file descriptor and time. A call that another thread's
    line cuts in two begins with its first part and counts with its second."""
    begun, came, synced = {}, {}, []
    answers = unsynced = 0
    for line in lines:
        call = CALL.match(line)
        if not call:
            continue
        thread, at, resumed, name, _, descriptor, path, rest = call.groups()
        at = float(at)
        if resumed:
            start, descriptor, path, first = begun.pop(thread, (at, None, None, ""))
            rest = first + rest
        elif "<unfinished" in rest:
            begun[thread] = (at, descriptor, path, rest)
            # Whoever waits for the answer may have it before the call has returned.
            if name in ("sendto", "writev") and "HTTP/1.1 204" in rest:
                answers += 1
                unsynced += not is_synced(synced, came.get(descriptor))
            continue
        else:
            start = at
        if name in ("fdatasync", "fsync"):
            if (path or "").endswith(".redb") and "= 0" in rest:
                synced.append(start)
        elif name == "recvfrom" and '"PATCH' in rest:
            came[descriptor] = at
        elif name in ("sendto", "writev") and "HTTP/1.1 204" in rest and not resumed:
            answers += 1
            unsynced += not is_synced(synced, came.get(descriptor))
    return {"answers": answers, "syncs": len(synced), "unsynced": unsynced}


def is_synced(synced, came):
    """Whether a sync that began after the request had come has ended."""
    return came is not None and bool(synced) and synced[-1] >= came


def write_a_million(engines, work, home):
    """A million writes over 64 connections to one node: the most memory and disk that were seen, once a second."""
    told = {}
    for engine in engines:
        engine.begin_members(1)
        home.enter()
        most = {"memory_mb": 0.0, "disk_mb": 0.0}
        over = threading.Event()

        def watch(engine=engine, most=most, over=over):
            while not over.wait(1):
                most["memory_mb"] = max(most["memory_mb"], *(pss_mb(process.pid) for process in engine.processes))
                most["disk_mb"] = max(most["disk_mb"], engine.data_bytes() / 1e6)

        watcher = threading.Thread(target=watch)
        watcher.start()
        requests, begun = 0, time.monotonic()
        try:
            while requests < MILLION:
                requests += measure(engine, "write", 64, 20, work)["requests"]
        finally:
            over.set()
            watcher.join()
        told[engine.name] = {"requests": requests, "seconds": time.monotonic() - begun, **most}
        engine.end()
    return told


def show(result):
    report.print_machine(result["machine"])
    goals = []
    for nodes, engines in result["writes"].items():
        rows = []
        for connections in CONNECTIONS:
            ours = report.median([run["rate"] for run in engines["toft"][connections]])
            theirs = report.median([run["rate"] for run in engines["etcd"][connections]])
            for name in engines:
                samples = engines[name][connections]
                fields = ("rate", "p50_ms", "p99_ms", "max_ms", "cpu_us", "memory_mb")
                values = [report.median([run[field] for run in samples]) for field in fields]
                rows.append([f"{name}, {connections}", *values, ours / theirs if name == "toft" else None])
            goals.append((f"writes, {nodes} nodes, {connections} connections, etcd's rate / toft's", theirs / ours,
                          0.5 if connections == 64 else 1.0))
        report.print_table(
            f"256-byte writes, {nodes} node{'s' if nodes > 1 else ''}, {result['runs']} times {result['seconds']:.0f} s",
            ["connections", "a second", "p50 ms", "p99 ms", "most ms", "CPU us each", "PSS MB", "toft / etcd"], rows)
    rows = [[name, *(report.median([run[field] for run in samples]) for field in ("rate", "p50_ms", "p99_ms", "cpu_us"))]
            for name, samples in result["lists"].items()]
    report.print_table(f"list of {KEYS}, 1 connection", ["", "a second", "p50 ms", "p99 ms", "CPU us each"], rows)
    goals.append((f"p99 of a list of {KEYS} workloads, ms",
                  report.median([run["p99_ms"] for run in result["lists"]["toft"]]), 5))
    syncs = result["syncs"]
    print(f"\nunder strace: {syncs['answers']} writes answered, {syncs['syncs']} syncs of the log, "
          f"{syncs['unsynced']} answers not preceded by a sync of their own")
    if not syncs["answers"]:
        raise BenchError("the trace holds no answers")
    goals.append(("writes that were answered before they were on the disk", syncs["unsynced"], 0))
    if result["million"]:
        rows = [[name, told["requests"], told["requests"] / told["seconds"], told["memory_mb"], told["disk_mb"]]
                for name, told in result["million"].items()]
        report.print_table("a million writes, 64 connections, 1 node",
                           ["", "writes", "a second", "most PSS MB", "most disk MB"], rows)
        goals.append(("memory through a million writes, MB", result["million"]["toft"]["memory_mb"], MEMORY_MB))
    report.print_goals(goals)
    result["goals"] = [{"goal": text, "value": value, "at_most": limit} for text, value, limit in goals]
