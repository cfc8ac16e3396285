"""What a Tune trial leaves in its process, and whom it waits for."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator import leases as leases_module
from orchestrator import trainable
from orchestrator.leases import Fence, Holder, Lease, Leases
from orchestrator.library import load_recipe
from orchestrator.plan import Job
from orchestrator.spec import Resources
from orchestrator.store import Store

KEY, RUN, OTHER = "0123456789abcdef0123", "aaaaaaaa", "bbbbbbbb"


class Large:
    """Stands for the tensors of a step."""


def test_what_a_failed_trial_held_is_free_when_the_next_begins_in_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Large]] = []

    def fail(assignment: object, store: Store, fence: Fence) -> None:
        assert all(reference() is None for reference in held)
        large = Large()
        held.append(weakref.ref(large))
        raise MemoryError

    monkeypatch.setattr(trainable, "_work", fail)
    monkeypatch.setattr(trainable, "still_missing", lambda job, store: job)
    Store(tmp_path).prepare()
    job = SimpleNamespace(trial="0" * 20)
    assignments = {
        job.trial: trainable.Assignment(job, "digits", str(tmp_path), "inline", "f" * 8, Resources())
    }
    gc.disable()  # so that nothing else frees it
    try:
        for _ in range(2):
            told = trainable.run_job({"trial": job.trial}, assignments)
            assert told["error"].startswith("MemoryError: out of memory; lower batch_size")
            assert told["error"].endswith("(at its start)")
    finally:
        gc.enable()
    assert len(held) == 2


def held_elsewhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> Lease:
    """A lease of RUN that nobody renews, on another machine than this process is on from now on."""
    lease = Leases(root, RUN, ttl=3600).acquire(KEY)
    assert isinstance(lease, Lease)
    monkeypatch.setattr(leases_module, "machine", lambda: "another boot")
    return lease


def test_what_the_same_run_held_on_a_lost_node_is_taken_once_its_lease_ran_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = held_elsewhere(tmp_path, monkeypatch)
    started = time.monotonic()
    taken = trainable._acquire(Leases(tmp_path, RUN, ttl=1.5), KEY)
    assert isinstance(taken, Lease)
    assert 1.5 <= time.monotonic() - started < 5
    with pytest.raises(leases_module.LeaseLost):
        lost.fence.confirm()


def test_another_run_is_not_waited_for_and_a_stop_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_elsewhere(tmp_path, monkeypatch)
    started = time.monotonic()
    assert isinstance(trainable._acquire(Leases(tmp_path, OTHER), KEY), Holder)
    assert time.monotonic() - started < 1
    mine = Leases(tmp_path, RUN)
    threading.Timer(0.5, mine.request_stop).start()
    assert isinstance(trainable._acquire(mine, KEY), Holder)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("resources", "train", "executor", "holds"),
    [
        (Resources(), True, "auto", Resources()),
        (Resources(), True, "train", None),
        (Resources(workers=2), True, "auto", None),
        (Resources(workers=2), False, "auto", Resources()),  # it is only measured
        (Resources(evaluation_cpus=2), True, "auto", None),
        (Resources(evaluation_cpus=2), False, "auto", Resources(cpus_per_worker=2)),
        (Resources(gpus_per_worker=0.5), True, "auto", Resources(gpus_per_worker=0.5)),
        (Resources(gpus_per_worker=1, evaluation_gpus=0), True, "auto", None),
    ],
)
def test_what_trains_with_other_resources_than_it_is_measured_with_has_a_process_for_each(
    resources: Resources, train: bool, executor: str, holds: Resources | None, tmp_path: Path
) -> None:
    recipe = load_recipe("digits").recipe
    knn = {"e" * 20: recipe.evaluation("knn")}
    job = Job("0" * 20, recipe.trial(seed=0), train, knn, resources, "x")
    made = trainable.assigned(job, "digits", Store(tmp_path), executor, "f" * 8)
    assert made.holds == holds
    first, then = ({"trial": job.trial} | part for part in ({}, {"part": "evaluation"}))
    measuring = resources.evaluation
    assert trainable.driver_resources(then, {job.trial: made}) == {
        "CPU": measuring.cpus_per_worker, "GPU": measuring.gpus_per_worker
    }  # fmt: skip
    taken = {"memory": 1.0} if holds is None else {"CPU": holds.cpus_per_worker, "GPU": holds.gpus_per_worker}
    assert trainable.driver_resources(first, {job.trial: made}) == taken
