"""A real MLflow server, and before it a proxy that can fall silent, fail, be slow, or lose what was answered."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_READING = ("/runs/search", "/experiments/search")
"""Requests that are posted though they change nothing."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """MLflow on a database and a folder of artifacts that outlive its process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.database, self.artifacts, self.port = folder / "mlflow.db", folder / "artifacts", free_port()
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--serve-artifacts", "--artifacts-destination", str(self.artifacts)]
        environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while not self._healthy():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """All of its processes, in the midst of what they are at."""
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database, timeout=30)) as database:
            return database.execute(sql).fetchall()

    def _healthy(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
            return True
        return False


class Proxy:
    """What lies between a command and an MLflow server.

    Attributes:
        mode: what it does with a request from now on:
            pass: hands it on;
            refuse: takes no connections, and ends those there are;
            silent: takes requests and never answers;
            500: answers so;
            slow: hands it on, and answers `delay` seconds after the server did;
            lost: hands it on, and of every `every`-th that writes drops the connection instead of answering.
        writes: requests so far that change something and that the server has answered.
    """

    def __init__(self, backend: int) -> None:
        self.backend, self.port = backend, free_port()
        self.delay, self.every = 2.0, 1
        self.mode = "pass"
        self.requests = self.writes = self.lost = 0
        self._counting = threading.Lock()
        self._listener: ThreadingHTTPServer | None = None
        self.set("pass")

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set(self, mode: str) -> None:
        self.mode = mode
        if mode == "refuse":
            self.close()
        elif self._listener is None:
            handler = type("Handler", (_Handler,), {"proxy": self})
            self._listener = _Listener(("127.0.0.1", self.port), handler)
            threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        if self._listener:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None

    def count(self, writing: bool) -> bool:
        """Whether the answer to this request, which the server has done, is to be lost."""
        with self._counting:
            self.requests += 1
            self.writes += writing
            lose = writing and self.mode == "lost" and self.writes % self.every == 0
            self.lost += lose
            return lose


class _Listener(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_request(self) -> None:
        proxy = self.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        mode = proxy.mode
        while proxy.mode == "silent":
            time.sleep(0.05)
        if mode in ("silent", "refuse"):
            self.close_connection = True
        elif mode == "500":
            self._answer(
                500, {"Content-Type": "text/html"}, b"<html>\n<h1>Internal Server Error</h1>\n</html>"
            )
        else:
            status, headers, content = self._handed_on(body)
            writing = self.command != "GET" and not self.path.split("?")[0].endswith(_READING)
            if proxy.count(writing) or status == 0:
                self.close_connection = True
                return
            if mode == "slow":
                time.sleep(proxy.delay)
            self._answer(status, headers, content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def _handed_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The server's answer; status 0 where there is no server."""
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.backend, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        except (OSError, http.client.HTTPException):
            return 0, {}, b""
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in (
                    "content-length",
                    "transfer-encoding",
                    "connection",
                    "date",
                    "server",
                ):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """No words on the screen."""


@contextmanager
def served(folder: Path) -> Iterator[tuple[Server, Proxy]]:
    """A server that is up, and its proxy, which passes everything on."""
    server = Server(folder)
    proxy = Proxy(server.port)
    try:
        server.start()
        yield server, proxy
    finally:
        proxy.close()
        server.kill()
