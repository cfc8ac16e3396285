"""One-sided tests that a claim consists of, how they combine, and what Holm's procedure decides of many claims.

A claim is two hypotheses, that it holds and that it doesn't. The p of either is the chance of data as good for it
where it is wrong, at most. A `Sample` is what was measured of one difference or level.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, nctdtr, ndtr, ndtri, stdtr, stdtrit

from orchestrator.report.statistics import holm, mean_interval, page_p, spearman

Side = Literal[1, -1]
"""1: the truth lies above a value; -1: below."""

Verdict = Literal["supported", "contradicted", "undecided"]
MOST_SEEDS = 1000


# --- samples ------------------------------------------------------------------------------------


class Sample(Protocol):
    """A number with its uncertainty.

    Attributes:
        effect: its estimate, in its unit.
        interval: 95 %.
        spread: standard deviation of what a single seed would show.
    """

    @property
    def effect(self) -> float: ...

    @property
    def interval(self) -> tuple[float, float]: ...

    @property
    def spread(self) -> float: ...

    def p(self, null: float, side: Side) -> float:
        """Of the null hypothesis that the truth doesn't lie on this side of `null`."""


@dataclass(frozen=True)
class Replicates:
    """A level, or a difference of two cells, of each of n >= 2 seeds: Student's t.

    The seeds are the only chance: the validation images are the recipe's, the same for all. Values without any spread
    have the exact sign test instead.

    Attributes:
        resolution: differences up to this are rounding.
    """

    values: tuple[float, ...]
    resolution: float = 0.0

    @functools.cached_property
    def effect(self) -> float:
        return mean_interval(self.values).mean

    @functools.cached_property
    def interval(self) -> tuple[float, float]:
        mean, low, high, _ = mean_interval(self.values)
        if self.spread == 0:
            return mean, mean
        assert low is not None
        assert high is not None
        return low, high

    @functools.cached_property
    def spread(self) -> float:
        spread = stdev(self.values)
        return spread if spread > self.resolution else 0.0

    def p(self, null: float, side: Side) -> float:
        shift, spread, n = side * (self.effect - null), self.spread, len(self.values)
        if spread == 0:
            # t is not defined; had the median seed been at the null, every sign would have been as likely
            return 0.5**n if shift > self.resolution else 1.0
        return float(stdtr(n - 1, -shift / (spread / math.sqrt(n))))


@dataclass(frozen=True)
class OneRun:
    """Accuracies of two cells on the same images, one seed: a score test of McNemar's type.

    The variance of the difference is that of the images, by Tango (1998; McNemar's own where the null is 0), and,
    since one run says nothing of it, an assumed spread of each cell between seeds. The score is drawn half a step
    towards the null, as McNemar's with Edwards' correction.

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
        """All differences that neither side's test refuses at 2.5 %."""
        return self._last_refused(-100, 1), self._last_refused(100, -1)

    @functools.cached_property
    def spread(self) -> float:
        return self._standard_error(self.effect)

    def p(self, null: float, side: Side) -> float:
        if null == 0 and self.seed_sd == 0:
            better, worse = (self.only_first, self.only_second)[::side]
            # P(binomial >= better); bdtrc is P(> its first argument)
            return float(bdtrc(better - 1, better + worse, 0.5)) if better else 1.0
        return self._score_p(null, side)

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
        near = self.effect
        if self._score_p(far, side) > 0.025:
            return far
        for _ in range(50):
            middle = (far + near) / 2
            far, near = (middle, near) if self._score_p(middle, side) <= 0.025 else (far, middle)
        return far


# --- hypotheses ---------------------------------------------------------------------------------


class Hypothesis(Protocol):
    def p(self) -> float:
        """Chance of data as good for the hypothesis as these where it is wrong, at most."""

    def power(self, seeds: int, level: float) -> float:
        """Chance of p <= level with so many seeds, at least, if effect and spread are those observed."""


@dataclass(frozen=True)
class Beyond:
    """A sample's truth lies on one side of a value."""

    sample: Sample
    null: float
    side: Side

    def p(self) -> float:
        return self.sample.p(self.null, self.side)

    def power(self, seeds: int, level: float) -> float:
        shift = self.side * (self.sample.effect - self.null)
        return t_power(shift, self.sample.spread, seeds, level)


@dataclass(frozen=True)
class AllOf:
    """Every one of the parts holds: as sure as the least sure (intersection-union test)."""

    parts: Sequence[Hypothesis]

    def p(self) -> float:
        return max(part.p() for part in self.parts)

    def power(self, seeds: int, level: float) -> float:
        return max(0.0, 1 - sum(1 - part.power(seeds, level) for part in self.parts))


@dataclass(frozen=True)
class AnyOf:
    """At least one of the parts holds: as sure as the surest, paid for by their number (Bonferroni)."""

    parts: Sequence[Hypothesis]

    def p(self) -> float:
        return min(1.0, len(self.parts) * min(part.p() for part in self.parts))

    def power(self, seeds: int, level: float) -> float:
        return max(part.power(seeds, level / len(self.parts)) for part in self.parts)


@dataclass(frozen=True)
class Rising:
    """Values rise along the columns; each row is a seed. Page's test."""

    blocks: NDArray[np.float64]

    def p(self) -> float:
        return page_p(self.blocks)

    @functools.cached_property
    def correlations(self) -> list[float]:
        """Of each row's values with their order (Spearman); 0 for a row of equal values."""
        steps = list(range(self.blocks.shape[1]))
        return [0.0 if math.isnan(rho := spearman(steps, row)) else rho for row in self.blocks]

    def power(self, seeds: int, level: float) -> float:
        """By the normal limit of the mean correlation of a seed's values with their order."""
        correlations = self.correlations
        spread_under_null = 1 / math.sqrt(self.blocks.shape[1] - 1)
        # one seed tells no spread of the correlation; it has that of the null at most
        spread = stdev(correlations) if len(correlations) > 1 else spread_under_null
        surplus = math.sqrt(seeds) * float(np.mean(correlations)) + float(ndtri(level)) * spread_under_null
        return float(ndtr(surplus / spread)) if spread else float(surplus > 0)


@dataclass(frozen=True)
class OrderedLike:
    """One cell's value rises with another's, over cells: the permutation test of Spearman's correlation."""

    weights: tuple[float, ...]
    values: tuple[float, ...]

    def p(self) -> float:
        return page_p(np.array([self.values]), self.weights)

    def power(self, seeds: int, level: float) -> float:
        """More seeds bring no further cells."""
        return 0.0


def t_power(shift: float, spread: float, n: int, level: float) -> float:
    """Power of the one-sided t test on n values whose mean lies `shift` beyond the null, at this level."""
    if n < 2:
        return 0.0
    if spread == 0:
        return float(shift > 0 and 0.5**n <= level)
    distance = shift / spread * math.sqrt(n)
    missed = float(nctdtr(n - 1, distance, stdtrit(n - 1, 1 - level)))
    # scipy finds no number for distances of 35 and more, where there is no doubt left
    return float(distance > 0) if math.isnan(missed) else 1 - missed


# --- decisions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClaimTest:
    """A claim as its two hypotheses."""

    holds: Hypothesis
    fails: Hypothesis

    @functools.cached_property
    def p(self) -> float:
        """Of a verdict, either way."""
        return min(1.0, 2 * self.leaning.p())

    @functools.cached_property
    def leaning(self) -> Hypothesis:
        return self.holds if self.holds.p() <= self.fails.p() else self.fails


@dataclass(frozen=True)
class Decision:
    p: float
    p_adjusted: float
    verdict: Verdict


def decide(tests: Sequence[ClaimTest], alpha: float) -> list[Decision]:
    """Verdicts on all claims of a report, of which any is false with chance alpha at most (Holm).

    Args:
        tests: of the claims that have numbers.
        alpha: also where two cells don't differ at all: then either verdict counts as false.
    """
    p_values = [test.p for test in tests]
    decisions = []
    for test, p, adjusted in zip(tests, p_values, holm(p_values), strict=True):
        for_it: Verdict = "supported" if test.leaning is test.holds else "contradicted"
        decisions.append(Decision(p, adjusted, for_it if adjusted <= alpha else "undecided"))
    return decisions


def seeds_needed(test: ClaimTest, level: float, power: float, have: int = 1) -> int | None:
    """Fewest seeds that bring a verdict with this power if effect and spread are those observed.

    Args:
        level: for p, both sides together.
        have: seeds that didn't suffice.

    Returns:
        Up to `MOST_SEEDS`, and more than there are; None: not even so many would do.
    """
    seeds = range(max(2, have + 1), MOST_SEEDS + 1)
    found = bisect.bisect_left(seeds, True, key=lambda n: test.leaning.power(n, level / 2) >= power)
    return seeds[found] if found < len(seeds) else None
