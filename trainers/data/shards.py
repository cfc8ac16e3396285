"""Image folders as tar shards: train-000000.tar, … and val-000000.tar, …, with members CLASS/NAME.

They are the same data as the folder unpacked: the same order (by class, then name, in whatever shard), labels and
fingerprint, and so the same trainings to the bit. Members are read by their place in a shard. A list of them is made
once, and kept beside the shard or, where that can't be written, in the cache.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from trainers.data.folders import IMAGE_SUFFIXES, SHARD, same_classes
from trainers.data.formats import DataError, Labelled, Split, gone
from trainers.data.packed import Packed, version
from trainers.files import write_atomically
from trainers.node_cache import cache_folder

PARTS = ("train", "val")
SHARD_LAYOUT = (
    "takes train-000000.tar, … and val-000000.tar, … with members CLASS/NAME.jpg; `ablate shard` makes them"
)
_BLOCK = 512


class Members(NamedTuple):
    """The images in one tar: names CLASS/NAME, and for each the first byte and the number of bytes.

    `version` is that of the tar; `passed_over` counts links, devices and the like, which are never read.
    """

    version: tuple[int, int]

    names: list[str]
    starts: list[int]
    sizes: list[int]
    passed_over: int


def find_shards(root: object, names: Iterable[str]) -> dict[str, list[str]]:
    """The shards of each split among the names of a folder's files, in order.

    Raises:
        DataError: a split has none, or their numbers have a gap.
    """
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in sorted(names):
        if match := SHARD.fullmatch(name):
            found[match[1]].append(name)
    for part, shards in found.items():
        if not shards:
            raise DataError(f"{root}: has no shards of {part}; {SHARD_LAYOUT}")
        numbers = {int(name[len(part) + 1 : -4]) for name in shards}
        if missing := set(range(len(shards))) - numbers:
            raise DataError(
                f"{root}: {part} has {len(shards)} shards and lacks number {min(missing)}; put all of them there"
            )
    return found


def check_shards(folder: Path) -> None:
    """Look whether both splits have their shards.

    Raises:
        DataError: they don't, or the folder cannot be read.
    """
    find_shards(folder, _listed(folder))


def read_shards(
    folder: Path, root: object, beat: Callable[[str], None], note: Callable[[str], None]
) -> Labelled:
    """List the images of all shards.

    Args:
        folder: where the shards are on this machine.
        root: where they come from; the images' paths begin so.
        beat: told of each shard that was listed.
        note: told of members that are passed over.

    Raises:
        DataError: a shard is damaged or names what it must not, an image is there twice, or the classes of training
            and validation differ.
    """
    shards = find_shards(root, _listed(folder))
    lists = {part: [_members(folder / name, beat, note) for name in shards[part]] for part in PARTS}
    classes = [{name.split("/")[0] for one in lists[part] for name in one.names} for part in PARTS]
    names = same_classes(root, *classes)
    train, validation = (
        _split(part, root, [str(folder / name) for name in shards[part]], lists[part], names)
        for part in PARTS
    )
    return train, validation, names


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise DataError(f"{folder}: {gone(error)}") from None


def _split(part: str, root: object, tars: list[str], lists: list[Members], classes: tuple[str, ...]) -> Split:
    """One split in the order of the unpacked folder: by class, then path."""
    images: list[tuple[str, str, int, int, int]] = []  # class, name in it, tar, start, size
    for number, members in enumerate(lists):
        for name, start, size in zip(members.names, members.starts, members.sizes, strict=True):
            class_name, _, below = name.partition("/")
            images.append((class_name, below, number, start, size))
    if not images:
        raise DataError(f"{root}: no images in the shards of {part}; {SHARD_LAYOUT}")
    images.sort()
    for one, other in itertools.pairwise(images):
        if one[:2] == other[:2]:
            places = " and ".join(os.path.basename(tars[tar]) for tar in (one[2], other[2]))
            raise DataError(f"{root}: {one[0]}/{one[1]} is there twice, in {places}; leave one out")
    labels = {name: label for label, name in enumerate(classes)}
    tar, begin, length = (np.array([image[field] for image in images], dtype=np.int64) for field in (2, 3, 4))
    paths = [f"{root}/{part}/{image[0]}/{image[1]}" for image in images]
    return Split(
        None,
        paths,
        torch.tensor([labels[image[0]] for image in images]),
        Packed(tuple(tars), tuple(one.version for one in lists), tar, begin, length),
    )


# --- the members of one shard ---------------------------------------------------------------------


def _members(tar: Path, beat: Callable[[str], None], note: Callable[[str], None]) -> Members:
    """The images in a tar, from the list kept of it or, once, from the tar itself."""
    try:
        status = os.stat(tar)
    except OSError as error:
        raise DataError(f"{tar}: {gone(error)}") from None
    beside = tar.with_name(f"{tar.name}.members.json")
    name = hashlib.sha256(os.fsencode(os.path.abspath(tar))).hexdigest()[:20]
    places = [beside, cache_folder() / "members" / f"{name}.json"]
    members = next((kept for place in places if (kept := _kept(place, version(status)))), None)
    if members is None:
        members = _read_members(tar, version(status))
        content = json.dumps(members._asdict())
        for place in places:
            with suppress(OSError):  # without a list it is read again next time
                place.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(place, content)
                break
    if members.passed_over:
        note(f"{tar.name}: {members.passed_over} members are links, devices or sparse files, and passed over")
    beat(f"listing {tar.name}")
    return members


def _kept(place: Path, wanted: tuple[int, int]) -> Members | None:
    """A list that was kept, if it is of this version of the tar and holds nothing that a tar could not."""
    try:
        content: dict[str, Any] = json.loads(place.read_bytes())
        members = Members(**content)._replace(version=wanted)
        if content["version"] != list(wanted):
            return None
        starts, sizes = (np.array(column, dtype=np.int64) for column in (members.starts, members.sizes))
        inside = (starts >= 0) & (sizes >= 0) & (sizes <= wanted[0]) & (starts <= wanted[0] - sizes)
        sound = all(_image_name(name, place) == name for name in members.names)
        whole = len(members.names) == len(starts) == len(sizes)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, DataError):
        return None
    return members if sound and whole and bool(inside.all()) else None


def _read_members(tar: Path, found: tuple[int, int]) -> Members:
    members = Members(found, [], [], [], 0)
    passed_over, before = 0, -1
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                # an offset that goes back would have tarfile read the same members for ever
                if member.size < 0 or member.offset <= before or member.offset_data + member.size > found[0]:
                    raise tarfile.ReadError("a member beyond its end")
                before = member.offset
                if member.isreg() and not member.issparse():
                    if (name := _image_name(member.name, tar)) is not None:
                        members.names.append(name)
                        members.starts.append(member.offset_data)
                        members.sizes.append(member.size)
                elif not member.isdir():
                    passed_over += 1
            end = archive.offset
        # tarfile takes a header that is cut off or damaged for the end
        with tar.open("rb") as file:
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError("no end mark: it is cut off or damaged")
    except OSError as error:
        raise DataError(f"{tar}: {gone(error)}") from None
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(f"{tar}: not a whole, uncompressed tar file ({error}); put it there again") from None
    return members._replace(passed_over=passed_over)


def _image_name(name: str, tar: Path) -> str | None:
    """CLASS/NAME of a member that the reader of folders would take; None for others.

    Raises:
        DataError: the name leads out of the folder.
    """
    if name.startswith("/") or ".." in name.split("/"):
        raise DataError(
            f"{tar}: has a member {name[:100]!r} that leads out of its folder; make the shard anew"
        )
    name = posixpath.normpath(name)
    hidden, inside_a_class = name.startswith("."), "/" in name
    return name if inside_a_class and not hidden and name.lower().endswith(IMAGE_SUFFIXES) else None
