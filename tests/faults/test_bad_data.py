"""Data that is corrupt, gone or of the wrong count, and losses that are no numbers: one trial ends, or none does."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digit_folders import SPOILT, mend, spoil, write_digits
from harness import SMALL, Run, await_true, differences, leftovers, outcome, said, started, the_line

pytestmark = [pytest.mark.faults, pytest.mark.cluster]

Told = Callable[[str, str, str], None]

STUDY = """
name: faulty
title: A folder of images, and digits beside it
source: Table 1
seeds: [0]
cells:
  - {name: folder, label: of the folder, set: {head: {kind: subvector, d0: 1/2}}}
  - name: other
    label: of other data
    set:
      head: {kind: none}
      data: {kind: digits, name: null, root: null, image_size: 8, train_images: 160, validation_images: 80}
evaluations: [linear_probe, spectrum]
tables:
  - name: data
    title: Data
    source: Table 1
    columns: [Data]
    rows: [{cell: folder, columns: [folder]}, {cell: other, columns: [digits]}]
"""
ALONE = re.sub(r"  - name: other.*?(?=evaluations)", "", STUDY, flags=re.DOTALL).replace(
    ", {cell: other, columns: [digits]}", ""
)
LINE = "of the folder, seed 0: failed: "
OTHER = "of other data, seed 0: done in"


def folder_run(
    place: Path, root: Path, *arguments: str, sets: tuple[str, ...] = (), study: str = STUDY
) -> Run:
    data = f"data={{kind: imagefolder, name: digits, root: {root}, image_size: 8}}"
    common = (
        "augment.mode=per_image",
        "backbone={kind: thin_resnet, width: 4, blocks: [1, 1]}",
        "epochs=8",
        "schedule.warmup_epochs=1",
        "batch_size=32",
        "projector_dim=16",
        "precision=float64",
        "limits.state_seconds=0.3",
    )
    return Run(place, arguments, (data, *common, *sets), study)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a folder that has, where others have a spoilt image, a copy of the one that is to stand in for it."""
    place = tmp_path_factory.mktemp("undisturbed")
    mend(write_digits(place / "data"))
    run = folder_run(place, place / "data")
    code, text = run.finish()
    assert code == 0, text
    return outcome(run.store)


failing_line = partial(the_line, start=LINE)


def the_trial_of_the_folder(run: Run) -> Path:
    def look() -> Path | None:
        configs = run.store.glob("trials/*/config.json")
        return next((p.parent for p in configs if '"imagefolder"' in p.read_text()), None)

    return await_true(look, 120)


def told_of_corrupt_images(run: Run) -> dict[str, list[str]]:
    """By the kind of record, of the trial that has any."""
    found = {}
    for path in [*run.store.glob("trials/*/record.json"), *run.store.glob("evaluations/*/record.json")]:
        record = json.loads(path.read_text())
        if "corrupt_images" in record:
            found[record.get("evaluation", record)["kind"]] = record["corrupt_images"]
    return found


def uncounted(found: dict[str, Any]) -> dict[str, Any]:
    """Without the number of corrupt images, which a folder of whole ones does not have."""

    def bare(metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if name != "corrupt_images"}

    return {
        key: parts | {"metrics": bare(parts["metrics"])} | {"history": list(map(bare, parts["history"]))}
        if "history" in parts
        else parts
        for key, parts in found.items()
    }


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.short)])
def test_corrupt_images_are_counted_named_and_stood_in_for(
    tmp_path: Path, undisturbed: dict[str, Any], told: Told, processes: int
) -> None:
    spoil(write_digits(tmp_path / "data"))
    run = folder_run(tmp_path, tmp_path / "data", sets=(f"resources.loader_processes={processes}",))
    code, text = run.finish()
    assert code == 0, text
    train = sorted(name for name in SPOILT if name.startswith("train"))
    everything = sorted(SPOILT)
    assert told_of_corrupt_images(run) == {
        "trial": train,
        "linear_probe": everything,
        "spectrum": everything[len(train) :],
    }
    record = json.loads((the_trial_of_the_folder(run) / "record.json").read_text())
    assert record["metrics"]["corrupt_images"] == len(train)
    said_of = [line for line in text.splitlines() if "cannot be decoded" in line]
    assert all(line.startswith("of the folder, seed 0: ") for line in said_of)
    assert all(any(name in line for line in said_of) for name in everything), text
    assert differences(uncounted(outcome(run.store)), undisturbed) == []
    told(
        f"{len(SPOILT)} of 240 images are truncated, empty, text, or fail a checksum ({processes} loader processes)",
        "nothing; counted and named on screen and in the records, equal to the bit to a folder with the stand-ins",
        "none needed",
    )


def test_corrupt_images_are_the_same_on_two_workers(
    tmp_path: Path, undisturbed: dict[str, Any], told: Told
) -> None:
    spoil(write_digits(tmp_path / "data"))
    arguments = ("--executor", "train", "--set", "resources.workers=2")
    run = folder_run(tmp_path, tmp_path / "data", *arguments, study=ALONE)
    code, text = run.finish()
    assert code == 0, text
    everything = sorted(SPOILT)
    assert told_of_corrupt_images(run) == {
        "trial": everything[:4],
        "linear_probe": everything,
        "spectrum": everything[4:],
    }
    found = uncounted(outcome(run.store))
    assert len(found) == 3
    worst = 0.0
    for key, parts in found.items():
        for name, value in undisturbed[key]["metrics"].items():
            assert parts["metrics"][name] == pytest.approx(value, rel=1e-6), name
            worst = max(worst, abs(parts["metrics"][name] / value - 1)) if value else worst
    told(
        "the same corrupt images, two workers",
        f"nothing; the same images, numbers equal to {worst:.0e}, the order of summation",
        "none needed",
    )


def test_more_corrupt_images_than_allowed_end_the_trial_and_are_named(
    tmp_path: Path, undisturbed: dict[str, Any], told: Told
) -> None:
    root = write_digits(tmp_path / "data")
    spoil(root)
    run = folder_run(tmp_path, root, sets=("limits.corrupt_images=3",))

    code, text = run.finish()
    assert code == 3, text
    line = failing_line(text)
    assert "4 images cannot be decoded" in line
    assert "takes at most limits.corrupt_images = 3; replace or remove them, or raise the limit" in line
    assert all(name in line for name in SPOILT if name.startswith("train"))
    assert "(at step " in line
    assert OTHER in text

    mend(root, "train")
    code, text = run.finish()
    assert code == 3, text
    line = failing_line(text)
    assert "5 images cannot be decoded" in line or "4 images cannot be decoded" in line
    assert sum(name in line for name in SPOILT if name.startswith("val")) >= 4
    assert "(at features of validation" in line

    mend(root, "val")
    code, text = run.finish()
    assert code == 0, text
    # a state of the first attempt may count those it had met
    assert differences(uncounted(outcome(run.store)), undisturbed) == []
    assert leftovers(run) == []
    told(
        "more corrupt images than `limits.corrupt_images`, in training and in validation",
        "nothing; the trial ends naming them, others go on; once mended the same command ends equal to the bit",
        "the same command goes on",
    )


def test_a_data_root_that_vanishes_ends_its_trials_and_once_back_they_go_on(
    tmp_path: Path, undisturbed: dict[str, Any], told: Told
) -> None:
    root = mended_folder(tmp_path / "data")
    run = folder_run(tmp_path, root)
    with started(run) as process:
        trial = the_trial_of_the_folder(run)
        await_true((trial / "history.jsonl").exists, 60)
        root.rename(tmp_path / "elsewhere")
        went = time.monotonic()
        await_true((trial / "failure.json").exists, 30)
        took = time.monotonic() - went
        assert process.wait(120) == 3, said(process)
    line = failing_line(said(process))
    assert f"{root}/train/" in line
    assert (
        "cannot be read (No such file or directory); bring data.root back, and the same command goes on"
        in line
    )
    assert "(at step " in line
    assert OTHER in said(process)

    code, text = run.finish()
    assert code == 2, text  # before anything starts
    assert f"{root}: imagefolder digits is not there; bring data.root back" in text

    (tmp_path / "elsewhere").rename(root)
    code, text = run.finish()
    assert code == 0, text
    assert differences(outcome(run.store), undisturbed) == []
    assert leftovers(run) == []
    told(
        "the data's folder vanishes while a trial trains",
        "the steps since the last state; other trials go on, the same command ends equal to the bit",
        f"{took:.1f} s until the trial has ended",
    )


def mended_folder(root: Path) -> Path:
    mend(write_digits(root))
    return root


@pytest.mark.parametrize(("here", "there"), [("val", "train"), ("train", "val")])
def test_other_classes_in_one_split_are_refused_before_anything_starts(
    tmp_path: Path, told: Told, here: str, there: str
) -> None:
    root = write_digits(tmp_path / "data")
    (root / there / "7").rename(tmp_path / "seven")
    run = folder_run(tmp_path, root)
    started = time.monotonic()
    code, text = run.finish()
    assert code == 2, text
    assert len(text.splitlines()) == 1, text
    assert f"{root}/{here}: class 7 is not in {there}/" in text
    assert "use the same class folders" in text
    assert not run.store.exists()
    told(
        f"a class of {here}/ that {there}/ lacks",
        "nothing; one line, exit code 2, before anything starts",
        f"{time.monotonic() - started:.1f} s",
    )


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_idx(root: Path, labels: np.ndarray) -> Path:
    """Fashion-MNIST's four files, with noise for images and the given labels of training."""
    root.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28))
    for part, its_labels in (("train", labels), ("t10k", np.arange(64) % 10)):
        (root / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (root / f"{part}-labels-idx1-ubyte").write_bytes(idx(its_labels))
    return root


@pytest.mark.parametrize("labels", [63, 65])
def test_another_number_of_labels_than_of_images_is_refused_before_anything_starts(
    tmp_path: Path, told: Told, labels: int
) -> None:
    root = write_idx(tmp_path / "data", np.arange(labels) % 10)
    run = folder_run(tmp_path, root)
    run.sets = (
        f"data={{kind: fashion_mnist, name: null, root: {root}, image_size: 8, train_images: 60}}",
        *run.sets[1:],
    )
    code, text = run.finish()
    assert code == 2, text
    assert len(text.splitlines()) == 1, text
    assert f"train-images-idx3-ubyte.gz: 64 images but {labels} labels; fetch both files again" in text
    assert not run.store.exists()
    told(
        f"{labels} labels for 64 images (idx files)",
        "nothing; one line, exit code 2, before anything starts",
        "none needed",
    )


def test_a_class_without_images_ends_its_trials_alone(
    tmp_path: Path, undisturbed: dict[str, Any], told: Told
) -> None:
    root = mended_folder(tmp_path / "data")
    (root / "val" / "3").rename(tmp_path / "three")
    (root / "val" / "3").mkdir()
    run = folder_run(tmp_path, root)
    code, text = run.finish()
    assert code == 3, text
    line = failing_line(text)
    assert f"{root}/val/3: no images" in line
    assert "(at its start)" in line
    assert OTHER in text
    (root / "val" / "3").rmdir()
    (tmp_path / "three").rename(root / "val" / "3")
    code, text = run.finish()
    assert code == 0, text
    assert differences(outcome(run.store), undisturbed) == []
    told(
        "a class folder without images",
        "nothing; its trials end with a line, others go on; once mended the same command ends equal to the bit",
        "the same command goes on",
    )


NOT_A_NUMBER = """
name: faulty
title: One far too fast
source: Table 1
seeds: [0]
cells:
  - {name: half, label: one half, set: {head: {kind: subvector, d0: 1/2}}}
  - {name: broken, label: far too fast, set: {optimizer: {kind: sgd, lr: 1e+30}}}
evaluations: [linear_probe, spectrum]
tables:
  - name: heads
    title: Heads
    source: Table 1
    columns: [Head]
    rows: [{cell: half, columns: [half]}, {cell: broken, columns: [broken]}]
"""


def test_a_loss_that_is_no_number_ends_its_trial_alone_and_names_the_step(tmp_path: Path, told: Told) -> None:
    run = Run(tmp_path, (), (*SMALL, "data.train_images=160"), NOT_A_NUMBER)
    code, text = run.finish()
    assert code == 3, text
    line = the_line(text, "far too fast, seed 0: failed: ")
    # the rate is 0 at step 0, so step 1 sees the first weights still, and step 2 those of a rate of 1e30 / 5
    assert "loss is not finite at step 2; lower optimizer.lr or raise loss.temperature" in line
    assert "one half, seed 0: done in" in text
    run.study = NOT_A_NUMBER.replace("1e+30", "0.05")
    run = Run(tmp_path, run.arguments, run.sets, run.study)
    code, text = run.finish()
    assert code == 0, text
    assert "1 to train" in text  # what was done is kept
    told(
        "the loss of one trial is not finite",
        "that trial; it names the step and the remedy, others go on",
        "once lower, the same command trains it alone",
    )
