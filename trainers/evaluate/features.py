"""Representations and embeddings of a data set by a trained model, computed once for every probe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainers.precision import Precision, autocast


@dataclass(frozen=True)
class Features:
    """What a model says of N images, on the device where it said it.

    Attributes:
        representation: float32 (N, D), the backbone's output r.
        embedding: float32 (N, d), the head's output z; the representation itself where no head was given
            or the head returns it.
        labels: int64 (N,).
    """

    representation: Tensor
    embedding: Tensor
    labels: Tensor


@torch.no_grad()
def extract(
    backbone: nn.Module,
    head: nn.Module | None,
    batches: Iterable[tuple[Tensor, Tensor]],
    count: int,
    device: torch.device | str,
    precision: Precision = "float32",
) -> Features:
    """Run a model over batches in evaluation mode, and leave it in the mode it was in.

    Spectra need "float32" or "float64": the rounding of half precision alone fills collapsed
    dimensions to about 1e-6 of the variance. For the same reason TF32 has to be off (`full_float32`).

    Args:
        batches: images (b, C, H, W) and labels (b,).
        count: N, the images in all batches; their features are written into one tensor of that length.

    Raises:
        ValueError: there are no images, or fewer than `count`.
    """
    if count == 0:
        raise ValueError("no images to extract features from")
    device = torch.device(device)

    def outputs() -> Iterator[tuple[Tensor, ...]]:
        for images, labels in batches:
            images = images.to(device, torch.float64 if precision == "float64" else torch.float32)
            r = backbone(images)  # (b, D)
            z = r if head is None else head(r)  # (b, d)
            yield (labels, r) if z is r else (labels, r, z)

    with evaluation_mode(backbone, head), autocast(precision, device):
        found, r, *z = _stacked(outputs(), count, device)
    return Features(representation=r, embedding=z[0] if z else r, labels=found)


def _stacked(batches: Iterator[tuple[Tensor, ...]], count: int, device: torch.device) -> list[Tensor]:
    """Columns of batches as whole tensors, each allocated once: a list and its `cat` would hold all twice."""
    columns: list[Tensor] = []
    filled = 0
    for batch in batches:
        if not columns:
            dtypes = [torch.float32 if x.is_floating_point() else x.dtype for x in batch]
            columns = [
                torch.empty(count, *x.shape[1:], dtype=dtype, device=device)
                for x, dtype in zip(batch, dtypes, strict=True)
            ]
        rows = slice(filled, filled + len(batch[0]))
        filled = rows.stop
        for column, x in zip(columns, batch, strict=True):
            column[rows] = x
    if filled != count:
        raise ValueError(f"got {filled} images to extract features from, expected {count}")
    return columns


@contextmanager
def evaluation_mode(*modules: nn.Module | None) -> Iterator[None]:
    """Modules in evaluation mode, each put back afterwards into the mode it was in."""
    present = [module for module in modules if module is not None]
    modes = [(m, m.training) for module in present for m in module.modules()]
    try:
        for module in present:
            module.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 means float32: no TF32 in convolutions and matrix products, whose rounding is that of fp16."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
