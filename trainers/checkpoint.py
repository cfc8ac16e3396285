"""States of a training, as safetensors with JSON metadata: nothing that can execute is ever loaded.

`state.safetensors` holds all that training goes on from (model, optimizer, gradient scaler, random
states, position); `model.safetensors` the finished model alone. A state is replaced atomically.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from trainers.files import MODEL, STATE


@dataclass
class Progress:
    """Where a training stands: `epoch` and `step` are the next to run; one history entry per finished epoch."""

    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save_state(
    directory: Path,
    trial: dict[str, Any],
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Path:
    """Write all that training needs to go on from here; the previous state is replaced in one step."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    optimizer_state = optimizer.state_dict()["state"]
    scalars: dict[str, Any] = {}
    for index, slots in optimizer_state.items():
        for name, value in slots.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    tensors["random.cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":  # asking for it on a CPU trial would open a CUDA context
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    position = {
        "epoch": progress.epoch,
        "step": progress.step,
        "history": progress.history,
        "optimizer_scalars": scalars,
        "scaler": scaler.state_dict(),
    }
    return _write(directory / STATE, tensors, {"trial": trial, "progress": position})


def load_state(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> Progress:
    """Put the last saved state back and say where to go on; a fresh `Progress` if there is none."""
    path = directory / STATE
    if not path.exists():
        return Progress()
    tensors, metadata = read(path)
    model.load_state_dict(_under("model.", tensors))
    position = json.loads(metadata["progress"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Any]] = {}
    entries = {**_under("optimizer.", tensors), **position["optimizer_scalars"]}
    for name, value in entries.items():
        index, slot = name.split(".", 1)
        if isinstance(value, torch.Tensor) and value.shape == parameters[int(index)].shape:
            # In the parameter's memory format: foreach operations are slow where strides differ.
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    scaler.load_state_dict(position["scaler"])
    torch.set_rng_state(tensors["random.cpu"])
    device = next(model.parameters()).device
    if "random.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
    return Progress(position["epoch"], position["step"], position["history"])


def save_model(directory: Path, trial: dict[str, Any], model: nn.Module) -> Path:
    """Write the finished model (backbone, head, online probe) without optimizer or position."""
    return _write(directory / MODEL, dict(model.state_dict()), {"trial": trial})


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a file on the CPU, and its metadata."""
    with safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")  # one name: rank 0 alone writes, a leftover is reused
    # safetensors refuses tensors that share memory (buffers aliased by a parametrization)
    unshared = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(unshared, partial, {key: json.dumps(value) for key, value in metadata.items()})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
