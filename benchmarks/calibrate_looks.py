"""Makes the table of orchestrator/analysis/sequential.py: how likely so good a best look is where nothing is there.

Simulates paths of Student's t and counts how often the minimum over looks k = 2 .. 20 of p_k / w_k falls to x. The look
at one seed, whose test is of another kind, is added at its Bonferroni price. Paths whose variance has more degrees of
freedom, as pooled ones have, and paths of ranks give smaller chances, so that one table serves all.

Command: python benchmarks/calibrate_looks.py [DRAWS]; about a minute of one core for 4,000,000
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from orchestrator.analysis.sequential import GRID, MOST_LOOKS, WEIGHTS

CHUNK = 100_000


def best_looks(rng: np.random.Generator, draws: int) -> NDArray[np.float64]:
    """(draws,) smallest p_k / w_k over k = 2 .. `MOST_LOOKS` of one-sided t tests of standard normal values."""
    n = np.arange(1, MOST_LOOKS + 1)
    values = rng.normal(size=(draws, MOST_LOOKS))
    means = np.cumsum(values, axis=1) / n
    squares = np.cumsum(values**2, axis=1) - n * means**2
    later = n[1:]
    t = means[:, 1:] / np.sqrt(squares[:, 1:] / (later - 1) / later)
    return np.asarray((stdtr(later - 1.0, -t) / np.array(WEIGHTS[1:])).min(axis=1))


def main() -> None:
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 4_000_000
    rng, below = np.random.default_rng(0), np.zeros(len(GRID))
    for _ in range(draws // CHUNK):
        below += np.searchsorted(np.sort(best_looks(rng, CHUNK)), GRID, side="right")
    later = below / (draws // CHUNK * CHUNK)
    for x, chance in zip(GRID, later, strict=True):
        print(f"    {x:g}: {min(1.0, x, WEIGHTS[0] * x + chance):.4g},")


if __name__ == "__main__":
    main()
