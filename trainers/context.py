"""What a trial is told about where it runs, and how it reports back. The only seam to a scheduler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch


class Interrupted(Exception):
    """The training was asked to stop; its state is saved, and the same call goes on from it."""


def _nowhere(metrics: dict[str, float]) -> None:
    """The default report: training alone, nobody listens."""


def _unheard(text: str) -> None:
    """The default beat and note: nobody watches."""


def _allowed() -> None:
    """The default guard: nobody else could have taken the trial over."""


def _never() -> bool:
    """The default for stopping."""
    return False


@dataclass(frozen=True)
class TrialContext:
    """One process's place in a trial.

    With `world_size` > 1 the default torch.distributed process group is initialised before
    training starts, by whoever made the context.

    Attributes:
        directory: the trial's directory, seen by every rank; rank 0 writes `history.jsonl`, `spectra.jsonl`
            and `checkpoints/` there.
        report: called on every rank after each epoch (a barrier for Ray Train); the ranks' metrics agree
            except for `seconds` and `images_per_second`, which each measures itself.
        threads: CPU threads for tensor arithmetic; part of what makes a run bit-reproducible.
        watched_images: at most so many of each epoch's last images, over all ranks, tell the rank of
            representation and embedding (`trainers.collapse`); 0 measures nothing. It changes no training.
        state_seconds: about so often a state is saved within an epoch; 0: only at the end of each.
        corrupt_images: so many images of the data may be undecodable before the trial is ended.
        beat: called on every rank after each step, and each piece of an evaluation, with where the work
            stands, such as "step 120": a trial that goes without is taken for hung. Cheap enough for a step.
        note: told, on rank 0, what people should know and what does not end the trial: a damaged state
            that was set aside, an image that cannot be decoded.
        guard: called on rank 0 before it writes into `directory`; raises where another process has
            taken the trial over.
        stopping: asked on rank 0, about once a second; once true, a state is saved and every rank raises
            `Interrupted`.
    """

    directory: Path
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    report: Callable[[dict[str, float]], None] = _nowhere
    loader_processes: int = 0
    threads: int = 1
    watched_images: int = 1024
    state_seconds: float = 0.0
    corrupt_images: int = 0
    beat: Callable[[str], None] = _unheard
    note: Callable[[str], None] = _unheard
    guard: Callable[[], None] = _allowed
    stopping: Callable[[], bool] = _never
