"""What more seeds can still decide, and of which cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from orchestrator.analysis.sequential import MOST_LOOKS
from orchestrator.exhibits import CorrelationClaim
from orchestrator.plan import StudyPlan
from orchestrator.report.claims.comparisons import ONE_SEED
from orchestrator.report.claims.examining import Examined, examine
from orchestrator.report.frames import Records

State = Literal["decided", "open", "hopeless"]

FORETELLS = 3
"""Seeds from which a claim may be given up: with fewer, the effect that its need is reckoned from is mostly chance."""


@dataclass(frozen=True)
class Outlook:
    """A claim and the seeds that it still needs.

    Attributes:
        state: "open": more seeds, up to the cap, can bring a verdict; "hopeless": they can't.
        cells: (study, cell), each of which needs its next seed; empty unless open.
        seeds: that the claim rests on now.
        seeds_needed: for a verdict, as far as can be foretold; None: not known, or not needed.
        reason: one phrase for the screen.
    """

    study: str
    claim: str
    state: State
    cells: tuple[tuple[str, str], ...]
    seeds: int
    seeds_needed: int | None
    reason: str


def outlooks(study: StudyPlan, cells: pd.DataFrame, records: Records, max_seeds: int) -> list[Outlook]:
    """Each claim of the study and of those that it includes, in their order.

    Args:
        cells: the study's frame, see `frames.cells_frame`; a cell without numbers counts as failed.
        max_seeds: a cell gets so many at most; a verdict rests on the first `MOST_LOOKS`.
    """
    most, alpha = min(max_seeds, MOST_LOOKS), study.study.statistics.alpha
    return [_outlook(one, most, alpha) for one in examine(study, cells, records)]


def _outlook(one: Examined, most: int, alpha: float) -> Outlook:
    state, reason = _state(one, most)
    cells = _open_cells(one, alpha) if state == "open" else ()
    return Outlook(one.study, one.claim.name, state, cells, one.finding.seeds, one.seeds_needed, reason)


def _state(one: Examined, most: int) -> tuple[State, str]:
    finding = one.finding
    if one.verdict != "undecided":
        return "decided", one.verdict
    if finding.effect is None:
        return "hopeless", finding.method
    if isinstance(one.claim, CorrelationClaim):
        return "hopeless", "needs more cells, not more seeds"
    if any(not cell.looks for cell in one.cells):
        return "hopeless", "undecided over its toy networks"
    if finding.seeds >= most:
        return "hopeless", f"undecided at the cap of {most} seeds"
    if finding.method == ONE_SEED:
        return "open", "one seed says nothing of the spread"
    if one.seeds_needed is not None and one.seeds_needed <= most:
        return "open", f"needs about {one.seeds_needed} seeds"
    if finding.seeds < FORETELLS:
        return (
            "open",
            f"too early to tell: {finding.seeds} of {FORETELLS} seeds from which its need can be foretold",
        )
    return "hopeless", f"would need more than {most} seeds"


def _open_cells(one: Examined, alpha: float) -> tuple[tuple[str, str], ...]:
    """Those of its comparisons that don't hold yet at the claim's level; where it has none, all of its cells."""
    undecided = [
        cell
        for comparison in one.finding.comparisons
        if 2 * comparison.holds.p("pooled") > one.level or 2 * comparison.holds.p("alone") > alpha
        for cell in comparison.cells
    ]
    return tuple(dict.fromkeys(undecided or [cell.name for cell in one.cells]))
