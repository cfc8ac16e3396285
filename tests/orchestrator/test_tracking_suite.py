"""A suite with figures, claims and toy networks in MLflow, and back."""

import math
import time

import numpy as np
import pytest
from mlflow_stores import content, new_store, rows, sync
from synthetic import fill, write_suite

from orchestrator import tracking
from orchestrator.delivery import BackgroundTracker
from orchestrator.plan import make_plan
from orchestrator.projection import study_run
from orchestrator.report import render
from orchestrator.report.content import make_report
from orchestrator.report.figures import FilledFigure
from orchestrator.report.render import files
from orchestrator.tracking import TrackedRecords, Tracker, TrackingError, default_uri
from trainers.config import ToyRun
from trainers.files import SPECTRA


@pytest.fixture
def store(tmp_path, set_up):
    return new_store(tmp_path / "store", set_up)


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory):
    return str(write_suite(tmp_path_factory.mktemp("suite")))


@pytest.fixture(scope="module")
def suite(suite_file):
    return make_plan([suite_file])


@pytest.fixture(scope="module")
def synced_suite(suite, set_up, tmp_path_factory):
    """The suite, synced; for tests that only look."""
    store = new_store(tmp_path_factory.mktemp("synced"), set_up)
    fill(suite, store, top1=lambda config: 60 + math.pi * config.seed)
    (store.trial_directory(next(iter(suite.trials))) / SPECTRA).write_text('{"epoch": 0}\n')
    assert sync(suite, store) == tracking.SyncResult(created=8)
    return store


def all_runs(plan, store):
    """The parent, and every child by its key."""
    from mlflow import MlflowClient

    client = MlflowClient(default_uri(store))
    experiment = client.get_experiment_by_name(plan.studies[0].study.name)
    found = {
        run.data.tags.get("trial_key", ""): run for run in client.search_runs([experiment.experiment_id])
    }
    return found.pop(""), found


def artifacts(plan, store, run):
    folder = store.root / "mlartifacts" / plan.studies[0].study.name / run.info.run_id / "artifacts"
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def toy_key(plan):
    return next(cell.trial for cell in plan.cells() if cell.case is not None)


def test_a_run_of_toy_networks_is_a_child_with_its_means(suite, synced_suite):
    _, children = all_runs(suite, synced_suite)
    key = toy_key(suite)
    assert set(children) == set(suite.trials)
    toys = children[key]
    assert (toys.data.tags["kind"], toys.info.run_name) == ("toy", "theory toy networks")
    cases = synced_suite.trial_record(key)["cases"]
    expected = {
        f"theory/{cell}/{metric.removeprefix('theory/')}": math.fsum(values) / 3
        for cell, case in zip(("weak", "strong", "deep"), cases, strict=True)
        for metric, values in case.items()
    }
    assert toys.data.metrics == pytest.approx(expected, rel=1e-12)
    assert toys.data.tags["cells"] == "theory/weak, theory/strong, theory/deep"


def test_all_children_of_an_experiment_have_the_same_parameters(suite, synced_suite):
    _, children = all_runs(suite, synced_suite)
    assert len({frozenset(run.data.params) for run in children.values()}) == 1
    key = toy_key(suite)
    params = children[key].data.params
    assert params["toy.cases"] == "weak, strong, deep"
    assert (params["toy.networks"], params["toy.dim"]) == ("3", "4")
    assert (params["toy.amplitude"], params["toy.layers"]) == ("[0.1, 2.0, 0.1]", "[1, 1, 2]")
    assert (params["seed"], params["head.kind"]) == ("none", "none")
    others = [run.data.params for trial, run in children.items() if trial != key]
    assert {other["toy.networks"] for other in others} == {"none"}
    assert {other["seed"] for other in others} == {"0", "1"}


def test_the_parent_holds_verdicts_and_figures(suite, synced_suite):
    top, _ = all_runs(suite, synced_suite)
    report = make_report(suite, suite.studies[0], synced_suite)
    names = ("trained.order", "same", "bad", "theory.order")
    for name, judgement in zip(names, report.claims, strict=True):
        assert top.data.tags[f"claim.{name}"] == judgement.verdict
        for field in ("effect", "ci_low", "ci_high", "p", "p_adjusted"):
            value = getattr(judgement, field)
            assert top.data.metrics.get(f"claims/{name}/{field}") == value
    expected = files(report)
    kept = artifacts(suite, synced_suite, top)
    assert set(kept) == set(expected) - {"index.html", "report.md", "provenance.json"}
    for name, path in kept.items():
        content = expected[name]
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)


def test_children_keep_what_figures_and_claims_need(suite, synced_suite):
    _, children = all_runs(suite, synced_suite)
    first = next(iter(suite.trials))
    evaluations = {key for key, (trial, _) in suite.evaluations.items() if trial == first}
    kept = artifacts(suite, synced_suite, children[first])
    assert set(kept) == {"history.jsonl", SPECTRA, *(f"arrays/{key}.npz" for key in evaluations)}
    assert kept[SPECTRA].read_text() == '{"epoch": 0}\n'
    assert set(artifacts(suite, synced_suite, children[toy_key(suite)])) == {
        "toys.json",
        f"arrays/{toy_key(suite)}.npz",
    }


def test_arrays_histories_and_records_come_back_as_they_were(suite, synced_suite):
    read = TrackedRecords(default_uri(synced_suite), suite.studies[0])
    for key, config in suite.trials.items():
        mine, record = read.trial_record(key), synced_suite.trial_record(key)
        assert mine["config"] == record["config"]
        assert mine.get("cases") == record.get("cases")
        assert read.history(key) == synced_suite.history(key)
        same_arrays(read.trial_arrays(key), synced_suite.trial_arrays(key))
        assert (read.trial_arrays(key) is not None) == isinstance(config, ToyRun)
    for key in suite.evaluations:
        record = synced_suite.evaluation_record(key)
        assert read.evaluation_record(key)["evaluation"] == record["evaluation"]
        assert read.evaluation_record(key)["metrics"] == record["metrics"]
        same_arrays(read.evaluation_arrays(key), synced_suite.evaluation_arrays(key))
    assert (read.history("f" * 20), read.evaluation_arrays("f" * 20), read.trial_arrays("f" * 20)) == (
        [],
        None,
        None,
    )


def same_arrays(first, second):
    assert (first is None) == (second is None)
    if first is not None:
        assert set(first) == set(second)
        for name, values in first.items():
            assert values.dtype == second[name].dtype
            np.testing.assert_array_equal(values, second[name])


def test_a_suites_report_from_mlflow_is_the_stores_byte_for_byte(suite, store):
    study, keys = suite.studies[0], list(suite.trials)
    fill(suite, store, fail=[keys[1]], skip=[keys[4]], top1=lambda config: 60 + math.pi * config.seed)
    # a trial under way has a history and no record: neither report may show it
    (store.begin_trial(keys[4], {}) / "history.jsonl").write_text('{"epoch": 0, "loss": 9}\n')
    sync(suite, store)
    read = TrackedRecords(default_uri(store), study)
    uri = "http://host"
    assert files(make_report(suite, study, read, uri)) == files(make_report(suite, study, store, uri))


def test_syncing_a_suite_again_writes_nothing_and_draws_nothing(suite, synced_suite, monkeypatch):
    before, dump = rows(synced_suite), content(synced_suite)
    monkeypatch.setattr(FilledFigure, "svg", lambda figure: 1 / 0)
    monkeypatch.setattr(render, "_DRAWN", {})
    assert sync(suite, synced_suite) == tracking.SyncResult(unchanged=8)
    assert rows(synced_suite) == before
    assert content(synced_suite) == dump


def test_only_runs_that_changed_are_given_files_anew(suite, store, monkeypatch):
    from mlflow import MlflowClient

    fill(suite, store, without=["knn"])
    sync(suite, store)
    uploads = []
    log = MlflowClient.log_artifacts

    def counted(self, run_id, *args, **kwargs):
        uploads.append(run_id)
        return log(self, run_id, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_artifacts", counted)
    fill(suite, store)
    sync(suite, store)
    top, children = all_runs(suite, store)
    toys = children.pop(toy_key(suite))
    assert toys.info.run_id not in uploads
    assert sorted(uploads) == sorted([top.info.run_id, *(run.info.run_id for run in children.values())])


def test_figures_are_drawn_at_the_last_sync_or_once_nothing_is_missing(suite, store, monkeypatch):
    drawn = []
    monkeypatch.setattr(study_run, "drawn", lambda figure: drawn.append(figure.name) or render.drawn(figure))
    tracker = Tracker(default_uri(store), store)
    fill(suite, store, skip=list(suite.trials)[5:])
    tracker.sync(suite, suite.studies[0], final=False)
    assert drawn == []
    top, _ = all_runs(suite, store)
    assert not [name for name in artifacts(suite, store, top) if name.startswith("figures/")]
    tracker.sync(suite, suite.studies[0])
    assert set(drawn) == {"spectra", "sweep", "live"}
    drawn.clear()
    fill(suite, store)
    tracker.sync(suite, suite.studies[0], final=False)
    assert {"weights", "alignment"} <= set(drawn)
    assert tracker.sync(suite, suite.studies[0]) == tracking.SyncResult(unchanged=8)


def test_the_background_tracker_draws_when_it_is_closed(suite, store, monkeypatch):
    finals = []
    monkeypatch.setattr(Tracker, "sync", lambda self, plan, study, final: finals.append(final))
    tracker = BackgroundTracker(Tracker(default_uri(store), store), suite)
    tracker.notify()
    deadline = time.monotonic() + 20
    while not finals:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert tracker.close() is None
    assert finals[0] is False
    assert finals[-1] is True


def test_a_claim_that_is_no_more_leaves_no_verdict(tmp_path, set_up):
    path = write_suite(tmp_path)
    trained = tmp_path / "trained.yaml"
    store, plan = new_store(tmp_path / "store", set_up), make_plan([str(path)])
    fill(plan, store)
    sync(plan, store)
    trained.write_text(trained.read_text().replace("name: bad", "name: good"))
    plan = make_plan([str(path)])
    sync(plan, store)
    top, _ = all_runs(plan, store)
    assert {name for name in top.data.tags if name.startswith("claim.")} == {
        "claim.trained.order", "claim.same", "claim.good", "claim.theory.order",
    }  # fmt: skip
    assert math.isnan(top.data.metrics["claims/bad/effect"])


def test_a_file_that_mlflow_lost_is_an_error_not_a_gap(suite, store):
    fill(suite, store)
    sync(suite, store)
    _, children = all_runs(suite, store)
    artifacts(suite, store, children[toy_key(suite)])[f"arrays/{toy_key(suite)}.npz"].unlink()
    read = TrackedRecords(default_uri(store), suite.studies[0])
    with pytest.raises(TrackingError, match=r"^MLflow at sqlite.*Failed to download"):
        read.trial_arrays(toy_key(suite))


def test_more_tags_than_mlflow_takes_at_once_go_in_batches(suite, synced_suite, store, monkeypatch):
    monkeypatch.setattr(tracking, "_BATCH_OF_TAGS", 7)
    fill(suite, store, top1=lambda config: 60 + math.pi * config.seed)
    (store.trial_directory(next(iter(suite.trials))) / SPECTRA).write_text('{"epoch": 0}\n')
    sync(suite, store)
    assert content(store) == content(synced_suite)
