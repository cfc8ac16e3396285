"""The trainer: reproducible, resumable, and the same on any number of workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import run_ranks
from tiny import tiny_trial

from trainers import NUMERICS_VERSION
from trainers.checkpoint import read
from trainers.config import TrialConfig
from trainers.context import Interrupted, TrialContext
from trainers.contrastive import (
    Losses,
    NonFiniteLossError,
    TrainingMemoryError,
    TrainingResult,
    _Totals,
    build_model,
    load_model,
    make_reproducible,
    objective,
    train,
)
from trainers.data.datasets import DataError, load_dataset
from trainers.data.loader import ViewLoader
from trainers.distributed import world
from trainers.files import HISTORY, MODEL, SPECTRA, STATES

TIMINGS = {"seconds", "images_per_second"}


def trained(folder: Path, config: TrialConfig, **context: Any) -> TrainingResult:
    folder.mkdir(parents=True, exist_ok=True)
    return train(config, TrialContext(directory=folder, **context))


def weights(result: TrainingResult) -> dict[str, torch.Tensor]:
    return read(result.model_path)[0]


def numbers(result: TrainingResult) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if k not in TIMINGS} for entry in result.history]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Relative to the largest weight of each tensor."""
    assert a.keys() == b.keys()
    return max(
        float((a[name] - b[name]).abs().max() / a[name].abs().max().clamp(min=1e-12))
        for name in a
        if a[name].is_floating_point()
    )


@pytest.mark.parametrize("kind", ["mlp", "orthogonal", "dropout"])
def test_the_same_seed_gives_bit_identical_weights_and_history(tmp_path: Path, kind: str) -> None:
    head = {"mlp": {"kind": "mlp", "hidden_dim": 32, "out_dim": 16}, "orthogonal": {"kind": "orthogonal"}}
    config = tiny_trial(head=head.get(kind, {"kind": "dropout", "d0": 7}))
    first = trained(tmp_path / "a", config)
    torch.manual_seed(12345)  # the process-wide state must not matter
    second = trained(tmp_path / "b", config)
    assert numbers(first) == numbers(second)
    a, b = weights(first), weights(second)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("blocks", "notes"), [((1, 1), 1), ((1, 2), 0)])
def test_directclr_on_a_backbone_that_trains_only_its_subvector_says_so(
    tmp_path: Path, blocks: tuple[int, ...], notes: int
) -> None:
    config = tiny_trial(
        head={"kind": "subvector", "d0": 6},
        backbone={"kind": "thin_resnet", "width": 4, "blocks": blocks},
        epochs=1,
    )
    said: list[str] = []
    trained(tmp_path, config, note=said.append)
    assert len([text for text in said if "no gradient" in text]) == notes


def test_another_seed_gives_another_training(tmp_path: Path) -> None:
    a = weights(trained(tmp_path / "a", tiny_trial()))
    b = weights(trained(tmp_path / "b", tiny_trial(seed=1)))
    assert all(not torch.equal(a[name], b[name]) for name in a if name.endswith("conv1.weight"))


def test_cells_with_one_seed_share_initial_backbone_and_views() -> None:
    heads = [{"kind": "none"}, {"kind": "linear", "out_dim": 8}, {"kind": "subvector", "d0": 6}]
    configs = [tiny_trial(head=head) for head in heads]
    dataset = load_dataset(configs[0].data)
    context = TrialContext(directory=Path())
    backbones = [build_model(config, dataset, context).backbone.state_dict() for config in configs]
    views = [list(ViewLoader(dataset, config).epoch(1)) for config in configs]
    for backbone, batches in zip(backbones[1:], views[1:], strict=True):
        assert all(torch.equal(backbone[name], backbones[0][name]) for name in backbone)
        for mine, reference in zip(batches, views[0], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(mine, reference, strict=True))


def _train_on_rank(folder: Path, config: TrialConfig, loader_processes: int) -> str:
    rank, world_size = world()
    context = TrialContext(
        directory=folder, rank=rank, world_size=world_size, loader_processes=loader_processes
    )
    return train(config, context).dataset_fingerprint


@pytest.mark.parametrize(
    ("world_size", "loader_processes", "changes"),
    [
        (2, 0, {}),
        (2, 1, {"head": {"kind": "orthogonal"}}),
        (2, 3, {"loss": {"kind": "ntxent"}, "head": {"kind": "dropout", "d0": 9}}),
        (4, 0, {"head": {"kind": "subvector", "d0": 6}}),
        (2, 0, {"gradient_cache": 4}),
        (2, 1, {"gradient_cache": 2, "augment": {"mode": "per_image", "crop_scale": (0.5, 1.0)}}),
    ],
)
def test_workers_share_the_batch_without_changing_the_training(
    tmp_path: Path, world_size: int, loader_processes: int, changes: dict[str, Any]
) -> None:
    """W workers x B/W equals 1 worker x B after every step of two epochs, here in float64."""
    config = tiny_trial(precision="float64", **changes)
    alone = trained(tmp_path / "alone", config)
    (tmp_path / "together").mkdir()
    fingerprints = run_ranks(_train_on_rank, world_size, tmp_path / "together", config, loader_processes)
    assert fingerprints == [alone.dataset_fingerprint] + [""] * (world_size - 1), "rank 0 alone takes it"
    together, history = left_in(tmp_path / "together")
    difference = largest_difference(weights(alone), together)
    print(f"world size {world_size}: largest relative difference of a weight {difference:.1e}")
    assert difference < 1e-9
    for mine, theirs in zip(numbers(alone), history, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-9)
        assert theirs["online_top1"] == mine["online_top1"]
        for name in ("representation_rankme", "embedding_rankme"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-6)


def left_in(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and history of a finished training, from its files."""
    entries = map(json.loads, (folder / HISTORY).read_text().splitlines())
    history = [{k: v for k, v in entry.items() if k not in TIMINGS} for entry in entries]
    return read(folder / "checkpoints" / MODEL)[0], history


class Killed(Exception):
    """Stands for the end of the process right after a report."""


def _kill(metrics: dict[str, float]) -> None:
    raise Killed


def _cut_off(folder: Path, config: TrialConfig, times: int) -> None:
    """Train, ended `times` times after an epoch; alone or on a rank."""
    rank, world_size = world()
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(times):
        with pytest.raises(Killed):
            train(config, TrialContext(directory=folder, rank=rank, world_size=world_size, report=_kill))
        if world_size > 1:
            dist.barrier()  # as a restart is: rank 0 has written before anyone reads
    train(config, TrialContext(directory=folder, rank=rank, world_size=world_size))


@pytest.mark.parametrize(
    ("world_size", "changes"),
    [
        (1, {"head": {"kind": "orthogonal"}}),
        (1, {"precision": "fp16"}),
        (1, {"optimizer": {"kind": "adamw", "lr": 0.01}}),
        (1, {"channels_last": True}),
        (1, {"gradient_cache": 2, "precision": "fp16"}),
        (2, {"head": {"kind": "dropout", "d0": 7}}),
    ],
    ids=["orthogonal", "fp16", "adamw", "channels_last", "gradient_cache", "2 ranks"],
)
def test_a_training_cut_off_after_an_epoch_ends_as_if_nothing_had_happened(
    tmp_path: Path, world_size: int, changes: dict[str, Any]
) -> None:
    config = tiny_trial(epochs=3, **changes)
    for folder, times in (("undisturbed", 0), ("resumed", 2)):
        if world_size == 1:
            _cut_off(tmp_path / folder, config, times)
        else:
            run_ranks(_cut_off, world_size, tmp_path / folder, config, times)
    (a, undisturbed), (b, resumed) = (left_in(tmp_path / folder) for folder in ("undisturbed", "resumed"))
    assert len(resumed) == 3
    assert resumed == undisturbed
    assert all(torch.equal(a[name], b[name]) for name in a)


def _stop_at(folder: Path, config: TrialConfig, steps: list[int], watched: int) -> None:
    """Train, asked to stop after each of the given steps; alone or on a rank. All that is left is on disk."""
    rank, world_size = world()
    folder.mkdir(parents=True, exist_ok=True)
    done = [0]
    fields: dict[str, Any] = {"rank": rank, "world_size": world_size, "watched_images": watched}
    beat = lambda where: done.__setitem__(0, int(where.split()[1]))  # noqa: E731
    for step in steps:
        context = TrialContext(
            directory=folder,
            beat=beat,
            stopping=lambda step=step: done[0] >= step,
            state_seconds=1e-9,
            **fields,
        )
        with pytest.raises(Interrupted):
            train(config, context)
    train(config, TrialContext(directory=folder, **fields))


@pytest.mark.parametrize(
    ("world_size", "steps", "changes"),
    [
        (1, [1], {}),
        (1, [2, 3, 5, 6, 7], {"head": {"kind": "dropout", "d0": 7}}),
        (1, [6], {"gradient_cache": 2, "precision": "fp16"}),
        (1, [3, 7], {"optimizer": {"kind": "adamw", "lr": 0.01}, "online_probe": False}),
        (2, [2, 6], {"head": {"kind": "dropout", "d0": 7}}),
        (2, [3], {"gradient_cache": 2}),
    ],
    ids=["first step", "many steps", "parts", "adamw", "2 ranks", "2 ranks, parts"],
)
@pytest.mark.parametrize("watched", [1024, 100])
def test_a_training_stopped_within_an_epoch_ends_as_if_nothing_had_happened(
    tmp_path: Path, world_size: int, steps: list[int], changes: dict[str, Any], watched: int
) -> None:
    config = tiny_trial(**changes)
    for folder, stops in (("undisturbed", []), ("resumed", steps)):
        if world_size == 1:
            _stop_at(tmp_path / folder, config, stops, watched)
        else:
            run_ranks(_stop_at, world_size, tmp_path / folder, config, stops, watched)
    (a, undisturbed), (b, resumed) = (left_in(tmp_path / folder) for folder in ("undisturbed", "resumed"))
    assert resumed == undisturbed
    assert all(torch.equal(a[name], b[name]) for name in a)
    spectra = [(tmp_path / folder / SPECTRA).read_text() for folder in ("undisturbed", "resumed")]
    assert spectra[0] == spectra[1]


def test_a_state_of_two_ranks_goes_on_alone(tmp_path: Path) -> None:
    config = tiny_trial(precision="float64")
    run_ranks(_stop_once, 2, tmp_path / "resumed", config)
    notes: list[str] = []
    train(config, TrialContext(directory=tmp_path / "resumed", note=notes.append))
    assert len(notes) == 1
    assert "on with 1 worker(s), before with 2; the global batch is the same" in notes[0]
    trained(tmp_path / "undisturbed", config)
    (a, undisturbed), (b, resumed) = (left_in(tmp_path / folder) for folder in ("undisturbed", "resumed"))
    for one, two in zip(undisturbed, resumed, strict=True):
        assert two == pytest.approx(one, rel=1e-9)
    assert all(torch.allclose(a[name], b[name], rtol=1e-8, atol=1e-12) for name in a)


def _stop_once(folder: Path, config: TrialConfig) -> None:
    rank, world_size = world()
    folder.mkdir(parents=True, exist_ok=True)
    context = TrialContext(
        directory=folder, rank=rank, world_size=world_size, stopping=lambda: True, state_seconds=1e-9
    )
    with pytest.raises(Interrupted):
        train(config, context)


def test_a_damaged_state_is_set_aside_and_the_one_before_it_used(tmp_path: Path) -> None:
    config = tiny_trial(epochs=3)
    _cut_off(tmp_path / "undisturbed", config, 0)
    (tmp_path / "hurt").mkdir()
    with pytest.raises(Killed):
        train(config, TrialContext(directory=tmp_path / "hurt", report=_kill_after(2)))
    _, newest = sorted((tmp_path / "hurt" / "checkpoints").glob(STATES))
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1  # one bit of a weight
    newest.write_bytes(content)
    notes: list[str] = []
    train(config, TrialContext(directory=tmp_path / "hurt", note=notes.append))
    assert len(notes) == 1
    assert f"{newest.name} was altered" in notes[0]
    assert "goes on from step 4" in notes[0]
    assert newest.with_name(f"{newest.name}.damaged").read_bytes() == content
    (a, undisturbed), (b, resumed) = (left_in(tmp_path / folder) for folder in ("undisturbed", "hurt"))
    assert resumed == undisturbed
    assert all(torch.equal(a[name], b[name]) for name in a)


def _kill_after(reports: int) -> Callable[[dict[str, float]], None]:
    left = [reports]

    def report(metrics: dict[str, float]) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed

    return report


def test_a_training_of_one_step_an_epoch_can_be_stopped(tmp_path: Path) -> None:
    config = tiny_trial(batch_size=256, epochs=3)
    with pytest.raises(Interrupted, match="step 1"):
        trained(tmp_path, config, stopping=lambda: True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["state-000000001.safetensors"]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("can't allocate memory: 9 bytes")]
)
def test_a_training_that_runs_out_of_memory_names_the_step_and_what_takes_less(
    tmp_path: Path, error: Exception
) -> None:
    def beat(where: str) -> None:
        if where == "step 3":
            raise error

    with pytest.raises(TrainingMemoryError, match="out of memory at step 3; lower batch_size"):
        trained(tmp_path, tiny_trial(), beat=beat)


def test_whatever_ends_a_training_gets_a_note_of_the_step(tmp_path: Path) -> None:
    def beat(where: str) -> None:
        if where == "step 3":
            raise DataError("a.png: cannot be read")

    with pytest.raises(DataError, match=r"^a.png: cannot be read") as caught:
        trained(tmp_path, tiny_trial(), beat=beat)
    assert caught.value.__notes__ == ["step 3"]


def test_a_damaged_model_is_set_aside_and_trained_again(tmp_path: Path) -> None:
    config = tiny_trial()
    first = trained(tmp_path, config)
    weights = {name: tensor.clone() for name, tensor in read(first.model_path)[0].items()}
    for state in (tmp_path / "checkpoints").glob(STATES):
        state.unlink()
    first.model_path.write_bytes(first.model_path.read_bytes()[:-100])
    again = trained(tmp_path, config)
    assert all(torch.equal(weights[name], tensor) for name, tensor in read(again.model_path)[0].items())
    assert list((tmp_path / "checkpoints").glob("*.damaged"))


def test_nobody_writes_who_was_told_not_to(tmp_path: Path) -> None:
    def refuse() -> None:
        raise PermissionError("taken over")

    with pytest.raises(PermissionError, match="taken over"):
        train(tiny_trial(), TrialContext(directory=tmp_path, guard=refuse))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / HISTORY).exists()


def test_a_finished_but_uncommitted_training_is_not_repeated(tmp_path: Path) -> None:
    config = tiny_trial()
    first = trained(tmp_path, config)
    reports: list[dict[str, float]] = []
    again = trained(tmp_path, config, report=reports.append)
    assert list((tmp_path / "checkpoints").glob(STATES))
    assert reports == []
    assert again.history == first.history


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_training_learns_in_every_precision(tmp_path: Path, precision: str) -> None:
    config = tiny_trial(epochs=10, optimizer={"kind": "adamw", "lr": 0.01}, precision=precision)
    history = trained(tmp_path, config).history
    assert history[-1]["loss"] < history[0]["loss"] - 0.5
    assert history[-1]["online_top1"] > history[0]["online_top1"] + 5


def test_fixed_factors_never_move_and_orthogonal_stays_orthogonal(tmp_path: Path) -> None:
    fixed = tiny_trial(head={"kind": "low_rank", "d0": 6})
    dataset = load_dataset(fixed.data)
    before = build_model(fixed, dataset, TrialContext(directory=tmp_path)).head.state_dict()
    after = weights(trained(tmp_path / "fixed", fixed))
    assert before
    assert all(torch.equal(after[f"head.{name}"], before[name]) for name in before)

    turning = tiny_trial(head={"kind": "orthogonal"}, epochs=4)
    result = trained(tmp_path / "turning", turning)
    head = load_model(result.model_path, turning, dataset, TrialContext(directory=tmp_path)).head
    q = head.layer.weight.detach().double()
    error = float((q.T @ q - torch.eye(len(q), dtype=torch.float64)).abs().max())
    print(f"|QtQ - I| after {turning.epochs} epochs: {error:.1e}")
    assert error < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_computes_the_same_loss_up_to_rounding(tmp_path: Path, precision: str) -> None:
    still = {"optimizer": {"kind": "sgd", "lr": 1e-12}, "epochs": 1}
    full = trained(tmp_path / "full", tiny_trial(**still)).history[0]["loss"]
    reduced = trained(tmp_path / "reduced", tiny_trial(precision=precision, **still)).history[0]["loss"]
    assert reduced == pytest.approx(full, rel=0.01)
    assert reduced != full


def test_a_loss_that_is_not_finite_ends_the_trial_and_names_the_step(tmp_path: Path) -> None:
    config = tiny_trial(optimizer={"kind": "sgd", "lr": 1e30}, schedule={"warmup_epochs": 0})
    with pytest.raises(NonFiniteLossError, match=r"not finite at step [1-3];"):
        trained(tmp_path, config)
    assert not (tmp_path / "checkpoints").exists()


def _non_finite_on_rank(folder: Path, config: TrialConfig) -> tuple[str, str]:
    rank, world_size = world()
    context = TrialContext(directory=folder, rank=rank, world_size=world_size)
    with pytest.raises(NonFiniteLossError) as whole:
        train(config, context)
    totals = _Totals(context, {})
    for batch in range(4):
        bad = torch.tensor(torch.nan if (rank, batch) == (1, 2) else 1.0)
        totals.add(batch, Losses(bad, bad, torch.tensor(0)), torch.tensor([0]))
    with pytest.raises(NonFiniteLossError) as one:
        totals.reduce(context, first_step=8)
    return str(whole.value), str(one.value)


def test_a_loss_that_is_not_finite_on_one_rank_ends_the_trial_on_all(tmp_path: Path) -> None:
    config = tiny_trial(optimizer={"kind": "sgd", "lr": 1e30}, schedule={"warmup_epochs": 0})
    first, second = run_ranks(_non_finite_on_rank, 2, tmp_path, config)
    assert first == second
    assert "not finite at step 10;" in first[1]


LABELS = torch.tensor([-1, 3, -1, -1, 0, 1, 2, 9])  # the first of two ranks has one, the second four


def _probe_on_rank(config: TrialConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The online probe's part of the loss on this rank's rows, and its gradient."""
    rank, world_size = world()
    context = TrialContext(directory=Path(), rank=rank, world_size=world_size)
    model = build_model(config, load_dataset(config.data), context)
    views = torch.randn(2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    view1, view2 = (view.chunk(world_size)[rank] for view in views)
    losses = objective(model(view1, view2, 0), LABELS.chunk(world_size)[rank], config.loss)
    (grad,) = torch.autograd.grad(losses.total, model.online_probe.weight)
    return losses.total.detach() - losses.contrastive, grad


def test_unlabelled_images_on_one_rank_alone_leave_the_online_probe_a_global_mean() -> None:
    config = tiny_trial(precision="float64")
    ranks = run_ranks(_probe_on_rank, 2, config)
    for alone, *parts in zip(_probe_on_rank(config), *ranks, strict=True):
        # the probe's logits are float32 in every precision
        torch.testing.assert_close(torch.stack(parts).mean(0), alone, rtol=1e-6, atol=1e-7)


def test_float32_never_means_tf32(tmp_path: Path) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    make_reproducible(tiny_trial(), TrialContext(directory=tmp_path))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_training_tells_the_fingerprint_of_its_data(tmp_path: Path) -> None:
    config = tiny_trial()
    assert trained(tmp_path, config).dataset_fingerprint == load_dataset(config.data).fingerprint()


GOLDEN_TRIALS: dict[str, dict[str, Any]] = {
    "mlp, infonce, lars, batched": {},
    "per_image": {"augment": {"mode": "per_image", "crop_scale": (0.5, 1.0)}},
    "orthogonal, adamw": {"head": {"kind": "orthogonal"}, "optimizer": {"kind": "adamw", "lr": 0.01}},
    "low_rank, sgd": {"head": {"kind": "low_rank", "d0": 6}, "optimizer": {"kind": "sgd", "lr": 0.1}},
    "grouped, ntxent": {"head": {"kind": "grouped", "groups": 4}, "loss": {"kind": "ntxent"}},
    "dropout": {"head": {"kind": "dropout", "d0": 7}},
}
GOLDEN: dict[int, dict[str, list[float]]] = {
    1: {
        "mlp, infonce, lars, batched": [8.273629861549072, 5.3531841861212905],
        "per_image": [8.364920368473738, 5.253277787784188],
        "orthogonal, adamw": [4.469491057996926, 4.209339258916955],
        "low_rank, sgd": [4.140142067788254, 4.170180760517869],
        "grouped, ntxent": [20.161532621535667, 19.309610016404307],
        "dropout": [4.489656499618718, 4.164545576662359],
    }
}


@pytest.mark.parametrize("name", GOLDEN_TRIALS)
def test_numerics_change_only_with_their_version(tmp_path: Path, name: str) -> None:
    """Golden run. If it fails, numbers changed: raise trainers.NUMERICS_VERSION and record the new losses here.

    In float64 and to 8 digits, so that kernels of other processors still agree.
    """
    history = trained(tmp_path, tiny_trial(precision="float64", **GOLDEN_TRIALS[name])).history
    assert [entry["loss"] for entry in history] == pytest.approx(GOLDEN[NUMERICS_VERSION][name], rel=1e-8)
