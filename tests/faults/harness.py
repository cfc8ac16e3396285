"""Real runs of `ablate` in processes of their own, ways to hurt them, and what must be the same afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import load_file

from orchestrator.processes import lives

SMALL = (
    "data.image_size=8",
    "data.train_images=640",
    "backbone={kind: thin_resnet, width: 4, blocks: [1, 1]}",
    "epochs=8",
    "schedule.warmup_epochs=1",
    "batch_size=32",
    "projector_dim=16",
    "limits.state_seconds=0.3",
)
"""About ten seconds of training on one core, with several states in each epoch."""

STUDY = """
name: faulty
title: One head, many seeds
source: Table 1
seeds: [0]
cells:
  - {name: half, label: one half, set: {head: {kind: subvector, d0: 1/2}}}
evaluations: [linear_probe, spectrum]
tables:
  - {name: heads, title: Heads, source: Table 1, columns: [Head], rows: [{cell: half, columns: [half]}]}
"""


@dataclass
class Run:
    """A command line on one store, to be started as often as it takes.

    Attributes:
        tag: in the environment of every process of it, Ray's included.
    """

    folder: Path
    arguments: tuple[str, ...] = ()
    sets: tuple[str, ...] = SMALL
    study: str = STUDY
    environment: dict[str, str] = field(default_factory=dict)
    tag: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store = self.folder / "store"
        (self.folder / "faulty.yaml").write_text(self.study)

    def start(self) -> subprocess.Popen[str]:
        sets = [part for assignment in self.sets for part in ("--set", assignment)]
        command = [sys.executable, "-m", "orchestrator.cli", "run", str(self.folder / "faulty.yaml")]
        log = tempfile.TemporaryFile("w+", dir=self.folder)  # noqa: SIM115 (lives as long as its process)
        process = subprocess.Popen(
            [*command, "--store", str(self.store), *sets, *self.arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "ABLATE_FAULT_TAG": self.tag, **self.environment},
            start_new_session=True,
        )
        process.output = lambda: (log.seek(0), log.read())[1]  # type: ignore[attr-defined]
        return process

    def finish(self, timeout: float = 300) -> tuple[int, str]:
        """Run to the end; exit code and all that it said."""
        process = self.start()
        try:
            return process.wait(timeout), said(process)
        except subprocess.TimeoutExpired:
            end_tree(process.pid)
            raise AssertionError(f"no end in {timeout} s:\n{said(process)}") from None

    def processes(self) -> list[psutil.Process]:
        """Everything alive that this run started itself, its local Ray included."""
        return tagged(self.tag)

    def holders(self) -> dict[str, int]:
        """Trial -> living process that holds its lease."""
        found = {}
        for path in self.store.glob("leases/*/*"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                told = json.loads(path.read_text())
                if lives(told["pid"], told["started"]):
                    found[path.parent.name] = int(told["pid"])
        return found

    def await_lease(self, process: subprocess.Popen[str], timeout: float = 120) -> dict[str, int]:
        return await_true(self.holders, timeout, lambda: _running(process))


def tagged(tag: str) -> list[psutil.Process]:
    """Everything alive that was started with this tag in its environment, or below something that was."""
    return [process for process in psutil.process_iter() if _tag(process) == tag]


def at_work(tag: str) -> list[psutil.Process]:
    """Ray's actors and tasks among them: what Ray names `ray::…` while it is not idle."""
    found = []
    for process in tagged(tag):
        with suppress(psutil.Error):
            name = " ".join(process.cmdline())
            if name.startswith("ray::") and "IDLE" not in name:
                found.append(process)
    return found


@contextmanager
def started(run: Run) -> Iterator[subprocess.Popen[str]]:
    """A command that is killed if the test fails before its end."""
    process = run.start()
    try:
        yield process
    finally:
        if process.poll() is None:
            end_tree(process.pid)


def said(process: subprocess.Popen[str]) -> str:
    return str(process.output())  # type: ignore[attr-defined]


def the_line(text: str, start: str) -> str:
    """The one line of a command's output that has this in it; there is no traceback."""
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if start in line]
    assert len(lines) == 1, text
    return lines[0]


def _running(process: subprocess.Popen[str]) -> None:
    assert process.poll() is None, f"ended too early with {process.returncode}:\n{said(process)}"


def await_true(look: Callable[[], Any], timeout: float, meanwhile: Callable[[], None] = lambda: None) -> Any:
    """What `look` gives once that is true; fails where it takes longer."""
    deadline = time.monotonic() + timeout
    while not (found := look()):
        meanwhile()
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(0.02)
    return found


def _tag(process: psutil.Process) -> str | None:
    with suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return process.environ().get("ABLATE_FAULT_TAG")
    return None


def end_tree(pid: int) -> None:
    """Kill a process and all below it at the same moment, as a machine does that loses power."""
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
        for process in tree:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGSTOP)  # nobody acts on the death of another
        for process in tree:
            with suppress(psutil.Error):
                process.kill()


def outcome(store: Path) -> dict[str, Any]:
    """All that a study leaves of its trials, without what a clock or a place says: to be equal to the bit."""
    found: dict[str, Any] = {}
    for record in sorted(store.glob("trials/*/record.json")):
        content = json.loads(record.read_text())
        weights = load_file(record.parent / "checkpoints" / "model.safetensors")
        history = [json.loads(line) for line in (record.parent / "history.jsonl").read_text().splitlines()]
        found[record.parent.name] = {
            "weights": {name: (w.dtype.str, w.shape, w.tobytes()) for name, w in sorted(weights.items())},
            "history": [_timeless(entry) for entry in history],
            "spectra": (record.parent / "spectra.jsonl").read_text(),
            "metrics": _timeless(content["metrics"]),
        }
    for record in sorted(store.glob("evaluations/*/record.json")):
        content = json.loads(record.read_text())
        with np.load(record.parent / "arrays.npz") as arrays:
            values = {name: arrays[name].tobytes() for name in sorted(arrays.files)}
        found[content["key"]] = {"metrics": content["metrics"], "arrays": values}
    return found


def _timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in ("seconds", "images_per_second")}


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Which parts of two outcomes differ: readable, unlike the outcomes themselves."""
    parts = [
        f"{key}/{part}"
        for key in one.keys() | two.keys()
        for part in one.get(key, {}).keys() | two.get(key, {}).keys()
        if one.get(key, {}).get(part) != two.get(key, {}).get(part)
    ]
    return sorted(parts + list(one.keys() ^ two.keys()))


def leftovers(run: Run, timeout: float = 30) -> list[str]:
    """What should be gone once a command has ended: processes, leases, schedulers' files."""
    deadline = time.monotonic() + timeout
    while (alive := run.processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = []
    for process in alive:
        with suppress(psutil.Error):
            left.append(f"process {process.pid} {' '.join(process.cmdline())[:80]}")
    left += [f"lease {path.relative_to(run.store)}" for path in run.store.glob("leases/*")]
    scratch = {path for path in run.store.glob(".runs/**/*") if path.name not in ("leases", "leases.lock")}
    return left + sorted(str(path.relative_to(run.store)) for path in scratch)


_TOKEN = uuid.uuid4().hex * 2
"""One for all clusters of a test process: Ray reads it once."""


@contextmanager
def standing_cluster(*cpus: int, tag: str) -> Iterator[Any]:
    """A Ray cluster of simulated nodes on this machine: a head without CPUs, and one node for each number.

    Args:
        tag: in the environment of all its processes.
    """
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "ABLATE_FAULT_TAG")}
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN, "ABLATE_FAULT_TAG": tag}
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0},
    )
    try:
        for count in cpus:
            cluster.add_node(num_cpus=count)
        yield cluster
    finally:
        cluster.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
