"""A store at s3:// keeps what a folder keeps: against a server that speaks S3, with real processes."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.errors import SpecError
from orchestrator.leases import Fence, Holder, Lease, LeaseLost, Leases
from orchestrator.plan import jobs, make_plan
from orchestrator.report.render import write_report
from orchestrator.scratch import scratch
from orchestrator.store import Store
from tests.orchestrator.synthetic import bare_record, fill
from tests.trainers.object_store import ObjectStore, forget_connections, serve
from trainers import checkpoint
from trainers.locations import LocationError, is_local, local_copy, location

KEY, RUN, OTHER = "0123456789abcdef0123", "aaaaaaaa", "bbbbbbbb"
record = partial(bare_record, KEY)

RACE = """
import sys, time
from orchestrator.leases import Lease, Leases
from trainers.locations import location
root, won = location(sys.argv[1]), 0
leases = Leases(root, "cccccccc")
while won < 2:
    lease = leases.acquire("0123456789abcdef0123")
    if isinstance(lease, Lease):
        with lease:
            inside = root / "inside"
            assert not inside.exists()
            inside.write_bytes(sys.argv[2].encode())
            time.sleep(0.02)
            lease.fence.confirm()
            assert inside.read_bytes() == sys.argv[2].encode()
            inside.unlink()
        won += 1
"""
HOLD = """
import sys, time
from orchestrator.leases import Leases
from trainers.locations import location
print(type(Leases(location(sys.argv[1]), "bbbbbbbb").acquire("0123456789abcdef0123")).__name__, flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with serve(tmp_path_factory.mktemp("s3")) as started:
        yield started


@pytest.fixture
def root(
    server: ObjectStore, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Path]:
    server.use(monkeypatch)
    import boto3

    boto3.client("s3").create_bucket(Bucket="ablations")
    yield location(f"s3://ablations/{abs(hash(request.node.name))}")
    forget_connections()


@pytest.fixture
def store(root: Path) -> Store:
    made = Store(str(root))
    made.prepare()
    return made


def names(folder: Path) -> list[str]:
    """Every object below a folder."""
    system, base = folder.fs, folder.path  # type: ignore[attr-defined]
    return sorted(name.removeprefix(f"{base}/") for name in system.find(base))


def acquired(leases: Leases) -> Lease:
    lease = leases.acquire(KEY)
    assert isinstance(lease, Lease), lease
    return lease


# --- records --------------------------------------------------------------------------------------


def test_records_arrays_notes_and_failures_come_back(store: Store) -> None:
    store.begin_trial(KEY, {"a": 1})
    assert store.trial_record(KEY) is None
    store.note(KEY, "one")
    store.note(KEY, "two")
    assert [note["text"] for note in store.notes(KEY)] == ["one", "two"]
    store.fail_trial(KEY, {"error": "lost"})
    assert store.trial_failure(KEY) == {"error": "lost"}
    store.commit_trial(KEY, record("trial", recipe="digits"))
    assert store.trial_record(KEY) == record("trial", recipe="digits")
    assert store.trial_failure(KEY) is None
    correct = np.array([True, False, True])
    store.commit_evaluation(
        KEY, {"kind": "knn"}, record("evaluation", metrics={"top1": 66.7}), {"correct": correct}
    )
    again = Store(str(store.root))
    assert again.evaluation_record(KEY) == record("evaluation", metrics={"top1": 66.7})
    arrays = again.evaluation_arrays(KEY)
    assert arrays is not None
    assert np.array_equal(arrays["correct"], correct)
    assert [line["state"] for line in again.status()] == ["finished"]
    assert again.damage == {}


@pytest.mark.parametrize("name", ["record.json", "arrays.npz"])
def test_what_was_altered_or_cut_off_is_set_aside(store: Store, name: str) -> None:
    store.commit_evaluation(KEY, {}, record("evaluation"), {"x": np.arange(9)})
    path = store.evaluation_directory(KEY) / name
    path.write_bytes(path.read_bytes()[:-7] + b"altered")
    assert Store(str(store.root)).evaluation_record(KEY) is None
    assert store.evaluation_record(KEY) is None  # though this one has read it before
    assert len(store.set_aside_damaged()) == (
        1 if name == "record.json" else 2
    )  # arrays go with their record
    assert any(entry.startswith("damaged/") for entry in names(store.root))
    assert store.evaluation_record(KEY) is None
    assert store.damage == {}


def test_a_record_is_written_only_by_whoever_may(store: Store) -> None:
    def refuse() -> None:
        raise LeaseLost("gone")

    store.begin_trial(KEY, {})
    with pytest.raises(LeaseLost):
        store.commit_trial(KEY, record("trial"), guard=refuse)
    assert store.trial_record(KEY) is None


def test_a_store_that_answers_not_or_has_no_bucket_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match=r"--store s3://nowhere/x: cannot be written: .*bucket"):
        Store("s3://nowhere/x").prepare()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget_connections()
    started = time.monotonic()
    with pytest.raises(SpecError, match="no answer from the object store"):
        Store("s3://ablations/x").prepare()
    assert time.monotonic() - started < 60
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    forget_connections()
    with pytest.raises(SpecError, match="no keys for the object store"):
        Store("s3://ablations/x").prepare()


@pytest.mark.parametrize(
    "url", ["s3:/x", "s3://", "s3://key:secret@bucket/x", "s3://b/x?key=secret", "file:///x", "unknown://b/x"]
)
def test_a_url_that_cannot_be_meant_is_refused_without_its_keys(url: str) -> None:
    with pytest.raises(LocationError) as error:
        location(url)
    assert "secret" not in str(error.value)


def test_a_report_is_that_of_a_folder_with_the_same_records_and_lies_in_the_store(
    store: Store, tmp_path: Path
) -> None:
    plan = make_plan(["table1"], "digits", seeds=(0,))
    folder = Store(tmp_path / "folder")
    for one in (store, folder):
        fill(plan, one, fail=[list(plan.trials)[1]], skip=[list(plan.trials)[2]])
    assert [job.trial for job in jobs(plan, store)] == [job.trial for job in jobs(plan, folder)]
    there, here = (write_report(plan, plan.studies[0], one) for one in (store, folder))
    for name in ("cells.csv", "report.md", "index.html", "tables/table1.tex"):
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
    assert list(store.status()) == list(folder.status())


# --- states ---------------------------------------------------------------------------------------


def test_a_state_is_written_and_read_with_its_checksum(root: Path) -> None:
    path = root / "checkpoints" / "state-000000007.safetensors"
    tensors = {"weight": torch.arange(12.0).reshape(3, 4)}
    assert not is_local(checkpoint.write(path, tensors, {"step": 7}))
    read, told = checkpoint.read(path)
    assert torch.equal(read["weight"], tensors["weight"])
    assert json.loads(told["step"]) == 7
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(checkpoint.DamagedError):
        checkpoint.read(path)
    checkpoint.set_aside(path)
    assert [one.name for one in path.parent.iterdir()] == [f"{path.name}.damaged"]
    with pytest.raises(FileNotFoundError):
        checkpoint.read(path)
    with pytest.raises(FileNotFoundError), local_copy(path):
        pass


def test_a_state_waits_for_a_store_that_is_away_and_the_guard_is_asked_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, asked = root.fs, []  # type: ignore[attr-defined]
    put = system.put_file

    def away_at_first(*arguments: object, **options: object) -> object:
        if len(asked) < 2:
            raise OSError(5, "no answer from the object store")
        return put(*arguments, **options)

    monkeypatch.setattr(system, "put_file", away_at_first)
    path = root / "checkpoints" / "state-000000001.safetensors"
    checkpoint.write(path, {"weight": torch.ones(3)}, {}, lambda: asked.append("asked"))
    assert asked == ["asked"] * 2
    assert torch.equal(checkpoint.read(path)[0]["weight"], torch.ones(3))


# --- leases ---------------------------------------------------------------------------------------


def test_a_trial_has_one_holder_until_it_is_released(root: Path) -> None:
    with acquired(Leases(root, RUN)):
        holder = Leases(root, OTHER).acquire(KEY)
        assert isinstance(holder, Holder)
        assert Leases(root, OTHER).held() == {KEY: holder}
    assert Leases(root, OTHER).held() == {}
    assert names(root / "leases") == []


def test_four_processes_that_race_are_never_inside_together(root: Path) -> None:
    racers = [subprocess.Popen([sys.executable, "-c", RACE, str(root), str(n)]) for n in range(4)]
    assert [racer.wait(200) for racer in racers] == [0] * 4
    assert names(root / "leases") == []


def test_a_killed_holder_is_followed_at_once_and_one_of_another_machine_after_its_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "Lease\n"
    assert isinstance(Leases(root, RUN).acquire(KEY), Holder)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    first = acquired(Leases(root, RUN))
    first._released.set()  # it renews no more, as if its machine were gone
    monkeypatch.setattr("orchestrator.leases.machine", lambda: "another")
    other = Leases(root, OTHER, ttl=2.0)
    assert isinstance(other.acquire(KEY), Holder)
    time.sleep(2.2)
    taken = acquired(other)
    with pytest.raises(LeaseLost):
        first.fence.confirm()
    first.release()
    taken.fence.confirm()
    taken.release()
    assert names(root / "leases") == []


def test_a_renewed_lease_outlives_its_time_and_is_not_made_anew_once_taken(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = acquired(Leases(root, RUN, ttl=5))
    monkeypatch.setattr("orchestrator.leases.machine", lambda: "another")
    other = Leases(root, OTHER, ttl=5)
    for _ in range(6):
        assert isinstance(other.acquire(KEY), Holder)
        time.sleep(1)
    (root / "leases" / KEY / lease.holder.token).unlink()  # as a taker does
    time.sleep(1)
    with pytest.raises(LeaseLost):
        lease.fence.confirm()
    lease.release()


def test_a_fence_reaches_other_processes_and_never_makes_the_training_wait(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases(root, RUN)
    with acquired(leases) as lease:
        fence: Fence = pickle.loads(pickle.dumps(lease.fence))
        fence.confirm()
        answers, system = threading.Event(), root.fs  # type: ignore[attr-defined]
        put = system.pipe_file
        monkeypatch.setattr(system, "pipe_file", lambda *given: answers.wait(60) and put(*given))
        fence.beat("step 3")
        assert not fence.stopping()
        answers.set()  # which nobody has waited for until now
        deadline = time.monotonic() + 10
        while (told := leases.progress(KEY)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert told is not None
        assert told[1] == "step 3"
        leases.request_stop()
        while not fence.stopping() and time.monotonic() < deadline + 10:
            time.sleep(0.1)
        assert fence.stopping()


def test_a_store_that_is_away_for_a_while_takes_nothing_over(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with acquired(Leases(root, RUN)) as lease:

        def away(*arguments: object, **options: object) -> None:
            raise OSError(5, "no answer")

        system = root.fs  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setattr(system, "info", away)
            with pytest.raises(OSError, match="no answer"):
                lease.fence.confirm()
        lease.fence.confirm()


def test_what_ray_keeps_for_a_command_goes_with_it_and_with_the_next_one(root: Path) -> None:
    with scratch(root, RUN) as folder:
        (folder / "tune" / "state.json").write_bytes(b"{}")
        assert any(name.startswith("tune") for name in names(folder))
    left = root / ".runs" / OTHER
    (left / "tune" / "state.json").write_bytes(b"{}")
    with scratch(root, RUN):
        assert names(left) == []
    assert names(root) == []
