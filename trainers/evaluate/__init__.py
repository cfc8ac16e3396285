"""Measurements of a trained model: linear probes, nearest neighbours, spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, assert_never

import numpy as np
import torch
from torch import Tensor, nn

from trainers import EVALUATION_VERSION
from trainers.config import EvaluationConfig, Knn, LinearProbe, Spectrum, SubvectorProbe, TrialConfig
from trainers.data.corrupt import CorruptImages
from trainers.data.crops import CropLoader
from trainers.data.datasets import Dataset, Split, load_dataset
from trainers.data.loader import evaluation_batches
from trainers.evaluate import knn, linear_probe, spectrum
from trainers.evaluate.features import Features, extract, full_float32
from trainers.evaluate.linear_probe import SgdProbe
from trainers.evaluate.reference_probe import PROBE_STATES, ProbeStates, same_images, train_probes

__all__ = ["PROBE_STATES", "EvaluationResult", "evaluate"]

_ONES_OWN = (
    ValueError,
    FloatingPointError,
    MemoryError,
    torch.OutOfMemoryError,
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]
)
"""Errors that say nothing of the evaluations that follow."""
_SplitName = Literal["train", "validation"]
_Probe = tuple[LinearProbe, int | None]
"""A protocol and its resolved d0, None for the whole representation."""


@dataclass(frozen=True)
class EvaluationResult:
    """Numbers by name, and arrays: per-example correctness (bool), or singular values (float64).

    `corrupt_images` are those of the images measured that could not be decoded, by their paths below the data's root.
    """

    metrics: dict[str, float]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    corrupt_images: list[str] = field(default_factory=list)


def evaluate(
    trial: TrialConfig,
    backbone: nn.Module,
    head: nn.Module | None,
    evaluations: Sequence[EvaluationConfig],
    device: torch.device | str,
    loader_processes: int = 0,
    dataset: Dataset | None = None,
    corrupt_images: int = 0,
    beat: Callable[[str], None] = lambda where: None,
    note: Callable[[str], None] = lambda text: None,
    states: Path | None = None,
    states_of: str = "",
    guard: Callable[[], None] = lambda: None,
    failed: Callable[[Exception], None] | None = None,
) -> Iterator[EvaluationResult]:
    """Run every evaluation on one extraction of the features; each result comes as soon as it is there.

    Features are of unaugmented images, but for the training images of probes under the reference
    protocol, which share one pass over the same crops each epoch. They are computed in float32 (float64
    for a float64 trial) even when training was in half precision, whose rounding would hide a collapsed
    spectrum.

    Args:
        trial: names the data, and the seed of the probes.
        evaluations: what to measure; results come in the same order.
        dataset: the trial's data, if it is loaded already.
        corrupt_images: so many images of a split may be undecodable; another of its class stands in for each.
        beat: told where the work stands, after each piece of it; what it raises ends the work.
        note: told of images that cannot be decoded.
        states: folder in which probes under the reference protocol keep a state after each epoch
            (`PROBE_STATES`), to go on from; whoever keeps the results removes them. Without, they keep none.
        states_of: names the backbone's weights: states of others are not gone on from.
        guard: asked before each write into that folder; raises where this process must not.
        failed: gets the error of an evaluation that cannot be made, which is left out of the results; the others
            go on. Without, the error is raised.

    Raises:
        ValueError: a subvector probe's d0 is not resolved or exceeds D (at once), or kNN asks for more
            neighbours than there are images (at its turn, like all that follows).
        DataError: the data is missing or cannot be decoded.
        FloatingPointError: a probe diverged.
    """
    d0s = [_probed_dim(trial, e) if isinstance(e, SubvectorProbe) else None for e in evaluations]
    wanted = list(zip(evaluations, d0s, strict=True))
    probes = [(e, d0) for e, d0 in wanted if isinstance(e, LinearProbe) and e.protocol == "reference"]
    kept = ProbeStates(states, f"{states_of}@{EVALUATION_VERSION}", guard) if states else None
    watch = _Watch(corrupt_images, beat, note, kept)
    features = _SharedFeatures(
        trial, backbone, head, torch.device(device), loader_processes, dataset, probes, watch
    )
    return _measured(wanted, features, failed)


def _probed_dim(trial: TrialConfig, probe: SubvectorProbe) -> int:
    """The d0 of a subvector probe, which has to be resolved: fractions and the head's own d0 are a recipe's."""
    dim = trial.backbone.representation_dim
    if not isinstance(probe.d0, int) or probe.d0 > dim:
        raise ValueError(
            f"subvector_probe.d0: got {probe.d0}, takes a number of features up to the representation's D = {dim}"
        )
    return probe.d0


def _measured(
    evaluations: list[tuple[EvaluationConfig, int | None]],
    features: _SharedFeatures,
    failed: Callable[[Exception], None] | None,
) -> Iterator[EvaluationResult]:
    for evaluation, d0 in evaluations:
        features.watch.beat(f"evaluation {evaluation.kind}")
        measure, splits = _MEASURES[type(evaluation)]
        try:
            with full_float32():
                result = measure(evaluation, features, d0)
        except _ONES_OWN as error:
            if failed is None:
                raise
            error.add_note(f"evaluation {evaluation.kind}")
            failed(error)
            continue
        yield replace(result, corrupt_images=features.met(*splits))


@dataclass(frozen=True)
class _Watch:
    """Who is told how an evaluation goes, as `evaluate` takes them."""

    corrupt_images: int
    beat: Callable[[str], None]
    note: Callable[[str], None]
    states: ProbeStates | None


@dataclass
class _SharedFeatures:
    """The features of both splits, each extracted when first asked for. No one asks for z of training.

    Probes under the reference protocol are here too: those that see the same images train together, when
    the first of them is asked for.
    """

    trial: TrialConfig
    backbone: nn.Module
    head: nn.Module | None
    device: torch.device
    loader_processes: int
    given: Dataset | None
    reference_probes: list[_Probe]
    watch: _Watch
    _trained: dict[_Probe, SgdProbe] = field(default_factory=dict)
    _corrupt: dict[_SplitName, CorruptImages] = field(default_factory=dict)

    @cached_property
    def dataset(self) -> Dataset:
        if self.given is not None:
            return self.given
        return load_dataset(self.trial.data, self.watch.beat, self.watch.note)

    @cached_property
    def train(self) -> Features:
        return self._extract("train", None)

    @cached_property
    def validation(self) -> Features:
        return self._extract("validation", self.head)

    def _extract(self, split: _SplitName, head: nn.Module | None) -> Features:
        self.watch.beat(f"features of {split}")
        part, corrupt = self._part(split), self._corrupt_of(split)
        batches = evaluation_batches(
            self.dataset, split, self.trial.data, 512, self.device, self.loader_processes, corrupt.add
        )
        count = int((part.labels >= 0).sum())
        told = self._told(batches, split)
        features = extract(self.backbone, head, told, count, self.device, self._precision)
        corrupt.met()
        return features

    def _told(self, batches: Iterator[tuple[Tensor, Tensor]], split: str) -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(batches):
            self.watch.beat(f"features of {split}, batch {number}")
            yield batch

    def _part(self, split: _SplitName) -> Split:
        return self.dataset.train if split == "train" else self.dataset.validation

    def _corrupt_of(self, split: _SplitName) -> CorruptImages:
        """One for all that look at the split, so that each image is told of once."""
        if split not in self._corrupt:
            self._corrupt[split] = CorruptImages(
                self._part(split), self.dataset.root, self.watch.corrupt_images, self.watch.note
            )
        return self._corrupt[split]

    def met(self, *splits: _SplitName) -> list[str]:
        """Images of the splits that could not be decoded, sorted."""
        return sorted(name for split in splits for name in self._corrupt_of(split).met())

    @property
    def _precision(self) -> Literal["float64", "float32"]:
        return "float64" if self.trial.precision == "float64" else "float32"

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

    def trained(self, probe: _Probe) -> SgdProbe:
        """A probe under the reference protocol, trained with all that see the same images."""
        if probe not in self._trained:
            config = probe[0]
            together = [other for other in self.reference_probes if same_images(other[0], config)]
            crops = CropLoader(
                self.dataset, self.trial, config.crop_scale, config.flip, self.device, self.loader_processes
            )
            trained = train_probes(
                together,
                self.backbone,
                crops,
                self.validation,
                self.dataset.num_classes,
                self.trial.seed,
                getattr(torch, self._precision),
                self.watch.beat,
                self._corrupt_of("train"),
                self.watch.states,
            )
            self._trained |= dict(zip(together, trained, strict=True))
        return self._trained[probe]


def _measure_probe(config: LinearProbe, features: _SharedFeatures, d0: int | None) -> EvaluationResult:
    match config.protocol:
        case "reference":
            result = features.trained((config, d0)).result
        case "cached":
            seed, beat = features.trial.seed, features.watch.beat
            result = linear_probe.linear_probe(*features.labelled(d0), config, seed, beat)
        case _:
            assert_never(config.protocol)
    metrics = {"top1": result.top1, "top5": result.top5, "loss": result.loss}
    if result.best_epoch is not None:
        metrics["best_epoch"] = float(result.best_epoch)
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
        metrics[f"{name}/effective_rank"] = spectrum.effective_rank(values)
        metrics[f"{name}/directions"] = float(spectrum.directions(values))
        metrics[f"{name}/collapsed_fraction"] = spectrum.collapsed_fraction(values)
        arrays[f"{name}_singular_values"] = values.cpu().numpy()
    return EvaluationResult(metrics, arrays)


_MEASURES: dict[type, tuple[Callable[..., EvaluationResult], tuple[_SplitName, ...]]] = {
    LinearProbe: (_measure_probe, ("train", "validation")),
    SubvectorProbe: (_measure_probe, ("train", "validation")),
    Knn: (_measure_knn, ("train", "validation")),
    Spectrum: (_measure_spectrum, ("validation",)),
}
"""By the kind of evaluation: what measures it, and the splits that it looks at."""
