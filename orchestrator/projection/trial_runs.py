"""A child run for each trial of a study: parameters, numbers, and the files that figures and claims need."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from orchestrator.measured import metric_name
from orchestrator.plan import Plan, PlannedCell, StudyPlan
from orchestrator.projection.content import TAG_LIMIT, Artifact, Point, RunContent, canonical, milliseconds
from orchestrator.projection.parameters import ABSENT, parameters
from orchestrator.records import Arrays, Record
from orchestrator.report.escape import one_line
from orchestrator.report.frames import Records
from orchestrator.report.statistics import mean_interval
from trainers.config import ToyRun, TrialConfig
from trainers.files import HISTORY, SPECTRA

TOYS = "toys.json"
"""A child's file with the configurations and values of toy networks."""


def children(
    plan: Plan, study: StudyPlan, records: Records, folder: Callable[[str], Path]
) -> list[RunContent]:
    """A run for each trial of a study that finished or failed, in the order of the plan.

    Args:
        folder: where a trial's files lie, for those that are no records.
    """
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
            contents.append(_child(plan, study, records, cells, record, failure, folder(key)))
    return contents


def _child(
    plan: Plan,
    study: StudyPlan,
    records: Records,
    cells: list[PlannedCell],
    record: Record | None,
    failure: Record | None,
    folder: Path,
) -> RunContent:
    config = plan.trials[cells[0].trial]
    is_toy = isinstance(config, ToyRun)
    facts = _Facts(_identity_tags(study, config, cells))
    if record:
        facts.tags |= _record_tags(record)
        (_tell_toys if is_toy else _tell_training)(facts, records, cells, record, folder)
    if failure:
        shown = {name: failure[name] for name in ("error", "type", "when") if name in failure}
        facts.tags |= {"error": one_line(failure["error"], 2000), "failure": canonical(shown)}
    when = milliseconds(failure["when"]) if failure and failure.get("when") else None
    return RunContent(
        key=cells[0].trial,
        name=f"{cells[0].study} toy networks" if is_toy else f"{cells[0].name} seed {cells[0].seed}",
        status="FAILED" if failure else "FINISHED",
        start=milliseconds(record["started"]) if record else when,
        end=milliseconds(record["finished"]) if record else when,
        params=parameters(study, config, cells),
        tags=facts.tags,
        metrics=facts.metrics,
        artifacts=facts.artifacts,
    )


@dataclass
class _Facts:
    """What is gathered of one child."""

    tags: dict[str, str]
    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)


def _identity_tags(
    study: StudyPlan, config: TrialConfig | ToyRun, cells: list[PlannedCell]
) -> dict[str, str]:
    tags = {
        "kind": "toy" if isinstance(config, ToyRun) else "trial",
        "study": study.name,
        "recipe": study.recipe,
        "trial_key": cells[0].trial,
        "cells": ", ".join(dict.fromkeys(cell.name for cell in cells))[:TAG_LIMIT],
    }
    if isinstance(config, ToyRun):
        return tags | {"label": f"{len(config.cases)} cases of {config.networks} networks"}
    return tags | {"label": cells[0].label, "data.root": config.data.root or ABSENT}


def _tell_training(
    facts: _Facts, records: Records, cells: list[PlannedCell], record: Record, folder: Path
) -> None:
    """Curves, spectra, and each evaluation with its per-example results."""
    key, finished = cells[0].trial, record["finished"]
    facts.artifacts[HISTORY] = Artifact(finished, lambda: _json_lines(records.history(key)))
    if (folder / SPECTRA).is_file():
        facts.artifacts[SPECTRA] = Artifact(finished, (folder / SPECTRA).read_bytes)
    for slot, evaluation_key, kind in _slots(cells):
        evaluation = records.evaluation_record(evaluation_key)
        if evaluation is None:
            continue
        names = {name: f"eval/{_evaluation_metric(slot, kind, name)}" for name in evaluation["metrics"]}
        facts.metrics |= {
            names[name]: (float(value), milliseconds(evaluation["finished"]))
            for name, value in evaluation["metrics"].items()
        }
        facts.tags[f"evaluation.{slot}"] = canonical({**_kept(evaluation), "metrics": names})
        facts.artifacts[arrays_path(evaluation_key)] = Artifact(
            evaluation["finished"], functools.partial(_npz, records.evaluation_arrays, evaluation_key)
        )


def _tell_toys(
    facts: _Facts, records: Records, cells: list[PlannedCell], record: Record, folder: Path
) -> None:
    """Each case's means; all values and configurations as one file, since a tag is too short for them."""
    key, finished, when = cells[0].trial, record["finished"], milliseconds(record["finished"])
    names = {cell.case: cell.cell for cell in reversed(cells)}
    facts.metrics = {
        f"theory/{names[case]}/{metric.removeprefix('theory/')}": (mean_interval(values).mean, when)
        for case, metrics in enumerate(record.get("cases", []))
        if case in names
        for metric, values in metrics.items()
    }
    toys = {"config": record["config"], "cases": record.get("cases", [])}
    facts.artifacts[TOYS] = Artifact(finished, lambda: canonical(toys))
    facts.artifacts[arrays_path(key)] = Artifact(finished, functools.partial(_npz, records.trial_arrays, key))


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
    return tags | {"record": canonical(_kept(record))}


def _kept(record: Record) -> Record:
    """What of a record a tag holds; the configuration of toy networks may be too long for one."""
    kept = [
        "kind",
        "key",
        "started",
        "finished",
        "seconds",
        "epochs",
        "dataset",
        "numerics_version",
        "environment",
    ]
    kept += [] if record["kind"] == "toy" else ["config", "evaluation"]
    return {name: record[name] for name in kept if name in record}


def arrays_path(key: str) -> str:
    """Where a child keeps the arrays of an evaluation or of a run of toy networks."""
    return f"arrays/{key}.npz"


def _npz(read: Callable[[str], Arrays | None], key: str) -> bytes | None:
    arrays = read(key)
    if arrays is None:
        return None
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _json_lines(entries: list[dict[str, float]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)
