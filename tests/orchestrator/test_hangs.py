"""Trials that stand still are ended and told of; those whose command was stopped for a while are not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator import hangs
from orchestrator.hangs import HangWatch
from orchestrator.leases import Holder, Lease, Leases
from orchestrator.processes import started
from orchestrator.store import Store

KEY, RUN, OTHER = "0123456789abcdef0123", "aaaaaaaa", "bbbbbbbb"


class Heard:
    """What a watch said and ended."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.ended: list[str] = []

    def say(self, trial: str, sentence: str) -> None:
        self.said.append(f"{trial}: {sentence}")

    def end(self, trial: str, holder: Holder) -> None:
        self.ended.append(trial)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.prepare()
    return store


@pytest.fixture
def held(store: Store) -> Lease:
    lease = Leases(store.root, RUN).acquire(KEY)
    assert isinstance(lease, Lease)
    return lease


def watch(store: Store, heard: Heard, run: str = RUN) -> HangWatch:
    return HangWatch(store, Leases(store.root, run), {KEY: 0.5}, heard.end, heard.say)


def await_true(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_silent_trial_is_ended_with_the_place_it_stood_at(store: Store, held: Lease) -> None:
    held.fence.beat("step 7")
    heard = Heard()
    with watch(store, heard):
        await_true(lambda: heard.ended)
    assert heard.ended[0] == KEY
    assert "since step 7" in heard.said[0]
    assert "limits.silent_seconds = 0.5" in heard.said[0]
    failure = store.trial_failure(KEY)
    assert failure is not None
    assert (failure["type"], failure["run"]) == (hangs.HUNG, RUN)


def test_a_trial_that_moves_and_one_of_another_command_are_left_alone(
    store: Store, held: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.leases._PROGRESS_EVERY_S", 0.0)
    heard = Heard()
    with watch(store, heard), watch(store, heard, OTHER):
        for step in range(15):
            held.fence.beat(f"step {step}")
            time.sleep(0.1)
    assert heard.ended == []


def test_a_full_disk_does_not_save_a_trial_that_hangs(
    store: Store, held: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "fail_trial", full)
    heard = Heard()
    with watch(store, heard):
        await_true(lambda: heard.ended)


PAUSED = """
import sys, time
from pathlib import Path
from orchestrator import hangs
from orchestrator.hangs import HangWatch
from orchestrator.leases import Leases
from orchestrator.store import Store
hangs._PAUSE_S = 1.0
store = Store(sys.argv[1])
lease = Leases(store.root, "aaaaaaaa").acquire("0123456789abcdef0123")
end, say = (lambda key, holder: print("ended", flush=True)), (lambda key, text: None)
with HangWatch(store, Leases(store.root, "aaaaaaaa"), {"0123456789abcdef0123": 4.0}, end, say):
    print("watching", flush=True)
    time.sleep(2.5)
print("over", flush=True)
"""


def test_a_command_that_was_stopped_for_a_while_takes_nobody_for_hung(tmp_path: Path) -> None:
    Store(tmp_path).prepare()
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "watching\n"
    time.sleep(1)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(5)
    os.kill(process.pid, signal.SIGCONT)
    said, _ = process.communicate(timeout=30)
    assert said == "over\n"


END = """
import json, sys
from pathlib import Path
from orchestrator.hangs import end_process
from orchestrator.leases import Holder
end_process(Path(sys.argv[1]), "0123456789abcdef0123", Holder(**json.loads(sys.argv[2])))
"""


@pytest.mark.parametrize("still_at_it", [True, False])
def test_a_process_is_killed_at_this_trial_and_not_at_its_next_one(tmp_path: Path, still_at_it: bool) -> None:
    """The process that ends it, and the one to be ended, are children of the same, as workers of a node are."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        lease = Leases(tmp_path, RUN).acquire(KEY)
        assert isinstance(lease, Lease)
        holder = asdict(lease.holder) | {"pid": child.pid, "started": started(child.pid)}
        if not still_at_it:
            lease.release()
        subprocess.run([sys.executable, "-c", END, str(tmp_path), json.dumps(holder)], check=True)
        time.sleep(0.2)
        assert (child.poll() is not None) == still_at_it
    finally:
        child.kill()
        child.wait()
