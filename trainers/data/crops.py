"""Random crops and flips of the training images, as a classifier on a frozen backbone is trained on.

How an image is cropped depends on (seed, epoch, image) alone: neither on the order or size of batches
nor on the number of loader processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

import torch
from torch import Tensor

from trainers.config import AugmentConfig, TrialConfig, ViewConfig
from trainers.data.augment import BatchedAugment, PerImageAugment, normalise
from trainers.data.datasets import Dataset
from trainers.data.draws import Draws
from trainers.data.loader import DEVICE_BYTES, Fetcher, load_image
from trainers.randomness import generator


class CropLoader:
    """Batches of one crop for each labelled training image, resized to the training size.

    torchvision's RandomResizedCrop with its defaults for classification (ratio 3/4 to 4/3, bilinear,
    antialiased), then a flip. The trial's `augment.mode` says where: image by image in the loader's
    processes on uint8, or batch by batch on the device.

    Args:
        crop_scale: range of the crop's area, as a share of the image.
        flip: probability.
        device: where batches are delivered.
        loader_processes: as for `trainers.data.loader.ViewLoader`.

    Attributes:
        count: N, the labelled training images.
    """

    def __init__(
        self,
        dataset: Dataset,
        trial: TrialConfig,
        crop_scale: tuple[float, float],
        flip: float,
        device: torch.device | str = "cpu",
        loader_processes: int = 0,
    ) -> None:
        self.device = torch.device(device)
        self._labelled = (dataset.train.labels >= 0).nonzero().squeeze(1)
        self.count = len(self._labelled)
        self._mean, self._std = dataset.mean, dataset.std
        batched = trial.augment.mode == "batched" and dataset.train.images is not None
        on_accelerator = self.device.type != "cpu"
        in_place = on_accelerator and batched
        only_crops = AugmentConfig(
            mode="batched" if batched else "per_image",
            crop_scale=crop_scale,
            flip=flip,
            jitter=0.0,
            grayscale=0.0,
        )
        crops = _Crops(dataset, trial, only_crops, self.device if in_place else None)
        self._fetch = Fetcher(crops, 0 if in_place else loader_processes, on_accelerator)

    @property
    def corrupt(self) -> set[int]:
        """Numbers of the images that could not be decoded so far; others of their class stood in for them."""
        return self._fetch.corrupt

    def epoch(self, epoch: int, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Crops float32 (b, C, S, S), normalised, and labels int64 (b,).

        Args:
            order: int64, numbers below `count`: which labelled images, in which order.

        Raises:
            DataError: images are gone, or none of a class can be decoded.
        """
        batches = self._labelled[order].split(batch_size)
        for images, labels in self._fetch((epoch, rows) for rows in batches):
            images = images.to(self.device, non_blocking=True)
            if images.dtype == torch.uint8:
                images = normalise(images, self._mean, self._std, torch.float32)
            yield images, labels.to(self.device, non_blocking=True)


class _Crops:
    """Computes a batch of crops; runs in loader processes, so it holds no state but a cache."""

    def __init__(
        self, dataset: Dataset, trial: TrialConfig, augment: AugmentConfig, device: torch.device | None
    ) -> None:
        self.seed = trial.seed
        self.split = dataset.train
        self.images = dataset.train.images
        if device is not None and self.images is not None and self.images.numel() <= DEVICE_BYTES:
            self.images = self.images.to(device)
        self.device = device or torch.device("cpu")
        self.mode = augment.mode
        size = trial.data.image_size
        self.batched = BatchedAugment(augment, size, dataset.mean, dataset.std, "bilinear")
        self.per_image = PerImageAugment(augment, size, "bilinear")
        self._draws: tuple[int, Draws | None] = (-1, None)
        self.corrupt: set[int] = set()

    def __call__(self, position: tuple[int, Tensor]) -> tuple[Tensor, Tensor]:
        epoch, rows = position
        match self.mode:
            case "batched":
                return self._batched(epoch, rows), self.split.labels[rows]
            case "per_image":
                return self._per_image(epoch, rows), self.split.labels[rows]
            case _:
                assert_never(self.mode)

    def _batched(self, epoch: int, rows: Tensor) -> Tensor:
        assert self.images is not None
        images = self.images[rows.to(self.images.device)].to(self.device)
        return self.batched.apply(images, self._epoch_draws(epoch)[rows])

    def _epoch_draws(self, epoch: int) -> Draws:
        """One row for each image of the split."""
        known, draws = self._draws
        if draws is None or known != epoch:
            draws = self.batched.draw(len(self.split), generator(self.seed, "augment", epoch), ViewConfig())
            self._draws = epoch, draws
        return draws

    def _per_image(self, epoch: int, rows: Tensor) -> Tensor:
        """uint8, which is a quarter of the bytes to send; the receiver normalises them."""
        return torch.stack(
            [
                self.per_image(
                    load_image(self.split, index, self.corrupt),
                    generator(self.seed, "augment", epoch, index),
                    ViewConfig(),
                )
                for index in rows.tolist()
            ]
        )
