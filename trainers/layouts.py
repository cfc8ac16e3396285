"""Checkpoint files of ours and of others: recognised, checked name by name, never executed.

A file is one of

    model       ours: a finished trial, with its configuration (model.safetensors)
    state       ours: an unfinished one (state-STEP.safetensors)
    training    released code: `model` with keys under module.backbone., module.projector.,
                module.online_head.; besides `epoch` and `optimizer`
    export      released code, at the end of training: `backbone` and `head`
    spectrum    released code's spectrum tool: `backbone` and `projector`
    backbone    a torchvision state dict, with or without `fc`; what `trainers.portable` writes
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from trainers import checkpoint
from trainers.config import (
    DropoutHead,
    GroupedHead,
    HeadConfig,
    LinearHead,
    MlpHead,
    NoHead,
    SubvectorHead,
    TrialConfig,
)

State = dict[str, Tensor]
Layout = Literal["model", "state", "training", "export", "spectrum", "backbone"]

_PARTS = {
    "backbone": "backbone",
    "head": "head",
    "projector": "head",
    "online_head": "classifier",
    "online_probe": "classifier",
}
"""First component of a tensor's name, in our files and in the released code's."""


class CheckpointError(ValueError):
    """A file that can't be used as a checkpoint: one line with the file, what it has and what it takes."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, in our names whoever wrote it.

    Attributes:
        backbone: torchvision's names for its ResNets, without `fc`.
        head: of `trainers.heads`; empty where the head has no tensors, or the file none of it.
        head_config: the head that the file speaks of; none where it speaks of no other. The released code's
            DirectCLR leaves no trace in a file, so it is `none` here.
        classifier: weight (K, D) and bias (K,) of the online probe, if there is one.
        trial: what was trained; ours alone say so.
        epoch: epochs trained, where the file says.
    """

    path: Path
    layout: Layout
    backbone: State
    head: State
    head_config: HeadConfig
    classifier: State | None = None
    trial: TrialConfig | None = None
    epoch: int | None = None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and recognise a file, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, of no known layout, or holds more than plain data. Nothing
            of it is run, whatever it holds.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    # a safetensors file is the length of a JSON object, 8 bytes, and the object
    if start[8:] == b"{" and not start.startswith(b"PK"):
        return _from_safetensors(path)
    return _from_torch(path)


# --- files ----------------------------------------------------------------------------------------


def _from_safetensors(path: Path) -> Checkpoint:
    try:
        tensors, metadata = checkpoint.read(path)
    except (checkpoint.DamagedError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors ({_first_line(error)})") from None
    try:
        trial = TrialConfig.model_validate_json(metadata["trial"]) if "trial" in metadata else None
        progress = json.loads(metadata["progress"]) if "progress" in metadata else None
        epoch = None if progress is None else int(progress["epoch"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path}: its trial is not one that this version knows ({field}: {first['msg']})"
        ) from None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata are damaged ({_first_line(error)})") from None
    if progress is not None:
        tensors = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    if not any(name.startswith("backbone.") for name in tensors):
        return _bare(path, tensors, trial)
    if trial is None:
        raise CheckpointError(f"{path}: lacks its trial's configuration among its metadata")
    layout: Layout = "model" if progress is None else "state"
    parts = _split(path, layout, tensors)
    return Checkpoint(
        path=path,
        layout=layout,
        backbone=parts["backbone"],
        head=parts["head"],
        head_config=trial.head,
        classifier=parts["classifier"] or None,
        trial=trial,
        epoch=trial.epochs if epoch is None else epoch,
    )


def _from_torch(path: Path) -> Checkpoint:
    content = _read_torch(path)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds {_described(content)}, takes a checkpoint: {_LAYOUTS}")
    if "model" in content:
        epoch = content.get("epoch")
        parts = _split(path, "training", _state(path, "training", "model", content["model"]))
        head_config, head, classifier = _released_head(path, "training", parts["head"])
        return Checkpoint(
            path,
            "training",
            parts["backbone"],
            head,
            head_config,
            classifier=parts["classifier"] or classifier,
            epoch=epoch if isinstance(epoch, int) else None,
        )
    if "backbone" in content:
        layout: Layout = "spectrum" if "projector" in content else "export"
        name = "projector" if layout == "spectrum" else "head"
        unknown = [key for key in content if key not in ("backbone", name, "epoch")]
        if unknown:
            raise CheckpointError(f"{where(path, layout)} has {some(unknown)}, takes backbone and {name}")
        backbone = _plain(_state(path, layout, "backbone", content["backbone"]))
        named = _plain(_state(path, layout, name, content.get(name) or {}))
        head_config, head, classifier = _released_head(path, layout, named)
        return Checkpoint(path, layout, backbone, head, head_config, classifier)
    return _bare(path, _plain(_state(path, "backbone", "file", content)), None)


def _bare(path: Path, tensors: State, trial: TrialConfig | None) -> Checkpoint:
    """A backbone without head: the trial's head is known only where it has no tensors of its own."""
    if "conv1.weight" not in tensors:
        raise CheckpointError(f"{path}: has {some(list(tensors))}, takes a checkpoint: {_LAYOUTS}")
    head: HeadConfig = NoHead(kind="none")
    if trial is not None and isinstance(trial.head, SubvectorHead | DropoutHead | GroupedHead):
        head = trial.head
    return Checkpoint(path, "backbone", without_classifier(tensors), {}, head, trial=trial)


_LAYOUTS = "of ours, `model`, `backbone` with `head` or `projector`, or a torchvision state dict"


def _read_torch(path: Path) -> Any:
    """torch.load of tensors and plain data.

    The released code's optimizer state may name functions of its training script. They are read as
    `_nothing`, which does nothing; any other name of something callable is refused.
    """
    try:
        with safe_globals([(_nothing, name) for name in _scripts_own(path)]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch's message is a page
        what = f"names {named[1]}" if named else "is damaged or holds more"
        raise CheckpointError(
            f"{path}: not readable as a checkpoint: its pickle {what}, where tensors and plain data are taken; "
            "nothing of it was run"
        ) from None
    except Exception as error:  # damaged files raise whatever the reader stumbles over
        what = f" ({_first_line(error)})" if isinstance(error, OSError) else ""
        raise CheckpointError(
            f"{path}: not readable as a checkpoint: damaged, or none at all{what}"
        ) from None


def _scripts_own(path: Path) -> list[str]:
    """What a file names of the script that wrote it."""
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # no zip archive: written by a torch before 1.6, or by none
        return []
    return [name for name in names if name.startswith("__main__.")]


def _nothing(*arguments: Any) -> None:
    """Stands for a function of someone's training script."""


# --- names ----------------------------------------------------------------------------------------


def _state(path: Path, layout: Layout, name: str, content: Any) -> State:
    """A state dict that holds nothing but tensors."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where(path, layout)}: {name}: got {_described(content)}, takes a state dict")
    for key, value in content.items():
        if not isinstance(key, str):
            raise CheckpointError(
                f"{where(path, layout)}: {name}: got the key {key!r}, takes names of tensors"
            )
        dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not dense or value.is_quantized:
            raise CheckpointError(
                f"{where(path, layout)}: {name}: {key!r}: got {_described(value)}, takes a dense tensor"
            )
    return {key: value.detach() for key, value in content.items()}


def _plain(state: State) -> State:
    """Names without what DistributedDataParallel puts before them."""
    wrapped = bool(state) and all(name.startswith("module.") for name in state)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()} if wrapped else state


def _split(path: Path, layout: Layout, tensors: State) -> dict[str, State]:
    """Backbone, head and classifier of a whole model, with names of their own."""
    parts: dict[str, State] = {"backbone": {}, "head": {}, "classifier": {}}
    for name, tensor in _plain(tensors).items():
        prefix, _, rest = name.partition(".")
        if prefix not in _PARTS or not rest:
            raise CheckpointError(
                f"{where(path, layout)}: has the tensor {name!r}, takes those of {', '.join(_PARTS)}"
            )
        parts[_PARTS[prefix]][rest] = tensor
    return parts


def _released_head(path: Path, layout: Layout, state: State) -> tuple[HeadConfig, State, State | None]:
    """The released code's projector: its configuration, its tensors under our names, or a classifier instead.

    A Sequential of linear layer, batch norm, ReLU, linear layer, batch norm; a bias-free linear layer, alone
    or in a Sequential; or nothing. A linear layer with a bias is no projector but a classifier.
    """
    try:
        if not state:
            return NoHead(kind="none"), {}, None
        if state.keys() == {"weight", "bias"}:
            return NoHead(kind="none"), {}, state
        if state.keys() in ({"weight"}, {"0.weight"}):
            (weight,) = state.values()
            return LinearHead(kind="linear", out_dim=len(weight)), {"layer.weight": weight}, None
        if {"0.weight", "3.weight"} <= state.keys():
            config = MlpHead(kind="mlp", hidden_dim=len(state["0.weight"]), out_dim=len(state["3.weight"]))
            return config, {f"layers.{name}": tensor for name, tensor in state.items()}, None
    except (ValidationError, TypeError):  # no rows, or no dimensions
        pass
    raise CheckpointError(
        f"{where(path, layout)}: its head has {some(list(state))}, takes those of a linear or a 2-layer projector"
    )


def without_classifier(state: State) -> State:
    """A torchvision ResNet's tensors but those of `fc`, which our backbones have not."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


# --- words ----------------------------------------------------------------------------------------


def where(path: Path, layout: Layout) -> str:
    """A file and what it was recognised as, for messages."""
    return f"{path} ({layout} layout)"


def some(names: list[Any]) -> str:
    """'x' (and 12 more)."""
    first = repr(names[0])[:80] if names else "nothing"
    return first + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.layout).removeprefix('torch.')} tensor on {value.device}"
    return f"{value!r}"[:40] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
