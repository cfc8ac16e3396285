"""What is random about a view: drawn once per global batch on the CPU, then sliced by rank.

The distributions are those of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter,
RandomGrayscale, GaussianBlur and RandomSolarize. Both augmentation modes consume the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trainers.config import AugmentConfig, ViewConfig

CROP_TRIES = 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class Draws:
    """Parameters of n views, one row each; real numbers in float64.

    Attributes:
        area: (n, 10) candidate crop areas, as fractions of the image.
        ratio: (n, 10) candidate aspect ratios, width / height.
        corner: (n, 2) place of the crop in [0, 1)^2: vertical, horizontal.
        flip, jitter, grayscale, blur, solarize: (n,) bool.
        order: (n, 4) a permutation of brightness, contrast, saturation, hue: the order of the jitter.
        factors: (n, 4) factors of brightness, contrast and saturation, and the hue shift in turns.
        sigma: (n,) standard deviation of the blur in pixels.
    """

    area: Tensor
    ratio: Tensor
    corner: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, rows: slice | Tensor) -> Draws:
        return Draws(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw(n: int, source: torch.Generator, config: AugmentConfig, view: ViewConfig) -> Draws:
    """Draw the parameters of n views; row i is the same whatever n > i."""
    uniform = torch.rand(n, 36, generator=source, dtype=torch.float64)
    area, ratio, corner, order, factors, single = uniform.split([10, 10, 2, 4, 4, 6], dim=1)
    flip, jitter, grayscale, blur, sigma, solarize = single.unbind(1)
    half_widths = [config.brightness, config.contrast, config.saturation, config.hue]
    centres = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    logs = torch.tensor(config.crop_ratio, dtype=torch.float64).log()
    return Draws(
        area=_between(area, *config.crop_scale),
        ratio=_between(ratio, *logs.tolist()).exp(),
        corner=corner,
        flip=flip < config.flip,
        jitter=jitter < config.jitter,
        order=order.argsort(dim=1),
        factors=centres + (2 * factors - 1) * torch.tensor(half_widths, dtype=torch.float64),
        grayscale=grayscale < config.grayscale,
        blur=blur < view.blur,
        sigma=_between(sigma, *config.blur_sigma),
        solarize=solarize < view.solarize,
    )


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def crop_boxes(draws: Draws, height: int, width: int, ratio_range: tuple[float, float]) -> Tensor:
    """The first candidate that fits each image, else the largest central crop of an allowed ratio.

    Returns:
        int64 (n, 4): top, left, height, width in whole pixels, as RandomResizedCrop chooses them.
    """
    target = draws.area * (height * width)
    w = (target * draws.ratio).sqrt().round()
    h = (target / draws.ratio).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)  # (n, 10)
    first = fits.to(torch.int8).argmax(dim=1, keepdim=True)
    any_fits = fits.any(dim=1)
    h_last, w_last = _central_size(height, width, ratio_range)
    h = torch.where(any_fits, h.gather(1, first).squeeze(1), h_last)
    w = torch.where(any_fits, w.gather(1, first).squeeze(1), w_last)
    top = torch.where(any_fits, (draws.corner[:, 0] * (height - h + 1)).floor(), (height - h_last) // 2)
    left = torch.where(any_fits, (draws.corner[:, 1] * (width - w + 1)).floor(), (width - w_last) // 2)
    return torch.stack([top, left, h, w], dim=1).long()


def _central_size(height: int, width: int, ratio_range: tuple[float, float]) -> tuple[int, int]:
    low, high = ratio_range
    if width / height < low:
        return round(width / low), width
    if width / height > high:
        return height, round(height * high)
    return height, width
