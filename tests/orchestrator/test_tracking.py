import copy
import json
import math
import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from mlflow_stores import content, new_store, query, rows, sync
from synthetic import EPOCHS, START, fill, stamp

from orchestrator import delivery, tracking
from orchestrator.delivery import BackgroundTracker
from orchestrator.errors import AblateError
from orchestrator.mlflow_access import translated_errors
from orchestrator.plan import make_plan
from orchestrator.projection import field_paths, flatten, milliseconds
from orchestrator.report.content import make_report
from orchestrator.report.frames import cells_frame
from orchestrator.report.render import files
from orchestrator.report.statistics import mean_interval
from orchestrator.report.tracked import redacted
from orchestrator.spec import trial_key
from orchestrator.store import Store
from orchestrator.tracking import TrackedRecords, Tracker, TrackingError, default_uri
from trainers.config import TrialConfig

HEADS = (
    {"kind": "none"}, {"kind": "mlp"}, {"kind": "linear"}, {"kind": "diagonal"}, {"kind": "orthogonal"},
    {"kind": "low_rank", "d0": 3}, {"kind": "subvector", "d0": 3}, {"kind": "dropout", "d0": 3}, {"kind": "grouped"},
)  # fmt: skip


SMALL = """
name: small
title: Two cells
source: Table 1
seeds: [0, 1]
cells:
  - {name: linear, label: linear projector, set: {head: {kind: linear}}}
  - {name: none, label: no projector, set: {head: {kind: none}}}
evaluations: [linear_probe, knn, spectrum]
tables:
  - name: main
    title: Two rows
    source: Table 1
    columns: [Projector]
    rows:
      - {cell: linear, columns: [linear], paper: 61.1}
      - {cell: none, columns: [none], paper: 51.5}
"""


@pytest.fixture
def store(tmp_path, set_up):
    return new_store(tmp_path / "store", set_up)


@pytest.fixture(scope="module")
def plan():
    return make_plan(["quickstart"], "digits")


@pytest.fixture(scope="module")
def synced(plan, set_up, tmp_path_factory):
    """The quickstart study, synced; for tests that only look."""
    store = new_store(tmp_path_factory.mktemp("synced"), set_up)
    fill(plan, store, top1=lambda config: 60 + config.seed)
    assert sync(plan, store) == tracking.SyncResult(created=13)
    return store


@pytest.fixture(scope="module")
def small_study(tmp_path_factory):
    path = tmp_path_factory.mktemp("studies") / "small.yaml"
    path.write_text(SMALL)
    return str(path)


@pytest.fixture(scope="module")
def small(small_study):
    return make_plan([small_study])


def runs(plan, store):
    from mlflow import MlflowClient

    client = MlflowClient(default_uri(store))
    experiment = client.get_experiment_by_name(plan.studies[0].study.name)
    found = client.search_runs([experiment.experiment_id])
    top = next(run for run in found if run.data.tags["kind"] == "study")
    return top, {run.data.tags["trial_key"]: run for run in found if run.data.tags["kind"] == "trial"}


# --- one parent, one child per trial ------------------------------------------------------------


def test_a_study_becomes_one_parent_and_a_child_per_trial(plan, synced):
    top, children = runs(plan, synced)
    assert set(children) == set(plan.trials)
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {top.info.run_id}
    assert {run.info.status for run in (top, *children.values())} == {"FINISHED"}
    assert (top.info.run_name, top.data.tags["study"]) == ("quickstart@digits", "quickstart@digits")
    assert top.info.start_time == milliseconds(START.isoformat())


def test_syncing_again_writes_nothing(plan, synced):
    before, dump = rows(synced), content(synced)
    assert sync(plan, synced) == tracking.SyncResult(unchanged=13)
    fresh = make_plan(["quickstart"], "digits")
    assert sync(fresh, Store(synced.root)) == tracking.SyncResult(unchanged=13)
    assert rows(synced) == before
    assert content(synced) == dump


def test_every_child_has_the_same_parameters_and_metrics(plan, synced):
    _, children = runs(plan, synced)
    assert len({frozenset(run.data.params) for run in children.values()}) == 1
    assert len({frozenset(run.data.metrics) for run in children.values()}) == 1
    some = next(iter(children.values()))
    assert {
        "pretrain/loss", "pretrain/lr", "pretrain/online_top1", "pretrain/images_per_second",
        "eval/linear_probe/top1", "eval/knn/top1", "eval/representation/rankme", "eval/embedding/rankme",
    } <= set(some.data.metrics)  # fmt: skip
    for key, run in children.items():
        config = plan.trials[key]
        assert run.data.params["seed"] == str(config.seed)
        assert run.data.params["head.kind"] == config.head.kind
        assert run.data.params["optimizer.lr"] == "4.8"
        assert "data.root" not in run.data.params
        assert run.data.params["head.d0"] == (str(config.head.d0) if hasattr(config.head, "d0") else "none")


def test_parameters_have_the_same_keys_for_every_head_backbone_and_optimizer(small):
    raw = next(iter(small.trials.values())).model_dump(mode="json")
    made = [TrialConfig.model_validate_json(json.dumps(raw | {"head": head})) for head in HEADS]
    for other in (
        {"backbone": {"kind": "resnet50"}},
        {"optimizer": {"kind": "adamw", "lr": 0.1}},
        {"optimizer": {"kind": "sgd", "lr": 0.1}},
    ):
        made.append(TrialConfig.model_validate_json(json.dumps(raw | other)))
    flat = [flatten(config) for config in made]
    assert len({frozenset(one) for one in flat}) == 1
    # what tells two trials apart is among the parameters
    assert len({trial_key(config, 1) for config in made}) == len({tuple(one.items()) for one in flat}) == 12
    paths = field_paths(TrialConfig)
    assert len(paths) == len(set(paths))
    assert {"augment.view1.blur", "head.groups", "optimizer.betas", "backbone.blocks"} <= set(paths)


def test_what_may_differ_at_a_relaunch_is_a_tag(plan, synced):
    _, children = runs(plan, synced)
    tags = next(iter(children.values())).data.tags
    assert (tags["executor"], tags["workers"], tags["device"], tags["data.root"]) == (
        "inline",
        "1",
        "cpu",
        "none",
    )
    assert tags["dataset.name"] == "digits"


def test_a_training_shared_by_cells_names_them_all(plan, synced):
    _, children = runs(plan, synced)
    key = next(cell.trial for cell in plan.cells() if cell.cell == "directclr")
    assert children[key].data.tags["cells"] == "table1/directclr, table2/low_rank_diagonal"


def test_an_experiment_without_toy_networks_has_no_parameters_of_them(plan, synced):
    _, children = runs(plan, synced)
    assert not [name for name in next(iter(children.values())).data.params if name.startswith("toy.")]


# --- points -------------------------------------------------------------------------------------


def test_curves_have_a_point_per_epoch_at_times_of_the_record(plan, synced):
    points = query(synced, "select run_uuid, timestamp, step, value from metrics where key = 'pretrain/loss'")
    assert len(points) == 12 * EPOCHS
    _, children = runs(plan, synced)
    for position, key in enumerate(plan.trials):
        mine = sorted(point[1:] for point in points if point[0] == children[key].info.run_id)
        assert [step for _, step, _ in mine] == list(range(EPOCHS))
        start = START + timedelta(seconds=20 * position)
        expected = [start + timedelta(seconds=2.5 * (epoch + 1)) for epoch in range(EPOCHS)]
        assert [when for when, _, _ in mine] == [milliseconds(moment.isoformat()) for moment in expected]


def test_no_point_has_the_clocks_time(synced):
    low, high = query(synced, "select min(timestamp), max(timestamp) from metrics")[0]
    assert low >= milliseconds(START.isoformat())
    assert high == milliseconds((START + timedelta(seconds=20 * 11 + 13.7)).isoformat())


def test_a_long_history_goes_in_batches(small, store):
    fill(small, store)
    key = next(iter(small.trials))
    path = store.trial_directory(key) / "history.jsonl"
    path.write_text("".join(json.dumps({"loss": 1 / (1 + n), "epoch": n}) + "\n" for n in range(2500)))
    store.commit_trial(key, store.trial_record(key))
    sync(small, store)
    _, children = runs(small, store)
    assert children[key].data.metrics["pretrain/loss"] == 1 / 2500
    count = "select count(*) from metrics where key = 'pretrain/loss' and run_uuid = "
    assert query(store, f"{count} '{children[key].info.run_id}'") == [(2500,)]


def test_the_parent_holds_each_cells_mean_interval_and_n(plan, synced):
    top, _ = runs(plan, synced)
    name = "cells/table2/orthogonal/linear_probe/top1"
    half = math.tan(math.pi * 0.475) / 2
    assert top.data.metrics[f"{name}/mean"] == 60.5
    assert top.data.metrics[f"{name}/ci_low"] == pytest.approx(60.5 - half, rel=1e-12)
    assert top.data.metrics[f"{name}/ci_high"] == pytest.approx(60.5 + half, rel=1e-12)
    assert top.data.metrics[f"{name}/n"] == 2
    assert sum(key.startswith("cells/") for key in top.data.metrics) == 10 * 15 * 4
    assert "**Linear-probe accuracy of SimCLR" in top.data.tags["mlflow.note.content"]


def test_more_seeds_replace_the_means_and_fewer_bring_them_back(small_study, store):
    one, two = make_plan([small_study], seeds=(0,)), make_plan([small_study], seeds=(0, 1))
    name = "cells/small/linear/linear_probe/top1"
    fill(two, store, top1=lambda config: 60 + config.seed)
    sync(one, store)
    top, children = runs(one, store)
    assert (top.data.metrics[f"{name}/mean"], len(children)) == (60, 2)
    assert f"{name}/ci_low" not in top.data.metrics
    sync(two, store)
    top, children = runs(two, store)
    assert (top.data.metrics[f"{name}/mean"], top.data.metrics[f"{name}/n"], len(children)) == (60.5, 2, 4)
    sync(one, store)
    top, _ = runs(one, store)
    assert (top.data.metrics[f"{name}/mean"], top.data.metrics[f"{name}/n"]) == (60, 1)
    assert math.isnan(top.data.metrics[f"{name}/ci_low"])
    before = rows(store)
    assert sync(one, store) == tracking.SyncResult(unchanged=3)
    assert rows(store) == before


def test_evaluations_made_later_arrive_with_the_next_sync(small, store):
    fill(small, store, without=["knn", "spectrum"])
    sync(small, store)
    top, children = runs(small, store)
    assert top.info.status == "RUNNING"
    assert all("eval/knn/top1" not in run.data.metrics for run in children.values())
    history = query(store, "select count(*) from metrics where key like 'pretrain/%'")
    fill(small, store)
    assert sync(small, store) == tracking.SyncResult(updated=5)
    top, children = runs(small, store)
    assert top.info.status == "FINISHED"
    assert all("eval/knn/top1" in run.data.metrics for run in children.values())
    assert query(store, "select count(*) from metrics where key like 'pretrain/%'") == history
    one_point_each = (
        "select count(*) from metrics where key like 'eval/%' group by run_uuid, key having count(*) > 1"
    )
    assert query(store, one_point_each) == []


def test_a_new_protocols_value_is_the_one_shown_and_so_is_the_old_one_once_it_returns(small, store):
    fill(small, store)
    sync(small, store)
    trial = next(iter(small.trials))
    key = next(
        key for key, (of, protocol) in small.evaluations.items() if (of, protocol.kind) == (trial, "knn")
    )
    old = store.evaluation_record(key)
    for value, finished in (
        (11.0, "2026-11-23T00:00:00+00:00"),
        (22.0, "2026-11-22T00:00:00+00:00"),
        (None, None),
    ):
        changed = copy.deepcopy(old)
        if value is not None:
            changed["metrics"]["top1"], changed["finished"] = value, finished
        store.commit_evaluation(key, changed["evaluation"], changed, store.evaluation_arrays(key))
        sync(small, store)
        _, children = runs(small, store)
        assert children[trial].data.metrics["eval/knn/top1"] == changed["metrics"]["top1"]
        expected = cells_frame(small.studies[0], store)
        assert cells_frame(small.studies[0], TrackedRecords(default_uri(store), small.studies[0])).equals(
            expected
        )


def test_two_protocols_of_one_kind_for_one_training_keep_apart(tmp_path, store):
    study = tmp_path / "twice.yaml"
    study.write_text(
        "name: twice\ntitle: t\nsource: s\nevaluations: [knn, spectrum]\ncells:\n"
        "  - {name: few, label: few, set: {evaluations: {knn: {kind: knn, k: 5}}}}\n"
        "  - {name: many, label: many, set: {evaluations: {knn: {kind: knn, k: 50}}}}\n"
    )
    plan = make_plan([str(study)])
    assert len(plan.trials) == 1
    fill(plan, store, top1=lambda config: 50)
    few, many = (cell.evaluations["knn"] for cell in plan.cells())
    record = store.evaluation_record(many)
    record["metrics"]["top1"] = 77.0
    store.commit_evaluation(many, record["evaluation"], record, store.evaluation_arrays(many))
    sync(plan, store)
    _, children = runs(plan, store)
    metrics = next(iter(children.values())).data.metrics
    assert metrics["eval/knn/top1"] == store.evaluation_record(few)["metrics"]["top1"] == 49
    assert metrics[f"eval/knn.{many[:8]}/top1"] == 77
    read = TrackedRecords(default_uri(store), plan.studies[0])
    assert cells_frame(plan.studies[0], read).equals(cells_frame(plan.studies[0], store))


# --- failures -----------------------------------------------------------------------------------


def test_a_failed_trial_is_a_failed_child_until_it_succeeds(small, store):
    broken = next(iter(small.trials))
    fill(small, store, fail=[broken])
    sync(small, store)
    top, children = runs(small, store)
    assert top.info.status == "FAILED"
    assert children[broken].info.status == "FAILED"
    assert children[broken].data.tags["error"].startswith("NonFiniteLossError: loss is not finite at step 17")
    assert frozenset(children[broken].data.params) == frozenset(children[list(small.trials)[1]].data.params)
    fill(small, store)
    sync(small, store)
    top, mended = runs(small, store)
    assert mended[broken].info.run_id == children[broken].info.run_id
    assert (top.info.status, mended[broken].info.status) == ("FINISHED", "FINISHED")
    assert {"error", "failure"}.isdisjoint(mended[broken].data.tags)
    assert "eval/linear_probe/top1" in mended[broken].data.metrics
    assert len(mended) == 4


def test_a_failed_evaluation_is_a_failed_child_until_it_is_made(small, store):
    key = next(iter(small.trials))
    fill(small, store, without=["knn"])
    failure = {"error": "out of memory", "type": "E", "traceback": "", "when": stamp(99)}
    store.fail_trial(key, failure)
    sync(small, store)
    child = runs(small, store)[1][key]
    assert (child.info.status, child.data.tags["error"]) == ("FAILED", "out of memory")
    assert "eval/linear_probe/top1" in child.data.metrics
    fill(small, store)
    sync(small, store)
    child = runs(small, store)[1][key]
    assert child.info.status == "FINISHED"
    assert {"error", "failure"}.isdisjoint(child.data.tags)


def test_a_failure_without_a_time_is_tracked_too(small, store):
    key = next(iter(small.trials))
    store.fail_trial(
        key, {"error": "its process was lost", "type": "ProcessLost", "traceback": "", "when": ""}
    )
    assert sync(small, store) == tracking.SyncResult(created=2)
    _, children = runs(small, store)
    assert (children[key].info.status, children[key].data.tags["error"]) == ("FAILED", "its process was lost")
    assert sync(small, store) == tracking.SyncResult(unchanged=2)


def test_a_sync_that_was_cut_off_is_completed_by_the_next(small, store, tmp_path, set_up, monkeypatch):
    from mlflow import MlflowClient

    fill(small, store)
    whole = new_store(tmp_path / "whole", set_up)
    fill(small, whole)
    sync(small, whole)

    write, calls = MlflowClient.log_batch, []

    def cut_off(self, *args, **kwargs):
        calls.append(args)
        if len(calls) in (2, 6, 9):
            raise OSError("the power went out")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", cut_off)
    for _ in range(3):
        with pytest.raises(TrackingError, match="the power went out"):
            sync(small, store)
    sync(small, store)
    assert content(store) == content(whole)


def test_values_that_change_after_a_sync_was_cut_off_have_a_step_of_their_own(small, store, monkeypatch):
    from mlflow import MlflowClient

    fill(small, store, skip=list(small.trials)[2:])
    write = MlflowClient.log_batch

    def cut_off(self, run_id, metrics=(), params=(), tags=()):
        write(self, run_id, metrics, params, tags)
        if metrics:
            raise OSError("the power went out")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", cut_off)
        with pytest.raises(TrackingError, match="the power went out"):
            sync(small, store)
    fill(small, store)
    sync(small, store)
    twice = "select key from metrics group by run_uuid, key, step having count(*) > 1"
    assert query(store, twice) == []
    top, _ = runs(small, store)
    assert top.data.metrics["cells/small/none/linear_probe/top1/n"] == 2
    study = small.studies[0]
    assert cells_frame(study, TrackedRecords(default_uri(store), study)).equals(cells_frame(study, store))


# --- artifacts ----------------------------------------------------------------------------------


def test_the_parent_keeps_the_tables_and_writes_them_only_when_they_change(small, store):
    fill(small, store, skip=[next(iter(small.trials))])
    sync(small, store)
    top, _ = runs(small, store)
    folder = store.root / "mlartifacts" / "small" / top.info.run_id / "artifacts"

    def kept():
        return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}

    assert set(kept()) == {"cells.csv", "tables/main.csv", "tables/main.md", "tables/main.tex"}
    written = {name: path.stat().st_mtime_ns for name, path in kept().items()}
    sync(small, store)
    assert {name: path.stat().st_mtime_ns for name, path in kept().items()} == written
    fill(small, store)
    sync(small, store)
    expected = files(make_report(small, small.studies[0], store))
    assert all(path.read_text() == expected[name] for name, path in kept().items())


# --- reading back -------------------------------------------------------------------------------


def test_a_report_from_mlflow_is_the_stores_byte_for_byte(plan, store):
    study, keys = plan.studies[0], list(plan.trials)
    fill(plan, store, fail=[keys[1]], skip=[keys[4]], top1=lambda config: 60 + math.pi * config.seed)
    sync(plan, store)
    read = TrackedRecords(default_uri(store), study)
    assert cells_frame(study, read).equals(cells_frame(study, store))
    assert files(make_report(plan, study, read)) == files(make_report(plan, study, store))


def test_numbers_that_are_not_finite_survive(small, store):
    fill(small, store, top1=lambda config: math.nan if config.seed else math.inf)
    sync(small, store)
    study = small.studies[0]
    read = cells_frame(study, TrackedRecords(default_uri(store), study))
    assert read.equals(cells_frame(study, store))
    assert sync(small, store).unchanged == 5


def test_a_study_that_mlflow_does_not_know_is_said_to_be_unknown(small, store):
    with pytest.raises(TrackingError, match=r"has no runs of small@digits; `ablate run` makes them"):
        TrackedRecords(default_uri(store), small.studies[0])


# --- MLflow away or odd -------------------------------------------------------------------------


@pytest.fixture
def deaf_server(monkeypatch):
    """A server that takes connections and never answers."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        yield f"http://me:secret@127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:secret@127.0.0.1:9/path?token=secret",
        "sqlite:////proc/secret@no/mlflow.db?secret",
        "nosuch://me:secret@host/db",
        "file:///tmp/mlruns",
        "mlruns",
    ],
)
def test_an_unusable_mlflow_is_one_line_without_credentials_and_soon(small, store, uri):
    fill(small, store)
    started = time.monotonic()
    with pytest.raises(AblateError) as caught:
        Tracker(uri, store).sync(small, small.studies[0])
    message = str(caught.value)
    assert time.monotonic() - started < 15
    assert "\n" not in message
    assert len(message) < 500
    assert ":secret" not in message
    assert "?secret" not in message
    assert "token" not in message


def test_a_server_that_never_answers_is_given_up(small, store, deaf_server):
    fill(small, store)
    started = time.monotonic()
    with pytest.raises(
        TrackingError, match=r"^MLflow at http://\*\*\*@127.*: does not answer; the records are safe"
    ):
        Tracker(deaf_server, store).sync(small, small.studies[0])
    assert time.monotonic() - started < 10


def test_limits_on_waiting_are_set_unless_the_user_has_set_them(store, monkeypatch):
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.delenv("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    Tracker(default_uri(store), store).prepare()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
    assert os.environ["MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER"] == "false"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert "MLFLOW_RUN_ID" not in os.environ


def test_a_uri_in_a_message_has_no_user_password_or_query():
    assert redacted("postgresql://u:p@host:5432/db?sslkey=x") == "postgresql://***@host:5432/db"
    assert redacted("sqlite:////a/b c/mlflow.db") == "sqlite:////a/b c/mlflow.db"


def test_a_deleted_experiment_is_brought_back(small, store):
    from mlflow import MlflowClient

    fill(small, store)
    sync(small, store)
    client = MlflowClient(default_uri(store))
    client.delete_experiment(client.get_experiment_by_name("small").experiment_id)
    sync(small, store)
    assert client.get_experiment_by_name("small").lifecycle_stage == "active"
    assert len(runs(small, store)[1]) == 4


def test_a_new_database_is_set_up_by_two_writers_at_once_without_a_word(set_up):
    _, done = set_up
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_two_syncs_at_once_leave_one_run_per_trial(small, store):
    fill(small, store)
    with ThreadPoolExecutor(2) as pool:
        done = [future.result() for future in [pool.submit(sync, small, store) for _ in range(2)]]
    assert sorted(done, key=lambda result: result.created) == [
        tracking.SyncResult(unchanged=5),
        tracking.SyncResult(created=5),
    ]
    assert len(query(store, "select * from runs")) == 5


# --- answers that are lost, and creations that come late -----------------------------------------


def whole(plan, folder, set_up):
    """What a sync without any disturbance leaves."""
    store = new_store(folder, set_up)
    fill(plan, store)
    sync(plan, store)
    return content(store)


@pytest.mark.parametrize("call", ["create_run", "create_experiment"])
def test_what_was_created_though_the_answer_was_lost_is_found_and_not_created_again(
    small, store, tmp_path, set_up, monkeypatch, call
):
    from mlflow import MlflowClient

    expected = whole(small, tmp_path / "whole", set_up)
    create, repeats = getattr(MlflowClient, call), []

    def unheard(*args, **kwargs):
        repeats.append(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
        create(*args, **kwargs)
        raise OSError("Connection aborted")

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    monkeypatch.setattr(MlflowClient, call, unheard)
    fill(small, store)
    assert sync(small, store) == tracking.SyncResult(created=5)
    assert content(store) == expected
    assert set(repeats) == {"0"}  # MLflow's client would have asked again by itself
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"


def test_what_could_not_be_created_is_an_error(small, store, monkeypatch):
    from mlflow import MlflowClient

    def refuse(*args, **kwargs):
        raise OSError("Connection refused")

    monkeypatch.setattr(MlflowClient, "create_run", refuse)
    fill(small, store)
    with pytest.raises(TrackingError, match="cannot be reached"):
        sync(small, store)
    assert query(store, "select * from runs") == []


def test_runs_that_a_late_server_made_a_second_time_are_deleted_and_links_stay(small, store):
    from mlflow import MlflowClient

    fill(small, store)
    sync(small, store)
    before, (top, children) = content(store), runs(small, store)
    client = MlflowClient(default_uri(store))
    for run in (top, *children.values()):
        tags = {name: run.data.tags[name] for name in ("kind", "study", "trial_key") if name in run.data.tags}
        client.create_run(run.info.experiment_id, run.info.start_time - 1, tags, run.info.run_name)
    read = TrackedRecords(default_uri(store), small.studies[0])
    assert cells_frame(small.studies[0], read).equals(cells_frame(small.studies[0], store))
    assert sync(small, store) == tracking.SyncResult(unchanged=5)
    assert len(query(store, "select * from runs where lifecycle_stage = 'deleted'")) == 5
    kept = query(store, "select run_uuid from runs where lifecycle_stage = 'active'")
    assert {run for (run,) in kept} == {run.info.run_id for run in (top, *children.values())}
    assert content(store)["metrics"] == before["metrics"]


def test_children_of_a_parent_that_was_deleted_get_the_new_one(small, store):
    from mlflow import MlflowClient

    fill(small, store)
    sync(small, store)
    metrics = query(store, "select count(*) from metrics where key like 'pretrain/%'")
    MlflowClient(default_uri(store)).delete_run(runs(small, store)[0].info.run_id)
    assert sync(small, store) == tracking.SyncResult(created=1, updated=4)
    top, children = runs(small, store)
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {top.info.run_id}
    assert query(store, "select count(*) from metrics where key like 'pretrain/%'") == metrics
    assert sync(small, store) == tracking.SyncResult(unchanged=5)


def test_a_record_made_anew_adds_no_second_point_of_equal_value(small, store):
    fill(small, store)
    sync(small, store)
    points = "select key, step, value from metrics where key like 'pretrain/%' order by run_uuid, key, step"
    before = query(store, points)
    key = next(iter(small.trials))
    store.commit_trial(key, store.trial_record(key) | {"started": stamp(500), "finished": stamp(512)})
    assert sync(small, store).updated >= 1
    assert query(store, points) == before


def test_removing_a_tag_twice_is_no_error(small, store, monkeypatch):
    from mlflow import MlflowClient

    fill(small, store, fail=[next(iter(small.trials))])
    sync(small, store)
    fill(small, store)
    delete = MlflowClient.delete_tag

    def repeated(*args):  # as MLflow's client does after an answer that was lost
        delete(*args)
        delete(*args)

    monkeypatch.setattr(MlflowClient, "delete_tag", repeated)
    sync(small, store)
    assert sync(small, store) == tracking.SyncResult(unchanged=5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Max retries exceeded (Caused by ResponseError('too many 500 error responses'))", "an error (500)"),
        ("API request to endpoint /x failed with error code 502 != 200. Body: '<html>'", "an error (502)"),
        (
            "Max retries exceeded (Caused by ReadTimeoutError('Read timed out. (timeout=10)'))",
            "does not answer",
        ),
        (
            "Max retries exceeded (Caused by RemoteDisconnected('Remote end closed'))",
            "breaks connections off",
        ),
        ("Max retries exceeded (Caused by NewConnectionError('Connection refused'))", "cannot be reached"),
        ("no such table: runs", "OSError: no such table: runs"),
    ],
)
def test_an_error_says_what_the_server_did(text, says):
    with pytest.raises(TrackingError) as caught, translated_errors("http://me:secret@host:5000"):
        raise OSError(text)
    assert f"{says}; the records are safe in the store" in str(caught.value)
    assert "secret" not in str(caught.value)


# --- beside a run -------------------------------------------------------------------------------


def test_a_store_that_cannot_be_written_is_one_line(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match=r"^--store .*/file: cannot be written: File exists$"):
        Tracker("http://127.0.0.1:9", Store(tmp_path / "file")).sync(small, small.studies[0])


def test_the_background_tracker_syncs_when_told_and_when_closed(small, store):
    tracker = BackgroundTracker(Tracker(default_uri(store), store), small)
    fill(small, store, skip=list(small.trials)[2:])
    tracker.notify()
    deadline = time.monotonic() + 20
    while not query(store, "select * from runs where name like '%seed 1' and status = 'FINISHED'"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    fill(small, store)
    assert tracker.close() is None
    assert len(runs(small, store)[1]) == 4
    assert sync(small, store).unchanged == 5


def test_the_background_tracker_goes_on_to_another_plan(small, small_study, store):
    tracker = BackgroundTracker(Tracker(default_uri(store), store), small)
    more = make_plan([small_study], seeds=(0, 1, 2))
    fill(more, store)
    tracker.follow(more)
    assert tracker.close() is None
    assert len(runs(small, store)[1]) == 6


def test_errors_of_the_background_tracker_come_out_at_its_close_only(small, store):
    fill(small, store)
    tracker = BackgroundTracker(Tracker("http://127.0.0.1:9", store), small)
    tracker.notify()
    assert isinstance(tracker.close(), TrackingError)


def test_even_a_bug_in_tracking_stops_no_training(small, store, monkeypatch):
    monkeypatch.setattr(tracking, "make_report", lambda *args: 1 / 0)
    error = BackgroundTracker(Tracker(default_uri(store), store), small).close()
    assert str(error) == "tracking failed: ZeroDivisionError: division by zero"


def test_closing_waits_no_longer_than_asked(small, store, deaf_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    fill(small, store)
    tracker = BackgroundTracker(Tracker(deaf_server, store), small)
    started = time.monotonic()
    error = tracker.close(timeout=0.5)
    assert time.monotonic() - started < 3
    assert "not up to date after 0.5 s" in str(error)
    assert "secret" not in str(error)


def test_a_close_that_takes_long_says_what_it_waits_for(small, store, deaf_server, monkeypatch):
    monkeypatch.setattr(delivery, "_SILENT_SECONDS", 0.1)
    fill(small, store)
    sentences = []
    BackgroundTracker(Tracker(deaf_server, store), small).close(0.5, sentences.append)
    assert len(sentences) == 1
    assert re.fullmatch(
        r"bringing MLflow at http://\*\*\*@\S+ up to date; waiting 0.4 s at most", sentences[0]
    )


def test_the_same_interval_stands_in_mlflow_and_in_the_report(plan, synced):
    top, _ = runs(plan, synced)
    frame = cells_frame(plan.studies[0], synced)
    for (study, cell, metric), group in frame.groupby(["study", "cell", "metric"]):
        found = tuple(
            top.data.metrics[f"cells/{study}/{cell}/{metric}/{name}"]
            for name in ("mean", "ci_low", "ci_high", "n")
        )
        assert found == mean_interval(group["value"].tolist())
