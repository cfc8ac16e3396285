"""The paper's claims with a verdict each: supported, contradicted or undecided.

One rule for all: a claim's test gives a p that it holds and a p that it doesn't; Holm's procedure over all claims of
the report that have numbers bounds the chance of any false verdict by the study's alpha.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.exhibits import Claim, Statistics
from orchestrator.plan import PlannedCell, StudyPlan
from orchestrator.report.claims import wording
from orchestrator.report.claims.comparisons import ONE_SEED, CellNumbers
from orchestrator.report.claims.findings import BY_CONSTRUCTION, Finding, find
from orchestrator.report.claims.hypotheses import (
    MOST_SEEDS,
    Decision,
    OrderedLike,
    Verdict,
    decide,
    seeds_needed,
)
from orchestrator.report.frames import Records
from orchestrator.report.statistics import RankAgreement, rank_agreement
from orchestrator.report.tables import FilledTable, Row, write_csv

CSV_COLUMNS = ("study", "claim", "group", "text", "test", "effect", "ci_low", "ci_high", "unit", "p", "p_adjusted",
               "verdict", "seeds", "seeds_needed", "note")  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """A claim with its verdict.

    Attributes:
        test: in words; also why there is none.
        effect: of an order the smallest step, of an equivalence first minus second, of a level the cell nearest to
            it or farthest beyond, of a trend last minus first, of a peak the best inner cell minus the higher end,
            of a correlation Spearman's rho.
        ci_low, ci_high: 95 % interval of the effect, not adjusted for the number of claims.
        unit: of the effect: "points" of accuracy, or "".
        p: of a verdict, either way.
        p_adjusted: by Holm over all claims of the report.
        seeds: that took part; networks of a theory study.
        seeds_needed: for a verdict with the study's power, if effect and spread stay as observed and this claim
            gets its share of alpha among those that are undecided; None: decided, or the note says why not.
        note: a sentence for people.
        details: each comparison that the claim consists of: name, and what was found.
    """

    study: str
    claim: Claim
    verdict: Verdict
    test: str
    effect: float | None
    ci_low: float | None
    ci_high: float | None
    unit: str
    p: float | None
    p_adjusted: float | None
    seeds: int
    seeds_needed: int | None
    note: str
    details: tuple[tuple[str, str], ...]

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
    numbers = _numbers(study, cells, records)
    asserted = [(member.name, claim) for member in study.members for claim in member.claims]
    findings = [
        find(claim, _named_cells(study, owner, claim, numbers), study.seed_sd) for owner, claim in asserted
    ]
    return [
        _judgement(owner, claim, finding, decision, needed, study.study.statistics)
        for (owner, claim), (finding, decision, needed) in zip(
            asserted, _decisions(findings, study.study.statistics), strict=True
        )
    ]


def claims_csv(judgements: Sequence[Judgement]) -> str:
    """One line per claim, with `CSV_COLUMNS`; empty where there is no number."""
    return write_csv(
        CSV_COLUMNS,
        [
            (one.study, one.claim_name, one.claim.group, one.text, one.test, one.effect, one.ci_low, one.ci_high,
             one.unit, one.p, one.p_adjusted, one.verdict, one.seeds, one.seeds_needed, one.note)
            for one in judgements
        ],
    )  # fmt: skip


# --- from records to judgements ---------------------------------------------------------------------


def _numbers(study: StudyPlan, cells: pd.DataFrame, records: Records) -> dict[tuple[str, str], CellNumbers]:
    """(study, cell) -> what is known of it. Values that aren't finite count as missing."""
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for owner, cell, metric, seed, value in zip(
        cells["study"], cells["cell"], cells["metric"], cells["seed"], cells["value"], strict=True
    ):
        if math.isfinite(value):
            values.setdefault((owner, cell), {}).setdefault(metric, {})[seed] = value
    planned: dict[tuple[str, str], list[PlannedCell]] = {}
    for one in study.cells:
        planned.setdefault((one.study, one.cell), []).append(one)
    return {
        name: CellNumbers(
            label=seeds[0].label,
            values=values.get(name, {}),
            trained_by={one.seed: (one.trial, one.case) for one in seeds},
            correct=functools.partial(_correct, {one.seed: one for one in seeds}, records),
            repeat="seed" if seeds[0].case is None else "network",
        )
        for name, seeds in planned.items()
    }


def _correct(
    seeds: dict[int, PlannedCell], records: Records, metric: str, seed: int
) -> NDArray[np.bool_] | None:
    """Which validation images are right; None for what isn't a top-1 accuracy or was recorded without."""
    kind, _, name = metric.partition("/")
    keys = {str(evaluation): key for evaluation, key in seeds[seed].evaluations.items()}
    arrays = records.evaluation_arrays(keys[kind]) if name == "top1" and kind in keys else None
    correct = None if arrays is None else arrays.get("correct")
    return None if correct is None or correct.ndim != 1 else correct.astype(bool)


def _named_cells(
    study: StudyPlan, owner: str, claim: Claim, numbers: dict[tuple[str, str], CellNumbers]
) -> list[CellNumbers]:
    """A claim's cells in its order, repeats included; where it names none, all of its study's."""
    if claim.cells:
        split = [cell.rpartition("/") for cell in claim.cells]
        return [numbers[where or owner, name] for where, _, name in split]
    if owner == study.study.name:
        return list(numbers.values())
    return [cell for (where, _), cell in numbers.items() if where == owner]


def _decisions(
    findings: Sequence[Finding], statistics: Statistics
) -> list[tuple[Finding, Decision | None, int | None]]:
    """Of each finding: the decision, if it was tested, and how many seeds an undecided one takes."""
    tests = [finding.test for finding in findings if finding.test]
    decisions = iter(decide(tests, statistics.alpha))
    decided = [(finding, next(decisions) if finding.test else None) for finding in findings]
    # Holm accepts every claim with p up to this level, once those that are decided now are out of its way
    open_claims = sum(decision is not None and decision.verdict == "undecided" for _, decision in decided)
    return [
        (
            finding,
            decision,
            seeds_needed(finding.test, statistics.alpha / open_claims, statistics.power, finding.seeds)
            if finding.test and decision and decision.verdict == "undecided"
            else None,
        )
        for finding, decision in decided
    ]


def _judgement(
    owner: str,
    claim: Claim,
    finding: Finding,
    decision: Decision | None,
    needed: int | None,
    statistics: Statistics,
) -> Judgement:
    untested: Verdict = "supported" if finding.method == BY_CONSTRUCTION else "undecided"
    low, high = finding.interval or (None, None)
    return Judgement(
        study=owner,
        claim=claim,
        verdict=decision.verdict if decision else untested,
        test=finding.method,
        effect=finding.effect,
        ci_low=low,
        ci_high=high,
        unit=finding.unit,
        p=decision.p if decision else None,
        p_adjusted=decision.p_adjusted if decision else None,
        seeds=finding.seeds,
        seeds_needed=needed,
        note=f"{finding.sentence[:1].upper()}{finding.sentence[1:]}"
        f"{_outlook(finding, decision, needed, statistics)}.",
        details=finding.details,
    )


def _outlook(finding: Finding, decision: Decision | None, needed: int | None, statistics: Statistics) -> str:
    """What it would take to decide, where it isn't decided."""
    if finding.method == ONE_SEED:
        return "; how many seeds would decide it can't be told from one seed"
    if decision is None or decision.verdict != "undecided":
        return ""
    if finding.test and isinstance(finding.test.holds, OrderedLike):
        return "; undecided: it would take more cells, not more seeds"
    if needed is None:
        return f"; undecided: it would take more than {MOST_SEEDS} seeds"
    return f"; undecided: it would take about {needed} seeds for a power of {100 * statistics.power:.0f} %"


# --- tables as a whole ------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableAgreement:
    """Whether our order of a table's rows is the paper's.

    Attributes:
        rows: Kendall's tau of the rows' means with the paper's values.
        by_seed: tau of every seed that has all of these rows.
    """

    rows: RankAgreement
    by_seed: tuple[float, ...]

    def __str__(self) -> str:
        if self.rows.tau is None or self.rows.p is None:
            return ""
        text = f"Kendall's τ of our order with the paper's: {wording.plain(self.rows.tau, 2)} over {self.rows.n} rows"
        text += f" (two-sided {wording.p_text(self.rows.p)}"
        if len(self.by_seed) > 1:
            low, high = (wording.plain(bound, 2) for bound in (min(self.by_seed), max(self.by_seed)))
            text += f"; {low} to {high} by single seeds" if low != high else f"; {low} by every single seed"
        return text + ")"


def table_agreement(study: StudyPlan, table: FilledTable) -> TableAgreement | None:
    """Of the rows that have a number of ours and the paper's; rows that one training serves count once.

    Returns:
        None where the order of fewer than two rows is known.
    """
    trials: dict[tuple[str, str], tuple[object, ...]] = {}
    for cell in study.cells:
        name = (cell.study, cell.cell)
        trials[name] = (*trials.get(name, ()), (cell.seed, cell.trial, cell.case))
    distinct: dict[object, tuple[Row, float, float]] = {}
    for row, spec in zip(table.rows, table.spec.rows, strict=True):
        if row.ours is not None and row.paper is not None:
            identity = trials[row.study, row.cell], spec.metric
            distinct.setdefault(identity, (row, row.ours.mean, row.paper))
    paper = [published for _, _, published in distinct.values()]
    rows = rank_agreement([ours for _, ours, _ in distinct.values()], paper)
    if rows.tau is None:
        return None
    by_seed = []
    for seed in table.seeds:
        values = [row.values.get(seed) for row, _, _ in distinct.values()]
        known = [value for value in values if value is not None]
        if len(known) == len(values) and (tau := rank_agreement(known, paper).tau) is not None:
            by_seed.append(tau)
    return TableAgreement(rows, tuple(by_seed))
