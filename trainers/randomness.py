"""Named random streams: every draw is a pure function of (seed, purpose, position).

Nothing here depends on process-wide state, so a stream gives the same numbers on every rank,
after every restart and for any number of loader processes.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

Purpose = Literal[
    "backbone",
    "head",
    "order",
    "augment",
    "head_noise",
    "probe",
    "split",
    "glyphs",
    "toy_weights",
    "toy_data",
    "toy_batches",
    "toy_probes",
]


def derive(seed: int, purpose: Purpose, *position: int) -> int:
    """A 63-bit seed for one stream at one position, e.g. `derive(seed, "augment", epoch, step)`."""
    text = ":".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: Purpose, *position: int) -> torch.Generator:
    """A CPU generator at the start of one stream. Drawn on CPU so that devices agree."""
    return torch.Generator().manual_seed(derive(seed, purpose, *position))
