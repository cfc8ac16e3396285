"""The spread between seeds, estimated from all cells together: two or three seeds of one cell say almost nothing."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """Standard deviation of a cell's value between seeds, without the part that all cells of a seed share.

    Attributes:
        sd: in the unit of the values; None where no degree of freedom is left.
        degrees_of_freedom: of the residuals; (cells - 1)(seeds - 1) where every cell has every seed.
    """

    sd: float | None
    degrees_of_freedom: int


def pooled_spread(cells: Mapping[Hashable, Mapping[int, float]]) -> Spread:
    """Residual standard deviation of the additive model value = cell + seed, by least squares.

    Cells of a seed share initial weights and data order, hence the seed's term. A difference of two cells within a
    seed has the standard deviation sqrt(2) sd. The estimate assumes that all cells have the same spread.

    Args:
        cells: cell -> seed -> value, finite, in any unit; not every cell needs every seed. Cells that one training
            serves are to be given once: their residuals would count twice.
    """
    values = [(cell, seed, value) for cell, seeds in cells.items() for seed, value in seeds.items()]
    rows = {cell: position for position, cell in enumerate(cells)}
    columns = {seed: position for position, seed in enumerate(sorted({seed for _, seed, _ in values}))}
    design = np.zeros((len(values), len(rows) + len(columns)))
    for line, (cell, seed, _) in enumerate(values):
        design[line, rows[cell]] = design[line, len(rows) + columns[seed]] = 1
    observed = np.array([value for _, _, value in values])
    if not values:
        return Spread(None, 0)
    fit, _, rank, _ = np.linalg.lstsq(design, observed)
    degrees_of_freedom = len(values) - int(rank)
    if degrees_of_freedom == 0:
        return Spread(None, 0)
    squares = float(((observed - design @ fit) ** 2).sum())
    return Spread(math.sqrt(squares / degrees_of_freedom), degrees_of_freedom)
