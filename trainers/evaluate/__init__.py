"""Measurements of a trained model: linear probes, nearest neighbours, spectra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from trainers.config import (
    DropoutHead,
    EvaluationConfig,
    Knn,
    LinearProbe,
    LowRankHead,
    NoHead,
    Spectrum,
    SubvectorHead,
    SubvectorProbe,
    TrialConfig,
    absolute,
)
from trainers.data.datasets import Dataset, load_dataset
from trainers.data.loader import evaluation_batches
from trainers.evaluate import knn, linear_probe, spectrum
from trainers.evaluate.features import Features, extract


@dataclass(frozen=True)
class EvaluationResult:
    """Numbers by name, and arrays: per-example correctness (bool), or singular values (float64)."""

    metrics: dict[str, float]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def evaluate(
    trial: TrialConfig,
    backbone: nn.Module,
    head: nn.Module | None,
    evaluations: Sequence[EvaluationConfig],
    device: torch.device | str,
    loader_processes: int = 0,
    dataset: Dataset | None = None,
) -> list[EvaluationResult]:
    """Run every evaluation on one extraction of the features.

    Features are of unaugmented images. They are computed in float32 (float64 for a float64 trial)
    even when training was in half precision, whose rounding would hide a collapsed spectrum.

    Args:
        trial: names the data, and the seed of the probes.
        evaluations: what to measure; results come in the same order.
        dataset: the trial's data, if it is loaded already.

    Raises:
        ValueError: an evaluation does not fit the trial, such as d0 > D.
        DataError: the data is missing or cannot be decoded.
        FloatingPointError: a probe diverged.
    """
    d0s = [_probed_dim(trial, e) if isinstance(e, SubvectorProbe) else None for e in evaluations]
    if not evaluations:
        return []
    features = _SharedFeatures(trial, backbone, head, torch.device(device), loader_processes, dataset)
    return [_MEASURES[type(e)](e, features, d0) for e, d0 in zip(evaluations, d0s, strict=True)]


def _probed_dim(trial: TrialConfig, probe: SubvectorProbe) -> int:
    """The d0 of a subvector probe: its own, else the head's; all of D where there is no projector."""
    dim = trial.backbone.representation_dim
    if probe.d0 is not None:
        d0 = absolute(probe.d0, dim)
    elif isinstance(trial.head, SubvectorHead | LowRankHead | DropoutHead):
        d0 = absolute(trial.head.d0, dim)
    elif isinstance(trial.head, NoHead):
        d0 = dim
    else:
        raise ValueError(f"subvector_probe.d0: head {trial.head.kind} has no d0 of its own; name one")
    if d0 > dim:
        raise ValueError(f"subvector_probe.d0: got {d0}, takes at most the representation's D = {dim}")
    return d0


@dataclass
class _SharedFeatures:
    """The features of both splits, each extracted when first asked for."""

    trial: TrialConfig
    backbone: nn.Module
    head: nn.Module | None
    device: torch.device
    loader_processes: int
    given: Dataset | None

    @cached_property
    def dataset(self) -> Dataset:
        return self.given if self.given is not None else load_dataset(self.trial.data)

    @cached_property
    def train(self) -> Features:
        return self._extract("train")

    @cached_property
    def validation(self) -> Features:
        return self._extract("validation")

    def _extract(self, split: Literal["train", "validation"]) -> Features:
        batches = evaluation_batches(
            self.dataset, split, self.trial.data, 512, self.device, self.loader_processes
        )
        precision: Literal["float64", "float32"] = (
            "float64" if self.trial.precision == "float64" else "float32"
        )
        return extract(self.backbone, self.head, batches, self.device, precision)

    def labelled(self, dim: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """r[:, :dim] and labels of training and validation, and the number of classes."""
        train, validation = self.train, self.validation
        return (
            train.representation[:, :dim].contiguous(),
            train.labels,
            validation.representation[:, :dim].contiguous(),
            validation.labels,
            self.dataset.num_classes,
        )


def _measure_probe(config: LinearProbe, features: _SharedFeatures, d0: int | None) -> EvaluationResult:
    result = linear_probe.linear_probe(*features.labelled(d0), config, features.trial.seed)
    metrics = {"top1": result.top1, "top5": result.top5, "loss": result.loss}
    return EvaluationResult(metrics, {"correct": result.correct})


def _measure_knn(config: Knn, features: _SharedFeatures, d0: None) -> EvaluationResult:
    result = knn.knn(*features.labelled(), config)
    return EvaluationResult({"top1": result.top1, "top5": result.top5}, {"correct": result.correct})


def _measure_spectrum(config: Spectrum, features: _SharedFeatures, d0: None) -> EvaluationResult:
    validation = features.validation
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, x in (("representation", validation.representation), ("embedding", validation.embedding)):
        values = spectrum.spectrum(x, config.normalize)
        metrics[f"{name}/rankme"] = spectrum.rankme(x)
        metrics[f"{name}/collapsed_fraction"] = spectrum.collapsed_fraction(values)
        arrays[f"{name}_singular_values"] = values.cpu().numpy()
    return EvaluationResult(metrics, arrays)


_MEASURES: dict[type, Callable[..., EvaluationResult]] = {
    LinearProbe: _measure_probe,
    SubvectorProbe: _measure_probe,
    Knn: _measure_knn,
    Spectrum: _measure_spectrum,
}
