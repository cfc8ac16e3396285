"""The gradient of one step in a part of its memory: the batch passes through the network piece by piece.

GradCache (Gao, Zhang, Han and Callan 2021, arXiv 2101.06983, Section 3; so does BASIC, Pham et al. 2021):
a contrastive loss needs the embeddings of the whole batch at once, but nobody needs all its activations.
Pass 1 keeps the network's outputs alone; the loss and its gradient with respect to them follow; pass 2
repeats each part and sends its share of that gradient back. A second forward pass is the price.

Without batch norm, or with its statistics frozen, this is the gradient of the whole batch, up to the
order of float summation. In training, batch norm takes its statistics over one part (over all workers)
instead of the whole batch, and its running statistics move once a part: another training, with smaller
batches for batch norm and the same batch for the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


class _Total(Protocol):
    """What an objective gives: at least the scalar that is minimised."""

    @property
    def total(self) -> Tensor: ...


_Losses = TypeVar("_Losses", bound=_Total)
_Outputs = TypeVar("_Outputs", bound=tuple[Tensor, ...])


def backward_in_parts(
    model: nn.Module,
    views: tuple[Tensor, ...],
    step: int,
    parts: int,
    objective: Callable[[_Outputs], _Losses],
    scaler: torch.amp.GradScaler,
    cast: Callable[[], AbstractContextManager[object]],
) -> tuple[_Outputs, _Losses]:
    """Add the gradient of one step's objective to that of the parameters.

    Args:
        model: `model(*views, step)` gives a named tuple of tensors with one row per image. It has to give the
            same for the same views and step, batch norm's running statistics aside.
        views: of this rank, (b, ...) each, with b a multiple of `parts`.
        step: passed on to the model, whose random heads draw by it.
        parts: P; each is b / P consecutive rows.
        objective: from the outputs of all rows to the loss; it may exchange with other ranks.
        scaler: of float16, whose scale the gradients carry.
        cast: makes the context of forward passes (`trainers.precision.autocast`).

    Returns:
        The outputs of all rows, and what the objective gave.
    """
    pieces = list(zip(*(view.chunk(parts) for view in views), strict=True))
    with cast(), torch.no_grad(), _running_statistics_kept(model):
        seen = [model(*piece, step) for piece in pieces]
        outputs = type(seen[0])(*(torch.cat(column) for column in zip(*seen, strict=True)))
    del seen
    for output in outputs:
        output.requires_grad_()
    with cast():
        losses = objective(outputs)
    gradients = torch.autograd.grad(scaler.scale(losses.total), outputs, allow_unused=True)
    for number, piece in enumerate(pieces):
        last = number == parts - 1
        with nullcontext() if last else _without_exchange(model):
            with cast():
                again = model(*piece, step)
            used = [
                (output, gradient.chunk(parts)[number])
                for output, gradient in zip(again, gradients, strict=True)
                if gradient is not None
            ]
            torch.autograd.backward([output for output, _ in used], [gradient for _, gradient in used])
    return outputs, losses


@contextmanager
def _running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Forward passes in training mode that leave batch norm's running statistics as they are."""
    tracking = [
        m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def _without_exchange(model: nn.Module) -> AbstractContextManager[object]:
    """Gradients add up on each rank; the last part's backward averages the sums over ranks."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
