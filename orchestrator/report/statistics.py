"""Means with their uncertainty, Holm's adjustment, and tests of order."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from statistics import mean as exact_mean
from statistics import stdev
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit


class Interval(NamedTuple):
    """A mean over n seeds. `low` and `high` are None for n = 1: one run says nothing of the spread."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and two-sided Student t interval: mean ± t((1 + level) / 2; n - 1) s / sqrt(n).

    Args:
        values: one per seed, in any unit; the interval has the same.
        level: coverage if the seeds' values are independent and normal.

    Raises:
        ValueError: no values, or a level outside (0, 1).
    """
    if not values:
        raise ValueError("mean_interval takes at least one value")
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, takes a number in (0, 1)")
    mean = float(exact_mean(values))
    if len(values) == 1:
        return Interval(mean, None, None, 1)
    spread = stdev(values) if math.isfinite(mean) else math.nan
    # the t quantile; scipy.stats would give the same and take a second to import
    quantile = float(stdtrit(len(values) - 1, (1 + level) / 2))
    half = quantile * spread / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: comparing these with alpha errs anywhere with chance alpha at most.

    Args:
        p_values: of all tests of a family, under any dependence.

    Returns:
        Adjusted p-values in the same order, at most 1.
    """
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


# --- ranks --------------------------------------------------------------------------------------

ROUNDING = 1e-9
"""Differences smaller than this share of the values are float rounding, not spread."""

EXACT_COLUMNS = 10
"""Up to so many columns every permutation is counted; above, the sum of ranks is close to normal."""


def page_p(blocks: NDArray[np.float64], weights: Sequence[float] | None = None) -> float:
    """One-sided p of Page's L = sum over blocks and columns of weight x rank: values rise along the columns.

    The null is that within a block every order is equally likely, given the ties: the p is exact with ties and
    with a single block too, where published tables are not. With one block, and the midranks of x as weights, it is
    the permutation test of Spearman's correlation with x. Page (1963).

    Args:
        blocks: (m, k) values, ranked within each of m blocks (seeds), ties sharing their midrank.
        weights: (k,) multiples of 1/2, one a column; default: 1 .. k.
    """
    steps = np.arange(1, blocks.shape[1] + 1) if weights is None else np.asarray(weights)
    # midranks are multiples of 1/2: doubled, all sums are integers
    doubled_weights = np.rint(2 * steps).astype(np.int64)
    doubled_ranks = np.rint(2 * np.array([midranks(block) for block in blocks])).astype(np.int64)
    statistic = int((doubled_ranks @ doubled_weights).sum())
    if blocks.shape[1] > EXACT_COLUMNS:
        return _page_p_normal(statistic, doubled_weights, doubled_ranks)
    chances, lowest = np.ones(1), 0
    for ranks in doubled_ranks:
        block_chances, block_lowest = _chances_of_sums(
            tuple(sorted(doubled_weights.tolist())), tuple(sorted(ranks.tolist()))
        )
        chances, lowest = np.convolve(chances, block_chances), lowest + block_lowest
    return min(1.0, float(chances[max(0, statistic - lowest) :].sum()))


def without_rounding(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Values in units of their rounding, for ranks: those that differ by less are ties."""
    array = np.asarray(values, dtype=float)
    grain = ROUNDING * float(np.abs(array).max())
    return np.asarray(np.round(array / grain)) if grain else array


def midranks(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])


@functools.lru_cache(maxsize=512)
def _chances_of_sums(weights: tuple[int, ...], ranks: tuple[int, ...]) -> tuple[NDArray[np.float64], int]:
    """Distribution of sum_j weights[j] ranks[pi(j)] over all permutations pi: chances of lowest, lowest + 1, ...

    Built column by column over the sets of ranks that are used up, 2^k of them.
    """
    size = sum(a * b for a, b in zip(sorted(weights), sorted(ranks), strict=True)) + 1
    ways = {0: np.eye(1, size)[0]}
    for weight in weights:
        after: dict[int, NDArray[np.float64]] = {}
        for used, counts in ways.items():
            for position, rank in enumerate(ranks):
                if not used >> position & 1:
                    shifted = after.setdefault(used | 1 << position, np.zeros(size))
                    shifted[weight * rank :] += counts[: size - weight * rank]
        ways = after
    (counts,) = ways.values()
    lowest = int(np.flatnonzero(counts)[0])
    return counts[lowest:] / math.factorial(len(ranks)), lowest


def _page_p_normal(statistic: int, weights: NDArray[np.int64], ranks: NDArray[np.int64]) -> float:
    """With the permutation variance given the ties, and half a step of continuity."""
    columns = len(weights)
    mean = float(weights.mean() * ranks.sum())
    spread_of_ranks = ((ranks - ranks.mean(axis=1, keepdims=True)) ** 2).sum()
    variance = float(((weights - weights.mean()) ** 2).sum() * spread_of_ranks) / (columns - 1)
    if variance == 0:
        return 1.0
    half_step = 2  # of L in doubled weights and ranks: half of 2 x 2
    return float(ndtr(-(statistic - half_step - mean) / math.sqrt(variance)))


def spearman(x: Sequence[float] | NDArray[np.float64], y: Sequence[float] | NDArray[np.float64]) -> float:
    """Spearman's rank correlation, NaN where one of the two is constant."""
    ranks_x, ranks_y = midranks(x) - (len(x) + 1) / 2, midranks(y) - (len(y) + 1) / 2
    norm = math.sqrt(float((ranks_x**2).sum() * (ranks_y**2).sum()))
    return float((ranks_x * ranks_y).sum()) / norm if norm else math.nan


def spearman_interval(rho: float, n: int, level: float = 0.95) -> tuple[float, float] | None:
    """Fisher's z with the variance (1 + rho^2 / 2) / (n - 3) of Bonett and Wright (2000); None for n < 4.

    A perfect correlation has no finite z: its interval reaches from that of one swap of neighbours less to ±1.
    """
    if n < 4 or math.isnan(rho):
        return None
    shown = min(abs(rho), 1 - 12 / (n * (n * n - 1)))
    half = float(ndtri((1 + level) / 2)) * math.sqrt((1 + shown**2 / 2) / (n - 3))
    low = math.tanh(math.atanh(shown) - half)
    high = 1.0 if abs(rho) == 1 else math.tanh(math.atanh(shown) + half)
    return (low, high) if rho > 0 else (-high, -low)


class RankAgreement(NamedTuple):
    """Kendall's tau-b of our order with the paper's, and its two-sided p over all orders of n rows.

    `tau` and `p` are None where there is no order: fewer than two rows, or all equal.
    """

    tau: float | None
    p: float | None
    n: int


def rank_agreement(ours: Sequence[float], paper: Sequence[float]) -> RankAgreement:
    """How well our order of a table's rows agrees with the paper's.

    Args:
        ours, paper: a value per row, in any units. Rows served by one training are to be given once.

    Returns:
        p is exact up to 8 rows, with ties too; above, exact without ties and asymptotic with them.

    Raises:
        ValueError: lengths that differ.
    """
    pairs = [
        (_sign(a - b), _sign(c - d))
        for (a, c), (b, d) in itertools.combinations(zip(ours, paper, strict=True), 2)
    ]
    mine, theirs = np.array(pairs, dtype=float).reshape(-1, 2).T
    norm = math.sqrt(float((mine**2).sum() * (theirs**2).sum()))
    if norm == 0:
        return RankAgreement(None, None, len(ours))
    tau = float((mine * theirs).sum()) / norm
    if len(ours) > 8:
        from scipy.stats import kendalltau  # a second to import

        return RankAgreement(tau, float(kendalltau(ours, paper).pvalue), len(ours))
    orders = np.array(list(itertools.permutations(ours)))  # (n!, n)
    first, second = np.triu_indices(len(ours), k=1)
    scores = np.sign(orders[:, first] - orders[:, second]) @ theirs
    as_far = np.abs(scores) >= abs(float((mine * theirs).sum())) - 0.5  # scores are integers
    return RankAgreement(tau, float(as_far.mean()), len(ours))


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
