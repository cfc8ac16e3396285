"""What was measured of one level or one difference, with the p-values of its one-sided tests.

Every p and every interval is valid at each look, see `orchestrator.analysis.sequential`. Three tests are shown:

- "strict": Student's t with the sample's own spread, valid whatever the spread of other cells.
- "pooled": with the spread of all cells of the report. Claims of a family are adjusted by it.
- "alone": between the two. The pooled variance counts as `PRIOR_FREEDOM` degrees of freedom beside the sample's own
  (moderated t; Smyth 2004), so that a pair of cells with twice the spread of the others decides wrongly no more often
  than the claim's alpha.

A verdict needs "pooled" within the family and "alone" by itself. Where nothing can be pooled all three are the same.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from scipy.special import bdtrc, ndtr, stdtr, stdtrit

from orchestrator.analysis.power import PRIOR_FREEDOM, pooled_power, t_power
from orchestrator.analysis.sequential import always_valid, look_level
from orchestrator.report.spread import Spread

Side = Literal[1, -1]
"""1: the truth lies above a value; -1: below."""

Kind = Literal["strict", "pooled", "alone"]

ONE_SIDED = 0.025
"""Of each end of a 95 % interval."""


class Sample(Protocol):
    """A number with its uncertainty.

    Attributes:
        effect: its estimate, in its unit.
        interval: 95 %, at all looks together.
        spread: standard deviation of what a single seed would show.
    """

    @property
    def effect(self) -> float: ...

    @property
    def interval(self) -> tuple[float, float]: ...

    @property
    def spread(self) -> float: ...

    def p(self, null: float, side: Side, kind: Kind) -> float:
        """Of the null hypothesis that the truth doesn't lie on this side of `null`."""

    def power(self, null: float, side: Side, seeds: int, level: float, alone: float) -> float:
        """Chance of "pooled" p <= level and "alone" p <= alone by so many seeds, at least."""


class Error(NamedTuple):
    """A standard deviation or error, and its degrees of freedom."""

    size: float
    freedom: float


@dataclass(frozen=True)
class Replicates:
    """A level, or a difference of two cells, of each of n >= 2 seeds: Student's t.

    The seeds are the only chance: the validation images are the recipe's, the same for all. Values without any spread
    have the exact sign test instead.

    Attributes:
        values: in the order of the seeds, `MOST_LOOKS` at most if looks count.
        resolution: differences up to this are rounding.
        pool: of a difference: spread of the report's cells when there were 2, 3, .. n seeds; empty: only its own.
        looks: False where the number of values was fixed beforehand: toy networks, which come all at once.
    """

    values: tuple[float, ...]
    resolution: float = 0.0
    pool: tuple[Spread, ...] = ()
    looks: bool = True

    @functools.cached_property
    def effect(self) -> float:
        return self._means[-1]

    @functools.cached_property
    def spread(self) -> float:
        return self._own_spread(len(self.values))

    @functools.cached_property
    def interval(self) -> tuple[float, float]:
        """All values that neither "pooled" nor "alone" refuses, by any look; each look's interval narrows the last."""
        if self._errors[len(self.values), "alone"].size == 0:
            return self.effect, self.effect
        ends = [self._narrowed(kind) for kind in ("pooled", "alone")]
        return min(low for low, _ in ends), max(high for _, high in ends)

    def p(self, null: float, side: Side, kind: Kind) -> float:
        p_values = {n: self._p_of_look(n, null, side, kind) for n in self._looks}
        return always_valid(p_values) if self.looks else p_values[len(self.values)]

    def power(self, null: float, side: Side, seeds: int, level: float, alone: float) -> float:
        shift = side * (self.effect - null)
        if self.looks:
            level, alone = look_level(seeds, level), look_level(seeds, alone)
        pooled = self._pooled(len(self.values))
        if pooled is None:
            return t_power(shift, self.spread, seeds, min(level, alone))
        freedom = pooled.freedom / (len(self.values) - 1) * (seeds - 1)
        return pooled_power(shift, pooled.size, seeds, freedom, level, alone)

    @property
    def pools(self) -> bool:
        """Whether other cells say something of the spread."""
        return self._pooled(len(self.values)) is not None

    @property
    def _looks(self) -> range:
        return range(2 if self.looks else len(self.values), len(self.values) + 1)

    @functools.cached_property
    def _means(self) -> list[float]:
        """Of the first 1, 2, .. values."""
        return [math.fsum(self.values[:n]) / n for n in range(1, len(self.values) + 1)]

    @functools.cached_property
    def _errors(self) -> dict[tuple[int, Kind], Error]:
        kinds: tuple[Kind, ...] = ("strict", "pooled", "alone")
        return {(n, kind): self._error(n, kind) for n in self._looks for kind in kinds}

    def _own_spread(self, n: int) -> float:
        mean = self._means[n - 1]
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in self.values[:n]) / (n - 1))
        return spread if spread > self.resolution else 0.0

    def _pooled(self, n: int) -> Error | None:
        """Spread of a cell, after n seeds; None where no cells but the sample's own say anything of it."""
        if not self.pool:
            return None
        sd, freedom = self.pool[n - 2]
        return Error(sd, freedom) if sd is not None and sd > self.resolution and freedom > n - 1 else None

    def _error(self, n: int, kind: Kind) -> Error:
        """Of the mean over the first n seeds."""
        own = Error(self._own_spread(n) / math.sqrt(n), n - 1)
        pooled = self._pooled(n)
        if kind == "strict" or pooled is None:
            return own
        of_pool = Error(pooled.size * math.sqrt(2 / n), pooled.freedom)
        if kind == "pooled":
            return of_pool
        others = pooled.freedom - own.freedom
        # the squares of the pool are the sample's own and, independent of them, those of the other cells
        rest = max(0.0, of_pool.size**2 * of_pool.freedom - own.size**2 * own.freedom) / others
        prior = min(PRIOR_FREEDOM, others)
        freedom = prior + own.freedom
        return Error(math.sqrt((prior * rest + own.freedom * own.size**2) / freedom), freedom)

    def _p_of_look(self, n: int, null: float, side: Side, kind: Kind) -> float:
        shift, error = side * (self._means[n - 1] - null), self._errors[n, kind]
        if error.size == 0:
            # t is not defined; had the median seed been at the null, every sign would have been as likely
            return 0.5**n if shift > self.resolution else 1.0
        return float(stdtr(error.freedom, -shift / error.size))

    def _narrowed(self, kind: Kind) -> tuple[float, float]:
        lows, highs = [], []
        for n in self._looks:
            error = self._errors[n, kind]
            if error.size > 0:  # without spread an early look refuses nothing
                level = look_level(n, ONE_SIDED) if self.looks else ONE_SIDED
                half = float(stdtrit(error.freedom, 1 - level)) * error.size
                lows.append(self._means[n - 1] - half)
                highs.append(self._means[n - 1] + half)
        low, high = max(lows), min(highs)
        # looks that exclude one another leave nothing: then the last one is shown
        return (low, high) if low < high else (lows[-1], highs[-1])


@dataclass(frozen=True)
class OneRun:
    """Accuracies of two cells on the same images, one seed: a score test of McNemar's type.

    The variance of the difference is that of the images, by Tango (1998; McNemar's own where the null is 0), and,
    since one run says nothing of it, an assumed spread of each cell between seeds. The score is drawn half a step
    towards the null, as McNemar's with Edwards' correction. It is the first look; with a second seed the spread is
    measured, and no later p rests on the assumption.

    Attributes:
        only_first, only_second: number of images that only the one cell has right.
        seed_sd: points of accuracy.
    """

    only_first: int
    only_second: int
    images: int
    seed_sd: float

    @functools.cached_property
    def effect(self) -> float:
        """Points of accuracy, first minus second."""
        return 100 * (self.only_first - self.only_second) / self.images

    @functools.cached_property
    def interval(self) -> tuple[float, float]:
        """All differences that neither side's test refuses."""
        return self._last_refused(-100, 1), self._last_refused(100, -1)

    @functools.cached_property
    def spread(self) -> float:
        return self._standard_error(self.effect)

    def p(self, null: float, side: Side, kind: Kind) -> float:
        return always_valid({1: self.p_of_look(null, side)})

    def p_of_look(self, null: float, side: Side) -> float:
        """Of this look alone."""
        if null == 0 and self.seed_sd == 0:
            better, worse = (self.only_first, self.only_second)[::side]
            # P(binomial >= better); bdtrc is P(> its first argument)
            return float(bdtrc(better - 1, better + worse, 0.5)) if better else 1.0
        return self._score_p(null, side)

    def power(self, null: float, side: Side, seeds: int, level: float, alone: float) -> float:
        return t_power(side * (self.effect - null), self.spread, seeds, look_level(seeds, level))

    def _score_p(self, null: float, side: Side) -> float:
        surplus = side * (self.effect - null) - 100 / self.images
        error = self._standard_error(null)
        return float(ndtr(-surplus / error)) if error else float(surplus <= 0)

    def _standard_error(self, null: float) -> float:
        """Of the difference in points, with the images' variance at its most likely value under the null."""
        images, difference = self.images, null / 100
        linear = (2 * images - self.only_first + self.only_second) * difference
        linear -= self.only_first + self.only_second
        constant = -self.only_second * difference * (1 - difference)
        root = math.sqrt(max(0.0, linear**2 - 8 * images * constant))
        chance_second = (root - linear) / (4 * images)
        variance = max(0.0, 2 * chance_second + difference * (1 - difference)) / images
        return math.sqrt(100**2 * variance + 2 * self.seed_sd**2)

    def _last_refused(self, far: float, side: Side) -> float:
        level, near = look_level(1, ONE_SIDED), self.effect
        if self._score_p(far, side) > level:
            return far
        for _ in range(50):
            middle = (far + near) / 2
            far, near = (middle, near) if self._score_p(middle, side) <= level else (far, middle)
        return far
