"""Linear classification of cached features: SGD with the paper's hyper-parameters, or its objective's minimum.

Not the reference protocol, which trains on random crops and flips and reports the best epoch on the
validation set: here features are of unaugmented images, and the last epoch counts.

Both minimise, over weights W (K, D) and biases b (K,),

    mean_i CE(W x_i + b, y_i) + weight_decay / 2 * (|W|^2 + |b|^2),

from W ~ N(0, 0.01) (standard deviation 0.01) and b = 0.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

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
    """On the validation set: accuracies in percent, mean cross-entropy in nats, bool (M,) correctness."""

    top1: float
    top5: float
    loss: float
    correct: np.ndarray


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    validation: Tensor,
    validation_labels: Tensor,
    num_classes: int,
    config: LinearProbe,
    seed: int,
) -> ProbeResult:
    """Fit on `train` (N, D), measure on `validation` (M, D). The same seed gives the same result.

    Raises:
        FloatingPointError: the fit diverged.
    """
    start = INITIAL_STD * torch.randn(num_classes, train.shape[1], generator=generator(seed, "probe"))
    with torch.no_grad():
        if config.solver == "lbfgs":
            weights, biases = _fit_lbfgs(train, train_labels, start, config)
        else:
            weights, biases = _fit_sgd(train, train_labels, start, config, seed)
        if not (weights.isfinite().all() and biases.isfinite().all()):
            raise FloatingPointError(
                f"{config.kind}: the classifier is not finite; lower its lr ({config.lr})"
            )
        return _measure(F.linear(validation.to(weights), weights, biases), validation_labels)


def _measure(logits: Tensor, labels: Tensor) -> ProbeResult:
    """(M, K) logits against (M,) labels."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == labels[:, None]  # (M, 5)
    return ProbeResult(
        top1=100 * hits[:, 0].double().mean().item(),
        top5=100 * hits.any(dim=1).double().mean().item(),
        loss=F.cross_entropy(logits.double(), labels).item(),
        correct=hits[:, 0].cpu().numpy(),
    )


def _fit_sgd(x: Tensor, y: Tensor, start: Tensor, config: LinearProbe, seed: int) -> tuple[Tensor, Tensor]:
    """Minibatch SGD with momentum at a constant rate; every epoch a new permutation, no batch dropped.

    Softmax regression's gradient is written out, and classes come before examples: with few classes
    both products are then several times faster on a CPU.
    """
    weights = start.to(x)  # (K, D)
    biases = weights.new_zeros(len(weights), 1)
    weight_speed, bias_speed = torch.zeros_like(weights), torch.zeros_like(biases)
    columns = torch.arange(config.batch_size, device=x.device)
    for epoch in range(config.epochs):
        order = torch.randperm(len(x), generator=generator(seed, "probe", epoch)).to(x.device)
        for rows in order.split(config.batch_size):
            batch = x.index_select(0, rows)  # (b, D)
            excess = torch.addmm(biases, weights, batch.t()).softmax(dim=0)  # (K, b)
            excess[y.index_select(0, rows), columns[: len(rows)]] -= 1
            excess /= len(rows)  # d loss / d logits
            weight_grad = torch.addmm(weights, excess, batch, beta=config.weight_decay)
            bias_grad = excess.sum(dim=1, keepdim=True).add_(biases, alpha=config.weight_decay)
            weight_speed.mul_(config.momentum).add_(weight_grad)
            bias_speed.mul_(config.momentum).add_(bias_grad)
            weights.sub_(weight_speed, alpha=config.lr)
            biases.sub_(bias_speed, alpha=config.lr)
    return weights, biases.squeeze(1)


def _fit_lbfgs(x: Tensor, y: Tensor, start: Tensor, config: LinearProbe) -> tuple[Tensor, Tensor]:
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
        tolerance_grad=1e-7 if dtype == torch.float64 else 1e-5,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)
    if optimizer.state[v]["n_iter"] >= _LBFGS_ITERATIONS:
        warnings.warn(f"{config.kind}: L-BFGS stopped after {_LBFGS_ITERATIONS} iterations", stacklevel=3)
    solution = (v.detach() * scale) @ vectors.t()
    return solution[:, :-1], solution[:, -1]
