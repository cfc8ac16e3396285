"""Folders of images: train/CLASS/* and val/CLASS/*, listed but not read; or tar shards of both in their place."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from trainers.config import DataConfig
from trainers.data.formats import DataError, Labelled, Split, gone, root_of

SHARD = re.compile(r"(train|val)-(\d+)\.tar")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
LAYOUT = "lay images out as train/CLASS/*.jpg and val/CLASS/*.jpg"
_OR_SHARDS = f"{LAYOUT}, or as shards train-000000.tar, … and val-000000.tar, …"


def find_folder(config: DataConfig) -> Path:
    """The root of an image folder, whose images lie in files or in shards.

    Raises:
        DataError: it is not there, or lacks train/ or val/ without holding shards.
    """
    root = root_of(config, "train/ and val/", _OR_SHARDS)
    if not os.path.lexists(root):
        raise DataError(
            f"{root}: imagefolder {config.name} is not there; bring data.root back, or name another"
        )
    for part in ("train", "val"):
        if not ((root / part).is_dir() or holds_shards(root)):
            raise DataError(f"{root}: imagefolder {config.name} lacks the folder {part}/; {_OR_SHARDS}")
    return root


def holds_shards(root: Path) -> bool:
    """Whether the images of a folder lie in shards; beside train/ and val/ these don't count."""
    if all((root / part).is_dir() for part in ("train", "val")):
        return False
    try:
        return any(SHARD.fullmatch(name) for name in os.listdir(root))
    except OSError:
        return False


def class_names(root: Path) -> tuple[str, ...]:
    """The classes of an image folder: the folders of train/, sorted.

    Raises:
        DataError: those of val/ are others; its labels would count another set of classes.
    """
    train, val = (_class_folders(root / part) for part in ("train", "val"))
    return same_classes(root, train, val)


def same_classes(root: object, train: set[str], val: set[str]) -> tuple[str, ...]:
    """The classes of both splits, sorted.

    Raises:
        DataError: they differ.
    """
    for lone, here, there in ((val - train, "val", "train"), (train - val, "train", "val")):
        if lone:
            raise DataError(
                f"{root}/{here}: class {min(lone)} is not in {there}/ ({len(train)} classes in train/, {len(val)} in "
                "val/); use the same class folders"
            )
    return tuple(sorted(train))


def read_folder(root: Path) -> Labelled:
    """List an image folder.

    Raises:
        DataError: train/ and val/ have other classes, or a class has no images.
    """
    names = class_names(root)
    train, validation = (_list_images(root / part, names) for part in ("train", "val"))
    return train, validation, names


def _class_folders(folder: Path) -> set[str]:
    try:
        return {
            entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
        }
    except OSError as error:
        raise DataError(f"{folder}: {gone(error)}") from None


def _list_images(folder: Path, names: tuple[str, ...]) -> Split:
    """All images below each class folder, in an order that depends on their names alone."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = [
            os.path.join(place, file)
            for place, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if file.lower().endswith(IMAGE_SUFFIXES)
        ]
        if not found:
            raise DataError(
                f"{folder / name}: no images ({', '.join(IMAGE_SUFFIXES[:3])}, …); put some there, or remove the class "
                "from train/ and val/"
            )
        paths += sorted(found)
        labels += [label] * len(found)
    if not paths:
        raise DataError(f"{folder}: no class folders with images; {LAYOUT}")
    return Split(None, paths, torch.tensor(labels))
