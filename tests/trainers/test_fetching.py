"""Shards at a URL, brought to a node's cache: once, whole, and with a line where it can't be."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from filelock import FileLock
from object_store import ObjectStore, forget_connections
from photos import write_photos
from tiny import tiny_trial

from trainers.config import DataConfig
from trainers.context import Interrupted, TrialContext
from trainers.contrastive import train
from trainers.data import fetching
from trainers.data.datasets import DataError, check_data, load_dataset
from trainers.data.fetching import fetch_shards, list_shards
from trainers.data.packing import pack

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    pack(write_photos(root / "folder", corrupt=False), str(root / "tars"), 8000)
    return root / "tars"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    forget_connections()


@pytest.fixture
def url(s3: ObjectStore, made: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own."""
    s3.use(monkeypatch)
    bucket = "b" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    system = fsspec.filesystem("s3")
    system.mkdir(bucket)
    system.put([str(tar) for tar in made.glob("*.tar")], f"{bucket}/set/")
    return f"s3://{bucket}/set"


def config(root: str) -> DataConfig:
    return DataConfig(kind="imagefolder", name="photos", root=root, image_size=16)


def fetch(url: str, beat: Any = lambda where: None, note: Any = lambda text: None) -> Path:
    return fetch_shards(url, beat, note)


def same(folder: Path, made: Path) -> bool:
    names = sorted(tar.name for tar in made.glob("*.tar"))
    return names == sorted(tar.name for tar in folder.glob("*.tar")) and all(
        (folder / name).read_bytes() == (made / name).read_bytes() for name in names
    )


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


# --- once -----------------------------------------------------------------------------------------


def test_looking_before_anything_starts_fetches_nothing(
    url: str, s3: ObjectStore, cache: Path, made: Path
) -> None:
    check_data(config(url), batch_size=2)
    listed = list_shards(url)
    assert [(one.name, one.bytes) for one in listed] == [
        (tar.name, tar.stat().st_size) for tar in sorted(made.glob("*.tar"))
    ]
    assert all(one.md5 == hashlib.md5((made / one.name).read_bytes()).hexdigest() for one in listed)
    assert s3.gets(url[5:] + "/train-000000.tar") == 0
    assert not cache.exists()


def _fetch_at(start: Any, url: str) -> None:
    start.wait()
    fetch(url)


def test_four_processes_at_once_fetch_each_shard_once(
    url: str, s3: ObjectStore, made: Path, cache: Path
) -> None:
    start = FORK.Barrier(4)
    processes = [FORK.Process(target=_fetch_at, args=(start, url)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    notes: list[str] = []
    assert same(folder := fetch(url, note=notes.append), made)
    assert notes == []  # there was nothing left to fetch
    assert {s3.gets(f"{url[5:]}/{tar.name}") for tar in made.glob("*.tar")} == {1}
    assert partials(folder) == []


def test_what_was_fetched_is_told_once_with_its_size_and_place_and_how_far_it_is_meanwhile(
    url: str, made: Path, cache: Path
) -> None:
    beats: list[str] = []
    notes: list[str] = []
    folder = fetch(url, beats.append, notes.append)
    size = sum(tar.stat().st_size for tar in made.glob("*.tar"))
    count = len(list(made.glob("*.tar")))
    assert notes == [
        f"fetched {count} shards, {size / 1e6:.1f} MB, of {url} to {folder} (ABLATE_CACHE says where)"
    ]
    assert folder.is_relative_to(cache)
    assert beats[-1] == f"fetching {url}, {size / 1e6:.1f} MB of {size / 1e6:.1f} MB"


def test_a_shard_that_changed_on_the_server_or_was_hurt_here_is_fetched_again(
    url: str, s3: ObjectStore, made: Path
) -> None:
    folder = fetch(url)
    os.truncate(folder / "val-000000.tar", 1000)
    system = fsspec.filesystem("s3")
    other = (made / "train-000001.tar").read_bytes()[:-512]
    system.pipe_file(f"{url}/train-000001.tar", other)
    fetch(url)
    assert (folder / "train-000001.tar").read_bytes() == other
    assert (folder / "val-000000.tar").read_bytes() == (made / "val-000000.tar").read_bytes()
    counts = {tar.name: s3.gets(f"{url[5:]}/{tar.name}") for tar in made.glob("*.tar")}
    assert counts.pop("train-000001.tar") == counts.pop("val-000000.tar") == 2
    assert set(counts.values()) == {1}


def test_a_shard_that_the_server_has_no_more_is_no_more_of_the_data(url: str) -> None:
    folder = fetch(url)
    last = sorted(folder.glob("train-*.tar"))[-1]
    fsspec.filesystem("s3").rm(f"{url}/{last.name}")
    assert fetch(url) == folder
    assert not last.exists()


# --- whole ----------------------------------------------------------------------------------------


def _fetch_and_hang(url: str, begun: Any) -> None:
    def hang(self: fetching._Fetching, count: int) -> None:
        begun.set()
        time.sleep(600)

    fetching._Fetching.add = hang  # type: ignore[method-assign]
    fetch(url)


def test_a_download_that_was_killed_leaves_no_shard_and_no_lock_and_is_made_again(
    url: str, made: Path, cache: Path
) -> None:
    begun = FORK.Event()
    process = FORK.Process(target=_fetch_and_hang, args=(url, begun))
    process.start()
    assert begun.wait(60)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    (folder,) = (cache / "shards").iterdir()
    assert partials(folder)
    assert not list(folder.glob("*.tar"))
    assert same(fetch(url), made)
    assert partials(folder) == []


def _hurt(monkeypatch: pytest.MonkeyPatch, times: int, hurt: Any) -> None:
    """Every shard arrives hurt, so many times."""
    whole = fetching._Fetching._get
    left: dict[str, int] = {}

    def get(self: fetching._Fetching, shard: fetching.RemoteShard, partial: Path) -> None:
        whole(self, shard, partial)
        left[shard.name] = left.get(shard.name, times) - 1
        if left[shard.name] >= 0:
            hurt(partial, left[shard.name])

    monkeypatch.setattr(fetching._Fetching, "_get", get)


def _cut_off(partial: Path, number: int) -> None:
    os.truncate(partial, 700)


def _flip(partial: Path, number: int) -> None:
    content = bytearray(partial.read_bytes())
    content[600 + number] ^= 1
    partial.write_bytes(content)


@pytest.mark.parametrize("hurt", [_cut_off, _flip])
def test_a_shard_that_arrives_damaged_again_and_again_is_refused(
    url: str, cache: Path, monkeypatch: pytest.MonkeyPatch, hurt: Any
) -> None:
    _hurt(monkeypatch, 3, hurt)
    with pytest.raises(DataError, match=r"/set/.*\.tar: arrived damaged 3 times, takes \d+ bytes; put it"):
        fetch(url)
    (folder,) = (cache / "shards").iterdir()
    assert partials(folder) == []


@pytest.mark.parametrize("hurt", [_cut_off, _flip])
def test_a_shard_that_arrives_damaged_twice_is_whole_the_third_time(
    url: str, made: Path, monkeypatch: pytest.MonkeyPatch, hurt: Any
) -> None:
    _hurt(monkeypatch, 2, hurt)
    assert same(fetch(url), made)


def test_an_etag_that_only_looks_like_a_checksum_is_found_out_by_a_second_look(
    url: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of objects that the server encrypts with a key of its own."""
    monkeypatch.setattr(fetching, "_md5", lambda: hashlib.sha256())
    assert same(fetch(url), made)


# --- or a line ------------------------------------------------------------------------------------


def test_a_url_that_cannot_be_read_is_told_in_one_line(
    url: str, s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = url.rsplit("/", 1)[0]
    with pytest.raises(DataError, match=r"^s3://nobucket-here/x: nothing is there; set data\.root"):
        check_data(config("s3://nobucket-here/x"), batch_size=2)
    with pytest.raises(DataError, match=rf"^{bucket}: has no shards of train; takes train-000000\.tar"):
        check_data(config(bucket), batch_size=2)
    fsspec.filesystem("s3").rm(f"{url}/train-000001.tar")
    with pytest.raises(DataError, match=r"train has \d+ shards and lacks number 1"):
        load_dataset(config(url))
    with pytest.raises(DataError, match=r"^data\.root: gs://\.\.\.: .*pip install gcsfs"):
        check_data(config("gs://bucket/x"), batch_size=2)
    with pytest.raises(DataError, match=r"^data\.root: .*keys.*environment") as told:
        check_data(config("s3://KEY:hunter2@bucket/x"), batch_size=2)
    assert "hunter2" not in str(told.value)


def test_a_server_that_does_not_answer_and_keys_that_are_not_there_are_told(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # where no keys are
    forget_connections()
    with pytest.raises(
        DataError, match=r"set: cannot be listed \(.*\); say who you are in AWS_ACCESS_KEY_ID"
    ):
        check_data(config(url), batch_size=2)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)  # else 10 s
    forget_connections()
    with pytest.raises(DataError, match=r"set: cannot be listed \(.*\); the same command goes on once it"):
        check_data(config(url), batch_size=2)


def test_a_cache_without_room_is_told_before_and_while_it_fills(
    url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr(fetching.shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
        with pytest.raises(
            DataError, match=r"has 0\.0 MB free, takes 0\.\d MB of s3://.*set ABLATE_CACHE to"
        ):
            fetch(url)

    def full(self: object, count: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching._Fetching, "add", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); make room, or set"):
        fetch(url)
    (folder,) = (cache / "shards").iterdir()
    assert partials(folder) == []


def test_a_cache_that_cannot_be_made_is_told(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        DataError, match=r"cannot be written \(Not a directory\); make room, or set ABLATE_CACHE"
    ):
        fetch(url)


# --- and the work that waits for it ---------------------------------------------------------------


def test_one_that_waits_for_another_says_so_and_goes_on_when_that_is_done(url: str, made: Path) -> None:
    folder = fetch(url)
    lock = FileLock(folder / "lock")
    lock.acquire()
    beats: list[str] = []

    def heard(where: str) -> None:
        beats.append(where)
        lock.release()

    assert same(fetch(url, heard), made)
    assert beats[0] == f"waiting for another process of this node to fetch {url}"


def test_fetching_ends_when_the_work_is_ended(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception):
        pass

    def end(where: str) -> None:
        raise Ended

    slow = fetching._Fetching.add
    begun = threading.Event()

    def add(self: fetching._Fetching, count: int) -> None:
        begun.set()
        time.sleep(0.05)
        slow(self, count)

    monkeypatch.setattr(fetching._Fetching, "add", add)
    with pytest.raises(Ended):
        fetch(url, end)
    (folder,) = (cache / "shards").iterdir()
    assert partials(folder) == []


def test_a_training_that_is_to_stop_does_not_wait_for_its_data(url: str, tmp_path: Path) -> None:
    data = {"kind": "imagefolder", "name": "photos", "root": url, "image_size": 16}
    trial = tiny_trial(data=data, batch_size=6, augment={"mode": "per_image"})
    with pytest.raises(Interrupted, match=r"^stopped fetching s3://"):
        train(trial, TrialContext(tmp_path, stopping=lambda: True))


def test_a_server_that_sends_nothing_is_a_silence(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add, silences = fetching._Fetching.add, []

    def late(self: fetching._Fetching, count: int) -> None:
        if not silences:
            silences.append(time.monotonic())
            time.sleep(3.5)
        add(self, count)

    monkeypatch.setattr(fetching._Fetching, "add", late)
    beats: list[float] = []
    fetch(url, lambda where: beats.append(time.monotonic()))
    assert beats
    assert not [beat for beat in beats if 1.5 < beat - silences[0] < 3.4]


def test_any_file_system_of_fsspec_will_do(made: Path) -> None:
    memory = fsspec.filesystem("memory")
    for tar in made.glob("*.tar"):
        memory.pipe_file(f"/bucket/set/{tar.name}", tar.read_bytes())
    dataset = load_dataset(config("memory://bucket/set"))
    assert dataset.fingerprint() == load_dataset(config(str(made))).fingerprint()
    assert dataset.train.paths
    assert dataset.train.paths[0] == "memory://bucket/set/train/a/0.JPEG"
