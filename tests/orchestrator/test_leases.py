"""One holder a trial, whoever dies, freezes or races: with real processes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import leases as module
from orchestrator.errors import AblateError
from orchestrator.leases import Fence, Holder, Lease, LeaseLost, Leases

KEY, RUN, OTHER = "0123456789abcdef0123", "aaaaaaaa", "bbbbbbbb"

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.leases import Leases
lease = Leases(Path(sys.argv[1]), "bbbbbbbb").acquire("0123456789abcdef0123")
print(type(lease).__name__, flush=True)
time.sleep(60)
"""
RACE = """
import sys, time
from pathlib import Path
from orchestrator.leases import Lease, Leases
root, leases, won = Path(sys.argv[1]), Leases(Path(sys.argv[1]), "cccccccc"), 0
while won < 20:
    lease = leases.acquire("0123456789abcdef0123")
    if isinstance(lease, Lease):
        with lease:
            inside = root / "inside"
            inside.touch(exist_ok=False)  # fails where two are inside
            time.sleep(0.001)
            lease.fence.confirm()
            inside.unlink()
        won += 1
"""

NO_LOCKS = """
import fcntl
def unsupported(file, operation):
    raise OSError(95, "Operation not supported")
fcntl.flock = unsupported
"""


def acquired(leases: Leases) -> Lease:
    lease = leases.acquire(KEY)
    assert isinstance(lease, Lease), lease
    return lease


def holding(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "Lease\n"
    return process


def test_a_trial_has_one_holder_until_it_is_released(tmp_path: Path) -> None:
    with acquired(Leases(tmp_path, RUN)):
        holder = Leases(tmp_path, OTHER).acquire(KEY)
        assert isinstance(holder, Holder)
        assert (holder.run, holder.pid) == (RUN, os.getpid())
        assert Leases(tmp_path, OTHER).held() == {KEY: holder}
    assert Leases(tmp_path, OTHER).held() == {}
    assert not list((tmp_path / "leases").iterdir())
    acquired(Leases(tmp_path, OTHER)).release()


def test_a_killed_holder_is_replaced_at_once(tmp_path: Path) -> None:
    process = holding(tmp_path)
    assert isinstance(Leases(tmp_path, RUN).acquire(KEY), Holder)
    process.kill()
    process.wait()
    with acquired(Leases(tmp_path, RUN)):
        assert len(list((tmp_path / "leases" / KEY).iterdir())) == 1


def test_a_frozen_holder_on_this_machine_keeps_its_trial(tmp_path: Path) -> None:
    process = holding(tmp_path)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        assert isinstance(Leases(tmp_path, RUN, ttl=0.01).acquire(KEY), Holder)
    finally:
        process.kill()
        process.wait()


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process is on another machine than before."""
    monkeypatch.setattr(module, "machine", lambda: "another boot")


def test_a_holder_elsewhere_counts_as_dead_once_it_was_seen_unrenewed_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = Leases(tmp_path, RUN, ttl=3600).acquire(KEY)  # renewed every ten minutes: as good as frozen
    assert isinstance(slept, Lease)
    elsewhere(monkeypatch)
    observer = Leases(tmp_path, OTHER, ttl=0.5)
    assert isinstance(observer.acquire(KEY), Holder)
    time.sleep(0.6)
    assert isinstance(Leases(tmp_path, OTHER, ttl=0.5).acquire(KEY), Holder)  # has seen it for no time yet
    with acquired(observer) as taker:
        with pytest.raises(LeaseLost, match="taken over"):
            slept.fence.confirm()
        slept.release()  # leaves the taker's files alone
        taker.fence.confirm()
    with pytest.raises(LeaseLost):
        slept.fence.confirm()


def test_a_sleeper_is_kept_out_though_its_taker_is_gone_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = Leases(tmp_path, RUN, ttl=3600).acquire(KEY)
    assert isinstance(slept, Lease)
    elsewhere(monkeypatch)
    observer = Leases(tmp_path, OTHER, ttl=0.1)
    observer.holder(KEY)
    time.sleep(0.2)
    acquired(observer).release()
    with acquired(Leases(tmp_path, OTHER)) as third:
        with pytest.raises(LeaseLost):
            slept.fence.confirm()
        slept.release()
        third.fence.confirm()


@pytest.mark.parametrize("hours", [-5, 5])
def test_clocks_of_other_machines_are_never_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    acquired(Leases(tmp_path, RUN, ttl=3600))
    (path,) = (tmp_path / "leases" / KEY).iterdir()
    elsewhere(monkeypatch)
    observer, later = Leases(tmp_path, OTHER, ttl=0.3), time.time() + 3600 * hours
    for second in range(4):
        os.utime(path, (later + second, later + second))
        assert isinstance(observer.acquire(KEY), Holder)
        time.sleep(0.15)


def test_a_renewed_lease_outlives_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with acquired(Leases(tmp_path, RUN, ttl=0.6)):
        elsewhere(monkeypatch)
        observer = Leases(tmp_path, OTHER, ttl=0.6)
        for _ in range(5):
            assert isinstance(observer.acquire(KEY), Holder)
            time.sleep(0.3)


def test_a_lease_whose_writer_died_at_it_is_taken_in_time(tmp_path: Path) -> None:
    place = tmp_path / "leases" / KEY
    place.mkdir(parents=True)
    (place / "0123456789abcdef").write_text('{"run": "aa')
    observer = Leases(tmp_path, RUN, ttl=0.3)
    assert isinstance(observer.acquire(KEY), Holder)
    time.sleep(0.4)
    acquired(observer).release()


def test_a_lock_that_a_frozen_process_keeps_stops_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOCK_S", 0.2)
    with (tmp_path / "leases.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with acquired(Leases(tmp_path, RUN)):
            assert isinstance(Leases(tmp_path, OTHER).acquire(KEY), Holder)


def test_a_process_number_that_came_round_again_is_another_process(tmp_path: Path) -> None:
    lease = acquired(Leases(tmp_path, RUN))
    (path,) = (tmp_path / "leases" / KEY).iterdir()
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "started": "1"}))
    with acquired(Leases(tmp_path, OTHER)), pytest.raises(LeaseLost):
        lease.fence.confirm()


@pytest.mark.parametrize("locks", ["with locks", "without locks"])
def test_eight_processes_that_race_are_never_inside_together(tmp_path: Path, locks: str) -> None:
    race = RACE if locks == "with locks" else NO_LOCKS + RACE
    racers = [subprocess.Popen([sys.executable, "-c", race, str(tmp_path)]) for _ in range(8)]
    assert [racer.wait(120) for racer in racers] == [0] * 8
    assert not list((tmp_path / "leases").iterdir())


def test_a_fence_tells_other_processes_of_beats_and_stops(tmp_path: Path) -> None:
    leases = Leases(tmp_path, RUN)
    with acquired(leases) as lease:
        fence: Fence = lease.fence
        assert leases.progress(KEY) is None
        fence.beat("step 3")
        first = leases.progress(KEY)
        assert first is not None
        assert first[1] == "step 3"
        fence.beat("step 4")  # too soon after
        assert leases.progress(KEY) == first
        assert leases.holder(KEY) == lease.holder
        assert not fence.stopping()
        leases.request_stop()
        assert leases.stop_requested()
        time.sleep(0.6)
        assert fence.stopping()
    assert not list((tmp_path / "leases").iterdir())


def test_what_dead_holders_left_is_cleared_and_living_ones_stay(tmp_path: Path) -> None:
    process = holding(tmp_path)
    Leases(tmp_path, RUN).clear_dead()
    assert set(Leases(tmp_path, RUN).held()) == {KEY}
    process.kill()
    process.wait()
    Leases(tmp_path, RUN).clear_dead()
    assert not list((tmp_path / "leases").iterdir())


@given(st.text(max_size=30).filter(lambda name: not module._NAME.fullmatch(name)))
def test_no_other_name_reaches_a_file(name: str) -> None:
    with pytest.raises(AblateError, match="hexadecimal"):
        Leases(Path("nowhere"), name)
    with pytest.raises(AblateError, match="hexadecimal"):
        Leases(Path("nowhere"), RUN).acquire(name)
    assert not Path("nowhere").exists()
