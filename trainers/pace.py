"""When to save a state within an epoch, and when to stop: all ranks at the same step."""

from __future__ import annotations

import time
from typing import Literal

import torch
import torch.distributed

from trainers.context import TrialContext

Wish = Literal["go on", "save", "stop"]
_WISHES: tuple[Wish, ...] = ("go on", "save", "stop")
_AGREE_EVERY_S = 1.0
_MOST_STEPS = 10_000


class Pace:
    """Asked by every rank after each step.

    One process decides by its clock. Several agree about once a second, at steps that they agreed on before: rank 0
    tells its wish and the number of steps until they meet again.
    """

    def __init__(self, context: TrialContext) -> None:
        self._context = context
        self._saved = self._met = time.monotonic()
        self._steps_since = 0
        self._steps_until = 1

    def wish(self) -> Wish:
        """What to do after this step."""
        if self._context.world_size == 1:
            return self._own()
        self._steps_since += 1
        if self._steps_since < self._steps_until:
            return "go on"
        seconds = max(time.monotonic() - self._met, 1e-6)
        interval = min(self._context.state_seconds or _AGREE_EVERY_S, _AGREE_EVERY_S)
        ahead = round(interval * self._steps_since / seconds)
        # no more than twice as many as last time: steps may become a thousand times slower
        ahead = max(1, min(_MOST_STEPS, 2 * self._steps_since, ahead))
        told = torch.tensor([_WISHES.index(self._own()) if self._context.rank == 0 else 0, ahead])
        told = told.to(self._context.device)
        torch.distributed.broadcast(told, src=0)
        chosen, self._steps_until = told.tolist()
        self._steps_since, self._met = 0, time.monotonic()
        return _WISHES[chosen]

    def saved(self) -> None:
        """To be called after each state, for whatever reason it was saved."""
        self._saved = time.monotonic()

    def _own(self) -> Wish:
        if self._context.stopping():
            return "stop"
        interval = self._context.state_seconds
        return "save" if interval and time.monotonic() - self._saved >= interval else "go on"
