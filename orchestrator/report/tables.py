"""The paper's tables with our numbers beside its own: as CSV, Markdown, LaTeX (booktabs) and in a terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from orchestrator.exhibits import Table, TableRow
from orchestrator.plan import StudyPlan
from orchestrator.report import escape
from orchestrator.report.frames import Hole, row_metric
from orchestrator.report.numbers import MINUS, NONE, interval_text, number
from orchestrator.report.statistics import Interval, mean_interval
from orchestrator.spec import Study

TICK = "✓"


@dataclass(frozen=True)
class Row:
    """One setting: ours, the paper's, and why a number is missing.

    Attributes:
        metric: as the frame names it.
        values: by seed (network, of a theory study), in the metric's unit; None where there is no number.
        marks: letters of the footnotes that belong to this row.
    """

    study: str
    cell: str
    columns: tuple[str, ...]
    metric: str
    values: dict[int, float | None]
    ours: Interval | None
    paper: float | None
    marks: tuple[str, ...]

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.paper is None else self.ours.mean - self.paper


@dataclass(frozen=True)
class FilledTable:
    """A study's table with numbers.

    Attributes:
        name: unique in a report.
        study: the member study that the table is of.
        seeds: of all rows; the networks of a theory study.
        networks: whether its seeds are networks of a theory study.
        notes: mark -> text.
        agreement: whether the rows come in the paper's order; empty where that can't be told.
    """

    name: str
    study: str
    spec: Table
    recipe: str
    seeds: tuple[int, ...]
    networks: bool
    rows: tuple[Row, ...]
    notes: dict[str, str]
    agreement: str = ""

    @property
    def has_paper(self) -> bool:
        return any(row.paper is not None for row in self.rows)

    @property
    def header(self) -> tuple[str, ...]:
        beside = ("Paper", "Difference") if self.has_paper else ()
        return (*self.spec.columns, self.spec.metric_label, *beside, "n")

    @property
    def ticked(self) -> tuple[bool, ...]:
        """Which of the study's columns hold nothing but ticks."""
        return tuple(
            all(row.columns[position] in ("", TICK) for row in self.rows)
            for position in range(len(self.spec.columns))
        )

    @property
    def legend(self) -> tuple[str, ...]:
        """How to read the numbers, and whether they are in the paper's order."""
        counts = {row.ours.n for row in self.rows if row.ours}
        drawn = "networks" if self.networks else "seeds"
        several = [f"Mean ± 95 % t interval over n {drawn}."] if counts - {1} else []
        single = ["n = 1: a single run, so no interval."] if 1 in counts else []
        if not self.has_paper:
            return (*several, *single, f"Source: {self.spec.source}.")
        paper = f"Paper: {self.spec.source}. Difference: ours − paper."
        return (*several, *single, paper, *([f"{self.agreement}."] if self.agreement else []))

    def texts(self, row: Row) -> tuple[str, ...]:
        """Ours, the paper's and the difference where the table has any of the paper's, and n, as shown."""
        paper = number(row.paper, row.metric) if row.paper is not None else ""
        difference = number(row.difference, row.metric, sign=True) if row.difference is not None else ""
        beside = (paper, difference) if self.has_paper else ()
        return interval_text(row.ours, row.metric), *beside, str(row.ours.n if row.ours else 0)


def fill(study: StudyPlan, cells: pd.DataFrame, missing: Sequence[Hole]) -> list[FilledTable]:
    """All tables of a study with the numbers of its cells frame."""
    numbers = _Numbers(study, cells, missing)
    names = [table.name for member in study.members for table in member.tables]
    filled = []
    for member in study.members:
        for table in member.tables:
            name = table.name if names.count(table.name) == 1 else f"{member.name}.{table.name}"
            marks: dict[str, str] = {}
            rows = tuple(_fill_row(member, table, row, numbers, marks) for row in table.rows)
            seeds = tuple(sorted({seed for row in rows for seed in row.values}))
            notes = {mark: text for text, mark in marks.items()}
            filled.append(
                FilledTable(
                    name, member.name, table, study.recipe, seeds, member.toy is not None, rows, notes
                )
            )
    return filled


class _Numbers:
    """A study's numbers, its seeds and its holes, by cell."""

    def __init__(self, study: StudyPlan, cells: pd.DataFrame, missing: Sequence[Hole]) -> None:
        columns = [cells[name] for name in ("study", "cell", "metric", "seed", "value")]
        self.values: dict[tuple[str, str, str, int], float] = {
            (member, cell, metric, seed): value
            for member, cell, metric, seed, value in zip(*columns, strict=True)
        }
        self.holes = {(hole.study, hole.cell, hole.seed, hole.what): hole for hole in missing}
        self.seeds: dict[tuple[str, str], list[int]] = {}
        for cell in study.cells:
            self.seeds.setdefault((cell.study, cell.cell), []).append(cell.seed)

    def hole(self, study: str, cell: str, seed: int, kind: str) -> Hole | None:
        for found in ((seed, "training"), (None, "training"), (seed, kind)):
            if hole := self.holes.get((study, cell, *found)):
                return hole
        return None


def _fill_row(member: Study, table: Table, row: TableRow, numbers: _Numbers, marks: dict[str, str]) -> Row:
    metric, kind = row_metric(table, row), (row.metric or table.metric).split("/")[0]
    by_seed = {
        seed: numbers.values.get((member.name, row.cell, metric, seed))
        for seed in numbers.seeds.get((member.name, row.cell), ())
    }
    lacking: dict[str, list[int]] = {}
    for seed in (seed for seed, value in by_seed.items() if value is None):
        hole = numbers.hole(member.name, row.cell, seed, kind)
        reason = f"{hole.what.replace('_', ' ')} {hole.reason}" if hole else f"{metric} does not apply here"
        lacking.setdefault(reason, []).append(seed)
    texts = [
        reason[:1].upper() + reason[1:] if member.toy else f"{_seeds(seeds)}: {reason}"
        for reason, seeds in lacking.items()
    ]
    here = tuple(marks.setdefault(text, letters(len(marks))) for text in texts)
    known = [value for value in by_seed.values() if value is not None]
    ours = mean_interval(known) if known else None
    return Row(member.name, row.cell, row.columns, metric, by_seed, ours, row.paper, here)


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
    fixed = ["study", "cell", "recipe", "metric", "mean", "ci_low", "ci_high", "n", "paper", "difference"]
    lines = []
    for row in table.rows:
        ours = row.ours or (None, None, None, 0)
        notes = "; ".join(table.notes[mark] for mark in row.marks)
        identity = (*row.columns, row.study, row.cell, table.recipe, row.metric)
        values = [row.values.get(seed) for seed in table.seeds]
        lines.append([*identity, *ours, row.paper, row.difference, *values, notes])
    return write_csv([*table.spec.columns, *fixed, *seeds, "notes"], lines)


# --- Markdown -----------------------------------------------------------------------------------


def markdown_grid(header: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A GitHub table of texts that are Markdown already; the first `left` columns are left-aligned."""
    rule = [":--" if position < left else "--:" for position in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows)) + "\n"


def to_markdown(table: FilledTable) -> str:
    rows = []
    for row in table.rows:
        ours, *others = table.texts(row)
        marks = f" <sup>{','.join(row.marks)}</sup>" if row.marks else ""
        rows.append([*map(escape.markdown, row.columns), ours + marks, *others])
    grid = markdown_grid([*map(escape.markdown, table.header)], rows, left=len(table.spec.columns))
    notes = [f"<sup>{mark}</sup> {escape.markdown(text)}" for mark, text in table.notes.items()]
    title = f"**{escape.markdown(table.spec.title)}** Recipe `{table.recipe}`."
    return "\n".join([title, "", grid, "  \n".join([escape.markdown(" ".join(table.legend)), *notes]), ""])


# --- LaTeX --------------------------------------------------------------------------------------


_SYMBOLS = (
    ("t interval over n", "$t$ interval over $n$"),
    ("n = 1:", "$n = 1$:"),
    ("Kendall's τ", "Kendall's $\\tau$"),
    ("two-sided p ", "two-sided $p$ "),
)
"""Of legends, once escaped: what is typeset as math."""


def to_latex(table: FilledTable) -> str:
    """A floating table for a paper. Needs the packages booktabs and, for ticks, amssymb."""
    alignment = "".join("c" if ticks else "l" for ticks in table.ticked)
    alignment += "r" * (len(table.header) - len(table.ticked))
    header = [*map(escape.latex, table.header[:-1]), "$n$"]
    body = []
    for row in table.rows:
        ours, *others = (_math(text) for text in table.texts(row))
        marks = f"\\textsuperscript{{{','.join(row.marks)}}}" if row.marks else ""
        body.append([*map(escape.latex, row.columns), ours + marks, *others])
    legend = escape.latex(" ".join(table.legend))
    for text, symbols in _SYMBOLS:
        legend = legend.replace(text, symbols)
    caption = f"{escape.latex(table.spec.title)} Recipe {escape.latex(table.recipe)}. {legend}"
    notes = [f"\\textsuperscript{{{mark}}} {escape.latex(text)}" for mark, text in table.notes.items()]
    lines = [
        "% needs \\usepackage{booktabs} and \\usepackage{amssymb}",
        "\\begin{table}[t]",
        "  \\centering",
        f"  \\caption{{{caption}}}",
        f"  \\label{{tab:{table.name}}}",
        f"  \\begin{{tabular}}{{{alignment}}}",
        "    \\toprule",
        f"    {' & '.join(header)} \\\\",
        "    \\midrule",
        *(f"    {' & '.join(line)} \\\\" for line in body),
        "    \\bottomrule",
        "  \\end{tabular}",
        *(["  \\par\\smallskip", f"  {{\\footnotesize {' '.join(notes)}}}"] if notes else []),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _math(text: str) -> str:
    """94.3 ± 1.2 -> $94.3 \\pm 1.2$, 2.1e−5 -> $2.1 \\times 10^{-5}$; a dash stays text."""
    if text in ("", NONE):
        return escape.latex(text)
    plain = re.sub(r"e(-?[0-9]+)", r" \\times 10^{\1}", text.replace(MINUS, "-"))
    return "$" + plain.replace("±", r"\pm") + "$"


# --- terminal -----------------------------------------------------------------------------------


def console(table: FilledTable) -> RichTable:
    """The table for a terminal. Cell texts are never read as rich markup."""
    notes = [f"{mark}: {escape.one_line(text)}" for mark, text in table.notes.items()]
    shown = RichTable(
        title=Text(f"{escape.one_line(table.spec.title)} Recipe {table.recipe}."),
        caption=Text("\n".join([escape.one_line(" ".join(table.legend), 1000), *notes])),
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for position, name in enumerate(table.header):
        shown.add_column(
            Text(escape.one_line(name)), justify="left" if position < len(table.spec.columns) else "right"
        )
    for row in table.rows:
        ours, *others = table.texts(row)
        marks = f" {','.join(row.marks)}" if row.marks else ""
        shown.add_row(*(Text(escape.one_line(text)) for text in (*row.columns, ours + marks, *others)))
    return shown
