"""What the numbers of some cells say of a claim: its test, the effect with its interval, and a sentence."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.sequential import MOST_LOOKS
from orchestrator.exhibits import (
    Claim,
    CorrelationClaim,
    EquivalenceClaim,
    LevelClaim,
    MonotoneClaim,
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
)
from orchestrator.report.claims.hypotheses import (
    AllOf,
    AnyOf,
    ClaimTest,
    Hypothesis,
    OrderedLike,
    Rising,
    Verdict,
)
from orchestrator.report.claims.samples import Side
from orchestrator.report.spread import Pool
from orchestrator.report.statistics import spearman, spearman_interval, without_rounding

NO_NUMBERS = "no numbers yet"
BY_CONSTRUCTION = "one training serves both"
NOTHING_SHARED = "none: no seed in common"
FEWEST_CELLS = 4
MOST_NETWORKS = 1000


@dataclass(frozen=True)
class Comparison:
    """One of the comparisons that must all hold for a claim to hold.

    Attributes:
        cells: (study, cell) of those that it is between.
    """

    cells: tuple[tuple[str, str], ...]
    holds: Hypothesis


@dataclass(frozen=True)
class Finding:
    """A claim against the numbers, not yet judged.

    Attributes:
        method: the test in words.
        sentence: what was found, without a full stop.
        test: None where nothing can be tested.
        interval: 95 %, of `effect`, not adjusted for the number of claims.
        seeds: that took part; the fewest of any comparison.
        details: each comparison: name, and what was found.
        comparisons: of a claim that holds only if all of them do.
        by_construction: the verdict where cells are one training, so that there is nothing to test.
    """

    method: str
    sentence: str
    test: ClaimTest | None = None
    effect: float | None = None
    interval: tuple[float, float] | None = None
    unit: str = ""
    seeds: int = 0
    details: tuple[tuple[str, str], ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    by_construction: Verdict | None = None


@dataclass(frozen=True)
class Spreads:
    """What is known of the spread between seeds beyond the cells of a claim.

    Attributes:
        seed_sd: points of accuracy: assumed of a cell that has one seed.
        pools: metric -> all trained cells of the report.
    """

    seed_sd: float
    pools: Mapping[str, Pool] = field(default_factory=dict)

    def difference(self, first: Subject, second: Subject) -> Measure:
        return difference(first, second, self.seed_sd, self.pools)


def find(claim: Claim, cells: Sequence[CellNumbers], spreads: Spreads) -> Finding:
    """A claim against the numbers of its cells.

    Args:
        cells: those that the claim names, in its order; all there are where it names none.
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
                return _order(subjects, claim.margin, spreads)
            case MonotoneClaim():
                highest_first = subjects[::-1] if claim.test == "increasing" else subjects
                return _order(highest_first, 0.0, spreads)
            case EquivalenceClaim():
                return _equivalence(claim, subjects, spreads)
            case LevelClaim():
                return _level(claim, subjects)
            case TrendClaim():
                return _trend(claim, subjects)
            case PeakClaim():
                return _peak(subjects, spreads)
            case _:
                assert_never(claim)
    except NothingSharedError as lack:
        return Finding(NOTHING_SHARED, f"{lack} have no seed in common", unit=subjects[0].unit)


def _metrics(
    claim: OrderClaim | MonotoneClaim | EquivalenceClaim | LevelClaim | TrendClaim | PeakClaim,
) -> list[str]:
    match claim:
        case OrderClaim():
            return [claim.metric_of(position) for position in range(len(claim.cells))]
        case MonotoneClaim() | EquivalenceClaim() | LevelClaim() | TrendClaim() | PeakClaim():
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
    comparisons: Callable[[], Sequence[Comparison]] = tuple,
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
        tuple(comparisons()) if testable else (),
    )


def _one_training(first: Subject, second: Subject) -> bool:
    return (
        bool(first.cell.trained_by)
        and first.cell.training == second.cell.training
        and first.metric == second.metric
    )


def _by_construction(first: Subject, second: Subject, verdict: Verdict, why: str) -> Finding:
    sentence = f"{first.label} and {second.label} are one training: {why} by construction, nothing was tested"
    seeds = len(first.values)
    return Finding(
        BY_CONSTRUCTION, sentence, effect=0.0, unit=first.unit, seeds=seeds, by_construction=verdict
    )


def _between(first: Subject, second: Subject) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys((first.cell.name, second.cell.name)))


# --- the kinds of claim ---------------------------------------------------------------------------


def _order(subjects: Sequence[Subject], margin: float, spreads: Spreads) -> Finding:
    """Subjects: highest first."""
    for first, second in itertools.combinations(subjects, 2):
        if _one_training(first, second):
            return _by_construction(first, second, "contradicted", "that neither exceeds the other holds")
    steps = [spreads.difference(first, second) for first, second in itertools.pairwise(subjects)]
    least = min(steps, key=lambda step: step.effect)
    verb = "exceeds" if least.effect >= 0 else "falls short of"
    sentence = f"{least.words[0]} {verb} {least.words[1]} by {least.amount(size_only=True)}"
    sentence = f"The smallest of {len(steps)} steps: {sentence}" if len(steps) > 1 else sentence
    return _finding(
        least,
        steps,
        "{}",
        f"{sentence}, where more than {margin:g} is claimed" if margin else sentence,
        [step.detail(margin, 1) for step in steps],
        lambda: ClaimTest(
            AllOf([step.beyond(margin, 1) for step in steps]),
            AnyOf([step.beyond(margin, -1) for step in steps]),
            _most_seeds(subjects),
        ),
        lambda: [
            Comparison(_between(*pair), step.beyond(margin, 1))
            for pair, step in zip(itertools.pairwise(subjects), steps, strict=True)
        ],
    )


def _equivalence(claim: EquivalenceClaim, subjects: Sequence[Subject], spreads: Spreads) -> Finding:
    first, second = subjects
    if _one_training(first, second):
        return _by_construction(first, second, "supported", "this holds")
    gap, margin = spreads.difference(first, second), claim.margin
    return _finding(
        gap,
        [gap],
        f"two one-sided tests within ±{margin:g}: {{}}",
        f"{first.label} minus {second.label} is {gap.amount()}; ±{margin:g} counts as the same",
        [gap.detail(-margin, 1), gap.detail(margin, -1)],
        lambda: ClaimTest(
            AllOf([gap.beyond(-margin, 1), gap.beyond(margin, -1)]),
            AnyOf([gap.beyond(-margin, -1), gap.beyond(margin, 1)]),
            _most_seeds(subjects),
        ),
    )


def _most_seeds(subjects: Sequence[Subject]) -> int:
    return MOST_LOOKS if subjects[0].cell.looks else MOST_NETWORKS


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
            _most_seeds(subjects),
        ),
        lambda: [
            Comparison((subject.cell.name,), level.beyond(claim.value, side))
            for subject, level in zip(subjects, levels, strict=True)
        ],
    )


def _trend(claim: TrendClaim, subjects: Sequence[Subject]) -> Finding:
    shared = sorted(set.intersection(*(set(subject.values) for subject in subjects)))
    if not shared:
        raise NothingSharedError(f"The {len(subjects)} cells")
    values = np.array([[subject.values[seed] for subject in subjects] for seed in shared])
    blocks = without_rounding(values)
    first, last = subjects[0], subjects[-1]
    rising, falling = Rising(blocks, first.cell.looks), Rising(blocks[:, ::-1], first.cell.looks)
    change = over_seeds(last, first, shared, (last.label, first.label))
    correlation = wording.plain(float(np.mean(rising.correlations)), 2)
    sentence = (
        f"From {first.label} to {last.label} {wording.spoken(first.metric)} changes by {change.amount()}; its rank "
        f"correlation with the order of the {len(subjects)} cells is {correlation}"
    )
    means = values.mean(axis=0)
    extreme = int(means.argmax() if claim.test == "rising" else means.argmin())
    if extreme < len(subjects) - 1:
        which = "highest" if claim.test == "rising" else "lowest"
        sentence += f"; it is {which} at {subjects[extreme].label}, not at the last cell"
    sides = (rising, falling) if claim.test == "rising" else (falling, rising)
    return Finding(
        f"Page's test of a trend, not of each step, over {wording.count(len(shared), first.cell.repeat)}",
        sentence,
        ClaimTest(*sides, _most_seeds(subjects)),
        change.effect,
        change.interval,
        first.unit,
        len(shared),
        tuple(
            (subject.cell.label, wording.plain(float(value), 4))
            for subject, value in zip(subjects, means, strict=True)
        ),
    )


def _peak(subjects: Sequence[Subject], spreads: Spreads) -> Finding:
    left, *inner, right = subjects
    gaps = [(spreads.difference(one, left), spreads.difference(one, right)) for one in inner]
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
            _most_seeds(subjects),
        ),
    )


def _correlation(claim: CorrelationClaim, cells: Sequence[CellNumbers]) -> Finding:
    x, y = frame_metric(claim.x), frame_metric(claim.y)
    points: dict[object, CellNumbers] = {}
    for cell in cells:
        if cell.seeds(x) and cell.seeds(y):
            # cells that one training serves are one point
            points.setdefault(cell.training if cell.trained_by else id(cell), cell)
    if len(points) < FEWEST_CELLS:
        method = f"none: fewer than {FEWEST_CELLS} cells" if points else NO_NUMBERS
        both = f"both {wording.spoken(x)} and {wording.spoken(y)}"
        return Finding(method, f"{wording.count(len(points), 'cell')} with {both}")
    seeds = sorted({seed for cell in points.values() for seed in cell.seeds(x).keys() & cell.seeds(y).keys()})
    looks = [_means([cell.until(last) for cell in points.values()], x, y) for last in seeds]
    (xs, ys), means = (without_rounding(column) for column in looks[-1].T), looks[-1].tolist()
    rho = spearman(xs, ys)
    interval = spearman_interval(rho, len(points))
    over = f"over {len(points)} cells"
    shown = f"{wording.plain(rho, 2)}" if interval else "not defined, as one of them is constant"
    if interval:
        low, high = (wording.plain(bound, 2) for bound in interval)
        shown += f" (95 % interval {low} to {high}, {over})"
    return Finding(
        f"Spearman's rank correlation {over}",
        f"The rank correlation of {wording.spoken(x)} and {wording.spoken(y)} is {shown}",
        ClaimTest(OrderedLike(looks), OrderedLike([look * (1, -1) for look in looks])),
        rho if interval else None,
        interval,
        "",
        min(min(len(cell.seeds(x)), len(cell.seeds(y))) for cell in points.values()),
        tuple(
            (cell.label, f"{wording.plain(one, 4)}, {wording.plain(other, 4)}")
            for cell, (one, other) in zip(points.values(), means, strict=True)
        ),
    )


def _means(cells: Sequence[CellNumbers], x: str, y: str) -> NDArray[np.float64]:
    """(cells, 2) over the seeds that each cell has of both; cells without one are left out."""
    both = [(cell.seeds(x), cell.seeds(y)) for cell in cells]
    return np.array([(mean(xs.values()), mean(ys.values())) for xs, ys in both if xs and ys])
