"""What is known of the cells that one figure shows, and an account of what is lacking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from orchestrator.plan import PlannedCell, StudyPlan
from orchestrator.records import Arrays
from orchestrator.report.frames import Hole, Records
from orchestrator.setting import published_words
from orchestrator.spec import Study

CELL = ("study", "cell", "label")
"""Columns that every figure's table has."""
NO_ARRAYS = "its arrays are not where the records were read from"
NOT_FINITE = "not finite, so left out"


class Source:
    """Reads a figure's cells and remembers why something of them could not be had."""

    def __init__(
        self,
        plan: StudyPlan,
        member: Study,
        frame: pd.DataFrame,
        records: Records,
        missing: Sequence[Hole],
        paper: bool = True,
    ) -> None:
        """`paper`: whether the paper's values are shown."""
        self.records, self.paper = records, paper
        self.published = published_words(member.published)
        self._plan, self._member, self._frame = plan, member, frame
        self._reasons = {
            (hole.trial, hole.what): f"{hole.what.replace('_', ' ')} {hole.reason}" for hole in missing
        }
        self._lacking: dict[tuple[str, str], list[int]] = {}  # (label, reason) -> seeds

    def cell(self, name: str) -> list[PlannedCell]:
        """A cell as a figure names it, once for each seed or network."""
        study, _, cell = name.rpartition("/")
        named = (study or self._member.name, cell)
        return [planned for planned in self._plan.cells if (planned.study, planned.cell) == named]

    def every_cell(self) -> list[str]:
        """All cells of the plan, as study/cell."""
        return list(dict.fromkeys(planned.name for planned in self._plan.cells))

    def values(self, metric: str) -> dict[tuple[str, int], float]:
        """(study/cell, seed) -> value of a metric."""
        lines = self._frame[self._frame["metric"] == metric]
        return {
            (f"{study}/{cell}", seed): value
            for study, cell, seed, value in zip(
                *(lines[name].tolist() for name in ("study", "cell", "seed", "value")), strict=True
            )
        }

    def toy_arrays(self, name: str) -> tuple[PlannedCell, Arrays] | None:
        """What the networks of a cell left, without the case's prefix; None where there is nothing."""
        cell = self.cell(name)[0]
        arrays = self.records.trial_arrays(cell.trial) or {}
        prefix = f"{cell.case}/"
        own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        if own and not _of_one_run(own):
            self.lacks(cell, otherwise="its arrays are not those of toy networks")
            return None
        if not own:
            self.lacks(cell, "training", otherwise=NO_ARRAYS if cell.case is not None else "no toy networks")
            return None
        return cell, own

    def finite_networks(self, cell: PlannedCell, values: np.ndarray) -> np.ndarray:
        """Of an array (networks, ...) the networks without a nan or infinity; the others are noted."""
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            self.lacks(cell, otherwise=f"{(~finite).sum()} of {len(values)} networks are {NOT_FINITE}")
        kept: np.ndarray = values[finite]
        return kept

    def lacks(self, cell: PlannedCell, *what: str, otherwise: str) -> None:
        """Note why something of a cell is not shown.

        Args:
            what: kinds of work that would have given it; what the plan's holes say of the first counts.
            otherwise: the reason where none of these is a hole.
        """
        known = [self._reasons[cell.trial, one] for one in what if (cell.trial, one) in self._reasons]
        seeds = self.remark(cell, (known or [otherwise])[0])
        if cell.case is None and cell.seed not in seeds:
            seeds.append(cell.seed)

    def remark(self, cell: PlannedCell, reason: str) -> list[int]:
        """Note something of a cell as a whole. Returns the seeds that the note names so far."""
        return self._lacking.setdefault((cell.label, reason), [])

    def notes(self) -> tuple[str, ...]:
        """One sentence for each cell and reason."""
        return tuple(
            f"{label}{_of_seeds(seeds)}: {reason}." for (label, reason), seeds in self._lacking.items()
        )


_TOY_ARRAYS = {
    "iterations": "t",
    "weight_singular_values": "ntld",
    "embedding_spectrum": "ntd",
    "alignment": "npdd",
}
"""What figures are drawn from, and its dimensions, as in `trainers.theory.ToyResult`: t records, n networks."""


def _of_one_run(arrays: Arrays) -> bool:
    """Whether the arrays of a case have the dimensions that figures take, the same in all; the last may lack."""
    sizes: dict[str, int] = {}
    for name, dimensions in _TOY_ARRAYS.items():
        array = arrays.get(name)
        if array is None:
            if name != "alignment":
                return False
            continue
        if array.ndim != len(dimensions) or not (array.size or name == "alignment"):
            return False
        if any(sizes.setdefault(d, size) != size for d, size in zip(dimensions, array.shape, strict=True)):
            return False
    return True


def _of_seeds(seeds: list[int]) -> str:
    return f", seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else ""


def lines(cell: PlannedCell, **columns: object) -> pd.DataFrame:
    """A part of a figure's table: columns of equal length or constants, after the cell's names."""
    return pd.DataFrame({"study": cell.study, "cell": cell.cell, "label": cell.label, **columns})


def joined(parts: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """The parts below each other; with these columns even if there are none."""
    if not parts:
        return pd.DataFrame(columns=list(columns))
    return pd.concat(parts, ignore_index=True)[list(columns)]


def repeats(data: pd.DataFrame, of: str) -> tuple[int, int]:
    """How many seeds (`of`) the cells of a table have: fewest and most; 0, 0 for an empty one."""
    if data.empty:
        return 0, 0
    counts = data.groupby(["study", "cell"], sort=False)[of].nunique()
    return int(counts.min()), int(counts.max())


def repeats_text(counts: tuple[int, int], one: str = "seed") -> str:
    """(2, 3) -> "2–3 seeds"."""
    fewest, most = counts
    number = str(most) if fewest == most else f"{fewest}–{most}"
    return f"{number} {one}{'' if most == 1 else 's'}"


def noise_floor(values: pd.Series, ranks: pd.Series, squared: bool = False) -> float:
    """The least singular value that float64 tells from zero: dimension x epsilon x the largest.

    It is the tolerance of `numpy.linalg.matrix_rank`. Below it the size of a value has no meaning.

    Args:
        squared: the values are squares of singular values, so the tolerance is that of their roots.
    """
    if values.empty:
        return 0.0
    relative = float(ranks.max()) * float(np.finfo(np.float64).eps)
    floor = (relative**2 if squared else relative) * (max(float(values.max()), 0.0) or 1.0)
    return max(floor, float(np.finfo(np.float64).tiny))


def noise_text(values: pd.Series, floor: float) -> str:
    """What a caption says of values at or below the floor."""
    if not (values <= floor).any():
        return ""
    return (
        f" Values at or below {floor:.1e} are rounding of float64: their lines run through the shaded strip, at "
        "no particular height."
    )
