"""The paper's claims with a verdict each: supported, contradicted or undecided.

One rule for all: a claim's test gives a p that it holds and a p that it doesn't, both valid at every number of seeds;
Holm's procedure over a family of claims bounds the chance of any false verdict in it by the study's alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from orchestrator.exhibits import Claim, Statistics
from orchestrator.plan import StudyPlan
from orchestrator.report.claims import wording
from orchestrator.report.claims.comparisons import ONE_SEED
from orchestrator.report.claims.examining import Examined, PathPoint, examine
from orchestrator.report.claims.hypotheses import OrderedLike, Verdict
from orchestrator.report.frames import Records
from orchestrator.report.tables import write_csv

CSV_COLUMNS = ("study", "claim", "group", "family", "text", "test", "effect", "ci_low", "ci_high", "unit", "p",
               "p_strict", "p_pooled", "p_adjusted", "verdict", "seeds", "seeds_needed", "note")  # fmt: skip
PATH_COLUMNS = ("study", "claim", *PathPoint._fields)


@dataclass(frozen=True)
class Judgement:
    """A claim with its verdict.

    Attributes:
        test: in words; also why there is none.
        effect: of an order the smallest step, of an equivalence first minus second, of a level the cell nearest to
            it or farthest beyond, of a trend last minus first, of a peak the best inner cell minus the higher end,
            of a correlation Spearman's rho.
        ci_low, ci_high: 95 % interval of the effect, valid at every number of seeds, not adjusted for the number of
            claims; a correlation's is of this number of seeds alone.
        unit: of the effect: "points" of accuracy, or "".
        family: of claims whose errors are bounded together.
        p: of a verdict, either way, without its family: the larger of the two that decide.
        p_strict: with the spread of the claim's own cells alone; shown beside.
        p_pooled: with the spread of all trained cells.
        p_adjusted: by Holm over the family; up to alpha brings the verdict.
        seeds: that took part; networks of a theory study.
        seeds_needed: for a verdict with the study's power, if effect and spread stay as observed and this claim
            gets its share of alpha among those of its family that are undecided; None: decided, or the note says why
            not.
        note: a sentence for people.
        details: each comparison that the claim consists of: name, and what was found.
        path: the same after each number of seeds, the last of it as here.
    """

    study: str
    claim: Claim
    family: str
    verdict: Verdict
    test: str
    effect: float | None
    ci_low: float | None
    ci_high: float | None
    unit: str
    p: float | None
    p_strict: float | None
    p_pooled: float | None
    p_adjusted: float | None
    seeds: int
    seeds_needed: int | None
    note: str
    details: tuple[tuple[str, str], ...]
    path: tuple[PathPoint, ...]

    @property
    def claim_name(self) -> str:
        return self.claim.name

    @property
    def text(self) -> str:
        """The paper's sentence."""
        return self.claim.text

    @property
    def decided(self) -> bool:
        return self.verdict != "undecided"


def judge(study: StudyPlan, cells: pd.DataFrame, records: Records) -> list[Judgement]:
    """All claims of a study and those that it includes, in their order, under the study's own statistics.

    Args:
        cells: the study's frame, see `frames.cells_frame`.
        records: for per-example correctness, needed of cells with one seed.
    """
    return [_judgement(one, study.study.statistics) for one in examine(study, cells, records)]


def claims_csv(judgements: Sequence[Judgement]) -> str:
    """One line per claim, with `CSV_COLUMNS`; empty where there is no number."""
    return write_csv(
        CSV_COLUMNS,
        [
            (one.study, one.claim_name, one.claim.group, one.family, one.text, one.test, one.effect, one.ci_low,
             one.ci_high, one.unit, one.p, one.p_strict, one.p_pooled, one.p_adjusted, one.verdict, one.seeds,
             one.seeds_needed, one.note)
            for one in judgements
        ],
    )  # fmt: skip


def path_csv(judgements: Sequence[Judgement]) -> str:
    """One line per claim and number of seeds, with `PATH_COLUMNS`."""
    return write_csv(
        PATH_COLUMNS, [(one.study, one.claim_name, *point) for one in judgements for point in one.path]
    )


def _judgement(one: Examined, statistics: Statistics) -> Judgement:
    finding, test = one.finding, one.finding.test
    low, high = finding.interval or (None, None)
    return Judgement(
        study=one.study,
        claim=one.claim,
        family=one.family,
        verdict=one.verdict,
        test=finding.method,
        effect=finding.effect,
        ci_low=low,
        ci_high=high,
        unit=finding.unit,
        p=test.decisive_p if test else None,
        p_strict=test.p("strict") if test else None,
        p_pooled=test.p("pooled") if test else None,
        p_adjusted=one.decision.p_adjusted if one.decision else None,
        seeds=finding.seeds,
        seeds_needed=one.seeds_needed,
        note=f"{finding.sentence[:1].upper()}{finding.sentence[1:]}{_outlook(one, statistics)}.",
        details=finding.details,
        path=one.path(),
    )


def _outlook(one: Examined, statistics: Statistics) -> str:
    """What it would take to decide, where it isn't decided."""
    if one.finding.method == ONE_SEED:
        return "; how many seeds would decide it can't be said from one seed"
    test = one.finding.test
    if test is None or one.verdict != "undecided":
        return ""
    if isinstance(test.holds, OrderedLike):
        return "; undecided: it would take more cells, not more seeds"
    if one.seeds_needed is None:
        return f"; undecided: it would take more than {wording.count(test.most_seeds, one.cells[0].repeat)}"
    needed = wording.count(one.seeds_needed, one.cells[0].repeat)
    return f"; undecided: it would take about {needed} for a power of {100 * statistics.power:.0f} %"
