"""The paper's tables with our numbers, and as CSV. `latex`, `markdown` and `terminal` write them out."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from orchestrator.exhibits import Table, TableRow
from orchestrator.plan import PlannedCell, StudyPlan
from orchestrator.report import escape, numbers, phrases
from orchestrator.report.frames import Hole, row_metric
from orchestrator.report.statistics import Interval
from orchestrator.report.uncertainty import FEWEST_OWN, Uncertainty
from orchestrator.setting import name_of
from orchestrator.spec import Study

TICK = "✓"
SpreadKind = Literal["interval", "sd", "none"]


@dataclass(frozen=True)
class TableStyle:
    """How numbers are written.

    Attributes:
        spread: what follows ±: the 95 % interval of the mean, the standard deviation of a run, or nothing.
        bold_best: the best mean of a table stands out; never where neither high nor low is better.
        decimals: as many everywhere; None: those of the metric.
        paper: whether the paper's numbers stand beside ours.
    """

    spread: SpreadKind = "interval"
    bold_best: bool = False
    decimals: int | None = None
    paper: bool = True


DEFAULT_STYLE = TableStyle()


@dataclass(frozen=True)
class Row:
    """One setting: ours, the paper's, and why a number is missing.

    Attributes:
        metric: as the frame names it.
        values: by seed (network, of a theory study), in the metric's unit; None where there is no number.
        marks: letters of the footnotes that belong to this row.
        training: what serves it: rows that one training serves are equal.
        as_published: whether the paper's number can be subtracted from ours: same data, same backbone.
        sd: of a run.
    """

    study: str
    cell: str
    label: str
    columns: tuple[str, ...]
    metric: str
    values: dict[int, float | None]
    ours: Interval | None
    paper: float | None
    marks: tuple[str, ...]
    training: Hashable
    as_published: bool
    sd: float | None = None

    @property
    def key(self) -> Hashable:
        """What is one cell of the table's uncertainty: a training by a metric."""
        return self.training, self.metric

    @property
    def known(self) -> dict[int, float]:
        """Its finite values by seed."""
        return {
            seed: value for seed, value in self.values.items() if value is not None and math.isfinite(value)
        }

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, where both were measured on the same."""
        if self.ours is None or self.paper is None or not self.as_published:
            return None
        return self.ours.mean - self.paper


@dataclass(frozen=True)
class FilledTable:
    """A study's table with numbers.

    Attributes:
        name: unique in a report.
        study: the member study that the table is of.
        setting: under what the numbers were measured, for captions; empty where it is not known.
        published: what the paper's numbers were measured on.
        seeds: of all rows; the networks of a theory study.
        networks: whether its seeds are networks of a theory study.
        notes: mark -> text.
        uncertainty: of its rows together.
        agreement: whether the rows come in the paper's order; empty where that can't be told.
    """

    name: str
    study: str
    spec: Table
    recipe: str
    setting: str
    published: str
    seeds: tuple[int, ...]
    networks: bool
    rows: tuple[Row, ...]
    notes: dict[str, str]
    uncertainty: Uncertainty
    style: TableStyle = DEFAULT_STYLE
    agreement: str = ""

    @property
    def has_paper(self) -> bool:
        return self.style.paper and any(row.paper is not None for row in self.rows)

    @property
    def has_difference(self) -> bool:
        return self.has_paper and any(row.paper is not None and row.as_published for row in self.rows)

    @property
    def header(self) -> tuple[str, ...]:
        comparable = all(row.as_published for row in self.rows if row.paper is not None)
        paper = ("Paper" if comparable else f"Paper ({self.published})",) if self.has_paper else ()
        difference = ("Difference",) if self.has_difference else ()
        return (*self.spec.columns, self.spec.metric_label, *paper, *difference, "n")

    @property
    def ticked(self) -> tuple[bool, ...]:
        """Which of the study's columns hold nothing but ticks."""
        return tuple(
            all(row.columns[position] in ("", TICK) for row in self.rows)
            for position in range(len(self.spec.columns))
        )

    @property
    def legend(self) -> tuple[str, ...]:
        """How to read the numbers."""
        paper: list[str] = []
        if self.has_paper:
            minus = " Difference: ours − paper." if self.has_difference else ""
            paper = [f"Paper: {self.spec.source}.{minus}"]
        return (*self._spread_legend(), *paper)

    def _spread_legend(self) -> list[str]:
        drawn = "networks" if self.networks else "seeds"
        counts = {row.ours.n for row in self.rows if row.ours}
        single = [f"n = 1: one {drawn[:-1]}, which says nothing of the spread."] if 1 in counts else []
        if not counts - {1}:
            return single
        if self.style.spread == "none":
            return [f"Mean over n {drawn}.", *single]
        what = "95 % interval" if self.style.spread == "interval" else "standard deviation"
        if not any(row.sd for row in self.rows):
            return [f"Mean over n {drawn}; {self._no_spread(drawn)}.", *single]
        how = f"each row's own, from {FEWEST_OWN} runs on"
        if self.uncertainty.pooled.sd is not None:
            freedom = phrases.count(self.uncertainty.pooled.degrees_of_freedom, "degree")
            own = [f"“{row.label}”" for row in self.rows if row.key in self.uncertainty.outlying]
            which = "rows of like spread" if own else "all rows"
            but = f"; its own for {phrases.listed(own)}, which varies more" if own else ""
            how = f"pooled over {which}, {freedom} of freedom{but}"
        constant = any(row.sd == 0 for row in self.rows)
        alone = ["Without ±: no spread beside the other rows."] if constant else []
        return [f"Mean over n {drawn} ± {what} ({how}).", *alone, *single]

    def _no_spread(self, drawn: str) -> str:
        if all(row.sd is None for row in self.rows):
            return f"too few {drawn} for ±"
        if all(len(set(row.known.values())) <= 1 for row in self.rows):
            return f"all {drawn} of a row gave the same"
        return f"from one of the {drawn} to the next all rows move alike, so there is no ±"

    @property
    def best(self) -> frozenset[tuple[str, str, str]]:
        """(study, cell, metric) of the rows whose mean, as shown, is the best; empty where none can be."""
        known = [row for row in self.rows if row.ours is not None and math.isfinite(row.ours.mean)]
        if len({row.metric for row in known}) != 1 or len(known) < 2:
            return frozenset()
        side = numbers.better(known[0].metric)
        means = {row.cell: side * (row.ours.mean if row.ours else 0.0) for row in known}
        shown = {row.cell: self._number(side * means[row.cell], row) for row in known}
        top = max(known, key=lambda row: means[row.cell])
        return frozenset(
            (row.study, row.cell, row.metric) for row in known if side and shown[row.cell] == shown[top.cell]
        )

    def is_best(self, row: Row) -> bool:
        """Whether its number is to stand out."""
        return self.style.bold_best and (row.study, row.cell, row.metric) in self.best

    def _number(self, value: float, row: Row, sign: bool = False) -> str:
        return numbers.number(value, row.metric, sign, self.style.decimals)

    def ours_text(self, row: Row) -> str:
        """94.3 ± 1.2, as the table's style has it."""
        if row.ours is None:
            return numbers.NONE
        half = {"interval": row.ours.half_width, "sd": row.sd, "none": None}[self.style.spread]
        return numbers.with_spread(row.ours.mean, half, row.metric, self.style.decimals)

    def texts(self, row: Row) -> tuple[str, ...]:
        """Ours, the paper's and the difference where the table has any of them, and n, as shown."""
        paper = "" if row.paper is None else self._number(row.paper, row)
        difference = "" if row.difference is None else self._number(row.difference, row, sign=True)
        beside = [paper] if self.has_paper else []
        beside += [difference] if self.has_difference else []
        return self.ours_text(row), *beside, str(row.ours.n if row.ours else 0)


def fill(
    study: StudyPlan, cells: pd.DataFrame, missing: Sequence[Hole], style: TableStyle = DEFAULT_STYLE
) -> list[FilledTable]:
    """All tables of a study with the numbers of its cells frame."""
    known = _Numbers(study, cells, missing)
    names = [table.name for member in study.members for table in member.tables]
    return [
        _fill_table(
            study,
            member,
            table,
            table.name if names.count(table.name) == 1 else f"{member.name}.{table.name}",
            known,
            style,
        )
        for member in study.members
        for table in member.tables
    ]


class _Numbers:
    """A study's numbers, its seeds and its holes, by cell."""

    def __init__(self, study: StudyPlan, cells: pd.DataFrame, missing: Sequence[Hole]) -> None:
        columns = [cells[name] for name in ("study", "cell", "metric", "seed", "value")]
        self.values: dict[tuple[str, str, str, int], float] = {
            (member, cell, metric, seed): value
            for member, cell, metric, seed, value in zip(*columns, strict=True)
        }
        self.holes = {(hole.study, hole.cell, hole.seed, hole.what): hole for hole in missing}
        self.planned: dict[tuple[str, str], list[PlannedCell]] = {}
        for cell in study.cells:
            self.planned.setdefault((cell.study, cell.cell), []).append(cell)

    def hole(self, study: str, cell: str, seed: int, kind: str) -> Hole | None:
        for found in ((seed, "training"), (None, "training"), (seed, kind)):
            if hole := self.holes.get((study, cell, *found)):
                return hole
        return None


def _fill_table(
    study: StudyPlan, member: Study, table: Table, name: str, known: _Numbers, style: TableStyle
) -> FilledTable:
    marks: dict[str, str] = {}
    rows = [_bare_row(member, table, row, known, marks) for row in table.rows]
    uncertainty = Uncertainty({row.key: row.known for row in rows if row.known})
    full = tuple(_with_spread(row, uncertainty, style, marks) for row in rows)
    toys = member.toy is not None
    return FilledTable(
        name=name,
        study=member.name,
        spec=table,
        recipe=study.recipe,
        setting="toy networks" if toys else study.setting.caption if study.setting else "",
        published=name_of(member.published.data),
        seeds=tuple(sorted({seed for row in full for seed in row.values})),
        networks=toys,
        rows=full,
        notes={mark: text for text, mark in marks.items()},
        uncertainty=uncertainty,
        style=style,
    )


def _bare_row(member: Study, table: Table, row: TableRow, known: _Numbers, marks: dict[str, str]) -> Row:
    """A row without its interval, which follows from all rows."""
    metric, kind = row_metric(table, row), (row.metric or table.metric).split("/")[0]
    planned = known.planned.get((member.name, row.cell), [])
    by_seed = {cell.seed: known.values.get((member.name, row.cell, metric, cell.seed)) for cell in planned}
    lacking: dict[str, list[int]] = {}
    for seed in (seed for seed, value in by_seed.items() if value is None):
        hole = known.hole(member.name, row.cell, seed, kind)
        reason = f"{hole.what.replace('_', ' ')} {hole.reason}" if hole else f"{metric} does not apply here"
        lacking.setdefault(reason, []).append(seed)
    texts = [
        phrases.upper_first(reason) if member.toy else f"{_seeds(seeds)}: {reason}"
        for reason, seeds in lacking.items()
    ]
    return Row(
        study=member.name,
        cell=row.cell,
        label=planned[0].label if planned else row.cell,
        columns=row.columns,
        metric=metric,
        values=by_seed,
        ours=None,
        paper=row.paper,
        marks=tuple(marks.setdefault(text, letters(len(marks))) for text in texts),
        training=tuple((cell.seed, cell.trial, cell.case) for cell in planned),
        as_published=all(cell.as_published for cell in planned),
    )


def _with_spread(row: Row, uncertainty: Uncertainty, style: TableStyle, marks: dict[str, str]) -> Row:
    given = {seed: value for seed, value in row.values.items() if value is not None}
    if not given:
        return row
    if len(row.known) < len(given):
        return replace(row, ours=Interval(math.fsum(given.values()) / len(given), None, None, len(given)))
    ours, here = uncertainty.interval(row.key), row.marks
    if style.spread == "interval" and (text := _beyond(row.metric, ours)):
        here = (*here, marks.setdefault(text, letters(len(marks))))
    return replace(row, ours=ours, sd=uncertainty.spread(row.key).sd, marks=here)


def _beyond(metric: str, interval: Interval) -> str:
    """What to say of an interval that reaches beyond what a share can be."""
    limits = numbers.bounds(metric)
    if limits is None or interval.low is None or interval.high is None:
        return ""
    unit = " %" if limits[1] == 100 else ""
    if interval.high > limits[1]:
        return f"The interval ends at {limits[1]:g}{unit}: ± reaches beyond it"
    return f"The interval ends at 0{unit}: ± reaches beyond it" if interval.low < limits[0] else ""


def _seeds(seeds: list[int]) -> str:
    return f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def letters(index: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    text = ""
    while index >= 0:
        index, remainder = divmod(index, 26)
        text, index = chr(ord("a") + remainder) + text, index - 1
    return text


# --- CSV ----------------------------------------------------------------------------------------


def write_csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """RFC 4180 with \\n; floats in shortest round-trip form, None empty, text made safe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([escape.csv_text(name) for name in header])
    for line in lines:
        writer.writerow([escape.csv_text(value) if isinstance(value, str) else value for value in line])
    return buffer.getvalue()


def to_csv(table: FilledTable) -> str:
    """Raw numbers, one line per row of the table, with each seed's value."""
    seeds = [f"seed_{seed}" for seed in table.seeds]
    fixed = ["study", "cell", "recipe", "metric", "mean", "ci_low", "ci_high", "sd", "degrees_of_freedom", "n",
             "paper", "difference"]  # fmt: skip
    lines = []
    for row in table.rows:
        mean, low, high, n = row.ours or (None, None, None, 0)
        freedom = table.uncertainty.spread(row.key).degrees_of_freedom if row.sd is not None else None
        notes = "; ".join(table.notes[mark] for mark in row.marks)
        identity = (*row.columns, row.study, row.cell, table.recipe, row.metric)
        values = [row.values.get(seed) for seed in table.seeds]
        lines.append(
            [*identity, mean, low, high, row.sd, freedom, n, row.paper, row.difference, *values, notes]
        )
    return write_csv([*table.spec.columns, *fixed, *seeds, "notes"], lines)
