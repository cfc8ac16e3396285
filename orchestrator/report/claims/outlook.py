"""What more seeds can still decide, and of which cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from orchestrator.exhibits import Claim, CorrelationClaim
from orchestrator.plan import StudyPlan
from orchestrator.report.claims.comparisons import ONE_SEED
from orchestrator.report.claims.judging import Judgement, judge
from orchestrator.report.frames import Records

State = Literal["decided", "open", "hopeless"]


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
        max_seeds: a cell gets so many at most.
    """
    return [_outlook(study, judgement, max_seeds) for judgement in judge(study, cells, records)]


def _outlook(study: StudyPlan, judgement: Judgement, max_seeds: int) -> Outlook:
    state, needed, reason = _state(judgement, max_seeds)
    cells = cells_of_claim(study, judgement.study, judgement.claim) if state == "open" else ()
    return Outlook(judgement.study, judgement.claim_name, state, cells, judgement.seeds, needed, reason)


def _state(judgement: Judgement, max_seeds: int) -> tuple[State, int | None, str]:
    if judgement.decided:
        return "decided", None, judgement.verdict
    if judgement.effect is None:
        return "hopeless", None, judgement.test
    if isinstance(judgement.claim, CorrelationClaim):
        return "hopeless", None, "needs more cells, not more seeds"
    if judgement.seeds >= max_seeds:
        return "hopeless", judgement.seeds_needed, f"undecided at the cap of {max_seeds} seeds"
    if judgement.test == ONE_SEED:
        return "open", None, "one seed says nothing of the spread"
    if judgement.seeds_needed is None or judgement.seeds_needed > max_seeds:
        return "hopeless", judgement.seeds_needed, f"would need more than {max_seeds} seeds"
    return "open", judgement.seeds_needed, f"needs about {judgement.seeds_needed} seeds"


def cells_of_claim(study: StudyPlan, owner: str, claim: Claim) -> tuple[tuple[str, str], ...]:
    """(study, cell) of each cell that the claim is about, once; where it names none, all of its study's."""
    if claim.cells:
        split = (name.rpartition("/") for name in claim.cells)
        return tuple(dict.fromkeys((where or owner, cell) for where, _, cell in split))
    everything = owner == study.study.name
    return tuple(
        dict.fromkeys((one.study, one.cell) for one in study.cells if everything or one.study == owner)
    )
