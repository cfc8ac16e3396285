"""The gradient in parts against one graph over the whole batch, in float64 and on several ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_ranks
from tiny import tiny_trial
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from trainers.checkpoint import read
from trainers.config import TrialConfig
from trainers.context import TrialContext
from trainers.contrastive import ContrastiveModel, Losses, Outputs, build_model, objective, train
from trainers.data.datasets import load_dataset
from trainers.distributed import rows_of_rank, world
from trainers.gradient_cache import backward_in_parts
from trainers.precision import autocast

BATCH, STEP = 24, 5
BACKBONE = {"kind": "thin_resnet", "width": 4, "blocks": (1, 1), "zero_init_residual": False}
HEADS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp", "hidden_dim": 32, "out_dim": 16},
    "orthogonal": {"kind": "orthogonal"},
    "dropout": {"kind": "dropout", "d0": 7},
    "grouped": {"kind": "grouped", "groups": 4},
    "none": {"kind": "none"},
}


def trial(**changes: Any) -> TrialConfig:
    return tiny_trial(**{"precision": "float64", "backbone": BACKBONE, **changes})


def model_of(config: TrialConfig, frozen: bool) -> ContrastiveModel:
    rank, world_size = world()
    context = TrialContext(directory=Path(), rank=rank, world_size=world_size)
    model = build_model(config, load_dataset(config.data), context).train()
    for module in model.modules():
        if frozen and isinstance(module, _BatchNorm):
            module.eval()
    return model


def batch(config: TrialConfig, parts: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's views and labels of one batch; some images have no label."""
    rank, world_size = world()
    generator = torch.Generator().manual_seed(3)
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    view1, view2 = torch.randn(2, BATCH, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(-1, 10, (BATCH,), generator=generator)
    rows = rows_of_rank(BATCH, rank, world_size, parts)
    return view1[rows], view2[rows], labels[rows]


def left_by(model: nn.Module, losses: Losses) -> dict[str, Tensor]:
    """What a backward pass leaves: gradients, batch norm's statistics, losses."""
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    gradients = {f"gradient of {name}": p.grad for name, p in plain.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    scalars = {name: value.detach().double() for name, value in losses._asdict().items()}
    return gradients | {name: b.clone() for name, b in plain.named_buffers()} | scalars


def in_parts(config: TrialConfig, frozen: bool, parts: int) -> dict[str, Tensor]:
    model: nn.Module = model_of(config, frozen)
    if world()[1] > 1:
        model = DistributedDataParallel(model, forward_sync_buffers=False)
    view1, view2, labels = batch(config, parts)
    _, losses = backward_in_parts(
        model,
        (view1, view2),
        STEP,
        parts,
        partial(objective, labels=labels, config=config.loss),
        torch.amp.GradScaler("cpu", enabled=False),
        partial(autocast, config.precision, torch.device("cpu")),
    )
    return left_by(model, losses)


def in_one_graph(config: TrialConfig, frozen: bool, parts: int) -> dict[str, Tensor]:
    """The oracle, in one process: all parts' activations are kept and differentiated at once."""
    model = model_of(config, frozen)
    view1, view2, labels = batch(config)
    with autocast(config.precision, torch.device("cpu")):
        pieces = [model(*piece, STEP) for piece in zip(view1.chunk(parts), view2.chunk(parts), strict=True)]
        losses = objective(Outputs(*map(torch.cat, zip(*pieces, strict=True))), labels, config.loss)
    losses.total.backward()
    return left_by(model, losses)


def deviations(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Relative to the largest entry, above 1e-4: a rotation has no gradient but rounding.

    Without the online probe, whose logits are float32 in every precision.
    """
    assert got.keys() == wanted.keys()
    return {
        name: float((got[name] - value).double().abs().max() / value.double().abs().max().clamp(min=1e-4))
        for name, value in wanted.items()
        if "online_probe" not in name and name != "total"
    }


# --- one process --------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize(
    ("head", "loss"),
    [
        ("mlp", "infonce"),
        ("orthogonal", "ntxent"),
        ("dropout", "same_view"),
        ("grouped", "infonce"),
        ("none", "infonce"),
    ],
)
def test_without_moving_statistics_it_is_the_gradient_of_the_whole_batch(
    head: str, loss: str, parts: int
) -> None:
    config = trial(head=HEADS[head], loss={"kind": loss})
    got, wanted = in_parts(config, True, parts), in_one_graph(config, True, 1)
    assert max(deviations(got, wanted).values()) < 1e-10
    for name in ("gradient of online_probe.weight", "gradient of online_probe.bias", "total"):
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("head", ["mlp", "dropout"])
def test_batch_norm_sees_one_part_and_moves_its_statistics_once_a_part(head: str, parts: int) -> None:
    config = trial(head=HEADS[head])
    got, wanted = in_parts(config, False, parts), in_one_graph(config, False, parts)
    assert max(deviations(got, wanted).values()) < 1e-10
    counted = [value for name, value in got.items() if name.endswith("num_batches_tracked")]
    assert counted
    assert all(int(value) == 2 * parts for value in counted), "two views a part"
    whole = in_one_graph(config, False, 1)
    assert max(deviations(got, whole).values()) > 1e-3, "a training of its own"


def test_a_model_without_an_online_probe_has_no_gradient_to_share_out_for_it() -> None:
    config = trial(online_probe=False)
    got, wanted = in_parts(config, True, 4), in_one_graph(config, True, 1)
    assert max(deviations(got, wanted).values()) < 1e-10
    assert float(got["total"]) == float(got["contrastive"])


def test_under_autocast_it_is_the_same_gradient_up_to_rounding() -> None:
    config = trial(precision="bf16")
    got, wanted = in_parts(config, True, 3), in_one_graph(config, True, 1)
    for name in (name for name in wanted if name.startswith("gradient")):
        error = float((got[name] - wanted[name]).norm() / wanted[name].norm())
        assert error < 0.02, name


def stepped(scale: float) -> tuple[ContrastiveModel, torch.amp.GradScaler]:
    """A model after one step of scaled gradients in two parts."""
    config = trial(precision="float32", loss={"kind": "infonce", "temperature": 0.01})
    model = model_of(config, True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    view1, view2, labels = batch(config)
    compare = partial(objective, labels=labels, config=config.loss)
    cast = partial(autocast, config.precision, torch.device("cpu"))
    backward_in_parts(model, (view1, view2), STEP, 2, compare, scaler, cast)
    scaler.step(optimizer)
    scaler.update()
    return model, scaler


def test_the_gradient_scale_cancels_and_an_overflow_skips_the_step() -> None:
    plain, scaled = stepped(1.0)[0].state_dict(), stepped(2.0**12)[0].state_dict()
    start = model_of(trial(precision="float32"), True).state_dict()
    assert all(torch.equal(plain[name], scaled[name]) for name in plain)
    assert not torch.equal(plain["head.layers.0.weight"], start["head.layers.0.weight"])
    model, scaler = stepped(2.0**126)
    assert scaler.get_scale() == 2.0**125
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def most_bytes_saved(run: Callable[[], object]) -> int:
    """The most that autograd held for backward passes at one time."""
    alive, most = 0, 0

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal alive, most
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            alive += self.bytes
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        run()
    return most


def test_only_one_parts_activations_are_held_at_a_time() -> None:
    config = trial(head=HEADS["none"])
    whole = most_bytes_saved(lambda: in_parts(config, False, 1))
    quarter = most_bytes_saved(lambda: in_parts(config, False, 4))
    assert 0.2 * whole < quarter < 0.35 * whole


# --- several ranks ------------------------------------------------------------------------------------

ON_RANKS = [("mlp", True, 1), ("mlp", True, 2), ("mlp", False, 2), ("mlp", False, 4), ("dropout", True, 4)]


def all_on_rank() -> list[dict[str, Tensor]]:
    return [in_parts(trial(head=HEADS[head]), frozen, parts) for head, frozen, parts in ON_RANKS]


def test_workers_share_the_parts_without_changing_the_gradient() -> None:
    ranks = run_ranks(all_on_rank, 2)
    for (head, frozen, parts), *results in zip(ON_RANKS, *ranks, strict=True):
        wanted = in_one_graph(trial(head=HEADS[head]), frozen, 1 if frozen else parts)
        mean = {"contrastive": torch.stack([r["contrastive"] for r in results]).mean()}
        mean["correct"] = torch.stack([r["correct"] for r in results]).sum()
        errors = deviations(results[0] | mean, wanted)
        assert max(errors.values()) < 1e-10, (head, frozen, parts)
        assert all(torch.equal(results[1][name], results[0][name]) for name in wanted if "." in name)


# --- whole trainings ----------------------------------------------------------------------------------


def trained(folder: Path, config: TrialConfig) -> tuple[dict[str, Tensor], list[float]]:
    folder.mkdir()
    result = train(config, TrialContext(directory=folder))
    return read(result.model_path)[0], [entry["loss"] for entry in result.history]


def test_a_training_in_parts_is_repeated_to_the_bit_and_differs_by_batch_norm_alone(tmp_path: Path) -> None:
    config = tiny_trial(gradient_cache=4, optimizer={"kind": "sgd", "lr": 1e-12})
    (a, losses), (b, again) = (trained(tmp_path / name, config) for name in "ab")
    assert losses == again
    assert all(torch.equal(a[name], b[name]) for name in a)
    # at a standstill only batch norm makes a difference, and a small one
    _, whole = trained(tmp_path / "whole", config.model_copy(update={"gradient_cache": 1}))
    assert losses != whole
    assert losses == pytest.approx(whole, rel=0.1)


def test_a_training_in_parts_learns(tmp_path: Path) -> None:
    config = tiny_trial(epochs=5, optimizer={"kind": "adamw", "lr": 0.01}, gradient_cache=2)
    _, losses = trained(tmp_path / "trial", config)
    print(losses)
    assert losses[-1] < losses[0] - 0.5


def test_a_batch_that_does_not_divide_into_the_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"batch_size: got 64, takes a multiple of workers x gradient_cache = 3"
    ):
        train(tiny_trial(gradient_cache=3), TrialContext(directory=tmp_path))
