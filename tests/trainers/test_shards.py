"""Image folders as tar shards: the same data, and tars that cannot be trusted."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from object_store import ObjectStore, forget_connections
from photos import CLASSES, write_photos
from tiny import tiny_trial

from trainers.checkpoint import read
from trainers.config import DataConfig
from trainers.context import TrialContext
from trainers.contrastive import TrainingResult, train
from trainers.data.datasets import DataError, check_data, load_dataset
from trainers.data.loader import load_image
from trainers.data.packing import pack

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SMALL = 4000
"""Bytes of a shard: a handful of images."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    pack(folder, str(tmp_path / "shards"), SMALL)
    return tmp_path / "shards"


def config(root: Path | str, **fields: Any) -> DataConfig:
    return DataConfig(kind="imagefolder", name="photos", root=str(root), image_size=16, **fields)


# --- the same data --------------------------------------------------------------------------------


def _trained(root: Path | str, directory: Path, processes: int) -> TrainingResult:
    directory.mkdir()
    data = {"kind": "imagefolder", "name": "photos", "root": str(root), "image_size": 16}
    trial = tiny_trial(data=data, batch_size=6, augment={"mode": "per_image"})
    context = TrialContext(directory, loader_processes=processes, corrupt_images=3)
    return train(trial, context)


@pytest.mark.parametrize("processes", [0, 2])
def test_a_training_is_the_same_to_the_bit_from_a_folder_shards_and_s3(
    folder: Path,
    shards: Path,
    s3: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
) -> None:
    s3.use(monkeypatch)
    bucket = f"s3://photos-{processes}"
    import s3fs

    s3fs.S3FileSystem().mkdir(bucket)
    made = pack(folder, f"{bucket}/set", SMALL)
    assert len(made) > 6
    results = {
        place: _trained(root, tmp_path / f"trained from {place}", processes)
        for place, root in (("folder", folder), ("shards", shards), ("s3", f"{bucket}/set"))
    }
    forget_connections()
    expected = results.pop("folder")
    assert expected.corrupt_images == ["train/b/2.JPEG"]
    weights = read(expected.model_path)[0]
    for result in results.values():
        assert result.dataset_fingerprint == expected.dataset_fingerprint
        assert result.corrupt_images == expected.corrupt_images
        assert [epoch["loss"] for epoch in result.history] == [epoch["loss"] for epoch in expected.history]
        others = read(result.model_path)[0]
        assert others.keys() == weights.keys()
        assert all(torch.equal(others[name], tensor) for name, tensor in weights.items())
    assert all(s3.gets(f"photos-{processes}/set/{name}") == 1 for name, _, _ in made)


@pytest.mark.parametrize("subset", [{}, {"train_images": 7, "validation_images": 5}])
def test_shards_hold_what_the_folder_holds_in_its_order(
    folder: Path, shards: Path, subset: dict[str, int]
) -> None:
    unpacked, packed = load_dataset(config(folder, **subset)), load_dataset(config(shards, **subset))
    assert packed.class_names == unpacked.class_names == tuple(sorted(CLASSES))
    assert packed.fingerprint() == unpacked.fingerprint()
    for one, other in ((unpacked.train, packed.train), (unpacked.validation, packed.validation)):
        assert [os.path.relpath(path, folder) for path in one.paths or ()] == [
            os.path.relpath(path, shards) for path in other.paths or ()
        ]
        assert torch.equal(one.labels, other.labels)
        corrupt: tuple[set[int], set[int]] = (set(), set())
        for index in range(len(one)):
            assert torch.equal(load_image(one, index, corrupt[0]), load_image(other, index, corrupt[1]))
        assert corrupt[0] == corrupt[1]


def test_tars_of_the_class_folders_by_tar_itself_are_shards(folder: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        with tarfile.open(tmp_path / f"{part}-0.tar", "w") as tar:
            tar.add(folder / part, ".")  # as `tar -C train -cf train-0.tar .` does: ./a/0.JPEG, and folders
    assert load_dataset(config(tmp_path)).fingerprint() == load_dataset(config(folder)).fingerprint()


def test_packing_gives_the_same_bytes_whenever_and_wherever(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy)
    for path in copy.rglob("*"):
        os.utime(path, (0, 0))
    one = pack(folder, str(tmp_path / "one"), SMALL)
    assert pack(copy, str(tmp_path / "other"), SMALL) == one
    for name, _, size in one:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "other" / name).read_bytes()
        assert len(content) == size
    with pytest.raises(DataError, match=r"one: has train-000000\.tar already"):
        pack(folder, str(tmp_path / "one"), SMALL)


def test_the_list_of_members_is_made_once_and_again_for_another_tar(
    folder: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_dataset(config(shards)).fingerprint()
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("read again"))
    assert load_dataset(config(shards)).fingerprint() == expected
    monkeypatch.undo()
    monkeypatch.setenv("ABLATE_CACHE", str(shards.parent / "cache"))
    tar = shards / "train-000000.tar"
    os.utime(tar)
    kept = shards / "train-000000.tar.members.json"
    kept.write_text(kept.read_text().replace("0.JPEG", "9.JPEG"))
    assert load_dataset(config(shards)).fingerprint() == expected


@pytest.mark.parametrize(
    "change", [{"names": ["../../x.png"]}, {"starts": [-1]}, {"sizes": [10**9]}, {"x": 1}]
)
def test_a_list_that_no_tar_could_have_is_made_anew(shards: Path, change: dict[str, Any]) -> None:
    expected = load_dataset(config(shards)).fingerprint()
    kept = shards / "train-000000.tar.members.json"
    content = json.loads(kept.read_text())
    for name, values in change.items():
        content[name] = values + content[name][1:] if name in content else values
    kept.write_text(json.dumps(content))
    assert load_dataset(config(shards)).fingerprint() == expected
    assert json.loads(kept.read_text()).keys() == {"version", "names", "starts", "sizes", "passed_over"}


def test_where_nothing_can_be_written_beside_the_shards_their_lists_are_in_the_cache(
    folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.data import shards as module

    def only_cache(path: Path, content: str) -> None:
        if path.is_relative_to(shards):
            raise PermissionError
        path.write_text(content)

    monkeypatch.setattr(module, "write_atomically", only_cache)
    expected = load_dataset(config(folder)).fingerprint()
    assert load_dataset(config(shards)).fingerprint() == expected
    assert len(list((tmp_path / "cache" / "members").iterdir())) == len(list(shards.iterdir())) > 6
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("read again"))
    assert load_dataset(config(shards)).fingerprint() == expected


# --- shards that are missing, damaged or hostile --------------------------------------------------


def _tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> None:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


IMAGE = ("a/1.png", b"x" * 700)


@pytest.mark.parametrize("name", ["/a/1.png", "../a/1.png", "a/../../1.png", "a/../1.png"])
def test_a_member_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    _tar(tmp_path / "train-0.tar", IMAGE, (name, b"x"))
    _tar(tmp_path / "val-0.tar", IMAGE)
    with pytest.raises(DataError, match=r"train-0\.tar: has a member .* that leads out of its folder"):
        load_dataset(config(tmp_path))


def test_links_and_devices_are_passed_over_with_a_line(tmp_path: Path) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    hostile = [_special(f"a/{i}0.png", kind, "/etc/passwd") for i, kind in enumerate(kinds)]
    _tar(tmp_path / "train-0.tar", *hostile, IMAGE)
    _tar(tmp_path / "val-0.tar", IMAGE)
    notes: list[str] = []
    for _ in range(2):  # from the tar, then from its list
        dataset = load_dataset(config(tmp_path), note=notes.append)
        assert dataset.train.paths == [f"{tmp_path}/train/a/1.png"]
    assert notes == ["train-0.tar: 4 members are links, devices or sparse files, and passed over"] * 2


@pytest.mark.parametrize("left", [0, 100, 512, 900, 1024, 1536, 1800, 2048, 2560])
def test_a_shard_that_is_cut_off_anywhere_is_told_in_one_line(tmp_path: Path, left: int) -> None:
    """Two members of 2 blocks each: 512 bytes of head, 700 of content filled up to 1024; then the end mark."""
    _tar(tmp_path / "train-0.tar", IMAGE, ("a/2.png", b"x" * 700))
    _tar(tmp_path / "val-0.tar", IMAGE)
    load_dataset(config(tmp_path))
    os.truncate(tmp_path / "train-0.tar", left)
    with pytest.raises(
        DataError, match=r"train-0\.tar: not a whole, uncompressed tar file \(.*\); put it there"
    ):
        load_dataset(config(tmp_path))


def test_a_damaged_head_is_not_taken_for_the_end(tmp_path: Path) -> None:
    _tar(tmp_path / "train-0.tar", IMAGE, ("a/2.png", b"x" * 700))
    _tar(tmp_path / "val-0.tar", IMAGE)
    with (tmp_path / "train-0.tar").open("r+b") as file:
        file.seek(1536 + 3)
        file.write(b"\xff\xff")
    with pytest.raises(DataError, match=r"train-0\.tar: not a whole, uncompressed tar"):
        load_dataset(config(tmp_path))


def test_a_size_below_zero_ends_the_reading(tmp_path: Path) -> None:
    """Base-256 of -1024: tarfile would go back to the same member for ever."""
    _tar(tmp_path / "train-0.tar", IMAGE, ("a/2.png", b""))
    _tar(tmp_path / "val-0.tar", IMAGE)
    with (tmp_path / "train-0.tar").open("r+b") as file:
        file.seek(1536)
        head = bytearray(file.read(512))
        head[124:136] = (-2048 & (1 << 96) - 1).to_bytes(12, "big")
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        file.seek(1536)
        file.write(head)
    with pytest.raises(DataError, match=r"train-0\.tar: not a whole"):
        load_dataset(config(tmp_path))


def _cut_off(shards: Path) -> None:
    for tar in shards.glob("train-*.tar"):
        os.truncate(tar, 600)


def _replace(shards: Path) -> None:
    """By one of the same length whose images lie elsewhere."""
    for tar in shards.glob("train-*.tar"):
        content = tar.read_bytes()
        tar.unlink()
        tar.write_bytes(content[::-1])


@pytest.mark.parametrize("hurt", [_cut_off, _replace])
@pytest.mark.parametrize("processes", [0, 2])
def test_a_shard_that_is_cut_off_replaced_or_gone_during_training_is_told_in_one_line(
    shards: Path, tmp_path: Path, processes: int, hurt: Callable[[Path], None]
) -> None:
    from trainers.data.loader import ViewLoader

    data = {"kind": "imagefolder", "name": "photos", "root": str(shards), "image_size": 16}
    trial = tiny_trial(data=data, batch_size=6, augment={"mode": "per_image"})
    dataset = load_dataset(trial.data)
    hurt(shards)
    with pytest.raises(DataError, match=r"train-00000\d\.tar: has changed since its images were listed; put"):
        list(ViewLoader(dataset, trial, loader_processes=processes).epoch(0))
    for tar in shards.glob("train-*.tar"):
        tar.unlink()
    with pytest.raises(DataError, match=r"train-00000\d\.tar: cannot be read \(No such file or directory\)"):
        list(ViewLoader(dataset, trial, loader_processes=processes).epoch(0))


def test_missing_shards_and_images_that_are_there_twice_are_refused(shards: Path) -> None:
    check_data(config(shards), batch_size=2)
    shutil.copy(shards / "train-000001.tar", shards / "train-000099.tar")
    with pytest.raises(DataError, match=r"train has \d+ shards and lacks number \d+; put all of them there"):
        check_data(config(shards), batch_size=2)
    count = len(list(shards.glob("train-*.tar"))) - 1
    (shards / "train-000099.tar").rename(shards / f"train-{count:06d}.tar")
    with pytest.raises(DataError, match=r"a/.* is there twice, in train-000001\.tar and train-"):
        load_dataset(config(shards))
    for tar in shards.glob("val-*.tar"):
        tar.unlink()
    with pytest.raises(DataError, match=r"has no shards of val; takes train-000000\.tar, …"):
        check_data(config(shards), batch_size=2)


def test_classes_of_training_and_validation_have_to_agree(tmp_path: Path) -> None:
    _tar(tmp_path / "train-0.tar", IMAGE)
    _tar(tmp_path / "val-0.tar", IMAGE, ("b/1.png", b"x"))
    with pytest.raises(DataError, match=r"class b is not in train/"):
        load_dataset(config(tmp_path))
