"""Every cell against every metric: one table for each group of studies that measure the same things."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from orchestrator.plan import StudyPlan
from orchestrator.report.numbers import interval_text
from orchestrator.report.phrases import METRIC_LABELS
from orchestrator.report.statistics import mean_interval


@dataclass(frozen=True)
class OverviewRow:
    """One cell against the metrics of its overview, as text; n is the number of seeds or networks."""

    study: str
    label: str
    n: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """All cells of some member studies against all their metrics."""

    metrics: tuple[str, ...]
    studies: dict[str, tuple[OverviewRow, ...]]

    @property
    def broad(self) -> bool:
        """Whether a page's text column is too narrow for it."""
        return len(self.metrics) > 8


def overviews(study: StudyPlan, cells: pd.DataFrame) -> list[Overview]:
    """One overview for all studies with the same evaluations, and one for all theory studies with the same metrics."""
    values: dict[tuple[str, str, str], list[float]] = {}
    columns = [cells[name] for name in ("study", "cell", "metric", "value")]
    for member, cell, metric, value in zip(*columns, strict=True):
        values.setdefault((member, cell, metric), []).append(value)
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
    study: StudyPlan,
    members: list[str],
    measured: dict[str, set[str]],
    values: dict[tuple[str, str, str], list[float]],
) -> Overview:
    known = {name: place for place, name in enumerate(METRIC_LABELS)}
    metrics = sorted(
        set().union(*(measured.get(member, set()) for member in members)),
        key=lambda name: (known.get(name, len(known)), name),
    )
    studies: dict[str, tuple[OverviewRow, ...]] = {}
    for member, cell, label in dict.fromkeys((cell.study, cell.cell, cell.label) for cell in study.cells):
        if member not in members:
            continue
        found = [values.get((member, cell, metric), []) for metric in metrics]
        texts = tuple(
            interval_text(mean_interval(some) if some else None, metric)
            for some, metric in zip(found, metrics, strict=True)
        )
        row = OverviewRow(member, label, max(map(len, found), default=0), texts)
        studies[member] = (*studies.get(member, ()), row)
    return Overview(tuple(metrics), studies)
