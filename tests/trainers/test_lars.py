"""LARS against the released code's vectors and a per-parameter oracle in numpy."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainers import config as configs
from trainers.lars import Lars, build_optimizer

VECTORS = json.loads((Path(__file__).parents[1] / "fixtures" / "lars.json").read_text())["cases"]
PAPER = {"lr": 4.8, "momentum": 0.9, "weight_decay": 1e-6, "trust_coefficient": 0.001}


def relative(got: Tensor, wanted: object) -> float:
    wanted = np.asarray(wanted)
    return float(np.abs(got.detach().numpy() - wanted).max() / max(np.abs(wanted).max(), 1e-300))


class OneParameter:
    """The oracle: one parameter's LARS, written for arrays of any shape."""

    def __init__(self, value: np.ndarray) -> None:
        self.value, self.buffer = value.copy(), None

    def step(self, grad, lr, momentum, weight_decay, trust_coefficient, norm="of_sum") -> None:
        update = grad.copy()
        if self.value.ndim >= 2:
            update = grad + weight_decay * self.value
            size, length = np.sqrt(np.sum(self.value**2)), np.sqrt(np.sum(update**2))
            if norm == "sum_of_norms":
                length = np.sqrt(np.sum(grad**2)) + weight_decay * size
            if size != 0 and length != 0:
                update = trust_coefficient * size * (update / length)
        self.buffer = update if self.buffer is None else update + momentum * self.buffer
        self.value = self.value - lr * self.buffer


@pytest.mark.parametrize("case", VECTORS, ids=lambda c: f"lr {c['lr']}")
def test_four_steps_meet_the_released_codes_vectors(case: dict) -> None:
    params = [nn.Parameter(torch.tensor(p, dtype=torch.float64)) for p in case["params"]]
    optimizer = Lars(params, **{k: case[k] for k in PAPER})
    assert len(case["steps"]) == 4
    for step in case["steps"]:
        for p, grad in zip(params, step["grads"], strict=True):
            p.grad = torch.tensor(grad, dtype=torch.float64)
        optimizer.step()
        errors = [relative(p, wanted) for p, wanted in zip(params, step["params_after"], strict=True)]
        assert max(errors) < 1e-10


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=0, max_size=4), min_size=1, max_size=6),
    lr=st.floats(1e-3, 10),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 1e-6, 0.1]),
    trust_coefficient=st.floats(1e-4, 0.1),
    norm=st.sampled_from(["of_sum", "sum_of_norms"]),
    seed=st.integers(0, 2**16),
)
def test_it_equals_a_per_parameter_oracle(
    shapes: list[list[int]],
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    norm: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    settings_ = {"momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
    settings_["norm"] = norm
    starts = [rng.normal(size=shape) * rng.choice([0.0, 1.0, 100.0]) for shape in shapes]
    oracles = [OneParameter(np.asarray(start)) for start in starts]
    params = [nn.Parameter(torch.tensor(start, dtype=torch.float64)) for start in starts]
    optimizer = Lars(params, lr=lr, **settings_)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = lr / (step + 1)
        for p, oracle in zip(params, oracles, strict=True):
            grad = np.asarray(rng.normal(size=p.shape) * rng.choice([0.0, 1e-8, 1.0]))
            p.grad = torch.tensor(grad, dtype=torch.float64)
            oracle.step(grad, lr=lr / (step + 1), **settings_)
        optimizer.step()
    assert max(relative(p, o.value) for p, o in zip(params, oracles, strict=True)) < 1e-10


def test_the_two_norms_differ_where_gradient_and_decay_do_not_point_the_same_way() -> None:
    """|p| = 5, |g| = 1, decay 0.1: u = (1.3, 0.4), |u| = sqrt(1.85), and the sum of norms is 1.5."""
    for norm, divisor in (("of_sum", 1.85**0.5), ("sum_of_norms", 1.5)):
        config = configs.Lars(kind="lars", lr=1.0, weight_decay=0.1, trust_coefficient=0.01, norm=norm)
        p = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
        p.grad = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        build_optimizer(config, [p]).step()
        scale = 0.01 * 5 / divisor
        assert p.tolist() == [pytest.approx([3 - 1.3 * scale, 4 - 0.4 * scale], rel=1e-14)]


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def some_params() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(99)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in ((4, 3), (4,), (2, 3, 3, 3))]


def test_a_state_dict_round_trip_continues_bit_for_bit() -> None:
    straight, first = some_params(), some_params()
    run(Lars(straight, **PAPER), straight, range(6))

    optimizer = Lars(first, **PAPER)
    run(optimizer, first, range(3))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": [p.data for p in first]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert {"momentum"} == set().union(*(entry.keys() for entry in saved["optimizer"]["state"].values()))
    resumed = [nn.Parameter(p) for p in saved["params"]]
    optimizer = Lars(resumed, lr=1.0, momentum=0.1)
    optimizer.load_state_dict(saved["optimizer"])
    run(optimizer, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_parameters_without_a_gradient_are_left_alone() -> None:
    trained, frozen = some_params()[:2], some_params()[2:]
    before = frozen[0].clone()
    optimizer = Lars(trained + frozen, **PAPER)
    run(optimizer, trained, range(2))
    assert torch.equal(frozen[0], before)
    assert frozen[0] not in optimizer.state
    alone = some_params()[:2]
    run(Lars(alone, **PAPER), alone, range(2))
    assert all(torch.equal(a, b) for a, b in zip(trained, alone, strict=True))


def test_groups_keep_their_own_learning_rates_and_precisions() -> None:
    generator = torch.Generator().manual_seed(0)
    start, grad = (torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    params = [nn.Parameter(start.clone()), nn.Parameter(start.clone()), nn.Parameter(start.float())]
    optimizer = Lars([{"params": [params[0], params[2]]}, {"params": params[1:2], "lr": 0.5}], lr=1.0)
    for p in params:
        p.grad = grad.to(p.dtype)
    optimizer.step()
    moved = start - params[0]
    assert relative(start - params[1], (moved / 2).detach()) < 1e-12
    assert relative(start - params[2], moved.detach()) < 1e-3  # the same, in float32
    assert float(moved.detach().norm()) == pytest.approx(0.001 * float(start.norm()), rel=1e-9)


@pytest.mark.parametrize("norm", ["of_sum", "sum_of_norms"])
def test_a_step_never_reads_a_value_back_from_the_device(norm: str) -> None:
    """Meta tensors have no values: any `.item()`, `if tensor` or copy to the host would raise."""
    params = [nn.Parameter(torch.empty(s, device="meta")) for s in ((4, 3), (4,), (2, 3, 3, 3))]
    optimizer = Lars(params, **PAPER, norm=norm)
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer.step()
    optimizer.step()


@pytest.mark.parametrize("norm", ["of_sum", "sum_of_norms"])
def test_the_gradient_is_not_changed(norm: str) -> None:
    params = some_params()
    run(Lars(params, **PAPER, norm=norm), params, range(1))
    generator = torch.Generator().manual_seed(0)
    for p in params:
        assert p.grad is not None
        assert torch.equal(p.grad, torch.randn(p.shape, generator=generator))


def test_a_closure_runs_with_gradients_and_gives_the_loss() -> None:
    (p,) = some_params()[:1]
    optimizer = Lars([p], **PAPER)

    def closure() -> float:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


def test_a_negative_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="momentum: got -1"):
        Lars(some_params(), lr=1.0, momentum=-1)


def test_sgd_and_adamw_leave_one_dimensional_parameters_undecayed() -> None:
    for config in (
        configs.Sgd(kind="sgd", lr=0.1, weight_decay=0.5),
        configs.AdamW(kind="adamw", lr=0.1, weight_decay=0.5),
    ):
        params = some_params()
        before = [p.detach().clone() for p in params]
        optimizer = build_optimizer(config, iter(params))
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for p, start in zip(params, before, strict=True):
            torch.testing.assert_close(p.data, start if p.dim() == 1 else start * (1 - 0.1 * 0.5))


def test_the_configured_optimizer_has_the_configured_settings() -> None:
    lars = build_optimizer(
        configs.Lars(kind="lars", lr=2.0, momentum=0.8, weight_decay=0.3, trust_coefficient=0.2),
        some_params(),
    )
    assert isinstance(lars, Lars)
    wanted = {"lr": 2.0, "momentum": 0.8, "weight_decay": 0.3, "trust_coefficient": 0.2}
    assert {k: lars.param_groups[0][k] for k in wanted} == wanted
    sgd = build_optimizer(configs.Sgd(kind="sgd", lr=2.0, momentum=0.7, weight_decay=0.3), some_params())
    assert isinstance(sgd, torch.optim.SGD)
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in sgd.param_groups] == [
        (2.0, 0.7, 0.3),
        (2.0, 0.7, 0.0),
    ]
    adamw = build_optimizer(configs.AdamW(kind="adamw", lr=2.0, betas=(0.5, 0.6)), some_params())
    assert isinstance(adamw, torch.optim.AdamW)
    assert [g["betas"] for g in adamw.param_groups] == [(0.5, 0.6)] * 2
