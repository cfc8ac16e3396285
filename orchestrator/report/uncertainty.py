"""What ± says of the rows of a table: one standard deviation for all of them, or each row's own."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from statistics import mean as exact_mean
from statistics import stdev

import numpy as np
from scipy.special import fdtrc, stdtrit

from orchestrator.report.spread import Spread, pooled_spread
from orchestrator.report.statistics import Interval

FEWEST_OWN = 3
"""Runs from which a row has a standard deviation of its own: the t interval of two is nine times their distance."""
UNEQUAL = 0.05
"""Level of the test for unequal spreads."""

ROUNDING = 1e-12
"""Of the values: the size of residuals that stand for none."""

Values = Mapping[int, float]
"""Seed -> value of a row, finite."""


@dataclass(frozen=True)
class Uncertainty:
    """The spread of rows that stand side by side.

    Attributes:
        cells: training -> its values by seed; each training once.
    """

    cells: Mapping[Hashable, Values]

    @functools.cached_property
    def pooled(self) -> Spread:
        """Over all cells; what is but float rounding is no spread."""
        sd, degrees_of_freedom = pooled_spread(self.cells)
        size = max((abs(value) for values in self.cells.values() for value in values.values()), default=0.0)
        return Spread(0.0 if sd is not None and sd <= ROUNDING * size else sd, degrees_of_freedom)

    @functools.cached_property
    def unequal_p(self) -> float | None:
        """Brown and Forsythe's p that all cells have the same spread; None where two runs a cell can't show it."""
        return brown_forsythe([list(values.values()) for values in self.cells.values()])

    @property
    def is_pooled(self) -> bool:
        """Whether one standard deviation stands for all rows."""
        return self.pooled.sd is not None and not (self.unequal_p is not None and self.unequal_p < UNEQUAL)

    def spread(self, values: Values) -> Spread:
        """Standard deviation of one run of a row, and its degrees of freedom."""
        if len(values) < 2:
            return Spread(None, 0)
        if self.is_pooled:
            return self.pooled
        if len(values) < FEWEST_OWN:
            return Spread(None, 0)
        return Spread(stdev(values.values()), len(values) - 1)

    def interval(self, values: Values, level: float = 0.95) -> Interval:
        """Mean of a row with Student's t interval; without bounds where nothing is known of the spread."""
        n, mean = len(values), float(exact_mean(values.values()))
        sd, degrees_of_freedom = self.spread(values)
        if sd is None:
            return Interval(mean, None, None, n)
        half = t_quantile(degrees_of_freedom, (1 + level) / 2) * sd / math.sqrt(n)
        return Interval(mean, mean - half, mean + half, n)

    def gap(self, first: Values, second: Values, level: float = 0.95) -> tuple[float, float] | None:
        """Interval of first minus second; None where their seeds differ or nothing is known of the spread."""
        if first.keys() != second.keys() or len(first) < 2:
            return None
        differences = [first[seed] - second[seed] for seed in first]
        if self.is_pooled:
            assert self.pooled.sd is not None
            sd, degrees_of_freedom = math.sqrt(2) * self.pooled.sd, self.pooled.degrees_of_freedom
        elif len(differences) >= FEWEST_OWN:
            sd, degrees_of_freedom = stdev(differences), len(differences) - 1
        else:
            return None
        if sd == 0:
            return None
        half = t_quantile(degrees_of_freedom, (1 + level) / 2) * sd / math.sqrt(len(differences))
        middle = float(exact_mean(differences))
        return middle - half, middle + half


def t_quantile(degrees_of_freedom: int, level: float) -> float:
    # scipy.stats would give the same and take a second to import
    return float(stdtrit(degrees_of_freedom, level))


def brown_forsythe(groups: list[list[float]]) -> float | None:
    """p that groups have one spread: analysis of variance of distances from each group's median (1974).

    Returns:
        None where a group has fewer than three values, whose distances can't differ, or nothing varies at all.
    """
    if len(groups) < 2 or min(map(len, groups)) < FEWEST_OWN:
        return None
    distances = [np.abs(np.array(values) - np.median(values)) for values in groups]
    total = sum(map(len, groups))
    centre = float(np.concatenate(distances).mean())
    between = sum(len(one) * (float(one.mean()) - centre) ** 2 for one in distances)
    within = sum(float(((one - one.mean()) ** 2).sum()) for one in distances)
    if within == 0:
        return None
    between_df, within_df = len(groups) - 1, total - len(groups)
    return float(fdtrc(between_df, within_df, between / between_df / (within / within_df)))
