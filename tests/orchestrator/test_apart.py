"""Evaluations of one training are made apart: each on its own images, and each with a failure of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.cli import _check_data
from orchestrator.errors import SpecError
from orchestrator.failures import EvaluationsFailed, failure
from orchestrator.leases import Lease, Leases
from orchestrator.plan import Job, Plan, jobs, make_plan
from orchestrator.report.frames import holes
from orchestrator.store import Store
from orchestrator.work import evaluate_trial, train_trial
from tests.orchestrator.small import TINY

STUDY = """
name: apart
title: One training
source: Table 1
seeds: [0]
cells:
  - {{name: a, label: A, set: {{head: {{kind: none}}, {a}}}}}
  - {{name: b, label: B, set: {{head: {{kind: none}}, {b}}}}}
evaluations: {evaluations}
"""


def planned(
    folder: Path, a: str, b: str, evaluations: str = "[linear_probe, knn]", recipe: str = "digits"
) -> Plan:
    file = folder / "apart.yaml"
    file.write_text(STUDY.format(a=a, b=b, evaluations=evaluations))
    return make_plan([str(file)], recipe, sets=TINY if recipe == "digits" else ())


def worked(plan: Plan, store: Store, train: bool = True) -> None:
    """Train and evaluate all that is missing, in this process."""
    store.prepare()
    for job in jobs(plan, store):
        lease = Leases(store.root, "a" * 8).acquire(job.trial)
        assert isinstance(lease, Lease)
        with lease:
            if job.train and train:
                train_trial(job, "digits", store, lease.fence, "inline", {}, lambda metrics: None)
            evaluate_trial(job, store, lease.fence, "inline", torch.device("cpu"))


def measured(plan: Plan, store: Store, cell: str, kind: str) -> tuple[dict[str, float], int]:
    """Metrics, and the number of validation images."""
    key = next(one.evaluations[kind] for one in plan.cells() if one.cell == cell)  # type: ignore[index]
    record, arrays = store.evaluation_record(key), store.evaluation_arrays(key)
    assert record is not None
    assert arrays is not None
    return record["metrics"], len(arrays["correct"])


@pytest.mark.parametrize("protocol", ["cached", "reference"])
def test_cells_of_one_training_are_each_measured_on_their_own_images(tmp_path: Path, protocol: str) -> None:
    probe = f"evaluations.linear_probe: {{kind: linear_probe, solver: sgd, protocol: {protocol}, epochs: 2}}"
    cells = [f"data.validation_images: {images}, {probe}" for images in (100, 200)]
    plan, store = planned(tmp_path, *cells), Store(tmp_path / "both")
    assert len(plan.trials) == 1
    worked(plan, store)
    for cell, alone, images in (("a", cells[0], 100), ("b", cells[1], 200)):
        other = Store(tmp_path / cell)
        single = planned(tmp_path, alone, alone)
        worked(single, other)
        for kind in ("linear_probe", "knn"):
            assert measured(plan, store, cell, kind) == measured(single, other, "a", kind)
            assert measured(plan, store, cell, kind)[1] == images


def test_the_record_of_a_training_does_not_depend_on_which_cell_comes_first(tmp_path: Path) -> None:
    records = []
    for name, order in (("one", (100, 200)), ("other", (200, 100))):
        plan = planned(tmp_path, *(f"data.validation_images: {images}" for images in order))
        worked(plan, Store(tmp_path / name))
        (record,) = Store(tmp_path / name).trial_records()
        records.append((record["key"], record["config"], record["dataset"], record["metrics"]["loss"]))
    assert records[0] == records[1]


def test_two_roots_of_one_training_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"cell b: data.root: got /two, where a cell with the same training has /one"
    ):
        planned(tmp_path, "data.root: /one", "data.root: /two", recipe="fashion_mnist")
    assert len(planned(tmp_path, "data.root: /one", "data.root: /one", recipe="fashion_mnist").trials) == 1


@pytest.mark.parametrize(
    ("impossible", "reason"),
    [
        ("evaluations.knn.k: 301", "knn.k: got 301, takes at most the 300 training images"),
        (
            "data.validation_images: 501",
            "data.validation_images: got 501, takes at most the split's 500 images",
        ),
    ],
)
def test_an_evaluation_that_cannot_be_made_fails_alone_with_its_reason(
    tmp_path: Path, impossible: str, reason: str
) -> None:
    plan, store = planned(tmp_path, impossible, "epochs: 2", "[knn, spectrum]"), Store(tmp_path / "store")
    (job,) = jobs(plan, store)
    with pytest.raises(EvaluationsFailed) as failed:
        worked(plan, store)
    told = failure(failed.value, failed.value, "its evaluation")
    assert reason in told["error"]
    store.fail_trial(job.trial, told)
    missing = {(hole.cell, hole.what): hole.reason for hole in holes(plan.studies[0], store)}
    assert ("a", "knn") in missing
    assert not any(cell == "b" for cell, _ in missing)
    assert all(reason in text for text in missing.values())
    (again,) = jobs(plan, store)
    assert not again.train
    assert set(again.evaluations) == set(told["evaluations"])


@pytest.mark.parametrize(
    ("impossible", "reason"),
    [
        ("evaluations.knn.k: 301", "evaluations.knn.k: got 301, expected at most the 300 training images"),
        (
            "data: {train_images: null, validation_images: 501}",
            "got 501, expected at most the split's 500 images",
        ),
        (
            "data.train_images: null, evaluations.knn.k: 1298",
            "got 1298, expected at most the 1297 training images",
        ),
    ],
)
def test_what_is_known_to_be_impossible_is_refused_before_anything_starts(
    tmp_path: Path, impossible: str, reason: str
) -> None:
    plan = planned(tmp_path, impossible, "epochs: 2")
    with pytest.raises(SpecError, match=reason):
        _check_data(plan.recipe, jobs(plan, Store(tmp_path / "store")))


def test_a_reason_is_told_once_where_several_evaluations_share_it() -> None:
    errors: dict[str, Exception] = {
        "a" * 20: ValueError("x"),
        "b" * 20: ValueError("x"),
        "c" * 20: ValueError("y"),
    }
    told: dict[str, Any] = failure(EvaluationsFailed(errors), EvaluationsFailed(errors))
    assert told["error"] == "x; y"
    assert told["evaluations"] == {"a" * 20: "x", "b" * 20: "x", "c" * 20: "y"}


def test_a_job_that_says_nothing_else_measures_on_the_images_of_its_configuration(tmp_path: Path) -> None:
    plan, store = planned(tmp_path, "epochs: 2", "epochs: 2", "[knn]"), Store(tmp_path / "store")
    store.prepare()
    (job,) = jobs(plan, store)
    config: Any = job.config
    data = config.data.model_copy(update={"validation_images": 50})
    one = Job(job.trial, config.model_copy(update={"data": data}), True, job.evaluations, job.resources, "x")
    lease = Leases(store.root, "a" * 8).acquire(job.trial)
    assert isinstance(lease, Lease)
    with lease:
        train_trial(one, "digits", store, lease.fence, "inline", {}, lambda metrics: None)
        evaluate_trial(one, store, lease.fence, "inline", torch.device("cpu"))
    assert measured(plan, store, "a", "knn")[1] == 50
