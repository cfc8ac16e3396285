"""Seconds to draw the data set `glyphs`, and a contact sheet of it.

python benchmarks/glyphs.py docs/glyphs.png
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from PIL import Image

from trainers.config import DataConfig
from trainers.data.datasets import load_dataset
from trainers.data.formats import Split

GAP = 2
ZOOM = 2


def sheet(
    train: Split, validation: Split, rows: int, train_columns: int, validation_columns: int
) -> Image.Image:
    """A row a class, evenly spread over the classes: training fonts on the left, those held out on the right."""
    classes = int(train.labels.max()) + 1
    chosen = np.linspace(0, classes - 1, rows).round().astype(int)
    parts = []
    for split, columns in ((train, train_columns), (validation, validation_columns)):
        assert split.images is not None
        size = split.images.shape[-1]
        canvas = np.full((rows * (size + GAP), columns * (size + GAP)), 255, dtype=np.uint8)
        for row, label in enumerate(chosen):
            images = split.images[split.labels == int(label), 0].numpy()[:columns]
            for column, image in enumerate(images):
                top, left = row * (size + GAP), column * (size + GAP)
                canvas[top : top + size, left : left + size] = image
        parts.append(canvas)
    between = np.full((len(parts[0]), 4 * GAP), 255, dtype=np.uint8)
    whole = Image.fromarray(np.concatenate([parts[0], between, parts[1]], axis=1))
    return whole.resize((whole.width * ZOOM, whole.height * ZOOM), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?", help="file of the contact sheet")
    parser.add_argument("--size", type=int, default=24)
    arguments = parser.parse_args()
    config = DataConfig(
        kind="glyphs",
        image_size=arguments.size,
        classes=500,
        images_per_class=36,
        validation_images_per_class=4,
    )
    started = time.perf_counter()
    dataset = load_dataset(config)
    seconds = time.perf_counter() - started
    images = len(dataset.train) + len(dataset.validation)
    print(f"{images} images of {arguments.size} px in {seconds:.1f} s, sha256 {dataset.fingerprint()[:16]}")
    if arguments.out:
        sheet(dataset.train, dataset.validation, 16, 24, 4).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
