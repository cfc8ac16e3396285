"""Backbones: images to representations, with every initial weight drawn from one given generator."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.resnet import BasicBlock, Bottleneck

from trainers.config import ResNet, ThinResNet


def build_backbone(config: ResNet | ThinResNet, in_channels: int, generator: torch.Generator) -> nn.Module:
    """A backbone from images (B, C, H, W) to representations (B, D) after global average pooling.

    Args:
        config: which network. torchvision's keep its state-dict names, without `fc`.
        in_channels: C.
        generator: source of all initial weights (CPU); process-wide random state is left alone.

    Returns:
        A float32 module on CPU with attribute `representation_dim`, which is D.
    """
    # Nothing is allocated or drawn while constructing: torchvision's constructors initialise from
    # process-wide random state.
    with torch.device("meta"):
        backbone: nn.Module
        match config:
            case ThinResNet():
                backbone = BottleneckNet(config.width, config.blocks, config.stem_stride, in_channels)
            case ResNet():
                backbone = _torchvision_resnet(config.kind, in_channels)
            case _:
                assert_never(config)
    backbone.to_empty(device="cpu")
    uninitialised = _versions(backbone)
    _initialise(backbone, config.zero_init_residual, generator)
    _refuse_unset(backbone, uninitialised)
    backbone.representation_dim = config.representation_dim  # type: ignore[assignment]
    return backbone


def _torchvision_resnet(kind: str, in_channels: int) -> nn.Module:
    backbone: resnet.ResNet = getattr(resnet, kind)()
    backbone.fc = nn.Identity()
    if in_channels != 3:
        backbone.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return backbone


class BottleneckNet(nn.Module):
    """A ResNet for small images: 3x3 stem, no max pooling, bottleneck stages of doubling width.

    Args:
        width: of the stem and of the first stage's bottlenecks; D = 4 * width * 2^(stages - 1).
        blocks: bottlenecks in each stage; every stage after the first halves the image.
        stem_stride: 1 keeps the image's size in the stem, 2 halves it.
        in_channels: C of the images.
    """

    def __init__(self, width: int, blocks: tuple[int, ...], stem_stride: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages, channels = [], width
        for i, count in enumerate(blocks):
            stages.append(_stage(channels, width * 2**i, count, stride=1 if i == 0 else 2))
            channels = width * 2**i * Bottleneck.expansion
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu_(self.bn1(self.conv1(images)))  # (B, C, H, W) -> (B, width, H / stem_stride, ..)
        return self.stages(x).mean(dim=(2, 3))  # (B, D, h, w) -> (B, D)


def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    out = width * Bottleneck.expansion
    shortcut = None
    if stride != 1 or channels != out:
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
    first = Bottleneck(channels, width, stride, shortcut)
    return nn.Sequential(first, *(Bottleneck(out, width) for _ in range(blocks - 1)))


def _versions(module: nn.Module) -> dict[str, int]:
    """How often each parameter and buffer was written in place, by its name."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor._version for name, tensor in tensors}


def _refuse_unset(backbone: nn.Module, uninitialised: dict[str, int]) -> None:
    """Refuse tensors that still hold what was in their memory.

    Raises:
        RuntimeError: naming the first of them; `_initialise` lacks a rule for its layer.
    """
    unset = [name for name, version in _versions(backbone).items() if version == uninitialised.get(name)]
    if unset:
        raise RuntimeError(
            f"backbone: {unset[0]} has no initial value ({len(unset)} in all); `_initialise` lacks a rule for its layer"
        )


def _initialise(backbone: nn.Module, zero_init_residual: bool, generator: torch.Generator) -> None:
    """Kaiming-normal (fan out) convolutions, unit batch norms; torchvision's own rule for ResNets."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    if zero_init_residual:
        for module in backbone.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
