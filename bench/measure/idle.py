"""`idle`: what the daemons cost while nothing happens, and how long they take to be there."""

import os
import signal
import time

import report
from engines import Docker, Toft
from processes import BenchError, Group, all_pids, arguments, wait_until

CONTAINERS = (0, 10)
SETTLE_SECONDS = 5
# What part of an engine a process is, by the beginning of its program's name; the rest are containers.
PARTS = (
    ("toft-logger", "loggers"),
    ("toft", "daemon"),
    ("dockerd", "daemon"),
    ("containerd-shim", "shims"),
    ("containerd", "containerd"),
)
# From nothing; with what an earlier run left; while the containerd of a killed daemon still runs. The containerd that
# dockerd starts dies with it.
WAYS = {"toft": ("first", "again", "containerd alive"), "docker": ("first", "again")}


def run(options):
    home = Group(f"{os.path.basename(options.work)}/driver")
    engines = [Toft(options.work, options.toft), Docker(options.work, options.toft)]
    runs, seconds = options.runs or 10, options.seconds or 60
    ready = {engine.name: {way: [] for way in WAYS[engine.name]} for engine in engines}
    watched = {}
    try:
        for _ in range(runs):
            for engine in engines:
                for way, milliseconds in measure_ready(engine, home):
                    ready[engine.name][way].append(milliseconds)
        # One after the other: memory that two engines share would be halved.
        versions = []
        for engine in engines:
            engine.begin()
            home.enter()
            engine.import_image(options.archive)
            versions.append(engine.version())
            # Without the traces that the import left in their memory.
            engine.end_daemons()
            engine.begin()
            home.enter()
            watched[engine.name] = watch_with_containers(engine, seconds)
            engine.end()
        about = report.machine(versions, options.profile)
    finally:
        home.enter()
        for engine in engines:
            engine.end()
    result = {"bench": "idle", "runs": runs, "seconds": seconds, "machine": about, "ready_ms": ready,
              "watched": watched}
    show(result)
    report.write(options.result, result)


def measure_ready(engine, home):
    """(way, milliseconds from the start of the daemon's process until it says that it is ready) for each way."""
    engine.wipe()
    taken = []
    ways = WAYS[engine.name]
    for i, way in enumerate(ways):
        begun = time.monotonic_ns()
        process = engine.up()
        wait_until(engine.ready, f"{engine.name} ({way})", pause=0.0005)
        taken.append((way, (time.monotonic_ns() - begun) / 1e6))
        home.enter()
        time.sleep(0.5)
        if "containerd alive" in ways[i + 1:i + 2]:
            process.send_signal(signal.SIGKILL)
            process.wait()
            if not any(part_of(pid) == "containerd" for pid in all_pids()):
                raise BenchError(f"the containerd of {engine.name} ended with it")
        else:
            engine.end_daemons()
            wait_until(lambda: not any(part_of(pid) for pid in all_pids()), f"the end of {engine.name}")
    return taken


def watch_with_containers(engine, seconds):
    watches = []
    for count in CONTAINERS:
        for i in range(count):
            engine.post(f"idle{i}")()
        wait_until(lambda: len(containers()) == count, f"{engine.name}: {count} containers", pause=0.1)
        time.sleep(SETTLE_SECONDS)
        watches.append({"containers": count, **watch(engine, seconds)})
    for i in range(CONTAINERS[-1]):
        engine.remove(f"idle{i}")
    return watches


def containers():
    return [pid for pid in all_pids() if (arguments(pid) or [b""])[0] == b"/bin/stamp"]


def watch(engine, seconds):
    """Looks at every process of the engine before and after `seconds` in which nothing is asked of it."""
    before = {pid: look(pid) for pid in all_pids() if part_of(pid)}
    group_before = engine.group.cpu_us()
    begun = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - begun
    group_cpu_ms = (engine.group.cpu_us() - group_before) / 1e3
    parts = {}
    for pid in all_pids():
        name = part_of(pid)
        if not name:
            continue
        now, then = look(pid), before.get(pid, {"cpu_ms": 0.0, "switches": {}})
        part = parts.setdefault(name, {"processes": 0, "threads": 0, "pss_mb": 0.0, "rss_mb": 0.0, "cpu_ms": 0.0,
                                       "wakeups_per_second": 0.0})
        part["processes"] += 1
        part["threads"] += now["threads"]
        part["pss_mb"] += pss_mb(pid)
        part["rss_mb"] += now["rss_mb"]
        part["cpu_ms"] += now["cpu_ms"] - then["cpu_ms"]
        # Threads that ended in between are left out, as are those that began.
        slept = sum(count - then["switches"].get(thread, count) for thread, count in now["switches"].items())
        part["wakeups_per_second"] += slept / passed
    return {"seconds": passed, "all_cpu_ms": group_cpu_ms, "parts": parts}


def part_of(pid):
    """Which part of an engine a process is; None for the others."""
    words = arguments(pid)
    program = os.path.basename(words[0]).decode(errors="replace") if words else ""
    return next((part for prefix, part in PARTS if program.startswith(prefix)), None)


def look(pid):
    """CPU time, resident memory, threads, and how often threads went to sleep."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    ticks = int(fields[11]) + int(fields[12])
    seen = {"cpu_ms": ticks * 1000 / os.sysconf("SC_CLK_TCK"), "threads": int(fields[17]),
            "rss_mb": int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6, "switches": {}}
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/status") as file:
                line = next(line for line in file if line.startswith("voluntary_ctxt_switches"))
            seen["switches"][thread] = int(line.split()[1])
        except OSError:
            pass
    return seen


def pss_mb(pid):
    """Proportional set size: memory of its own, and its share of what it shares. Megabytes are 1,000,000 bytes."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024 / 1e6


def show(result):
    report.print_machine(result["machine"])
    rows = [[f"{engine}, {way}", report.median(values), report.percentile(values, 90), min(values)]
            for engine, ways in result["ready_ms"].items() for way, values in ways.items()]
    report.print_table(f"from the start of the process to ready, {result['runs']} runs, milliseconds",
                       ["", "median", "p90", "least"], rows)
    rows = []
    for engine, watches in result["watched"].items():
        for seen in watches:
            for name, part in sorted(seen["parts"].items()):
                rows.append([f"{engine}, {seen['containers']} containers, {name}", part["processes"], part["threads"],
                             part["pss_mb"], part["rss_mb"], percent(part["cpu_ms"], seen),
                             part["wakeups_per_second"]])
            rows.append([f"{engine}, {seen['containers']} containers, daemons together",
                         None, None, daemons(seen), None, percent(seen["all_cpu_ms"], seen), None])
    report.print_table(f"idle for {result['seconds']:.0f} s; memory in MB, CPU in % of one core, "
                       "sleeps of all threads a second",
                       ["", "processes", "threads", "PSS", "RSS", "CPU", "sleeps"], rows)
    goals = goals_of(result)
    report.print_goals(goals)
    result["goals"] = [{"goal": text, "value": value, "at_most": limit} for text, value, limit in goals]


def percent(cpu_ms, seen):
    return cpu_ms / 10 / seen["seconds"]


def daemons(seen):
    """Memory of the daemon and its containerd."""
    return sum(seen["parts"][name]["pss_mb"] for name in ("daemon", "containerd") if name in seen["parts"])


def goals_of(result):
    toft, docker = result["watched"]["toft"], result["watched"]["docker"]
    ready = result["ready_ms"]["toft"]
    goals = [(f"toft ready, {way}, ms", report.median(values), 300) for way, values in ready.items()]
    for ours, theirs in zip(toft, docker):
        count = ours["containers"]
        daemon = ours["parts"]["daemon"]
        goals.append((f"toft with {count} containers, PSS in MB", daemon["pss_mb"], 40))
        goals.append((f"toft with {count} containers, CPU in % of a core", percent(daemon["cpu_ms"], ours), 0.5))
        goals.append((f"toft and containerd with {count} containers, PSS in MB, beside dockerd and containerd",
                      daemons(ours), daemons(theirs)))
    return goals
