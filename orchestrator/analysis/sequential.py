"""P-values that stay valid however often a person looks and adds seeds.

A hypothesis is tested anew after every seed. The price of looking is paid beforehand: look k, with k seeds, gets the
weight w_k, and what counts is the best weighted look so far,

    p = F(min over looks k of p_k / w_k),    F(x) = P(min over k = 1 .. 20 of p_k / w_k <= x) where nothing is there.

p can only fall as seeds are added, so that a verdict stays. The weights sum to 1, hence F(x) <= x (Bonferroni); F is
smaller, as looks resemble one another. Its table is simulated for the paths of Student's t.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

MOST_LOOKS = 20
"""Looks that are paid for: a verdict rests on the first 20 seeds."""

FIRST_LOOK = 0.1
"""Weight of the look at one seed, whose test assumes a spread between seeds."""

_LATER = [look**-1.5 for look in range(2, MOST_LOOKS + 1)]
WEIGHTS = (FIRST_LOOK, *((1 - FIRST_LOOK) * share / sum(_LATER) for share in _LATER))
"""Of the looks at 1, 2, .. 20 seeds: most on the first, where a large effect already shows."""

GRID = (1e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
CHANCES = (1e-5, 8.675e-5, 1.685e-4, 4.078e-4, 8.033e-4, 1.601e-3, 3.830e-3, 7.363e-3, 0.01412, 0.03271, 0.06078,
           0.1109, 0.2375, 0.4186, 0.7757, 1.0)  # fmt: skip
"""F at `GRID`, by benchmarks/calibrate_looks.py with 4,000,000 paths; at the first point Bonferroni's bound."""


def always_valid(looks: Mapping[int, float]) -> float:
    """A p-value for all looks together.

    Args:
        looks: number of seeds -> p of the look, one-sided and valid by itself; looks beyond `MOST_LOOKS` don't count.
    """
    best = min((p / WEIGHTS[look - 1] for look, p in looks.items() if look <= MOST_LOOKS), default=GRID[-1])
    if best < GRID[0]:
        return best
    return float(np.exp(np.interp(np.log(best), np.log(GRID), np.log(CHANCES))))


def look_level(look: int, level: float) -> float:
    """The largest p of a look that brings p <= level over all looks; 0 beyond `MOST_LOOKS`."""
    if look > MOST_LOOKS:
        return 0.0
    best = (
        level if level < GRID[0] else float(np.exp(np.interp(np.log(level), np.log(CHANCES), np.log(GRID))))
    )
    return best * WEIGHTS[look - 1]
