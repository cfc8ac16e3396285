"""The live view of collapse: numbers against numpy's SVD, and a training that does not notice it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo import run_ranks
from tiny import tiny_trial
from torch import Tensor

from trainers.checkpoint import read
from trainers.collapse import FLOOR, POINTS, CollapseWatch
from trainers.config import TrialConfig
from trainers.context import TrialContext
from trainers.contrastive import train
from trainers.distributed import rows_of_rank, world
from trainers.files import HISTORY, SPECTRA

RANKMES = ("representation_rankme", "embedding_rankme")


def features(steps: int, batch_size: int, dim: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """r (B, D) of falling variance by direction and z (B, d) for each step."""
    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -3, dim)
    draws = [torch.randn(batch_size, dim + width, generator=generator) for _ in range(steps)]
    return [(1 + x[:, :dim] * decay, x[:, dim:]) for x in draws]


def wide_trial(width: int, **changes: Any) -> TrialConfig:
    """D = 8 width."""
    return tiny_trial(backbone={"kind": "thin_resnet", "width": width, "blocks": (1, 1)}, **changes)


def numpy_rankme(x: np.ndarray) -> float:
    p = np.linalg.svd(x, compute_uv=False)
    p = p / p.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


def numpy_log_spectrum(x: np.ndarray) -> np.ndarray:
    """Of the covariance of normalised rows, by singular values of the centred rows themselves."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.svd(unit - unit.mean(0), compute_uv=False) ** 2 / len(x)
    return np.log10(np.maximum(values, FLOOR))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SPECTRA).read_text().splitlines()]


def measured(
    folder: Path, config: TrialConfig, watched: int, steps: int, has_embedding: bool = True
) -> dict[str, float]:
    """A watch that sees this rank's rows of `features`."""
    rank, world_size = world()
    context = TrialContext(directory=folder, rank=rank, world_size=world_size, watched_images=watched)
    spectra: list[dict[str, Any]] = []
    watch = CollapseWatch(config, context, has_embedding, spectra)
    rows = rows_of_rank(config.batch_size, rank, world_size, config.gradient_cache)
    for r, z in features(steps, config.batch_size, config.backbone.representation_dim, width=6):
        watch.see(r[rows].requires_grad_(), z[rows])
    metrics = watch.measure(0)
    if rank == 0:
        (folder / SPECTRA).write_text("".join(json.dumps(entry) + "\n" for entry in spectra))
    return metrics


CASES = {
    # width (D = 8 width), batch, watched, steps -> images measured
    "several batches": ((4, 16, 48, 5), 48),
    "a part of the first": ((4, 16, 40, 5), 40),
    "a short epoch": ((4, 16, 48, 2), 32),
    "a part of the only one": ((4, 64, 40, 3), 40),
    "no more than 2 D": ((2, 64, 1024, 3), 32),
    "fewer images than features": ((16, 16, 48, 5), 48),
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_the_last_images(tmp_path: Path, name: str) -> None:
    (width, batch_size, watched, steps), images = CASES[name]
    config = wide_trial(width, batch_size=batch_size)
    metrics = measured(tmp_path, config, watched, steps)
    seen = features(steps, batch_size, 8 * width, width=6)
    r, z = (torch.cat(x).double().numpy()[-images:] for x in zip(*seen, strict=True))
    assert [metrics[k] for k in RANKMES] == pytest.approx([numpy_rankme(r), numpy_rankme(z)], rel=1e-6)
    (line,) = lines(tmp_path)
    assert (line["epoch"], line["images"], line["dim"], line["embedding_dim"]) == (0, images, 8 * width, 6)
    for part, ranks, x in (("representation", "ranks", r), ("embedding", "embedding_ranks", z)):
        at = np.array(line[ranks])
        assert at[0] == 1
        assert at[-1] == min(images - 1, x.shape[1]), "the last that can differ from zero"
        assert len(at) == min(POINTS, at[-1])
        assert np.abs(np.diff(at, n=2)).max(initial=0) <= 1, "evenly spaced"
        assert line[part] == pytest.approx(numpy_log_spectrum(x)[at - 1], abs=1e-3)


def _measured_on_rank(folder: Path, cases: list[tuple[TrialConfig, int]]) -> list[dict[str, float]]:
    results = []
    for number, (config, watched) in enumerate(cases):
        directory = folder / str(number)
        directory.mkdir(exist_ok=True)
        results.append(measured(directory, config, watched, steps=3))
    return results


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_measures_the_same_images(tmp_path: Path, world_size: int) -> None:
    shapes = [(16, 40, 1), (64, 40, 1), (64, 40, 4)]  # batch, watched, parts of the gradient cache
    cases = [(wide_trial(4, batch_size=b, gradient_cache=parts), watched) for b, watched, parts in shapes]
    for folder in ("alone", "together"):
        (tmp_path / folder).mkdir()
    alone = _measured_on_rank(tmp_path / "alone", cases)
    ranks = run_ranks(_measured_on_rank, world_size, tmp_path / "together", cases)
    assert all(results == ranks[0] for results in ranks)
    for number, (mine, theirs) in enumerate(zip(alone, ranks[0], strict=True)):
        assert theirs == pytest.approx(mine, rel=1e-9)
        assert lines(tmp_path / "together" / str(number)) == lines(tmp_path / "alone" / str(number))


def test_a_collapsed_representation_has_rank_1(tmp_path: Path) -> None:
    config = wide_trial(4)
    spectra: list[dict[str, Any]] = []
    watch = CollapseWatch(config, TrialContext(directory=tmp_path), True, spectra)
    watch.see(torch.ones(64, 32) * torch.rand(64, 1), torch.ones(64, 6))
    assert watch.measure(0) == pytest.approx(dict.fromkeys(RANKMES, 1), rel=1e-4)
    (line,) = spectra
    assert max(line["representation"] + line["embedding"]) < -12


def test_without_an_embedding_of_its_own_the_representation_stands_for_it(tmp_path: Path) -> None:
    metrics = measured(tmp_path, wide_trial(4), 48, 2, has_embedding=False)
    assert metrics["representation_rankme"] == metrics["embedding_rankme"]
    (line,) = lines(tmp_path)
    assert (line["embedding_dim"], line["embedding"]) == (32, line["representation"])


def test_features_that_are_not_finite_are_passed_over(tmp_path: Path) -> None:
    spectra: list[dict[str, Any]] = []
    watch = CollapseWatch(wide_trial(4), TrialContext(directory=tmp_path), True, spectra)
    watch.see(torch.full((64, 32), torch.inf), torch.ones(64, 6))
    assert watch.measure(0) == {}
    assert spectra == []
    watch.see(torch.rand(64, 32), torch.ones(64, 6))
    assert set(watch.measure(1)) == set(RANKMES)


# --- whole trainings ----------------------------------------------------------------------------------


def _train(folder: Path, config: TrialConfig, **fields: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train(config, TrialContext(directory=folder, **fields))


def left_in(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    entries = map(json.loads, (folder / HISTORY).read_text().splitlines())
    measured = ("seconds", "images_per_second")
    history = [{k: v for k, v in entry.items() if k not in measured} for entry in entries]
    return read(folder / "checkpoints" / "model.safetensors")[0], history


@pytest.mark.parametrize(
    "changes",
    [{}, {"head": {"kind": "dropout", "d0": 7}}, {"precision": "bf16", "gradient_cache": 2}],
    ids=str,
)
def test_watching_changes_no_bit_of_a_training(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny_trial(**changes)
    for watched in (0, 1024):
        _train(tmp_path / str(watched), config, watched_images=watched)
    (blind, unwatched), (watched_weights, history) = (left_in(tmp_path / name) for name in ("0", "1024"))
    assert all(torch.equal(blind[name], watched_weights[name]) for name in blind)
    assert not (tmp_path / "0" / SPECTRA).exists()
    assert [line["epoch"] for line in lines(tmp_path / "1024")] == [0, 1]
    for plain, entry in zip(unwatched, history, strict=True):
        ranks = [entry.pop(name) for name in RANKMES]
        assert entry == plain
        assert all(1 <= rank <= 32 for rank in ranks)
        assert (ranks[0] == ranks[1]) == ("head" in changes), "of dropout's embeddings none is measured"


class Killed(Exception):
    pass


def _kill(metrics: dict[str, float]) -> None:
    raise Killed


def test_after_a_restart_every_epoch_has_one_line(tmp_path: Path) -> None:
    config = tiny_trial(epochs=3)
    _train(tmp_path / "undisturbed", config)
    with pytest.raises(Killed):
        _train(tmp_path / "resumed", config, report=_kill)
    _train(tmp_path / "resumed", config)
    assert lines(tmp_path / "resumed") == lines(tmp_path / "undisturbed")
    assert [line["epoch"] for line in lines(tmp_path / "resumed")] == [0, 1, 2]


@pytest.mark.parametrize("content", ["", '{"epoch": 0', "".join(f'{{"epoch": {e}}}\n' for e in range(9))])
def test_a_file_that_a_kill_or_a_hand_has_changed_is_written_anew_from_the_state(
    tmp_path: Path, content: str
) -> None:
    config = tiny_trial(epochs=3)
    _train(tmp_path / "undisturbed", config)
    with pytest.raises(Killed):
        _train(tmp_path / "resumed", config, report=_kill)
    (tmp_path / "resumed" / SPECTRA).write_text(content)
    _train(tmp_path / "resumed", config)
    assert lines(tmp_path / "resumed") == lines(tmp_path / "undisturbed")
