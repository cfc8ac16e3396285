"""Which error of a gang is the cause, and whether a process was lost."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, WorkerGroupError

from orchestrator.schedule import _cause, _lost_process
from trainers.data.datasets import DataError

PEER = RuntimeError("[/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:5")


class Unwell(Exception):
    """Shaped as Ray Train's error of a worker that no longer answers."""

    health_check_failure = ActorDiedError()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_error_of_the_work_is_told_not_that_of_its_peers(order: tuple[int, int]) -> None:
    mine = DataError("a.png: cannot be decoded")
    error = WorkerGroupError("", dict(zip(order, (PEER, mine), strict=True)))
    assert _cause(error) is mine
    assert _cause(ControllerError(error)) is mine
    assert not _lost_process(error)


def test_wrapped_errors_are_unwrapped() -> None:
    mine = ValueError("x")
    assert _cause(RayTaskError("f", "Traceback …", mine)) is mine
    assert _cause(mine) is mine


def test_a_worker_that_died_or_hangs_is_lost_though_its_peers_only_failed() -> None:
    assert _lost_process(WorkerGroupError("", {0: PEER, 1: Unwell()}))
    assert _lost_process(WorkerGroupError("", {0: PEER, 1: ActorDiedError()}))
    assert not _lost_process(WorkerGroupError("", {0: ValueError("x")}))
