"""What only an accelerator can show. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_trial

from trainers.checkpoint import read
from trainers.config import Knn, LinearProbe, Spectrum, TrialConfig
from trainers.context import TrialContext
from trainers.contrastive import TrainingResult, load_model, train
from trainers.data.datasets import load_dataset
from trainers.data.loader import evaluation_batches
from trainers.evaluate import evaluate

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]
PER_IMAGE = {"mode": "per_image", "crop_scale": (0.5, 1.0)}


def trained(folder: Path, config: TrialConfig, **fields: Any) -> TrainingResult:
    folder.mkdir(parents=True, exist_ok=True)
    return train(config, TrialContext(directory=folder, device=torch.device("cuda", 0), **fields))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head": {"kind": "orthogonal"}, "channels_last": True},
        {"precision": "bf16", "head": {"kind": "low_rank", "d0": 6}},
        {"precision": "fp16"},
    ],
    ids=["mlp", "orthogonal", "bf16", "fp16"],
)
def test_a_deterministic_trial_is_repeated_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny_trial(**changes)
    first, second = (trained(tmp_path / name, config) for name in "ab")
    assert [entry["loss"] for entry in first.history] == [entry["loss"] for entry in second.history]
    a, b = (read(result.model_path)[0] for result in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_float32_agrees_with_the_cpu(tmp_path: Path) -> None:
    """TF32 would be off by 1e-3."""
    config = tiny_trial(optimizer={"kind": "sgd", "lr": 1e-12}, epochs=1)
    there = trained(tmp_path / "cuda", config).history[0]["loss"]
    (tmp_path / "cpu").mkdir()
    here = train(config, TrialContext(directory=tmp_path / "cpu")).history[0]["loss"]
    assert there == pytest.approx(here, rel=1e-5)


def test_fp16_learns(tmp_path: Path) -> None:
    config = tiny_trial(epochs=10, optimizer={"kind": "adamw", "lr": 0.01}, precision="fp16")
    history = trained(tmp_path, config).history
    assert history[-1]["loss"] < history[0]["loss"] - 0.5


def test_loader_processes_may_start_after_cuda_has(tmp_path: Path) -> None:
    torch.zeros(1, device="cuda")
    config = tiny_trial(augment=PER_IMAGE)
    alone, helped = (trained(tmp_path / str(n), config, loader_processes=n) for n in (0, 2))
    assert [entry["loss"] for entry in alone.history] == [entry["loss"] for entry in helped.history]


@pytest.mark.parametrize("image_size", [8, 12])
def test_evaluation_images_are_those_of_the_cpu(image_size: int) -> None:
    config = tiny_trial(data={"kind": "digits", "image_size": image_size}).data
    dataset = load_dataset(config)
    here, there = (
        list(evaluation_batches(dataset, "validation", config, 200, device)) for device in ("cpu", "cuda")
    )
    for (images, labels), (images_there, labels_there) in zip(here, there, strict=True):
        assert torch.equal(labels, labels_there.cpu())
        torch.testing.assert_close(images_there.cpu(), images, rtol=0, atol=1e-6)  # normalised there


def test_measurements_agree_with_the_cpu(tmp_path: Path) -> None:
    config = tiny_trial()
    result, dataset = trained(tmp_path, config), load_dataset(config.data)
    values = []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        model = load_model(result.model_path, config, dataset, TrialContext(tmp_path, device=device))
        protocols = [
            LinearProbe(epochs=5),
            LinearProbe(solver="lbfgs", weight_decay=1e-3),
            LinearProbe(protocol="reference", epochs=2),
            Knn(),
            Spectrum(),
        ]
        values.append(list(evaluate(config, model.backbone, model.head, protocols, device, dataset=dataset)))
    for here, there in zip(*values, strict=True):
        for name, value in here.metrics.items():
            wanted = pytest.approx(value, abs=0.41) if "top" in name else pytest.approx(value, rel=1e-3)
            assert there.metrics[name] == wanted, name
