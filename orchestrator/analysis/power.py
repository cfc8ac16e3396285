"""What a number of seeds can decide."""

from __future__ import annotations

import math

from scipy.special import nctdtr, ndtri, stdtrit

from orchestrator.analysis.sequential import look_level

PRIOR_FREEDOM = 1.5
"""Degrees of freedom that the other cells' spread counts for in the "alone" test; benchmarks/claims.py chose it."""


def detectable(seeds: int, seed_sd: float, family_size: int, cells: int, alpha: float, power: float) -> float:
    """Smallest true gap of two cells that so many seeds decide with this power, by the look at that number.

    Args:
        seeds: of every cell, from 1; the noise of the images is left out where it is 1.
        seed_sd: spread of a cell between seeds, in the unit of the gap.
        family_size: claims that share alpha; all of them open.
        cells: trained cells of the report, which lend each other their spread.

    Returns:
        In the unit of `seed_sd`; infinite beyond the looks that are paid for.
    """
    level, alone = (look_level(seeds, share / 2) for share in (alpha / family_size, alpha))
    if level == 0:
        return math.inf
    if seeds == 1:
        return float(ndtri(1 - level) + ndtri(power)) * math.sqrt(2) * seed_sd
    freedom = (cells - 1) * (seeds - 1)
    low, high = 0.0, 1.0
    while pooled_power(high, 1.0, seeds, freedom, level, alone) < power:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        enough = pooled_power(middle, 1.0, seeds, freedom, level, alone) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high * seed_sd


def pooled_power(shift: float, sd: float, n: int, freedom: float, level: float, alone: float) -> float:
    """Power of "pooled" at `level` and of "alone" at `alone` together: nearly that of the weaker.

    Args:
        shift: of the true difference beyond the null.
        sd: between seeds, of one cell; all cells have it.
        freedom: degrees of freedom of the pooled variance with n seeds.
        level, alone: one-sided, of the look at n seeds.
    """
    others = freedom - (n - 1)
    if others <= 0:
        return t_power(shift, math.sqrt(2) * sd, n, min(level, alone))
    moderated = n - 1 + min(PRIOR_FREEDOM, others)
    tests = ((freedom, level), (moderated, alone))
    return min(t_power(shift, math.sqrt(2) * sd, n, at, degrees) for degrees, at in tests)


def t_power(shift: float, spread: float, n: int, level: float, freedom: float | None = None) -> float:
    """Power of the one-sided t test on n values whose mean lies `shift` beyond the null, at this level.

    Args:
        freedom: degrees of freedom of the variance; default: n - 1.
    """
    if n < 2 or level == 0:
        return 0.0
    if spread == 0:
        return float(shift > 0 and 0.5**n <= level)
    degrees = n - 1 if freedom is None else freedom
    distance = shift / spread * math.sqrt(n)
    missed = float(nctdtr(degrees, distance, stdtrit(degrees, 1 - level)))
    # scipy finds no number for distances of 35 and more, where there is no doubt left
    return float(distance > 0) if math.isnan(missed) else 1 - missed
