"""Collectives that gradients pass through, and batch norm over the global batch on CPU.

Convention: the loss of a step is the mean over ranks of the ranks' local losses. DDP averages the
gradients of parameters over ranks, so each rank differentiates the *sum* of the local losses: the
backward of a gather or a reduction sums the incoming gradients over ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Result = TypeVar("Result")
_MEET_EVERY_S = 5.0


def world() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def rows_of_rank(batch_size: int, rank: int, world_size: int, parts: int = 1) -> Tensor:
    """Which rows of a global batch are a rank's: an equal share of each of its `parts` consecutive parts.

    So a part holds the same images on any number of ranks, and batch norm over it the same statistics.

    Returns:
        int64 (batch_size / world_size,), ascending.
    """
    return torch.arange(batch_size).view(parts, world_size, -1)[:, rank].flatten()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rank, world_size = world()
        ctx.first, ctx.rows = rank * len(x), len(x)
        gathered = x.new_empty(world_size * len(x), *x.shape[1:])
        dist.all_gather(list(gathered.chunk(world_size)), x.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[ctx.first : ctx.first + ctx.rows]


def gather_rows(x: Tensor) -> Tensor:
    """All ranks' rows in rank order, differentiably.

    Args:
        x: (b, ...), of the same shape on every rank.

    Returns:
        (W*b, ...). The gradient reaching `x` is the sum over ranks of the gradients of its rows.
    """
    if world()[1] == 1:
        return x
    return _GatherRows.apply(x)


def at_own_pace(work: Callable[[], Result], waiting: Callable[[str], None], device: torch.device) -> Result:
    """Work that takes each rank a time of its own, longer maybe than a collective waits for the others.

    Args:
        waiting: told now and then by a rank that is done and waits for others. Called by all ranks alike.
    """
    if world()[1] == 1:
        return work()
    with ThreadPoolExecutor(1) as aside:
        mine = aside.submit(work)
        while True:
            wait([mine], timeout=_MEET_EVERY_S)
            if mine.done():
                mine.result()  # an error ends this rank, and with it the others
            at_work = torch.tensor(0 if mine.done() else 1, device=device)
            dist.all_reduce(at_work)
            if not at_work:
                return mine.result()
            if mine.done():
                waiting(f"waiting for {int(at_work)} other workers")


def from_rank_0(value: Any, device: torch.device) -> Any:
    """What rank 0 has, on every rank: anything that JSON holds. Called by all alike."""
    if world()[1] == 1:
        return value
    content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    length = torch.tensor(len(content), device=device)
    dist.broadcast(length, src=0)
    told = content if world()[0] == 0 else content.new_empty(int(length))
    dist.broadcast(told, src=0)
    return json.loads(bytes(told.cpu().tolist()))


class _Normalise(torch.autograd.Function):
    """Affine normalisation by statistics that are themselves functions of every rank's input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, count: float, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count, ctx.eps = count, eps
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        # The kernel's evaluation mode takes the statistics as constants; with x^ = (x - mean)/std it gives
        # dL/dx, sum(dy x^) and sum(dy) of this rank's rows.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([grad_weight, grad_bias])
        dist.all_reduce(sums)
        # Through mean and variance: -(w/std) (sum(dy x^) x^ + sum(dy)) / n, itself an affine
        # normalisation of x, so that the same fused kernel computes it.
        slope = -weight * torch.rsqrt(var + ctx.eps) / ctx.count
        through = torch.native_batch_norm(x, slope * sums[0], slope * sums[1], mean, var, False, 0.0, ctx.eps)
        return grad_x.add_(through[0]), grad_weight, grad_bias, None, None, None, None


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the global batch for (B, C), (B, C, L) or (B, C, H, W), on any device and backend.

    Equals `nn.BatchNorm*d` applied to all ranks' rows in one process: output, gradients and running
    statistics (unbiased variance). Statistics are float32 at least, whatever autocast makes of the
    input. torch's own SyncBatchNorm refuses CPU tensors.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncBatchNorm: got {input.dim()}D input, takes at least 2D")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        # As in nn.BatchNorm: without running statistics, evaluation uses those of its own batch.
        if not self.training or world()[1] == 1:
            return super().forward(input)
        dtype = torch.promote_types(input.dtype, torch.float32)
        with torch.no_grad():
            mean, var, count = _global_statistics(input, dtype)
            self._update_running(mean, var, count)
        weight = self.weight.to(dtype) if self.affine else torch.ones_like(mean)
        bias = self.bias.to(dtype) if self.affine else torch.zeros_like(mean)
        return _Normalise.apply(input, weight, bias, mean, var, count, self.eps)

    def _update_running(self, mean: Tensor, var: Tensor, count: float) -> None:
        if not self.track_running_stats:
            return
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        # momentum None is a cumulative average, as in nn.BatchNorm.
        step = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), step)


def _global_statistics(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    """Mean (C,), biased variance (C,) and number of values per channel, over all ranks' rows."""
    channels = x.shape[1]
    # Given buffers of that type, the kernel accumulates and returns in it (x may be bf16).
    scratch = x.new_zeros(2, channels, dtype=dtype)
    mean, var = torch.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0)
    local = torch.full(
        (2 * channels + 1,), float(x.numel() // channels), dtype=torch.float64, device=x.device
    )
    local[:channels], local[channels:-1] = mean, var
    ranks = gather_rows(local[None])  # (W, 2C + 1)
    means, variances, counts = ranks[:, :channels], ranks[:, channels:-1], ranks[:, -1:]
    count = float(counts.sum())
    # float64 and deviations from the joint mean: no cancellation where |mean| >> std.
    joint = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - joint).square())).sum(0) / count
    return joint.to(dtype), variance.to(dtype), count


def synchronise_batch_norm(module: nn.Module, device_type: str) -> nn.Module:
    """Every BatchNorm1d/2d of `module` over the global batch; state-dict names stay as they are.

    Args:
        module: changed in place, except where it is itself a batch norm.
        device_type: "cuda" gives torch's SyncBatchNorm, others ours.

    Returns:
        The module to use; `module` itself, untouched, in a world of one.
    """
    if world()[1] == 1:
        return module
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
        return _converted(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise_batch_norm(child, device_type))
    return module


def _converted(norm: _BatchNorm) -> SyncBatchNorm:
    new = SyncBatchNorm(0, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new.num_features = norm.num_features
    new._parameters, new._buffers = norm._parameters, norm._buffers
    return new.train(norm.training)
