"""The learning rate against the released code's vectors and torch's own schedulers."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from trainers.schedules import learning_rate

VECTORS = json.loads((Path(__file__).parents[1] / "fixtures" / "schedule.json").read_text())["cases"]


@pytest.mark.parametrize("case", VECTORS, ids=lambda c: f"{c['epochs']}x{c['steps_per_epoch']}")
def test_every_step_meets_the_released_codes_vectors(case: dict) -> None:
    shape = {name: value for name, value in case.items() if name != "lr"}
    wanted = case["lr"]
    assert len(wanted) == shape["epochs"] * shape["steps_per_epoch"]
    got = [learning_rate(step, final_factor=0.001, **shape) for step in range(len(wanted))]
    assert got == pytest.approx(wanted, rel=1e-10, abs=0)


def test_it_equals_torchs_linear_and_cosine_schedulers() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    # LinearLR refuses to start at 0: it starts at a step's worth and the first step is checked apart.
    warm = LinearLR(optimizer, start_factor=1 / 15, total_iters=14)
    cosine = CosineAnnealingLR(optimizer, T_max=35, eta_min=0.3 * 0.02)
    schedule = SequentialLR(optimizer, [warm, cosine], milestones=[14])
    shape = {"base_lr": 0.3, "epochs": 10, "steps_per_epoch": 5, "warmup_epochs": 3, "final_factor": 0.02}
    assert learning_rate(0, **shape) == 0
    for step in range(1, 51):
        assert learning_rate(step, **shape) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9), step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there is no optimizer step to come first
            schedule.step()


@given(
    epochs=st.integers(1, 50),
    steps_per_epoch=st.integers(1, 50),
    warmup=st.floats(0, 1),
    final_factor=st.floats(0, 1),
)
def test_it_rises_to_the_peak_then_falls_to_the_final_factor(
    epochs: int, steps_per_epoch: int, warmup: float, final_factor: float
) -> None:
    steps = epochs * steps_per_epoch
    peak = warmup * steps
    lrs = [
        learning_rate(
            step,
            base_lr=2.0,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            warmup_epochs=warmup * epochs,
            final_factor=final_factor,
        )
        for step in range(steps + 2)
    ]
    assert all(0 <= lr <= 2.0 * (1 + 1e-12) for lr in lrs)
    rising = [lr for step, lr in enumerate(lrs) if step <= peak * (1 - 1e-9)]
    falling = [lr for step, lr in enumerate(lrs) if step >= peak * (1 + 1e-9)]
    assert rising == sorted(rising)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))
    assert lrs[steps:] == pytest.approx([2.0 * final_factor] * 2)
    if peak > 0:
        assert lrs[0] == 0
    else:
        assert lrs[0] == 2.0


def test_half_way_down_is_the_mean_of_peak_and_end() -> None:
    lr = learning_rate(60, base_lr=1.0, epochs=10, steps_per_epoch=10, warmup_epochs=2, final_factor=0.2)
    assert math.isclose(lr, 0.6, rel_tol=1e-12)
