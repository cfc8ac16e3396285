"""Representations and embeddings of a data set by a trained model, computed once for every probe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["float64", "float32", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Features:
    """What a model says of N images, on the device where it said it.

    Attributes:
        representation: float32 (N, D), the backbone's output r.
        embedding: float32 (N, d), the head's output z; the representation itself where there is no head.
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
    device: torch.device | str,
    precision: Precision = "float32",
) -> Features:
    """Run a model over batches in evaluation mode, and leave it in the mode it was in.

    Spectra need "float32" or "float64": the rounding of half precision alone fills collapsed
    dimensions to about 1e-6 of the variance. For the same reason TF32 is off here.

    Args:
        batches: images (b, C, H, W) and labels (b,).

    Raises:
        ValueError: there are no batches.
    """
    device = torch.device(device)
    modules = [module for module in (backbone, head) if module is not None]
    modes = [(m, m.training) for module in modules for m in module.modules()]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    dtype = _AUTOCAST.get(precision)
    try:
        for module in modules:
            module.eval()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None), _full_float32():
            for images, labels in batches:
                images = images.to(device, torch.float64 if precision == "float64" else torch.float32)
                r = backbone(images)  # (b, D)
                z = r if head is None else head(r)  # (b, d)
                parts.append((r.float(), z.float(), labels.to(device)))
    finally:
        for module, training in modes:
            module.training = training
    if not parts:
        raise ValueError("no images to extract features from")
    representation, embedding, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return Features(representation, representation if head is None else embedding, labels)


def _full_float32() -> torch.backends.cudnn.ContextProp:  # type: ignore[name-defined]
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=torch.backends.cudnn.benchmark,
        deterministic=torch.backends.cudnn.deterministic,
        allow_tf32=False,
    )
