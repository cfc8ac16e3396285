"""Records that are reused are compared with the data and the code that are here."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.freshness import Reused, changed_code, changed_data, different_data
from orchestrator.plan import make_plan
from orchestrator.report import make_report
from orchestrator.report.markdown import markdown
from orchestrator.software import code, code_of_commit, digest_of_code
from orchestrator.store import Store
from tests.orchestrator.synthetic import fill
from tests.trainers.tiny import tiny_trial
from trainers.config import DataConfig
from trainers.data import datasets
from trainers.data.datasets import load_dataset
from trainers.data.signature import signature


def record(data: DataConfig, **told: Any) -> dict[str, Any]:
    loaded = load_dataset(data)
    trial = tiny_trial(data=data.model_dump(), augment={"mode": "per_image"})
    dataset = {"name": loaded.name, "fingerprint": loaded.fingerprint(), "signature": signature(data)} | told
    return {"kind": "trial", "config": trial.model_dump(mode="json"), "dataset": dataset, "environment": {}}


def folder(root: Path) -> DataConfig:
    for part in ("train", "val"):
        for label in ("a", "b"):
            place = root / part / label
            place.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(place / f"{number}.png")
    return DataConfig(kind="imagefolder", name="photos", root=str(root), image_size=8)


def cifar(root: Path, value: int = 3) -> DataConfig:
    (root / "cifar-100-binary").mkdir(parents=True, exist_ok=True)
    for name in ("train.bin", "test.bin"):
        images = np.full((4, 2 + 3072), value, np.uint8)
        images.tofile(root / "cifar-100-binary" / name)
    return DataConfig(kind="cifar100", root=str(root), image_size=8)


def test_data_that_are_as_they_were_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Reused(("s/a",), record(data))
        for data in (folder(tmp_path / "f"), cifar(tmp_path / "c"), DataConfig(kind="digits", image_size=8))
    ]
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert changed_data(found) == []


@pytest.mark.parametrize("known", [True, False])
def test_files_of_the_same_size_with_other_contents_are_told(tmp_path: Path, known: bool) -> None:
    made = record(cifar(tmp_path), **({} if known else {"signature": None}))
    cifar(tmp_path, value=4)
    (sentence,) = changed_data([Reused(("s/a",), made), Reused(("s/b", "s/c", "t/d"), made)])
    here = load_dataset(cifar(tmp_path, value=4)).fingerprint()
    assert sentence.startswith(
        f"data 'cifar100' has other contents than when s/a, s/b, s/c and 1 more was trained (sha256 {here[:8]} "
        f"against {made['dataset']['fingerprint'][:8]})"
    )
    assert "--retrain" in sentence


def test_an_image_that_comes_or_goes_is_told(tmp_path: Path) -> None:
    data = folder(tmp_path)
    made = Reused(("s/a",), record(data))
    extra = tmp_path / "train" / "a" / "extra.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(extra)
    assert len(changed_data([made])) == 1
    extra.unlink()
    assert changed_data([made]) == []  # the folder's time is another, its images are the same


def test_data_that_were_only_touched_or_copied_are_the_same(tmp_path: Path) -> None:
    made = record(cifar(tmp_path / "one"))
    os.utime(tmp_path / "one" / "cifar-100-binary" / "train.bin", (time.time() + 9, time.time() + 9))
    assert changed_data([Reused(("s/a",), made)]) == []
    assert changed_data([Reused(("s/a",), made, cifar(tmp_path / "other"))]) == []
    assert len(changed_data([Reused(("s/a",), made, cifar(tmp_path / "other", value=5))])) == 1


def test_data_that_are_not_here_are_not_told_of(tmp_path: Path) -> None:
    made = record(folder(tmp_path / "f"))
    (tmp_path / "f").rename(tmp_path / "gone")
    assert changed_data([Reused(("s/a",), made)]) == []


def test_two_contents_of_one_data_set_in_a_report_are_told_on_the_page(tmp_path: Path) -> None:
    plan, store = make_plan(["table1"], "digits", seeds=(0,)), Store(tmp_path)
    fill(plan, store)
    assert make_report(plan, plan.studies[0], store).provenance["warnings"] == []
    key = next(cell.trial for cell in plan.cells() if cell.cell == "none")
    changed = store.trial_record(key)
    assert changed is not None
    changed["dataset"]["fingerprint"] = "6" * 64
    store.commit_trial(key, changed)
    report = make_report(plan, plan.studies[0], store)
    (sentence,) = report.provenance["warnings"]
    assert (
        "data 'digits' had other contents when table1/mlp, table1/linear, table1/directclr was trained"
        in sentence
    )
    assert "than when table1/none was (sha256 55555555 against 66666666)" in sentence
    assert "had other contents" in markdown(report)


def test_subsets_of_one_data_set_are_not_compared(tmp_path: Path) -> None:
    data = [DataConfig(kind="digits", image_size=8, train_images=size) for size in (50, 60)]
    assert different_data([Reused((str(one.train_images),), record(one)) for one in data]) == []


# --- code -------------------------------------------------------------------------------------------


PLAIN = b'def f(x):\n    """Doc."""\n    return x + 1\n'


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (b'"""Module."""\n# comment\ndef f(x):\n    """Other."""\n\n    return (x\n + 1)  # why\n', True),
        (b'def f(x):\n    """Other words."""\n    # comment\n    return (x +\n            1)\n', True),
        (b'def f(x):\n    """Doc."""\n    return x + 2\n', False),
        (b'def f(y):\n    """Doc."""\n    return y + 1\n', False),
    ],
)
def test_the_digest_of_code_follows_what_it_computes(other: bytes, same: bool) -> None:
    assert (digest_of_code({"a.py": other}) == digest_of_code({"a.py": PLAIN})) == same
    assert digest_of_code({"b.py": PLAIN}) != digest_of_code({"a.py": PLAIN})


def test_a_record_of_other_code_is_told_with_its_cells_and_one_of_this_code_is_not() -> None:
    def made(**environment: str) -> dict[str, Any]:
        return {"kind": "trial", "environment": environment}

    assert changed_code([Reused(("s/a",), made(code=code())), Reused(("s/b",), made())]) == []
    assert changed_code([Reused(("s/a",), made(commit="no-commit"))]) == []
    (sentence,) = changed_code(
        [Reused(("s/a", "s/b"), made(code="0" * 12)), Reused(("s/c",), made(code=code()))]
    )
    assert sentence.startswith(
        f"trainers/ has changed since s/a, s/b was trained (code {code()} here, 000000000000 there)"
    )
    assert "--retrain" in sentence


def test_the_code_of_an_older_record_is_that_of_its_commit() -> None:
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True).stdout

    try:
        commit = git("rev-parse", "--short=12", "HEAD").decode().strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no checkout")
    names = git("ls-tree", "-r", "--name-only", "HEAD", "trainers").decode().split()
    files = {
        name.removeprefix("trainers/"): git("show", f"HEAD:{name}") for name in names if name.endswith(".py")
    }
    assert code_of_commit(commit) == digest_of_code(files)
    assert code_of_commit(f"{commit}+") is None
    assert code_of_commit("f" * 12) is None
