"""Pairs of views in batches, the same for any number of ranks and loader processes.

Which images a global batch holds depends on (seed, epoch); how each is augmented on (seed, epoch,
step) or (seed, epoch, image). A rank computes its rows of the global batch and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, assert_never

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as V

from trainers.config import DataConfig, TrialConfig
from trainers.data.augment import (
    BatchedAugment,
    PerImageAugment,
    evaluation_images,
    evaluation_photo,
    normalise,
)
from trainers.data.datasets import DataError, Dataset, Split
from trainers.data.formats import gone
from trainers.distributed import rows_of_rank
from trainers.randomness import generator

DEVICE_BYTES = 2**30
"""Training images up to this size are kept on an accelerator; more are copied batch by batch."""

Batch = tuple[Tensor, Tensor, Tensor]


class ViewLoader:
    """Batches of two views and labels for one rank.

    Args:
        rank, world_size: this rank takes rows [rank * b, (rank + 1) * b) of each global batch, where
            b = batch_size / world_size.
        device: where batches are delivered; batched augmentation also runs there.
        loader_processes: processes that prepare batches ahead; 0 prepares them in this one. Batched
            augmentation on an accelerator needs none and starts none.

    Raises:
        ValueError: the global batch does not divide over the ranks, or exceeds the training split.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: TrialConfig,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        loader_processes: int = 0,
    ) -> None:
        if config.batch_size % world_size:
            raise ValueError(f"batch_size: got {config.batch_size}, takes a multiple of {world_size} workers")
        if config.batch_size > len(dataset.train):
            raise ValueError(
                f"batch_size: got {config.batch_size}, takes at most the {len(dataset.train)} training images"
            )
        self.device = torch.device(device)
        self.steps_per_epoch = len(dataset.train) // config.batch_size
        on_accelerator = self.device.type != "cpu"
        in_place = on_accelerator and config.augment.mode == "batched"
        self._views = _Views(dataset, config, rank, world_size, self.device if in_place else None)
        self._dtype = torch.float64 if config.precision == "float64" else torch.float32
        self._mean, self._std = dataset.mean, dataset.std
        self._fetch = Fetcher(self._views, 0 if in_place else loader_processes, on_accelerator)

    @property
    def corrupt(self) -> set[int]:
        """Numbers of the images that this rank could not decode so far; others of their class stood in for them."""
        return self._fetch.corrupt

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches of one epoch from `start_step` on: views (b, C, S, S) twice, labels int64 (b,).

        Raises:
            DataError: images are gone, or none of a class can be decoded.
        """
        for batch in self._fetch((epoch, step) for step in range(start_step, self.steps_per_epoch)):
            view1, view2, labels = (part.to(self.device, non_blocking=True) for part in batch)
            if view1.dtype == torch.uint8:
                view1, view2 = (normalise(v, self._mean, self._std, self._dtype) for v in (view1, view2))
            yield view1, view2, labels


class _Views:
    """Computes the batch at (epoch, step); runs in loader processes, so it holds no state but a cache."""

    def __init__(
        self, dataset: Dataset, config: TrialConfig, rank: int, world_size: int, device: torch.device | None
    ) -> None:
        self.config = config
        self.split = dataset.train
        self.images = dataset.train.images
        if device is not None and self.images is not None and self.images.numel() <= DEVICE_BYTES:
            self.images = self.images.to(device)
        self.device = device or torch.device("cpu")
        self.rows = rows_of_rank(config.batch_size, rank, world_size, config.gradient_cache)
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        size = config.data.image_size
        self.batched = BatchedAugment(config.augment, size, dataset.mean, dataset.std)
        self.per_image = PerImageAugment(config.augment, size)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        self.corrupt: set[int] = set()

    def __call__(self, position: tuple[int, int]) -> Batch:
        epoch, step = position
        first = step * self.config.batch_size
        chosen = self.order(epoch)[first : first + self.config.batch_size][self.rows]
        match self.config.augment.mode:
            case "batched":
                view1, view2 = self._batched(epoch, step, chosen)
            case "per_image":
                view1, view2 = self._per_image(epoch, chosen)
            case _:
                assert_never(self.config.augment.mode)
        return view1, view2, self.split.labels[chosen]

    def order(self, epoch: int) -> Tensor:
        """The epoch's permutation of the training images."""
        if self._order[0] != epoch:
            source = generator(self.config.seed, "order", epoch)
            self._order = epoch, torch.randperm(len(self.split), generator=source)
        return self._order[1]

    def _batched(self, epoch: int, step: int, chosen: Tensor) -> tuple[Tensor, ...]:
        assert self.images is not None
        images = self.images[chosen.to(self.images.device)].to(self.device)
        views = []
        for number, view in enumerate((self.config.augment.view1, self.config.augment.view2), start=1):
            source = generator(self.config.seed, "augment", epoch, step, number)
            draws = self.batched.draw(self.config.batch_size, source, view)[self.rows]
            views.append(self.batched.apply(images, draws, self.dtype))
        return tuple(views)

    def _per_image(self, epoch: int, chosen: Tensor) -> tuple[Tensor, ...]:
        """uint8 views, which are a quarter of the bytes to send; the receiver normalises them."""
        augment = self.config.augment
        views: list[list[Tensor]] = [[], []]
        for index in chosen.tolist():
            image = load_image(self.split, index, self.corrupt)
            for number, view in enumerate((augment.view1, augment.view2), start=1):
                source = generator(self.config.seed, "augment", epoch, index, number)
                views[number - 1].append(self.per_image(image, source, view))
        return torch.stack(views[0]), torch.stack(views[1])


def load_image(split: Split, index: int, corrupt: set[int]) -> Tensor:
    """One image as uint8 (C, H, W); those on disk are decoded to RGB.

    For one that cannot be decoded stands the next of its class that can: the same in every process and trial.

    Args:
        corrupt: gets the numbers of those that cannot be decoded.

    Raises:
        DataError: the file is gone or cannot be read, or no image of its class can be decoded.
    """
    if split.images is not None:
        return split.images[index]
    assert split.paths is not None
    reason = ""
    for other in _stand_ins(split, index):
        path = split.paths[other]
        try:
            with Image.open(split.file(other)) as image:
                return V.pil_to_tensor(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the file system's word, no decoder's
                raise DataError(f"{error.filename or path}: {gone(error)}") from None
            corrupt.add(other)
            reason = reason or (str(error).splitlines()[0] if str(error) else type(error).__name__)
    path = split.paths[index]
    raise DataError(
        f"{path}: cannot be decoded ({reason}), nor can others of its class; replace or remove it"
    )


def _stand_ins(split: Split, index: int) -> Iterator[int]:
    """An image, and those that may stand in for it: of its class, from it on and around."""
    yield index
    label = split.labels[index]
    for step in range(1, len(split)):
        other = (index + step) % len(split)
        if split.labels[other] == label:
            yield other


class LoaderLostError(RuntimeError):
    """A loader process died, most often for want of memory; torch itself says so in a RuntimeError."""


class Fetcher:
    """Maps positions to batches in order, here or in processes that live as long as this object.

    Attributes:
        corrupt: numbers of the images that `compute` could not decode, in whatever process: its own `corrupt`.
    """

    def __init__(self, compute: Any, processes: int, pin_memory: bool) -> None:
        self._compute = _Lookup(compute)
        self._positions: list[Any] = []
        self.corrupt: set[int] = set()
        self._loader: DataLoader[Any] | None = None
        if processes:
            self._loader = DataLoader(
                self._compute,  # type: ignore[arg-type]
                batch_size=None,
                sampler=_Replaceable(self._positions),
                num_workers=processes,
                persistent_workers=True,
                pin_memory=pin_memory,
                # Else each epoch would take a number from the process's global generator.
                generator=torch.Generator().manual_seed(0),
            )

    def __call__(self, positions: Iterable[Any]) -> Iterator[Any]:
        if self._loader is None:
            results: Iterable[Any] = map(self._compute.__getitem__, positions)
        else:
            self._positions[:] = positions
            results = self._loader
        try:
            for result, corrupt in results:
                if isinstance(result, DataError):
                    raise result
                self.corrupt.update(corrupt)
                yield result
        except (ConnectionError, EOFError) as error:  # it died while it sent a batch
            raise LoaderLostError(f"DataLoader worker is gone ({error})") from error


class _Lookup:
    """The computation as a map-style data set; an error travels as a value, to stay one line.

    With each batch travels what could not be decoded for it.
    """

    def __init__(self, compute: Any) -> None:
        self.compute = compute

    def __getitem__(self, position: Any) -> Any:
        self.compute.corrupt.clear()
        try:
            return self.compute(position), tuple(self.compute.corrupt)
        except DataError as error:
            return error, ()


class _Replaceable:
    """A sampler over a list that the owner refills before each pass."""

    def __init__(self, positions: list[Any]) -> None:
        self.positions = positions

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self.positions))

    def __len__(self) -> int:
        return len(self.positions)


def evaluation_batches(
    dataset: Dataset,
    split: Literal["train", "validation"],
    config: DataConfig,
    batch_size: int = 512,
    device: torch.device | str = "cpu",
    loader_processes: int = 0,
    corrupt: Callable[[set[int]], None] = lambda met: None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Labelled images in their order, unaugmented: float32 (b, C, S, S) normalised, int64 labels (b,).

    Args:
        corrupt: told after each batch which images could not be decoded so far; others stood in for them.

    Raises:
        DataError: images are gone, or none of a class can be decoded.
    """
    part = dataset.train if split == "train" else dataset.validation
    device = torch.device(device)
    fetch = Fetcher(
        _Unaugmented(part, config.image_size),
        loader_processes if part.paths is not None else 0,
        device.type != "cpu",
    )
    labelled = (part.labels >= 0).nonzero().squeeze(1)
    for images, labels in fetch(labelled.split(batch_size)):
        corrupt(fetch.corrupt)
        images = normalise(images.to(device, non_blocking=True), dataset.mean, dataset.std, torch.float32)
        yield images, labels.to(device, non_blocking=True)


class _Unaugmented:
    """uint8 images of the training size, and labels, at the given indices.

    Resized on the CPU: an accelerator rounds otherwise, and probes would depend on where they ran.
    """

    def __init__(self, split: Split, image_size: int) -> None:
        self.split = split
        self.image_size = image_size
        self.corrupt: set[int] = set()

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.split.images is not None:
            return evaluation_images(self.split.images[rows], self.image_size), self.split.labels[rows]
        photos = (load_image(self.split, index, self.corrupt) for index in rows.tolist())
        images = [evaluation_photo(photo, self.image_size) for photo in photos]
        return torch.stack(images), self.split.labels[rows]
