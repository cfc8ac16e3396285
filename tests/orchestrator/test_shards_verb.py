"""Shards from the command line: made, named as `data.root`, and refused before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator import cli
from orchestrator.library import load_recipe
from orchestrator.spec import trial_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{i}.png")
    return tmp_path / "images"


def ablate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["ablate", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out + said.err


def recipe(root: str) -> tuple[str, ...]:
    return (
        "data={kind: imagefolder, name: tiny, image_size: 16}",
        f"data.root={root}",
        "augment.mode=per_image",
    )


def test_a_folder_becomes_shards_that_data_root_takes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "shards")
    code, said = ablate(monkeypatch, capsys, "shard", str(folder), out)
    assert code == 0
    lines = said.splitlines()
    assert lines[:2] == ["train-000000.tar", "val-000000.tar"]
    assert lines[2].startswith("2 shards, 16 images, 0.0 MB; --set data.root=")
    code, said = ablate(monkeypatch, capsys, "shard", str(folder), out)
    assert code == 2
    assert "has train-000000.tar already" in said
    code, said = ablate(monkeypatch, capsys, "shard", str(tmp_path), out)
    assert code == 2
    assert "lacks the folder train/" in said


def test_a_trial_has_the_same_key_wherever_its_images_lie() -> None:
    keys = {
        trial_key(load_recipe("digits", recipe(root)).recipe.trial(0), 1)
        for root in ("/data/x", "s3://bucket/x", "gs://bucket/x")
    }
    assert len(keys) == 1
    assert load_recipe("digits", recipe("s3://bucket/x")).recipe.trial(0).data.root == "s3://bucket/x"


@pytest.mark.parametrize(
    ("root", "told"),
    [
        ("s3://KEY:hunter2@bucket/x", "data.root: got a URL with keys or a query in it, takes"),
        ("https://host/x?signature=hunter2", "data.root: got a URL with keys or a query in it, takes"),
        ("gs://bucket/x", "pip install gcsfs"),
        ("nothing://hunter2/x", "unknown scheme"),
        ("memory://nowhere/x", "nothing is there; set data.root to where the shards are"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_before_anything_starts(
    root: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    sets = [part for one in recipe(root) for part in ("--set", one)]
    store = tmp_path / "store"
    code, said = ablate(monkeypatch, capsys, "run", "quickstart", "--store", str(store), *sets)
    assert code == 2
    assert told in said
    assert "hunter2" not in said
    assert "\n" not in said.strip()
    assert not store.exists()
