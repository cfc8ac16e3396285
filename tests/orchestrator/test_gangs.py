"""Which error of a gang is the cause, and whether a process was lost."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError, WorkerCrashedError
from ray.train import ControllerError, WorkerGroupError

from orchestrator import gangs, leases
from orchestrator.failures import ProcessLost
from orchestrator.gangs import cause, lost_process
from trainers.data.datasets import DataError

PEER = RuntimeError("[/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:5")


class Unwell(Exception):
    """Shaped as Ray Train's error of a worker that no longer answers."""

    health_check_failure = ActorDiedError()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_error_of_the_work_is_told_not_that_of_its_peers(order: tuple[int, int]) -> None:
    mine = DataError("a.png: cannot be decoded")
    error = WorkerGroupError("", dict(zip(order, (PEER, mine), strict=True)))
    assert cause(error) is mine
    assert cause(ControllerError(error)) is mine
    assert not lost_process(error)


def test_wrapped_errors_are_unwrapped() -> None:
    mine = ValueError("x")
    assert cause(RayTaskError("f", "Traceback …", mine)) is mine
    assert cause(mine) is mine


def test_a_worker_that_died_or_hangs_is_lost_though_its_peers_only_failed() -> None:
    assert lost_process(WorkerGroupError("", {0: PEER, 1: Unwell()}))
    assert lost_process(WorkerGroupError("", {0: PEER, 1: ActorDiedError()}))
    assert not lost_process(WorkerGroupError("", {0: ValueError("x")}))


def test_where_a_node_went_its_peers_broken_connections_may_be_all_that_is_known() -> None:
    assert lost_process(WorkerGroupError("", {0: PEER}))
    assert lost_process(WorkerGroupError("", {0: PEER, 1: ConnectionResetError()}))
    assert not lost_process(WorkerGroupError("", {0: PEER, 1: DataError("a.png: cannot be decoded")}))


@pytest.mark.parametrize(
    "error",
    [
        WorkerGroupError("", {0: PEER, 1: Unwell()}),
        WorkerGroupError("", {0: ActorDiedError(), 1: PEER}),
        WorkerCrashedError(),  # of an evaluation
    ],
)
def test_a_process_that_was_lost_too_often_is_told_with_its_usual_reason_and_the_remedy(
    error: Exception,
) -> None:
    lost = cause(error)
    assert isinstance(lost, ProcessLost)
    assert str(lost) == (
        "its process was lost 4 times; out of memory is the usual reason: lower batch_size, raise gradient_cache, or "
        "run fewer at once (--max-concurrent)"
    )


def test_a_gang_that_takes_long_to_start_is_not_silent_and_one_that_started_beats_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_PROGRESS_EVERY_S", 0.0)
    every, key = leases.Leases(tmp_path, "a" * 8), "0" * 20
    lease = every.acquire(key)
    assert isinstance(lease, leases.Lease)
    with lease, gangs._beating_until_workers_do(lease.fence, "the start of 2 workers"):
        seen = set()
        for _ in range(5):
            time.sleep(0.7)
            seen.add(every.progress(key))
        assert len(seen) > 2
        assert {told[1] for told in seen if told} == {"the start of 2 workers"}
        with monkeypatch.context() as worker:
            worker.setattr(leases, "_me", lambda: "another:1")
            lease.fence.beat("step 1")
        time.sleep(2.5)
        told = every.progress(key)
        assert told is not None
        assert told[1] == "step 1"


@pytest.mark.parametrize("attempts", [4, 2])
def test_workers_that_die_at_their_start_are_lost_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    failed = type("WorkerGroupStartupFailedError", (Exception,), {})
    tried = []

    def fit(*arguments: object) -> None:
        tried.append(1)
        if len(tried) < attempts or attempts == 4:
            raise ControllerError(failed("a worker died"))

    monkeypatch.setattr(gangs, "_fit", fit)
    lease = leases.Leases(tmp_path, "a" * 8).acquire("0" * 20)
    assert isinstance(lease, leases.Lease)
    job: Any = SimpleNamespace(resources=SimpleNamespace(workers=2), trial="0" * 20)
    store: Any = None
    with lease:
        if attempts == 4:
            with pytest.raises(ProcessLost, match="lost 4 times"):
                gangs.train_gang(job, "digits", store, lease.fence, tmp_path)
        else:
            gangs.train_gang(job, "digits", store, lease.fence, tmp_path)
    assert len(tried) == attempts
