"""Records -> what MLflow should hold of them, as plain data. Needs no MLflow.

A projection is a function of plan and records alone: no clock, no random names. Its hash tells
whether what was written before is still right.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from orchestrator.plan import Plan, PlannedCell, StudyPlan
from orchestrator.report.escape import one_line
from orchestrator.report.frames import Hole, Records, metric_name
from orchestrator.report.render import Report, table_files
from orchestrator.report.statistics import mean_interval
from orchestrator.report.tables import to_markdown
from orchestrator.store import Record
from trainers import NUMERICS_VERSION
from trainers.config import TrialConfig

VERSION = 1
"""Part of every hash: raised when runs should be written anew though their records are the same."""

ABSENT = "none"
TAG_LIMIT = 8000

Point = tuple[str, float, int, int]
"""Metric, value, milliseconds since 1970, step."""


@dataclass(frozen=True)
class RunContent:
    """What one run should hold.

    Attributes:
        key: the trial's key; empty for the parent.
        status: MLflow's word: FINISHED, FAILED or RUNNING (incomplete).
        start, end: milliseconds since 1970; None: not known, or not yet.
        metrics: values with their time, of which the last written counts.
        artifacts: path -> text.
    """

    key: str
    name: str
    status: str
    start: int | None
    end: int | None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        content = [self.name, self.status, self.start, self.end, self.params, self.tags, self.metrics]
        return _hash([VERSION, *content, self.artifacts])


# --- children: one per trial --------------------------------------------------------------------


def children(plan: Plan, study: StudyPlan, records: Records) -> list[RunContent]:
    """A run for each trial of a study that finished or failed, in the order of the plan."""
    showing: dict[str, list[PlannedCell]] = {}
    for cell in study.cells:
        showing.setdefault(cell.trial, []).append(cell)
    contents = []
    for key, cells in showing.items():
        record, failure = records.trial_record(key), records.trial_failure(key)
        keys = {evaluation for cell in cells for evaluation in cell.evaluations.values()}
        if record and all(records.evaluation_record(evaluation) for evaluation in keys):
            failure = None  # of an attempt that has been made up for
        if record or failure:
            contents.append(_child(plan, study, records, cells, record, failure))
    return contents


def _child(
    plan: Plan,
    study: StudyPlan,
    records: Records,
    cells: list[PlannedCell],
    record: Record | None,
    failure: Record | None,
) -> RunContent:
    key, config = cells[0].trial, plan.trials[cells[0].trial]
    tags = {
        "kind": "trial",
        "study": study.name,
        "recipe": study.recipe,
        "trial_key": key,
        "cells": ", ".join(cell.name for cell in cells)[:TAG_LIMIT],
        "label": cells[0].label,
        "data.root": config.data.root or ABSENT,
    }
    metrics: dict[str, tuple[float, int]] = {}
    if record:
        tags |= _record_tags(record)
        for slot, evaluation_key, kind in _slots(cells):
            if evaluation := records.evaluation_record(evaluation_key):
                names = {
                    name: f"eval/{_evaluation_metric(slot, kind, name)}" for name in evaluation["metrics"]
                }
                metrics |= {
                    names[name]: (float(value), milliseconds(evaluation["finished"]))
                    for name, value in evaluation["metrics"].items()
                }
                tags[f"evaluation.{slot}"] = _json({**_facts(evaluation), "metrics": names})
    if failure:
        shown = {name: failure[name] for name in ("error", "type", "when") if name in failure}
        tags |= {"error": one_line(failure["error"], 2000), "failure": _json(shown)}
    when = milliseconds(failure["when"]) if failure and failure.get("when") else None
    return RunContent(
        key=key,
        name=f"{cells[0].name} seed {cells[0].seed}",
        status="FAILED" if failure else "FINISHED",
        start=milliseconds(record["started"]) if record else when,
        end=milliseconds(record["finished"]) if record else when,
        params=flatten(config) | {"numerics_version": str(NUMERICS_VERSION)},
        tags=tags,
        metrics=metrics,
    )


def history_points(record: Record, history: list[dict[str, float]]) -> list[Point]:
    """A training's curves, spread evenly over its time: history has no clock, and a resumed one had pauses."""
    start, end = milliseconds(record["started"]), milliseconds(record["finished"])
    points = []
    for position, entry in enumerate(history, start=1):
        when = start + round((end - start) * position / len(history))
        step = int(entry["epoch"])
        points += [(f"pretrain/{name}", float(v), when, step) for name, v in entry.items() if name != "epoch"]
    return points


def _slots(cells: list[PlannedCell]) -> list[tuple[str, str, str]]:
    """(slot, evaluation key, kind): a slot is the kind, and for further protocols of a kind has the key's start."""
    slots: dict[str, tuple[str, str, str]] = {}
    for cell in cells:
        for kind, key in cell.evaluations.items():
            if key not in {taken for _, taken, _ in slots.values()}:
                slot = kind if kind not in slots else f"{kind}.{key[:8]}"
                slots[slot] = (slot, key, kind)
    return list(slots.values())


def _evaluation_metric(slot: str, kind: str, name: str) -> str:
    return metric_name(kind, name) if slot == kind else f"{slot}/{name}"


def _record_tags(record: Record) -> dict[str, str]:
    """`record` holds what the report needs; the rest is for people who search."""
    environment, dataset = record["environment"], record.get("dataset", {})
    shown = {name: environment.get(name) for name in ("executor", "workers", "device", "cpu", "commit")}
    shown |= {f"dataset.{name}": value for name, value in dataset.items()}
    tags = {name: str(value) for name, value in shown.items() if value is not None}
    return tags | {"record": _json({**_facts(record), "epochs": record["epochs"], "dataset": dataset})}


def _facts(record: Record) -> Record:
    kept = ("key", "started", "finished", "seconds", "numerics_version", "environment")
    return {name: record[name] for name in kept if name in record}


# --- parameters ---------------------------------------------------------------------------------


def flatten(config: TrialConfig) -> dict[str, str]:
    """A trial's configuration with the same keys whatever its head, backbone or optimizer.

    Fields of the other kinds are "none". Where the data lie is left out: it may differ at a relaunch.
    """
    content = config.model_dump(mode="json")
    return {path: _text(_at(content, path)) for path in field_paths(TrialConfig) if path != "data.root"}


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


def _at(content: Any, path: str) -> Any:
    for part in path.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value)


# --- the parent ---------------------------------------------------------------------------------


def parent(report: Report) -> RunContent:
    """The study's run: each cell's mean, interval and n, the tables and cells.csv."""
    facts, study = report.provenance, report.study
    files = table_files(report)
    tags = {
        "kind": "study",
        "study": study.name,
        "recipe": study.recipe,
        "seeds": ", ".join(map(str, study.seeds))[:TAG_LIMIT],
        "overrides": _json(facts["overrides"])[:TAG_LIMIT],
        "mlflow.note.content": _note(report),
    }
    return RunContent(
        key="",
        name=study.name,
        status=_status(report.missing),
        start=milliseconds(facts["started"]) if facts["started"] else None,
        end=milliseconds(facts["finished"]) if facts["finished"] else None,
        tags=tags,
        metrics=_cell_metrics(report),
        artifacts=files,
    )


def _cell_metrics(report: Report) -> dict[str, tuple[float, int]]:
    when = milliseconds(report.provenance["finished"]) if report.provenance["finished"] else 0
    metrics: dict[str, tuple[float, int]] = {}
    for (study, cell, metric), group in report.cells.groupby(["study", "cell", "metric"], sort=False):
        interval = mean_interval(group["value"].tolist())
        values = {
            "mean": interval.mean,
            "ci_low": interval.low,
            "ci_high": interval.high,
            "n": float(interval.n),
        }
        metrics |= {
            f"cells/{study}/{cell}/{metric}/{name}": (value, when)
            for name, value in values.items()
            if value is not None
        }
    return metrics


def _status(missing: list[Hole]) -> str:
    if not missing:
        return "FINISHED"
    return "FAILED" if all(hole.reason.startswith("failed") for hole in missing) else "RUNNING"


def _note(report: Report) -> str:
    """The tables as the run's description, as many as fit."""
    note = ""
    for table in report.tables:
        longer = f"{note}{to_markdown(table)}\n"
        if len(longer) > TAG_LIMIT:
            break
        note = longer
    return note


# --- helpers ------------------------------------------------------------------------------------


def milliseconds(stamp: str) -> int:
    """An ISO 8601 time with zone as milliseconds since 1970."""
    when = datetime.fromisoformat(stamp)
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
