"""Claims against their numbers: the decision of each within its family, and how it came about seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from orchestrator.analysis.families import family_of
from orchestrator.exhibits import Claim, Statistics
from orchestrator.plan import StudyPlan
from orchestrator.report.claims.comparisons import CellNumbers
from orchestrator.report.claims.findings import Finding, Spreads, find
from orchestrator.report.claims.hypotheses import Decision, Verdict, decide, seeds_needed
from orchestrator.report.claims.numbers import cell_numbers, named_cells, pools
from orchestrator.report.frames import Records


class PathPoint(NamedTuple):
    """A claim as it stood at a number of seeds; its numbers are those of `Judgement`."""

    seeds: int
    effect: float
    ci_low: float | None
    ci_high: float | None
    p: float | None


@dataclass
class Examined:
    """A claim against its numbers, with the decision of its family.

    Attributes:
        cells: that the claim is about, in its order.
        decision: None where there is nothing to test.
        level: of an undecided claim: its share of its family's alpha.
    """

    study: str
    claim: Claim
    cells: list[CellNumbers]
    spreads: Spreads
    finding: Finding
    decision: Decision | None = None
    level: float = 0.0
    seeds_needed: int | None = None

    @property
    def family(self) -> str:
        """Claims whose errors are bounded together."""
        return family_of(self.study, self.claim, toy=any(not cell.looks for cell in self.cells))

    @property
    def verdict(self) -> Verdict:
        return self.decision.verdict if self.decision else self.finding.by_construction or "undecided"

    def path(self) -> tuple[PathPoint, ...]:
        """The finding as it was after each seed."""
        if any(not cell.looks for cell in self.cells):
            return ()
        seeds = {seed for cell in self.cells for values in cell.values.values() for seed in values}
        points: dict[int, PathPoint] = {}
        for last in sorted(seeds)[:-1]:
            then = find(self.claim, [cell.until(last) for cell in self.cells], self.spreads)
            points |= _point(then)
        return tuple((points | _point(self.finding)).values())


def _point(finding: Finding) -> dict[int, PathPoint]:
    if finding.effect is None:
        return {}
    low, high = finding.interval or (None, None)
    p = finding.test.decisive_p if finding.test else None
    return {finding.seeds: PathPoint(finding.seeds, finding.effect, low, high, p)}


def _found(study: StudyPlan, cells: pd.DataFrame, records: Records) -> list[Examined]:
    numbers = cell_numbers(study, cells, records)
    spreads = Spreads(study.seed_sd, pools(numbers.values()))
    found = []
    for member in study.members:
        for claim in member.claims:
            named = [numbers[name] for name in named_cells(study, member.name, claim)]
            found.append(Examined(member.name, claim, named, spreads, find(claim, named, spreads)))
    return found


def examine(study: StudyPlan, cells: pd.DataFrame, records: Records) -> list[Examined]:
    """All claims of a study and those that it includes, in their order, each with its decision.

    Args:
        cells: the study's frame, see `frames.cells_frame`.
        records: for per-example correctness, needed of cells with one seed.
    """
    everything, statistics = _found(study, cells, records), study.study.statistics
    families: dict[str, list[Examined]] = {}
    for one in everything:
        if not one.finding.by_construction:
            families.setdefault(one.family, []).append(one)
    for family in families.values():
        _decide(family, statistics)
    return everything


def _decide(family: Sequence[Examined], statistics: Statistics) -> None:
    """Fills in decisions, and how many seeds the undecided ones need."""
    tested = [(one, one.finding.test) for one in family if one.finding.test]
    tests = [test for _, test in tested]
    for (one, _), decision in zip(
        tested, decide(tests, statistics.alpha, len(family) - len(tested)), strict=True
    ):
        one.decision = decision
    # Holm accepts every claim with p up to this level, once those that are decided now are out of its way
    undecided = sum(one.decision is None or one.decision.verdict == "undecided" for one in family)
    for one, test in tested:
        if one.decision and one.decision.verdict == "undecided":
            one.level = statistics.alpha / undecided
            one.seeds_needed = seeds_needed(
                test, one.level, statistics.alpha, statistics.power, one.finding.seeds
            )
