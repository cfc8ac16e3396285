"""A claim's estimate and interval against the number of seeds, as the places of a small picture on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.exhibits import EquivalenceClaim, LevelClaim, OrderClaim
from orchestrator.report import verdicts
from orchestrator.report.claims import Judgement, PathPoint
from orchestrator.report.claims.wording import count, plain, with_unit

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 300, 120, 46, 20, 8
"""In pixels; left and bottom are for the numbers of the axes."""
LINE = 12
"""Of text: its height in pixels."""
MOST_TICKS = 10


@dataclass(frozen=True)
class Look:
    """The claim at one number of seeds: places in pixels, from the left and from the top.

    Attributes:
        low, high: ends of its interval; None where there is none.
        label: number of seeds; empty where labels would run into each other.
    """

    x: str
    y: str
    low: str | None
    high: str | None
    label: str


@dataclass(frozen=True)
class Path:
    """A picture of how a claim came to its verdict.

    Attributes:
        ticks: (place from the top, number) of the vertical axis.
        references: places of the values that the claim is held against.
        spoken: the last look in words.
    """

    looks: tuple[Look, ...]
    ticks: tuple[tuple[str, str], ...]
    references: tuple[str, ...]
    spoken: str


def path(judgement: Judgement) -> Path | None:
    """None where there are fewer than two numbers of seeds to show, or nothing was tested."""
    points = [point for point in judgement.path if math.isfinite(point.effect)]
    if len(points) < 2 or verdicts.origin(judgement) == "by construction":
        return None
    held = references(judgement)
    low, high = _range(points, held)

    def place(value: float) -> str:
        share = (high - min(max(value, low), high)) / (high - low)
        return f"{TOP + share * (HEIGHT - TOP - BOTTOM):.1f}"

    step = (WIDTH - LEFT) / len(points)
    every = math.ceil(len(points) / MOST_TICKS)
    looks = tuple(
        Look(
            x=f"{LEFT + (position + 0.5) * step:.1f}",
            y=place(point.effect),
            low=None if point.ci_low is None else place(point.ci_low),
            high=None if point.ci_high is None else place(point.ci_high),
            label=str(point.seeds) if (len(points) - 1 - position) % every == 0 else "",
        )
        for position, point in enumerate(points)
    )
    ticks: list[tuple[str, str]] = []
    for value in (*held, low, high):  # what the claim is held against always has its number
        if all(abs(float(place(value)) - float(other)) >= LINE for other, _ in ticks):
            ticks.append((place(value), plain(value)))
    return Path(looks, tuple(ticks), tuple(map(place, held)), _spoken(judgement, points))


def references(judgement: Judgement) -> tuple[float, ...]:
    """What the effect is held against: a margin on both sides, a margin, a level, or zero."""
    claim = judgement.claim
    if isinstance(claim, EquivalenceClaim):
        return claim.margin, -claim.margin
    if isinstance(claim, OrderClaim):
        return (claim.margin,)
    return (claim.value,) if isinstance(claim, LevelClaim) else (0.0,)


def _range(points: Sequence[PathPoint], held: Sequence[float]) -> tuple[float, float]:
    """Of the axis: all estimates and the intervals but the first, which may be as wide as the world."""
    later = points[1:]
    ends = [
        end for one in later for end in (one.ci_low, one.ci_high) if end is not None and math.isfinite(end)
    ]
    values = [*(one.effect for one in points), *ends, *held]
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 1, high + 1)


def _spoken(judgement: Judgement, points: Sequence[PathPoint]) -> str:
    effect, interval = verdicts.effect(judgement)
    first, last = (count(one.seeds, "seed") for one in (points[0], points[-1]))
    start = with_unit(plain(points[0].effect), judgement.unit)
    said = f"Estimate: {start} at {first}, {effect} at {last}"
    return f"{said}, 95 % interval {interval}" if interval else said
