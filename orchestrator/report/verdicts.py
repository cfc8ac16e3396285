"""How verdicts on the paper's claims read: their order, signs and numbers, on every kind of page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from orchestrator.report import escape
from orchestrator.report.claims import Judgement
from orchestrator.report.claims.hypotheses import Verdict
from orchestrator.report.claims.wording import p_text, plain, rounded, with_unit
from orchestrator.report.phrases import listed

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


def sentence(judgements: Sequence[Judgement]) -> str:
    """Of 21 claims, 12 are supported, 2 contradicted and 7 undecided."""
    counts = Counter(judgement.verdict for judgement in judgements)
    if len(judgements) == 1:
        return f"Its one claim is {judgements[0].verdict}."
    (first, number), *others = [(verdict, counts[verdict]) for verdict in SIGNS if counts[verdict]]
    if not others:
        return f"All {number} claims are {first}."
    said = [f"{number} {'is' if number == 1 else 'are'} {first}", *(f"{n} {other}" for other, n in others)]
    return f"Of {len(judgements)} claims, {listed(said)}."


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


def console(judgements: Sequence[Judgement]) -> RichTable:
    """The verdicts for a terminal; how they came about is on the page. Texts are never read as rich markup."""
    shown = RichTable(title=Text(sentence(judgements)), box=SIMPLE_HEAD, title_justify="left")
    shown.add_column("")
    shown.add_column("Claim", ratio=1)
    for name in ("Verdict", "Effect", "Seeds that\nwould decide"):
        shown.add_column(Text(name), no_wrap=True)
    for group in groups(judgements):
        for judgement in group.judgements:
            number = "" if group.number is None else str(group.number)
            texts = (judgement.claim.text, verdict(judgement), effect(judgement)[0])
            shown.add_row(number, *(Text(escape.one_line(text)) for text in texts), seeds_needed(judgement))
    return shown
