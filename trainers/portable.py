"""A checkpoint's model at work: built from its tensors, or its backbone written for others to load."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, assert_never

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet

from trainers.backbones import build_backbone
from trainers.config import TrialConfig
from trainers.files import partial_name
from trainers.heads import Head, build_head
from trainers.layouts import Checkpoint, CheckpointError, State, some, where, without_classifier
from trainers.randomness import generator

TORCHVISION_RESNETS = ("resnet18", "resnet34", "resnet50")


def build_model(
    checkpoint: Checkpoint, trial: TrialConfig, in_channels: int, device: torch.device
) -> tuple[nn.Module, Head]:
    """A checkpoint's backbone and head in evaluation mode on a device.

    Args:
        trial: which backbone and head, and their precision. A head that is not the checkpoint's own is a
            fresh one.
        in_channels: of the images.

    Raises:
        CheckpointError: names or shapes differ from those of the trial's backbone or head.
    """
    backbone = build_backbone(trial.backbone, in_channels, generator(trial.seed, "backbone"))
    head = build_head(trial.head, trial.backbone.representation_dim, trial.seed)
    takes = f"{trial.backbone.kind} on {in_channels}-channel images"
    _load(backbone, checkpoint.backbone, checkpoint, "backbone", takes)
    if trial.head == checkpoint.head_config:
        _load(head, checkpoint.head, checkpoint, "head", f"the {trial.head.kind} head")
    layout = torch.channels_last if trial.channels_last else torch.contiguous_format
    for module in (backbone, head):
        module.to(device, torch.float64 if trial.precision == "float64" else torch.float32)
        module.to(memory_format=layout).eval()
    return backbone, head


def torchvision_name(checkpoint: Checkpoint) -> str:
    """Which of torchvision's ResNets takes the backbone as it is.

    Raises:
        CheckpointError: none of them does.
    """
    for name in TORCHVISION_RESNETS:
        with torch.device("meta"):
            wanted = without_classifier(getattr(resnet, name)().state_dict())
        if wanted.keys() != checkpoint.backbone.keys():
            continue
        for key, tensor in checkpoint.backbone.items():
            if tensor.shape != wanted[key].shape:
                raise CheckpointError(
                    f"{checkpoint.path}: torchvision's {name} can't take its backbone: {key!r}: got shape "
                    f"{_shape(tensor)}, takes {_shape(wanted[key])}; the safetensors format holds any"
                )
        return name
    raise CheckpointError(
        f"{checkpoint.path}: its backbone has the names of none of torchvision's {', '.join(TORCHVISION_RESNETS)}; "
        "the safetensors format holds any"
    )


def save_backbone(
    checkpoint: Checkpoint, path: Path, file_format: Literal["torchvision", "safetensors"]
) -> None:
    """Write a checkpoint's backbone alone; a file that is there is replaced in one step.

    `torchvision`: a pickle of plain tensors, which `load_state_dict(torch.load(path, weights_only=True),
    strict=False)` of the network named by `torchvision_name` takes whole, lacking only `fc`. `safetensors`: any
    backbone, with the trial's configuration as metadata. Tensors are written as they are.

    Raises:
        CheckpointError: no network of torchvision's takes the backbone.
        OSError: the file can't be written.
    """
    tensors = {name: tensor.contiguous().clone() for name, tensor in checkpoint.backbone.items()}
    match file_format:
        case "torchvision":
            torchvision_name(checkpoint)
            _replace(path, lambda partial: torch.save(tensors, partial))
        case "safetensors":
            metadata = {"format": "pt"}
            if checkpoint.trial is not None:
                metadata["trial"] = checkpoint.trial.model_dump_json()
            _replace(path, lambda partial: save_file(tensors, partial, metadata))
        case _:
            assert_never(file_format)


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    partial = partial_name(path)
    partial.open("xb").close()  # an OSError in the words of the system: torch and safetensors have their own
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _load(module: nn.Module, state: State, checkpoint: Checkpoint, part: str, takes: str) -> None:
    """Put tensors into a module, all of them and in their shapes."""
    place = where(checkpoint.path, checkpoint.layout)
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    if unknown:
        raise CheckpointError(f"{place}: its {part} has {some(unknown)}, which {takes} doesn't take")
    if missing:
        raise CheckpointError(f"{place}: its {part} lacks {some(missing)}, which {takes} takes")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{place}: {part}: {name!r}: got shape {_shape(tensor)}, {takes} takes {_shape(wanted[name])}"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{place}: {part}: {name!r}: holds values that are not finite")
    module.load_state_dict(state)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
