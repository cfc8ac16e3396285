"""Fills a real store with records of a finished study, true to their schema, without training anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.plan import Plan
from orchestrator.store import Store
from trainers.config import EvaluationConfig, ToyConfig, ToyRun, TrialConfig
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
        "low_rank": 94.5, "dropout": 80.0, "grouped": 91.0}  # fmt: skip

TRAINED = """
name: trained
title: Projectors at three scales
source: Section 6.2 and Appendix F
summary: Does a subvector of the representation serve the loss as well as a projector does?
seeds: [0, 1]
cells:
  - {name: mlp, label: 2-layer projector, set: {head: {kind: mlp}}}
  - {name: none, label: no projector, set: {head: {kind: none}}}
  - {name: half, label: DirectCLR with half of the features, set: {head: {kind: subvector, d0: 1/2}}}
  - {name: all, label: DirectCLR with all features, set: {head: {kind: subvector, d0: 1/1}}}
evaluations: [linear_probe, subvector_probe, knn, spectrum]
tables:
  - name: probes
    title: What the loss leaves outside of its subvector.
    source: Appendix F
    columns: [Probe]
    rows:
      - {cell: mlp, columns: [whole vector of SimCLR]}
      - {cell: half, columns: [whole vector], paper: 62.7}
      - {cell: half, columns: [subvector], paper: 47.9, metric: subvector_probe/top1}
figures:
  - kind: spectrum
    name: spectra
    title: Spectrum of the representation.
    source: Figure 9
    subject: representation
    panels: [{title: SimCLR, cells: [mlp, none]}, {title: DirectCLR, cells: [half]}]
  - kind: curve
    name: sweep
    title: Accuracy against d0.
    source: Figure 12
    cells: [half, all]
    line: none
    paper: [{cell: half, paper: 62.7}]
  - {kind: training, name: live, title: Collapse as it happens., source: not in the paper, cells: [mlp, none],
     metrics: [representation_rankme, loss]}
claims:
  - {name: order, group: 1, text: A projector exceeds none, source: Table 1, test: order, cells: [mlp, half, none]}
  - {name: same, group: 5, text: d0 = D is no projector, source: Appendix E, test: equivalent, cells: [all, none],
     margin: 1.0}
  - {name: bad, text: No projector exceeds the 2-layer one, source: nowhere, test: order, cells: [none, mlp]}
not_run: ["The random dropout of Appendix F: another study's."]
"""
"""A study that trains, with a row's own metric, figures of three kinds and claims with and without a group."""

THEORY = """
name: theory
title: One linear layer under strong augmentation
source: Section 4.2, Figure 3
summary: Augmentation noise that exceeds the data's variance makes singular values of the weights vanish.
toy: {dim: 4, noisy_dims: 2, networks: 3, samples: 64, batch_size: 16, iterations: 50, record_every: 10}
cells:
  - {name: weak, label: k = 0.1, set: {amplitude: 0.1}}
  - {name: strong, label: k = 2, set: {amplitude: 2.0}}
  - {name: deep, label: "k = 0.1, two layers", set: {amplitude: 0.1, layers: 2}}
tables:
  - name: collapse
    title: Collapsed directions of the embedding.
    source: Section 4.2
    metric: theory/collapsed_directions
    metric_label: Collapsed directions
    columns: [k]
    rows: [{cell: weak, columns: ["0.1"]}, {cell: strong, columns: ["2"]}]
figures:
  - {kind: toy_spectrum, name: weights, title: Singular values of W., source: Figure 3, of: weight, log: false,
     cells: [weak, strong]}
  - {kind: toy_alignment, name: alignment, title: Alignment of two layers., source: Figure 5, cell: deep}
claims:
  - {name: order, group: 7, text: Strong augmentation collapses more than weak, source: Theorem 1, test: order,
     cells: [strong, weak], metric: theory/collapsed_directions}
"""
"""A theory study: three cells, which are one run of toy networks."""

SUITE = """
name: suite
title: A paper in small
source: all of it
summary: One page of everything.
include: [trained, theory]
seeds: [0, 1]
not_run: ["ImageNet: 384 V100-hours a cell."]
"""
"""Both studies on one page."""

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
            name = "toy networks" if isinstance(config, ToyRun) else config.head.kind
            error = f"NonFiniteLossError: loss is not finite at step 17 of {name}"
            store.fail_trial(key, {"error": error, "type": "NonFiniteLossError", "traceback": "…",
                                   "when": stamp(20 * position + 3)})  # fmt: skip
            continue
        if store.trial_record(key) is None:
            commit = commit_toys if isinstance(config, ToyRun) else commit_trial
            commit(store, key, config, plan.recipe.name, at=20.0 * position)
        for evaluation, (trial, protocol) in plan.evaluations.items():
            if trial == key and protocol.kind not in without and store.evaluation_record(evaluation) is None:
                commit_evaluation(store, evaluation, key, protocol, top1(config), at=20.0 * position + 13)


def write_suite(folder: Path) -> Path:
    """The studies above as files; the suite's, which finds the others beside it."""
    for name, text in (("trained", TRAINED), ("theory", THEORY), ("suite", SUITE)):
        (folder / f"{name}.yaml").write_text(text)
    return folder / "suite.yaml"


def commit_trial(store: Store, key: str, config: TrialConfig, recipe: str, at: float) -> None:
    history = [
        {
            "loss": 5 / (epoch + 1) + 0.01 * config.seed,
            "online_top1": 50 + 8.0 * epoch,
            "epoch": epoch,
            "lr": 4.8 / (epoch + 1),
            "seconds": 2.4,
            "images_per_second": 533.3,
            "representation_rankme": 20.0 - 2 * epoch,
            "embedding_rankme": 10.0 - 2 * epoch,
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
            "representation/collapsed_fraction": 0.125,
            "representation/effective_rank": accuracy / 5,
            "representation/directions": 7.0,
            "embedding/rankme": accuracy / 4,
            "embedding/collapsed_fraction": 0.25,
            "embedding/effective_rank": accuracy / 6,
            "embedding/directions": 6.0,
        },
    }[protocol.kind]
    arrays = {
        "representation_singular_values": np.geomspace(1, 1e-6, 8),
        "embedding_singular_values": np.geomspace(1, 1e-9, 8),
    }
    if protocol.kind != "spectrum":
        arrays = {"correct": np.random.default_rng(0).permutation(500) < 5 * accuracy}
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


def commit_toys(store: Store, key: str, run: ToyRun, recipe: str, at: float) -> None:
    """A run of toy networks, whatever recipe it was asked under."""
    content = run.model_dump(mode="json")
    store.begin_trial(key, content)
    record = {
        "kind": "toy",
        "key": key,
        "recipe": "",
        "config": content,
        "numerics_version": 1,
        "started": stamp(at),
        "finished": stamp(at + 6.5),
        "seconds": 6.5,
        "cases": [toy_metrics(case, run.networks) for case in run.cases],
        "metrics": {},
        "environment": ENVIRONMENT,
    }
    arrays = {
        f"{n}/{name}": values
        for n, case in enumerate(run.cases)
        for name, values in toy_arrays(case, run.networks).items()
    }
    store.commit_trial(key, record, arrays)


def toy_metrics(case: ToyConfig, networks: int) -> dict[str, list[float]]:
    """More noise or layers, more collapse; a little different in each network, as real ones are."""
    spread = np.random.default_rng(case.layers).normal(1, 0.02, networks)
    collapsed = min(case.dim / 2, case.dim * case.amplitude / 4 + 2 * (case.layers - 1))
    found = {
        "loss": 4.0 * spread,
        "collapsed_directions": np.round(collapsed * spread),
        "collapsed_directions_at_start": np.zeros(networks),
        "embedding_effective_rank": (case.dim - collapsed) * spread,
    }
    if not case.relu:
        found["vanished_weight_directions"] = np.round(collapsed * spread)
    if case.layers > 1:
        found |= {
            "alignment_diagonal": 0.97 * spread / spread.max(),
            "alignment_off_diagonal": 0.01 * spread,
            "conserved_drift": 2e-5 * spread,
            "growth_correlation": 0.99 * spread / spread.max(),
        }
    return {f"theory/{name}": values.tolist() for name, values in found.items()}


def toy_arrays(case: ToyConfig, networks: int) -> dict[str, np.ndarray]:
    """What a case of toy networks leaves for its figures: half of the singular values sink over six records."""
    iterations = np.linspace(0, case.iterations, 6).astype(np.int64)
    sinks = np.where(np.arange(case.dim) < case.dim // 2, 0.3, -2.0 - case.amplitude)
    growth = np.exp(sinks * np.linspace(0, 1, 6)[:, None])  # (T, dim)
    spread = 1 + 0.02 * np.arange(networks)
    weights = spread[:, None, None, None] * np.repeat(growth[None, :, None], case.layers, axis=2)
    pairs = case.layers - 1
    return {
        "iterations": iterations,
        "weight_singular_values": weights,
        "embedding_spectrum": (weights**2).prod(axis=2),
        "alignment": np.broadcast_to(np.eye(case.dim), (networks, pairs, case.dim, case.dim)) * 0.97,
        "conserved_drift": np.outer(1e-4 * spread, np.arange(6)),
    }


def bare_record(key: str, kind: str, **said: Any) -> dict[str, Any]:
    """A record with just what one has to say."""
    own = {
        "trial": {"epochs": 4, "config": {}, "dataset": {"name": "digits", "fingerprint": "5" * 64}},
        "toy": {"config": {}, "cases": []},
        "evaluation": {"evaluation": {"kind": "knn"}},
    }[kind]
    times = {"started": stamp(0), "finished": stamp(6), "seconds": 6.0}
    common = {"kind": kind, "key": key, "numerics_version": 1, "environment": {}, "metrics": {}}
    return {**common, **times, **own, **said}


def stamp(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()
