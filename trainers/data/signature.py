"""Whether data may have changed since they were read, told without reading them."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from pathlib import Path
from typing import assert_never

from trainers.config import DataConfig
from trainers.locations import is_url


def signature(config: DataConfig) -> str | None:
    """A digest of what tells cheaply that data have changed: 64 bits of SHA-256.

    Versions of the packages that data come with or are drawn by; size and time of change of a data set's files and of
    shards; of an image folder the times of its class folders, which change with every file that comes or goes. None
    where nothing tells: data at a URL, or data that are not here.
    """
    match config.kind:
        case "digits":
            facts = [version("scikit-learn")]
        case "glyphs":
            from PIL import features

            facts = [version("pillow"), version("matplotlib"), str(features.version("freetype2"))]
        case "fashion_mnist" | "cifar10" | "cifar100" | "stl10" | "imagefolder":
            if config.root is not None and is_url(config.root):
                return None
            try:
                facts = [_of_place(path) for path in _places(config)]
            except OSError:
                return None
        case _:
            assert_never(config.kind)
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _places(config: DataConfig) -> list[Path]:
    """Files, or folders of classes, that change when the data do.

    Raises:
        OSError: they are not here.
    """
    # torch takes a second to import, and data that come with packages need none of it here
    from trainers.data.folders import SHARD, find_folder, holds_shards
    from trainers.data.formats import DataError, find_files

    try:
        if config.kind != "imagefolder":
            return find_files(config)
        root = find_folder(config)
    except DataError as error:
        raise FileNotFoundError(str(error)) from None
    if holds_shards(root):
        return sorted(root / name for name in os.listdir(root) if SHARD.fullmatch(name))
    parts = [root / "train", root / "val"]
    return [
        *parts,
        *(Path(entry) for part in parts for entry in sorted(os.scandir(part), key=lambda one: one.name)),
    ]


def _of_place(path: Path) -> str:
    status = path.stat()
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"
