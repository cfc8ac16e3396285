"""The paper's tables with our numbers beside its own: as CSV, Markdown, LaTeX (booktabs) and in a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from orchestrator.exhibits import Table, TableRow
from orchestrator.plan import StudyPlan
from orchestrator.report import escape
from orchestrator.report.frames import Hole, Records, cells_frame, holes, table_metric
from orchestrator.report.statistics import Interval, mean_interval
from orchestrator.spec import Study

TICK = "✓"
NONE = "—"


@dataclass(frozen=True)
class Row:
    """One setting: ours, the paper's, and why a number is missing.

    Attributes:
        values: by seed, in the table's unit; None where there is no number.
        marks: letters of the footnotes that belong to this row.
    """

    study: str
    cell: str
    columns: tuple[str, ...]
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
    """A study's table with numbers. `name` is unique in a report; `notes` maps a mark to its text."""

    name: str
    spec: Table
    recipe: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    notes: dict[str, str]

    @property
    def header(self) -> tuple[str, ...]:
        return (*self.spec.columns, self.spec.metric_label, "Paper", "Difference", "n")

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
        counts = {row.ours.n for row in self.rows if row.ours}
        several = ["Mean ± 95 % t interval over n seeds."] if counts - {1} else []
        single = ["n = 1: a single run, so no interval."] if 1 in counts else []
        return (*several, *single, f"Paper: {self.spec.source}. Difference: ours − paper.")

    def texts(self, row: Row) -> tuple[str, str, str, str]:
        """Ours, paper, difference, n as shown."""
        metric = self.spec.metric
        paper = number(row.paper, metric) if row.paper is not None else ""
        difference = number(row.difference, metric, sign=True) if row.difference is not None else ""
        return interval_text(row.ours, metric), paper, difference, str(row.ours.n if row.ours else 0)


def fill(study: StudyPlan, cells: pd.DataFrame, missing: Sequence[Hole]) -> list[FilledTable]:
    """All tables of a study with the numbers of its cells frame."""
    values = {
        (study_name, cell, metric, seed): value
        for study_name, cell, metric, seed, value in zip(
            cells["study"], cells["cell"], cells["metric"], cells["seed"], cells["value"], strict=True
        )
    }
    reasons = {(hole.study, hole.cell, hole.seed, hole.what): hole for hole in missing}
    names = [table.name for member in study.members for table in member.tables]
    filled = []
    for member in study.members:
        for table in member.tables:
            name = table.name if names.count(table.name) == 1 else f"{member.name}.{table.name}"
            marks: dict[str, str] = {}
            rows = tuple(_fill_row(study, member, table, row, values, reasons, marks) for row in table.rows)
            notes = {mark: text for text, mark in marks.items()}
            filled.append(FilledTable(name, table, study.recipe, study.seeds, rows, notes))
    return filled


def _fill_row(
    plan: StudyPlan,
    member: Study,
    table: Table,
    row: TableRow,
    values: dict[tuple[str, str, str, int], float],
    reasons: dict[tuple[str, str, int, str], Hole],
    marks: dict[str, str],
) -> Row:
    metric, kind = table_metric(table), table.metric.split("/")[0]
    by_seed = {seed: values.get((member.name, row.cell, metric, seed)) for seed in plan.seeds}
    lacking: dict[str, list[int]] = {}
    for seed in (seed for seed, value in by_seed.items() if value is None):
        hole = reasons.get((member.name, row.cell, seed, "training")) or reasons.get(
            (member.name, row.cell, seed, kind)
        )
        reason = f"{hole.what.replace('_', ' ')} {hole.reason}" if hole else f"{metric} does not apply here"
        lacking.setdefault(reason, []).append(seed)
    texts = [
        f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {reason}"
        for reason, seeds in lacking.items()
    ]
    here = tuple(marks.setdefault(text, letters(len(marks))) for text in texts)
    known = [value for value in by_seed.values() if value is not None]
    ours = mean_interval(known) if known else None
    return Row(member.name, row.cell, row.columns, by_seed, ours, row.paper, here)


def letters(index: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    text = ""
    while index >= 0:
        index, remainder = divmod(index, 26)
        text, index = chr(ord("a") + remainder) + text, index - 1
    return text


# --- numbers as text ----------------------------------------------------------------------------


def number(value: float, metric: str, sign: bool = False) -> str:
    """Percentages and ranks with one decimal, as the paper prints them; anything else with three."""
    decimals = 1 if metric.endswith(("top1", "top5", "rankme")) else 3
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    if sign and float(text) == 0:
        text = text[1:]
    return text.replace("-", "−")


def interval_text(interval: Interval | None, metric: str) -> str:
    if interval is None:
        return NONE
    half = interval.half_width
    return number(interval.mean, metric) + (f" ± {number(half, metric)}" if half is not None else "")


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
        identity = (*row.columns, row.study, row.cell, table.recipe, table_metric(table.spec))
        lines.append([*identity, *ours, row.paper, row.difference, *row.values.values(), notes])
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


def to_latex(table: FilledTable) -> str:
    """A floating table for a paper. Needs the packages booktabs and, for ticks, amssymb."""
    alignment = "".join("c" if ticks else "l" for ticks in table.ticked) + "rrrr"
    header = [*map(escape.latex, table.header[:-1]), "$n$"]
    body = []
    for row in table.rows:
        ours, *others = (_math(text) for text in table.texts(row))
        marks = f"\\textsuperscript{{{','.join(row.marks)}}}" if row.marks else ""
        body.append([*map(escape.latex, row.columns), ours + marks, *others])
    legend = escape.latex(" ".join(table.legend))
    for text, symbols in (("t interval over n", "$t$ interval over $n$"), ("n = 1:", "$n = 1$:")):
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
    """94.3 ± 1.2 -> $94.3 \\pm 1.2$; a dash stays text."""
    if text in ("", NONE):
        return escape.latex(text)
    return "$" + text.replace("±", r"\pm").replace("−", "-") + "$"


# --- terminal -----------------------------------------------------------------------------------


def console_tables(study: StudyPlan, records: Records) -> list[RichTable]:
    """All tables of a study for a terminal."""
    return [console(table) for table in fill(study, cells_frame(study, records), holes(study, records))]


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
