"""What ± says of the rows of a table: one standard deviation for all that are alike, its own for a row that is not."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from statistics import mean as exact_mean
from statistics import stdev

from scipy.special import stdtrit

from orchestrator.report.spread import Spread, outlying_cells, pooled_spread
from orchestrator.report.statistics import Interval

FEWEST_OWN = 3
"""Runs from which a row has a standard deviation of its own: the t interval of two is nine times their distance."""
ROUNDING = 1e-12
"""Of the values: the size of residuals that stand for none."""


@dataclass(frozen=True)
class Uncertainty:
    """The spread of rows that stand side by side.

    Attributes:
        cells: training -> its values by seed, finite; each training once.
    """

    cells: Mapping[Hashable, Mapping[int, float]]

    @functools.cached_property
    def outlying(self) -> set[Hashable]:
        """Whose spread exceeds that of all others, so that it is no part of theirs."""
        return outlying_cells(self.cells)

    @functools.cached_property
    def pooled(self) -> Spread:
        """Over all cells that are alike; what is but float rounding is no spread."""
        alike = {cell: values for cell, values in self.cells.items() if cell not in self.outlying}
        sd, degrees_of_freedom = pooled_spread(alike)
        size = max((abs(value) for values in alike.values() for value in values.values()), default=0.0)
        return Spread(0.0 if sd is not None and sd <= ROUNDING * size else sd, degrees_of_freedom)

    def is_pooled(self, *cells: Hashable) -> bool:
        """Whether the pooled spread is theirs."""
        return self.pooled.sd is not None and self.outlying.isdisjoint(cells)

    def spread(self, cell: Hashable) -> Spread:
        """Standard deviation of one run, and its degrees of freedom."""
        values = self.cells[cell]
        if len(values) < 2:
            return Spread(None, 0)
        if self.is_pooled(cell):
            return self.pooled
        if len(values) < FEWEST_OWN:
            return Spread(None, 0)
        return Spread(stdev(values.values()), len(values) - 1)

    def interval(self, cell: Hashable, level: float = 0.95) -> Interval:
        """Mean with Student's t interval; without bounds where nothing is known of the spread."""
        values = self.cells[cell].values()
        mean, (sd, degrees_of_freedom) = float(exact_mean(values)), self.spread(cell)
        if sd is None:
            return Interval(mean, None, None, len(values))
        half = _t_quantile(degrees_of_freedom, level) * sd / math.sqrt(len(values))
        return Interval(mean, mean - half, mean + half, len(values))

    def gap(self, first: Hashable, second: Hashable, level: float = 0.95) -> tuple[float, float] | None:
        """Interval of first minus second; None where their seeds differ or nothing is known of the spread."""
        ours, theirs = self.cells[first], self.cells[second]
        if ours.keys() != theirs.keys() or len(ours) < 2:
            return None
        differences = [ours[seed] - theirs[seed] for seed in ours]
        if self.is_pooled(first, second):
            sd, degrees_of_freedom = math.sqrt(2) * (self.pooled.sd or 0.0), self.pooled.degrees_of_freedom
        elif len(differences) >= FEWEST_OWN:
            sd, degrees_of_freedom = stdev(differences), len(differences) - 1
        else:
            return None
        if sd == 0:
            return None
        half = _t_quantile(degrees_of_freedom, level) * sd / math.sqrt(len(differences))
        middle = float(exact_mean(differences))
        return middle - half, middle + half


def _t_quantile(degrees_of_freedom: int, level: float) -> float:
    """Of a two-sided interval."""
    # scipy.stats would give the same and take a second to import
    return float(stdtrit(degrees_of_freedom, (1 + level) / 2))
