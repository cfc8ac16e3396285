"""Decoded data in Ray's object store: read in place, never written to, and done without where they are lost."""

from __future__ import annotations

import ctypes
import json
import mmap
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator import cluster, sharing
from orchestrator.leases import Lease, Leases
from orchestrator.plan import Job
from orchestrator.schedule import run_jobs
from orchestrator.sharing import SharedData, dataset_in_place, shared_data
from orchestrator.spec import Executor, Resources
from orchestrator.store import Store
from orchestrator.work import evaluate_trial, train_trial
from trainers.checkpoint import read
from trainers.config import DataConfig, Knn, LinearProbe, TrialConfig
from trainers.data.datasets import Dataset, DatasetArrays, load_dataset
from trainers.files import MODEL

KEY = "0123456789abcdef0123"


def tiny(**changes: Any) -> TrialConfig:
    fields: dict[str, Any] = {
        "seed": 0,
        "data": {"kind": "digits", "image_size": 8, "train_images": 300},
        "backbone": {"kind": "thin_resnet", "width": 4, "blocks": (1,)},
        "head": {"kind": "none"},
        "augment": {"mode": "batched"},
        "loss": {"kind": "infonce"},
        "optimizer": {"kind": "lars", "lr": 1.0},
        "schedule": {"warmup_epochs": 0},
        "epochs": 1,
        "batch_size": 64,
    }
    return TrialConfig.model_validate(fields | changes)


def job(config: TrialConfig | None = None, trial: str = KEY, **resources: Any) -> Job:
    evaluations = {
        "e" * 19 + trial[-1]: Knn(kind="knn", k=5),
        "f" * 19 + trial[-1]: LinearProbe(kind="linear_probe"),
    }
    return Job(trial, config or tiny(), True, evaluations, Resources(**resources), "tiny")


def write_protected(arrays: DatasetArrays) -> DatasetArrays:
    """The same in memory that the processor lets nobody write to."""

    def protected(array: np.ndarray) -> np.ndarray:
        memory = mmap.mmap(-1, array.nbytes)
        memory.write(array.tobytes())
        address = np.frombuffer(memory, dtype=np.uint8).ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(array.nbytes), mmap.PROT_READ) == 0
        view = np.frombuffer(memory, dtype=array.dtype).reshape(array.shape)
        view.flags.writeable = False
        return view

    return arrays._replace(
        images=tuple(map(protected, arrays.images)), labels=tuple(map(protected, arrays.labels))
    )


def done(folder: Path, config: TrialConfig, dataset: Dataset | None, processes: int) -> dict[str, Any]:
    """Train and evaluate; what it left, without what differs from run to run."""
    store = Store(folder)
    store.prepare()
    lease = Leases(store.root, "a" * 8).acquire(KEY)
    assert isinstance(lease, Lease)
    one = job(config, loader_processes=processes)
    with lease:
        train_trial(one, "digits", store, lease.fence, "inline", {}, lambda metrics: None, dataset)
        evaluate_trial(one, store, lease.fence, "inline", torch.device("cpu"), dataset)
    return outcome(store, one)


def outcome(store: Store, one: Job) -> dict[str, Any]:
    record = store.trial_record(one.trial)
    assert record is not None
    metrics = {n: v for n, v in record["metrics"].items() if n not in ("seconds", "images_per_second")}
    evaluations = [(store.evaluation_record(key) or {})["metrics"] for key in one.evaluations]
    tensors, _ = read(store.trial_directory(one.trial) / "checkpoints" / MODEL)
    weights = {name: tensor.tolist() for name, tensor in tensors.items()}
    fingerprint = record["dataset"]["fingerprint"]
    return {"metrics": metrics, "evaluations": evaluations, "fingerprint": fingerprint, "weights": weights}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("mode", ["batched", "per_image"])
def test_numbers_are_the_same_to_the_bit_from_memory_that_cannot_be_written_to(
    tmp_path: Path, mode: str, processes: int
) -> None:
    config = tiny(augment={"mode": mode}, data={"kind": "digits", "image_size": 8, "train_images": 128})
    plain = load_dataset(config.data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = Dataset.from_arrays(write_protected(plain.arrays()))
    assert shared.fingerprint() == plain.fingerprint()
    own = done(tmp_path / "own", config, None, processes)
    assert done(tmp_path / "shared", config, shared, processes) == own


def test_an_image_folder_is_no_arrays(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / part / "a" / "0.png")
    data = {"kind": "imagefolder", "name": "x", "root": str(tmp_path), "image_size": 8}
    config = tiny(data=data, augment={"mode": "per_image"})
    with pytest.raises(ValueError, match="its images are files, takes a data set in memory"):
        load_dataset(config.data).arrays()
    assert shared_data([job(config)], print) == {}


# --- in a Ray of its own, which reads its token's mode when it is first imported ------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with a Ray session of its own saw: `look`."""
    folder = tmp_path_factory.mktemp("ray")
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "seen.json").read_text())


@pytest.mark.cluster
def test_arrays_are_put_once_and_read_where_they_lie(seen: dict[str, Any]) -> None:
    assert seen["once"] == {
        "equal data are one object": True,
        "others are another": True,
        "can be written to": False,
        "read where they lie": True,
        "the same data": True,
    }


@pytest.mark.cluster
def test_of_data_that_are_lost_a_line_is_told_and_none_that_cannot_be_read_are_shared(
    seen: dict[str, Any],
) -> None:
    dataset, (note,) = seen["lost"]
    assert dataset is None
    assert re.fullmatch(r"its data are no longer in Ray's object store \(\w+\); read from data\.root", note)
    assert seen["missing"] == {}


@pytest.mark.cluster
def test_trials_get_their_data_from_the_object_store_with_the_same_numbers(
    seen: dict[str, Any], tmp_path: Path
) -> None:
    """Of data whose files were hidden once they were shared."""
    _write_cifar10(tmp_path / "cifar-10-batches-bin")
    expected = json.loads(json.dumps(done(tmp_path / "own", cifar10(tmp_path), None, 0)))
    for executor in ("inline", "train"):
        assert seen[executor] == {"outcome": expected, "notes": []}


class Quiet:
    """A screen that shows nothing."""

    def __init__(self) -> None:
        self.console = SimpleNamespace(file=None)
        self.notes: list[str] = []

    def began(self, trial: str) -> str:
        return ""

    def finish(self, trial: str, error: str | None, notes: list[str]) -> None:
        self.notes += [error] if error else notes

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


def look(folder: Path) -> dict[str, Any]:
    """Runs in a process of its own."""
    with cluster.connected("local"):
        return {
            "once": _look_at_arrays(),
            "lost": _look_for_lost_ones(),
            "missing": shared_data([job(cifar10(folder / "nowhere"))], print),
            "inline": _run(folder / "inline", "inline"),
            "train": _run(folder / "train", "train"),
        }


def _look_at_arrays() -> dict[str, bool]:
    import ray

    others = tiny(data={"kind": "digits", "image_size": 8, "train_images": 200})
    jobs = [job(), job(trial="1" * 20), job(others, trial="2" * 20)]
    there = shared_data(jobs, print)
    first, second, third = (there[one.trial] for one in jobs)
    dataset = dataset_in_place(first, print)
    assert dataset is not None
    assert dataset.train.images is not None
    images = ray.get(first.reference).images[0]
    return {
        "equal data are one object": first is second,
        "others are another": first.reference != third.reference,
        "can be written to": bool(images.flags.writeable),
        "read where they lie": dataset.train.images.data_ptr() == images.ctypes.data,
        "the same data": dataset.fingerprint() == load_dataset(tiny().data).fingerprint(),
    }


def _look_for_lost_ones() -> tuple[Dataset | None, list[str]]:
    """Their owner is gone, and they with it."""
    import ray

    class Owner:
        def put(self) -> SharedData:
            return shared_data([job()], print)[KEY]

    owner = ray.remote(num_cpus=0)(Owner).remote()
    there = ray.get(owner.put.remote())
    ray.kill(owner)
    time.sleep(1)
    notes: list[str] = []
    return dataset_in_place(there, notes.append), notes


def _run(folder: Path, executor: Executor) -> dict[str, Any]:
    """A trial by the schedule; its data's files are hidden once they are shared."""
    root = folder / "data"
    _write_cifar10(root / "cifar-10-batches-bin")
    put = sharing._put

    def put_and_hide(data: DataConfig, warn: Callable[[str], None]) -> SharedData:
        shared = put(data, warn)
        root.rename(folder / "hidden")
        return shared

    sharing._put = put_and_hide
    store, screen = Store(folder / "store"), Quiet()
    store.prepare()
    one = job(cifar10(root))
    try:
        run_jobs([one], "tiny", store, executor, 1, screen, lambda: None)  # type: ignore[arg-type]
    finally:
        sharing._put = put
    return {"outcome": outcome(store, one), "notes": screen.notes}


def cifar10(root: Path) -> TrialConfig:
    return tiny(data={"kind": "cifar10", "image_size": 8, "root": str(root)}, batch_size=16)


def _write_cifar10(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        records = rng.integers(0, 256, (20, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / f"{name}.bin")


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    (place / "seen.json").write_text(json.dumps(look(place)))
