"""`start`: from a request to a process that runs, and whole runs of `true`.

Rounds take every engine once, in an order that moves on by one each round, so that what disturbs the machine falls
on all alike."""

import os
import time

import image
import report
from engines import ENGINES
from processes import BenchError, Group, stamp_of, timed, wait_until

WARM_UP = 2
# After a command came back its engine may still tidy up; that belongs to its CPU time.
SETTLE_SECONDS = 0.15


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
    finally:
        home.enter()
        for engine in engines:
            engine.end()
    result = {"bench": "start", "runs": runs, "machine": about, "whole_run": whole, "start": starts}
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
    request = engine.post(run)

    def post():
        begun = time.monotonic_ns()
        request()
        return time.monotonic_ns() - begun, begun

    return post


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
    goals = []
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
