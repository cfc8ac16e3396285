"""A run's parameters in MLflow: the same keys for all runs of an experiment, so that they compare and filter."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from orchestrator.overrides import at
from orchestrator.plan import PlannedCell, StudyPlan
from trainers import NUMERICS_VERSION, THEORY_VERSION
from trainers.config import ToyConfig, ToyRun, TrialConfig

ABSENT = "none"
VALUE_LIMIT = 6000
"""What MLflow takes of a parameter."""


def parameters(
    study: StudyPlan, config: TrialConfig | ToyRun, cells: Sequence[PlannedCell]
) -> dict[str, str]:
    """Of one trial: a training's fields, `toy.` fields, or both where the study has members of both kinds.

    Args:
        cells: that the trial serves.
    """
    is_toy = isinstance(config, ToyRun)
    keys: list[str] = []
    if any(cell.case is None for cell in study.cells):
        keys += [path for path in field_paths(TrialConfig) if path != "data.root"]
    if any(cell.case is not None for cell in study.cells):
        keys += ["toy.networks", "toy.seed", "toy.cases", *(f"toy.{name}" for name in ToyConfig.model_fields)]
    known = flatten_toys(config, cells) if isinstance(config, ToyRun) else flatten(config)
    version = THEORY_VERSION if is_toy else NUMERICS_VERSION
    return {key: known.get(key, ABSENT) for key in keys} | {"numerics_version": str(version)}


def flatten(config: TrialConfig) -> dict[str, str]:
    """A trial's configuration with the same keys whatever its head, backbone or optimizer.

    Fields of the other kinds are "none". Where the data lie is left out: it may differ at a relaunch.
    """
    content = config.model_dump(mode="json")
    return {path: _text(at(content, path)) for path in field_paths(TrialConfig) if path != "data.root"}


def flatten_toys(run: ToyRun, cells: Sequence[PlannedCell]) -> dict[str, str]:
    """A run of toy networks: its cases by the names of their cells, and each field's value, or values by case."""
    names = {cell.case: cell.cell for cell in reversed(cells)}
    flat = {
        "toy.networks": str(run.networks),
        "toy.seed": str(run.seed),
        "toy.cases": ", ".join(names[case] for case in sorted(names, key=lambda case: case or 0)),
    }
    for field in ToyConfig.model_fields:
        values = [getattr(case, field) for case in run.cases]
        flat[f"toy.{field}"] = _text(values[0] if len(set(values)) == 1 else values)
    return {key: value[:VALUE_LIMIT] for key, value in flat.items()}


def field_paths(model: type[BaseModel]) -> list[str]:
    """Dotted paths of all fields, through nested models and every member of a union."""
    paths: dict[str, None] = {}
    for name, info in model.model_fields.items():
        nested = _models(info.annotation)
        paths |= dict.fromkeys(f"{name}.{below}" for member in nested for below in field_paths(member))
        if not nested:
            paths[name] = None
    return list(paths)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for member in typing.get_args(annotation) for model in _models(member)]
    return []


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value)
