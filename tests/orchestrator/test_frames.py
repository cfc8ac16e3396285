import math

import pytest
from synthetic import fill, stamp, write_suite

from orchestrator.plan import make_plan
from orchestrator.report.frames import COLUMNS, Snapshot, cells_frame, holes
from orchestrator.store import Store


@pytest.fixture(scope="module")
def plan():
    return make_plan(["quickstart"], "digits")


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return make_plan([str(write_suite(tmp_path_factory.mktemp("suite")))])


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_every_cell_seed_and_metric_has_one_line_in_the_order_of_the_study(plan, store):
    fill(plan, store)
    frame = cells_frame(plan.studies[0], store)
    assert tuple(frame.columns) == COLUMNS
    # linear probe 3, kNN 2, spectrum 8, last loss and online accuracy
    assert len(frame) == 10 * 2 * 15
    assert not frame.duplicated(["study", "cell", "seed", "metric"]).any()
    assert list(dict.fromkeys(zip(frame["study"], frame["cell"], strict=True)))[:5] == [
        ("table1", "mlp"), ("table1", "linear"), ("table1", "none"), ("table1", "directclr"), ("table2", "none"),
    ]  # fmt: skip
    assert set(frame["recipe"]) == {"digits"}


def test_values_are_those_of_the_records(plan, store):
    fill(plan, store, top1=lambda config: 10.0 + config.seed / 3)
    frame = cells_frame(plan.studies[0], store)
    for _, line in frame[frame["metric"] == "linear_probe/top1"].iterrows():
        assert line["value"] == 10.0 + line["seed"] / 3
        assert plan.trials[line["trial"]].seed == line["seed"]
    assert set(frame["metric"]) >= {"representation/rankme", "embedding/rankme", "knn/top1", "pretrain/loss"}


def test_the_papers_numbers_stand_beside_the_metric_they_are_of(plan, store):
    fill(plan, store)
    frame = cells_frame(plan.studies[0], store)
    given = frame[frame["paper"].notna()]
    assert set(given["metric"]) == {"linear_probe/top1"}
    assert given.groupby(["study", "cell"])["paper"].first().to_dict() == {
        ("table1", "mlp"): 66.5,
        ("table1", "linear"): 61.1,
        ("table1", "none"): 51.5,
        ("table1", "directclr"): 62.7,
        ("table2", "none"): 51.5,
        ("table2", "orthogonal"): 52.2,
        ("table2", "trainable"): 61.1,
        ("table2", "trainable_diagonal"): 60.2,
        ("table2", "low_rank"): 62.3,
        ("table2", "low_rank_diagonal"): 62.7,
    }


def test_cells_that_share_a_training_show_the_same_number(plan, store):
    fill(plan, store)
    frame = cells_frame(plan.studies[0], store).set_index(["study", "cell", "seed", "metric"])["value"]
    assert frame["table1", "directclr", 1, "knn/top1"] == frame["table2", "low_rank_diagonal", 1, "knn/top1"]
    assert len(plan.trials) == 12


def test_an_empty_store_gives_an_empty_frame_of_the_same_types(plan, store):
    empty = cells_frame(plan.studies[0], store)
    assert empty.empty
    fill(plan, store)
    full = cells_frame(plan.studies[0], store)
    for column in ("seed", "value", "paper"):
        assert empty[column].dtype == full[column].dtype


def test_a_hole_says_what_is_missing_and_why(plan, store):
    failed, skipped = next(iter(plan.trials)), list(plan.trials)[2]
    fill(plan, store, fail=[failed], skip=[skipped], without=["knn"])
    found = holes(plan.studies[0], store)
    by_trial = {hole.trial: hole for hole in found if hole.what == "training"}
    assert by_trial[failed].reason == "failed: NonFiniteLossError: loss is not finite at step 17 of mlp"
    assert (by_trial[failed].study, by_trial[failed].cell, by_trial[failed].seed) == ("table1", "mlp", 0)
    assert by_trial[skipped].reason == "not done yet"
    # the shared training of table1/linear is missing in table2/trainable too
    assert sum(hole.what == "training" for hole in found) == 3
    others = [hole for hole in found if hole.what != "training"]
    assert {(hole.what, hole.reason) for hole in others} == {("knn", "not done yet")}
    assert len(others) == 20 - 3


def test_a_failed_evaluation_of_a_finished_training_says_why(plan, store):
    key = next(iter(plan.trials))
    fill(plan, store, without=["knn"])
    failure = {"error": "out of memory", "type": "E", "traceback": "", "when": stamp(0)}
    store.fail_trial(key, failure)
    found = [hole for hole in holes(plan.studies[0], store) if hole.trial == key]
    assert [(hole.what, hole.reason) for hole in found] == [("knn", "failed: out of memory")]
    fill(plan, store)
    assert holes(plan.studies[0], store) == []


def test_a_complete_study_has_no_holes(plan, store):
    fill(plan, store)
    assert holes(plan.studies[0], store) == []


def test_an_error_of_many_lines_becomes_one_line(plan, store):
    key = next(iter(plan.trials))
    store.prepare()
    store.fail_trial(key, {"error": "first\nsecond\x1b[31m\u202e" + "x" * 999, "type": "E", "when": stamp(0)})
    reason = holes(plan.studies[0], store)[0].reason
    assert reason.startswith("failed: first second [31m")
    assert reason.isprintable()
    assert len(reason) < 320


def test_a_number_that_is_not_finite_stays_visible(plan, store):
    fill(plan, store, top1=lambda config: math.nan)
    frame = cells_frame(plan.studies[0], store)
    assert frame.loc[frame["metric"] == "linear_probe/top1", "value"].isna().all()


def test_a_snapshot_does_not_change_while_trials_finish(plan, store):
    study = plan.studies[0]
    fill(plan, store, skip=list(plan.trials)[3:], without=["knn"])
    snapshot = Snapshot(store)
    before = cells_frame(study, snapshot)
    fill(plan, store)
    assert cells_frame(study, snapshot).equals(before)
    assert len(cells_frame(study, store)) > len(before)


# --- theory studies, and rows with a metric of their own ------------------------------------------


def test_each_network_of_a_case_is_a_seed_of_its_cell(suite, store):
    fill(suite, store)
    frame = cells_frame(suite.studies[0], store)
    toys = frame[frame["study"] == "theory"]
    (key,) = set(toys["trial"])
    cases = store.trial_record(key)["cases"]
    for place, cell in enumerate(("weak", "strong", "deep")):
        mine = toys[toys["cell"] == cell]
        assert set(mine["metric"]) == set(cases[place])
        for _, line in mine.iterrows():
            assert line["value"] == cases[place][line["metric"]][line["seed"]]
        assert set(mine["seed"]) == {0, 1, 2}


def test_toy_networks_are_missing_once_a_cell(suite, store):
    toys = next(cell.trial for cell in suite.cells() if cell.case is not None)
    fill(suite, store, fail=[toys])
    reason = "failed: NonFiniteLossError: loss is not finite at step 17 of toy networks"
    assert [(hole.cell, hole.seed, hole.what, hole.reason) for hole in holes(suite.studies[0], store)] == [
        (cell, None, "training", reason) for cell in ("weak", "strong", "deep")
    ]


def test_a_rows_own_metric_has_the_papers_number_beside_it(suite, store):
    fill(suite, store)
    frame = cells_frame(suite.studies[0], store)
    given = frame[frame["paper"].notna()].groupby(["cell", "metric"])["paper"].first().to_dict()
    assert given == {("half", "linear_probe/top1"): 62.7, ("half", "subvector_probe/top1"): 47.9}


def test_what_lies_there_without_a_record_counts_as_not_there(suite, store):
    fill(suite, store)
    trial, evaluation = next((cell.trial, cell.evaluations["knn"]) for cell in suite.cells())
    toys = next(cell.trial for cell in suite.cells() if cell.case is not None)
    full = Snapshot(store)
    assert len(full.history(trial)) == 5
    assert full.evaluation_arrays(evaluation)["correct"].dtype == bool
    assert "0/iterations" in full.trial_arrays(toys)
    for folder in (
        store.trial_directory(trial),
        store.evaluation_directory(evaluation),
        store.trial_directory(toys),
    ):
        (folder / "record.json").unlink()
    bare = Snapshot(store)
    assert (bare.history(trial), bare.evaluation_arrays(evaluation), bare.trial_arrays(toys)) == (
        [],
        None,
        None,
    )
    assert len(store.history(trial)) == 5
