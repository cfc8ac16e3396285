"""Augmentation of a whole batch at once, with parameters of its own for each image.

Each function equals torchvision's v2.functional on float images, applied image by image. Work is
done only for the images an operation was drawn for: their indices are found on the CPU, where the
draws are, so that an accelerator is never waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.data.draws import BRIGHTNESS, CONTRAST, HUE, SATURATION, Draws

SOLARIZE_THRESHOLD = 128 / 255
_LUMA = (0.2989, 0.587, 0.114)

Interpolation = Literal["bicubic", "bilinear"]


def resized_crop(
    images: Tensor, boxes: Tensor, flip: Tensor, size: int, interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Crop, resize with antialiased interpolation and flip: two small matrix products per image.

    Args:
        images: (n, C, H, W), floating point.
        boxes: int64 (n, 4) on the CPU: top, left, height, width.
        flip: bool (n,) on the CPU.
        size: S, the side of the result.

    Returns:
        (n, C, S, S); not clamped, so bicubic overshoot is kept.
    """
    n, channels, height, width = images.shape
    unflipped = torch.zeros_like(flip)
    rows = _resampling_weights(boxes[:, 0], boxes[:, 2], unflipped, height, size, images, interpolation)
    columns = _resampling_weights(boxes[:, 1], boxes[:, 3], flip, width, size, images, interpolation)
    across = torch.bmm(images.reshape(n, channels * height, width), columns.transpose(1, 2))
    across = across.view(n, channels, height, size)
    # One product per channel: a single one would first have to transpose, which costs more.
    return torch.stack([torch.bmm(rows, across[:, c]) for c in range(channels)], dim=1)


def _resampling_weights(
    start: Tensor,
    length: Tensor,
    flip: Tensor,
    source: int,
    size: int,
    like: Tensor,
    interpolation: Interpolation,
) -> Tensor:
    """Weights (n, S, source) that resample [start, start + length) to S points.

    When shrinking, the kernel is widened by the scale: the antialiasing of PIL and torchvision.
    """
    scale = length.double() / size  # (n,)
    points = torch.arange(size, dtype=torch.float64) + 0.5
    centres = torch.where(flip[:, None], size - points, points) * scale[:, None] + start[:, None]  # (n, S)
    inverse = (1 / scale.clamp(min=1)).to(like, non_blocking=True)[:, None, None]
    first = start.to(like.device, non_blocking=True)[:, None, None]
    last = (start + length).to(like.device, non_blocking=True)[:, None, None]
    pixels = torch.arange(source, device=like.device)
    offsets = (centres - 0.5).to(like, non_blocking=True)[:, :, None]
    x = (pixels - offsets).mul_(inverse).abs_()  # (n, S, source)
    weights = _cubic(x) if interpolation == "bicubic" else (1 - x).clamp_(min=0)
    weights *= (pixels >= first) & (pixels < last)
    return weights / weights.sum(dim=2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2 at distances x >= 0, which are changed."""
    x = x.clamp_(max=2)
    near = ((1.5 * x - 2.5) * x).mul_(x).add_(1)
    far = ((2.5 - 0.5 * x).mul_(x).sub_(4)).mul_(x).add_(2)
    return torch.where(x < 1, near, far)


def grayscale(images: Tensor) -> Tensor:
    """Luma (n, 1, H, W) of RGB images; one channel stays as it is."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale by a factor (n, 1, 1, 1), within [0, 1]."""
    return (images * factor).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with each image's mean luma."""
    mean = grayscale(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blend(images, mean, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grayscale image."""
    return _blend(images, grayscale(images), factor)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).add_(other * (1 - factor)).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue by a shift (n, 1, 1, 1) in turns, keeping HSV saturation and value."""
    red, green, blue = images.unbind(1)
    value, lowest = images.amax(dim=1), images.amin(dim=1)
    chroma = value - lowest
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    turned = sextant + 6 * shift[:, 0]  # (n, H, W)
    channels = []
    for offset in (5, 3, 1):
        distance = torch.remainder(turned + offset, 6)
        ramp = torch.minimum(distance, 4 - distance).clamp_(0, 1)
        channels.append(value - chroma * ramp)
    return torch.stack(channels, dim=1)


_JITTER: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    BRIGHTNESS: adjust_brightness,
    CONTRAST: adjust_contrast,
    SATURATION: adjust_saturation,
    HUE: adjust_hue,
}


def colour_jitter(images: Tensor, draws: Draws) -> Tensor:
    """Brightness, contrast, saturation and hue, in each image's own order; in place where possible."""
    order = draws.order
    active = [BRIGHTNESS, CONTRAST, SATURATION, HUE]
    if images.shape[1] == 1:
        # The other two do nothing to gray; without them the order is that of the first two.
        active = [BRIGHTNESS, CONTRAST]
        order = order[order < 2].view(-1, 2)
    for position in range(order.shape[1]):
        for kind in active:
            chosen = draws.jitter & (order[:, position] == kind)
            images = on_subset(images, chosen, _JITTER[kind], draws.factors[:, kind])
    return images


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Separable blur with a standard deviation (n, 1, 1, 1) of its own for each image, edges reflected."""
    radius = kernel_size // 2
    # In float64, so that rounding leaves the same float32 weights whatever rows are computed together.
    squares = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float64) ** 2
    kernel = torch.exp(-squares / (2 * sigma.double().flatten(1) ** 2))  # (n, k)
    weights = (kernel / kernel.sum(dim=1, keepdim=True)).to(images.dtype)[:, :, None, None, None]
    height, width = images.shape[2:]
    padded = F.pad(images, [radius] * 4, mode="reflect")
    across = weights[:, 0] * padded[..., :width]
    for i in range(1, kernel_size):
        across.addcmul_(weights[:, i], padded[..., i : i + width])
    down = weights[:, 0] * across[:, :, :height]
    for i in range(1, kernel_size):
        down.addcmul_(weights[:, i], across[:, :, i : i + height])
    return down


def solarize(images: Tensor) -> Tensor:
    """Invert what is at least as bright as the threshold: 128 of 255, as PIL does."""
    return torch.where(images >= SOLARIZE_THRESHOLD, 1 - images, images)


def on_subset(
    images: Tensor, chosen: Tensor, operation: Callable[..., Tensor], parameter: Tensor | None = None
) -> Tensor:
    """Replace the chosen images by the result of an operation on them alone.

    Args:
        images: (n, C, H, W), changed in place when only some are chosen.
        chosen: bool (n,) on the CPU.
        operation: maps (m, C, H, W), and the chosen parameters (m, 1, 1, 1) if any, to (m, C or 1, H, W).
        parameter: (n,) on the CPU.
    """
    rows = chosen.nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    arguments = [] if parameter is None else [parameter[rows].to(images, non_blocking=True).view(-1, 1, 1, 1)]
    if len(rows) == len(images):
        return operation(images, *arguments).expand_as(images).contiguous()
    rows = rows.to(images.device, non_blocking=True)
    changed = operation(images.index_select(0, rows), *arguments)
    channels = images.shape[1]
    return images.index_copy_(0, rows, changed.expand(-1, channels, -1, -1))
