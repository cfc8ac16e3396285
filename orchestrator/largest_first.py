"""The order of trials, as a search algorithm of Ray Tune: the largest first, and only what fits beside what runs.

Imports Ray, which reads how it authenticates when it is imported: after `cluster.connected` has said so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from orchestrator.packing import Node, described, next_to_start, size
from orchestrator.room import RoomWatch
from orchestrator.spec import Resources
from orchestrator.trainable import EVALUATION, PART, TRAINED, TRIAL

_LOOK_EVERY_S = 1.0


class LargestFirst(Searcher):
    """Asked by Tune for the next trial; has none while nothing that waits fits.

    The cluster is looked at each time: trials start as nodes come.

    Args:
        footprints: of each trial, in the order of equals.
        later: of those that are measured by a process of its own once they are trained.
        nodes: what the cluster has now.
        limit: of trials at once; None: what fits.
        room: told what waits while nothing runs.
        over: whether no further trial is to start.

    Attributes:
        waiting: trials that are not yet Tune's.
        reason: what they wait for.
    """

    def __init__(
        self,
        footprints: dict[str, Resources],
        later: dict[str, Resources],
        nodes: Callable[[], list[Node]],
        limit: int | None,
        room: RoomWatch,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.waiting = dict(footprints)
        self._later = dict(later)
        self._nodes, self._limit, self._room, self._over = nodes, limit, room, over
        self._running: dict[str, tuple[str, Resources]] = {}  # by Tune's name of the trial
        self._looked, self._seen = -_LOOK_EVERY_S, list[Node]()
        self._trained: set[str] = set()
        self.reason = ""

    def suggest(self, trial_id: str) -> Any:
        """Tune's question. Raises CapacityError where nothing that waits can ever fit."""
        if self._over():
            return Searcher.FINISHED
        if not self.waiting:
            return None if self._running and self._later else Searcher.FINISHED
        if self._limit is not None and len(self._running) >= self._limit:
            self.reason = f"as --max-concurrent lets {self._limit} run"
            return None
        occupied = [footprint for _, footprint in self._running.values()]
        footprint = next_to_start(self._cluster(), occupied, self.waiting.values())
        if footprint is None:
            largest = max(self.waiting.values(), key=size)
            self.reason = f"for room: the next takes {described(largest)}"
            if not self._running:  # Tune asks nobody else meanwhile
                self._room.look(self.waiting.values(), running=False)
            return None
        trial = next(name for name, needs in self.waiting.items() if needs == footprint)
        del self.waiting[trial]
        self._running[trial_id] = trial, footprint
        measured = trial in self._trained
        return {TRIAL: trial, PART: EVALUATION} if measured else {TRIAL: trial}

    def needs(self, trial_id: str) -> Resources:
        """The footprint of one of Tune's trials."""
        return self._running[trial_id][1]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        trial, _ = self._running.pop(trial_id, ("", None))
        evaluation = self._later.pop(trial, None)
        if evaluation is not None and result and result.get(TRAINED):
            self._trained.add(trial)
            self.waiting[trial] = evaluation

    def _cluster(self) -> list[Node]:
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY_S:
            self._seen, self._looked = self._nodes(), now
        return self._seen

    # Tune would copy it, and keep it to go on from: it lives with its screen, and the store knows what is done.

    def __deepcopy__(self, memo: dict[int, Any]) -> LargestFirst:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        return None
