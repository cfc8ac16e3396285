"""Dimensional collapse while it happens: spectra of each epoch's last images, for no extra forward pass.

The features are those of training: of augmented views, by batch norm in training mode, by weights that
change from batch to batch, rounded as the trial's precision rounds them. The evaluation `spectrum` measures
the finished model; this shows when a run collapses.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from trainers.config import TrialConfig
from trainers.context import TrialContext
from trainers.distributed import gather_rows, rows_of_rank
from trainers.evaluate.spectrum import rankme, spectrum

POINTS = 64
"""Of a spectrum at most so many singular values are written, at evenly spaced ranks."""
FLOOR = 1e-16
"""Rounding of float64 for rows of unit length: smaller singular values are written as this one."""


class CollapseWatch:
    """Keeps the features of an epoch's last images, over all ranks, and measures them.

    `context.watched_images` of them, but no more than 2 D, from which on more show no further directions: they
    would cost a small trial some per cent of its time. The same images on any number of ranks. Where the
    context watches none, nothing is kept or measured.

    Args:
        config: of the trial.
        context: of this rank.
        has_embedding: z is to be measured beside r. Without, r stands for both: there is no head, or one that
            draws other features each step, whose embeddings of different steps have no spectrum together.
        spectra: gets an entry for each epoch, on rank 0.
        before: of `state`, if training goes on within an epoch.
    """

    def __init__(
        self,
        config: TrialConfig,
        context: TrialContext,
        has_embedding: bool,
        spectra: list[dict[str, Any]],
        before: dict[str, Tensor] | None = None,
    ) -> None:
        self._config, self._context, self._has_embedding = config, context, has_embedding
        self._images = min(context.watched_images, 2 * config.backbone.representation_dim)
        batches = -(-self._images // config.batch_size)  # whole ones that reach back over these images
        self._batches: deque[tuple[Tensor, ...]] = deque(maxlen=batches)
        self._spectra = spectra
        if before and "watched" in before:
            parts = config.gradient_cache
            rows = rows_of_rank(config.batch_size, context.rank, context.world_size, parts)
            widths = before["watched_widths"].tolist()
            for batch in before["watched"][:, rows].to(context.device):
                self._batches.append(batch.split(widths, dim=1))

    def see(self, representation: Tensor, embedding: Tensor) -> None:
        """Take note of a training batch: this rank's r (b, D) and z (b, d) of view 1; copies nothing."""
        features = (representation, embedding) if self._has_embedding else (representation,)
        self._batches.append(tuple(x.detach() for x in features))

    @torch.no_grad()
    def measure(self, epoch: int) -> dict[str, float]:
        """RankMe of r and z, the same on all ranks; their spectra as one more entry; forgets the epoch.

        Called by all ranks, for one exchange. At D = 2048 and 1024 images it takes a second of CPU time.
        Features that are not finite give nothing: they may lie where the loss does not look.
        """
        if not self._batches:
            return {}
        features = [x.cpu().double() for x in self._gathered()]
        self._batches.clear()
        if not all(bool(x.isfinite().all()) for x in features):
            return {}
        rotated = [_economical(x) for x in features]
        values = [rankme(x) for x in rotated]
        if self._context.rank == 0:
            spectra = [_points(spectrum(x), *f.shape) for x, f in zip(rotated, features, strict=True)]
            r, z = spectra[0], spectra[-1]
            entry = {
                "epoch": epoch,
                "images": len(features[0]),
                "dim": features[0].shape[1],
                "ranks": r[0],
                "representation": r[1],
                "embedding_dim": features[-1].shape[1],
                "embedding_ranks": z[0],
                "embedding": z[1],
            }
            self._spectra.append(entry)
        return {"representation_rankme": values[0], "embedding_rankme": values[-1]}

    def state(self) -> dict[str, Tensor]:
        """What a state within an epoch keeps: features of the last k batches (k, B, D + d), in the order of training.

        Called by all ranks.
        """
        if not self._batches:
            return {}
        widths = torch.tensor([x.shape[1] for x in self._batches[0]])
        return {"watched": self._in_order(), "watched_widths": widths}

    def _gathered(self) -> tuple[Tensor, ...]:
        """The watched images' r, or r and z, of all ranks in the order of training: (N, D) and (N, d)."""
        widths = [x.shape[1] for x in self._batches[0]]
        return self._in_order().flatten(0, 1)[-self._images :].split(widths, dim=1)

    def _in_order(self) -> Tensor:
        """Of all ranks, in the order of training: (k, B, D + d)."""
        # in float32 at least: what came back from a state is, and half precision fits into it
        together = [torch.cat(batch, dim=1) for batch in self._batches]
        local = torch.stack(
            [x.to(torch.promote_types(x.dtype, torch.float32)) for x in together]
        )  # (k, b, D + d)
        # (1, k, b, D + d) -> (W, k, b, D + d) -> (k, W * b, D + d)
        batches = gather_rows(local.unsqueeze(0)).transpose(0, 1).flatten(1, 2)
        world_size, parts = self._context.world_size, self._config.gradient_cache
        ranks = [rows_of_rank(self._config.batch_size, rank, world_size, parts) for rank in range(world_size)]
        return batches[:, torch.cat(ranks).argsort().to(batches.device)]


def _economical(x: Tensor) -> Tensor:
    """The rows of (N, D) in N coordinates where those suffice: a rotation changes neither measure."""
    return torch.linalg.qr(x.T, mode="r").R.T if len(x) < x.shape[1] else x


def _points(singular_values: Tensor, images: int, dim: int) -> tuple[list[int], list[float]]:
    """Ranks, 1 the largest, and log10 of the singular values there; n centred rows span n - 1 dimensions."""
    count = max(min(images - 1, dim), 1)
    ranks = torch.linspace(1, count, min(POINTS, count), dtype=torch.float64).round().long()
    logs = singular_values[ranks - 1].clamp(min=FLOOR).log10()
    return ranks.tolist(), [round(value, 4) for value in logs.tolist()]
