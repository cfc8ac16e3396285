"""Small image folders of PNG and JPEG, with names whose order is easily got wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("a", "a-b", "b")  # as paths, a-b/… sorts before a/…


def write_photos(root: Path, per_class: int = 6, corrupt: bool = True) -> Path:
    """`per_class` images in each class of both splits, one of them undecodable; and what no reader takes."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in CLASSES:
            place = root / part / name
            (place / "deep").mkdir(parents=True)
            for i in range(per_class):
                image = Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8))
                image.save((place / "deep" if i == 1 else place) / (f"{i}.png" if i % 2 else f"{i}.JPEG"))
            (place / "notes.txt").write_text("no image")
    if corrupt:
        (root / "train" / "b" / "2.JPEG").write_bytes(b"\xff\xd8\xff\xe0 no image")
    return root
