"""Records as one long table: a line per cell, seed and metric; and what is missing, with the reason."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import pandas as pd

from orchestrator.exhibits import Table, TableRow
from orchestrator.measured import OF_TRAINING, frame_metric, metric_name
from orchestrator.plan import PlannedCell, StudyPlan
from orchestrator.records import Arrays, Record
from orchestrator.report.escape import one_line

COLUMNS = ("study", "cell", "label", "recipe", "seed", "trial", "metric", "value", "paper")


class Records(Protocol):
    """Where records are read from: the store, or what MLflow kept of them."""

    def trial_record(self, key: str) -> Record | None: ...

    def trial_failure(self, key: str) -> Record | None: ...

    def evaluation_record(self, key: str) -> Record | None: ...

    def evaluation_arrays(self, key: str) -> Arrays | None:
        """Per-example correctness, singular values; None where there are none."""

    def trial_arrays(self, key: str) -> Arrays | None:
        """What a run of toy networks left for its figures."""

    def history(self, key: str) -> list[dict[str, float]]:
        """One entry per finished epoch."""


class Snapshot:
    """Records as they were when first asked for: all parts of a report agree while trials still run.

    What lies there without a record, such as a running trial's history, counts as not there: the
    report is the same from the store and from MLflow, which is told of finished work only.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self.trial_record = functools.cache(records.trial_record)
        self.trial_failure = functools.cache(records.trial_failure)
        self.evaluation_record = functools.cache(records.evaluation_record)
        self.evaluation_arrays = functools.cache(self._evaluation_arrays)
        self.trial_arrays = functools.cache(self._trial_arrays)
        self.history = functools.cache(self._history)

    def bring(self, trials: Iterable[str], evaluations: Iterable[str]) -> None:
        """Read what reports are made of beforehand, from a store at a URL, where many are read as soon as one."""
        if getattr(self._records, "is_remote", False):
            each = self._records.each  # type: ignore[attr-defined]
            each(lambda key: (self.history(key), self.trial_failure(key)), trials)
            each(lambda key: (self.evaluation_record(key), self.evaluation_arrays(key)), evaluations)

    def _evaluation_arrays(self, key: str) -> Arrays | None:
        return self._records.evaluation_arrays(key) if self.evaluation_record(key) else None

    def _trial_arrays(self, key: str) -> Arrays | None:
        return self._records.trial_arrays(key) if self.trial_record(key) else None

    def _history(self, key: str) -> list[dict[str, float]]:
        return self._records.history(key) if self.trial_record(key) else []


@dataclass(frozen=True)
class Hole:
    """A number that a study asks for and nobody has.

    Attributes:
        seed: None of toy networks, which come and fail together.
        what: "training", or the kind of evaluation.
        reason: "not done yet", or "failed: " and the error.
    """

    study: str
    cell: str
    label: str
    seed: int | None
    what: str
    trial: str
    reason: str


def row_metric(table: Table, row: TableRow) -> str:
    """The metric that a row of a table shows, as the frame names it."""
    return frame_metric(row.metric or table.metric)


def cells_frame(study: StudyPlan, records: Records) -> pd.DataFrame:
    """All numbers of a study.

    Returns:
        One line per cell, seed and metric in the study's order, with `COLUMNS`. `value` is float64,
        accuracies in percent; `paper` is NaN where the paper gives no number.
    """
    paper = {
        (member.name, row.cell, row_metric(table, row)): row.paper
        for member in study.members
        for table in member.tables
        for row in table.rows
        if row.paper is not None
    }
    lines = [
        (cell.study, cell.cell, cell.label, study.recipe, cell.seed, cell.trial, metric, value,
         paper.get((cell.study, cell.cell, metric)))
        for cell in study.cells
        for metric, value in _cell_metrics(cell, records).items()
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype(
        {"seed": "int64", "value": "float64", "paper": "float64"}
    )


def holes(study: StudyPlan, records: Records) -> list[Hole]:
    """What a study lacks, in its order."""
    found = []
    for cell in study.cells:
        is_toy = cell.case is not None
        if is_toy and cell.seed > 0:
            continue  # the networks of a cell come and fail together
        failure = records.trial_failure(cell.trial)
        lacking: dict[str, str | None]  # what, and the key of an evaluation
        if records.trial_record(cell.trial) is None:
            lacking = {"training": None}
        else:
            lacking = {
                kind: key for kind, key in cell.evaluations.items() if records.evaluation_record(key) is None
            }
        seed = None if is_toy else cell.seed
        found += [
            Hole(cell.study, cell.cell, cell.label, seed, what, cell.trial, _reason(failure, key))
            for what, key in lacking.items()
        ]
    return found


def _reason(failure: Record | None, evaluation: str | None) -> str:
    """Why something is missing: an evaluation that failed alone has a reason of its own."""
    if failure is None:
        return "not done yet"
    error = failure["error"]
    if "evaluations" in failure:
        error = failure["evaluations"].get(evaluation)
    return f"failed: {one_line(error)}" if error else "not done yet"


def _cell_metrics(cell: PlannedCell, records: Records) -> dict[str, float]:
    record = records.trial_record(cell.trial)
    if record is None:
        return {}
    if cell.case is not None:
        # a record under this key may be anybody's, of other networks than these
        cases = record.get("cases", [])
        own = cases[cell.case] if cell.case < len(cases) else {}
        return {
            metric: values[cell.seed] for metric, values in sorted(own.items()) if cell.seed < len(values)
        }
    metrics = {
        metric_name(kind, name): value
        for kind, key in cell.evaluations.items()
        if (evaluation := records.evaluation_record(key))
        for name, value in sorted(evaluation["metrics"].items())
    }
    trained = record.get("metrics", {})
    return metrics | {f"pretrain/{name}": trained[name] for name in OF_TRAINING if name in trained}
