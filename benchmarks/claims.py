"""How often the judge of claims errs, and how often it sees an effect that is there.

Simulates studies through the functions that judge real ones. First table: nothing is there to be found (cells don't
differ, or differ by exactly the margin), so that any verdict is false: the rate should not exceed alpha = 0.05. Second
table: a known effect, with the power that the number of seeds needed is found by (for an equivalence a lower bound).

Command: python benchmarks/claims.py [DRAWS]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from orchestrator.exhibits import (
    Claim,
    CorrelationClaim,
    EquivalenceClaim,
    LevelClaim,
    OrderClaim,
    PeakClaim,
    TrendClaim,
)
from orchestrator.report.claims.comparisons import CellNumbers
from orchestrator.report.claims.findings import Spreads, find
from orchestrator.report.claims.hypotheses import Verdict, decide
from orchestrator.report.claims.samples import t_power

ALPHA = 0.05
SEED_SD = 0.2
MARGIN = 1.5
DISAGREEMENT = 0.2
"""Share of images on which two models' correctness differs."""

Asserted = tuple[Claim, list[CellNumbers]]
Study = Callable[[Generator], list[Asserted]]


@dataclass(frozen=True)
class Scenario:
    """A study to draw many times.

    Attributes:
        null: positions of the claims of which any verdict is false; of the others only "contradicted" is.
        outside: breaks what the tests assume; shows what that costs.
    """

    name: str
    draw: Study
    null: Sequence[int] = (0,)
    outside: bool = False


@dataclass(frozen=True)
class Effect:
    """A study of one claim with a known effect, and the chance of "supported" that is foretold (or more)."""

    name: str
    draw: Study
    foretold: float


def false_verdicts(scenario: Scenario, draws: int, seed: int = 0) -> float:
    """Share of draws with a false verdict on any claim."""
    rng, wrong = np.random.default_rng(seed), 0
    for _ in range(draws):
        verdicts = _judge(scenario.draw(rng))
        wrong += any(
            verdict == "contradicted" or (verdict == "supported" and position in scenario.null)
            for position, verdict in enumerate(verdicts)
        )
    return wrong / draws


def supported(effect: Effect, draws: int, seed: int = 0) -> float:
    """Share of draws in which the claim is supported."""
    rng = np.random.default_rng(seed)
    return sum(_judge(effect.draw(rng)) == ["supported"] for _ in range(draws)) / draws


def standard_error(rate: float, draws: int) -> float:
    return (rate * (1 - rate) / draws) ** 0.5


def _judge(study: list[Asserted]) -> list[Verdict]:
    tests = [finding.test for claim, cells in study if (finding := find(claim, cells, Spreads(SEED_SD)))]
    assert all(tests)
    return [decision.verdict for decision in decide([test for test in tests if test], ALPHA)]


# --- numbers ------------------------------------------------------------------------------------


def _cells(values: np.ndarray) -> list[CellNumbers]:
    """(cells, seeds) -> cells."""
    return [
        CellNumbers(f"cell {position}", {"linear_probe/top1": dict(enumerate(row))})
        for position, row in enumerate(values.tolist())
    ]


def seeds(
    rng: Generator, means: Sequence[float], n: int, sd: float = 0.3, shared: float = 0.5
) -> list[CellNumbers]:
    """Accuracies with a part that the cells of a seed share and a part of each cell's own."""
    common = rng.normal(0, shared, n)
    return _cells(np.array(means)[:, None] + common + rng.normal(0, sd, (len(means), n)))


def one_run(rng: Generator, difference: float, images: int, seed_sd: float) -> list[CellNumbers]:
    """Two models' correctness on the same images, from one seed each.

    Args:
        difference: points, of accuracies over all seeds and images.
        seed_sd: points, the true one.
    """
    gap = (difference + rng.normal(0, seed_sd) - rng.normal(0, seed_sd)) / 100
    both = 0.55
    chances = [both, (DISAGREEMENT + gap) / 2, (DISAGREEMENT - gap) / 2, 1 - both - DISAGREEMENT]
    kind = np.repeat(np.arange(4), rng.multinomial(images, chances))
    return [_measured("first", (kind == 0) | (kind == 1)), _measured("second", (kind == 0) | (kind == 2))]


def _measured(label: str, correct: np.ndarray) -> CellNumbers:
    accuracy = {"linear_probe/top1": {0: 100 * float(correct.mean())}}
    return CellNumbers(label, accuracy, correct=lambda metric, seed: correct)


def _named(cells: int) -> dict[str, object]:
    names = tuple(f"cell{position}" for position in range(cells))
    return {"name": "claim", "text": "text", "source": "source", "cells": names}


def order(cells: int = 2, margin: float = 0.0) -> Claim:
    return OrderClaim.model_validate(_named(cells) | {"test": "order", "margin": margin})


def equivalent(margin: float = MARGIN) -> Claim:
    return EquivalenceClaim.model_validate(_named(2) | {"test": "equivalent", "margin": margin})


def above(value: float, cells: int = 1) -> Claim:
    return LevelClaim.model_validate(
        _named(cells) | {"test": "above", "value": value, "metric": "linear_probe/top1"}
    )


def rising(cells: int) -> Claim:
    return TrendClaim.model_validate(_named(cells) | {"test": "rising", "metric": "linear_probe/top1"})


def peak(cells: int) -> Claim:
    return PeakClaim.model_validate(_named(cells) | {"test": "interior_peak"})


def correlated() -> Claim:
    fields = {"test": "correlated", "x": "linear_probe/top1", "y": "knn/top1"}
    return CorrelationClaim.model_validate(_named(0) | fields)


# --- nothing to find ----------------------------------------------------------------------------


def _flat(n: int, cells: int = 2, claim: Claim | None = None) -> Study:
    asserted = claim or order(cells)
    return lambda rng: [(asserted, seeds(rng, [60.0] * cells, n))]


def _at_the_margin(n: int) -> Study:
    return lambda rng: [(equivalent(), seeds(rng, [60.0 + MARGIN, 60.0], n))]


def _in_steps(images: int, n: int) -> Study:
    """Accuracies in steps of one image, so that differences tie."""

    def draw(rng: Generator) -> list[Asserted]:
        return [(order(), _cells(100 * rng.binomial(images, 0.94, (2, n)) / images))]

    return draw


def _same_runs(images: int, seed_sd: float, margin: float = 0.0) -> Study:
    return lambda rng: [(order(margin=margin), one_run(rng, margin, images, seed_sd))]


def _independent(rng: Generator) -> list[Asserted]:
    cells = [
        CellNumbers(f"cell {position}", {"linear_probe/top1": {0: x}, "knn/top1": {0: y}})
        for position, (x, y) in enumerate(rng.normal(size=(9, 2)).tolist())
    ]
    return [(correlated(), cells)]


def _study_of_twelve(rng: Generator) -> list[Asserted]:
    """Claims of all kinds over shared cells, none with anything to find."""
    cells = seeds(rng, [60.0] * 6 + [60.0 - MARGIN], 3)
    pairs: list[Asserted] = [(order(), [cells[0], cells[other]]) for other in range(1, 6)]
    return [
        *pairs,
        (order(3), cells[1:4]),
        (equivalent(), [cells[0], cells[6]]),
        (equivalent(), [cells[1], cells[6]]),
        (above(60.0), cells[:1]),
        (above(60.0, cells=2), cells[1:3]),
        (rising(6), cells[:6]),
        (peak(6), cells[:6]),
    ]


def _half_true(rng: Generator) -> list[Asserted]:
    """Six claims that are true by far, and six with nothing to find."""
    high, low = seeds(rng, [66.0] * 6, 3), seeds(rng, [60.0] * 12, 3)
    return [
        *((order(), [high[position], low[position]]) for position in range(6)),
        *((order(), [low[position], low[position + 6]]) for position in range(6)),
    ]


SCENARIOS = (
    *(Scenario(f"order of 2, {n} seeds", _flat(n)) for n in (2, 3, 5, 10)),
    Scenario("order of 4, 3 seeds", _flat(3, cells=4)),
    Scenario("order of 2, 3 seeds, steps of one of 360 images", _in_steps(360, 3)),
    *(
        Scenario(f"order of 2, one seed, {images:,} images, true seed spread {sd}", _same_runs(images, sd))
        for images in (500, 10_000)
        for sd in (0.0, 0.1, SEED_SD)
    ),
    Scenario("order by 5 points, one seed, 10,000 images", _same_runs(10_000, SEED_SD, margin=5.0)),
    *(Scenario(f"equivalence at the margin, {n} seeds", _at_the_margin(n)) for n in (2, 3, 5)),
    Scenario(
        "equivalence at the margin, one seed, 10,000 images",
        lambda rng: [(equivalent(), one_run(rng, MARGIN, 10_000, SEED_SD))],
    ),
    Scenario("level of 1, 3 seeds", lambda rng: [(above(60.0), seeds(rng, [60.0], 3))]),
    Scenario("level of 3, 5 seeds", lambda rng: [(above(60.0, 3), seeds(rng, [60.0] * 3, 5))]),
    *(
        Scenario(f"trend of {cells}, seeds: {n}", _flat(n, cells, rising(cells)))
        for cells, n in ((6, 1), (4, 3), (8, 3), (12, 2))
    ),
    Scenario(
        "trend of 5, 3 seeds, counts with ties",
        lambda rng: [(rising(5), _cells(rng.integers(0, 3, (5, 3)).astype(float)))],
    ),
    *(Scenario(f"peak of 9, {n} seeds", _flat(n, 9, peak(9))) for n in (2, 3, 5)),
    Scenario("rank correlation of 9 cells", _independent),
    Scenario("study of 12 claims, nothing to find", _study_of_twelve, null=range(12)),
    Scenario("study of 12 claims, 6 of them true", _half_true, null=range(6, 12)),
    Scenario(
        "outside: one seed, 10,000 images, true seed spread 0.5, not 0.2",
        _same_runs(10_000, 0.5),
        outside=True,
    ),
    Scenario(
        "outside: level of 1, 10 networks, log-normal values",
        lambda rng: [(above(float(np.exp(0.5))), _cells(rng.lognormal(0, 1, (1, 10))))],
        outside=True,
    ),
)


# --- something to find ----------------------------------------------------------------------------


def _ordered(n: int, difference: float, sd: float = 0.3) -> Effect:
    foretold = t_power(difference, sd * 2**0.5, n, ALPHA / 2)
    return Effect(
        f"order, {difference:g} points of {sd:g} spread, {n} seeds",
        lambda rng: [(order(), seeds(rng, [60.0 + difference, 60.0], n, sd))],
        foretold,
    )


def _equal(n: int, difference: float, sd: float = 0.3) -> Effect:
    sides = [t_power(MARGIN + sign * difference, sd * 2**0.5, n, ALPHA / 2) for sign in (-1, 1)]
    return Effect(
        f"equivalence, {difference:g} points of {sd:g} spread, {n} seeds",
        lambda rng: [(equivalent(), seeds(rng, [60.0 + difference, 60.0], n, sd))],
        max(0.0, sum(sides) - 1),
    )


def _single(images: int, difference: float) -> Effect:
    """Foretold by the normal distribution that the test of one seed assumes."""
    from scipy.special import ndtr, ndtri

    error = (100**2 * DISAGREEMENT / images + 2 * SEED_SD**2) ** 0.5
    surplus = (difference - 100 / images) / error + ndtri(ALPHA / 2)
    return Effect(
        f"order, {difference:g} points, one seed, {images:,} images",
        lambda rng: [(order(), one_run(rng, difference, images, SEED_SD))],
        float(ndtr(surplus)),
    )


EFFECTS = (
    _ordered(3, 0.8),
    _ordered(3, 1.6),
    _ordered(5, 0.6),
    _ordered(10, 0.4),
    _equal(3, 0.0),
    _equal(5, 0.5),
    _equal(10, 1.0),
    _single(500, 6.0),
    _single(10_000, 1.5),
    _single(50_000, 0.4),
)


def main() -> None:
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(f"{draws} draws each, alpha = {ALPHA}\n")
    print(f"{'nothing to find':<62} {'false verdicts':>15}")
    for scenario in SCENARIOS:
        rate = false_verdicts(scenario, draws)
        print(f"{scenario.name:<62} {rate:.3f} ± {standard_error(rate, draws):.3f}", flush=True)
    print(f"\n{'an effect to find':<62} {'supported':>15}  foretold")
    for effect in EFFECTS:
        rate = supported(effect, draws)
        print(
            f"{effect.name:<62} {rate:.3f} ± {standard_error(rate, draws):.3f}  {effect.foretold:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
