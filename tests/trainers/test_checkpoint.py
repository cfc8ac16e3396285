"""States as files: complete, replaced in one step, and never anything that can execute."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from trainers import checkpoint
from trainers.checkpoint import Progress, load_state, read, save_model, save_state
from trainers.config import AdamW, Lars, Sgd
from trainers.files import MODEL, STATE
from trainers.lars import build_optimizer

OPTIMIZERS = {
    "lars": Lars(kind="lars", lr=0.1),
    "sgd": Sgd(kind="sgd", lr=0.1),
    "adamw": AdamW(kind="adamw", lr=0.1),
}
PROGRESS = Progress(epoch=2, step=6, history=[{"loss": 0.1}, {"loss": 1 / 3}])


class Training:
    """A small convolutional model in channels_last, an optimizer and a gradient scaler, some steps on."""

    def __init__(self, kind: str = "lars", steps: int = 0) -> None:
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.model.to(memory_format=torch.channels_last)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
        self.optimizer = build_optimizer(OPTIMIZERS[kind], self.model.parameters())
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        for step in range(steps):
            self.step(step)

    def step(self, step: int) -> None:
        images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        loss = self.model(images).square().mean()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def save(self, folder: Path, progress: Progress = PROGRESS) -> Path:
        return save_state(folder, {"seed": 5}, progress, self.model, self.optimizer, self.scaler)

    def load(self, folder: Path) -> Progress:
        return load_state(folder, self.model, self.optimizer, self.scaler)

    def slots(self) -> list[dict[str, Any]]:
        return [slots for _, slots in sorted(self.optimizer.state_dict()["state"].items())]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_state_put_back_goes_on_to_the_bit(tmp_path: Path, kind: str) -> None:
    first = Training(kind, steps=3)
    first.save(tmp_path)
    draws = torch.rand(3)
    second = Training(kind)
    assert second.load(tmp_path) == PROGRESS
    assert torch.equal(torch.rand(3), draws)
    assert second.scaler.state_dict() == first.scaler.state_dict()
    assert first.scaler.get_scale() == 8.0  # it had grown, so the state is not that of a new one
    for training in (first, second):
        for step in (3, 4):
            training.step(step)
    state = second.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.model.state_dict().items())
    assert len(second.slots()) == len(first.slots()) == 4
    for slots, others in zip(first.slots(), second.slots(), strict=True):
        assert slots.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in slots.items())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_state_comes_back_in_the_memory_format_of_its_parameters(tmp_path: Path, kind: str) -> None:
    Training(kind, steps=1).save(tmp_path)
    training = Training(kind)
    training.load(tmp_path)
    parameter = training.model[0].weight
    assert parameter.stride() != parameter.contiguous().stride()
    slots = [value for value in training.slots()[0].values() if value.dim() == 4]
    assert slots
    assert all(value.stride() == parameter.stride() for value in slots)


def test_without_a_state_training_starts_at_its_beginning(tmp_path: Path) -> None:
    assert Training().load(tmp_path) == Progress(epoch=0, step=0, history=[])


def test_a_write_that_fails_leaves_the_previous_state_and_its_leftover_is_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(steps=1)
    training.save(tmp_path)

    def full(path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", lambda tensors, path, metadata: full(path))
        with pytest.raises(OSError, match="no space left"):
            training.save(tmp_path, Progress(epoch=9))
    assert Training().load(tmp_path) == PROGRESS
    assert len(list(tmp_path.iterdir())) == 2
    training.save(tmp_path, Progress(epoch=9))
    assert Training().load(tmp_path).epoch == 9
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_a_state_is_on_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[list[str]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        names.append([path.name for path in tmp_path.iterdir()])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    Training().save(tmp_path)
    assert names == [[f".{STATE}.partial"]]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), torch.save])
def test_a_file_that_is_no_safetensors_is_refused_and_never_unpickled(tmp_path: Path, write: Any) -> None:
    write(Bomb(tmp_path / "exploded"), tmp_path / STATE)
    with pytest.raises(SafetensorError):
        Training().load(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_metadata_say_what_was_trained_and_how_far(tmp_path: Path) -> None:
    training = Training(steps=1)
    tensors, metadata = read(training.save(tmp_path))
    assert json.loads(metadata["trial"]) == {"seed": 5}
    progress = json.loads(metadata["progress"])
    assert (progress["epoch"], progress["step"], progress["history"]) == (2, 6, PROGRESS.history)
    assert {name.split(".")[0] for name in tensors} == {"model", "optimizer", "random"}


def test_a_finished_model_is_its_state_dict_alone(tmp_path: Path) -> None:
    training = Training(steps=1)
    path = save_model(tmp_path, {"seed": 5}, training.model)
    assert path == tmp_path / MODEL
    tensors, metadata = read(path)
    assert json.loads(metadata["trial"]) == {"seed": 5}
    state = training.model.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], value) for name, value in state.items())


def test_a_trial_on_the_cpu_leaves_a_present_accelerator_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, lambda *args: pytest.fail("opened a CUDA context"))
    training = Training(steps=1)
    tensors, _ = read(training.save(tmp_path))
    assert "random.cuda" not in tensors
    training.load(tmp_path)
