"""Linear classification of frozen features: SGD with the paper's hyper-parameters, or its objective's minimum.

Both minimise, over weights W (K, D) and biases b (K,),

    mean_i CE(W x_i + b, y_i) + weight_decay / 2 * (|W|^2 + |b|^2),

from W ~ N(0, 0.01) (standard deviation 0.01) and b = 0. Here features are computed once, of unaugmented
images; `trainers.evaluate.reference_probe` trains the same classifier on new crops each epoch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.config import LinearProbe
from trainers.randomness import generator

INITIAL_STD = 0.01
_LBFGS_ITERATIONS = 1000
_DOUBLE_ELEMENTS = 2**28
"""Features with more elements than this (2 GiB) stay in float32 under L-BFGS."""


@dataclass(frozen=True)
class ProbeResult:
    """On the validation set: accuracies in percent, mean cross-entropy in nats, bool (M,) correctness.

    `best_epoch` counts from 1: after how many epochs the numbers were measured, where the best was chosen.
    """

    top1: float
    top5: float
    loss: float
    correct: np.ndarray
    best_epoch: int | None = None


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    validation: Tensor,
    validation_labels: Tensor,
    num_classes: int,
    config: LinearProbe,
    seed: int,
    beat: Callable[[str], None] = lambda where: None,
) -> ProbeResult:
    """Fit on `train` (N, D), measure on `validation` (M, D). The same seed gives the same result.

    L-BFGS has no epochs, so it ignores `schedule` and `select`.

    Args:
        beat: told where the fit stands after each piece of it; what it raises ends the fit.

    Raises:
        FloatingPointError: the fit diverged.
    """
    with torch.no_grad():
        match config.solver:
            case "lbfgs":
                start = _initial_weights(num_classes, train.shape[1], seed)
                weights, biases = _fit_lbfgs(train, train_labels, start, config, beat)
                _require_finite(weights, biases, config)
                return _measure(weights, biases, validation, validation_labels)
            case "sgd":
                probe = SgdProbe(config, validation, validation_labels, num_classes, seed)
                for epoch in range(config.epochs):
                    order = epoch_order(len(train), seed, epoch).to(train.device)
                    for rows in order.split(config.batch_size):
                        probe.step(train.index_select(0, rows), train_labels.index_select(0, rows), epoch)
                    probe.end_epoch(epoch)
                    beat(f"{config.kind}, epoch {epoch + 1}")
                return probe.result
            case _:
                assert_never(config.solver)


class SgdProbe:
    """A classifier under minibatch SGD with momentum, which is measured as `config.select` says.

    Softmax regression's gradient is written out, and classes come before examples: with few classes
    both products are then several times faster on a CPU.

    Args:
        validation: (M, D) features, and (M,) labels, that it is measured on.
    """

    def __init__(
        self, config: LinearProbe, validation: Tensor, labels: Tensor, num_classes: int, seed: int
    ) -> None:
        self.config = config
        self.validation, self.labels = validation, labels
        self.weights = _initial_weights(num_classes, validation.shape[1], seed).to(validation)  # (K, D)
        self.biases = self.weights.new_zeros(num_classes, 1)
        self._weight_speed, self._bias_speed = torch.zeros_like(self.weights), torch.zeros_like(self.biases)
        self._columns = torch.arange(config.batch_size, device=validation.device)
        self._result: ProbeResult | None = None

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor, epoch: int) -> None:
        """One update from features (b, D) and labels (b,) in an epoch, counted from 0."""
        excess = torch.addmm(self.biases, self.weights, x.t()).softmax(dim=0)  # (K, b)
        excess[y, self._columns[: len(y)]] -= 1
        excess /= len(y)  # d loss / d logits
        weight_grad = torch.addmm(self.weights, excess, x, beta=self.config.weight_decay)
        bias_grad = excess.sum(dim=1, keepdim=True).add_(self.biases, alpha=self.config.weight_decay)
        self._weight_speed.mul_(self.config.momentum).add_(weight_grad)
        self._bias_speed.mul_(self.config.momentum).add_(bias_grad)
        lr = _learning_rate(self.config, epoch)
        self.weights.sub_(self._weight_speed, alpha=lr)
        self.biases.sub_(self._bias_speed, alpha=lr)

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> None:
        """Measure, where this epoch may be the one that counts: of equally good ones the first."""
        best = _reports_best(self.config)
        if not best and epoch + 1 < self.config.epochs:
            return
        measured = _measure(self.weights, self.biases.squeeze(1), self.validation, self.labels)
        if self._result is None or measured.top1 > self._result.top1:
            self._result = replace(measured, best_epoch=epoch + 1 if best else None)

    def state(self) -> dict[str, Tensor]:
        """All that its training goes on from, between epochs."""
        tensors = {"weights": self.weights, "biases": self.biases}
        tensors |= {"weight_speed": self._weight_speed, "bias_speed": self._bias_speed}
        if self._result is not None:
            numbers = [self._result.top1, self._result.top5, self._result.loss, self._result.best_epoch or 0]
            tensors["measured"] = torch.tensor(numbers, dtype=torch.float64)
            tensors["correct"] = torch.from_numpy(self._result.correct)
        return tensors

    def put_back(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`."""
        self.weights.copy_(state["weights"])
        self.biases.copy_(state["biases"])
        self._weight_speed.copy_(state["weight_speed"])
        self._bias_speed.copy_(state["bias_speed"])
        if "measured" in state:
            top1, top5, loss, best = state["measured"].tolist()
            self._result = ProbeResult(top1, top5, loss, state["correct"].numpy(), int(best) or None)

    @property
    def result(self) -> ProbeResult:
        """What the last epoch, or the best so far, has given.

        Raises:
            FloatingPointError: the fit diverged.
        """
        _require_finite(self.weights, self.biases, self.config)
        assert self._result is not None, "no epoch has ended"
        return self._result


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The permutation of `count` training examples in an epoch; no batch of it is dropped."""
    return torch.randperm(count, generator=generator(seed, "probe", epoch))


def _reports_best(config: LinearProbe) -> bool:
    match config.select:
        case "best":
            return True
        case "last":
            return False
        case _:
            assert_never(config.select)


def _learning_rate(config: LinearProbe, epoch: int) -> float:
    """Over an epoch, counted from 0: torch's CosineAnnealingLR stepped after each (T_max = epochs, to 0)."""
    match config.schedule:
        case "constant":
            return config.lr
        case "cosine":
            return config.lr * (1 + math.cos(math.pi * epoch / config.epochs)) / 2
        case _:
            assert_never(config.schedule)


def _initial_weights(num_classes: int, dim: int, seed: int) -> Tensor:
    return INITIAL_STD * torch.randn(num_classes, dim, generator=generator(seed, "probe"))


def _require_finite(weights: Tensor, biases: Tensor, config: LinearProbe) -> None:
    if not (weights.isfinite().all() and biases.isfinite().all()):
        raise FloatingPointError(f"{config.kind}: the classifier is not finite; lower its lr ({config.lr})")


def _measure(weights: Tensor, biases: Tensor, x: Tensor, labels: Tensor) -> ProbeResult:
    """The classifier W (K, D), b (K,) on features (M, D) and their labels (M,)."""
    logits = F.linear(x.to(weights), weights, biases)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == labels[:, None]  # (M, 5)
    return ProbeResult(
        top1=100 * hits[:, 0].double().mean().item(),
        top5=100 * hits.any(dim=1).double().mean().item(),
        loss=F.cross_entropy(logits.double(), labels).item(),
        correct=hits[:, 0].cpu().numpy(),
    )


def _fit_lbfgs(
    x: Tensor, y: Tensor, start: Tensor, config: LinearProbe, beat: Callable[[str], None]
) -> tuple[Tensor, Tensor]:
    """L-BFGS on the whole training set, in coordinates where the objective is well conditioned.

    Coordinates are the eigenvectors of the features' second moment, each scaled by
    1/sqrt(eigenvalue + K * decay): the Hessian at the uniform prediction is then nearly a multiple of
    the identity, collapsed dimensions included. The change of variables leaves the minimum where it is.
    """
    n, num_classes = len(x), len(start)
    dtype = torch.float64 if x.numel() <= _DOUBLE_ELEMENTS else torch.float32
    bordered = torch.cat([x.to(dtype), x.new_ones(n, 1, dtype=dtype)], dim=1)  # (N, D + 1): biases as weights
    values, vectors = torch.linalg.eigh(bordered.t() @ bordered / n)
    floor = max(num_classes * config.weight_decay, torch.finfo(dtype).eps * len(values) * values[-1].item())
    scale = (values.clamp(min=0) + floor).rsqrt()  # (D + 1,)
    whitened = bordered @ (vectors * scale)
    del bordered
    penalty = config.weight_decay * scale**2  # decay * |W|^2 in these coordinates
    v = (F.pad(start.to(penalty), (0, 1)) @ vectors) / scale  # (K, D + 1)
    v.requires_grad_()
    examples = torch.arange(n, device=x.device)

    def closure() -> float:
        beat(f"{config.kind}, fit")
        at = v.detach()
        log_p = (at @ whitened.t()).log_softmax(dim=0)  # (K, N)
        loss = (penalty * at**2).sum() / 2 - log_p[y, examples].mean()
        excess = log_p.exp_()
        excess[y, examples] -= 1
        v.grad = torch.addmm(penalty * at, excess, whitened, alpha=1 / n)
        return loss.item()

    optimizer = torch.optim.LBFGS(
        [v],
        max_iter=_LBFGS_ITERATIONS,
        history_size=20,
        tolerance_grad=config.tolerance if dtype == torch.float64 else max(config.tolerance, 1e-5),
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)
    if optimizer.state[v]["n_iter"] >= _LBFGS_ITERATIONS:
        warnings.warn(f"{config.kind}: L-BFGS stopped after {_LBFGS_ITERATIONS} iterations", stacklevel=3)
    solution = (v.detach() * scale) @ vectors.t()
    return solution[:, :-1], solution[:, -1]
