"""`failover`: how soon a cluster of three finds that one of its machines has lost power, how soon what ran there answers
elsewhere, and how soon the others can write when it was their leader, beside Docker Swarm. Each machine is a network, process
and mount namespace; killing its first process ends all that runs in it at once, and its link with it."""

import http.client
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import image
import report
from processes import BenchError, daemon, quietly, wait_until
from unix_http import ask

MACHINES = 3
PORT = 18080
NETWORK = "192.0.2"
# How often a machine is asked whether it serves.
LOOK = 0.02
LONGEST = 120
# Between two losses: nodes that have just come back, and their containers, shall have come to rest.
SETTLE_SECONDS = 5


def run(options):
    chosen = [kind for kind in (Toft, Swarm) if kind.name in options.engines.split(",")]
    runs = options.runs or 20
    losses, leaders, versions = {}, {}, []
    wanted = options.losses.split(",")
    bridge()
    for kind in chosen:
        cluster = kind(options)
        try:
            cluster.begin()
            versions.append(cluster.version())
            if "machine" in wanted:
                losses[kind.name] = [told(kind.name, lose(cluster)) for _ in range(kind.share(runs))]
            if "leader" in wanted:
                leaders[kind.name] = [told_of_leader(kind.name, lose_leader(cluster)) for _ in range(kind.share(runs))]
        finally:
            cluster.end()
    result = {"bench": "failover", "runs": runs, "machine": report.machine(versions, options.profile), "losses": losses,
              "leader_losses": leaders}
    show(result)
    report.write(options.result, result)


def told(engine, loss):
    """Says at once what is not to be lost when something fails later."""
    print(f"{engine}: known after {loss['down_s']:.2f} s, serves elsewhere after {loss['serves_s']:.2f} s", file=sys.stderr, flush=True)
    return loss


def told_of_leader(engine, seconds):
    print(f"{engine}: the next write after the leader's loss is answered after {seconds:.2f} s", file=sys.stderr, flush=True)
    return seconds


def bridge():
    quietly(["ip", "link", "add", "lan", "type", "bridge", "forward_delay", "0"])
    quietly(["ip", "addr", "add", f"{NETWORK}.254/24", "dev", "lan"])
    quietly(["ip", "link", "set", "lan", "up"])


def lose(cluster):
    """Takes the power from the machine that serves; gives what was seen of it."""
    victim = wait_until(cluster.serving, "a machine that serves", LONGEST, LOOK)
    led = cluster.leader() == victim
    others = [machine for machine in cluster.machines if machine is not victim]
    seen = {}
    begun = time.monotonic()

    def watch(name, look):
        while time.monotonic() - begun < LONGEST:
            if look():
                seen[name] = time.monotonic() - begun
                return
            time.sleep(LOOK)

    victim.lose_power()
    watches = [threading.Thread(target=watch, args=("down", lambda: any(cluster.knows_down(m, victim) for m in others))),
               threading.Thread(target=watch, args=("serves", lambda: any(answers(m.address) for m in others)))]
    for thread in watches:
        thread.start()
    for thread in watches:
        thread.join()
    if len(seen) < len(watches):
        raise BenchError(f"{cluster.name}: after {LONGEST} s only {seen or 'nothing'} was seen of the loss of {victim.name}")
    recover(cluster, victim)
    return {"down_s": seen["down"], "serves_s": seen["serves"], "led": led}


def recover(cluster, victim):
    """Switches a machine on again and waits until all is as it was."""
    cluster.bring_back(victim)
    wait_until(cluster.whole, f"{cluster.name}: all machines", LONGEST, 0.2)
    time.sleep(SETTLE_SECONDS)
    # What came back with the machine has ended.
    wait_until(lambda: sum(answers(machine.address) for machine in cluster.machines) == 1,
               f"{cluster.name}: one machine that serves", LONGEST, 0.2)


def lose_leader(cluster):
    """Takes the power from the machine that leads; gives the seconds until one of the others has answered a write that was
    asked of it after that. Each of them is asked one write after the other."""
    victim = wait_until(cluster.leader, "a leader", LONGEST, LOOK)
    written, refused = [], {}
    begun = time.monotonic()

    def write(machine):
        while not written and time.monotonic() - begun < LONGEST:
            refusal = cluster.write(machine)
            if refusal is None:
                written.append(time.monotonic() - begun)
            refused[machine.name] = refusal
            time.sleep(LOOK)

    victim.lose_power()
    writers = [threading.Thread(target=write, args=(machine,)) for machine in cluster.machines if machine is not victim]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    if not written:
        raise BenchError(f"{cluster.name}: no write was answered within {LONGEST} s of the loss of {victim.name}; "
                         f"the last answers: {refused}")
    recover(cluster, victim)
    return min(written)


def answers(address):
    connection = http.client.HTTPConnection(address, PORT, timeout=0.3)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Machine:
    """One that can lose its power."""

    def __init__(self, options, engine, number):
        self.name = f"{engine}{number}"
        self.number = number
        self.address = f"{NETWORK}.{number}"
        self.place = os.path.join(options.work, self.name)
        os.makedirs(self.place, exist_ok=True)
        self.log = os.path.join(self.place, "log")
        self.process = None

    def start(self, argv):
        """Switches it on: it waits for its link, then becomes `argv`."""
        script = ("mount -t tmpfs -o mode=755 run /run; mkdir -p /run/lock; ip link set lo up; "
                  "until ip -brief link show eth0 >/dev/null 2>&1; do sleep 0.02; done; "
                  f"ip addr add {self.address}/24 dev eth0; ip link set eth0 up; ip route add default via {NETWORK}.254; "
                  'exec "$@"')
        self.process = daemon(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
                               script, "sh", *argv], self.log)
        self.inner = wait_until(self.first_process, f"{self.name}: its namespaces")
        quietly(["ip", "link", "add", f"l{self.name}", "type", "veth", "peer", "name", "eth0", "netns", str(self.inner)])
        quietly(["ip", "link", "set", f"l{self.name}", "master", "lan", "up"])

    def first_process(self):
        try:
            with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
                children = file.read().split()
        except OSError as error:
            raise BenchError(f"{self.name} ended: {self.said()}") from error
        if not children:
            return None
        own = os.readlink(f"/proc/{children[0]}/ns/net") != os.readlink("/proc/self/ns/net")
        return int(children[0]) if own else None

    def said(self):
        with open(self.log, errors="replace") as file:
            return file.read()[-2000:]

    def within(self, argv):
        return ["nsenter", f"--net=/proc/{self.inner}/ns/net", f"--mount=/proc/{self.inner}/ns/mnt",
                f"--pid=/proc/{self.inner}/ns/pid", *argv]

    def lose_power(self):
        os.kill(self.inner, 9)
        # The kernel takes its network away some time after it ended; the cable is pulled at once.
        subprocess.run(["ip", "link", "del", f"l{self.name}"], stderr=subprocess.DEVNULL, check=False)
        self.process.wait()


class Cluster:
    name = ""

    def __init__(self, options):
        self.options = options
        self.machines = [Machine(options, self.name, number + 1) for number in range(MACHINES)]
        self.writes = itertools.count()

    @staticmethod
    def share(runs):
        """How many of the runs that are asked for it gets."""
        return runs

    def serving(self):
        return next((machine for machine in self.machines if answers(machine.address)), None)

    def end(self):
        for machine in self.machines:
            if machine.process is not None and machine.process.poll() is None:
                machine.lose_power()
            shutil.rmtree(machine.place, ignore_errors=True)


class Toft(Cluster):
    name = "toft"

    def up(self, machine):
        # A short path: sockets lie below it.
        machine.start([self.options.toft, "up", "--data-dir", os.path.join(machine.place, "d"), "--name", machine.name])
        machine.socket = os.path.join(machine.place, "d", "toft.sock")
        wait_until(lambda: ask(machine.socket, "GET", "/ready")[0] == 200, machine.name, LONGEST, 0.05)

    def toft(self, machine, *arguments):
        return quietly(machine.within([self.options.toft, "--connect", f"unix://{machine.socket}", *arguments]))

    def begin(self):
        first, *others = self.machines
        for machine in self.machines:
            self.up(machine)
        for machine in others:
            token = json.loads(self.toft(first, "token", "create", "--json"))
            path = os.path.join(machine.place, "token")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(token["token"])
            # Where it serves already, joining makes it start again.
            self.toft(machine, "join", token["addresses"][0], "--token-file", path,
                      "--data-dir", os.path.join(machine.place, "d"))
        wait_until(self.whole, "three nodes", LONGEST, 0.2)
        for machine in self.machines:
            self.toft(machine, "image", "import", self.options.archive)
        self.toft(first, "run", "--detach", "--name", "web", "--publish", f"{PORT}:80", image.NAME, "--", *image.WEB_SERVER)

    def get(self, machine, target):
        try:
            status, answer = ask(machine.socket, "GET", f"{target}?consistency=local", seconds=2)
        except OSError:
            return []
        return json.loads(answer)["items"] if status == 200 else []

    def whole(self):
        return all(sum(node["state"] == "ready" for node in self.get(machine, "/api/v1/nodes")) == MACHINES
                   and self.voters(machine) == MACHINES for machine in self.machines)

    def voters(self, machine):
        try:
            status, answer = ask(machine.socket, "GET", "/api/v1/cluster", seconds=2)
        except OSError:
            return 0
        return sum(member["votes"] for member in json.loads(answer)["members"]) if status == 200 else 0

    def write(self, machine):
        """Asks for a small durable write; gives why it was not answered, or None."""
        try:
            status, answer = ask(machine.socket, "PATCH", "/api/v1/workloads/web/labels", {"write": str(next(self.writes))}, seconds=5)
        except OSError as error:
            return str(error)
        return None if status == 204 else f"{status} {answer.decode(errors='replace')}"

    def knows_down(self, machine, victim):
        states = {node["name"]: node["state"] for node in self.get(machine, "/api/v1/nodes")}
        return states.get(victim.name) in ("down", "fenced")

    def leader(self):
        for machine in self.machines:
            try:
                status, answer = ask(machine.socket, "GET", "/api/v1/cluster", seconds=2)
            except OSError:
                continue
            if status == 200:
                name = json.loads(answer).get("leader")
                return next((other for other in self.machines if other.name == name), None)
        return None

    def bring_back(self, machine):
        self.up(machine)

    def version(self):
        return quietly([self.options.toft, "--version"]).strip()


class Swarm(Cluster):
    name = "swarm"

    @staticmethod
    def share(runs):
        # A minute each, and all alike.
        return max(1, runs // 4)

    def up(self, machine):
        machine.socket = os.path.join(machine.place, "docker.sock")
        settings = os.path.join(machine.place, "daemon.json")
        with open(settings, "w") as file:
            json.dump({}, file)
        machine.start(["dockerd", "--data-root", os.path.join(machine.place, "data"), "--exec-root", "/run/docker",
                       "--pidfile", "/run/docker.pid", "--host", f"unix://{machine.socket}", "--config-file", settings])
        wait_until(lambda: ask(machine.socket, "GET", "/_ping")[0] == 200, machine.name, LONGEST, 0.05)

    def docker(self, machine, *arguments):
        return quietly(["docker", "--host", f"unix://{machine.socket}", *arguments])

    def begin(self):
        first, *others = self.machines
        for machine in self.machines:
            self.up(machine)
            self.docker(machine, "load", "--input", self.options.archive)
        self.docker(first, "swarm", "init", "--advertise-addr", first.address)
        token = self.docker(first, "swarm", "join-token", "--quiet", "manager").strip()
        for machine in others:
            self.docker(machine, "swarm", "join", "--token", token, "--advertise-addr", machine.address,
                        f"{first.address}:2377")
        wait_until(self.whole, "three nodes", LONGEST, 0.2)
        self.docker(first, "service", "create", "--detach", "--name", "web", "--no-resolve-image", "--publish",
                    f"mode=host,published={PORT},target=80", image.NAME, *image.WEB_SERVER)

    def nodes(self, machine):
        try:
            status, answer = ask(machine.socket, "GET", "/nodes", seconds=2)
        except OSError:
            return []
        return json.loads(answer) if status == 200 else []

    def whole(self):
        return all(sum(node["Status"]["State"] == "ready" for node in self.nodes(machine)) == MACHINES
                   for machine in self.machines)

    def write(self, machine):
        body = {"Name": f"write-{next(self.writes)}", "Data": "eA=="}
        try:
            status, answer = ask(machine.socket, "POST", "/configs/create", body, seconds=5)
        except OSError as error:
            return str(error)
        return None if status in (200, 201) else f"{status} {answer.decode(errors='replace')}"

    def knows_down(self, machine, victim):
        return any(node["Status"]["State"] == "down" and node["Status"]["Addr"] == victim.address
                   for node in self.nodes(machine))

    def leader(self):
        for machine in self.machines:
            for node in self.nodes(machine):
                if node.get("ManagerStatus", {}).get("Leader"):
                    address = node["ManagerStatus"]["Addr"].rsplit(":", 1)[0]
                    return next((other for other in self.machines if other.address == address), None)
        return None

    def bring_back(self, machine):
        self.up(machine)

    def version(self):
        return quietly(["docker", "--version"]).strip()


def show(result):
    report.print_machine(result["machine"])
    rows = []
    for engine, losses in result["losses"].items():
        for kind, some in (("all", losses), ("one that led", [loss for loss in losses if loss["led"]]),
                           ("one that did not", [loss for loss in losses if not loss["led"]])):
            if some:
                for what in ("down", "serves"):
                    values = [loss[f"{what}_s"] for loss in some]
                    rows.append([f"{engine}, {kind}, {'known to be down' if what == 'down' else 'serves elsewhere'}",
                                 len(values), report.median(values), report.percentile(values, 95), max(values)])
    for engine, seconds in result["leader_losses"].items():
        rows.append([f"{engine}, the leader, next write answered", len(seconds), report.median(seconds),
                     report.percentile(seconds, 95), max(seconds)])
    report.print_table("seconds after a machine lost its power", ["", "runs", "median", "p95", "most"], rows)
    goals = []
    if losses := result["losses"].get("toft"):
        goals += [("toft: the loss is known, p95 in s", report.percentile([loss["down_s"] for loss in losses], 95), 3),
                  ("toft: serves elsewhere, p95 in s", report.percentile([loss["serves_s"] for loss in losses], 95), 5)]
    if seconds := result["leader_losses"].get("toft"):
        goals.append(("toft: next write after the leader's loss, p95 in s", report.percentile(seconds, 95), 2))
    report.print_goals(goals)
    result["goals"] = [{"goal": text, "value": value, "at_most": limit} for text, value, limit in goals]
