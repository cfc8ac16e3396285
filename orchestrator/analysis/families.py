"""Which claims bound their errors together, and what a planned number of seeds can decide of them."""

from __future__ import annotations

import math

from orchestrator.analysis.power import detectable
from orchestrator.exhibits import Claim
from orchestrator.plan import StudyPlan


def family_of(study: str, claim: Claim, toy: bool) -> str:
    """A number of the paper's list, the toy networks, or a study's claims without a number.

    Args:
        study: that states the claim.
        toy: whether it is about toy networks.
    """
    if toy:
        return "toy networks"
    return study if claim.group is None else f"claim {claim.group}"


def decidable(study: StudyPlan) -> list[str]:
    """One line a family of claims about trained cells: the smallest gap of accuracy that the planned seeds decide."""
    families: dict[str, int] = {}
    for member in study.members:
        for claim in member.claims if member.toy is None else ():
            name = family_of(member.name, claim, toy=False)
            families[name] = families.get(name, 0) + 1
    first = min(study.seeds)
    trained = {cell.trial for cell in study.cells if cell.case is None and cell.seed == first}
    statistics, seeds = study.study.statistics, _count(len(study.seeds), "seed")
    lines = []
    for name, size in families.items():
        gap = detectable(
            len(study.seeds), study.seed_sd, size, len(trained), statistics.alpha, statistics.power
        )
        decides = f"gaps from {gap:.2g} points" if math.isfinite(gap) else "no more than the first 20 do"
        lines.append(f"{name} ({_count(size, 'claim')}): {seeds} decide {decides}")
    return lines


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
