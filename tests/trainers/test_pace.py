"""When states are saved and trainings stop: by the clock, and on all ranks at the same step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gloo import run_ranks

from trainers.context import TrialContext
from trainers.distributed import world
from trainers.pace import Pace


def wishes(steps: int, step_seconds: float, **context: Any) -> list[str]:
    """What a process is told after each of so many steps; it does as told."""
    rank, world_size = world()
    pace = Pace(TrialContext(directory=Path(), rank=rank, world_size=world_size, **context))
    told: list[str] = []
    for _ in range(steps):
        time.sleep(step_seconds)
        told.append(pace.wish())
        if told[-1] == "save":
            pace.saved()
        if told[-1] == "stop":
            break
    return told


def test_without_an_interval_no_state_is_saved_within_an_epoch() -> None:
    assert wishes(200, 0.0) == ["go on"] * 200


def test_a_state_is_saved_once_the_interval_has_passed_and_not_again_before_the_next() -> None:
    pace = Pace(TrialContext(directory=Path(), state_seconds=0.2))
    assert pace.wish() == "go on"
    time.sleep(0.25)
    assert pace.wish() == "save"
    pace.saved()
    assert pace.wish() == "go on"


def test_a_state_at_an_epochs_end_counts() -> None:
    pace = Pace(TrialContext(directory=Path(), state_seconds=0.2))
    time.sleep(0.25)
    pace.saved()
    assert pace.wish() == "go on"


def test_to_stop_goes_before_to_save() -> None:
    assert wishes(9, 0.0, state_seconds=1e-9, stopping=lambda: True) == ["stop"]


def _uneven(steps: int, state_seconds: float, stop_after: float) -> list[str]:
    """Rank 1 is slower, has another clock's opinion, and is never asked whether to stop."""
    rank, _ = world()
    started = time.monotonic()
    return wishes(
        steps,
        0.001 * (rank + 1),
        state_seconds=state_seconds if rank == 0 else 1e-9,
        stopping=lambda: rank == 0 and time.monotonic() - started > stop_after,
    )


def test_ranks_save_and_stop_at_the_same_steps_by_the_first_ones_clock() -> None:
    first, second = run_ranks(_uneven, 2, 100_000, 0.3, 1.0)
    assert first == second
    assert first[-1] == "stop"
    assert 1 <= first.count("save") <= 3


def test_ranks_agree_about_once_a_second_however_short_their_steps() -> None:
    met = run_ranks(_meetings, 2, 3000, 0.001)
    assert met[0] == met[1]
    assert 2 <= met[0] <= 15


def _meetings(steps: int, step_seconds: float) -> int:
    from torch import distributed

    broadcast, count = distributed.broadcast, [0]

    def counted(*args: Any, **kwargs: Any) -> None:
        count[0] += 1
        broadcast(*args, **kwargs)

    distributed.broadcast = counted
    wishes(steps, step_seconds)
    return count[0]
