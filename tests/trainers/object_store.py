"""A server that speaks S3 on loopback, in a process of its own, and its log of what was asked."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class ObjectStore:
    """Attributes:
    endpoint: its URL.
    """

    def __init__(self, endpoint: str, log: Path) -> None:
        self.endpoint, self._log = endpoint, log

    def gets(self, name: str) -> int:
        """How often an object of that name was asked for, whole or in part."""
        return len(re.findall(rf'"GET /[^ ?]*{re.escape(name)}(?:\?\S*)? HTTP', self._log.read_text()))

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have this process, and those that it starts, take it for S3."""
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)
        forget_connections()

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def forget_connections() -> None:
    """fsspec keeps connections by their arguments, whatever the environment says meanwhile."""
    import fsspec

    for scheme in ("s3", "s3a"):
        fsspec.get_filesystem_class(scheme).clear_instance_cache()


@contextmanager
def serve(folder: Path) -> Iterator[ObjectStore]:
    """Start a server on a free port, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "s3.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=out,
            stderr=out,
            env={**os.environ, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"},
        )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        yield ObjectStore(endpoint, log)
    finally:
        server.kill()
        server.wait()
