"""Two views of an image (PAPER.md): crop, flip, colour jitter, grayscale, blur, solarize.

Two ways to the same views: `BatchedAugment` for arrays on the training device, `PerImageAugment`
with torchvision v2 on uint8, image by image, which is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from trainers.config import AugmentConfig, ViewConfig
from trainers.data import batched
from trainers.data.draws import BRIGHTNESS, CONTRAST, HUE, SATURATION, Draws, crop_boxes, draw


def blur_kernel_size(image_size: int) -> int:
    """About a tenth of the side and odd, as in SimCLR: 23 at 224; at least 3."""
    return max(3, 2 * (image_size // 20) + 1)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """uint8, or floats in [0, 1], to zero mean and unit variance per channel."""
    factor = 1 / 255 if images.dtype == torch.uint8 else 1.0
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.tensor([factor / s for s in std], dtype=compute).to(images.device, non_blocking=True)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=compute)
    shift = shift.to(images.device, non_blocking=True)
    scaled = images.to(compute) * scale.view(-1, 1, 1)
    return scaled.add_(shift.view(-1, 1, 1)).to(dtype)


class BatchedAugment:
    """Views of a whole batch, computed on the device where the images lie.

    Args:
        image_size: S, the side of a view.
        mean, std: per channel.
        interpolation: of the crop.
    """

    def __init__(
        self,
        config: AugmentConfig,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: batched.Interpolation = "bicubic",
    ) -> None:
        self.config = config
        self.interpolation = interpolation
        self.image_size = image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.kernel_size = blur_kernel_size(image_size)

    def draw(self, n: int, generator: torch.Generator, view: ViewConfig) -> Draws:
        """Parameters of a global batch of n views; a rank takes its rows by slicing."""
        return draw(n, generator, self.config, view)

    @torch.no_grad()
    def apply(self, images: Tensor, draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 (b, C, H, W) and their draws -> normalised views (b, C, S, S) in `dtype`.

        A row's result depends on its own image and draws alone, to the last bit on CPU.
        """
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        boxes = crop_boxes(draws, images.shape[2], images.shape[3], self.config.crop_ratio)
        # A caller's autocast would round the interpolation weights to half precision.
        with torch.autocast(images.device.type, enabled=False):
            x = images.to(compute).div_(255)
            x = batched.resized_crop(x, boxes, draws.flip, self.image_size, self.interpolation).clamp_(0, 1)
            x = batched.colour_jitter(x, draws)
            if x.shape[1] > 1:
                x = batched.on_subset(x, draws.grayscale, batched.grayscale)
            x = batched.on_subset(
                x, draws.blur, lambda y, sigma: batched.gaussian_blur(y, sigma, self.kernel_size), draws.sigma
            )
            x = batched.on_subset(x, draws.solarize, batched.solarize)
            return normalise(x, self.mean, self.std, dtype)


class PerImageAugment:
    """Views of one image by torchvision v2 on uint8, from a generator of its own."""

    def __init__(
        self, config: AugmentConfig, image_size: int, interpolation: batched.Interpolation = "bicubic"
    ) -> None:
        self.config = config
        self.interpolation = InterpolationMode(interpolation)
        self.image_size = image_size
        self.kernel_size = blur_kernel_size(image_size)

    def __call__(self, image: Tensor, generator: torch.Generator, view: ViewConfig) -> Tensor:
        """uint8 (C, H, W) -> uint8 (C, S, S), not yet normalised."""
        draws = draw(1, generator, self.config, view)
        boxes = crop_boxes(draws, image.shape[1], image.shape[2], self.config.crop_ratio)
        top, left, height, width = boxes[0].tolist()
        size = [self.image_size, self.image_size]
        image = V.resized_crop(image, top, left, height, width, size, self.interpolation, antialias=True)
        if draws.flip:
            image = V.horizontal_flip(image)
        if draws.jitter:
            image = self._jitter(image, draws)
        if draws.grayscale:
            image = V.rgb_to_grayscale(image, num_output_channels=image.shape[0])
        if draws.blur:
            image = V.gaussian_blur(image, [self.kernel_size] * 2, [draws.sigma.item()] * 2)
        if draws.solarize:
            image = V.solarize(image, threshold=128)
        return image

    @staticmethod
    def _jitter(image: Tensor, draws: Draws) -> Tensor:
        adjust = {
            BRIGHTNESS: V.adjust_brightness,
            CONTRAST: V.adjust_contrast,
            SATURATION: V.adjust_saturation,
            HUE: V.adjust_hue,
        }
        factors = draws.factors[0].tolist()
        for kind in draws.order[0].tolist():
            image = adjust[kind](image, factors[kind])
        return image


def evaluation_images(images: Tensor, image_size: int) -> Tensor:
    """Small images as they are, resized to the training size: uint8 (b, C, H, W) -> uint8 (b, C, S, S)."""
    if images.shape[2:] == (image_size, image_size):
        return images
    return V.resize(images, [image_size, image_size], InterpolationMode.BICUBIC, antialias=True)


def evaluation_photo(image: Tensor, image_size: int) -> Tensor:
    """The centre of a photograph, as the reference validates: Resize(256/224 S), CenterCrop(S)."""
    image = V.resize(image, [round(image_size * 256 / 224)], InterpolationMode.BILINEAR, antialias=True)
    return V.center_crop(image, [image_size, image_size])
