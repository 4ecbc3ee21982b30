"""`start`: from a request to a process that runs, whole runs of `true`, and from a request to the first answer of a
web server through a published port.

Rounds take every engine once, in an order that moves on by one each round, so that what disturbs the machine falls
on all alike."""

import os
import socket
import time

import image
import report
from engines import ENGINES, NetworkedDocker
from processes import BenchError, Group, stamp_of, timed, wait_until

WARM_UP = 2
# After a command came back its engine may still tidy up; that belongs to its CPU time.
SETTLE_SECONDS = 0.15
FIRST_PORT = 20000


def run(options):
    home = Group(f"{os.path.basename(options.work)}/driver")
    names = options.engines.split(",")
    if unknown := [name for name in names if name not in ENGINES]:
        raise BenchError(f"there is no engine {', '.join(unknown)}")
    engines = [ENGINES[name](options.work, options.toft) for name in names]
    about = None
    try:
        for engine in engines:
            engine.begin()
            home.enter()
            engine.import_image(options.archive)
        about = report.machine([engine.version() for engine in engines], options.profile)
        runs = options.runs or 30
        whole = measure_whole(engines, home, runs)
        starts = measure_starts(engines, home, runs)
        # dockerd cannot have two ways of networking in one life.
        networked = [engine for engine in engines if engine.name == "toft"]
        if "docker" in names:
            next(engine for engine in engines if engine.name == "docker").end()
            engines.append(NetworkedDocker(options.work, options.toft))
            networked.append(engines[-1])
            engines[-1].begin()
            home.enter()
            engines[-1].import_image(options.archive)
        published = measure_published(networked, home, runs)
    finally:
        home.enter()
        for engine in engines:
            engine.end()
    result = {"bench": "start", "runs": runs, "machine": about, "whole_run": whole, "start": starts,
              "published": published}
    show(result)
    report.write(options.result, result)


def rounds(things, count):
    """(round, thing) with the things in turn; negative rounds warm up."""
    for turn in range(-WARM_UP, count):
        shift = turn % len(things)
        for thing in things[shift:] + things[:shift]:
            yield turn, thing


def measure_whole(engines, home, count):
    """Wall and CPU time of complete foreground runs."""
    samples = {engine.name: {"wall_ms": [], "cpu_ms": []} for engine in engines}
    for turn, engine in rounds(engines, count):
        command = engine.whole_run(f"whole{turn + WARM_UP}")
        wall_ns, _, cpu_us = in_group(engine, home, lambda: timed(command, engine.errors))
        if turn >= 0:
            samples[engine.name]["wall_ms"].append(wall_ns / 1e6)
            samples[engine.name]["cpu_ms"].append(cpu_us / 1e3)
    return samples


def measure_starts(engines, home, count):
    """From the request to the first instruction of the container's program, and to the answer."""
    ways = []
    for engine in engines:
        if hasattr(engine, "post"):
            ways.append((f"{engine.name} api", engine, "api"))
        ways.append((engine.name, engine, "command"))
    samples = {name: {"running_ms": [], "answered_ms": [], "cpu_ms": []} for name, _, _ in ways}
    for turn, (name, engine, way) in rounds(ways, count):
        run = f"start{turn + WARM_UP}{way}"
        wall_ns, begun, cpu_us = in_group(engine, home, starter(engine, way, run))
        stamp = wait_until(lambda: stamp_of(run), f"{name}: the process", pause=0.1)
        engine.remove(run)
        if turn >= 0:
            samples[name]["running_ms"].append((stamp - begun) / 1e6)
            samples[name]["answered_ms"].append(wall_ns / 1e6)
            samples[name]["cpu_ms"].append(cpu_us / 1e3)
    return samples


def starter(engine, way, run):
    if way == "command":
        command = engine.detached(run)
        return lambda: timed(command, engine.errors)
    return stopwatch(engine.post(run))


def stopwatch(request):
    def post():
        begun = time.monotonic_ns()
        request()
        return time.monotonic_ns() - begun, begun

    return post


def measure_published(engines, home, count):
    """From the request to the first 200 of a web server in the container through the host's port."""
    ways = [(f"{engine.name} {way}" if way == "api" else engine.name, engine, way)
            for engine in engines for way in ("api", "command")]
    samples = {name: {"serving_ms": [], "answered_ms": [], "cpu_ms": []} for name, _, _ in ways}
    port = FIRST_PORT
    for turn, (name, engine, way) in rounds(ways, count):
        run, port = f"published{turn + WARM_UP}{way}", port + 1
        ask = publisher(engine, way, run, port)
        served = []

        def work():
            wall_ns, begun = ask()
            # As people do: first they start it, then they look.
            served.append(first_answer(port))
            return wall_ns, begun

        wall_ns, begun, cpu_us = in_group(engine, home, work)
        engine.remove(run)
        if served[0] is None:
            raise BenchError(f"{name}: no answer on port {port}")
        if turn >= 0:
            samples[name]["serving_ms"].append((served[0] - begun) / 1e6)
            samples[name]["answered_ms"].append(wall_ns / 1e6)
            samples[name]["cpu_ms"].append(cpu_us / 1e3)
    return samples


def publisher(engine, way, run, port):
    if way == "command":
        command = engine.published(run, port)
        return lambda: timed(command, engine.errors)
    return stopwatch(engine.post_published(run, port))


def first_answer(port):
    """When the first 200 came, in nanoseconds of CLOCK_MONOTONIC; None when none came. A look takes no longer than
    20 ms: a first packet that is lost is sent again by the kernel after a second only."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=0.02) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if b" 200 " in connection.recv(64):
                    return time.monotonic_ns()
        except OSError:
            pass
        time.sleep(0.001)
    return None


def in_group(engine, home, work):
    """Runs `work` in the engine's control group; adds the CPU time of client and engine, this program's own apart."""
    engine.group.enter()
    time.sleep(0.02)
    before, own = engine.group.cpu_us(), time.process_time_ns()
    wall_ns, begun = work()
    own = time.process_time_ns() - own
    home.enter()
    time.sleep(SETTLE_SECONDS)
    return wall_ns, begun, engine.group.cpu_us() - before - own / 1e3


def show(result):
    report.print_machine(result["machine"])
    runs = result["runs"]
    whole = result["whole_run"]
    toft = report.median(whole["toft"]["wall_ms"]) if "toft" in whole else None
    rows = [row(name, [("wall_ms", True), ("cpu_ms", False)], sample, toft) for name, sample in whole.items()]
    report.print_table(f"whole run of `true` in {image.NAME}, {runs} runs, milliseconds",
                       ["", "median", "p90", "least", "CPU median", "toft / this"], rows)
    start = result["start"]
    toft = report.median(start["toft api"]["running_ms"]) if "toft api" in start else None
    fields = [("running_ms", True), ("answered_ms", False), ("cpu_ms", False)]
    rows = [row(name, fields, sample, toft) for name, sample in start.items()]
    report.print_table(f"from the request to a process that runs, {runs} runs, milliseconds",
                       ["", "median", "p90", "least", "answered", "CPU median", "toft api / this"], rows)
    published = result["published"]
    serving = report.median(published["toft api"]["serving_ms"]) if "toft api" in published else None
    rows = [row(name, [("serving_ms", True), ("answered_ms", False), ("cpu_ms", False)], sample, serving)
            for name, sample in published.items()]
    report.print_table(f"from the request to the first 200 through a published port, {runs} runs, milliseconds",
                       ["", "median", "p90", "least", "answered", "CPU median", "toft api / this"], rows)
    goals = []
    if serving and "docker-bridge" in published:
        goals.append(("POST to the first 200 through the port, of docker run's time",
                      serving / report.median(published["docker-bridge"]["serving_ms"]), 0.5))
    if toft and "ctr" in start:
        goals.append(("POST to running, of ctr run's time to running",
                      toft / report.median(start["ctr"]["running_ms"]), 1.0))
        goals.append(("POST to running, of ctr run's time to its end",
                      toft / report.median(start["ctr"]["answered_ms"]), 1.0))
    if toft and "docker" in start:
        goals.append(("POST to running, of docker run's time to running",
                      toft / report.median(start["docker"]["running_ms"]), 0.4))
    if goals:
        report.print_goals(goals)
    result["goals"] = [{"goal": text, "value": value, "at_most": limit} for text, value, limit in goals]


def row(name, fields, sample, toft):
    cells = [name]
    for field, whole in fields:
        values = sample[field]
        cells.append(report.median(values))
        if whole:
            cells += [report.percentile(values, 90), min(values)]
    cells.append(toft / cells[1] if toft else None)
    return cells
