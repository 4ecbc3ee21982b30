"""The engines: how each is started, run and ended, all with directories and sockets of their own."""

import hashlib
import json
import os
import shutil
import socket

import image
from processes import Group, daemon, end, quietly, wait_until
from unix_http import ask


class Engine:
    """What every engine has: a place on disk, a control group that counts its CPU time, and a name."""

    name = ""
    # Kinds of packed layers.
    unpacks = ("gzip", "zstd")

    def __init__(self, work, toft):
        self.work = work
        self.toft = toft
        self.place = os.path.join(work, self.name)
        os.makedirs(self.place, exist_ok=True)
        self.errors = os.path.join(self.place, "errors")
        self.containers = f"{os.path.basename(work)}-{self.name}"
        self.group = Group(f"{os.path.basename(work)}/{self.name}")
        self.note_group(self.containers)
        self.processes = []

    def note_group(self, name):
        """Notes a control group for removal at the end."""
        with open(os.path.join(self.work, "cgroups"), "a") as file:
            file.write(f"{name}\n")

    def start_daemon(self, argv):
        """Starts a daemon inside the engine's control group."""
        self.group.enter()
        self.processes.append(daemon(argv, os.path.join(self.place, "log")))
        return self.processes[-1]

    def begin(self):
        """Starts what must run beforehand."""

    def import_image(self, archive):
        """Makes the image known."""

    def version(self):
        """Name and version, for people."""
        return self.name

    def whole_run(self, run):
        """The command of a whole run of `true`, named `run`."""
        raise NotImplementedError

    def detached(self, run):
        """The command that starts the stamp program in the background; it tells `run`."""
        raise NotImplementedError

    def remove(self, run):
        """Removes what `detached` made."""

    def begin_removal(self, run):
        """Does as much of `remove` as one call of the engine does."""
        self.remove(run)

    def end_removal(self, run):
        """Does the rest."""

    def pull(self, name):
        """The command that pulls an image."""
        raise NotImplementedError

    def forget(self, name):
        """Removes a pulled image with all its layers."""

    def end_daemons(self):
        """Ends the daemons that were started."""
        for process in reversed(self.processes):
            end(process)
        self.processes = []

    def end(self):
        """Ends everything."""
        self.end_daemons()


class Toft(Engine):
    name = "toft"

    def __init__(self, work, toft):
        super().__init__(work, toft)
        self.data = os.path.join(self.place, "data")
        self.socket = os.path.join(self.data, "toft.sock")
        self.client = [self.toft, "--connect", f"unix://{self.socket}"]
        # An appliance with a data directory of its own names its control group after it.
        self.containers = "toft-" + hashlib.sha256(self.data.encode()).hexdigest()[:8]
        self.note_group(self.containers)

    def begin(self):
        self.up()
        self.wait_ready()

    def up(self):
        return self.start_daemon([self.toft, "up", "--data-dir", self.data, "--name", "bench"])

    def ready(self):
        return ask(self.socket, "GET", "/ready")[0] == 200

    def wait_ready(self):
        wait_until(self.ready, "toft")

    def import_image(self, archive):
        quietly([*self.client, "image", "import", archive])

    def version(self):
        return quietly([self.toft, "--version"]).strip()

    def whole_run(self, run):
        return [*self.client, "run", "--rm", "--network", "none", image.NAME, "--", "true"]

    def detached(self, run):
        return [*self.client, "run", "--network", "none", "--name", run, image.NAME, "--", "/bin/stamp", run]

    def pull(self, name):
        return [*self.client, "image", "pull", name]

    def forget(self, name):
        quietly([*self.client, "image", "rm", name])
        store = ["ctr", "--address", self.containerd(), "--namespace", self.containers, "content", "ls", "--quiet"]
        wait_until(lambda: not quietly(store).strip(), "toft: the layers of a removed image go")

    def containerd(self):
        """The socket of the containerd that it started."""
        found = [os.path.join(folder, name) for folder, _, names in os.walk(self.data) for name in names
                 if name == "containerd.sock"]
        return found[0]

    def post(self, run):
        """The same over the API, without the command line."""
        return self._post({"name": run, "command": ["/bin/stamp", run], "network": "none"})

    def post_networked(self, run):
        """The same in the container network, with an address and names."""
        return self._post({"name": run, "command": ["/bin/stamp", run]})

    def published(self, run, port):
        """The command that starts the web server in the background, reachable on a port of the host."""
        return [*self.client, "run", "--name", run, "--publish", f"{port}:80", image.NAME, "--", *image.WEB_SERVER]

    def post_published(self, run, port):
        """The same over the API."""
        return self._post({"name": run, "command": image.WEB_SERVER, "ports": [{"host": port, "container": 80}]})

    def _post(self, spec):
        return lambda: expect(ask(self.socket, "POST", "/api/v1/workloads", {"image": image.NAME, **spec}))

    def remove(self, run):
        self.begin_removal(run)
        self.end_removal(run)

    def begin_removal(self, run):
        """Asks for the removal; what it takes goes on meanwhile."""
        expect(ask(self.socket, "DELETE", f"/api/v1/workloads/{run}"))

    def end_removal(self, run):
        """Waits until it is gone."""
        expect(ask(self.socket, "GET", f"/api/v1/workloads/{run}/wait?for=gone"))

    def end(self):
        super().end()
        if os.path.exists(self.data):
            quietly([self.toft, "down", "--data-dir", self.data])

    def wipe(self):
        """Forgets everything, as before the first start."""
        self.end()
        shutil.rmtree(self.data, ignore_errors=True)


class Ctr(Engine):
    name = "ctr"

    def begin(self):
        self.socket = os.path.join(self.place, "containerd.sock")
        config = os.path.join(self.place, "config.toml")
        with open(config, "w") as out:
            out.write(
                f'version = 2\nroot = "{self.place}/root"\nstate = "{self.place}/state"\n'
                'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                f'[grpc]\naddress = "{self.socket}"\n'
                f'[plugins."io.containerd.internal.v1.opt"]\npath = "{self.place}/opt"\n'
            )
        self.client = ["ctr", "--address", self.socket, "--namespace", self.containers]
        self.start_daemon(["containerd", "--config", config])
        wait_until(lambda: answers(self.socket), "containerd")

    def import_image(self, archive):
        quietly([*self.client, "images", "import", archive])

    def version(self):
        return "ctr, " + " ".join(quietly(["containerd", "--version"]).split()[:3])

    def whole_run(self, run):
        return [*self.client, "run", "--rm", image.NAME, run, "true"]

    def detached(self, run):
        return [*self.client, "run", "--detach", "--null-io", image.NAME, run, "/bin/stamp", run]

    def pull(self, name):
        return [*self.client, "images", "pull", "--plain-http", name]

    def forget(self, name):
        quietly([*self.client, "images", "rm", "--sync", name])

    def remove(self, run):
        quietly([*self.client, "tasks", "delete", "--force", run])
        quietly([*self.client, "containers", "delete", run])


class Docker(Engine):
    name = "docker"
    # Debian's 20.10 takes zstd for a broken tar.
    unpacks = ("gzip",)
    networking = ["--bridge=none", "--iptables=false", "--ip6tables=false"]

    def __init__(self, work, toft):
        super().__init__(work, toft)
        self.socket = os.path.join(self.place, "docker.sock")
        program = "/usr/bin/docker" if os.path.exists("/usr/bin/docker") else "docker"
        self.client = [program, "--host", f"unix://{self.socket}", "--config", self.place]

    def begin(self):
        self.up()
        self.wait_ready()

    def up(self):
        # It starts a containerd of its own, as toft does.
        return self.start_daemon([
            "dockerd", *self.networking, "--host", f"unix://{self.socket}",
            "--data-root", f"{self.place}/data", "--exec-root", f"{self.place}/exec", "--pidfile", f"{self.place}/pid",
            "--cgroup-parent", f"/{self.containers}",
        ])

    def ready(self):
        return ask(self.socket, "GET", "/_ping")[0] == 200

    def wait_ready(self):
        wait_until(self.ready, "dockerd")

    def import_image(self, archive):
        quietly([*self.client, "load", "--input", archive])

    def version(self):
        version = json.loads(quietly([*self.client, "version", "--format", "{{json .}}"]))
        return f"docker {version['Client']['Version']}, dockerd {version['Server']['Version']}"

    def whole_run(self, run):
        return [*self.client, "run", "--rm", "--network", "none", image.NAME, "true"]

    def detached(self, run):
        return [*self.client, "run", "--detach", "--name", run, "--network", "none", image.NAME, "/bin/stamp", run]

    def pull(self, name):
        return [*self.client, "pull", "--quiet", name]

    def forget(self, name):
        quietly([*self.client, "rmi", "--force", name])

    def post(self, run):
        return self._post(run, {"Cmd": ["/bin/stamp", run], "HostConfig": {"NetworkMode": "none"}})

    def _post(self, run, options):
        body = {"Image": image.NAME, **options}

        def create_and_start():
            expect(ask(self.socket, "POST", f"/containers/create?name={run}", body))
            expect(ask(self.socket, "POST", f"/containers/{run}/start"))

        return create_and_start

    def remove(self, run):
        expect(ask(self.socket, "DELETE", f"/containers/{run}?force=1"))

    def wipe(self):
        """Forgets everything, as before the first start."""
        self.end()
        for directory in ("data", "exec"):
            shutil.rmtree(os.path.join(self.place, directory), ignore_errors=True)


class NetworkedDocker(Docker):
    """dockerd with its own bridge, packet rules and port proxies, as people have it."""

    name = "docker-bridge"
    networking = []

    def published(self, run, port):
        return [*self.client, "run", "--detach", "--name", run, "--publish", f"{port}:80", image.NAME,
                *image.WEB_SERVER]

    def post_published(self, run, port):
        return self._post(run, {
            "Cmd": image.WEB_SERVER, "ExposedPorts": {"80/tcp": {}},
            "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": str(port)}]}},
        })


class Podman(Engine):
    name = "podman"

    def __init__(self, work, toft):
        super().__init__(work, toft)
        self.client = [
            "podman", "--root", f"{self.place}/root", "--runroot", f"{self.place}/run", "--tmpdir", f"{self.place}/tmp",
            "--storage-driver", "overlay", "--runtime", "runc", "--cgroup-manager", "cgroupfs",
            "--events-backend", "file",
        ]
        self.runs = [
            *self.client, "run", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--network", "none",
            "--cgroup-parent", f"/{self.containers}",
        ]

    def import_image(self, archive):
        quietly([*self.client, "load", "--input", archive])

    def version(self):
        return quietly(["podman", "--version"]).strip()

    def whole_run(self, run):
        return [*self.runs, "--rm", image.NAME, "true"]

    def detached(self, run):
        return [*self.runs, "--detach", "--name", run, image.NAME, "/bin/stamp", run]

    def pull(self, name):
        return [*self.client, "pull", "--quiet", "--tls-verify=false", name]

    def forget(self, name):
        quietly([*self.client, "rmi", "--force", name])

    def remove(self, run):
        quietly([*self.client, "rm", "--force", "--time", "0", run])

    def end(self):
        quietly([*self.client, "rm", "--all", "--force", "--time", "0"])


class Runc(Engine):
    name = "runc"

    def begin(self):
        self.bundle = os.path.join(self.place, "bundle")
        os.makedirs(self.bundle)
        quietly(["runc", "spec", "--bundle", self.bundle])
        with open(os.path.join(self.bundle, "config.json")) as file:
            self.spec = json.load(file)
        self.client = ["runc", "--root", f"{self.place}/root"]

    def import_image(self, archive):
        shutil.copytree(os.path.join(self.work, "rootfs"), os.path.join(self.bundle, "rootfs"), symlinks=True)

    def version(self):
        return quietly(["runc", "--version"]).splitlines()[0]

    def _write(self, run, words):
        self.spec["process"].update(terminal=False, args=words, env=["PATH=/bin"])
        self.spec["root"] = {"path": "rootfs", "readonly": False}
        self.spec["linux"]["cgroupsPath"] = f"/{self.containers}/{run}"
        with open(os.path.join(self.bundle, "config.json"), "w") as out:
            json.dump(self.spec, out)

    def whole_run(self, run):
        self._write(run, ["true"])
        return [*self.client, "run", "--bundle", self.bundle, run]

    def detached(self, run):
        self._write(run, ["/bin/stamp", run])
        return [*self.client, "run", "--detach", "--bundle", self.bundle, run]

    def remove(self, run):
        quietly([*self.client, "delete", "--force", run])


ENGINES = {engine.name: engine for engine in (Toft, Ctr, Docker, Podman, Runc)}


def expect(answer):
    """Refuses an answer that is no success."""
    status, body = answer
    if not 200 <= status < 300:
        raise RuntimeError(f"the engine answered {status}: {body[:500].decode(errors='replace')}")
    return body


def answers(path):
    """Whether somebody listens on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0
