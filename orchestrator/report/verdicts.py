"""How verdicts on the paper's claims read: their order, signs and numbers, on every kind of page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from orchestrator.exhibits import CorrelationClaim
from orchestrator.report.claims import Judgement
from orchestrator.report.claims.findings import BY_CONSTRUCTION
from orchestrator.report.claims.hypotheses import Verdict
from orchestrator.report.claims.wording import p_text, plain, rounded, with_unit
from orchestrator.report.phrases import listed, upper_first

Origin = Literal["trained networks", "toy networks", "by construction"]
"""What decides a claim: trainings on data, the theory's toy networks, or that one training serves both of its cells."""

SIGNS: dict[Verdict, str] = {"supported": "✓", "contradicted": "✗", "undecided": "?"}
"""A sign beside each verdict's word: nothing is told by colour alone."""

HEADER = ("Claim", "Verdict", "Effect, 95 % interval", "Test", "p, adjusted", "Seeds that would decide")

LEGEND = (
    "Intervals: 95 %, of the claim alone. p: two-sided for the verdict, adjusted over the claims of one number (Holm). "
    "Both hold however often seeds were added and looked at. Undecided: the data bear out neither the claim nor its "
    "opposite."
)


@dataclass(frozen=True)
class ClaimGroup:
    """Claims of one number in the paper's list; number None: those without one."""

    number: int | None
    judgements: tuple[Judgement, ...]

    @property
    def title(self) -> str:
        return f"Claim {self.number}" if self.number is not None else "Further claims"


def groups(judgements: Sequence[Judgement]) -> list[ClaimGroup]:
    """By number, those without one last; within a group in the order of the studies."""
    numbers = {judgement.claim.group for judgement in judgements}
    return [
        ClaimGroup(number, tuple(one for one in judgements if one.claim.group == number))
        for number in sorted(numbers, key=lambda number: math.inf if number is None else number)
    ]


def unique_names(judgements: Sequence[Judgement]) -> list[str]:
    """A name for each: the claim's, with its study's where several studies have one of that name."""
    names = [judgement.claim.name for judgement in judgements]
    return [
        name if names.count(name) == 1 else f"{judgement.study}.{name}"
        for name, judgement in zip(names, judgements, strict=True)
    ]


def origin(judgement: Judgement) -> Origin:
    """What decided a claim, or is to."""
    if judgement.test == BY_CONSTRUCTION:
        return "by construction"
    claim = judgement.claim
    metrics = (claim.x, claim.y) if isinstance(claim, CorrelationClaim) else (claim.metric,)
    return "toy networks" if all(metric.startswith("theory/") for metric in metrics) else "trained networks"


def sentence(judgements: Sequence[Judgement]) -> str:
    """Of 20 claims about trained networks, 9 are supported, 2 contradicted and 9 undecided; 1 holds by construction."""
    by_origin = {name: [one for one in judgements if origin(one) == name] for name in get_args(Origin)}
    parts = [
        _counted(some, f" about {name}")
        for name, some in by_origin.items()
        if some and name != "by construction"
    ]
    if given := len(by_origin["by construction"]):
        parts.append(f"{given} {'holds' if given == 1 else 'hold'} by construction")
    said = "; ".join(parts)
    return f"{upper_first(said)}."


def _counted(judgements: Sequence[Judgement], about: str) -> str:
    counts = Counter(judgement.verdict for judgement in judgements)
    (first, number), *others = [(verdict, counts[verdict]) for verdict in SIGNS if counts[verdict]]
    if len(judgements) == 1:
        return f"the one claim{about} is {first}"
    if not others:
        return f"all {number} claims{about} are {first}"
    said = [f"{number} {'is' if number == 1 else 'are'} {first}", *(f"{n} {other}" for other, n in others)]
    return f"of {len(judgements)} claims{about}, {listed(said)}"


def verdict(judgement: Judgement) -> str:
    return f"{SIGNS[judgement.verdict]} {judgement.verdict}"


def effect(judgement: Judgement) -> tuple[str, str]:
    """The effect with its unit, and its interval; either may be empty. An interval without width tells nothing."""
    if judgement.effect is None:
        return "", ""
    low, high = judgement.ci_low, judgement.ci_high
    if low is None or high is None or low == high:
        return with_unit(plain(judgement.effect), judgement.unit), ""
    value, *ends = rounded((judgement.effect, low, high), (high - low) / 2)
    return with_unit(value, judgement.unit), f"[{ends[0]}, {ends[1]}]"


def adjusted_p(judgement: Judgement) -> str:
    """0.034, < 0.0001; empty where there is none."""
    text = "" if judgement.p_adjusted is None else p_text(judgement.p_adjusted)
    return text.removeprefix("p ").removeprefix("= ")


def seeds_needed(judgement: Judgement) -> str:
    """How many seeds would decide; a dash where that is not known, empty where the claim is decided."""
    if judgement.verdict != "undecided":
        return ""
    return "—" if judgement.seeds_needed is None else str(judgement.seeds_needed)
