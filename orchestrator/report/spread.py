"""The spread between seeds, estimated from all cells together: two or three seeds of one cell say almost nothing."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.special import fdtrc


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
    return _spread(_shares(cells))


def _spread(shares: Mapping[Hashable, _Share]) -> Spread:
    freedom = round(sum(share.freedom for share in shares.values()))
    if freedom == 0:
        return Spread(None, 0)
    return Spread(math.sqrt(sum(share.squares for share in shares.values()) / freedom), freedom)


class _Share(NamedTuple):
    """A cell's part in the sum of squared residuals and in their degrees of freedom."""

    squares: float
    freedom: float


def _shares(cells: Mapping[Hashable, Mapping[int, float]]) -> dict[Hashable, _Share]:
    values = [(cell, seed, value) for cell, seeds in cells.items() for seed, value in seeds.items()]
    if not values:
        return {}
    rows = {cell: position for position, cell in enumerate(cells)}
    columns = {seed: position for position, seed in enumerate(sorted({seed for _, seed, _ in values}))}
    design = np.zeros((len(values), len(rows) + len(columns)))
    for line, (cell, seed, _) in enumerate(values):
        design[line, rows[cell]] = design[line, len(rows) + columns[seed]] = 1
    left, sizes, _ = np.linalg.svd(design, full_matrices=False)
    basis = left[:, sizes > 1e-9 * sizes[0]]  # cell and seed terms are not independent of one another
    observed = np.array([value for _, _, value in values])
    squares = (observed - basis @ (basis.T @ observed)) ** 2
    freedom = 1 - (basis**2).sum(axis=1)
    of_cell = np.array([rows[cell] for cell, _, _ in values])
    return {
        cell: _Share(float(squares[of_cell == row].sum()), float(freedom[of_cell == row].sum()))
        for cell, row in rows.items()
    }


# --- cells that are alike ---------------------------------------------------------------------------

OUTLYING = 0.05
"""A cell is left out of the pool where its spread exceeds the others' at this level, over all cells (Bonferroni)."""


@dataclass(frozen=True)
class Pool:
    """All cells whose spread may be taken together, as seeds are added.

    Attributes:
        cells: cell -> seed -> value; cells that one training serves are given once.
    """

    cells: Mapping[Hashable, Mapping[int, float]]
    _known: dict[int, tuple[Spread, frozenset[Hashable]]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def until(self, last: int, between: tuple[Hashable, Hashable]) -> Spread:
        """From the seeds up to this one; none for a difference between cells of which one is left out."""
        if last not in self._known:
            self._known[last] = self._pooled(last)
        spread, alike = self._known[last]
        return spread if alike.issuperset(between) else Spread(None, 0)

    def _pooled(self, last: int) -> tuple[Spread, frozenset[Hashable]]:
        known = {
            cell: {seed: value for seed, value in seeds.items() if seed <= last}
            for cell, seeds in self.cells.items()
        }
        shares = _shares(known)
        outlying = _outlying(shares)
        alike = {cell: seeds for cell, seeds in known.items() if cell not in outlying}
        return pooled_spread(alike) if outlying else _spread(shares), frozenset(alike)


def outlying_cells(cells: Mapping[Hashable, Mapping[int, float]]) -> set[Hashable]:
    """Those whose spread exceeds that of all others: the F test of either's residuals, as Cochran's C test does."""
    return _outlying(_shares(cells))


def _outlying(all_shares: Mapping[Hashable, _Share]) -> set[Hashable]:
    shares = {cell: share for cell, share in all_shares.items() if share.freedom > 1e-9}
    squares, freedom = (
        (sum(column) for column in zip(*shares.values(), strict=True)) if shares else (0.0, 0.0)
    )
    outlying = set()
    for cell, share in shares.items():
        others, left = squares - share.squares, freedom - share.freedom
        if left < 1e-9 or squares == 0:
            continue
        ratio = math.inf if others <= 0 else (share.squares / share.freedom) / (others / left)
        if len(shares) * float(fdtrc(share.freedom, left, ratio)) < OUTLYING:
            outlying.add(cell)
    return outlying
