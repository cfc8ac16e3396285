"""Spectra of features: singular values of the covariance (paper, Eq. 1), and numbers that sum them up.

Second moments are accumulated in float64 batch by batch, so nothing but a D x D matrix is held.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RANKME_EPSILON = 1e-7
COLLAPSED = 1e-6
"""A direction is collapsed when its variance is at most this share of the largest."""
_ROWS = 8192


class StreamingCovariance:
    """Count, mean and scatter matrix of all rows seen (Chan, Golub & LeVeque 1979).

    Attributes:
        count: rows seen.
        mean: float64 (D,).
        scatter: float64 (D, D), the sum of (x - mean)(x - mean)^T.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def update(self, batch: Tensor) -> None:
        """Add the rows of (b, D)."""
        if len(batch):
            x = batch.detach().to(self.mean)
            mean = x.mean(dim=0)
            x = x - mean
            self._add(len(x), mean, x.t() @ x)

    def merge(self, other: StreamingCovariance) -> None:
        """Add all rows that another accumulator has seen."""
        if other.count:
            self._add(other.count, other.mean.to(self.mean), other.scatter.to(self.mean))

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        gap = mean - self.mean
        self.scatter += scatter + torch.outer(gap, gap) * (self.count * count / total)
        self.mean += gap * (count / total)
        self.count = total

    def covariance(self) -> Tensor:
        """(D, D), divided by the number of rows as in Eq. 1.

        Raises:
            ValueError: no rows were seen.
        """
        if self.count == 0:
            raise ValueError("no rows to take a covariance of")
        return self.scatter / self.count

    def second_moment(self) -> Tensor:
        """(D, D): the mean of x x^T, not centred."""
        return self.covariance() + torch.outer(self.mean, self.mean)


def accumulate(x: Tensor, normalize: bool) -> StreamingCovariance:
    """The moments of the rows of (N, D), each first scaled to unit length if `normalize`."""
    moments = StreamingCovariance(x.shape[1], x.device)
    for rows in x.split(_ROWS):
        moments.update(F.normalize(rows.double(), dim=1) if normalize else rows)
    return moments


def spectrum(x: Tensor, normalize: bool = True) -> Tensor:
    """Singular values of the covariance of the rows of (N, D): float64 (D,), descending.

    Args:
        normalize: scale each row to unit length first, as the released code does and Eq. 1 does not say.
    """
    return _singular_values(accumulate(x, normalize).covariance())


def _singular_values(symmetric: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(symmetric).abs().sort(descending=True).values


def rankme(x: Tensor) -> float:
    """RankMe of the rows of (N, D) (Garrido et al. 2023, arXiv 2210.02885, Eq. 1).

    exp(-sum_k p_k log p_k) with p_k = s_k / sum(s) + 1e-7, where s are the min(N, D) singular values
    of the feature matrix itself: neither centred nor normalised. Between 1 and min(N, D).
    """
    values = _singular_values(accumulate(x, normalize=False).second_moment()).sqrt()[: len(x)]
    p = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + RANKME_EPSILON
    return float((-(p * p.log()).sum()).exp())


def collapsed_fraction(singular_values: Tensor) -> float:
    """Share of directions whose variance is at most 1e-6 of the largest."""
    return float((singular_values <= COLLAPSED * singular_values.max()).double().mean())


def directions(singular_values: Tensor) -> int:
    """How many directions have a variance above 1e-6 of the largest: those that are not collapsed."""
    return int((singular_values > COLLAPSED * singular_values.max()).sum())


def effective_rank(singular_values: Tensor) -> float:
    """Effective rank of a matrix by its singular values (Roy & Vetterli 2007, Definition 1).

    exp(-sum_k p_k log p_k) with p_k = s_k / sum(s) and 0 log 0 = 0; here of the covariance, so p_k are
    shares of the variance. Between 1 and the number of values; 0 where all of them are zero.
    """
    total = singular_values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(singular_values / total).sum().exp())
