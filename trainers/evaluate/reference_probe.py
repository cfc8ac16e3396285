"""The released code's linear evaluation: a classifier on the frozen backbone, trained on new crops each epoch.

Training images are cropped at random, resized and flipped anew in every epoch (`trainers.data.crops`);
validation images are those of every other measurement: of an image folder the centre after
Resize(256/224 S), of small images the whole. The backbone stays in evaluation mode.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trainers import checkpoint
from trainers.config import LinearProbe
from trainers.data.corrupt import CorruptImages
from trainers.data.crops import CropLoader
from trainers.evaluate.features import Features, evaluation_mode
from trainers.evaluate.linear_probe import SgdProbe, epoch_order

PROBE_STATES = "probe-*.safetensors"
"""Names of the states that `ProbeStates` keeps."""


@dataclass(frozen=True)
class ProbeStates:
    """Keeps what several probes that train together go on from, in a folder of a trial.

    Args:
        of: what names the backbone that they are trained on, and the version of the arithmetic.
        guard: asked before each state appears; raises where this process must not write.
    """

    folder: Path
    of: str
    guard: Callable[[], None]

    def save(
        self, probes: Sequence[tuple[LinearProbe, int | None]], seed: int, fits: list[SgdProbe], epoch: int
    ) -> None:
        """After so many epochs."""
        tensors = {
            f"{n}.{name}": tensor for n, fit in enumerate(fits) for name, tensor in fit.state().items()
        }
        checkpoint.write(self._path(probes, seed), tensors, {"epoch": epoch}, self.guard)

    def load(self, probes: Sequence[tuple[LinearProbe, int | None]], seed: int, fits: list[SgdProbe]) -> int:
        """Put the state of these very probes back; the epochs done, 0 without a good state."""
        path = self._path(probes, seed)
        try:
            tensors, metadata = checkpoint.read(path)
        except FileNotFoundError:
            return 0
        except checkpoint.DamagedError:
            checkpoint.set_aside(path)
            return 0
        for n, fit in enumerate(fits):
            fit.put_back({k.removeprefix(f"{n}."): v for k, v in tensors.items() if k.startswith(f"{n}.")})
        return int(json.loads(metadata["epoch"]))

    def _path(self, probes: Sequence[tuple[LinearProbe, int | None]], seed: int) -> Path:
        content = json.dumps(
            [self.of, seed, *([config.model_dump(mode="json"), d0] for config, d0 in probes)]
        )
        name = hashlib.sha256(content.encode()).hexdigest()[:16]
        return self.folder / PROBE_STATES.replace("*", name)


def same_images(one: LinearProbe, other: LinearProbe) -> bool:
    """Whether two probes see the same crops in the same batches, and so can share the backbone's work."""
    return (one.crop_scale, one.flip, one.batch_size) == (other.crop_scale, other.flip, other.batch_size)


@torch.no_grad()
def train_probes(
    probes: Sequence[tuple[LinearProbe, int | None]],
    backbone: nn.Module,
    crops: CropLoader,
    validation: Features,
    num_classes: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    beat: Callable[[str], None] = lambda where: None,
    corrupt: CorruptImages | None = None,
    states: ProbeStates | None = None,
) -> list[SgdProbe]:
    """Train several probes with one pass of the backbone an epoch.

    Args:
        probes: protocols that see the `same_images`, each on r[:, :d0], or on all of r where d0 is None.
        crops: of those protocols' crop_scale and flip.
        dtype: of the backbone's images.
        beat: told where the training stands after each batch; what it raises ends it.
        corrupt: told of the images that cannot be decoded.
        states: where a state is kept after each epoch, to go on from.

    Returns:
        The trained probes in the order given; the `result` of one that diverged raises.

    Raises:
        ValueError: no training image has a label.
    """
    if crops.count == 0:
        raise ValueError(f"{probes[0][0].kind}: no training image has a label")
    fits = []
    for config, d0 in probes:
        held_out = validation.representation[:, :d0].contiguous()
        fits.append((SgdProbe(config, held_out, validation.labels, num_classes, seed), d0))
    batch_size = probes[0][0].batch_size
    first = states.load(probes, seed, [fit for fit, _ in fits]) if states else 0
    with evaluation_mode(backbone):
        for epoch in range(first, max(config.epochs for config, _ in probes)):
            training = [(fit, d0) for fit, d0 in fits if epoch < fit.config.epochs]
            for images, labels in crops.epoch(epoch, epoch_order(crops.count, seed, epoch), batch_size):
                r = backbone(images.to(dtype)).float()  # (b, D)
                for fit, d0 in training:
                    fit.step(r[:, :d0], labels, epoch)
                beat(f"probe epoch {epoch + 1}")
                if corrupt is not None:
                    corrupt.add(crops.corrupt)
            for fit, _ in training:
                fit.end_epoch(epoch)
            if corrupt is not None:
                corrupt.met()
            if states:
                states.save(probes, seed, [fit for fit, _ in fits], epoch + 1)
    return [fit for fit, _ in fits]
