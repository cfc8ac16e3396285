"""Means with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean as exact_mean
from statistics import stdev
from typing import NamedTuple

from scipy.special import stdtrit


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
