"""One-sided tests that a claim consists of, how they combine, and what Holm's procedure decides of a family of claims.

A claim is two hypotheses, that it holds and that it doesn't. The p of either is the chance of data as good for it
where it is wrong, at most, at whatever number of seeds one looks.
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
from scipy.special import ndtr, ndtri

from orchestrator.analysis.sequential import MOST_LOOKS, always_valid, look_level
from orchestrator.report.claims.samples import Kind, Sample, Side
from orchestrator.report.statistics import holm, midranks, page_p, spearman, without_rounding

Verdict = Literal["supported", "contradicted", "undecided"]


class Hypothesis(Protocol):
    def p(self, kind: Kind) -> float:
        """Chance of data as good for the hypothesis as these where it is wrong, at most."""

    def power(self, seeds: int, level: float, alone: float) -> float:
        """Chance of a decision by so many seeds, at least, if effect and spread are those observed.

        Args:
            level: that the "pooled" p must reach, the claim's share of its family's alpha.
            alone: that the "alone" p must reach.
        """


def decisive_p(hypothesis: Hypothesis) -> float:
    """Of the hypothesis by itself, without a family: both tests that decide must agree."""
    return max(hypothesis.p("pooled"), hypothesis.p("alone"))


@dataclass(frozen=True)
class Beyond:
    """A sample's truth lies on one side of a value."""

    sample: Sample
    null: float
    side: Side

    def p(self, kind: Kind) -> float:
        return self.sample.p(self.null, self.side, kind)

    def power(self, seeds: int, level: float, alone: float) -> float:
        return self.sample.power(self.null, self.side, seeds, level, alone)


@dataclass(frozen=True)
class AllOf:
    """Every one of the parts holds: as sure as the least sure (intersection-union test)."""

    parts: Sequence[Hypothesis]

    def p(self, kind: Kind) -> float:
        return max(part.p(kind) for part in self.parts)

    def power(self, seeds: int, level: float, alone: float) -> float:
        return max(0.0, 1 - sum(1 - part.power(seeds, level, alone) for part in self.parts))


@dataclass(frozen=True)
class AnyOf:
    """At least one of the parts holds: as sure as the surest, paid for by their number (Bonferroni)."""

    parts: Sequence[Hypothesis]

    def p(self, kind: Kind) -> float:
        return min(1.0, len(self.parts) * min(part.p(kind) for part in self.parts))

    def power(self, seeds: int, level: float, alone: float) -> float:
        share = len(self.parts)
        return max(part.power(seeds, level / share, alone / share) for part in self.parts)


@dataclass(frozen=True)
class Rising:
    """Values rise along the columns; each row is a seed. Page's test.

    Attributes:
        looks: False where the number of rows was fixed beforehand.
    """

    blocks: NDArray[np.float64]
    looks: bool = True

    def p(self, kind: Kind) -> float:
        return self._p

    @functools.cached_property
    def _p(self) -> float:
        if not self.looks:
            return page_p(self.blocks)
        most = min(len(self.blocks), MOST_LOOKS)
        return always_valid({look: page_p(self.blocks[:look]) for look in range(1, most + 1)})

    @functools.cached_property
    def correlations(self) -> list[float]:
        """Of each row's values with their order (Spearman); 0 for a row of equal values."""
        steps = list(range(self.blocks.shape[1]))
        return [0.0 if math.isnan(rho := spearman(steps, row)) else rho for row in self.blocks]

    def power(self, seeds: int, level: float, alone: float) -> float:
        """By the normal limit of the mean correlation of a seed's values with their order."""
        correlations = self.correlations
        at = look_level(seeds, level) if self.looks else level
        if at == 0:
            return 0.0
        spread_under_null = 1 / math.sqrt(self.blocks.shape[1] - 1)
        # one seed says nothing of the spread of the correlation; it has that of the null at most
        spread = stdev(correlations) if len(correlations) > 1 else spread_under_null
        surplus = math.sqrt(seeds) * float(np.mean(correlations)) + float(ndtri(at)) * spread_under_null
        return float(ndtr(surplus / spread)) if spread else float(surplus > 0)


@dataclass(frozen=True)
class OrderedLike:
    """One metric rises with another over cells: the permutation test of Spearman's correlation.

    Attributes:
        looks: after 1, 2, .. seeds: (cells, 2) means of the two metrics.
    """

    looks: Sequence[NDArray[np.float64]]

    def p(self, kind: Kind) -> float:
        return self._p

    @functools.cached_property
    def _p(self) -> float:
        return always_valid({seeds: _correlation_p(means) for seeds, means in enumerate(self.looks, start=1)})

    def power(self, seeds: int, level: float, alone: float) -> float:
        """More seeds bring no further cells."""
        return 0.0


def _correlation_p(means: NDArray[np.float64]) -> float:
    if not len(means):
        return 1.0
    x, y = (without_rounding(column) for column in means.T)
    return page_p(y[None, :], midranks(x).tolist())


# --- decisions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClaimTest:
    """A claim as its two hypotheses.

    Attributes:
        most_seeds: that can decide it.
    """

    holds: Hypothesis
    fails: Hypothesis
    most_seeds: int = MOST_LOOKS

    def p(self, kind: Kind) -> float:
        """Of a verdict, either way."""
        return min(1.0, 2 * self.leaning.p(kind))

    @functools.cached_property
    def decisive_p(self) -> float:
        """Of a verdict without a family."""
        return min(1.0, 2 * decisive_p(self.leaning))

    @functools.cached_property
    def leaning(self) -> Hypothesis:
        return self.holds if decisive_p(self.holds) <= decisive_p(self.fails) else self.fails


@dataclass(frozen=True)
class Decision:
    """Of one claim; `p_adjusted` <= alpha brings the verdict."""

    p_adjusted: float
    verdict: Verdict


def decide(tests: Sequence[ClaimTest], alpha: float, untested: int = 0) -> list[Decision]:
    """Verdicts on the claims of a family, of which any is false with chance alpha at most, however often one looks.

    Holm's procedure runs over the "pooled" p-values; the "alone" p of a claim must reach alpha by itself besides.

    Args:
        tests: of the claims that have numbers.
        alpha: also where two cells don't differ at all: then either verdict counts as false.
        untested: claims of the family without numbers; they count, so that their numbers overturn no verdict.
    """
    family = holm([*(test.p("pooled") for test in tests), *[1.0] * untested])
    decisions = []
    for test, in_family in zip(tests, family, strict=False):
        for_it: Verdict = "supported" if test.leaning is test.holds else "contradicted"
        adjusted = max(in_family, test.p("alone"))
        decisions.append(Decision(adjusted, for_it if adjusted <= alpha else "undecided"))
    return decisions


def seeds_needed(test: ClaimTest, level: float, alone: float, power: float, have: int = 1) -> int | None:
    """Fewest seeds that bring a verdict with this power if effect and spread are those observed.

    Args:
        level: for the "pooled" p, both sides together: the claim's share of its family's alpha.
        alone: for the "alone" p, both sides together.
        have: seeds that didn't suffice.

    Returns:
        Up to the test's `most_seeds`; None: not even so many would do.
    """
    seeds = range(max(2, have + 1), test.most_seeds + 1)
    enough = bisect.bisect_left(
        seeds, True, key=lambda n: test.leaning.power(n, level / 2, alone / 2) >= power
    )
    return seeds[enough] if enough < len(seeds) else None
