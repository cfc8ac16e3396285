"""Records are committed in one step, and nothing outside the store is ever reached by a key."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import AblateError
from orchestrator.store import Store
from tests.orchestrator.synthetic import bare_record
from trainers.files import STATES

STATE = STATES.replace("*", "000000001")

KEY = "0123456789abcdef0123"


record = partial(bare_record, KEY)


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
    store.commit_trial(KEY, record("trial", recipe="digits"))
    assert store.trial_record(KEY) == record("trial", recipe="digits")
    assert store.trial_failure(KEY) is None
    assert not (directory / "checkpoints" / STATE).exists()
    assert store.seconds_per_epoch("digits") == [1.5]
    assert store.seconds_per_epoch("imagenet") == []


def test_evaluations_keep_their_arrays(store: Store) -> None:
    correct = np.array([True, False, True])
    found = record("evaluation", metrics={"top1": 66.7})
    store.commit_evaluation(KEY, {"kind": "knn"}, found, {"correct": correct})
    assert store.evaluation_record(KEY) == found
    assert np.array_equal(store.evaluation_arrays(KEY)["correct"], correct)


def test_pickled_and_broken_arrays_are_not_loaded(store: Store) -> None:
    store.commit_evaluation(KEY, {}, record("evaluation"), {"x": np.array([{"a": 1}], dtype=object)})
    assert store.evaluation_arrays(KEY) is None
    assert list(store.damage.values()) == ["not readable as arrays"]


def test_altered_arrays_take_their_record_with_them(store: Store) -> None:
    store.commit_evaluation(KEY, {}, record("evaluation"), {"x": np.arange(9)})
    arrays = store.evaluation_directory(KEY) / "arrays.npz"
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(content)
    again = Store(store.root)
    assert again.evaluation_record(KEY) is None
    assert again.evaluation_arrays(KEY) is None
    said = again.set_aside_damaged()
    assert len(said) == 2
    assert len(list((store.root / "damaged").iterdir())) == 2
    arrays.unlink(missing_ok=True)
    store.commit_evaluation(KEY, {}, record("evaluation"), {"x": np.arange(9)})
    arrays.unlink()
    assert Store(store.root).evaluation_record(KEY) is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_an_altered_record_is_not_believed(store: Store, where: float, bit: int, cut: bool) -> None:
    written = record("trial", metrics={"loss": 0.1, "top1": 62.7}, label="é")
    store.begin_trial(KEY, {})
    store.commit_trial(KEY, written)
    path = store.trial_directory(KEY) / "record.json"
    good = path.read_bytes()
    content, place = bytearray(good), int(where * len(good))
    content[place] ^= 1 << bit
    path.write_bytes(good[:place] if cut else content)
    found = Store(store.root).trial_record(KEY)
    assert found is None or found == written  # white space may change


def test_what_is_damaged_is_set_aside_and_nothing_is_lost(store: Store) -> None:
    directory = store.begin_trial(KEY, {})
    (directory / "record.json").write_text('{"kind": "trial"}', encoding="utf-8")
    (directory / "history.jsonl").write_text('{"epoch": 0}\n{"epo', encoding="utf-8")
    assert store.trial_record(KEY) is None
    assert store.history(KEY) == []
    history, altered = store.set_aside_damaged()
    assert altered.startswith(f"trials/{KEY}/record.json: was altered, or is of an older version")
    assert history.startswith(f"trials/{KEY}/history.jsonl: not valid JSON; set aside as damaged/trials-")
    kept = sorted(path.read_text() for path in (store.root / "damaged").iterdir())
    assert kept == ['{"epoch": 0}\n{"epo', '{"kind": "trial"}']
    assert store.set_aside_damaged() == []


def test_notes_are_kept_in_order_and_survive_a_cut(store: Store) -> None:
    directory = store.begin_trial(KEY, {})
    assert store.notes(KEY) == []
    store.note(KEY, "one")
    store.note(KEY, "two\nlines")
    with (directory / "notes.jsonl").open("a") as file:
        file.write('{"when": "2026')
    assert [note["text"] for note in store.notes(KEY)] == ["one", "two\nlines"]


def test_arrays_that_nobody_left_are_none(store: Store) -> None:
    assert store.evaluation_arrays(KEY) is None
    assert store.trial_arrays(KEY) is None
    store.begin_trial(KEY, {})
    store.commit_trial(KEY, record("toy"), {"0/iterations": np.arange(3)})
    assert store.trial_arrays(KEY)["0/iterations"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("key", ["../../etc/passwd", "", "0123", KEY.upper(), KEY + "0", KEY[:-1] + "/"])
def test_a_key_never_leaves_its_folder(store: Store, key: str) -> None:
    with pytest.raises(AblateError, match="takes 20 hexadecimal digits"):
        store.trial_record(key)


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


def test_a_store_that_cannot_be_written_is_refused_though_its_folders_are_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "access", lambda path, mode: False
    )  # a read-only mount; root passes all permissions
    with pytest.raises(
        AblateError, match=r"cannot be written: a read-only file system, or another's folder; make"
    ):
        store.prepare()
