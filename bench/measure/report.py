"""Numbers for people and for programs."""

import datetime
import json
import math
import os
import platform


def median(values):
    return percentile(values, 50)


def percentile(values, percent):
    """The nearest rank; the median of an even count is the middle of two."""
    ordered = sorted(values)
    if percent == 50 and len(ordered) % 2 == 0:
        half = len(ordered) // 2
        return (ordered[half - 1] + ordered[half]) / 2
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def machine(versions, profile):
    """What was measured on."""
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    with open("/proc/meminfo") as file:
        memory_kib = int(file.readline().split()[1])
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kib / 1024 / 1024, 1),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
        "toft_profile": profile,
        "versions": versions,
    }


def print_machine(about):
    print(f"{about['date']}  {about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB, "
          f"Linux {about['kernel']}, load {about['load_before']:.2f}, toft profile {about['toft_profile']}")
    for version in about["versions"]:
        print(f"  {version}")


def print_table(title, heads, rows):
    """Left the names, right the numbers."""
    cells = [heads, *[[row[0], *[number(value) for value in row[1:]]] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    print(f"\n{title}")
    for row in cells:
        first = row[0].ljust(widths[0])
        print("  " + "  ".join([first, *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]]))


def number(value):
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def print_goals(goals):
    """Each goal is (text, value, limit): met when the value is at most the limit."""
    print("\ngoals")
    for text, value, limit in goals:
        print(f"  {'met   ' if value <= limit else 'MISSED'}  {text}: {number(value)} (at most {number(limit)})")


def write(path, result):
    with open(path, "w") as out:
        json.dump(result, out, indent=1)
        out.write("\n")
