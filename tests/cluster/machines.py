"""Machines of a cluster on one: each a network, process, mount and host name space of its own on one bridge.

What is on a machine is what it would have as a container: its own address, processes, host name and /tmp. They share
the kernel, its boot, the installed code and nothing else; the store is an object store. Needs root, iproute2 and
util-linux; nothing outside the bridge can reach it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "ablations"
_KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)}


@dataclass
class Machine:
    """One machine; `start` has it run a command until the network is taken down."""

    name: str
    address: str
    folder: Path
    space: str
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *command: str, user: str = "", **environment: str) -> subprocess.Popen[bytes]:
        """Its output goes to <folder>/<name of the command>.log."""
        inside = (
            f"mount --bind {self.folder}/tmp /tmp && cd /tmp && hostname {self.name} && ip link set lo up && "
            f'exec {f"setpriv --reuid={user} --regid={user} --clear-groups " if user else ""}"$@"'
        )
        log = self.folder / f"{Path(command[0]).name}-{len(self.processes)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.space, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
                 "--uts", "sh", "-c", inside, "sh", *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder, start_new_session=True,
                env={**os.environ, **self.environment, **environment},
            )  # fmt: skip
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """As when a machine loses its power."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def logs(self) -> str:
        return "\n".join(f"== {log}\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))


class Network:
    """Machines on a bridge 10.77.x.0/24 of their own, whose first address is this machine, the laptop."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder, secrets.token_hex(3)
        self.subnet = f"10.77.{secrets.randbelow(250) + 1}"
        self.machines: dict[str, Machine] = {}
        self.token = secrets.token_hex(32)
        self.code = (
            folder / "code"
        )  # a copy, so that nobody's editor changes what is sent between two commands
        for package in ("orchestrator", "trainers", "studies"):
            shutil.copytree(ROOT / package, self.code / package, ignore=shutil.ignore_patterns("__pycache__"))

    @property
    def laptop(self) -> str:
        return f"{self.subnet}.1"

    def up(self) -> None:
        _ip("link", "add", f"br{self.id}", "type", "bridge")
        _ip("addr", "add", f"{self.laptop}/24", "dev", f"br{self.id}")
        _ip("link", "set", f"br{self.id}", "up")

    def down(self) -> None:
        for machine in self.machines.values():
            machine.stop()
        for machine in self.machines.values():
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", machine.space)
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", f"br{self.id}")

    def add(self, name: str) -> Machine:
        number = len(self.machines) + 2
        space, end = f"abl{self.id}{number}", f"v{self.id}{number}"
        folder = self.folder / name
        (folder / "tmp").mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        _ip("netns", "add", space)
        _ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", end, "master", f"br{self.id}", "up")
        address = f"{self.subnet}.{number}"
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        machine = Machine(name, address, folder, space, self.environment())
        self.machines[name] = machine
        return machine

    def environment(self) -> dict[str, str]:
        """What every machine and the laptop have: the cluster's token, and the object store's keys."""
        told = {
            **_KEYS,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GLOO_SOCKET_IFNAME": "eth0",
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        if "services" in self.machines:
            told["AWS_ENDPOINT_URL"] = f"http://{self.machines['services'].address}:5000"
        return told

    # --- what runs on them ---

    def services(self) -> Machine:
        """The object store, PostgreSQL and MLflow's server upon it, each listening on the machine's own address."""
        machine = self.add("services")
        machine.environment = self.environment()
        machine.start(_bin("moto_server"), "-H", machine.address, "-p", "5000")
        self._database(machine)
        machine.start(
            _bin("mlflow"), "server", "--host", machine.address, "--port", "5050", "--workers", "1",
            "--backend-store-uri", "postgresql+psycopg2://postgres@127.0.0.1/mlflow",
            "--artifacts-destination", f"s3://{BUCKET}/mlflow", "--serve-artifacts",
            "--allowed-hosts", f"{machine.address}:5050",
        )  # fmt: skip
        await_answer(f"http://{machine.address}:5000/moto-api/", machine)
        import boto3

        endpoint = f"http://{machine.address}:5000"
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="testing",
                     aws_secret_access_key="testing").create_bucket(Bucket=BUCKET)  # fmt: skip
        await_answer(f"http://{machine.address}:5050/health", machine)
        return machine

    def _database(self, machine: Machine) -> None:
        tools = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        data = machine.folder / "tmp" / "postgresql"  # which is /tmp/postgresql there
        data.mkdir()
        shutil.chown(data, "postgres", "postgres")
        for parent in machine.folder.parents:  # so that its user reaches it
            if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 1:
                parent.chmod(parent.stat().st_mode | 0o011)
        machine.folder.chmod(0o755)
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        subprocess.run([*as_user, tools / "initdb", "-D", data, "-A", "trust", "-U", "postgres"],
                       check=True, capture_output=True, cwd=data)  # fmt: skip
        machine.start(str(tools / "postgres"), "-D", "/tmp/postgresql", "-h", "127.0.0.1", "-k", "/tmp/postgresql",
                      user="postgres")  # fmt: skip
        for _ in range(100):
            made = subprocess.run(
                [tools / "createdb", "-h", data, "-U", "postgres", "mlflow"], capture_output=True
            )
            if made.returncode == 0:
                return
            time.sleep(0.2)
        raise AssertionError(f"no database: {made.stderr.decode()}\n{machine.logs()}")

    def head(self) -> Machine:
        machine = self.add("head")
        machine.environment = self.environment()
        machine.start(
            _bin("ray"), "start", "--head", "--port", "6379", "--node-ip-address", machine.address, "--num-cpus", "0",
            "--dashboard-host", machine.address, "--dashboard-port", "8265", "--object-store-memory", "200000000",
            "--block",
        )  # fmt: skip
        await_answer(f"http://{machine.address}:8265/", machine)
        return machine

    def worker(self, name: str, cpus: int) -> Machine:
        machine = self.add(name)
        machine.environment = self.environment()
        machine.start(
            _bin("ray"), "start", "--address", f"{self.machines['head'].address}:6379", "--num-cpus", str(cpus),
            "--node-ip-address", machine.address, "--object-store-memory", "200000000", "--block",
        )  # fmt: skip
        return machine

    def ablate(
        self, *arguments: str, timeout: float = 600, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """The command line on the laptop."""
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments], capture_output=True, text=True, timeout=timeout,
            cwd=self.code,
            env={**os.environ, **self.environment(), "ABLATE_CACHE": str(self.folder / "cache"), **environment},
        )  # fmt: skip

    @property
    def page(self) -> str:
        return f"http://{self.machines['head'].address}:8265"

    @property
    def mlflow(self) -> str:
        return f"http://{self.machines['services'].address}:5050"


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    made = Network(folder)
    try:
        made.up()
        yield made
    finally:
        made.down()


def missing() -> str:
    """Why there can be no such network here; empty if there can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    needed = [name for name in ("ip", "unshare", "setpriv", "hostname") if shutil.which(name) is None]
    if not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        needed.append("postgresql")
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        needed.append("psycopg2-binary (pip)")
    if needed:
        return f"needs {', '.join(needed)}"
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--mount-proc", "true"], capture_output=True
    )
    return "" if tried.returncode == 0 else "may not make namespaces here"


def await_answer(url: str, machine: Machine, seconds: float = 90) -> None:
    """Until an HTTP server answers, whatever it says."""
    await_that(lambda: _answers(url), f"{url} does not answer", machine, seconds)


def await_that(holds: Callable[[], bool], otherwise: str, machine: Machine, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{otherwise}\n{machine.logs()}"
        time.sleep(0.3)


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _bin(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
