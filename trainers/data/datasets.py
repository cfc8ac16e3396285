"""Data sets as plain arrays (or file lists), read without unpickling anything.

Small data sets are decoded once into one uint8 tensor per split; an image folder stays a list of
paths that the loader decodes.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainers.config import DataConfig, EvaluationConfig, Knn
from trainers.data.fetching import fetch_shards, list_shards
from trainers.data.folders import class_names, find_folder, holds_shards, read_folder
from trainers.data.formats import (
    READERS,
    UNLABELLED,
    DataError,
    Labelled,
    Split,
    check_counts,
    find_files,
    gone,
)
from trainers.data.glyphs import other_pixels, read_glyphs
from trainers.data.shards import check_shards, read_shards
from trainers.locations import is_url
from trainers.randomness import generator

__all__ = ["UNLABELLED", "DataError", "Dataset", "DatasetArrays", "Split", "check_data", "load_dataset"]

_READERS = {**READERS, "glyphs": read_glyphs}

IMAGENET_MEAN: tuple[float, ...] = (0.485, 0.456, 0.406)
IMAGENET_STD: tuple[float, ...] = (0.229, 0.224, 0.225)


class DatasetArrays(NamedTuple):
    """A data set in memory as other libraries share it between processes: training, then validation.

    Attributes:
        images: uint8 (N, C, H, W) each.
        labels: int64 (N,) each.
    """

    name: str
    images: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Dataset:
    """A training and a validation split.

    Attributes:
        mean, std: per channel, of pixel values in [0, 1], over the whole training split; ImageNet's
            constants for an image folder.
        root: the folder or URL that an image folder's paths lie in.
    """

    name: str
    train: Split
    validation: Split
    channels: int
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    root: Path | str | None = None

    @classmethod
    def from_arrays(cls, arrays: DatasetArrays) -> Dataset:
        """A data set whose images lie where the arrays lie; they may be read-only, and nothing writes to them."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            train, validation = (
                Split(torch.from_numpy(images), None, torch.from_numpy(labels))
                for images, labels in zip(arrays.images, arrays.labels, strict=True)
            )
        return cls(
            name=arrays.name,
            train=train,
            validation=validation,
            channels=arrays.images[0].shape[1],
            num_classes=len(arrays.class_names),
            class_names=arrays.class_names,
            mean=arrays.mean,
            std=arrays.std,
        )

    def arrays(self) -> DatasetArrays:
        """The same without a copy, of a data set in memory."""
        splits = self.train, self.validation
        images = tuple(split.images.numpy() for split in splits if split.images is not None)
        if len(images) < len(splits):
            raise ValueError(f"{self.name}: its images are files, takes a data set in memory")
        labels = tuple(split.labels.numpy() for split in splits)
        return DatasetArrays(self.name, images, labels, self.class_names, self.mean, self.std)

    def validated_on(self, images: int | None) -> Dataset:
        """The same with the fixed random subset of its validation split that `data.validation_images` asks for.

        Raises:
            DataError: the split is smaller.
        """
        return replace(self, validation=_subset(self.validation, images, "validation_images", 1))

    def fingerprint(self) -> str:
        """sha256 of the arrays in use; for an image folder, of its file names and sizes (a stat of each).

        Raises:
            DataError: an image is gone.
        """
        digest = hashlib.sha256()
        for split in (self.train, self.validation):
            if split.images is not None:
                digest.update(str(tuple(split.images.shape)).encode())
                digest.update(split.images.contiguous().numpy().data)
            for index, path in enumerate(split.paths or ()):
                size = _size(path) if split.packed is None else split.packed.size[index]
                # Relative, so that the same folder has one fingerprint wherever it lies.
                digest.update(f"{os.path.relpath(path, self.root)}\0{size}\0".encode())
            digest.update(split.labels.contiguous().numpy().data)
        return digest.hexdigest()


_TRAINING_IMAGES = {
    "digits": 1297,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "stl10": 105_000,
}
_LABELLED_IMAGES = {**_TRAINING_IMAGES, "stl10": 5_000}
_VALIDATION_IMAGES = {
    "digits": 500,
    "fashion_mnist": 10_000,
    "cifar10": 10_000,
    "cifar100": 10_000,
    "stl10": 8_000,
}


def check_data(config: DataConfig, batch_size: int) -> None:
    """Look whether the data is where `config` says and fills a batch, without reading it.

    Raises:
        DataError: a file or folder is missing, labels are not those of the images as far as names and heads of files
            tell, or a published data set is smaller than what is asked of it.
    """
    if config.kind == "imagefolder":
        _check_images(config)
    elif config.kind == "fashion_mnist":
        check_counts(config)
    elif config.kind not in ("digits", "glyphs"):
        find_files(config)
    published = _TRAINING_IMAGES.get(config.kind)
    if config.classes is not None and config.images_per_class is not None:
        published = config.classes * config.images_per_class
    wanted = config.train_images or published
    if published is not None and wanted is not None and wanted > published:
        raise DataError(f"data.train_images: got {wanted}, takes at most the split's {published} images")
    if wanted is not None and batch_size > wanted:
        raise DataError(f"batch_size: got {batch_size}, takes at most the {wanted} training images")


def check_evaluation(config: DataConfig, evaluation: EvaluationConfig) -> None:
    """Look whether the data has as many images as an evaluation needs, as far as that is known without reading it.

    Raises:
        DataError: kNN's k, or `validation_images`, exceeds the images.
    """
    validation = _VALIDATION_IMAGES.get(config.kind)
    if validation and config.validation_images and config.validation_images > validation:
        raise DataError(
            f"data.validation_images: got {config.validation_images}, expected at most the split's {validation} images"
        )
    known = [count for count in (config.train_images, _LABELLED_IMAGES.get(config.kind)) if count]
    if isinstance(evaluation, Knn) and known and evaluation.k > min(known):
        raise DataError(
            f"evaluations.knn.k: got {evaluation.k}, expected at most the {min(known)} training images"
        )


def load_dataset(
    config: DataConfig,
    beat: Callable[[str], None] = lambda where: None,
    note: Callable[[str], None] = lambda text: None,
) -> Dataset:
    """Read a data set, and the fixed random subset of it that `config` asks for.

    STL-10 trains on its unlabelled and labelled images together; the former carry the label -1. Shards at a URL are
    brought to this node first.

    Args:
        beat: told of each piece of work that may take long; what it raises ends the work.
        note: told what people should know.

    Raises:
        DataError: a file is missing or malformed, or the subset is larger than the split.
    """
    root: Path | str | None = None
    if config.kind == "imagefolder":
        root, (train, validation, names) = _list_images(config, beat, note)
        channels, mean, std = 3, IMAGENET_MEAN, IMAGENET_STD
    else:
        train, validation, names = _READERS[config.kind](config)
        if config.kind == "glyphs" and (sentence := other_pixels()):
            note(sentence)
        assert train.images is not None
        channels = train.images.shape[1]
        mean, std = _moments(train.images)
    train = _subset(train, config.train_images, "train_images", 0)
    validation = _subset(validation, config.validation_images, "validation_images", 1)
    return Dataset(
        name=config.name or config.kind,
        train=train,
        validation=validation,
        channels=channels,
        num_classes=len(names),
        class_names=names,
        mean=mean,
        std=std,
        root=root,
    )


def _check_images(config: DataConfig) -> None:
    if config.root is not None and is_url(config.root):
        list_shards(config.root)
    elif holds_shards(root := find_folder(config)):
        check_shards(root)
    else:
        class_names(root)


def _list_images(
    config: DataConfig, beat: Callable[[str], None], note: Callable[[str], None]
) -> tuple[Path | str, Labelled]:
    """The images of an image folder, of its shards, or of those at a URL; and the root of their paths."""
    if config.root is not None and is_url(config.root):
        url = config.root.rstrip("/")
        return url, read_shards(fetch_shards(url, beat, note), url, beat, note)
    root = find_folder(config)
    return root, read_shards(root, root, beat, note) if holds_shards(root) else read_folder(root)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise DataError(f"{path}: {gone(error)}") from None


def _subset(split: Split, size: int | None, field: str, position: int) -> Split:
    """The first `size` of one fixed permutation, so that smaller subsets lie inside larger ones."""
    if size is None:
        return split
    if size > len(split):
        raise DataError(f"data.{field}: got {size}, takes at most the split's {len(split)} images")
    chosen = torch.randperm(len(split), generator=generator(0, "split", position))[:size].sort().values
    return Split(
        images=None if split.images is None else split.images[chosen],
        paths=None if split.paths is None else [split.paths[i] for i in chosen.tolist()],
        labels=split.labels[chosen],
        packed=None if split.packed is None else split.packed.chosen(chosen.numpy()),
    )


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in [0, 1], from exact integer counts of the 256 values."""
    channels = images.shape[1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for chunk in images.split(4096):
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[:, channel].numpy().ravel(), minlength=256)
    levels = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 1e-12))
    return tuple(mean.tolist()), tuple(std.tolist())
