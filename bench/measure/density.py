"""`density`: 100 containers started in the background, eight at a time, and what each of them keeps of memory.

The engines take turns, and each removes all of its containers before the next one begins."""

import os
import queue
import threading
import time

import report
from engines import ENGINES
from idle import containers, look, part_of, pss_mb
from processes import BenchError, Group, all_pids, stamp_of, timed, wait_until

CONTAINERS = 100
AT_ONCE = 8
# Between the last start and the look at the memory.
SETTLE_SECONDS = 3


def run(options):
    home = Group(f"{os.path.basename(options.work)}/driver")
    names = [name for name in options.engines.split(",") if name in ("toft", "ctr", "docker")]
    if not names:
        raise BenchError("density compares toft, ctr and docker")
    engines = [ENGINES[name](options.work, options.toft) for name in names]
    try:
        for engine in engines:
            engine.begin()
            home.enter()
            engine.import_image(options.archive)
        about = report.machine([engine.version() for engine in engines], options.profile)
        runs = options.runs or 3
        ways = [way for engine in engines for way in ways_of(engine)]
        samples = {name: [] for name, _, _ in ways}
        for turn in range(runs):
            shift = turn % len(ways)
            for name, engine, starter in ways[shift:] + ways[:shift]:
                samples[name].append(measure(name, engine, home, starter, turn))
    finally:
        home.enter()
        for engine in engines:
            engine.end()
    result = {"bench": "density", "runs": runs, "machine": about, "density": samples}
    show(result)
    report.write(options.result, result)


def ways_of(engine):
    """(name, engine, what makes a start) of each way to start with an engine."""
    if engine.name == "toft":
        return [("toft", engine, engine.post), ("toft, networked", engine, engine.post_networked)]
    return [(engine.name, engine, lambda run: lambda: timed(engine.detached(run), engine.errors))]


def measure(name, engine, home, starter, turn):
    """One round: starts all, looks at the memory, removes all."""
    runs = [f"d{turn}x{number}" for number in range(CONTAINERS)]
    before = cpu_of_parts()
    engine.group.enter()
    cpu_before, own_before = engine.group.cpu_us(), time.process_time_ns()
    begun = time.monotonic_ns()
    in_parallel([starter(run) for run in runs])
    answered = time.monotonic_ns()
    own = time.process_time_ns() - own_before
    home.enter()
    wait_until(lambda: len(containers()) == CONTAINERS, f"{name}: {CONTAINERS} containers", seconds=120, pause=0.25)
    last = max(wait_until(lambda: stamp_of(run), f"{name}: the process", pause=0.1) for run in runs)
    time.sleep(SETTLE_SECONDS)
    cpu_us = engine.group.cpu_us() - cpu_before - own / 1e3
    parts = {part: (spent - before.get(part, 0.0)) / CONTAINERS for part, spent in cpu_of_parts().items()}
    memory = {}
    for pid in all_pids():
        part = part_of(pid)
        if part:
            memory[part] = memory.get(part, 0.0) + pss_mb(pid)
    begun_removal = time.monotonic_ns()
    in_parallel([lambda run=run: engine.begin_removal(run) for run in runs])
    for run in runs:
        engine.end_removal(run)
    removed = time.monotonic_ns()
    wait_until(lambda: not containers(), f"{name}: no container left", pause=0.1)
    return {
        "running_s": (last - begun) / 1e9, "answered_s": (answered - begun) / 1e9,
        "removed_s": (removed - begun_removal) / 1e9, "cpu_ms_each": cpu_us / 1e3 / CONTAINERS,
        "cpu_ms_each_of": parts, "memory_mb": memory,
    }


def cpu_of_parts():
    """CPU time of the living processes of each part, in milliseconds."""
    spent = {}
    for pid in all_pids():
        part = part_of(pid)
        if part:
            spent[part] = spent.get(part, 0.0) + look(pid)["cpu_ms"]
    return spent


def in_parallel(works):
    """Does everything, AT_ONCE at a time; the first failure is raised at the end."""
    waiting, failures = queue.SimpleQueue(), []
    for work in works:
        waiting.put(work)

    def worker():
        while not failures:
            try:
                work = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                work()
            except Exception as error:  # Told below, by the thread that waits.
                failures.append(error)

    threads = [threading.Thread(target=worker) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise BenchError(str(failures[0]))


def show(result):
    report.print_machine(result["machine"])
    samples = result["density"]
    middle = {name: {key: report.median([one[key] for one in rounds])
                     for key in ("running_s", "answered_s", "removed_s", "cpu_ms_each")}
              for name, rounds in samples.items()}
    ctr = middle.get("ctr")
    rows = []
    for name, one in middle.items():
        rate = CONTAINERS / one["running_s"]
        ratio = rate / (CONTAINERS / ctr["running_s"]) if ctr else None
        rows.append([name, rate, one["running_s"], one["answered_s"], one["removed_s"], one["cpu_ms_each"], ratio])
    report.print_table(f"{CONTAINERS} containers started in the background, {AT_ONCE} at a time, {result['runs']} rounds",
                       ["", "starts a second", "all run, s", "answered, s", "removed, s", "CPU ms each", "rate / ctr's"], rows)
    parts = ("daemon", "containerd", "shims", "loggers")
    rows = []
    for name, rounds in samples.items():
        each = [report.median([one["cpu_ms_each_of"].get(part, 0.0) for one in rounds]) for part in parts]
        rows.append([name, *each, max(0.0, middle[name]["cpu_ms_each"] - sum(each))])
    report.print_table("CPU ms of each start, by the process that spent it; short-lived: runc, clients, the shim's first process",
                       ["", "daemon", "containerd", "shim", "logger", "short-lived"], rows)
    memory = {name: {part: report.median([one["memory_mb"].get(part, 0.0) for one in rounds])
                     for part in ("shims", "loggers")} for name, rounds in samples.items()}
    report.print_table(f"memory with {CONTAINERS} containers, PSS in MB",
                       ["", "a shim", "a logger"],
                       [[name, one["shims"] / CONTAINERS, one["loggers"] / CONTAINERS]
                        for name, one in memory.items()])
    goals = []
    if ctr and "toft" in middle:
        goals.append((f"time for {CONTAINERS} starts, of ctr run's", middle["toft"]["running_s"] / ctr["running_s"], 1 / 1.5))
    if "toft" in memory:
        kept = memory["toft"]
        goals.append(("memory of shim and logger, of the shim's alone", (kept["shims"] + kept["loggers"]) / kept["shims"], 1.25))
    report.print_goals(goals)
    result["goals"] = [{"goal": text, "value": value, "at_most": limit} for text, value, limit in goals]
