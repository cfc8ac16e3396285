"""Whole runs on a real local Ray, with a real MLflow database: what a user gets from one command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from tests.orchestrator.small import TINY

pytestmark = pytest.mark.cluster

FLOAT64 = [*TINY, "precision=float64"]
STUDY = """
name: mine
title: Two heads and a failure
source: Table 1
seeds: [0]
cells:
  - {name: none, label: no projector, set: {head: {kind: none}}}
  - {name: all, label: everything kept, set: {head: {kind: subvector, d0: 1/1}}}
  - {name: half, label: one half, set: {head: {kind: subvector, d0: 1/2}}}
  - {name: broken, label: far too fast, set: {optimizer: {kind: sgd, lr: 1e+30}, schedule.warmup_epochs: 0}}
evaluations: [linear_probe, subvector_probe, knn, spectrum]
tables:
  - name: heads
    title: Heads
    source: Table 1
    columns: [Head]
    rows:
      - {cell: none, columns: [none], paper: 51.5}
      - {cell: all, columns: [all]}
      - {cell: half, columns: [half], paper: 62.7}
      - {cell: broken, columns: [broken]}
"""


def run(folder: Path, *arguments: str, store: str = "store") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments, store=store), capture_output=True, text=True, timeout=300, check=False
    )


def command(folder: Path, *arguments: str, store: str = "store") -> list[str]:
    study = folder / "mine.yaml"
    study.write_text(STUDY)
    sets = [part for assignment in FLOAT64 for part in ("--set", assignment)]
    return [
        *(sys.executable, "-m", "orchestrator.cli", "run", str(study), "--store", str(folder / store)),
        *(*sets, *arguments),
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("run")
    return folder, run(folder)


def records(store: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(store.glob("trials/*/record.json"))]


def cells(store: Path) -> pd.DataFrame:
    return pd.read_csv(next(store.glob("studies/*/report/cells.csv")))


def points(store: Path) -> tuple[int, int]:
    """Runs and metric points that MLflow holds."""
    client = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    found = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000)
    history = [len(client.get_metric_history(r.info.run_id, name)) for r in found for name in r.data.metrics]
    return len(found), sum(history)


def test_a_failing_trial_leaves_a_hole_with_its_reason_and_stops_no_other(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = finished
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stderr == ""
    assert "far too fast, seed 0: failed: NonFiniteLossError: loss is not finite at step" in done.stdout
    found = cells(folder / "store")
    assert set(found.cell) == {"none", "all", "half"}
    report = next((folder / "store").glob("studies/*/report"))
    assert "not finite" in (report / "tables" / "heads.md").read_text()
    assert (report / "index.html").read_text().count("not finite") >= 1


def test_equivalent_cells_were_trained_once_and_subvectors_probed_where_there_is_one(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    store = finished[0] / "store"
    assert len(records(store)) == 2
    found = cells(store).set_index(["cell", "metric"]).value
    assert found["none", "linear_probe/top1"] == found["all", "linear_probe/top1"]
    assert ("half", "subvector_probe/top1") in found.index
    assert ("none", "subvector_probe/top1") not in found.index


def test_nothing_of_the_schedulers_is_left_in_the_store(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    store = finished[0] / "store"
    left = {path.name for path in store.iterdir()} - {"mlflow.db", "mlflow.lock", "mlartifacts"}
    assert left <= {"trials", "evaluations", "studies", "leases", "leases.lock", ".runs"}
    assert list(store.glob("leases/*")) == []
    assert {str(path.relative_to(store)) for path in store.glob(".runs/**/*")} <= {
        ".runs/leases",
        ".runs/leases.lock",
    }
    for record in store.glob("trials/*/record.json"):
        assert not list(record.parent.glob("checkpoints/state-*"))


def test_running_again_repeats_only_what_failed_and_tracks_nothing_twice(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = finished
    store = folder / "store"
    before, tracked = records(store), points(store)
    again = run(folder)
    assert again.returncode == 3
    assert again.stdout.startswith("1 to train, 0 to evaluate only")
    assert records(store) == before
    assert points(store)[0] == tracked[0] == 4  # the parent and one child for each of three trials
    assert points(store)[1] == tracked[1]


def test_ray_train_with_two_workers_gives_the_same_keys_and_numbers(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = finished
    done = run(folder, "--executor", "train", "--set", "resources.workers=2", store="train")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "failed: NonFiniteLossError: loss is not finite at step" in done.stdout
    alone, together = records(folder / "store"), records(folder / "train")
    assert [r["key"] for r in alone] == [r["key"] for r in together]
    assert {r["environment"]["workers"] for r in together} == {2}
    for one, two in zip(alone, together, strict=True):
        assert two["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], rel=1e-9)
    a, b = cells(folder / "store"), cells(folder / "train")
    assert list(a.metric) == list(b.metric)
    assert (a.value - b.value).abs().max() < 1e-4


def test_a_run_cut_off_by_ctrl_c_says_how_to_go_on_and_does(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path, "--set", "epochs=24"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("store/trials/*/checkpoints/state-*.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == "ablate: interrupted; the same command goes on from here\n"
    unfinished = list(tmp_path.glob("store/trials/*/checkpoints/state-*.safetensors"))
    assert unfinished

    again = run(tmp_path, "--set", "epochs=24")
    assert again.returncode == 3
    histories = [path.read_text().splitlines() for path in tmp_path.glob("store/trials/*/history.jsonl")]
    assert sorted(map(len, histories)) == [24, 24]


def test_a_trial_that_can_never_fit_exits_4_and_starts_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "--set", "resources.cpus_per_worker=1000")
    assert done.returncode == 4
    assert "a trial needs 1 x (1000 CPU, 0 GPU)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("store/trials/*"))
