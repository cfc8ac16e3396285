"""Fills a real store with records of a finished study, true to their schema, without training anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from orchestrator.plan import Plan
from orchestrator.store import Store
from trainers.config import EvaluationConfig, TrialConfig
from trainers.files import HISTORY

START = datetime(2026, 11, 21, 23, 10, 0, 123456, tzinfo=UTC)
EPOCHS = 5
ENVIRONMENT: dict[str, Any] = {
    "executor": "inline",
    "workers": 1,
    "cpus_per_worker": 1,
    "gpus_per_worker": 0,
    "device": "cpu",
    "cpu": "Some CPU @ 2.00GHz",
    "versions": {"python": "3.12.1", "torch": "2.14.1", "ray": "2.60.0", "numpy": "2.4.6"},
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "peak_memory_bytes": 700 * 2**20,
}
BASE = {"mlp": 96.0, "linear": 94.0, "none": 88.0, "subvector": 95.0, "orthogonal": 88.5, "diagonal": 93.0,
        "low_rank": 94.5}  # fmt: skip

Top1 = Callable[[TrialConfig], float]


def top1(config: TrialConfig) -> float:
    """A top-1 accuracy in percent that differs by head and seed."""
    return BASE[config.head.kind] + 0.3 * config.seed


def fill(
    plan: Plan,
    store: Store,
    *,
    fail: Collection[str] = (),
    skip: Collection[str] = (),
    without: Collection[str] = (),
    top1: Top1 = top1,
) -> None:
    """Commit every trial of a plan and its evaluations.

    Args:
        fail: keys of trials that failed.
        skip: keys of trials that were never started.
        without: kinds of evaluation that are left out.
        top1: what the linear probe finds.
    """
    store.prepare()
    for position, (key, config) in enumerate(plan.trials.items()):
        if key in skip:
            continue
        if key in fail:
            error = f"NonFiniteLossError: loss is not finite at step 17 of {config.head.kind}"
            store.fail_trial(key, {"error": error, "type": "NonFiniteLossError", "traceback": "…",
                                   "when": stamp(20 * position + 3)})  # fmt: skip
            continue
        if store.trial_record(key) is None:
            commit_trial(store, key, config, plan.recipe.name, at=20.0 * position)
        for evaluation, (trial, protocol) in plan.evaluations.items():
            if trial == key and protocol.kind not in without and store.evaluation_record(evaluation) is None:
                commit_evaluation(store, evaluation, key, protocol, top1(config), at=20.0 * position + 13)


def commit_trial(store: Store, key: str, config: TrialConfig, recipe: str, at: float) -> None:
    history = [
        {
            "loss": 5 / (epoch + 1) + 0.01 * config.seed,
            "online_top1": 50 + 8.0 * epoch,
            "epoch": epoch,
            "lr": 4.8 / (epoch + 1),
            "seconds": 2.4,
            "images_per_second": 533.3,
        }
        for epoch in range(EPOCHS)
    ]
    content = config.model_dump(mode="json")
    directory = store.begin_trial(key, content)
    (directory / HISTORY).write_text("".join(json.dumps(entry) + "\n" for entry in history))
    store.commit_trial(
        key,
        {
            "kind": "trial",
            "key": key,
            "recipe": recipe,
            "config": content,
            "numerics_version": 1,
            "started": stamp(at),
            "finished": stamp(at + 12.5),
            "seconds": 12.3,
            "epochs": EPOCHS,
            "metrics": history[-1],
            "dataset": {"name": config.data.kind, "fingerprint": "5" * 64},
            "environment": ENVIRONMENT,
        },
    )


def commit_evaluation(
    store: Store, key: str, trial: str, protocol: EvaluationConfig, accuracy: float, at: float
) -> None:
    metrics = {
        "linear_probe": {"top1": accuracy, "top5": 99.5, "loss": 0.25},
        "subvector_probe": {"top1": accuracy - 10, "top5": 98.5, "loss": 0.5},
        "knn": {"top1": accuracy - 1, "top5": 99.0},
        "spectrum": {
            "representation/rankme": accuracy / 3,
            "embedding/rankme": accuracy / 4,
            "representation/collapsed_fraction": 0.125,
        },
    }[protocol.kind]
    arrays = {"representation_singular_values": np.geomspace(1, 1e-6, 8)}
    if protocol.kind != "spectrum":
        arrays = {"correct": np.arange(500) < 5 * accuracy}
    record = {
        "kind": "evaluation",
        "key": key,
        "trial": trial,
        "evaluation": protocol.model_dump(mode="json"),
        "metrics": metrics,
        "numerics_version": 1,
        "started": stamp(at),
        "finished": stamp(at + 0.7),
        "seconds": 0.7,
        "environment": ENVIRONMENT,
    }
    store.commit_evaluation(key, protocol.model_dump(mode="json"), record, arrays)


def stamp(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()
