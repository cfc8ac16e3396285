"""Single runs beside their row: where their dots stand, and what a screen reader says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.report.numbers import number
from orchestrator.report.tables import FilledTable, Row

WIDTH, MARGIN = 132, 4
"""In pixels; dots at the ends keep off the margin."""
MOST_SPOKEN = 12
"""Values that a screen reader is given one by one; of more it gets the range."""


@dataclass(frozen=True)
class Strip:
    """A row's runs on the scale that all rows of its table share.

    Attributes:
        places: of the dots, in pixels from the left.
        mean: place of a bar; None for a single run.
        spoken: the same in words.
    """

    places: tuple[str, ...]
    mean: str | None
    spoken: str


def scale(table: FilledTable) -> tuple[float, float] | None:
    """Least and greatest value of all rows; None where nothing varies."""
    values = [value for row in table.rows for value in row.known.values()]
    if not values or min(values) == max(values):
        return None
    return min(values), max(values)


def ends(table: FilledTable) -> tuple[str, str] | None:
    """Both ends of the scale as numbers."""
    found = scale(table)
    if found is None:
        return None
    metric = next(row.metric for row in table.rows if row.known)
    low, high = (number(end, metric, decimals=table.style.decimals) for end in found)
    return low, high


def strip(table: FilledTable, row: Row) -> Strip | None:
    """None where there is no scale or no number."""
    found = scale(table)
    if found is None or not row.known:
        return None
    low, high = found
    values = row.known

    def place(value: float) -> str:
        return f"{MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN):.1f}"

    mean = place(sum(values.values()) / len(values)) if len(values) > 1 else None
    spoken = _spoken(values, row.metric, "network" if table.networks else "seed")
    return Strip(tuple(map(place, values.values())), mean, spoken)


def _spoken(values: Mapping[int, float], metric: str, drawn: str) -> str:
    if len(values) <= MOST_SPOKEN:
        return ", ".join(f"{drawn} {seed}: {number(value, metric)}" for seed, value in values.items())
    low, high = (number(end, metric) for end in (min(values.values()), max(values.values())))
    return f"{len(values)} {drawn}s from {low} to {high}"
