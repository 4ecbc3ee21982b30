"""A cluster on made-up machines (`toft dev`), asked through the first node's socket."""

import argparse
import json
import os
import time

import report
from processes import BenchError, daemon, end, wait_until
from unix_http import ask

STEP_SECONDS = 1800


def options(**more):
    """What every bench of such clusters is told, and `more` numbers with their defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--toft", required=True)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--out")
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--runs", type=int, default=0)
    for name, default in more.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def main(run, **more):
    """Runs a bench: `run` makes its result of the options."""
    told = options(**more)
    try:
        result = run(told)
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from error
    if told.out:
        report.write(told.out, result)


class Cluster:
    """One or several processes with made-up nodes; the first of them is measured."""

    def __init__(self, options, first="dev"):
        self.options = options
        self.socket = os.path.join(options.work, first, "node-1", "toft.sock")
        self.processes = []

    def start_process(self, folder, nodes, *more, before=()):
        """Starts `toft dev`, through the command `before` if there is one."""
        argv = [*before, self.options.toft, "dev", "--nodes", str(nodes), "--bind", "127.0.0.1:0", "--data-dir",
                os.path.join(self.options.work, folder), *more]
        log = os.path.join(self.options.work, f"{folder}.log")
        self.processes.append((daemon(argv, log), log))

    def measured(self):
        return self.processes[0][0]

    def check(self):
        for process, log in self.processes:
            if process.poll() is not None:
                with open(log, errors="replace") as file:
                    raise BenchError(f"made-up nodes ended by themselves: {file.read()[-2000:]}")

    def ask(self, method, target, body=None):
        self.check()
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
            page = self.ask("GET", f"{target}?limit=1000" + (f"&after={after}" if after else "")) or {"items": []}
            items += page["items"]
            after = page.get("next")
            if after is None:
                return items

    def wait_for_nodes(self, count, what):
        ready = lambda: sum(node["state"] == "ready" for node in self.all("/api/v1/nodes")) == count
        wait_until(ready, what, seconds=STEP_SECONDS, pause=0.5)

    def running(self):
        return sum(item["running"] for item in self.all("/api/v1/workloads"))

    def cpu_seconds(self):
        with open(f"/proc/{self.measured().pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def cpu_percent(self, seconds, meanwhile=time.sleep):
        """What it uses of a core for so long, while nothing is asked of it."""
        before, begun = self.cpu_seconds(), time.monotonic()
        meanwhile(seconds)
        return (self.cpu_seconds() - before) / (time.monotonic() - begun) * 100

    def end(self):
        for process, _ in reversed(self.processes):
            end(process, patience=60)
