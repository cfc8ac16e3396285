"""What a toy network draws: first weights, samples, batches and augmentation noise.

Network n draws from streams of its own, (seed, purpose, n): neither the number of networks nor the other
cases of a figure change its numbers, and all cases share samples, batches and unit noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trainers.config import ToyConfig
from trainers.randomness import Purpose, generator

_STEPS_AT_ONCE = 32
"""Iterations whose noise is drawn in one call; part of what the numbers are."""


def initial_weights(config: ToyConfig, seed: int, networks: Sequence[int]) -> list[Tensor]:
    """The first weights of each layer: L tensors (networks, dim, dim), float64.

    A deeper network of the same initial kind starts with the layers of a shallower one.
    """
    return [
        torch.stack([_initial_layer(config, generator(seed, "toy_weights", n, layer)) for n in networks])
        for layer in range(config.layers)
    ]


def _initial_layer(config: ToyConfig, draws: torch.Generator) -> Tensor:
    dim = config.dim
    if config.initial == "random":
        gaussian = torch.randn(dim, dim, generator=draws, dtype=torch.float64)
        return gaussian * (config.initial_scale / dim**0.5)
    left, right = _orthogonal(dim, draws), _orthogonal(dim, draws)
    values = torch.exp(-config.decay * torch.arange(dim, dtype=torch.float64))
    return config.initial_scale * (left * values) @ right.T


def _orthogonal(dim: int, draws: torch.Generator) -> Tensor:
    """Uniform over the orthogonal group: the signs of R's diagonal are fixed (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=draws, dtype=torch.float64))
    return q * r.diagonal().sign()


def draw_samples(config: ToyConfig, seed: int, networks: Sequence[int]) -> Tensor:
    """x ~ N(0, I), a set for each network: (networks, samples, dim), float64."""
    shape = (config.samples, config.dim)
    return torch.stack(
        [
            torch.randn(shape, generator=generator(seed, "toy_data", n), dtype=torch.float64)
            for n in networks
        ]
    )


def batches(
    config: ToyConfig, seed: int, networks: Sequence[int], purpose: Purpose = "toy_batches"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: indices (networks, N) of samples and unit noise (networks, N, dim), float32.

    Each pass over the samples is a new permutation, its incomplete last batch left out. The noise is
    drawn in float32, five times faster: a draw rounded to 24 bits is as good a draw.
    """
    size, dim = config.batch_size, config.dim
    streams = [generator(seed, purpose, n) for n in networks]
    indices: list[Tensor] = []
    while True:
        noise = torch.stack([torch.randn(_STEPS_AT_ONCE, size, dim, generator=g) for g in streams])
        for step in range(_STEPS_AT_ONCE):
            if not indices:
                orders = torch.stack([torch.randperm(config.samples, generator=g) for g in streams])
                whole = orders[:, : config.samples // size * size]
                indices = list(whole.split(size, dim=1))[::-1]
            yield indices.pop(), noise[:, step]
