"""Whether a table's rows have the paper's order."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.plan import StudyPlan
from orchestrator.report.claims import wording
from orchestrator.report.statistics import RankAgreement, rank_agreement
from orchestrator.report.tables import FilledTable, Row


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
