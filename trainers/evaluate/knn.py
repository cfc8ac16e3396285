"""Weighted k nearest neighbours by cosine similarity (Wu et al. 2018, arXiv 1805.01978)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.config import Knn

_CHUNK_ELEMENTS = 2**24
"""Similarities held at a time: 64 MiB, or more where that is less than `_MIN_QUERIES` rows."""
_MIN_QUERIES = 256
"""Below this a pass over the bank is spent on memory traffic; 1.3 GB at ImageNet's 1.28 million images."""


class KnnResult(NamedTuple):
    """Accuracies in percent, and bool (M,) correctness."""

    top1: float
    top5: float
    correct: np.ndarray


@torch.no_grad()
def knn(
    train: Tensor,
    train_labels: Tensor,
    validation: Tensor,
    validation_labels: Tensor,
    num_classes: int,
    config: Knn,
) -> KnnResult:
    """Classify (M, D) by the votes exp(similarity / temperature) of the k most similar of (N, D).

    A class without a vote is no prediction, so it never counts towards top-5.

    Raises:
        ValueError: k exceeds N.
    """
    if config.k > len(train):
        raise ValueError(f"knn.k: got {config.k}, takes at most the {len(train)} training images")
    bank = F.normalize(train.float(), dim=1)
    hits = []
    rows = max(_MIN_QUERIES, _CHUNK_ELEMENTS // len(bank))
    for queries, labels in zip(validation.split(rows), validation_labels.split(rows), strict=True):
        similarity = F.normalize(queries.float(), dim=1) @ bank.t()  # (m, N)
        nearest, index = similarity.topk(config.k, dim=1)
        # Relative to the nearest, which changes no ranking and cannot overflow.
        votes = ((nearest - nearest[:, :1]) / config.temperature).double().exp()
        scores = votes.new_zeros(len(queries), num_classes)
        scores.scatter_add_(1, train_labels[index], votes)
        best, classes = scores.topk(min(5, num_classes), dim=1)
        hits.append((classes == labels[:, None]) & (best > 0))
    hit = torch.cat(hits)  # (M, 5)
    return KnnResult(
        top1=100 * hit[:, 0].double().mean().item(),
        top5=100 * hit.any(dim=1).double().mean().item(),
        correct=hit[:, 0].cpu().numpy(),
    )
