"""A level of one cell or a difference of two, with what their seeds and images say of its uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.sequential import MOST_LOOKS
from orchestrator.report.claims import wording
from orchestrator.report.claims.hypotheses import Beyond, decisive_p
from orchestrator.report.claims.samples import OneRun, Replicates, Sample, Side
from orchestrator.report.spread import Pool
from orchestrator.report.statistics import ROUNDING

ONE_SEED = "none: one seed says nothing of the spread"


@dataclass(frozen=True)
class CellNumbers:
    """What is known of a cell.

    Attributes:
        name: (study, cell).
        values: metric -> seed -> value; finite.
        trained_by: seed -> the training that serves it.
        correct: of a metric and a seed: bool (M,), which validation images are right, or None.
        repeat: what its seeds are: "seed", or "network" of a theory study.
    """

    label: str
    values: Mapping[str, Mapping[int, float]]
    trained_by: Mapping[int, object] = field(default_factory=dict)
    correct: Callable[[str, int], NDArray[np.bool_] | None] = lambda metric, seed: None
    repeat: str = "seed"
    name: tuple[str, str] = ("", "")

    @property
    def training(self) -> object:
        """The same of cells that one training serves, even where one has more seeds than the other."""
        return min(self.trained_by.items(), default=self.name)

    @property
    def looks(self) -> bool:
        """Whether seeds are added while people look; toy networks come all at once."""
        return self.repeat == "seed"

    def seeds(self, metric: str) -> Mapping[int, float]:
        return self.values.get(metric, {})

    def until(self, seed: int) -> CellNumbers:
        """What was known when this was the last seed; without images, which one seed alone is judged by."""
        values = {
            metric: {one: value for one, value in seeds.items() if one <= seed}
            for metric, seeds in self.values.items()
        }
        return replace(self, values=values, correct=lambda metric, seed: None)


class NothingSharedError(Exception):
    """Cells that have no seed in common can't be paired."""


@dataclass(frozen=True)
class Subject:
    """A cell by one of its metrics."""

    cell: CellNumbers
    metric: str

    @property
    def values(self) -> Mapping[int, float]:
        return self.cell.seeds(self.metric)

    @property
    def unit(self) -> str:
        return "points" if self.metric.endswith(("/top1", "/top5")) else ""

    @property
    def label(self) -> str:
        """To put into a sentence."""
        return wording.quoted(self.cell.label)


@dataclass(frozen=True)
class Measure:
    """A level of one cell or a difference of two, with what is known of its uncertainty.

    Attributes:
        words: names to put into sentences: one cell, or two.
        sample: None where nothing is known.
        method: its test in words.
        over: what it is an average of.
    """

    words: tuple[str, ...]
    effect: float
    sample: Sample | None
    method: str
    over: str
    seeds: int
    unit: str

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.sample.interval if self.sample else None

    def beyond(self, null: float, side: Side) -> Beyond:
        assert self.sample is not None
        return Beyond(self.sample, null, side)

    def amount(self, size_only: bool = False) -> str:
        """1.6 points (95 % interval 1.2 to 2.0, paired over 3 seeds). An interval keeps the effect's own sign.

        Args:
            size_only: the sentence says which of the two is higher, so that the amount has no sign.
        """
        reverse = size_only and self.effect < 0
        shown = abs(self.effect) if reverse else self.effect
        if self.interval is None or self.interval[0] == self.interval[1]:
            note = self.over if self.interval is None else f"{self.over}, without spread"
            return f"{wording.with_unit(wording.plain(shown), self.unit)} ({note})"
        low, high = self.interval
        size, effect, *bounds = wording.rounded((shown, self.effect, low, high), (high - low) / 2)
        difference = f"difference {effect}, " if reverse else ""
        interval = f"95 % interval {' to '.join(bounds)}"
        return f"{wording.with_unit(size, self.unit)} ({difference}{interval}, {self.over})"

    def detail(self, null: float, side: Side) -> tuple[str, str]:
        """What is asked, and the effect with its interval and the p of its one-sided test."""
        more = ">" if side > 0 else "<"
        if len(self.words) == 1 or null:
            name = f"{f' {wording.MINUS} '.join(self.words)} {more} {wording.plain(null)}"
        else:
            name = f" {more} ".join(self.words)
        if self.sample is None:
            return name, wording.plain(self.effect)
        low, high = self.sample.interval
        effect, *ends = wording.rounded((self.effect, low, high), (high - low) / 2, sign=len(self.words) > 1)
        p = decisive_p(self.beyond(null, side))
        return name, f"{effect} [{', '.join(ends)}], {wording.p_text(p)}"


def difference(first: Subject, second: Subject, seed_sd: float, pools: Mapping[str, Pool]) -> Measure:
    """First minus second over the seeds that both have.

    Args:
        seed_sd: points of accuracy: assumed spread between seeds of a cell that has one seed.
        pools: metric -> all cells of the report, for the spread of cells that are compared by that metric.
    """
    shared = sorted(first.values.keys() & second.values.keys())
    if not shared:
        raise NothingSharedError(f"{first.label} and {second.label}")
    words = (first.label, second.label)
    if first.metric != second.metric:
        words = (f"{first.label} ({wording.spoken(first.metric)})",
                 f"{second.label} ({wording.spoken(second.metric)})")  # fmt: skip
    pool = pools.get(first.metric) if first.metric == second.metric else None
    if len(shared) > 1:
        return over_seeds(first, second, shared, words, pool)
    ours = first.cell.correct(first.metric, shared[0])
    theirs = second.cell.correct(second.metric, shared[0])
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return over_seeds(first, second, shared, words)
    run = OneRun(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), len(ours), seed_sd)
    images = f"{run.images:,} images"
    method = f"McNemar on {images} of one seed, assumed spread of {seed_sd:g} points between seeds"
    return Measure(words, run.effect, run, method, f"paired over {images} of one seed", 1, first.unit)


def over_seeds(
    first: Subject, second: Subject, seeds: list[int], words: tuple[str, ...], pool: Pool | None = None
) -> Measure:
    """First minus second of each seed."""
    used, over = _judged(seeds, first.cell)
    differences = tuple(first.values[seed] - second.values[seed] for seed in used)
    if len(used) == 1:
        return Measure(words, differences[0], None, ONE_SEED, over, 1, first.unit)
    size = max(abs(one.values[seed]) for one in (first, second) for seed in used)
    pair = (first.cell.training, second.cell.training)
    spreads = tuple(pool.until(seed, pair) for seed in used[1:]) if pool and first.cell.looks else ()
    sample = Replicates(differences, ROUNDING * size, spreads, first.cell.looks)
    pooled = " with pooled spread" if sample.pools else ""
    method, note = f"paired t over {over}{pooled}", f"paired over {over}"
    return Measure(words, sample.effect, sample, method, note, len(used), first.unit)


def mean_level(subject: Subject) -> Measure:
    used, over = _judged(sorted(subject.values), subject.cell)
    values = tuple(subject.values[seed] for seed in used)
    if len(used) == 1:
        return Measure((subject.label,), values[0], None, ONE_SEED, over, 1, subject.unit)
    sample = Replicates(values, ROUNDING * max(map(abs, values)), looks=subject.cell.looks)
    return Measure((subject.label,), sample.effect, sample, f"t over {over}", over, len(used), subject.unit)


def _judged(seeds: list[int], cell: CellNumbers) -> tuple[list[int], str]:
    """Those that a verdict rests on, and their number in words."""
    if not cell.looks or len(seeds) <= MOST_LOOKS:
        return seeds, wording.count(len(seeds), cell.repeat)
    return seeds[:MOST_LOOKS], f"the first {MOST_LOOKS} of {wording.count(len(seeds), cell.repeat)}"
