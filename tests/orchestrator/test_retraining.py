"""`--retrain`: what is finished is set aside, model and all; a command that was killed goes on and restarts nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from orchestrator import retraining
from orchestrator.errors import AblateError, SpecError
from orchestrator.leases import Lease, Leases
from orchestrator.plan import Plan, jobs
from orchestrator.store import Store
from tests.orchestrator.test_apart import planned, worked


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Plan, Store]:
    """Two cells with a training each, trained and measured."""
    plan, store = planned(tmp_path, "epochs: 2", "epochs: 1", "[knn, spectrum]"), Store(tmp_path / "store")
    assert len(plan.trials) == 2
    worked(plan, store)
    return plan, store


def contents(store: Store) -> Counter[str]:
    """Digests of all records, arrays and models, wherever they lie."""
    kept = ("record.json", "arrays.npz", "model.safetensors", "history.jsonl")
    files = [path for path in store.root.rglob("*") if path.name in kept]
    return Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)


def numbers(plan: Plan, store: Store) -> dict[str, object]:
    found: dict[str, object] = {}
    for key in plan.trials:
        record = store.trial_record(key)
        assert record is not None
        found[key] = record["metrics"]["loss"]
    for key in plan.evaluations:
        record = store.evaluation_record(key)
        assert record is not None
        found[key] = record["metrics"]
    return found


def test_cells_are_chosen_by_their_names_alone_or_with_their_study(tmp_path: Path) -> None:
    plan = planned(tmp_path, "epochs: 2", "epochs: 1")
    first, second = plan.trials
    assert retraining.chosen(plan, ["a"]) == retraining.chosen(plan, ["apart/a", "a"]) == [first]
    assert retraining.chosen(plan, ["b", "a"]) == [second, first]
    assert retraining.chosen(plan, []) == []
    with pytest.raises(SpecError, match=r"--retrain apart/aa: no such cell; did you mean 'apart/a'\?"):
        retraining.chosen(plan, ["apart/aa"])


def test_what_is_trained_anew_is_set_aside_whole_and_comes_to_the_same_numbers(
    finished: tuple[Plan, Store],
) -> None:
    plan, store = finished
    before, old = numbers(plan, store), contents(store)
    (key, other) = plan.trials
    (sentence,) = retraining.set_aside([key], store)
    assert f"trial {key} of " in sentence
    assert contents(store) == old
    fresh = Store(store.root)
    assert fresh.trial_record(key) is None
    assert fresh.trial_record(other) is not None
    (job,) = jobs(plan, fresh)
    assert (job.trial, job.train, len(job.evaluations)) == (key, True, 2)
    worked(plan, fresh)
    retraining.finish([key], fresh)
    assert numbers(plan, fresh) == before
    assert old - contents(fresh) == Counter()
    assert fresh.damage == {}


def test_a_killed_command_goes_on_and_the_next_one_like_it_trains_again(finished: tuple[Plan, Store]) -> None:
    plan, store = finished
    keys = list(plan.trials)
    assert len(retraining.set_aside(keys, store)) == 2
    worked(plan.only(lambda study, cell: cell.cell == "a"), store)  # and is killed before b
    anew = Store(store.root).trial_record(keys[0])
    retraining.finish(keys, store)
    assert retraining.set_aside(keys, Store(store.root)) == []
    assert Store(store.root).trial_record(keys[0]) == anew
    worked(plan, store)
    retraining.finish(keys, store)
    assert len(retraining.set_aside(keys, Store(store.root))) == 2


@pytest.mark.parametrize("moves", [0, 1, 3, 5, 8])
def test_a_kill_while_records_are_moved_loses_nothing(
    finished: tuple[Plan, Store], moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store = finished
    keys, old, left = list(plan.trials), contents(store), [moves]
    rename = Path.rename

    def counted(path: Path, target: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted)
        with pytest.raises(KeyboardInterrupt):
            retraining.set_aside(keys, store)
    assert contents(store) == old
    retraining.set_aside(keys, Store(store.root))
    assert contents(store) == old
    fresh = Store(store.root)
    assert [job.train for job in jobs(plan, fresh)] == [True, True]
    assert not list((store.root / "trials").rglob("model.safetensors"))


def test_a_trial_that_another_command_works_on_is_left_alone(finished: tuple[Plan, Store]) -> None:
    plan, store = finished
    key = next(iter(plan.trials))
    lease = Leases(store.root, "b" * 8).acquire(key)
    assert isinstance(lease, Lease)
    with lease, pytest.raises(AblateError, match=f"--retrain: trial {key} is worked on by"):
        retraining.set_aside([key], store)
    assert Store(store.root).trial_record(key) is not None
