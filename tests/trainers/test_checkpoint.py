"""States as files: complete, replaced in one step, and never anything that can execute."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from trainers import checkpoint
from trainers.checkpoint import (
    DamagedError,
    Progress,
    StateError,
    StateWriter,
    load_same_state,
    load_state,
    read,
    save_model,
    snapshot,
    told_of_model,
    write_state,
)
from trainers.config import AdamW, Lars, Sgd
from trainers.files import MODEL, STATES
from trainers.lars import build_optimizer

OPTIMIZERS = {
    "lars": Lars(kind="lars", lr=0.1),
    "sgd": Sgd(kind="sgd", lr=0.1),
    "adamw": AdamW(kind="adamw", lr=0.1),
}
STATE = "state-000000006.safetensors"
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
        return write_state(folder, snapshot({"seed": 5}, progress, self.model, self.optimizer, self.scaler))

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


def test_a_write_that_fails_leaves_the_previous_state_and_nothing_else(
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
            training.save(tmp_path, Progress(epoch=9, step=6))
    assert Training().load(tmp_path) == PROGRESS
    assert [path.name for path in tmp_path.iterdir()] == [STATE]
    training.save(tmp_path, Progress(epoch=9, step=6))
    assert Training().load(tmp_path).epoch == 9
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_the_two_newest_states_are_kept(tmp_path: Path) -> None:
    training = Training(steps=1)
    for step in (3, 5, 9, 12):
        training.save(tmp_path, Progress(step=step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "state-000000009.safetensors",
        "state-000000012.safetensors",
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_any_altered_byte_and_any_cut_is_found(tmp_path: Path, where: float, bit: int, cut: bool) -> None:
    good = Training(steps=1).save(tmp_path).read_bytes()
    content, place = bytearray(good), int(where * len(good))
    content[place] ^= 1 << bit
    hurt = tmp_path / "hurt.safetensors"
    hurt.write_bytes(good[:place] if cut else content)
    try:
        tensors, metadata = read(hurt)
    except DamagedError:
        return
    # a changed space between the header's fields says the same
    same, told = read(tmp_path / STATE)
    assert metadata == told
    assert all(torch.equal(tensors[name], same[name]) for name in same)
    assert tensors.keys() == same.keys()


def test_a_state_that_cannot_be_written_is_told_where_the_training_can_act(tmp_path: Path) -> None:
    training = Training(steps=1)
    state = snapshot({}, PROGRESS, training.model, training.optimizer, training.scaler)
    (tmp_path / "file").touch()
    with pytest.raises(StateError), StateWriter(tmp_path / "file" / "folder", lambda: None) as writer:
        writer.save(state)


def test_a_state_that_does_not_fit_is_told_with_its_step_and_the_last_good_one(tmp_path: Path) -> None:
    training = Training(steps=1)
    size = training.save(tmp_path).stat().st_size
    state = snapshot({}, Progress(step=9), training.model, training.optimizer, training.scaler)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))  # as a full disk, the kernel refuses
    try:
        with pytest.raises(StateError) as error, StateWriter(tmp_path, lambda: None) as writer:
            writer.save(state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value) == (
        f"{tmp_path}: the state of step 9 cannot be written (File too large); make room or the folder "
        "writable, and the same command goes on from step 6"
    )
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_the_first_error_is_told_not_that_of_a_state_under_way(tmp_path: Path) -> None:
    training = Training(steps=1)
    state = snapshot({}, PROGRESS, training.model, training.optimizer, training.scaler)
    (tmp_path / "file").touch()
    with (
        pytest.raises(KeyError, match="first"),
        StateWriter(tmp_path / "file", lambda: None) as writer,
    ):
        _ = writer.save(state), {}["first"]


def test_training_goes_on_while_a_state_is_written_and_does_not_reach_into_it(tmp_path: Path) -> None:
    training, allowed = Training(steps=1), threading.Event()
    before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    with StateWriter(tmp_path, lambda: allowed.wait(10) or None) as writer:
        writer.save(snapshot({}, PROGRESS, training.model, training.optimizer, training.scaler))
        training.step(1)
        assert not list(tmp_path.glob(STATES))
        allowed.set()
    written, _ = read(tmp_path / STATE)
    assert all(torch.equal(written[f"model.{name}"], tensor) for name, tensor in before.items())


def test_a_state_is_on_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[list[str]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        names.append([path.name for path in tmp_path.iterdir()])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    Training().save(tmp_path)
    (partial,), named = names  # the file before it is named, and then its name
    assert re.fullmatch(rf"\.{re.escape(STATE)}\.[0-9a-f]{{16}}", partial)
    assert named == [STATE]


def test_nothing_appears_or_stays_of_a_writer_that_lost_its_trial_meanwhile(tmp_path: Path) -> None:
    class Lost(Exception):
        pass

    def guard() -> None:
        assert [path.name[0] for path in tmp_path.iterdir()] == ["."], "all is written, but for its name"
        raise Lost

    training = Training(steps=1)
    state = snapshot({}, PROGRESS, training.model, training.optimizer, training.scaler)
    with pytest.raises(Lost), StateWriter(tmp_path, guard) as writer:
        writer.save(state)
    with pytest.raises(Lost):
        save_model(tmp_path, {}, training.model, {}, guard)
    assert not list(tmp_path.iterdir())


def test_another_rank_waits_for_the_state_that_rank_0_goes_on_from(tmp_path: Path) -> None:
    first, other = Training(steps=3), Training()
    late = threading.Timer(0.5, lambda: first.save(tmp_path))
    late.start()
    found = load_same_state(tmp_path, PROGRESS.step, other.model, other.optimizer, other.scaler)
    late.join()
    assert found.step == PROGRESS.step
    weights = first.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in other.model.state_dict().items())


def test_a_rank_that_cannot_see_that_state_says_so(tmp_path: Path) -> None:
    training = Training(steps=1)
    arguments = training.model, training.optimizer, training.scaler
    assert load_same_state(tmp_path, 0, *arguments) == Progress()
    with pytest.raises(StateError, match="the store must be the same on all nodes"):
        load_same_state(tmp_path, 7, *arguments, patience=0.3)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), torch.save])
def test_a_file_that_is_no_safetensors_is_refused_and_never_unpickled(tmp_path: Path, write: Any) -> None:
    write(Bomb(tmp_path / "exploded"), tmp_path / STATE)
    with pytest.raises(DamagedError, match="no file of ours"):
        read(tmp_path / STATE)
    assert Training().load(tmp_path) == Progress()
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
    path = save_model(tmp_path, {"seed": 5}, training.model, {"history": [1]})
    assert told_of_model(tmp_path) == {"history": [1]}
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
