"""Says what trials wait for when none runs, and ends a run that no node of the cluster can go on with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from orchestrator.cluster import why_it_fits_nowhere
from orchestrator.errors import CapacityError
from orchestrator.packing import Node
from orchestrator.progress import duration
from orchestrator.spec import Resources

SAY_AFTER, LOOK_EVERY = 30.0, 30.0
GIVE_UP_AFTER = 900.0
"""Seconds without any node that could run a trial: nodes that went may come back, or new ones be started."""


class RoomWatch:
    """Asked at each turn of the scheduler; looks at the cluster only while trials wait and none runs.

    Args:
        nodes: what the cluster has now.
        say: told in a sentence, once for each wait and each state of the cluster.

    Attributes:
        problem: why the run was ended.
    """

    def __init__(self, nodes: Callable[[], list[Node]], say: Callable[[str], None]) -> None:
        self._nodes, self._say = nodes, say
        self._waiting_since: float | None = None
        self._looked = self._could_run = 0.0
        self._said = ""
        self.problem: CapacityError | None = None

    def look(self, waiting: Iterable[Resources], running: bool) -> None:
        """Args: waiting: what trials need that are not started.

        Raises:
            CapacityError: none of them fits any node, and for long.
        """
        now = time.monotonic()
        footprints = set() if running else set(waiting)
        if not footprints:
            self._waiting_since, self._said = None, ""
            return
        if self._waiting_since is None:
            self._waiting_since = self._could_run = now
        if now - self._waiting_since < SAY_AFTER or now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        nodes = self._nodes()
        if impossible := _impossible(footprints, nodes):
            self._tell(f"{impossible}; waiting {duration(GIVE_UP_AFTER)} for nodes that fit")
            if now - self._could_run > GIVE_UP_AFTER:
                self.problem = CapacityError(f"{impossible}; no such node in {duration(GIVE_UP_AFTER)}")
                raise self.problem
            return
        self._could_run = now
        self._tell("waiting for room: the cluster would fit a trial, and others occupy it")

    def _tell(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            self._say(sentence)


def _impossible(footprints: set[Resources], nodes: list[Node]) -> CapacityError | None:
    """Why not one of them fits."""
    problems = [why_it_fits_nowhere(nodes, footprint) for footprint in footprints]
    return problems[-1] if all(problems) else None
