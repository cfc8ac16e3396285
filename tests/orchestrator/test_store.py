"""Records are committed in one step, and nothing outside the store is ever reached by a key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import AblateError
from orchestrator.store import Store
from trainers.files import STATE

KEY = "0123456789abcdef0123"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def test_a_trial_is_finished_only_once_its_record_is_there(store: Store) -> None:
    directory = store.begin_trial(KEY, {"a": 1})
    assert store.trial_record(KEY) is None
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / STATE).touch()
    store.fail_trial(KEY, {"error": "lost"})
    assert store.trial_failure(KEY) == {"error": "lost"}
    store.begin_trial(KEY, {"a": 1})
    assert store.trial_failure(KEY) is None  # a new attempt is under way
    store.commit_trial(KEY, {"kind": "trial", "seconds": 6.0, "epochs": 4, "recipe": "digits"})
    assert store.trial_record(KEY) == {"kind": "trial", "seconds": 6.0, "epochs": 4, "recipe": "digits"}
    assert store.trial_failure(KEY) is None
    assert not (directory / "checkpoints" / STATE).exists()
    assert store.seconds_per_epoch("digits") == [1.5]
    assert store.seconds_per_epoch("imagenet") == []


def test_evaluations_keep_their_arrays(store: Store) -> None:
    correct = np.array([True, False, True])
    store.commit_evaluation(KEY, {"kind": "knn"}, {"metrics": {"top1": 66.7}}, {"correct": correct})
    assert store.evaluation_record(KEY) == {"metrics": {"top1": 66.7}}
    assert np.array_equal(store.evaluation_arrays(KEY)["correct"], correct)


def test_pickled_and_broken_arrays_are_not_loaded(store: Store) -> None:
    store.commit_evaluation(KEY, {}, {}, {"x": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(AblateError, match="not readable"):
        store.evaluation_arrays(KEY)
    (store.evaluation_directory(KEY) / "arrays.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(AblateError, match="not readable"):
        store.evaluation_arrays(KEY)


def test_what_is_no_record_is_said_and_not_believed(store: Store) -> None:
    folder = store.begin_trial(KEY, {})
    (folder / "record.json").write_text("{}", encoding="utf-8")
    with pytest.raises(AblateError, match=r"record\.json: not a record"):
        store.trial_record(KEY)
    (folder / "history.jsonl").write_text('{"epoch": 0}\n{"epo', encoding="utf-8")
    with pytest.raises(AblateError, match=r"history\.jsonl: not valid JSON lines"):
        store.history(KEY)


def test_arrays_that_nobody_left_are_none(store: Store) -> None:
    assert store.evaluation_arrays(KEY) is None
    assert store.trial_arrays(KEY) is None
    store.begin_trial(KEY, {})
    store.commit_trial(KEY, {"kind": "toy"}, {"0/iterations": np.arange(3)})
    assert store.trial_arrays(KEY)["0/iterations"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("key", ["../../etc/passwd", "", "0123", KEY.upper(), KEY + "0", KEY[:-1] + "/"])
def test_a_key_never_leaves_its_folder(store: Store, key: str) -> None:
    with pytest.raises(AblateError, match="takes 20 hexadecimal digits"):
        store.trial_record(key)


def test_a_damaged_record_is_named(store: Store) -> None:
    directory = store.begin_trial(KEY, {})
    (directory / "record.json").write_text("{")
    with pytest.raises(AblateError, match=r"record\.json: not valid JSON; remove it"):
        store.trial_record(KEY)


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AblateError, match="cannot be written"):
        Store(tmp_path / "file" / "store").prepare()
    with pytest.raises(AblateError, match="Not a directory"):
        Store(tmp_path / "file").trial_record(KEY)


def test_verbs_that_only_look_refuse_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AblateError, match="no store there"):
        Store(tmp_path).require()
    Store(tmp_path).prepare()
    Store(tmp_path).require()
