"""What being able to go on costs a training: states, their checksums, beats. Ratios of one run.

Command: python benchmarks/durability.py [--minutes M] [--rounds N]
What a state costs by its parts: the copy that the training waits for, and what the writer's thread does beside it. Then
one training of M minutes in five ways: bare, with beats and the stop file of a lease, and with states every 60, 10 and
1 s as well; all save at the end of each epoch. The ways take turns, so that a busy machine slows all alike. An interval
longer than an epoch adds nothing, as a state at an epoch's end counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from orchestrator.leases import Lease, Leases
from trainers import checkpoint
from trainers.checkpoint import Progress
from trainers.config import TrialConfig
from trainers.context import TrialContext
from trainers.contrastive import build_model, make_reproducible, train
from trainers.data.datasets import load_dataset
from trainers.lars import build_optimizer

WAYS: dict[str, float | None] = {
    "bare": None,
    "beats": 0.0,
    "states every 60 s": 60.0,
    "states every 10 s": 10.0,
    "states every 1 s": 1.0,
}


def trial(epochs: int) -> TrialConfig:
    """A ResNet of some million parameters on enlarged digits, so that an epoch holds several states."""
    fields: dict[str, Any] = {
        "seed": 0,
        "data": {"kind": "digits", "image_size": 16, "train_images": 1280},
        "backbone": {"kind": "thin_resnet", "width": 32, "blocks": (1, 1, 1, 1)},
        "head": {"kind": "mlp", "hidden_dim": 512, "out_dim": 128},
        "augment": {"mode": "batched", "crop_scale": (0.5, 1.0), "flip": 0.0, "hue": 0.0, "saturation": 0.0},
        "loss": {"kind": "infonce"},
        "optimizer": {"kind": "lars", "lr": 0.1},
        "schedule": {"warmup_epochs": 0},
        "epochs": epochs,
        "batch_size": 32,
    }
    return TrialConfig.model_validate(fields)


def context(folder: Path, lease: Lease, state_seconds: float | None) -> TrialContext:
    """As a trial's process gets it, or bare."""
    if state_seconds is None:
        return TrialContext(directory=folder)
    fence = lease.fence
    return TrialContext(
        directory=folder,
        state_seconds=state_seconds,
        beat=fence.beat,
        guard=fence.confirm,
        stopping=fence.stopping,
    )


def seconds_of(epochs: int, state_seconds: float | None) -> tuple[float, float]:
    """Wall and CPU seconds of all epochs of a training, without its start."""
    with tempfile.TemporaryDirectory() as folder:
        lease = Leases(Path(folder), "0" * 16).acquire("0" * 16)
        assert isinstance(lease, Lease)
        with lease:
            cpu = time.process_time()
            result = train(trial(epochs), context(Path(folder), lease, state_seconds))
            cpu = time.process_time() - cpu
    return sum(entry["seconds"] for entry in result.history), cpu


def timed(work: Callable[[], Any], times: int = 5) -> float:
    """Milliseconds of the fastest."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds)


def parts_of_a_state(folder: Path, lease: Lease) -> dict[str, float]:
    """Milliseconds of each part, and the megabytes."""
    config = trial(1)
    plain = TrialContext(directory=folder)
    make_reproducible(config, plain)
    model = build_model(config, load_dataset(config.data), plain)
    optimizer = build_optimizer(config.optimizer, model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def copy() -> checkpoint.Snapshot:
        return checkpoint.snapshot({}, Progress(), model, optimizer, scaler)

    state = copy()
    path = checkpoint.write_state(folder, state)
    return {
        "MB of a state": path.stat().st_size / 1e6,
        "copy (training waits)": timed(copy),
        "checksum (beside)": timed(lambda: checkpoint._checksum(state.tensors, {})),
        "checksum, write, flush (beside)": timed(lambda: checkpoint.write_state(folder, state)),
        "read and verify": timed(lambda: checkpoint.read(path)),
        "1000 beats and stop questions": timed(
            lambda: [(lease.fence.beat("step 1"), lease.fence.stopping()) for _ in range(1000)]
        ),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=2.0, help="of each training")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each way")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lease = Leases(Path(folder), "0" * 16).acquire("0" * 16)
        assert isinstance(lease, Lease)
        with lease:
            for name, value in parts_of_a_state(Path(folder), lease).items():
                print(f"{name:34}{value:10.2f}{'' if 'MB' in name else ' ms'}", flush=True)
    epoch = seconds_of(1, None)[0]
    epochs = max(1, round(60 * arguments.minutes / epoch))
    spent: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, state_seconds in WAYS.items():
            spent[way].append(seconds_of(epochs, state_seconds))
    print(
        f"\n{epochs} epochs of {epoch:.2f} s, {arguments.rounds} times; least of each, against bare in the same run"
    )
    print(f"{'':34}{'wall s':>10}{'ratio':>8}{'CPU s':>10}{'ratio':>8}")
    bare_wall, bare_cpu = (min(values) for values in zip(*spent["bare"], strict=True))
    for way, measured in spent.items():
        wall, cpu = (min(values) for values in zip(*measured, strict=True))
        print(f"{way:34}{wall:10.2f}{wall / bare_wall:8.3f}{cpu:10.2f}{cpu / bare_cpu:8.3f}")


if __name__ == "__main__":
    main()
