"""LARS in both of its current forms, and the choice of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, Literal, assert_never, overload

import torch
from torch import Tensor, nn

from trainers import config as configs


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017).

    For a parameter p of two or more dimensions with gradient g::

        u = g + weight_decay * p
        u = u * trust_coefficient * |p| / n        (where |p| and n are positive)
        momentum buffer m = momentum * m + u
        p = p - lr * m

    n is the norm of the sum, |u|, in the paper's released code, and the sum of the norms,
    |g| + weight_decay * |p|, in the article's Algorithm 1 and in several libraries. The learning rate enters
    after the momentum. Biases, batch-norm and other one-dimensional parameters take u = g: neither
    decayed nor adapted.

    Args:
        params: parameters or parameter groups.
        lr: learning rate; a schedule writes `group["lr"]`.
        momentum: decay of the buffer.
        weight_decay: L2 coefficient, inside the adapted update.
        trust_coefficient: ratio of |update| to |p| at learning rate 1.
        norm: what |p| is divided by, "of_sum" or "sum_of_norms".

    Raises:
        ValueError: a negative hyper-parameter.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust_coefficient: float = 0.001,
        norm: Literal["of_sum", "sum_of_norms"] = "of_sum",
    ) -> None:
        numbers = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        for name, value in numbers.items():
            if value < 0:
                raise ValueError(f"Lars: {name}: got {value}, takes a number >= 0")
        super().__init__(params, {**numbers, "norm": norm})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient; never waits for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            ready = [p for p in group["params"] if p.grad is not None]
            # Norms are stacked, which takes tensors of one kind.
            ready.sort(key=_kind)
            for (_, _, adapted), parameters in groupby(ready, _kind):
                self._update(list(parameters), group, adapted)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any], adapted: bool) -> None:
        updates = [p.grad for p in parameters if p.grad is not None]
        if adapted:
            gradients, decay = updates, group["weight_decay"]
            updates = list(torch._foreach_add(gradients, parameters, alpha=decay))
            sizes = _norms(parameters)
            match group["norm"]:
                case "of_sum":
                    divisors = _norms(updates)
                case "sum_of_norms":
                    divisors = _norms(gradients) + decay * sizes
                case norm:
                    raise ValueError(f"Lars: norm: got {norm!r}, expected of_sum or sum_of_norms")
            torch._foreach_mul_(updates, _trust_ratios(sizes, divisors, group["trust_coefficient"]))
        momenta = [self._momentum(p) for p in parameters]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, updates)
        torch._foreach_add_(parameters, momenta, alpha=-group["lr"])

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]


def _kind(parameter: Tensor) -> tuple[str, str, bool]:
    return str(parameter.device), str(parameter.dtype), parameter.dim() > 1


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))


def _trust_ratios(sizes: Tensor, divisors: Tensor, trust_coefficient: float) -> tuple[Tensor, ...]:
    ratios = torch.where((sizes > 0) & (divisors > 0), trust_coefficient * sizes / divisors, 1.0)
    return ratios.unbind()


def build_optimizer(
    config: configs.Lars | configs.Sgd | configs.AdamW, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The configured optimizer over `parameters`; one-dimensional ones are never decayed."""
    parameters = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1]},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    match config:
        case configs.Lars():
            return Lars(
                parameters,
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                trust_coefficient=config.trust_coefficient,
                norm=config.norm,
            )
        case configs.Sgd():
            return torch.optim.SGD(
                groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
            )
        case configs.AdamW():
            return torch.optim.AdamW(
                groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
            )
        case _:
            assert_never(config)
