"""What a toy network draws: first weights, samples, batches and augmentation noise.

Network n draws from streams of its own, (seed, purpose, n): neither the number of networks nor the other
cases of a figure change its numbers, and all cases share samples, batches and unit noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, assert_never

import torch
from torch import Tensor

from trainers.config import ToyConfig
from trainers.randomness import generator

_STEPS_AT_ONCE = 32
"""Batches drawn in one call where they are small; part of what the numbers are, like the bound on values."""
_VALUES_AT_ONCE = 2**20


def initial_weights(config: ToyConfig, seed: int, networks: Sequence[int]) -> list[Tensor]:
    """The first weights of each layer: L tensors (networks, dim, dim), float64.

    A deeper network starts with the layers of a shallower one.
    """
    return [
        torch.stack([_initial_layer(config, generator(seed, "toy_weights", n, layer)) for n in networks])
        for layer in range(config.layers)
    ]


def _initial_layer(config: ToyConfig, draws: torch.Generator) -> Tensor:
    dim = config.dim
    match config.initial:
        case "random":
            gaussian = torch.randn(dim, dim, generator=draws, dtype=torch.float64)
            return gaussian * (config.initial_scale / dim**0.5)
        case "decaying":
            left, right = _orthogonal(dim, draws), _orthogonal(dim, draws)
            values = torch.exp(-config.decay * torch.arange(dim, dtype=torch.float64))
            return config.initial_scale * (left * values) @ right.T
        case _:
            assert_never(config.initial)


def _orthogonal(dim: int, draws: torch.Generator) -> Tensor:
    """Uniform over the orthogonal group: the signs of R's diagonal are fixed (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=draws, dtype=torch.float64))
    return q * r.diagonal().sign()


def draw_samples(config: ToyConfig, seed: int, networks: Sequence[int]) -> Tensor:
    """x ~ N(0, I), a set for each network: (networks, samples, dim), float64."""
    streams = [generator(seed, "toy_data", n) for n in networks]
    shape = (config.samples, config.dim)
    return torch.stack([torch.randn(shape, generator=draws, dtype=torch.float64) for draws in streams])


def draw_batches(
    config: ToyConfig, seed: int, networks: Sequence[int], purpose: Literal["toy_batches", "toy_probes"]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless blocks of batches.

    Yields:
        indices (steps, networks, N) of samples and unit noise (steps, networks, dim, N), float32: drawn so
        five times faster, and a draw rounded to 24 bits is as good a draw.
    """
    streams = [_stream(config, generator(seed, purpose, n)) for n in networks]
    for blocks in zip(*streams, strict=True):
        indices, noise = zip(*blocks, strict=True)
        yield torch.stack(indices, dim=1), torch.stack(noise, dim=1)


def _stream(config: ToyConfig, draws: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices (steps, N) and noise (steps, dim, N) of one network.

    Each pass over the samples is a new permutation, whose incomplete last batch is left out.
    """
    size, dim = config.batch_size, config.dim
    steps = max(1, min(_STEPS_AT_ONCE, _VALUES_AT_ONCE // (size * dim)))
    whole = config.samples // size * size
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < steps * size:
            order = torch.cat([order, torch.randperm(config.samples, generator=draws)[:whole]])
        yield order[: steps * size].view(steps, size), torch.randn(steps, dim, size, generator=draws)
        order = order[steps * size :]
