"""Ctrl-C ends a command within seconds, whatever the store does: in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.interruption import time_limit
from orchestrator.leases import Leases

COMMAND = """
import errno, sys, time
from pathlib import Path
from orchestrator import interruption
from orchestrator.interruption import Interruption
from orchestrator.leases import Leases
interruption.SAVING_SECONDS, interruption.ENDING_SECONDS = 1.0, 1.0
leases = Leases(Path(sys.argv[1]), "aaaaaaaa")

def read_only():
    raise OSError(errno.EROFS, "Read-only file system")

def stalled():
    time.sleep(60)

how = sys.argv[2]
if how != "well":
    leases.request_stop = {"read-only": read_only, "stalled": stalled}[how]
try:
    with Interruption(leases, lambda sentence: print(sentence, flush=True)):
        print("running", flush=True)
        time.sleep(30)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    if sys.argv[3] == "stuck":
        time.sleep(30)
    sys.exit(130)
"""


def command(root: Path, store: str, end: str = "ends") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(root), store, end], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


@pytest.mark.parametrize("store", ["well", "read-only", "stalled"])
@pytest.mark.parametrize("end", ["ends", "stuck"])
def test_the_first_signal_ends_it_within_the_two_limits(tmp_path: Path, store: str, end: str) -> None:
    process = command(tmp_path, store, end)
    started = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert time.monotonic() - started < 8
    assert "interrupted" in said
    assert ("Ray does not end by itself" in said) == (end == "stuck")


def test_the_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    process = command(tmp_path, "stalled")
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 130, said


def test_a_time_limit_asks_the_runs_trials_to_save_and_end(tmp_path: Path) -> None:
    leases, said = Leases(tmp_path, "aaaaaaaa"), list[str]()
    with time_limit(0.05, leases, said.append) as over:
        assert over.wait(20)
        while not said:
            time.sleep(0.01)
    assert leases.stop_requested()
    assert said == ["the budget is spent: running trials save their states, no further one starts"]


def test_a_time_limit_that_is_not_reached_or_not_set_stops_nothing(tmp_path: Path) -> None:
    leases = Leases(tmp_path, "aaaaaaaa")
    for seconds in (None, 3600.0):
        with time_limit(seconds, leases, print) as over:
            assert not over.is_set()
    assert not leases.stop_requested()
