"""Folders of PNGs made of scikit-learn's digits, and ways to spoil them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

PER_CLASS = {"train": 16, "val": 8}


def write_digits(root: Path) -> Path:
    """train/ and val/ with ten classes of 8 x 8 images."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    for digit in range(10):
        mine = iter(images[labels == digit])
        for part, count in PER_CLASS.items():
            folder = root / part / str(digit)
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(next(mine)).convert("RGB").save(folder / f"{number:02d}.png")
    return root


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_text(path: Path) -> None:
    path.write_text("<html>404: there is no image here</html>\n")


def bad_header_crc(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[29] ^= 1  # a byte of the checksum that follows the header's 8 + 4 + 4 + 13 bytes
    path.write_bytes(bytes(content))


def flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 14] ^= 16
    path.write_bytes(bytes(content))


SPOILT: dict[str, Callable[[Path], None]] = {
    "train/0/03.png": truncated,
    "train/4/15.png": emptied,  # the last of its class: the first stands in for it
    "train/7/08.png": a_text,
    "train/7/09.png": bad_header_crc,  # so both have the same stand-in
    "val/1/00.png": flipped_bit,
    "val/2/07.png": truncated,
    "val/9/01.png": emptied,
    "val/9/02.png": a_text,
    "val/9/03.png": bad_header_crc,
}


def spoil(root: Path) -> None:
    for name, how in SPOILT.items():
        how(root / name)


def mend(root: Path, part: str = "") -> None:
    """Copy into the place of each spoilt image the next of its class that is whole, around."""
    for name in SPOILT:
        if name.startswith(part):
            path = root / name
            others = sorted(path.parent.iterdir())
            at = others.index(path)
            whole = [p for p in others[at:] + others[:at] if str(p.relative_to(root)) not in SPOILT]
            shutil.copy(whole[0], path)
