"""Makes tar shards of an image folder: the same bytes from the same folder, whoever makes them and when."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from trainers.data.folders import LAYOUT, read_folder
from trainers.data.formats import DataError, Split
from trainers.data.shards import PARTS
from trainers.files import make_folder, partial_name, put_in_place
from trainers.locations import LocationError, filesystem, is_local, location


def pack(
    folder: Path,
    out: str,
    shard_bytes: int,
    beat: Callable[[str], None] = lambda where: None,
) -> list[tuple[str, int, int]]:
    """Pack train/CLASS/* and val/CLASS/* into train-000000.tar, … and val-000000.tar, ….

    Args:
        out: a folder or URL without shards.
        shard_bytes: a shard is closed once its images have so many, or more.
        beat: told of each shard before it is made.

    Returns:
        Name, images and bytes of each.

    Raises:
        DataError: the folder is no image folder, an image cannot be read, `out` has tar files already or cannot be
            written.
    """
    for part in PARTS:
        if not (folder / part).is_dir():
            raise DataError(f"{folder}: lacks the folder {part}/; {LAYOUT}")
    train, validation, _ = read_folder(folder)
    try:
        place = location(out)
        make_folder(place)
        if there := sorted(path.name for path in place.glob("*.tar")):
            raise DataError(f"{out}: has {there[0]} already; takes a folder without tar files")
        made = []
        for part, split in zip(PARTS, (train, validation), strict=True):
            for number, paths in enumerate(_groups(split, shard_bytes)):
                name = f"{part}-{number:06d}.tar"
                beat(name)
                made.append((name, len(paths), _write(place, name, folder / part, paths)))
    except LocationError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{error.filename or out}: {reason}; nothing but whole shards is left") from None
    return made


def _groups(split: Split, shard_bytes: int) -> Iterator[list[str]]:
    """The images in their order, parted after `shard_bytes` or more."""
    group: list[str] = []
    held = 0
    for path in split.paths or ():
        group.append(path)
        held += os.stat(path).st_size
        if held >= shard_bytes:
            yield group
            group, held = [], 0
    if group:
        yield group


def _write(place: Path, name: str, above: Path, paths: list[str]) -> int:
    """A shard appears whole or not at all; at a URL it is sent once it is whole here."""
    if is_local(place):
        partial = partial_name(place / name)
        try:
            size = _tar(partial, above, paths)
            put_in_place(partial, place / name)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return size
    with tempfile.TemporaryDirectory(prefix="ablate-") as here:
        size = _tar(Path(here, name), above, paths)
        system, there = filesystem(place / name)
        system.put_file(str(Path(here, name)), there)
    return size


def _tar(file: Path, above: Path, paths: list[str]) -> int:
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in paths:
            member = tarfile.TarInfo(os.path.relpath(path, above))  # no time, no owner
            with open(path, "rb") as image:
                member.size = os.fstat(image.fileno()).st_size
                archive.addfile(member, image)
    return file.stat().st_size
