"""The on-disk formats of published data sets, read with numpy; nothing is ever unpickled."""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainers.config import DataConfig
from trainers.data.packed import ChangedError, Packed

UNLABELLED = -1


class DataError(Exception):
    """Data that is missing or malformed: one line with the place, what was expected, and the remedy."""


@dataclass(frozen=True)
class Split:
    """Images in memory (`images`) or on disk (`paths`), and their labels.

    Attributes:
        images: uint8 (N, C, H, W), or None for an image folder.
        paths: N file paths, or None for images in memory. Of images in tar shards: where they would be, unpacked.
        labels: int64 (N,); -1 where an image has none.
        packed: where those in tar shards are.
    """

    images: Tensor | None
    paths: list[str] | None
    labels: Tensor
    packed: Packed | None = None

    def file(self, index: int) -> str | io.BytesIO:
        """The file of an image on disk, as PIL opens it.

        Raises:
            OSError: its shard cannot be read.
            DataError: its shard has changed.
        """
        assert self.paths is not None
        if self.packed is None:
            return self.paths[index]
        try:
            return io.BytesIO(self.packed.read(index))
        except ChangedError as error:
            raise DataError(
                f"{error}: has changed since its images were listed; put it back as it was"
            ) from None

    def __len__(self) -> int:
        return len(self.labels)


Labelled = tuple[Split, Split, tuple[str, ...]]
"""Training split, validation split, class names."""


class _Source(NamedTuple):
    """Files of a published data set, and where under the root they may lie."""

    folders: tuple[str, ...]
    files: tuple[str, ...]
    remedy: str


_TORONTO = "unpack https://www.cs.toronto.edu/~kriz/{}-binary.tar.gz there (pickled batches are not read)"
_SOURCES = {
    "fashion_mnist": _Source(
        (".", "FashionMNIST/raw"),
        tuple(
            f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
        ),
        "install Debian's dataset-fashion-mnist, or put the idx files there",
    ),
    "cifar10": _Source(
        ("cifar-10-batches-bin", "."),
        (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
        _TORONTO.format("cifar-10"),
    ),
    "cifar100": _Source(("cifar-100-binary", "."), ("train.bin", "test.bin"), _TORONTO.format("cifar-100")),
    "stl10": _Source(
        ("stl10_binary", "."),
        ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin"),
        "unpack http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz there",
    ),
}
_DEFAULT_ROOTS = {"fashion_mnist": "/usr/share/datasets/fashion-mnist"}
_FASHION_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag")


# --- locating -----------------------------------------------------------------------------------


def root_of(config: DataConfig, expected: str, remedy: str) -> Path:
    """`data.root`, or where a kind of data lies by default.

    Raises:
        DataError: there is neither.
    """
    root = config.root or _DEFAULT_ROOTS.get(config.kind)
    if root is None:
        raise DataError(
            f"data.root: {config.kind} needs a folder with {expected}; {remedy} and set data.root"
        )
    return Path(root).expanduser()


def find_files(config: DataConfig) -> list[Path]:
    """The files of a published data set, each plain or gzipped.

    Raises:
        DataError: some are missing.
    """
    source = _SOURCES[config.kind]
    root = root_of(config, f"{source.folders[0]}/{source.files[0]}".removeprefix("./"), source.remedy)
    for folder in source.folders:
        paths = [_plain_or_gzipped(root / folder / name) for name in source.files]
        if all(path is not None for path in paths):
            return [path for path in paths if path is not None]
        if any(path is not None for path in paths):
            missing = [name for name, path in zip(source.files, paths, strict=True) if path is None]
            raise DataError(f"{root / folder}: {config.kind} lacks {', '.join(missing)}; {source.remedy}")
    raise DataError(f"{root}: expected {config.kind}'s {', '.join(source.files[:2])}, …; {source.remedy}")


def _plain_or_gzipped(path: Path) -> Path | None:
    gzipped = path.with_name(path.name + ".gz")
    return path if path.is_file() else gzipped if gzipped.is_file() else None


def gone(error: OSError) -> str:
    """What is told of a file or folder that was there, and is not, or can no longer be read."""
    reason = os.strerror(error.errno) if error.errno is not None else str(error)
    return f"cannot be read ({reason}); bring data.root back, and the same command goes on"


# --- reading ------------------------------------------------------------------------------------


def _bytes(path: Path) -> np.ndarray:
    try:
        if path.suffix != ".gz":
            return np.fromfile(path, dtype=np.uint8)
        with gzip.open(path) as file:
            return np.frombuffer(bytearray(file.read()), dtype=np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read ({error}); fetch it again")


def _split(images: np.ndarray, labels: np.ndarray, classes: int, path: Path) -> Split:
    labels = labels.astype(np.int64)
    _refuse_other_count(len(images), len(labels), path)
    if labels.max() >= classes or labels.min() < 0:
        raise DataError(f"{path}: labels outside 0..{classes - 1}; fetch it again")
    return Split(torch.from_numpy(np.ascontiguousarray(images)), None, torch.from_numpy(labels))


def _refuse_other_count(images: int, labels: int, path: Path) -> None:
    if images != labels or images == 0:
        raise DataError(f"{path}: {images} images but {labels} labels; fetch both files again")


def _records(path: Path, size: int) -> np.ndarray:
    """A file of fixed-size records, as uint8 (N, size)."""
    data = _bytes(path)
    if len(data) == 0 or len(data) % size:
        raise DataError(f"{path}: {len(data)} bytes are not whole records of {size}; fetch it again")
    return data.reshape(-1, size)


def _idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes: magic 0x000008 and the rank, big-endian sizes, then the values."""
    data = _bytes(path)
    if len(data) < 4 or data[:3].tolist() != [0, 0, 8] or len(data) < 4 + 4 * int(data[3]):
        raise DataError(f"{path}: not an idx file of bytes; fetch it again")
    header = 4 + 4 * int(data[3])
    shape = tuple(int(size) for size in data[4:header].view(">u4"))
    if len(data) - header != math.prod(shape):
        raise DataError(f"{path}: holds {len(data) - header} bytes, expected {shape}; fetch it again")
    return data[header:].reshape(shape)


def check_counts(config: DataConfig) -> None:
    """Look whether Fashion-MNIST's files hold as many labels as images, by their heads alone.

    Raises:
        DataError: files are missing or malformed, or the counts differ.
    """
    paths = find_files(config)
    for images, labels in (paths[:2], paths[2:]):
        _refuse_other_count(_idx_length(images), _idx_length(labels), images)


def _idx_length(path: Path) -> int:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(8)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None
    if len(head) < 8 or head[:3] != b"\0\0\x08" or head[3] == 0:
        raise DataError(f"{path}: not an idx file of bytes; fetch it again")
    return int.from_bytes(head[4:], "big")


def _names(path: Path, classes: int) -> tuple[str, ...]:
    """Class names from the text file that lies beside the data, or numbers."""
    names = path.read_text().split() if path.is_file() else []
    return tuple(names) if len(names) == classes else tuple(map(str, range(classes)))


def _read_digits(config: DataConfig) -> Labelled:
    """scikit-learn's 1,797 digits (8 x 8, 17 grey levels), stratified 1,297 / 500."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=500, stratify=labels, random_state=0
    )
    here = Path("digits")
    first, second = (_split(images[rows], labels[rows], 10, here) for rows in (train, validation))
    return first, second, tuple(map(str, range(10)))


def _read_fashion_mnist(config: DataConfig) -> Labelled:
    paths = find_files(config)
    arrays = [_idx(path) for path in paths]
    for path, array, rank in zip(paths, arrays, (3, 1, 3, 1), strict=True):
        if array.ndim != rank:
            raise DataError(f"{path}: an idx file of rank {array.ndim}, expected {rank}; fetch it again")
    train = _split(arrays[0][:, None], arrays[1], 10, paths[0])
    return train, _split(arrays[2][:, None], arrays[3], 10, paths[2]), (*_FASHION_NAMES, "Ankle boot")


def _read_cifar10(config: DataConfig) -> Labelled:
    paths = find_files(config)
    records = [_records(path, 1 + 3072) for path in paths]
    train, test = np.concatenate(records[:-1]), records[-1]
    first, second = (
        _split(part[:, 1:].reshape(-1, 3, 32, 32), part[:, 0], 10, path)
        for part, path in ((train, paths[0]), (test, paths[-1]))
    )
    return first, second, _names(paths[0].with_name("batches.meta.txt"), 10)


def _read_cifar100(config: DataConfig) -> Labelled:
    """Each record is the coarse label, the fine label (used), and the pixels."""
    paths = find_files(config)
    first, second = (
        _split(part[:, 2:].reshape(-1, 3, 32, 32), part[:, 1], 100, path)
        for part, path in ((_records(path, 2 + 3072), path) for path in paths)
    )
    return first, second, _names(paths[0].with_name("fine_label_names.txt"), 100)


def _read_stl10(config: DataConfig) -> Labelled:
    """96 x 96 images, stored column by column; labels count from 1."""
    train_x, train_y, test_x, test_y, unlabelled_x = find_files(config)

    def pixels(path: Path) -> np.ndarray:
        return _records(path, 3 * 96 * 96).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)

    labelled = _split(pixels(train_x), _bytes(train_y).astype(np.int64) - 1, 10, train_x)
    unlabelled = torch.from_numpy(np.ascontiguousarray(pixels(unlabelled_x)))
    assert labelled.images is not None
    train = Split(
        torch.cat([unlabelled, labelled.images]),
        None,
        torch.cat([torch.full((len(unlabelled),), UNLABELLED), labelled.labels]),
    )
    test = _split(pixels(test_x), _bytes(test_y).astype(np.int64) - 1, 10, test_x)
    return train, test, _names(train_x.with_name("class_names.txt"), 10)


READERS: dict[str, Callable[[DataConfig], Labelled]] = {
    "digits": _read_digits,
    "fashion_mnist": _read_fashion_mnist,
    "cifar10": _read_cifar10,
    "cifar100": _read_cifar100,
    "stl10": _read_stl10,
}
