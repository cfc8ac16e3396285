"""How often verdicts on claims are false however often one looks, and how many seeds a true effect needs.

Studies are simulated through the functions that judge real ones. Up to 20 seeds a cell are drawn and every number of
seeds from 2 on is looked at; as p-values only fall with further seeds, the verdict at 20 seeds is that of a person who
adds seeds until there is one.

1. Nothing is there to be found (cells don't differ, or differ by exactly the margin): any verdict is false.
2. Seeds to a verdict at gaps of 1, 2 and 4 standard deviations between seeds: ours, a number of seeds fixed beforehand,
   looking without paying for it, and other ways of paying.
3. The pooled test: support of a 2-point gap at a spread of 0.5 within 2, 3 and 5 seeds, and false verdicts where the
   compared cells vary more than the others do.
4. A known effect, with the power that the number of seeds needed is foretold by: a lower bound.

Command: python benchmarks/claims.py [DRAWS]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import stdtr

from orchestrator.analysis.power import pooled_power, t_power
from orchestrator.analysis.sequential import MOST_LOOKS, WEIGHTS, look_level
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
from orchestrator.report.claims.comparisons import CellNumbers
from orchestrator.report.claims.findings import Spreads, find
from orchestrator.report.claims.hypotheses import Verdict, decide
from orchestrator.report.claims.numbers import pools

ALPHA = 0.05
SEED_SD = 0.2
MARGIN = 1.5
DISAGREEMENT = 0.2
"""Share of images on which two models' correctness differs."""
ACCURACY = "linear_probe/top1"

Asserted = tuple[Claim, list[CellNumbers]]


@dataclass(frozen=True)
class Study:
    """Claims of one family.

    Attributes:
        report: all cells whose spread is taken together; empty: each comparison has its own two.
    """

    claims: list[Asserted]
    report: Sequence[CellNumbers] = ()

    def verdicts(self, n: int = MOST_LOOKS) -> list[Verdict]:
        """After the first n seeds."""
        spreads = Spreads(SEED_SD, pools(_first(self.report, n)))
        tests = [find(claim, _first(cells, n), spreads).test for claim, cells in self.claims]
        assert all(tests)
        return [decision.verdict for decision in decide([test for test in tests if test], ALPHA)]


def _first(cells: Sequence[CellNumbers], n: int) -> list[CellNumbers]:
    return list(cells) if n == MOST_LOOKS else [cell.until(n - 1) for cell in cells]


Draw = Callable[[Generator], Study]


@dataclass(frozen=True)
class Scenario:
    """A study to draw many times.

    Attributes:
        null: positions of the claims of which any verdict is false; of the others only "contradicted" is.
        outside: breaks what the tests assume; shows what that costs.
    """

    name: str
    draw: Draw
    null: Sequence[int] = (0,)
    outside: bool = False


@dataclass(frozen=True)
class Effect:
    """A study of one claim with a known effect, and the chance of "supported" that is foretold (or more)."""

    name: str
    draw: Draw
    foretold: float


def false_verdicts(scenario: Scenario, draws: int, seed: int = 0) -> float:
    """Share of draws with a false verdict on any claim."""
    rng, wrong = np.random.default_rng(seed), 0
    for _ in range(draws):
        verdicts = scenario.draw(rng).verdicts()
        wrong += any(
            verdict == "contradicted" or (verdict == "supported" and position in scenario.null)
            for position, verdict in enumerate(verdicts)
        )
    return wrong / draws


def supported(effect: Effect, draws: int, seed: int = 0) -> float:
    """Share of draws in which the claim is supported."""
    rng = np.random.default_rng(seed)
    return sum(effect.draw(rng).verdicts()[0] == "supported" for _ in range(draws)) / draws


def standard_error(rate: float, draws: int) -> float:
    return float((rate * (1 - rate) / draws) ** 0.5)


# --- numbers ------------------------------------------------------------------------------------


def _cells(values: np.ndarray) -> list[CellNumbers]:
    """(cells, seeds) -> cells."""
    return [
        CellNumbers(f"cell {position}", {ACCURACY: dict(enumerate(row))}, name=("study", f"cell {position}"))
        for position, row in enumerate(values.tolist())
    ]


def seeds(
    rng: Generator,
    means: Sequence[float],
    n: int = MOST_LOOKS,
    sd: float | Sequence[float] = 0.3,
    shared: float = 0.5,
) -> list[CellNumbers]:
    """Accuracies with a part that the cells of a seed share and a part of each cell's own.

    Args:
        sd: between seeds, of all cells or of each.
    """
    common = rng.normal(0, shared, n)
    own = rng.normal(0, 1, (len(means), n)) * np.broadcast_to(sd, len(means))[:, None]
    return _cells(np.array(means)[:, None] + common + own)


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


def increasing(cells: int) -> Claim:
    return MonotoneClaim.model_validate(_named(cells) | {"test": "increasing"})


def rising(cells: int) -> Claim:
    return TrendClaim.model_validate(_named(cells) | {"test": "rising", "metric": "linear_probe/top1"})


def peak(cells: int) -> Claim:
    return PeakClaim.model_validate(_named(cells) | {"test": "interior_peak"})


def correlated() -> Claim:
    fields = {"test": "correlated", "x": "linear_probe/top1", "y": "knn/top1"}
    return CorrelationClaim.model_validate(_named(0) | fields)


# --- nothing to find ----------------------------------------------------------------------------


def _flat(cells: int = 2, claim: Claim | None = None, report: int = 0) -> Draw:
    """Cells without a difference, as the first of all those of a report that is larger."""
    asserted = claim or order(cells)

    def draw(rng: Generator) -> Study:
        everything = seeds(rng, [60.0] * max(cells, report))
        return Study([(asserted, everything[:cells])], everything if report else ())

    return draw


def _in_steps(rng: Generator) -> Study:
    """Accuracies in steps of one of 360 images, so that differences tie."""
    return Study([(order(), _cells(100 * rng.binomial(360, 0.94, (2, MOST_LOOKS)) / 360))])


def _one_run_then_seeds(images: int, seed_sd: float, margin: float = 0.0) -> Draw:
    """Looks at one seed, image by image, and as another claim that any look counts, at 2 .. 20 seeds of the same."""

    def draw(rng: Generator) -> Study:
        first = one_run(rng, margin, images, seed_sd)
        gap = first[0].values[ACCURACY][0] - first[1].values[ACCURACY][0]
        # later seeds have the same images: the truth over seeds is that of these images
        noise = 100 * (DISAGREEMENT / images) ** 0.5
        later = margin + rng.normal(0, (2 * seed_sd**2 + noise**2) ** 0.5, MOST_LOOKS - 1)
        over_seeds = _cells(np.array([[gap, *later], [0.0] * MOST_LOOKS]))
        return Study([(order(margin=margin), first), (order(margin=margin), over_seeds)])

    return draw


def _independent(rng: Generator) -> Study:
    truth = rng.normal(size=(9, 2, 1)) + 0.5 * rng.normal(size=(9, 2, MOST_LOOKS))
    cells = [
        CellNumbers(f"cell {position}", {ACCURACY: dict(enumerate(x)), "knn/top1": dict(enumerate(y))})
        for position, (x, y) in enumerate(truth.tolist())
    ]
    return Study([(correlated(), cells)])


def _family_of_eight(rng: Generator) -> Study:
    """Claims of all kinds over shared cells, none with anything to find."""
    cells = seeds(rng, [60.0] * 6 + [60.0 - MARGIN])
    return Study(
        [
            *((order(), [cells[0], cells[other]]) for other in range(1, 4)),
            (order(3), cells[1:4]),
            (equivalent(), [cells[0], cells[6]]),
            (above(60.0), cells[:1]),
            (rising(5), cells[:5]),
            (peak(4), cells[:4]),
        ],
        cells,
    )


def _half_true(rng: Generator) -> Study:
    """Four claims that are true by far, and four with nothing to find."""
    cells = seeds(rng, [66.0] * 4 + [60.0] * 8)
    return Study(
        [
            *((order(), [cells[position], cells[position + 4]]) for position in range(4)),
            *((order(), [cells[position + 4], cells[position + 8]]) for position in range(4)),
        ],
        cells,
    )


def _wider(ratio: float, cells: int = 8, claims: int = 1) -> Draw:
    """The compared pair varies more than the other cells; the family's other claims are true by far."""

    def draw(rng: Generator) -> Study:
        means = [60.0, 60.0] + [50.0 - 5 * position for position in range(cells - 2)]
        everything = seeds(rng, means, sd=[0.5 * ratio] * 2 + [0.5] * (cells - 2))
        clear = [(order(), [everything[k], everything[k + 1]]) for k in range(2, claims + 1)]
        return Study([(order(), everything[:2]), *clear], everything)

    return draw


SCENARIOS = (
    Scenario("order of 2", _flat()),
    Scenario("order of 2 in a report of 8 cells", _flat(report=8)),
    Scenario("order of 4 in a report of 8 cells", _flat(4, report=8)),
    Scenario("order of 2, steps of one of 360 images", _in_steps),
    *(
        Scenario(
            f"order of 2, looks from one seed on, {images:,} images, spread {sd}",
            _one_run_then_seeds(images, sd),
            (0, 1),
        )
        for images, sd in ((500, SEED_SD), (10_000, 0.0), (10_000, SEED_SD))
    ),
    Scenario(
        "equivalence at the margin", lambda rng: Study([(equivalent(), seeds(rng, [60.0 + MARGIN, 60.0]))])
    ),
    Scenario("level of 1", lambda rng: Study([(above(60.0), seeds(rng, [60.0]))])),
    Scenario("level of 3", lambda rng: Study([(above(60.0, 3), seeds(rng, [60.0] * 3))])),
    Scenario("each step of 3, report of 8 cells", _flat(3, increasing(3), report=8)),
    *(Scenario(f"trend of {cells}", _flat(cells, rising(cells))) for cells in (4, 6)),
    Scenario(
        "trend of 5, counts with ties",
        lambda rng: Study([(rising(5), _cells(rng.integers(0, 3, (5, MOST_LOOKS)).astype(float)))]),
    ),
    Scenario("peak of 5, report of 8 cells", _flat(5, peak(5), report=8)),
    Scenario("rank correlation of 9 cells", _independent),
    Scenario("family of 8 claims, nothing to find", _family_of_eight, null=range(8)),
    Scenario("family of 8 claims, 4 of them true", _half_true, null=range(4, 8)),
    *(Scenario(f"pair with {ratio} times the others' spread, 8 cells", _wider(ratio)) for ratio in (1, 2)),
    Scenario("pair with 2 times the others' spread, 4 cells", _wider(2, cells=4)),
    Scenario("pair with 2 times the others' spread, family of 4", _wider(2, claims=4)),
    *(
        Scenario(f"outside: pair with {ratio} times the others' spread, 8 cells", _wider(ratio), outside=True)
        for ratio in (3, 5)
    ),
    Scenario(
        "outside: one seed, 10,000 images, true seed spread 0.5, not 0.2",
        lambda rng: Study([(order(), one_run(rng, 0.0, 10_000, 0.5))]),
        outside=True,
    ),
    Scenario(
        "outside: level of 1, log-normal values",
        lambda rng: Study([(above(float(np.exp(0.5))), _cells(rng.lognormal(0, 1, (1, MOST_LOOKS))))]),
        outside=True,
    ),
)


# --- seeds to a verdict ---------------------------------------------------------------------------

Rule = Callable[[NDArray[np.float64]], NDArray[np.bool_]]
"""(draws, 20) differences -> (draws, 19), whether the look at 2, 3, .. seeds finds them positive."""
LATER = np.arange(2, MOST_LOOKS + 1)


def t_paths(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """(draws, 20) -> (draws, 19), Student's t after 2, 3, .. seeds."""
    n = np.arange(1, MOST_LOOKS + 1)
    means = np.cumsum(differences, axis=1) / n
    squares = np.cumsum(differences**2, axis=1) - n * means**2
    return np.asarray(means[:, 1:] / np.sqrt(squares[:, 1:] / (LATER - 1) / LATER))


def _at_levels(levels: NDArray[np.float64]) -> Rule:
    return lambda differences: np.asarray(stdtr(LATER - 1.0, -t_paths(differences)) <= levels)


def _e_process(differences: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Right-Haar mixture over effects of either sign, normal with variance 4; refuses at 1 / alpha."""
    t, n, prior = t_paths(differences), LATER, 4.0
    ratio = np.log1p(t**2 / (n - 1)) - np.log1p(t**2 / ((n - 1) * (1 + n * prior)))
    return np.asarray((n / 2 * ratio - np.log1p(n * prior) / 2 >= -np.log(ALPHA)) & (t > 0))


RULES: dict[str, Rule] = {
    "ours, strict test": _at_levels(np.array([look_level(n, ALPHA / 2) for n in LATER.tolist()])),
    "looking without paying": _at_levels(np.full(len(LATER), ALPHA / 2)),
    "Bonferroni over 2 .. 20 seeds": _at_levels(ALPHA / 2 * np.array(WEIGHTS[1:]) / sum(WEIGHTS[1:])),
    "e-process": _e_process,
}


def _seeds_spent(hits: NDArray[np.bool_]) -> tuple[float, float]:
    """Share of draws with a verdict by 20 seeds, and mean seeds, 20 without one."""
    decided = hits.any(axis=1)
    return float(decided.mean()), float(np.where(decided, LATER[hits.argmax(axis=1)], MOST_LOOKS).mean())


def _of_ours(gap: float, draws: int, family: int) -> tuple[float, float]:
    """Within a report of 8 cells, through the judge itself."""
    rng, hits = np.random.default_rng(1), np.zeros((draws, len(LATER)), dtype=bool)
    for draw in range(draws):
        study = _gap_study(rng, gap, family)
        for position, n in enumerate(LATER.tolist()):
            if study.verdicts(n)[0] == "supported":
                hits[draw, position] = True
                break
    return _seeds_spent(hits)


def _gap_study(rng: Generator, gap: float, family: int = 1, sd: float = 1.0) -> Study:
    """A gap in units of the spread; the family's other claims are about cells that don't differ."""
    cells = seeds(rng, [60.0 + gap * sd, *[60.0] * 7], sd=sd)
    flat = [(order(), cells[position : position + 2]) for position in range(1, family)]
    return Study([(order(), cells[:2]), *flat], cells)


def print_seeds_to_a_verdict(draws: int) -> None:
    gaps, paths = (1.0, 2.0, 4.0), 100 * draws
    rng = np.random.default_rng(0)
    null = rng.normal(0, 2**0.5, (paths, MOST_LOOKS))
    title = "seeds to a verdict (share with one by 20), gap in seed sd"
    print(f"{title:<58} {'false':>6} " + "".join(f"{gap:>14g}" for gap in gaps))
    for name, rule in RULES.items():
        false = float((rule(null) | rule(-null)).any(axis=1).mean())
        spent = [_seeds_spent(rule(gap + rng.normal(0, 2**0.5, (paths // 5, MOST_LOOKS)))) for gap in gaps]
        _print_spent(name, f"{false:6.3f}", spent)
    for family in (1, 4):
        spent = [_of_ours(gap, draws // 4, family) for gap in gaps]
        _print_spent(f"ours, 8 cells pooled, family of {family}", "", spent)
    fixed = [next(n for n in range(2, 100) if t_power(gap, 2**0.5, n, ALPHA / 2) >= 0.8) for gap in gaps]
    shares = [(t_power(gap, 2**0.5, n, ALPHA / 2), float(n)) for gap, n in zip(gaps, fixed, strict=True)]
    _print_spent("number fixed beforehand for a power of 0.8", f"{ALPHA:6.3f}", shares)


def _print_spent(name: str, false: str, spent: Sequence[tuple[float, float]]) -> None:
    print(
        f"{name:<58} {false:>6} " + "".join(f"{mean:7.1f} ({share:.2f})" for share, mean in spent), flush=True
    )


def print_support_of_two_points(draws: int) -> None:
    title = "support of a 2-point gap, spread 0.5, within"
    print(f"\n{title:<58} {'2 seeds':>8} {'3 seeds':>8} {'5 seeds':>8}")
    for family in (1, 4):
        rates = []
        for n in (2, 3, 5):
            rng = np.random.default_rng(2)
            studies = [_gap_study(rng, 4.0, family, 0.5) for _ in range(draws)]
            rates.append(float(np.mean([study.verdicts(n)[0] == "supported" for study in studies])))
        _print_rates(f"ours, 8 cells pooled, family of {family}", rates)
    gaps = 2 + np.random.default_rng(3).normal(0, 0.5 * 2**0.5, (20_000, MOST_LOOKS))
    for name in ("ours, strict test", "looking without paying"):
        hits = RULES[name](gaps)
        _print_rates(name, [float(hits[:, : n - 1].any(axis=1).mean()) for n in (2, 3, 5)])


def _print_rates(name: str, rates: Sequence[float]) -> None:
    print(f"{name:<58}" + "".join(f"{rate:9.2f}" for rate in rates), flush=True)


# --- something to find ----------------------------------------------------------------------------


def _ordered(n: int, difference: float, sd: float = 0.3) -> Effect:
    return Effect(
        f"order, {difference:g} points of {sd:g} spread, {n} seeds",
        lambda rng: Study([(order(), seeds(rng, [60.0 + difference, 60.0], n, sd))]),
        t_power(difference, sd * 2**0.5, n, look_level(n, ALPHA / 2)),
    )


def _pooled(n: int, difference: float, sd: float = 0.3) -> Effect:
    def draw(rng: Generator) -> Study:
        cells = seeds(rng, [60.0 + difference, *[60.0] * 7], n, sd)
        return Study([(order(), cells[:2])], cells)

    level = look_level(n, ALPHA / 2)
    foretold = pooled_power(difference, sd, n, 7 * (n - 1), level, level)
    return Effect(f"order, {difference:g} points of {sd:g} spread, {n} seeds, 8 cells", draw, foretold)


def _equal(n: int, difference: float, sd: float = 0.3) -> Effect:
    level = look_level(n, ALPHA / 2)
    sides = [t_power(MARGIN + sign * difference, sd * 2**0.5, n, level) for sign in (-1, 1)]
    return Effect(
        f"equivalence, {difference:g} points of {sd:g} spread, {n} seeds",
        lambda rng: Study([(equivalent(), seeds(rng, [60.0 + difference, 60.0], n, sd))]),
        max(0.0, sum(sides) - 1),
    )


def _single(images: int, difference: float) -> Effect:
    """Foretold by the normal distribution that the test of one seed assumes."""
    from scipy.special import ndtr, ndtri

    error = (100**2 * DISAGREEMENT / images + 2 * SEED_SD**2) ** 0.5
    surplus = (difference - 100 / images) / error + ndtri(look_level(1, ALPHA / 2))
    return Effect(
        f"order, {difference:g} points, one seed, {images:,} images",
        lambda rng: Study([(order(), one_run(rng, difference, images, SEED_SD))]),
        float(ndtr(surplus)),
    )


EFFECTS = (
    _ordered(3, 1.6),
    _ordered(5, 0.9),
    _ordered(10, 0.5),
    _pooled(2, 1.6),
    _pooled(3, 1.2),
    _pooled(5, 0.8),
    _equal(3, 0.0),
    _equal(5, 0.5),
    _equal(10, 1.0),
    _single(500, 8.0),
    _single(10_000, 2.0),
)


def main() -> None:
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(f"{draws} draws each, alpha = {ALPHA}\n")
    print(f"{'nothing to find, every look from 2 to 20 seeds':<66} {'false verdicts':>15}")
    for scenario in SCENARIOS:
        rate = false_verdicts(scenario, draws)
        print(f"{scenario.name:<66} {rate:.3f} ± {standard_error(rate, draws):.3f}", flush=True)
    print()
    print_seeds_to_a_verdict(draws)
    print_support_of_two_points(draws // 2)
    print(f"\n{'an effect to find':<62} {'supported':>15}  foretold, at least")
    for effect in EFFECTS:
        rate = supported(effect, draws)
        print(
            f"{effect.name:<62} {rate:.3f} ± {standard_error(rate, draws):.3f}  {effect.foretold:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
