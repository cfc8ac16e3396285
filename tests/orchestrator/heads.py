"""The head of a Ray cluster as `ray start` makes it, on loopback, with a token and ports of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

import orchestrator

ROOT = Path(orchestrator.__file__).parent.parent
_OUTSIDE = ("RAY_", "ABLATE_", "MLFLOW_", "GLOO_", "NCCL_")


@dataclass
class Head:
    """Attributes:
    folder: Ray's own, with its logs.
    code: a copy, so that nobody's editor changes what is sent between two commands.
    environment: of whoever may reach it.
    """

    folder: Path
    code: Path
    environment: dict[str, str]
    page: int
    address: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.page}"

    @property
    def token(self) -> str:
        return Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()

    def answer(self, path: str, token: str | None) -> tuple[int, str]:
        """What plain HTTP gets."""
        request = urllib.request.Request(f"{self.url}{path}")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def await_nodes(self, count: int) -> None:
        """Until so many are in, the head's own included."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            told = json.loads(self.answer("/api/v0/nodes", self.token)[1])["data"]["result"]["result"]
            if sum(node["state"] == "ALIVE" for node in told) == count:
                return
            time.sleep(0.3)
        raise AssertionError(f"not {count} nodes within 90 s")

    def ablate(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """A whole command, as of somebody who has the token unless `changes` of the environment say otherwise."""
        return subprocess.run(
            command(*arguments),
            cwd=self.code,
            env=self.environment | changes,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli", *arguments]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def standing_head(
    folder: Path, *options: str, cpus: int = 2, alone: bool = True, port: int | None = None, **changes: str
) -> Iterator[Head]:
    """Args:
    alone: no other nodes join it.
    changes: of the environment of the cluster, and of whoever reaches it.
    """
    code = folder / "code"
    for package in ("orchestrator", "trainers", "studies"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("*.pyc"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    outside = {name: value for name, value in os.environ.items() if not name.startswith(_OUTSIDE)}
    environment = {
        **outside,
        "HOME": str(folder),
        "PYTHONPATH": str(code),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{outside['PATH']}",
        "NO_PROXY": "127.0.0.1,localhost",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # all on loopback, of which drivers too must know; for one node only
        **({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if alone else {}),
        **changes,
    }
    short = tempfile.mkdtemp(prefix="ray-")  # sockets lie below, whose paths may have 107 characters
    head = Head(Path(short), code, environment, free_port())
    port = port or free_port()
    head.address = f"127.0.0.1:{port}"
    try:
        page = ("--dashboard-host", "127.0.0.1", "--dashboard-port", str(head.page))
        place = ("--port", str(port), "--temp-dir", short, "--num-cpus", str(cpus))
        with started(
            *("--head", *page, *place, *options),
            environment=environment,
        ):
            until = time.monotonic() + 90
            while time.monotonic() < until:
                with suppress(OSError):
                    if head.answer("/api/version", head.token)[0] == 200:
                        break
                time.sleep(0.2)
            else:
                raise AssertionError(f"no head within 90 s: {log_of(environment).read_text()[-2000:]}")
            yield head
    finally:
        shutil.rmtree(short, ignore_errors=True)


def log_of(environment: dict[str, str]) -> Path:
    """What `ray start` said."""
    return Path(environment["HOME"]) / "start.log"


@contextmanager
def started(*options: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start` until the end, with all that it started."""
    ports = ("--dashboard-agent-listen-port", "--dashboard-agent-grpc-port", "--metrics-export-port")
    workers = ("--min-worker-port", "--max-worker-port")
    zeros = [part for name in (*ports, *workers) for part in (name, "0")]
    quiet = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    log = log_of(environment).open("ab")
    process = subprocess.Popen(
        ["ray", "start", "--block", "--node-ip-address", "127.0.0.1", *zeros, *options],
        env=environment | quiet,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        log.close()
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for one in tree:  # jobs above all, which may be at their work
            with suppress(psutil.Error):
                one.kill()


class Line:
    """A connection to a port that can be cut, and works again after a while."""

    def __init__(self, port: int) -> None:
        self._backend = port
        self._whole = threading.Event()
        self._whole.set()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def mend(self) -> None:
        self._whole.set()

    def _serve(self) -> None:
        while True:
            front, _ = self._listener.accept()
            if not self._whole.is_set():
                front.close()
                continue
            back = socket.create_connection(("127.0.0.1", self._backend))
            self._open += [front, back]
            for source, target in ((front, back), (back, front)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
