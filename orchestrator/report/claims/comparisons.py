"""A level of one cell or a difference of two, with what their seeds and images say of its uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from orchestrator.report.claims import wording
from orchestrator.report.claims.hypotheses import Beyond, OneRun, Replicates, Sample, Side

ONE_SEED = "none: one seed says nothing of the spread"
ROUNDING = 1e-9
"""Differences smaller than this share of the values are float rounding, not spread."""


@dataclass(frozen=True)
class CellNumbers:
    """What is known of a cell.

    Attributes:
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

    def seeds(self, metric: str) -> Mapping[int, float]:
        return self.values.get(metric, {})


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
        """What is asked, and effect ± half its interval with the p of its one-sided test."""
        more = ">" if side > 0 else "<"
        if len(self.words) == 1 or null:
            name = f"{f' {wording.MINUS} '.join(self.words)} {more} {wording.plain(null)}"
        else:
            name = f" {more} ".join(self.words)
        if self.sample is None:
            return name, wording.plain(self.effect)
        low, high = self.sample.interval
        half = (high - low) / 2
        (effect,) = wording.rounded((self.effect,), half, sign=len(self.words) > 1)
        (margin,) = wording.rounded((half,), half)
        return name, f"{effect} ± {margin}, {wording.p_text(self.sample.p(null, side))}"


def difference(first: Subject, second: Subject, seed_sd: float) -> Measure:
    """First minus second over the seeds that both have."""
    shared = sorted(first.values.keys() & second.values.keys())
    if not shared:
        raise NothingSharedError(f"{first.label} and {second.label}")
    words = (first.label, second.label)
    if first.metric != second.metric:
        words = (f"{first.label} ({wording.spoken(first.metric)})",
                 f"{second.label} ({wording.spoken(second.metric)})")  # fmt: skip
    if len(shared) > 1:
        return over_seeds(first, second, shared, words)
    ours = first.cell.correct(first.metric, shared[0])
    theirs = second.cell.correct(second.metric, shared[0])
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return over_seeds(first, second, shared, words)
    run = OneRun(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), len(ours), seed_sd)
    images = f"{run.images:,} images"
    method = f"McNemar on {images} of one seed, assumed spread of {seed_sd:g} points between seeds"
    return Measure(words, run.effect, run, method, f"paired over {images} of one seed", 1, first.unit)


def over_seeds(first: Subject, second: Subject, seeds: list[int], words: tuple[str, ...]) -> Measure:
    """First minus second of each seed."""
    differences = tuple(first.values[seed] - second.values[seed] for seed in seeds)
    size = max(abs(one.values[seed]) for one in (first, second) for seed in seeds)
    n, over = len(seeds), wording.count(len(seeds), first.cell.repeat)
    if n == 1:
        return Measure(words, differences[0], None, ONE_SEED, over, 1, first.unit)
    sample = Replicates(differences, ROUNDING * size)
    return Measure(
        words, sample.effect, sample, f"paired t over {over}", f"paired over {over}", n, first.unit
    )


def mean_level(subject: Subject) -> Measure:
    values = tuple(subject.values.values())
    n, over = len(values), wording.count(len(values), subject.cell.repeat)
    sample = Replicates(values, ROUNDING * max(map(abs, values))) if n > 1 else None
    method = f"t over {over}" if sample else ONE_SEED
    return Measure((subject.label,), mean(values), sample, method, over, n, subject.unit)


def without_rounding(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Values in units of their rounding, for ranks: those that differ by less are ties."""
    array = np.asarray(values, dtype=float)
    grain = ROUNDING * float(np.abs(array).max())
    return np.asarray(np.round(array / grain)) if grain else array
