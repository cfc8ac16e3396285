"""What a table of ours shows, in a sentence that follows from its numbers alone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from orchestrator.report.numbers import number
from orchestrator.report.phrases import count, listed
from orchestrator.report.tables import FilledTable, Row

TIED = 1e-9
"""Means that differ by less than this share of themselves are equal but for float rounding."""


class Distinct(NamedTuple):
    """Rows that one training serves: one value under one label or several."""

    rows: tuple[Row, ...]
    mean: float
    labels: tuple[str, ...]


def ours(table: FilledTable) -> str:
    """Highest and lowest row, their distance with its interval, and how many pairs stand in the paper's order.

    Rows that one training serves are named together. Nothing is said of rows without a finite number but how many
    they are.
    """
    settings = _settings(table)
    lacking = sum(not row.known or len(row.known) < _given(row) for row in table.rows)
    missing = _missing(lacking, len(table.rows))
    if not settings:
        return missing
    if len(settings) == 1:
        (one,) = settings
        verb = "has" if len(one.labels) == 1 else "have"
        said = f"{listed(one.labels)} {verb} {_shown(one.mean, one, table)}: {_repeats(table, one)}."
    else:
        said = f"{_extremes(table, settings)} {_order(table, settings)}".rstrip()
    return f"{said} {missing}".rstrip()


def _given(row: Row) -> int:
    return sum(value is not None for value in row.values.values())


def _settings(table: FilledTable) -> list[Distinct]:
    """Distinct trainings with a finite mean, in the table's order."""
    rows: dict[Hashable, list[Row]] = {}
    for row in table.rows:
        if row.ours is not None and row.known and len(row.known) == _given(row):
            rows.setdefault(row.key, []).append(row)
    uses = Counter(label for some in rows.values() for label in {row.label for row in some})
    return [
        Distinct(tuple(some), some[0].ours.mean, tuple(dict.fromkeys(_quoted(row, uses) for row in some)))
        for some in rows.values()
        if some[0].ours
    ]


def _quoted(row: Row, uses: Counter[str]) -> str:
    """A cell's label; with what the table says of the row where two settings have the same one."""
    columns = ", ".join(text for text in row.columns if text)
    return f"“{row.label}”" if uses[row.label] == 1 else f"“{row.label}: {columns}”"


def _missing(lacking: int, rows: int) -> str:
    if not lacking:
        return ""
    if lacking == rows:
        return "No row has a number yet."
    return f"{lacking} of {rows} rows {'has' if lacking == 1 else 'have'} no number yet."


def _extremes(table: FilledTable, settings: Sequence[Distinct]) -> str:
    high, low = (choose(one.mean for one in settings) for choose in (max, min))
    if _equal(high, low):
        return f"All {len(settings)} settings have the same mean, {_shown(high, settings[0], table)}."
    top, bottom = ([one for one in settings if _equal(one.mean, end)] for end in (high, low))
    first = f"{_named(top)} highest, with {_shown(high, top[0], table)}"
    last = f"{_named(bottom, verb=False)} lowest, with {_shown(low, bottom[0], table)}"
    return f"{first}, and {last}: {_gap(table, top, bottom, len(settings))}."


def _named(some: Sequence[Distinct], verb: bool = True) -> str:
    """“A” is; “A” and “B” are."""
    labels = [label for one in some for label in one.labels]
    return f"{listed(labels)} {'are' if len(labels) > 1 else 'is'}" if verb else listed(labels)


def _gap(table: FilledTable, top: Sequence[Distinct], bottom: Sequence[Distinct], settings: int) -> str:
    """0.9 points apart (95 % interval ...)."""
    first, last = top[0], bottom[0]
    gap = first.mean - last.mean
    metric = first.rows[0].metric
    unit = " points" if metric.endswith(("top1", "top5")) else ""
    text = number(gap, metric, decimals=table.style.decimals)
    size = f"less than {_least(text)}" if float(text.replace("−", "-")) == 0 else text
    return f"{size}{unit} apart ({_interval(table, first, last, settings)})"


def _least(zero: str) -> str:
    """0.0 -> 0.1: one step of the last decimal."""
    return f"{zero[:-1]}1" if "." in zero else "1"


def _interval(table: FilledTable, first: Distinct, last: Distinct, settings: int) -> str:
    """The gap's interval, Bonferroni over all pairs, since these two were chosen for being farthest apart."""
    if max(len(one.rows[0].known) for one in (first, last)) == 1:
        return f"{_repeats(table, first)}, so no interval"
    pairs = settings * (settings - 1) // 2
    found = table.uncertainty.gap(first.rows[0].key, last.rows[0].key, 1 - 0.05 / pairs)
    if found is None:
        return "no interval"
    metric = first.rows[0].metric
    low, high = (number(end, metric, decimals=table.style.decimals) for end in found)
    widened = f", widened for the choice among {settings}" if settings > 2 else ""
    verdict = "" if found[0] > 0 else ": which is higher is open"
    return f"95 % interval {low} to {high}{widened}{verdict}"


def _order(table: FilledTable, settings: Sequence[Distinct]) -> str:
    """Pairs whose values differ in the paper, and how many of them come in its order here."""
    if not table.style.paper:
        return ""
    known = [(one.mean, row.paper) for one in settings for row in one.rows[:1] if row.paper is not None]
    pairs = [(a - b, p - q, _equal(a, b)) for (a, p), (b, q) in itertools.combinations(known, 2) if p != q]
    if not pairs:
        return ""
    agree = sum(not tied and mine * theirs > 0 for mine, theirs, tied in pairs)
    among = "" if len(known) == len(settings) else f" among the {len(known)} that it reports"
    if agree == len(pairs):
        return f"The order is the paper's{among}."
    if len(pairs) == 1:
        return f"The order is not the paper's{among}."
    return f"{agree} of {len(pairs)} pairs come in the paper's order{among}."


def _repeats(table: FilledTable, one: Distinct) -> str:
    return count(len(one.rows[0].known), "network" if table.networks else "seed")


def _shown(value: float, one: Distinct, table: FilledTable) -> str:
    return number(value, one.rows[0].metric, decimals=table.style.decimals)


def _equal(a: float, b: float) -> bool:
    return abs(a - b) <= TIED * max(abs(a), abs(b))
