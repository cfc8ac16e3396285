"""States of a training, as safetensors with JSON metadata: nothing that can execute is ever loaded.

`state-STEP.safetensors` holds all that training goes on from (model, optimizer, gradient scaler, random states,
position); `model.safetensors` the finished model, with its history. Each appears under its name in one step, and
carries a checksum of all that it says. The two newest states are kept: should one be damaged, there is another.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trainers.files import MODEL, STATES, make_folder, partial_name, put_file, put_in_place
from trainers.locations import is_local, local_copy

_KEPT = 2
_CHECKSUM = "sha256"


class DamagedError(Exception):
    """A file of ours that is cut off, or was altered since it was written."""


class StateError(OSError):
    """A state could not be written: which, why, from where the same command goes on."""


@dataclass
class Progress:
    """Where a training stands: `epoch` and `step` are the next to run; one history entry per finished epoch.

    Attributes:
        corrupt: images that could not be decoded, sorted, on all ranks.
        spectra: one entry per finished epoch, as `trainers.collapse` measures them; on rank 0.
        seconds: spent on the unfinished epoch.
        partial: what the unfinished epoch has summed up so far; empty between epochs.
        workers: that trained up to here; 0: not known.
    """

    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    spectra: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    partial: dict[str, Tensor] = field(default_factory=dict)
    workers: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A copy of all that a state holds, while training goes on."""

    step: int
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def snapshot(
    trial: dict[str, Any],
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Snapshot:
    """Copy all that training needs to go on from here to the CPU."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"partial.{name}": tensor for name, tensor in progress.partial.items()}
    optimizer_state = optimizer.state_dict()["state"]
    scalars: dict[str, Any] = {}
    for index, slots in optimizer_state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
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
        "history": list(progress.history),
        "corrupt": list(progress.corrupt),
        "spectra": list(progress.spectra),
        "seconds": progress.seconds,
        "workers": progress.workers,
        "optimizer_scalars": scalars,
        "scaler": scaler.state_dict(),
    }
    return Snapshot(progress.step, _copies(tensors), {"trial": trial, "progress": position})


def write_state(directory: Path, state: Snapshot, guard: Callable[[], None] = lambda: None) -> Path:
    """Write a state, and remove all but the newest two.

    Args:
        guard: asked just before it appears; raises where this process must not write.
    """
    path = _write(_place(directory, state.step), state.tensors, state.metadata, guard)
    for older in sorted(directory.glob(STATES))[:-_KEPT]:
        older.unlink(missing_ok=True)
    return path


class StateWriter:
    """Writes states from a thread of its own, one at a time: the training pays for the copy alone.

    At the end of its `with`, all that was given is on disk, or was told not to be.

    Args:
        guard: asked before each state appears; raises where another process has taken the trial over.
    """

    def __init__(self, directory: Path, guard: Callable[[], None]) -> None:
        self._directory, self._guard = directory, guard
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> StateWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.wait()
        except BaseException:
            if kind is None:  # else the first error is the one to be told
                raise

    def save(self, state: Snapshot) -> None:
        """Begin to write a state, once the one before is written.

        Raises:
            StateError: that one could not be written.
        """
        self.wait()
        self._thread = threading.Thread(target=self._work, args=(state,), name="state writer")
        self._thread.start()

    def wait(self) -> None:
        """Return once all that was given is on disk.

        Raises:
            StateError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self, state: Snapshot) -> None:
        try:
            try:
                write_state(self._directory, state, self._guard)
            except OSError as error:
                raise StateError(self._sentence(state, error)) from error
        except BaseException as error:  # raised where the training can act on it
            self._error = error

    def _sentence(self, state: Snapshot, error: OSError) -> str:
        good = max((int(path.stem.split("-")[1]) for path in self._directory.glob(STATES)), default=0)
        return (
            f"{self._directory}: the state of step {state.step} cannot be written ({error.strerror or error}); make "
            f"room or the folder writable, and the same command goes on from step {good}"
        )


def load_state(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    note: Callable[[str], None] | None = None,
) -> Progress:
    """Put the newest good state back and say where to go on; a fresh `Progress` if there is none.

    A damaged state is renamed to `<its name>.damaged`.

    Args:
        note: told, in a sentence, of a damaged state. Where it is None, damaged ones are passed over and left.
    """
    found, damaged = None, []
    for path in sorted(directory.glob(STATES), reverse=True):
        try:
            found = read(path)
            break
        except FileNotFoundError:  # rank 0 has set it aside, or written two newer ones
            continue
        except DamagedError as error:
            damaged.append((path, str(error)))
    progress = Progress() if found is None else _put_back(*found, model, optimizer, scaler)
    if note is not None:
        start = f"from step {progress.step}" if found else "from the start"
        for path, reason in damaged:
            set_aside(path)
            note(f"state {path.name} {reason}; set aside, training goes on {start}")
    return progress


def load_same_state(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    patience: float = 60.0,
) -> Progress:
    """Put back, on another rank, the very state that rank 0 goes on from.

    Args:
        step: of that state; 0 where rank 0 starts anew.
        patience: seconds for the file system to show the file here too.

    Raises:
        StateError: this rank does not see it, or not as rank 0 does.
    """
    if step == 0:
        return Progress()
    path, deadline = _place(directory, step), time.monotonic() + patience
    while True:
        try:
            return _put_back(*read(path), model, optimizer, scaler)
        except (FileNotFoundError, DamagedError) as error:
            if time.monotonic() > deadline:
                raise StateError(
                    f"{path}: rank 0 goes on from it, and this one finds it missing or damaged ({error}); the store "
                    "must be the same on all nodes"
                ) from error
            time.sleep(0.2)


def _place(directory: Path, step: int) -> Path:
    return directory / STATES.replace("*", f"{step:09d}")


def set_aside(path: Path) -> None:
    """Keep a damaged file under a name that nothing reads."""
    path.rename(path.with_name(f"{path.name}.damaged"))


def _put_back(
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Progress:
    model.load_state_dict(_under("model.", tensors))
    position = json.loads(metadata["progress"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Any]] = {}
    entries = {**_under("optimizer.", tensors), **position["optimizer_scalars"]}
    for name, value in entries.items():
        index, slot = name.split(".", 1)
        if isinstance(value, Tensor) and value.shape == parameters[int(index)].shape:
            # In the parameter's memory format: foreach operations are slow where strides differ.
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    scaler.load_state_dict(position["scaler"])
    torch.set_rng_state(tensors["random.cpu"])
    device = next(model.parameters()).device
    if "random.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
    return Progress(
        position["epoch"],
        position["step"],
        position["history"],
        position["corrupt"],
        position["spectra"],
        position["seconds"],
        _under("partial.", tensors),
        position.get("workers", 0),
    )


def save_model(
    directory: Path,
    trial: dict[str, Any],
    model: nn.Module,
    told: dict[str, Any],
    guard: Callable[[], None] = lambda: None,
) -> Path:
    """Write the finished model (backbone, head, online probe) without optimizer or position.

    Args:
        told: what else a record is made of, for `told_of_model`.
        guard: as of `write`.
    """
    return write(directory / MODEL, dict(model.state_dict()), {"trial": trial, "told": told}, guard)


def told_of_model(directory: Path) -> dict[str, Any] | None:
    """What `save_model` was told with the finished model; None where there is none.

    Raises:
        DamagedError: it is damaged.
    """
    try:
        _, metadata = read(directory / MODEL)
    except FileNotFoundError:
        return None
    told: dict[str, Any] = json.loads(metadata.get("told", "null"))
    return told


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file on the CPU, and its metadata.

    Raises:
        DamagedError: it is cut off, no safetensors at all, or does not meet the checksum that it carries.
    """
    try:
        with local_copy(path) as copy, safe_open(copy, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise DamagedError(f"is cut off, or no file of ours ({str(error).splitlines()[0]})") from None
    if _CHECKSUM in metadata and metadata[_CHECKSUM] != _checksum(tensors, metadata):
        raise DamagedError("was altered: it does not meet its checksum")
    return tensors, metadata


def write(
    path: Path,
    tensors: dict[str, Tensor],
    content: dict[str, Any],
    guard: Callable[[], None] = lambda: None,
) -> Path:
    """Write tensors and what else is told of them, with a checksum of both; `read` gives them back.

    Args:
        guard: asked just before the file appears; raises where this process must not write.

    Raises:
        OSError: it cannot be written.
    """
    return _write(path, _copies(tensors), content, guard)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory (buffers aliased by a parametrization)
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format).contiguous()
        for name, tensor in tensors.items()
    }


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256()
    told = {name: value for name, value in metadata.items() if name != _CHECKSUM}
    digest.update(json.dumps(told, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(
    path: Path, tensors: dict[str, Tensor], content: dict[str, Any], guard: Callable[[], None]
) -> Path:
    """Contiguous tensors on the CPU, none sharing memory with another."""
    metadata = {key: json.dumps(value) for key, value in content.items()}
    metadata[_CHECKSUM] = _checksum(tensors, metadata)
    if not is_local(path):
        with tempfile.TemporaryDirectory(prefix="ablate-") as folder:
            _save(tensors, Path(folder, path.name), metadata)
            put_file(Path(folder, path.name), path, guard)
        return path
    make_folder(path.parent)
    partial = partial_name(path)
    try:
        _save(tensors, partial, metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        guard()
        put_in_place(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # it may be what fills the disk
        raise
    return path


def _save(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, file, metadata)
    except SafetensorError as error:
        told = re.search(r"os error (\d+)", str(error))  # it wraps what the disk says
        code = int(told[1]) if told else errno.EIO
        raise OSError(code, os.strerror(code) if told else str(error).splitlines()[0], str(file)) from None


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
