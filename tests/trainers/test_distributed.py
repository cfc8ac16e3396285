"""Collectives and batch norm on several gloo ranks against one process that sees the whole batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gloo import run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers import config as configs
from trainers import distributed
from trainers.backbones import build_backbone
from trainers.distributed import (
    SyncBatchNorm,
    at_own_pace,
    gather_rows,
    rows_of_rank,
    synchronise_batch_norm,
    world,
)
from trainers.heads import build_head
from trainers.lars import build_optimizer
from trainers.losses import contrastive_loss

BATCH = 12  # divides among 1, 2 and 4 ranks


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def my_rows(x: Tensor) -> Tensor:
    rank, world_size = world()
    return x.chunk(world_size)[rank]


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max())


# --- work of different length -------------------------------------------------------------------------


def at_different_paces(fail: bool) -> tuple[int, list[str]]:
    """Rank 1 takes long, or fails."""
    distributed._MEET_EVERY_S = 0.1
    rank, told = world()[0], []

    def work() -> int:
        time.sleep(1.0 * rank)
        if fail and rank == 1:
            raise ValueError("no data here")
        return 10 + rank

    return at_own_pace(work, told.append, torch.device("cpu")), told


def test_a_rank_that_is_done_says_that_it_waits_for_the_others() -> None:
    (first, told), (second, nothing) = run_ranks(at_different_paces, 2, False)
    assert (first, second) == (10, 11)
    assert set(told) == {"waiting for 1 other workers"}
    assert len(told) >= 3
    assert nothing == []


def test_an_error_of_one_rank_is_raised_and_ends_the_wait_of_the_others() -> None:
    with pytest.raises(Exception, match=r"no data here|Connection closed|Connection reset"):
        run_ranks(at_different_paces, 2, True)


# --- gather -------------------------------------------------------------------------------------------


def gathered() -> tuple[Tensor, Tensor, Tensor]:
    rank, _ = world()
    x = my_rows(normal(BATCH, 2, 3, seed=0)).clone().requires_grad_()
    rows = gather_rows(x)
    # Each rank weighs the gathered rows differently; a transposed gradient is not contiguous.
    weights = normal(3, 2, BATCH, seed=100 + rank).permute(2, 1, 0)
    (rows * weights).sum().backward()
    assert x.grad is not None
    return rows.detach(), weights, x.grad


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_gather_returns_all_rows_and_sums_gradients_over_ranks(world_size: int) -> None:
    ranks = run_ranks(gathered, world_size)
    for rows, _, _ in ranks:
        assert torch.equal(rows, normal(BATCH, 2, 3, seed=0))
    summed = torch.stack([weights for _, weights, _ in ranks]).sum(0)
    torch.testing.assert_close(torch.cat([grad for _, _, grad in ranks]), summed, rtol=1e-14, atol=1e-14)


def test_a_process_without_a_group_is_a_world_of_one() -> None:
    assert world() == (0, 1)
    x = torch.ones(2, 3)
    assert gather_rows(x) is x
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert synchronise_batch_norm(model, "cpu") is model
    assert type(model[1]) is nn.BatchNorm1d


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_every_part_of_a_batch_evenly(world_size: int, parts: int) -> None:
    ranks = [rows_of_rank(24, rank, world_size, parts) for rank in range(world_size)]
    assert torch.cat(ranks).sort().values.tolist() == list(range(24))
    for part in range(parts):
        together = torch.cat([rows.chunk(parts)[part] for rows in ranks])
        assert together.tolist() == list(range(part * 24 // parts, (part + 1) * 24 // parts))


# --- batch norm: cases that run on every rank and, with the whole batch, in one process ---------------


class Case:
    """A batch norm, its global inputs over three steps, and the cotangents of its outputs."""

    def __init__(
        self, norm: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype, **kwargs: Any
    ) -> None:
        self.shift = kwargs.pop("shift", 0.0)
        self.channels_last = kwargs.pop("channels_last", False)
        self.splits = kwargs.pop("splits", None)
        self.norm, self.shape, self.dtype, self.kwargs = norm, shape, dtype, kwargs

    def module(self) -> nn.Module:
        module = self.norm(self.shape[1], dtype=self.dtype, **self.kwargs)
        for i, parameter in enumerate(module.parameters()):
            parameter.data = normal(self.shape[1], seed=10 + i, dtype=self.dtype)
        return module

    def inputs(self, step: int) -> tuple[Tensor, Tensor]:
        x = self.shift + (step + 1) * normal(*self.shape, seed=20 + step)
        x, cotangent = x.to(self.dtype), normal(*self.shape, seed=30 + step, dtype=self.dtype)
        return (
            (x.contiguous(memory_format=torch.channels_last), cotangent)
            if self.channels_last
            else (x, cotangent)
        )

    def rows(self, x: Tensor) -> Tensor:
        """This rank's; unevenly split where the case says how."""
        rank, world_size = world()
        if world_size == 1:
            return x
        return x.split(self.splits[world_size])[rank] if self.splits else x.chunk(world_size)[rank]

    def run(self) -> dict[str, Tensor]:
        """Outputs, input gradients and summed weight gradients of two steps, buffers, and an evaluation."""
        module = synchronise_batch_norm(self.module(), "cpu")
        assert isinstance(module, SyncBatchNorm) == (world()[1] > 1)
        result = {}
        for step in range(2):
            x, cotangent = (self.rows(t) for t in self.inputs(step))
            x = x.clone().requires_grad_()
            y = module(x)
            (y * cotangent).sum().backward()
            result |= {f"output {step}": y.detach(), f"input gradient {step}": x.grad}
        for name, parameter in module.named_parameters():
            result[f"gradient of {name}"] = parameter.grad
        for name, buffer in module.named_buffers():
            result[name] = buffer.clone()
        result["evaluation"] = module.eval()(self.rows(self.inputs(2)[0])).detach()
        return result


F64, F32 = torch.float64, torch.float32
CASES: dict[str, tuple[Case, float]] = {
    "1d": (Case(nn.BatchNorm1d, (BATCH, 5), F64), 1e-12),
    "1d, sequences": (Case(nn.BatchNorm1d, (BATCH, 5, 3), F64), 1e-12),
    "2d": (Case(nn.BatchNorm2d, (BATCH, 5, 4, 3), F64), 1e-12),
    "2d, channels last": (Case(nn.BatchNorm2d, (BATCH, 5, 4, 3), F64, channels_last=True), 1e-12),
    "2d, not affine": (Case(nn.BatchNorm2d, (BATCH, 5, 4, 3), F64, affine=False), 1e-12),
    "1d, cumulative average": (Case(nn.BatchNorm1d, (BATCH, 5), F64, momentum=None), 1e-12),
    "1d, own eps and momentum": (Case(nn.BatchNorm1d, (BATCH, 5), F64, momentum=0.7, eps=0.3), 1e-12),
    "2d, uneven ranks": (
        Case(nn.BatchNorm2d, (BATCH, 5, 4, 3), F64, splits={2: [5, 7], 4: [1, 6, 2, 3]}),
        1e-12,
    ),
    "2d, mean far from 0": (Case(nn.BatchNorm2d, (BATCH, 5, 4, 3), F64, shift=1e4), 1e-10),
    "1d, float32": (Case(nn.BatchNorm1d, (BATCH, 5), F32), 2e-6),
    "2d, float32": (Case(nn.BatchNorm2d, (BATCH, 5, 4, 3), F32), 2e-6),
    # One float32 ulp of the input is 6e-5 here: E[x^2] - E[x]^2 in float32 would be off by 0.1.
    "2d, float32, mean far from 0": (Case(nn.BatchNorm2d, (BATCH, 5, 4, 3), F32, shift=1e3), 2e-4),
}


def autocast_case() -> dict[str, Tensor]:
    """A bf16 layer's output through batch norm under autocast, as in a mixed-precision step."""
    module = synchronise_batch_norm(nn.BatchNorm1d(4), "cpu")
    x = my_rows(3 + normal(BATCH, 4, seed=1, dtype=F32)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = nn.functional.linear(x, torch.eye(4))
        assert hidden.dtype == torch.bfloat16
        y = module(hidden)
    y.float().pow(3).sum().backward()
    return {"y": y.detach(), "mean": module.running_mean, "var": module.running_var, "x.grad": x.grad}


def rank_batch_norms() -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    return {name: case.run() for name, (case, _) in CASES.items()}, autocast_case()


def joined(name: str, parts: list[Tensor]) -> Tensor:
    if name.startswith(("output", "input", "evaluation")):
        return torch.cat(parts)
    return torch.stack(parts).sum(0) if name.startswith("gradient") else parts[0]


@pytest.mark.parametrize("world_size", [2, 4])
def test_batch_norm_over_ranks_equals_torchs_on_the_whole_batch(world_size: int) -> None:
    ranks = run_ranks(rank_batch_norms, world_size)
    for name, (case, tolerance) in CASES.items():
        wanted = case.run()  # in this process, a world of one: nn.BatchNorm itself
        errors = {k: relative(joined(k, [r[0][name][k] for r in ranks]), v) for k, v in wanted.items()}
        print(f"{world_size} ranks, {name}: {max(errors.values()):.1e}")
        assert max(errors.values()) < tolerance, (name, errors)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            assert all(torch.equal(r[0][name][key], ranks[0][0][name][key]) for r in ranks)

    wanted = autocast_case()
    parts = {k: [r[1][k] for r in ranks] for k in wanted}
    for key in ("mean", "var"):  # of bf16 values, but not rounded to bf16 (4e-3)
        assert parts[key][0].dtype == F32
        assert relative(parts[key][0], wanted[key]) < 1e-6
    assert torch.cat(parts["y"]).dtype == wanted["y"].dtype == torch.bfloat16
    assert relative(torch.cat(parts["y"]), wanted["y"]) < 1e-2
    assert relative(torch.cat(parts["x.grad"]), wanted["x.grad"]) < 2e-2


# --- conversion ---------------------------------------------------------------------------------------


def conversion() -> dict[str, bool]:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(3, momentum=0.5))
    )
    model[2].eval()
    names, parameters = list(model.state_dict()), list(model.parameters())
    reference = {k: v.clone() for k, v in model.state_dict().items()}
    converted = synchronise_batch_norm(model, "cpu")
    kept = list(converted.parameters())
    cuda = synchronise_batch_norm(nn.Sequential(nn.BatchNorm2d(3)), "cuda")
    return {
        "converts nested": all(isinstance(m, SyncBatchNorm) for m in (converted[1], converted[2][0])),
        "keeps names": list(converted.state_dict()) == names,
        "keeps values": all(torch.equal(v, reference[k]) for k, v in converted.state_dict().items()),
        "keeps the parameters an optimizer holds": all(a is b for a, b in zip(kept, parameters, strict=True)),
        "keeps mode": converted[1].training and not converted[2][0].training,
        "keeps momentum": converted[2][0].momentum == 0.5,
        "converts once": synchronise_batch_norm(converted, "cpu")[1] is converted[1],
        "takes torch's on cuda": type(cuda[0]) is nn.SyncBatchNorm,
        "shows its size": "SyncBatchNorm(3, " in repr(converted),
    }


def test_conversion_keeps_everything_but_the_statistics() -> None:
    for result in run_ranks(conversion, 2):
        assert all(result.values()), result


# --- all of it ----------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        backbone = configs.ThinResNet(kind="thin_resnet", width=2, blocks=(1, 1), zero_init_residual=False)
        self.backbone = build_backbone(backbone, 1, torch.Generator().manual_seed(0))
        self.head = build_head(configs.MlpHead(kind="mlp", hidden_dim=8, out_dim=4), 16, seed=0)

    def forward(self, view1: Tensor, view2: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return self.head(self.backbone(view1), step), self.head(self.backbone(view2), step)


def train() -> dict[str, Tensor]:
    """Three LARS steps of a small model in float64; its state after them."""
    model: Callable[..., tuple[Tensor, Tensor]] = synchronise_batch_norm(Model().double(), "cpu")
    if world()[1] > 1:
        model = DistributedDataParallel(model)
    optimizer = build_optimizer(configs.Lars(kind="lars", lr=1.0), model.parameters())
    losses = []
    for step in range(3):
        views = (my_rows(normal(BATCH, 1, 6, 6, seed=1000 + 2 * step + i)) for i in range(2))
        loss = contrastive_loss(*model(*views, step), configs.LossConfig())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    return dict(plain.state_dict()) | {"loss": torch.stack(losses)}


@pytest.mark.parametrize("world_size", [2, 4])
def test_training_steps_do_not_depend_on_the_world_size(world_size: int) -> None:
    wanted = train()
    start = Model().double().state_dict()
    ranks = run_ranks(train, world_size)
    loss = torch.stack([r.pop("loss") for r in ranks]).mean(0)
    assert relative(loss, wanted.pop("loss")) < 1e-11
    errors = {k: relative(ranks[0][k], v) for k, v in wanted.items()}
    print(f"{world_size} ranks: largest relative error of the state {max(errors.values()):.1e}")
    assert max(errors.values()) < 1e-10, errors
    assert all(torch.equal(r[k], v) for r in ranks for k, v in ranks[0].items()), "ranks agree bit for bit"
    assert all(relative(start[k], v) > 1e-4 for k, v in wanted.items()), "something was trained"
