"""The smallest trial that has every part of a real one: digits at 8 px, seconds on one core."""

from __future__ import annotations

from typing import Any

from trainers.config import TrialConfig


def tiny_trial(**changes: Any) -> TrialConfig:
    """A trial of 2 epochs x 4 steps; `changes` are fields of TrialConfig as they would stand in YAML."""
    fields: dict[str, Any] = {
        "seed": 0,
        "data": {"kind": "digits", "image_size": 8, "train_images": 300},
        "backbone": {"kind": "thin_resnet", "width": 4, "blocks": (1, 1)},
        "head": {"kind": "mlp", "hidden_dim": 32, "out_dim": 16},
        "augment": {"mode": "batched", "crop_scale": (0.5, 1.0), "flip": 0.0, "hue": 0.0, "saturation": 0.0},
        "loss": {"kind": "infonce"},
        "optimizer": {"kind": "lars", "lr": 1.0},
        "schedule": {"warmup_epochs": 1},
        "epochs": 2,
        "batch_size": 64,
    }
    return TrialConfig.model_validate(fields | changes)
