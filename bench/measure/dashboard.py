"""`dashboard`: how long the server takes for every page, what a first look and a change cost on the way, and what 500 open
dashboards cost while nothing happens. The machines are made up (`toft dev`); everything above them is real."""

import gzip
import http.client
import re
import selectors
import socket
import time

import made_up
import report
from processes import BenchError, quietly, wait_until

PAGES = ["/", "/workloads", "/workloads/w-0007", "/workloads/w-0007/history", "/workloads/w-0007/edit", "/nodes", "/nodes/node-3",
         "/gpus", "/gpus/node-3/0", "/mesh", "/events", "/images", "/volumes", "/secrets", "/settings", "/run", "/find?q=w-00"]
LIVE = ["/live/overview", "/live/workloads", "/live/gpus", "/live/nodes", "/live/events", "/live/workloads/w-0007"]
WARM = 10


# Machines that are made up get a past, too, when they and what runs on them are measured first: a write to the disk for each.
SETTLE_SECONDS = 60


def run(options):
    cluster = Dashboard(options)
    about = report.machine([quietly([options.toft, "--version"]).strip()], options.profile)
    try:
        cluster.start()
        cluster.fill()
        time.sleep(SETTLE_SECONDS)
        quiet = round(cluster.cpu_percent(options.seconds or 30), 2)
        pages = {page: cluster.page(page, options.runs or 300) for page in PAGES}
        first = cluster.first_look("/")
        updates = {stream: cluster.update(stream) for stream in LIVE}
        opened = cluster.open_many(options.open, options.seconds or 60)
    finally:
        cluster.end()
    result = {"bench": "dashboard", "machine": about, "nodes": cluster.nodes, "gpus": cluster.gpus, "workloads": options.workloads,
              "pages": pages, "first_look_bytes": first, "update_bytes": updates, "idle_cpu_percent": quiet,
              "open": options.open, "open_cpu_percent": opened}
    show(result)
    return result


class Dashboard(made_up.Cluster):
    def start(self):
        self.start_process("dev", self.options.nodes)
        wait_until(lambda: self.ask("GET", "/api/v1/nodes"), "the first node")
        self.wait_for_nodes(self.options.nodes, "all nodes")
        self.nodes = self.options.nodes
        self.gpus = len(self.all("/api/v1/gpus"))

    def fill(self):
        """Workloads of one instance each; every tenth wants a share of a card, every fiftieth waits in vain."""
        for number in range(self.options.workloads):
            spec = {"name": f"w-{number:04}", "image": f"ghcr.io/bench/app-{number % 40}:1.{number % 9}"}
            if number % 10 == 3:
                spec["gpus"] = "vram=4GiB"
            if number % 50 == 49:
                spec["resources"] = {"memory_bytes": 1 << 45}
            self.ask("POST", "/api/v1/workloads", spec)
        wanted = self.options.workloads - self.options.workloads // 50
        wait_until(lambda: self.running() >= wanted * 0.98, "the workloads", seconds=made_up.STEP_SECONDS, pause=1)

    def page(self, path, runs):
        """Milliseconds from request to the last byte, on one connection; and the size on the way."""
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(self.socket)
        times, size, packed = [], 0, 0
        for number in range(runs + WARM):
            begun = time.perf_counter()
            connection.request("GET", path, headers={"Accept-Encoding": "gzip", "Host": "localhost"})
            answer = connection.getresponse()
            body = answer.read()
            spent = (time.perf_counter() - begun) * 1000
            if answer.status != 200:
                raise BenchError(f"{path}: {answer.status}")
            if number >= WARM:
                times.append(spent)
            packed = len(body)
            size = len(gzip.decompress(body)) if answer.headers.get("Content-Encoding") == "gzip" else len(body)
        connection.close()
        times.sort()
        rank = lambda part: round(times[min(len(times) - 1, int(len(times) * part))], 2)
        return {"p50_ms": rank(0.5), "p99_ms": rank(0.99), "bytes": size, "packed_bytes": packed}

    def fetch(self, path):
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(self.socket)
        connection.request("GET", path, headers={"Accept-Encoding": "gzip", "Host": "localhost"})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        text = gzip.decompress(body) if answer.headers.get("Content-Encoding") == "gzip" else body
        return len(body), text.decode(errors="replace")

    def first_look(self, path):
        """Bytes on the way for a page and all that it names."""
        total, text = self.fetch(path)
        for name in set(re.findall(r'(?:src|href)="(/static/[^"]+)"', text)):
            total += self.fetch(name)[0]
        return total

    def stream(self, path):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self.socket)
        connection.sendall((f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
                            "Accept-Encoding: gzip\r\n\r\n").encode())
        connection.settimeout(20)
        return connection

    def update(self, path):
        """Bytes of what one change of one workload sends to a page that is open."""
        connection = self.stream(path)
        self.drain(connection, 2)
        self.ask("POST", "/api/v1/workloads/w-0007/stop")
        changed = self.drain(connection, 1.5)
        self.ask("POST", "/api/v1/workloads/w-0007/start")
        self.drain(connection, 2)
        connection.close()
        return changed

    def drain(self, connection, seconds):
        """Reads until nothing comes for so long; gives the largest burst between two pauses."""
        connection.settimeout(0.2)
        until, size, largest = time.monotonic() + seconds, 0, 0
        while time.monotonic() < until:
            try:
                size += len(connection.recv(1 << 20))
            except TimeoutError:
                largest, size = max(largest, size), 0
        return max(largest, size)

    def open_many(self, count, seconds):
        """CPU in percent of a core while so many dashboards are open and nothing happens."""
        selector = selectors.DefaultSelector()
        streams = [self.stream(LIVE[number % len(LIVE)]) for number in range(count)]
        for stream in streams:
            stream.setblocking(False)
            selector.register(stream, selectors.EVENT_READ)

        def read(span):
            until = time.monotonic() + span
            while time.monotonic() < until:
                for key, _ in selector.select(timeout=0.5):
                    if not key.fileobj.recv(1 << 20):
                        raise BenchError("a stream ended by itself")

        read(10)
        percent = self.cpu_percent(seconds, read)
        for stream in streams:
            stream.close()
        return round(percent, 2)


def show(result):
    print(f"{result['nodes']} nodes, {result['gpus']} GPUs, {result['workloads']} workloads")
    print(f"{'page':28} {'p50 ms':>8} {'p99 ms':>8} {'KB':>8} {'packed':>8}")
    for page, told in result["pages"].items():
        print(f"{page:28} {told['p50_ms']:8.2f} {told['p99_ms']:8.2f} {told['bytes'] / 1000:8.1f} {told['packed_bytes'] / 1000:8.1f}")
    print(f"first look at the overview: {result['first_look_bytes'] / 1000:.1f} KB on the way")
    for stream, size in result["update_bytes"].items():
        print(f"one change on {stream}: {size} bytes")
    print(f"CPU with none open: {result['idle_cpu_percent']} % of a core, with {result['open']} open: {result['open_cpu_percent']} %")
    slowest = max(result["pages"].items(), key=lambda page: page[1]["p99_ms"])
    goals = [(f"slowest page ({slowest[0]}), server time p99 in ms", slowest[1]["p99_ms"], 15),
             ("first look in KB", result["first_look_bytes"] / 1000, 100),
             ("largest change in KB", max(result["update_bytes"].values()) / 1000, 5),
             (f"what {result['open']} open dashboards add, in % of a core", result["open_cpu_percent"] - result["idle_cpu_percent"], 10)]
    report.print_goals(goals)
    result["goals"] = [{"goal": text, "value": value, "at_most": limit} for text, value, limit in goals]


made_up.main(run, nodes=72, workloads=1_000, open=500)
