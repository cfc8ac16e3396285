"""Trials that wait are told of with a reason, and not for ever."""

from __future__ import annotations

import pytest

from orchestrator import room
from orchestrator.cluster import Node
from orchestrator.errors import CapacityError
from orchestrator.room import RoomWatch
from orchestrator.spec import Resources

NEEDS = {"small": Resources(), "large": Resources(cpus_per_worker=4)}


class Watched:
    """A watch on a cluster and a clock of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.nodes = 1000.0, [Node(2, 0)]
        self.said: list[str] = []
        monkeypatch.setattr(room.time, "monotonic", lambda: self.now)
        self.watch = RoomWatch(lambda: self.nodes, self.said.append)

    def wait(self, seconds: float, *waiting: str, running: bool = False) -> None:
        for _ in range(round(seconds / 10)):
            self.now += 10
            self.watch.look([NEEDS[name] for name in waiting], running)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_nothing_is_said_while_something_runs_or_the_wait_is_short(watched: Watched) -> None:
    watched.wait(3600, "large", running=True)
    watched.wait(30, "small")
    watched.wait(3600)
    assert watched.said == []


def test_an_occupied_cluster_is_waited_for_without_end_and_said_to_be_once(watched: Watched) -> None:
    watched.wait(7200, "small", "large")
    assert watched.said == ["waiting for room: the cluster would fit a trial, and others occupy it"]


def test_a_run_that_no_node_fits_ends_with_what_it_needs(watched: Watched) -> None:
    watched.wait(600, "large")
    assert len(watched.said) == 1
    assert "a trial needs 1 x (4 CPU, 0 GPU)" in watched.said[0]
    assert "waiting 15 min for nodes that fit" in watched.said[0]
    with pytest.raises(CapacityError, match="no such node in 15 min"):
        watched.wait(600, "large")
    assert watched.watch.problem is not None


def test_nodes_that_come_back_in_time_end_the_wait(watched: Watched) -> None:
    watched.nodes = []
    watched.wait(600, "small")
    watched.nodes = [Node(2, 0)]
    watched.wait(1200, "small")
    watched.wait(100, "small", running=True)
    assert [sentence.split(":")[0] for sentence in watched.said][-1] == "waiting for room"
    assert watched.watch.problem is None
