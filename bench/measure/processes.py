"""Starts processes and tells what they cost: wall time, and CPU time by control group."""

import gc
import os
import signal
import subprocess
import time

HIERARCHIES = ("/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")


class BenchError(Exception):
    """The bench cannot go on."""


class Group:
    """A control group: everything an engine starts is counted in it, the containers themselves apart."""

    def __init__(self, name):
        for root in HIERARCHIES:
            for usage in ("cpuacct.usage", "cpu.stat"):
                if os.path.exists(os.path.join(root, usage)):
                    self.path = os.path.join(root, name)
                    self._usage = os.path.join(self.path, usage)
                    os.makedirs(self.path, exist_ok=True)
                    return
        raise BenchError("this machine has no control group that counts CPU time")

    def enter(self):
        """Moves this process in; what it starts from now on belongs there."""
        with open(os.path.join(self.path, "cgroup.procs"), "w") as procs:
            procs.write("0")

    def cpu_us(self):
        """CPU time of everything that ran in the group, in microseconds."""
        with open(self._usage) as usage:
            text = usage.read()
        if "usage_usec" in text:
            return int(text.split("usage_usec", 1)[1].split()[0])
        return int(text) / 1000


def timed(argv, errors, cwd=None):
    """Runs a command to its end; gives its wall time in nanoseconds and when it began."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    gc.disable()
    begun = time.monotonic_ns()
    pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions)
    _, status = os.waitpid(pid, 0)
    ended = time.monotonic_ns()
    gc.enable()
    if status != 0:
        with open(errors, errors="replace") as log:
            said = log.read()[-2000:]
        raise BenchError(f"`{' '.join(argv)}` failed ({os.waitstatus_to_exitcode(status)}): {said}")
    return ended - begun, begun


def quietly(argv, **options):
    """Runs a command that is not measured; gives what it printed."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise BenchError(f"`{' '.join(argv)}` failed ({done.returncode}): {done.stderr[-2000:]}{done.stdout[-500:]}")
    return done.stdout


def daemon(argv, log):
    """Starts a daemon with its output in `log`."""
    with open(log, "ab") as output:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)


def end(process, patience=20):
    """Ends a daemon: asks, then kills."""
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(condition, what, seconds=30.0, pause=0.001):
    """Polls until `condition` gives something true, and gives that."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: waited {seconds} s in vain")
        time.sleep(pause)


def all_pids():
    """Every process of the bench: it has a process namespace of its own."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def arguments(pid):
    """The command line of a process, empty when it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")[:-1]
    except OSError:
        return []


def stamp_of(token):
    """When the stamp program with this token started, in nanoseconds of CLOCK_MONOTONIC; None when there is none."""
    for pid in all_pids():
        words = arguments(pid)
        if len(words) == 2 and words[0].endswith(b"/stamp") and words[1] == token.encode():
            with open(f"/proc/{pid}/comm") as file:
                name = file.read().strip()
            return int(name, 16) if len(name) == 15 else None
    return None
