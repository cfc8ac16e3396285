"""Which trial Tune is given next: by the queue itself, and with Tune and Ray around it."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_AUTH_MODE", "token")

import pytest
from ray.tune.search import Searcher

from orchestrator.errors import CapacityError
from orchestrator.largest_first import LargestFirst
from orchestrator.packing import Node
from orchestrator.room import RoomWatch
from orchestrator.spec import Resources

GANG = Resources(workers=4, gpus_per_worker=1, evaluation_gpus=0)
ONE, FOUR = Resources(), Resources(cpus_per_worker=4)


class Cluster:
    """Nodes that come and go, and what was said of them."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = list(nodes)
        self.said: list[str] = []

    def queue(
        self,
        waiting: dict[str, Resources],
        later: dict[str, Resources] | None = None,
        limit: int | None = None,
    ) -> LargestFirst:
        room = RoomWatch(lambda: self.nodes, self.said.append)
        queue = LargestFirst(waiting, later or {}, lambda: self.nodes, limit, room)
        queue._looked = float("-inf")
        return queue


def ask(queue: LargestFirst, trial_id: str) -> str | None:
    queue._looked = float("-inf")
    found = queue.suggest(trial_id)
    return found and found["trial"] + ("!" if "part" in found else "")


def test_the_largest_go_first_and_smaller_ones_fill_what_is_left() -> None:
    queue = Cluster(Node(6, 0)).queue({"a": ONE, "b": FOUR, "c": ONE, "d": FOUR})
    assert [ask(queue, name) for name in "1234"] == ["b", "a", "c", None]
    assert queue.reason == "for room: the next takes 1 x (4 CPU, 0 GPU)"
    queue.on_trial_complete("2", {})
    assert ask(queue, "5") is None  # four are still wanted in one piece
    queue.on_trial_complete("1", {})
    assert ask(queue, "6") == "d"
    assert queue.suggest("7") == Searcher.FINISHED


def test_a_trained_gang_frees_its_room_and_is_measured_beside_the_next() -> None:
    evaluation = GANG.evaluation
    queue = Cluster(Node(8, 4)).queue({"a": GANG, "b": GANG}, {"a": evaluation, "b": evaluation})
    assert [ask(queue, "1"), ask(queue, "2")] == ["a", None]
    queue.on_trial_complete("1", {"trained": True})
    assert [ask(queue, "3"), ask(queue, "4"), ask(queue, "5")] == ["b", "a!", None]
    assert queue.needs("4") == evaluation
    queue.on_trial_complete("4", {"error": None})
    queue.on_trial_complete("3", {"error": "RuntimeError: no"})  # which needs no measuring
    assert queue.suggest("6") == Searcher.FINISHED


def test_trials_start_as_nodes_come_and_not_more_than_are_let() -> None:
    cluster = Cluster(Node(1, 0))
    queue = cluster.queue(dict.fromkeys("abcdef", ONE), limit=3)
    assert [ask(queue, "1"), ask(queue, "2")] == ["a", None]
    cluster.nodes += [Node(2, 0), Node(2, 0)]
    assert [ask(queue, "3"), ask(queue, "4"), ask(queue, "5")] == ["b", "c", None]
    assert queue.reason == "as --max-concurrent lets 3 run"
    cluster.nodes = cluster.nodes[:1]
    queue.on_trial_complete("1", {})
    assert ask(queue, "6") is None


def test_what_no_node_fits_any_more_is_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(Node(1, 0))
    queue = cluster.queue({"a": FOUR})
    clock = iter(range(1000, 10_000, 10))
    monkeypatch.setattr("orchestrator.room.time.monotonic", lambda: float(next(clock)))

    def ask_on() -> None:
        while queue.suggest("1") is None:
            pass

    with pytest.raises(CapacityError, match="no such node in 15 min"):
        ask_on()
    assert "waiting 15 min for nodes that fit" in cluster.said[0]


def test_nothing_starts_once_the_time_is_over() -> None:
    over = False
    room = RoomWatch(lambda: [Node(2, 0)], lambda sentence: None)
    queue = LargestFirst({"a": ONE, "b": ONE}, {}, lambda: [Node(2, 0)], None, room, lambda: over)
    assert ask(queue, "1") == "a"
    over = True
    assert queue.suggest("2") == Searcher.FINISHED
