"""Every cell against every metric: one table for each group of studies that measure the same things."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from statistics import mean

import pandas as pd

from orchestrator.plan import StudyPlan
from orchestrator.report.numbers import NONE, number
from orchestrator.report.phrases import METRIC_LABELS
from orchestrator.report.uncertainty import Uncertainty

Values = dict[tuple[str, str, str], dict[int, float]]
"""(study, cell, metric) -> seed -> value."""


@dataclass(frozen=True)
class OverviewRow:
    """The means of one cell, as text; n is the number of seeds or networks."""

    study: str
    label: str
    n: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """All cells of some member studies against all their metrics.

    Attributes:
        spread: the standard deviation of one run by metric, over all cells of like spread; a dash where nothing is
            known of it.
    """

    metrics: tuple[str, ...]
    studies: dict[str, tuple[OverviewRow, ...]]
    spread: tuple[str, ...]

    @property
    def broad(self) -> bool:
        """Whether a page's text column is too narrow for it."""
        return len(self.metrics) > 8


def overviews(study: StudyPlan, cells: pd.DataFrame) -> list[Overview]:
    """One overview for all studies with the same evaluations, and one for all theory studies with the same metrics."""
    values: Values = {}
    columns = [cells[name] for name in ("study", "cell", "metric", "seed", "value")]
    for member, cell, metric, seed, value in zip(*columns, strict=True):
        values.setdefault((member, cell, metric), {})[seed] = value
    measured: dict[str, set[str]] = {}
    for member, _, metric in values:
        measured.setdefault(member, set()).add(metric)
    groups: dict[object, list[str]] = {}
    for member in study.members:
        if member.cells:
            group = frozenset(member.evaluations if member.toy is None else measured.get(member.name, ()))
            groups.setdefault((member.toy is None, group), []).append(member.name)
    return [_overview(study, members, measured, values) for members in groups.values()]


def _overview(
    study: StudyPlan, members: list[str], measured: dict[str, set[str]], values: Values
) -> Overview:
    order = {name: place for place, name in enumerate(METRIC_LABELS)}
    metrics = sorted(
        set().union(*(measured.get(member, set()) for member in members)),
        key=lambda name: (order.get(name, len(order)), name),
    )
    studies: dict[str, tuple[OverviewRow, ...]] = {}
    for member, cell, label in dict.fromkeys((cell.study, cell.cell, cell.label) for cell in study.cells):
        if member not in members:
            continue
        found = [values.get((member, cell, metric), {}) for metric in metrics]
        texts = tuple(
            number(mean(some.values()), metric) if some else NONE
            for some, metric in zip(found, metrics, strict=True)
        )
        row = OverviewRow(member, label, max(map(len, found), default=0), texts)
        studies[member] = (*studies.get(member, ()), row)
    return Overview(tuple(metrics), studies, _spreads(study, members, metrics, values))


def _spreads(study: StudyPlan, members: list[str], metrics: list[str], values: Values) -> tuple[str, ...]:
    """Of each metric, the spread pooled over all trainings, each once."""
    trained: dict[tuple[str, str], list[object]] = {}
    for cell in study.cells:
        if cell.study in members:
            trained.setdefault((cell.study, cell.cell), []).append((cell.seed, cell.trial, cell.case))
    texts = []
    for metric in metrics:
        once: dict[Hashable, dict[int, float]] = {}
        for (member, name), training in trained.items():
            finite = {
                seed: value
                for seed, value in values.get((member, name, metric), {}).items()
                if math.isfinite(value)
            }
            if finite:
                once.setdefault(tuple(training), finite)
        sd = Uncertainty(once).pooled.sd
        texts.append(NONE if sd is None else number(sd, metric))
    return tuple(texts)
