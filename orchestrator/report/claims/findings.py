"""What the numbers of some cells say of a claim: its test, the effect with its interval, and a sentence."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import assert_never

import numpy as np

from orchestrator.exhibits import (
    Claim,
    CorrelationClaim,
    EquivalenceClaim,
    LevelClaim,
    OrderClaim,
    PeakClaim,
    TrendClaim,
)
from orchestrator.measured import frame_metric
from orchestrator.report.claims import wording
from orchestrator.report.claims.comparisons import (
    ONE_SEED,
    CellNumbers,
    Measure,
    NothingSharedError,
    Subject,
    difference,
    mean_level,
    over_seeds,
    without_rounding,
)
from orchestrator.report.claims.hypotheses import (
    AllOf,
    AnyOf,
    ClaimTest,
    OrderedLike,
    Rising,
    Side,
)
from orchestrator.report.statistics import midranks, spearman, spearman_interval

NO_NUMBERS = "no numbers yet"
BY_CONSTRUCTION = "one training serves both"
NOTHING_SHARED = "none: no seed in common"
FEWEST_CELLS = 4


@dataclass(frozen=True)
class Finding:
    """A claim against the numbers, not yet judged.

    Attributes:
        method: the test in words.
        sentence: what was found, without a full stop.
        test: None where nothing can be tested.
        interval: 95 %, of `effect`, unadjusted.
        seeds: that took part; the fewest of any comparison.
        details: each comparison: name, and what was found.
    """

    method: str
    sentence: str
    test: ClaimTest | None = None
    effect: float | None = None
    interval: tuple[float, float] | None = None
    unit: str = ""
    seeds: int = 0
    details: tuple[tuple[str, str], ...] = ()


def find(claim: Claim, cells: Sequence[CellNumbers], seed_sd: float) -> Finding:
    """A claim against the numbers of its cells.

    Args:
        cells: those that the claim names, in its order; all there are where it names none.
        seed_sd: points of accuracy: assumed spread between seeds of a cell that has one seed.
    """
    if isinstance(claim, CorrelationClaim):
        return _correlation(claim, cells)
    subjects = [
        Subject(cell, frame_metric(metric)) for cell, metric in zip(cells, _metrics(claim), strict=True)
    ]
    if not all(one.values for one in subjects):
        return Finding(NO_NUMBERS, _lacking(subjects), unit=subjects[0].unit)
    try:
        match claim:
            case OrderClaim():
                return _order(claim, subjects, seed_sd)
            case EquivalenceClaim():
                return _equivalence(claim, subjects, seed_sd)
            case LevelClaim():
                return _level(claim, subjects)
            case TrendClaim():
                return _trend(claim, subjects)
            case PeakClaim():
                return _peak(subjects, seed_sd)
            case _:
                assert_never(claim)
    except NothingSharedError as lack:
        return Finding(NOTHING_SHARED, f"{lack} have no seed in common", unit=subjects[0].unit)


def _metrics(claim: OrderClaim | EquivalenceClaim | LevelClaim | TrendClaim | PeakClaim) -> list[str]:
    match claim:
        case OrderClaim():
            return [claim.metric_of(position) for position in range(len(claim.cells))]
        case EquivalenceClaim() | LevelClaim() | TrendClaim() | PeakClaim():
            return [claim.metric] * len(claim.cells)
        case _:
            assert_never(claim)


def _lacking(subjects: Sequence[Subject]) -> str:
    cells: dict[str, dict[str, None]] = {}
    for one in subjects:
        if not one.values:
            cells.setdefault(wording.spoken(one.metric), {})[one.label] = None
    return "Lacks " + " and ".join(f"{metric} of {', '.join(labels)}" for metric, labels in cells.items())


def _finding(
    shown: Measure,
    measures: Sequence[Measure],
    method: str,
    sentence: str,
    details: Sequence[tuple[str, str]],
    test: Callable[[], ClaimTest],
) -> Finding:
    """There is no test where any of the measures has no known uncertainty.

    Args:
        shown: whose effect stands for the claim.
        method: with {} where the methods of the measures go.
    """
    testable = all(one.sample for one in measures)
    methods = "; ".join(dict.fromkeys(one.method for one in measures))
    return Finding(
        method.format(methods) if testable else ONE_SEED,
        sentence,
        test() if testable else None,
        shown.effect,
        shown.interval,
        shown.unit,
        min(one.seeds for one in measures),
        tuple(details),
    )


# --- the kinds of claim ---------------------------------------------------------------------------


def _order(claim: OrderClaim, subjects: Sequence[Subject], seed_sd: float) -> Finding:
    steps = [difference(first, second, seed_sd) for first, second in itertools.pairwise(subjects)]
    least = min(steps, key=lambda step: step.effect)
    verb = "exceeds" if least.effect >= 0 else "falls short of"
    sentence = f"{least.words[0]} {verb} {least.words[1]} by {least.amount(size_only=True)}"
    sentence = f"The smallest of {len(steps)} steps: {sentence}" if len(steps) > 1 else sentence
    return _finding(
        least,
        steps,
        "{}",
        f"{sentence}, where more than {claim.margin:g} is claimed" if claim.margin else sentence,
        [step.detail(claim.margin, 1) for step in steps],
        lambda: ClaimTest(
            AllOf([step.beyond(claim.margin, 1) for step in steps]),
            AnyOf([step.beyond(claim.margin, -1) for step in steps]),
        ),
    )


def _equivalence(claim: EquivalenceClaim, subjects: Sequence[Subject], seed_sd: float) -> Finding:
    first, second = subjects
    if first.cell.trained_by and first.cell.trained_by == second.cell.trained_by:
        sentence = f"{first.label} and {second.label} are one training: this holds by construction, nothing was tested"
        return Finding(BY_CONSTRUCTION, sentence, effect=0.0, unit=first.unit, seeds=len(first.values))
    gap, margin = difference(first, second, seed_sd), claim.margin
    return _finding(
        gap,
        [gap],
        f"two one-sided tests within ±{margin:g}: {{}}",
        f"{first.label} minus {second.label} is {gap.amount()}; ±{margin:g} counts as the same",
        [gap.detail(-margin, 1), gap.detail(margin, -1)],
        lambda: ClaimTest(
            AllOf([gap.beyond(-margin, 1), gap.beyond(margin, -1)]),
            AnyOf([gap.beyond(-margin, -1), gap.beyond(margin, 1)]),
        ),
    )


def _level(claim: LevelClaim, subjects: Sequence[Subject]) -> Finding:
    side: Side
    opposite: Side
    match claim.test:
        case "above":
            side, opposite = 1, -1
        case "below":
            side, opposite = -1, 1
        case _:
            assert_never(claim.test)
    levels = [mean_level(subject) for subject in subjects]
    worst = min(levels, key=lambda level: side * level.effect)
    which = f", the {'lowest' if side > 0 else 'highest'} of {len(levels)}," if len(levels) > 1 else ""
    return _finding(
        worst,
        levels,
        f"{{}}, against {claim.value:g}",
        f"{wording.spoken(subjects[0].metric).capitalize()} of {worst.words[0]}{which} is {worst.amount()}, "
        f"where {claim.test} {claim.value:g} is claimed",
        [level.detail(claim.value, side) for level in levels],
        lambda: ClaimTest(
            AllOf([level.beyond(claim.value, side) for level in levels]),
            AnyOf([level.beyond(claim.value, opposite) for level in levels]),
        ),
    )


def _trend(claim: TrendClaim, subjects: Sequence[Subject]) -> Finding:
    shared = sorted(set.intersection(*(set(subject.values) for subject in subjects)))
    if not shared:
        raise NothingSharedError(f"The {len(subjects)} cells")
    values = np.array([[subject.values[seed] for subject in subjects] for seed in shared])
    blocks = without_rounding(values)
    rising, falling = Rising(blocks), Rising(blocks[:, ::-1])
    first, last = subjects[0], subjects[-1]
    change = over_seeds(last, first, shared, (last.label, first.label))
    correlation = wording.plain(float(np.mean(rising.correlations)), 2)
    sentence = (
        f"From {first.label} to {last.label} {wording.spoken(first.metric)} changes by {change.amount()}; its rank "
        f"correlation with the order of the {len(subjects)} cells is {correlation}"
    )
    means = [wording.plain(float(column.mean()), 4) for column in values.T]
    return Finding(
        f"Page's trend test over {wording.count(len(shared), first.cell.repeat)}",
        sentence,
        {"rising": ClaimTest(rising, falling), "falling": ClaimTest(falling, rising)}[claim.test],
        change.effect,
        change.interval,
        first.unit,
        len(shared),
        tuple((subject.cell.label, value) for subject, value in zip(subjects, means, strict=True)),
    )


def _peak(subjects: Sequence[Subject], seed_sd: float) -> Finding:
    left, *inner, right = subjects
    gaps = [(difference(one, left, seed_sd), difference(one, right, seed_sd)) for one in inner]
    smaller = [min(pair, key=lambda gap: gap.effect) for pair in gaps]
    best = max(smaller, key=lambda gap: gap.effect)
    verb = "exceeds" if best.effect >= 0 else "falls short of"
    both = [gap for pair in gaps for gap in pair]
    return _finding(
        best,
        both,
        "one inner cell against both ends: {}",
        f"{best.words[0]}, the best of {len(inner)} inner cells, {verb} the higher end, {best.words[1]}, by "
        f"{best.amount(size_only=True)}",
        [gap.detail(0, 1) for gap in both],
        lambda: ClaimTest(
            AnyOf([AllOf([gap.beyond(0, 1) for gap in pair]) for pair in gaps]),
            AnyOf([AllOf([gap.beyond(0, -1) for gap in end]) for end in zip(*gaps, strict=True)]),
        ),
    )


def _correlation(claim: CorrelationClaim, cells: Sequence[CellNumbers]) -> Finding:
    x, y = frame_metric(claim.x), frame_metric(claim.y)
    points: dict[object, CellNumbers] = {}
    for cell in cells:
        if cell.seeds(x) and cell.seeds(y):
            # cells that one training serves are one point
            points.setdefault(tuple(sorted(cell.trained_by.items())) or id(cell), cell)
    if len(points) < FEWEST_CELLS:
        method = f"none: fewer than {FEWEST_CELLS} cells" if points else NO_NUMBERS
        both = f"both {wording.spoken(x)} and {wording.spoken(y)}"
        return Finding(method, f"{wording.count(len(points), 'cell')} with {both}")
    means = [(mean(cell.seeds(x).values()), mean(cell.seeds(y).values())) for cell in points.values()]
    xs, ys = (without_rounding(column) for column in zip(*means, strict=True))
    rho = spearman(xs, ys)
    interval = spearman_interval(rho, len(points))
    ranks = tuple(midranks(xs).tolist())
    over = f"over {len(points)} cells"
    shown = f"{wording.plain(rho, 2)}" if interval else "not defined, as one of them is constant"
    if interval:
        low, high = (wording.plain(bound, 2) for bound in interval)
        shown += f" (95 % interval {low} to {high}, {over})"
    return Finding(
        f"Spearman's rank correlation {over}",
        f"The rank correlation of {wording.spoken(x)} and {wording.spoken(y)} is {shown}",
        ClaimTest(OrderedLike(ranks, tuple(ys.tolist())), OrderedLike(ranks, tuple((-ys).tolist()))),
        rho if interval else None,
        interval,
        "",
        min(min(len(cell.seeds(x)), len(cell.seeds(y))) for cell in points.values()),
        tuple(
            (cell.label, f"{wording.plain(one, 4)}, {wording.plain(other, 4)}")
            for cell, (one, other) in zip(points.values(), means, strict=True)
        ),
    )
