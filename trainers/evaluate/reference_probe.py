"""The released code's linear evaluation: a classifier on the frozen backbone, trained on new crops each epoch.

Training images are cropped at random, resized and flipped anew in every epoch (`trainers.data.crops`);
validation images are those of every other measurement: of an image folder the centre after
Resize(256/224 S), of small images the whole. The backbone stays in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from trainers.config import LinearProbe
from trainers.data.crops import CropLoader
from trainers.evaluate.features import Features, evaluation_mode
from trainers.evaluate.linear_probe import SgdProbe, epoch_order


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
) -> list[SgdProbe]:
    """Train several probes with one pass of the backbone an epoch.

    Args:
        probes: protocols that see the `same_images`, each on r[:, :d0], or on all of r where d0 is None.
        crops: of those protocols' crop_scale and flip.
        dtype: of the backbone's images.

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
    with evaluation_mode(backbone):
        for epoch in range(max(config.epochs for config, _ in probes)):
            training = [(fit, d0) for fit, d0 in fits if epoch < fit.config.epochs]
            for images, labels in crops.epoch(epoch, epoch_order(crops.count, seed, epoch), batch_size):
                r = backbone(images.to(dtype)).float()  # (b, D)
                for fit, d0 in training:
                    fit.step(r[:, :d0], labels, epoch)
            for fit, _ in training:
                fit.end_epoch(epoch)
    return [fit for fit, _ in fits]
