"""The training of toy networks by plain SGD, in parts that fit a core's cache, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainers.config import ToyConfig, ToyRun
from trainers.theory import measures
from trainers.theory.draws import draw_batches, draw_samples, initial_weights
from trainers.theory.networks import Networks, end_to_end

_PAIRS_BYTES = {"cpu": 2**21, "cuda": 2**30}
"""Size of the N x N matrices of a part. Whatever the number of threads, for results not to depend on it."""
_PROBES = 8
"""Batches over which X of Eq. 6 is averaged when it is measured."""
_OF_A_CASE = {"amplitude", "noisy_dims", "initial", "decay", "initial_scale", "lr"}
"""Fields in which cases that are trained as one batch of matrices may differ."""

Series = dict[str, np.ndarray]
Watch = Callable[[int, float], None]


@dataclass(frozen=True)
class Part:
    """Some networks of some cases of one architecture, trained together.

    Matrices are ordered by case, then by network: M = cases x networks of them.
    """

    cases: dict[int, ToyConfig]
    networks: range
    seed: int

    @property
    def shared(self) -> ToyConfig:
        """A case that stands for all where they do not differ."""
        return next(iter(self.cases.values()))

    @property
    def work(self) -> int:
        """Networks times iterations."""
        return len(self.cases) * len(self.networks) * self.shared.iterations

    def of_cases(self, values: Tensor) -> Tensor:
        """(cases, ...) values -> (M, ...), those of a case for each of its networks."""
        return values.repeat_interleave(len(self.networks), dim=0)

    def of_networks(self, values: Tensor) -> Tensor:
        """(networks, ...) values -> (M, ...), the same for all cases."""
        return values.repeat(len(self.cases), *[1] * (values.dim() - 1))


def split(run: ToyRun, device: torch.device) -> list[Part]:
    """The parts of a run, the longest first."""
    groups: dict[str, dict[int, ToyConfig]] = {}
    for n, case in enumerate(run.cases):
        groups.setdefault(case.model_dump_json(exclude=_OF_A_CASE), {})[n] = case
    parts: list[Part] = []
    for cases in groups.values():
        shared = next(iter(cases.values()))
        size = max(1, _PAIRS_BYTES[device.type] // (8 * shared.batch_size**2 * len(cases)))
        if len(groups) == 1:
            size = min(size, (run.networks + 1) // 2)  # a part for each of two cores
        firsts = range(0, run.networks, size)
        parts += [Part(cases, range(n, min(n + size, run.networks)), run.seed) for n in firsts]
    return sorted(parts, key=lambda part: part.work * part.shared.layers, reverse=True)


@torch.inference_mode()
def train(part: Part, device: torch.device, watch: Watch) -> dict[int, Series]:
    """Train the networks of a part.

    Args:
        watch: told at every record but the first what was done since the last, as networks times
            iterations, and the mean loss meanwhile. What it raises ends the training.

    Returns:
        For each case by its number the arrays of `trainers.theory.ToyResult`, and `loss` (networks,), the mean
        since the last record but one.

    Raises:
        FloatingPointError: a loss or a weight became infinite or NaN.
    """
    config = part.shared
    samples = draw_samples(config, part.seed, part.networks).to(device)
    networks = _initial(part, device)
    lr = torch.tensor([case.lr for case in part.cases.values()], dtype=torch.float64, device=device)
    rates = part.of_cases(lr / config.batch_size)[:, None, None]  # of the sum over the batch
    records = _Records(part, networks, samples, rates)
    views = _views(part, samples, "toy_batches")
    losses: list[Tensor] = []
    for iteration in range(config.iterations):
        if iteration % config.record_every == 0:
            records.add(iteration)
        loss, gradients = networks.gradients(*next(views), config.loss, config.temperature)
        networks.descend(gradients, rates)
        losses.append(loss)
        if len(losses) == config.record_every or iteration == config.iterations - 1:
            since = torch.stack(losses)
            _check_finite(part, since, networks, iteration + 1 - len(losses))
            watch(len(since) * len(rates), float(since.mean()))
            losses = []
    records.add(config.iterations)
    return records.by_case(loss=since.mean(dim=0))


def _initial(part: Part, device: torch.device) -> Networks:
    config = part.shared
    of_cases = [initial_weights(case, part.seed, part.networks) for case in part.cases.values()]
    weights = [torch.cat(layer).to(device) for layer in zip(*of_cases, strict=True)]
    biases = [weight.new_zeros(len(weight), config.dim, 1) for weight in weights] if config.bias else []
    return Networks(weights, biases, config.relu)


def _views(
    part: Part, samples: Tensor, purpose: Literal["toy_batches", "toy_probes"]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: x and x' - x, (M, d, N) each (Section 4.2: the noise has variance k on its dimensions)."""
    scale = samples.new_zeros(len(part.cases), part.shared.dim, 1)
    for row, case in zip(scale, part.cases.values(), strict=True):
        row[case.dim - case.noisy_dims :] = case.amplitude**0.5
    scale = part.of_cases(scale)
    network = torch.arange(len(samples), device=samples.device)[:, None]
    for block in draw_batches(part.shared, part.seed, part.networks, purpose):
        for indices, noise in zip(*(draws.to(samples.device) for draws in block), strict=True):
            x = samples[network, indices].mT  # (networks, N, d) -> (networks, d, N)
            yield part.of_networks(x), part.of_networks(noise) * scale


def _check_finite(part: Part, losses: Tensor, networks: Networks, first: int) -> None:
    """Raise for the first loss (iterations, M) that is no number, or for a weight that the last step made none."""
    weights = torch.stack(networks.weights).isfinite().all(-1).all(-1).all(0)
    finite = torch.cat([losses.isfinite(), weights[None]])
    if finite.all():
        return
    iteration, matrix = (~finite).nonzero()[0].tolist()
    case = list(part.cases)[matrix // len(part.networks)]
    network = part.networks[matrix % len(part.networks)]
    raise FloatingPointError(
        f"case {case}, network {network}: the loss is not finite at iteration {first + iteration}; "
        "lower lr (steps diverge from about 2 / amplitude on) or initial_scale"
    )


class _Records:
    """What is measured of the networks of a part, and when."""

    def __init__(self, part: Part, networks: Networks, samples: Tensor, rates: Tensor) -> None:
        self.part, self.networks, self.samples, self.rates = part, networks, samples, rates
        self.root = part.of_networks(measures.covariance_root(samples))
        self.probes: list[tuple[Tensor, Tensor]] = []
        if networks.linear:
            self.probes = list(islice(_views(part, samples, "toy_probes"), _PROBES))
        self.first_gaps = measures.layer_gaps(torch.stack(networks.weights, dim=1))
        self.overlap: Tensor | None = None  # of the last record
        self.iterations: list[int] = []
        self.series: dict[str, list[Tensor]] = {}

    def add(self, iteration: int) -> None:
        """Measure now."""
        self.iterations.append(iteration)
        for name, value in self._measure().items():
            self.series.setdefault(name, []).append(value.cpu())

    def _measure(self) -> dict[str, Tensor]:
        """By name (M, ...). Only where z = W x does the theory speak of more than spectra."""
        networks, config = self.networks, self.part.shared
        weights = torch.stack(networks.weights, dim=1)  # (M, L, d, d)
        u, values, vh = torch.linalg.svd(weights)
        measured = {
            "weight_singular_values": values,
            "embedding_spectrum": measures.embedding_spectrum(networks, self.samples, self.root),
        }
        if networks.affine:
            measured["product_singular_values"] = torch.linalg.svdvals(end_to_end(networks.weights))
        overlap = measures.alignment(u, vh)
        if networks.linear:
            x = measures.contrast_matrix(networks, self.probes, config.loss, config.temperature)
            measured["contrast_eigenvalues"] = torch.linalg.eigvalsh(x).flip(-1) / config.batch_size
            if config.layers > 1:
                measured["aligned"] = overlap.diagonal(dim1=2, dim2=3).amin(dim=1)
                gaps = measures.layer_gaps(weights)
                measured["conserved_drift"] = measures.gap_drift(gaps, self.first_gaps)
                measured["predicted_growth"] = self.rates[:, 0] * measures.growth_rate(x, values, vh)
        if config.layers > 1:
            self.overlap = overlap
        return measured

    def by_case(self, loss: Tensor) -> dict[int, Series]:
        arrays = {name: torch.stack(values, dim=1).numpy() for name, values in self.series.items()}
        arrays["loss"] = loss.cpu().numpy()
        if self.overlap is not None:
            arrays["alignment"] = self.overlap.cpu().numpy()
        count = len(self.part.networks)
        cases = {
            n: {name: values[i * count : (i + 1) * count] for name, values in arrays.items()}
            for i, n in enumerate(self.part.cases)
        }
        for series in cases.values():
            series["iterations"] = np.array(self.iterations)
        return cases
