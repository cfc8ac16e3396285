"""What a trial is told about where it runs, and how it reports back. The only seam to a scheduler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch


def _nowhere(metrics: dict[str, float]) -> None:
    """The default report: training alone, nobody listens."""


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
    """

    directory: Path
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    report: Callable[[dict[str, float]], None] = _nowhere
    loader_processes: int = 0
    threads: int = 1
    watched_images: int = 1024
