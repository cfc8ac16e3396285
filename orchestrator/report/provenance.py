"""Where a report's numbers come from: code, machines, data, seeds, times, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Any

from orchestrator.freshness import different_data, reused
from orchestrator.plan import Plan, PlannedCell, StudyPlan
from orchestrator.records import Record
from orchestrator.report.frames import Hole, Records
from trainers.config import ToyRun

_NO_HARDWARE = ("versions", "commit", "code", "peak_memory_bytes", "executor")


def provenance(plan: Plan, study: StudyPlan, records: Records, missing: Sequence[Hole]) -> dict[str, Any]:
    """All facts beside the numbers, from the records alone: the same records give the same answer at any time.

    Returns:
        Plain data for JSON. Durations in seconds; `training_seconds`, `toy_seconds` and `evaluation_seconds`
        are sums over runs, each counted once however many cells show it. `trials_*` count trainings,
        `toys_*` runs of toy networks.
    """
    showing: dict[str, list[PlannedCell]] = {}
    for cell in study.cells:
        showing.setdefault(cell.trial, []).append(cell)
    toys = [key for key in showing if isinstance(plan.trials[key], ToyRun)]
    trainings = [key for key in showing if key not in toys]
    trained, simulated = (
        [record for key in keys if (record := records.trial_record(key))] for keys in (trainings, toys)
    )
    evaluations = dict.fromkeys(key for cell in study.cells for key in cell.evaluations.values())
    evaluated = [record for key in evaluations if (record := records.evaluation_record(key))]
    runs = trained + simulated
    everything = runs + evaluated
    return {
        "study": study.study.name,
        "title": study.study.title,
        "source": study.study.source,
        "recipe": study.recipe,
        "seeds": list(study.seeds),
        "seeds_by_cell": _seeds_by_cell(study),
        "overrides": plan.overrides,
        "trials_planned": len(trainings),
        "trials_done": len(trained),
        "toys_planned": len(toys),
        "toys_done": len(simulated),
        "evaluations_planned": len(evaluations),
        "evaluations_done": len(evaluated),
        "started": min((record["started"] for record in everything), default=None),
        "finished": max((record["finished"] for record in everything), default=None),
        "training_seconds": fsum(record["seconds"] for record in trained),
        "toy_seconds": fsum(record["seconds"] for record in simulated),
        "evaluation_seconds": fsum(record["seconds"] for record in evaluated),
        "peak_memory_bytes": max((_memory(record) for record in everything), default=0) or None,
        "numerics_versions": sorted({record["numerics_version"] for record in everything}),
        "commits": _distinct(record["environment"].get("commit") for record in everything),
        "versions": _versions(everything),
        "hardware": _hardware(runs),
        "executors": _distinct(record["environment"].get("executor") for record in runs),
        "datasets": _distinct(
            {"name": record["dataset"]["name"], "fingerprint": record["dataset"]["fingerprint"]}
            for record in trained
        ),
        "warnings": different_data(reused(plan, study.cells, records)),
        "missing": [
            {"study": hole.study, "cell": hole.cell, "seed": hole.seed, "what": hole.what, "trial": hole.trial,
             "reason": hole.reason}
            for hole in missing
        ],
        "trials": {key: _trial(plan, key, cells, records) for key, cells in showing.items()},
    }  # fmt: skip


def _seeds_by_cell(study: StudyPlan) -> dict[str, list[int]]:
    """Of the trained cells, which may differ in how many seeds they have."""
    seeds: dict[str, list[int]] = {}
    for cell in study.cells:
        if cell.case is None:
            seeds.setdefault(cell.name, []).append(cell.seed)
    return seeds


def _trial(plan: Plan, key: str, cells: list[PlannedCell], records: Records) -> dict[str, Any]:
    """One trial and its evaluations, under their keys in the store."""
    record = records.trial_record(key)
    evaluations = {}
    for kind, evaluation in dict.fromkeys(pair for cell in cells for pair in cell.evaluations.items()):
        if done := records.evaluation_record(evaluation):
            evaluations[evaluation] = {"kind": kind, "finished": done["finished"], "seconds": done["seconds"]}
    facts: dict[str, Any] = {
        "kind": "toy networks" if isinstance(plan.trials[key], ToyRun) else "training",
        "cells": list(dict.fromkeys(cell.name for cell in cells)),
        "seed": plan.trials[key].seed,
        "config": plan.trials[key].model_dump(mode="json"),
        "evaluations": evaluations,
    }
    if record is None:
        return facts | {"done": False}
    kept = ("started", "finished", "seconds", "epochs", "dataset", "environment", "numerics_version")
    return facts | {"done": True} | {name: record[name] for name in kept if name in record}


def _distinct(values: Any) -> list[Any]:
    """Values in order of first appearance, each once, without None."""
    found: list[Any] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found


def _versions(records: list[Record]) -> dict[str, list[str]]:
    """Package -> the versions that took part; more than one means mixed machines or times."""
    found: dict[str, list[str]] = {}
    for record in records:
        for package, version in record["environment"].get("versions", {}).items():
            if str(version) not in found.setdefault(package, []):
                found[package].append(str(version))
    return {package: sorted(found[package]) for package in sorted(found)}


def _hardware(records: list[Record]) -> list[dict[str, Any]]:
    """Each kind of place where trials ran, with their number."""
    places: list[dict[str, Any]] = []
    for record in records:
        facts = {name: value for name, value in record["environment"].items() if name not in _NO_HARDWARE}
        known = next((place for place in places if place["facts"] == facts), None)
        if known is None:
            places.append(known := {"facts": facts, "trials": 0})
        known["trials"] += 1
    return [{**place["facts"], "trials": place["trials"]} for place in places]


def _memory(record: Record) -> int:
    return int(record["environment"].get("peak_memory_bytes") or 0)
