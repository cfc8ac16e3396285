"""Metrics are declared by what produces them: no more and no less than is measured, and nothing else can be named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orchestrator import measured
from orchestrator.errors import SpecError
from orchestrator.plan import make_plan
from tests.trainers.tiny import tiny_trial
from trainers.config import Knn, LinearProbe, Spectrum, SubvectorProbe, ToyConfig, ToyRun, TrialConfig
from trainers.context import TrialContext
from trainers.contrastive import load_model, train
from trainers.data.datasets import load_dataset
from trainers.evaluate import evaluate
from trainers.theory import run_toys

STUDY = """
name: named
title: Two cells
source: Table 1
seeds: [0]
include: [{include}]
cells:
  - {{name: a, label: A, set: {{head: {{kind: none}}}}}}
  - {{name: b, label: B, set: {{head: {{kind: mlp}}}}}}
  - {{name: c, label: C, set: {{head: {{kind: linear}}}}}}
evaluations: [knn, spectrum]
{shown}
"""
SHOWN = {
    "table": "tables: [{name: x, title: T, source: S, metric: METRIC, columns: [c], rows: [{cell: a, columns: [x]}]}]",
    "row": "tables: [{name: x, title: T, source: S, metric: knn/top1, columns: [c], "
    "rows: [{cell: a, columns: [x], metric: METRIC}]}]",
    "curve": "figures: [{name: x, title: T, source: S, kind: curve, metric: METRIC, cells: [a, b]}]",
    "scatter": "figures: [{name: x, title: T, source: S, kind: scatter, x: knn/top1, y: METRIC}]",
    "order": "claims: [{name: x, text: T, source: S, test: order, cells: [a, b], metric: METRIC}]",
    "order, own": "claims: [{name: x, text: T, source: S, test: order, cells: [a, b], metrics: [knn/top1, METRIC]}]",
    "equivalent": "claims: [{name: x, text: T, source: S, test: equivalent, cells: [a, b], metric: METRIC, margin: 1}]",
    "above": "claims: [{name: x, text: T, source: S, test: above, cells: [a], metric: METRIC, value: 1}]",
    "rising": "claims: [{name: x, text: T, source: S, test: rising, cells: [a, b, c], metric: METRIC}]",
    "peak": "claims: [{name: x, text: T, source: S, test: interior_peak, cells: [a, b, c], metric: METRIC}]",
    "correlated": "claims: [{name: x, text: T, source: S, test: correlated, x: METRIC, y: knn/top1}]",
}


def plan(folder: Path, shown: str, include: str = "", *sets: str) -> None:
    file = folder / "named.yaml"
    file.write_text(STUDY.format(shown=shown, include=include))
    make_plan([str(file)], "digits", sets=sets)


@pytest.mark.parametrize("where", SHOWN)
@pytest.mark.parametrize("include", ["", "table1"])
def test_the_metric_of_whatever_is_shown_is_checked_where_it_is_written(
    tmp_path: Path, where: str, include: str
) -> None:
    for good in ("knn/top5", "spectrum/embedding/rankme", "embedding/rankme", "pretrain/loss"):
        plan(tmp_path, SHOWN[where].replace("METRIC", good), include)
    for bad, hint in (
        ("knnn/top1", "; did you mean 'knn/top1'?"),
        ("knn/top11", "; did you mean 'knn/top1'?"),
        ("knn/loss", ""),
        ("spectrum/knn/top1", ""),
        ("pretrain/seconds", ""),
        ("theory/loss", ""),
    ):
        with pytest.raises(
            SpecError, match=rf"named\.yaml: (tables|figures|claims)\.x: got '{bad}'"
        ) as refused:
            plan(tmp_path, SHOWN[where].replace("METRIC", bad), include)
        assert hint in str(refused.value)


@pytest.mark.parametrize("where", [name for name in SHOWN if name not in ("scatter", "correlated")])
def test_a_metric_of_an_evaluation_that_a_cells_study_does_not_make_is_refused(
    tmp_path: Path, where: str
) -> None:
    for include in ("", "table1"):
        with pytest.raises(SpecError, match=r"got 'linear_probe/top1'.* expected a metric of"):
            plan(tmp_path, SHOWN[where].replace("METRIC", "linear_probe/top1"), include)


def test_a_metric_of_all_cells_is_one_that_some_cell_has(tmp_path: Path) -> None:
    shown = SHOWN["correlated"].replace("METRIC", "linear_probe/top1")
    plan(tmp_path, shown, "table1")
    with pytest.raises(SpecError, match="got 'subvector_probe/top1', which no cell of the study has"):
        plan(tmp_path, shown.replace("linear_probe", "subvector_probe"), "table1")


def test_the_best_epoch_is_a_metric_where_the_best_epoch_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "probe.yaml").write_text(
        "name: probe\ntitle: T\nsource: S\ncells: [{name: a, label: A}]\ntables: [{name: x, title: T, source: S, "
        "metric: linear_probe/best_epoch, columns: [c], rows: [{cell: a, columns: [x]}]}]\n"
    )
    best = ("evaluations.linear_probe={kind: linear_probe, solver: sgd, select: best}",)
    make_plan([str(tmp_path / "probe.yaml")], "digits", sets=best)
    with pytest.raises(SpecError, match=r"got 'linear_probe/best_epoch'.* expected a metric of cell a"):
        make_plan([str(tmp_path / "probe.yaml")], "digits")


def test_a_figure_of_a_training_names_metrics_of_its_epochs(tmp_path: Path) -> None:
    shown = "figures: [{name: x, title: T, source: S, kind: training, metrics: [METRIC], cells: [a]}]"
    plan(tmp_path, shown.replace("METRIC", "representation_rankme"))
    with pytest.raises(SpecError, match=r"figures\.x: got 'rankmee'"):
        plan(tmp_path, shown.replace("METRIC", "rankmee"))


def test_a_theory_study_names_metrics_of_its_toy_networks(tmp_path: Path) -> None:
    text = (
        "name: toys\ntitle: T\nsource: S\ntoy: {layers: LAYERS}\ncells: [{name: a, label: A}]\n"
        "claims: [{name: x, text: T, source: S, test: above, cells: [a], metric: METRIC, value: 1}]\n"
    )
    file = tmp_path / "toys.yaml"
    for layers, metric, refusal in (
        ("2", "theory/growth_slope", None),
        ("2", "theory/growth_slop", "did you mean 'theory/growth_slope'"),
        ("1", "theory/growth_slope", "expected a metric of cell a"),
        ("2", "knn/top1", "expected a metric of toy networks"),
    ):
        file.write_text(text.replace("LAYERS", layers).replace("METRIC", metric))
        if refusal is None:
            make_plan([str(file)], "digits")
            continue
        with pytest.raises(SpecError, match=f"claims.x: got '{metric}'.*{refusal}"):
            make_plan([str(file)], "digits")


# --- what is declared is what is measured -----------------------------------------------------------


def test_evaluations_and_trainings_measure_exactly_what_they_declare(tmp_path: Path) -> None:
    config = tiny_trial(head={"kind": "subvector", "d0": 6})
    context, dataset = TrialContext(tmp_path), load_dataset(config.data)
    result = train(config, context, dataset)
    declared = {*TrialConfig.EPOCH_METRICS} - {"corrupt_images"}
    assert all(set(epoch) == declared for epoch in result.history)
    assert set(measured.OF_TRAINING) <= set(result.metrics)
    model = load_model(tmp_path / "checkpoints" / "model.safetensors", config, dataset, context)
    protocols = [
        *(
            LinearProbe(solver=solver, select=select, epochs=1)
            for solver in ("sgd", "lbfgs")
            for select in ("last", "best")
        ),
        LinearProbe(protocol="reference", select="best", epochs=1),
        LinearProbe(protocol="reference", epochs=1),
        SubvectorProbe(d0=6, epochs=1, select="best"),
        SubvectorProbe(d0=6, epochs=1),
        Knn(k=3),
        Spectrum(),
    ]
    results = evaluate(config, model.backbone, model.head, protocols, torch.device("cpu"), dataset=dataset)
    for protocol, found in zip(protocols, results, strict=True):
        assert set(found.metrics) == set(protocol.metrics), protocol
        names = [measured.metric_name(protocol.kind, name) for name in found.metrics]
        assert set(names) <= set(measured.every_metric())


def test_toy_networks_measure_exactly_what_they_declare() -> None:
    cases = tuple(
        ToyConfig(dim=4, noisy_dims=2, samples=64, batch_size=16, iterations=400, record_every=20, layers=layers,
                  relu=relu, bias=bias, amplitude=0.1, lr=0.05)
        for layers in (1, 2) for relu in (False, True) for bias in (False, True)
    )  # fmt: skip
    result = run_toys(ToyRun(networks=2, seed=0, cases=cases), torch.device("cpu"), lambda metrics: None)
    absent = []
    for case, metrics in zip(cases, result.metrics, strict=True):
        assert set(metrics) <= set(case.metrics), json.dumps(sorted(metrics))
        absent += sorted(set(case.metrics) - set(metrics))
    assert set(absent) <= {"theory/growth_correlation", "theory/growth_slope"}
    assert set(measured.every_metric()) >= {name for metrics in result.metrics for name in metrics}
