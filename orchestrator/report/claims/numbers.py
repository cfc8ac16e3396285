"""Records as the numbers that claims are judged by: each cell's, and the spread that trained cells share."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.exhibits import Claim
from orchestrator.plan import PlannedCell, StudyPlan
from orchestrator.report.claims.comparisons import CellNumbers
from orchestrator.report.frames import Records
from orchestrator.report.spread import Pool


def cell_numbers(
    study: StudyPlan, cells: pd.DataFrame, records: Records
) -> dict[tuple[str, str], CellNumbers]:
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
            name=name,
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


def named_cells(study: StudyPlan, owner: str, claim: Claim) -> list[tuple[str, str]]:
    """(study, cell) of a claim's cells in its order, repeats included; where it names none, all of its study's."""
    if claim.cells:
        split = [cell.rpartition("/") for cell in claim.cells]
        return [(where or owner, name) for where, _, name in split]
    everything = owner == study.study.name
    return list(
        dict.fromkeys((one.study, one.cell) for one in study.cells if everything or one.study == owner)
    )


def pools(cells: Iterable[CellNumbers]) -> dict[str, Pool]:
    """Metric -> the values of all trained cells that have it; cells that one training serves are in it once."""
    gathered: dict[str, dict[object, dict[int, float]]] = {}
    for cell in cells:
        if cell.looks:
            for metric, seeds in cell.values.items():
                gathered.setdefault(metric, {}).setdefault(cell.training, {}).update(seeds)
    return {metric: Pool(values) for metric, values in gathered.items()}
