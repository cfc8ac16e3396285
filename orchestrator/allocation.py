"""Which seeds each cell gets, round by round: after the first ones those that an open claim needs, and no others.

All follows from the records: the rounds are gone through from the first seeds on, as far as their trainings have
ended. A command that was killed anywhere therefore goes on to where it would have come, and a training that is in the
store already counts without being made again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from orchestrator.errors import SpecError
from orchestrator.plan import Plan, StudyPlan, make_plan
from orchestrator.report.claims.numbers import named_cells
from orchestrator.report.claims.outlook import Outlook, outlooks
from orchestrator.report.frames import Records, Snapshot, cells_frame
from orchestrator.seeds import LARGEST

CellOfPlan = tuple[str, str, str]
"""Name of a study's plan, study, cell."""
Setting = tuple[str, tuple[int, ...], int]
"""Cells that one training serves at every seed: its key at the first seed, all seeds that they may get, and how many
of these come first."""
Claims = dict[str, tuple[Outlook, ...]]
"""By the name of a study's plan."""


@dataclass(frozen=True)
class Standing:
    """Where the claims of a plan stand after some rounds.

    Attributes:
        plan: all that has been asked for, the round that is under way included.
        claims: as of the last complete round; None before the first is complete.
        rounds: that are complete.
        remaining: trials of the round that is under way, but not of the first, with the fewest further seeds that
            are expected to decide a claim that waits for them.
    """

    plan: Plan
    claims: Claims | None
    rounds: int
    remaining: Mapping[str, int] = field(default_factory=dict)


class Allocation:
    """The way from first seeds to verdicts.

    Args:
        first: with the seeds that every cell gets.
        whole: with the most that any cell may get: the first ones, then the next integers.
        max_seeds: how many these are.
    """

    def __init__(self, first: Plan, whole: Plan, max_seeds: int) -> None:
        self.first, self.whole, self.max_seeds = first, whole, max_seeds
        self._seeds = {study.name: study.seeds for study in whole.studies}
        firsts = {study.name: len(study.seeds) for study in first.studies}
        self._settings: dict[CellOfPlan, Setting] = {
            (study.name, cell.study, cell.cell): (cell.trial, study.seeds, firsts[study.name])
            for study in whole.studies
            for cell in study.cells
            if cell.case is None and cell.seed == study.seeds[0]
        }
        self._looks: dict[object, Claims] = {}

    def standing(self, records: Records, lacking: Collection[str], failures: Mapping[str, str]) -> Standing:
        """Go through the rounds as far as their trainings have ended.

        Args:
            lacking: keys of trainings and evaluations that are still to be made.
            failures: trials that are not tried again, with their errors.
        """
        records = Snapshot(records)
        frames = {study.name: cells_frame(study, records) for study in self.whole.studies}
        counts = {setting: setting[2] for setting in self._settings.values()}
        claims: Claims | None = None
        remaining: dict[Setting, int] = {}
        rounds = 0
        while True:
            plan = self._plan(counts)
            if not (plan.trials.keys() | plan.evaluations.keys()).isdisjoint(lacking):
                return Standing(plan, claims, rounds, self._by_trial(counts, remaining))
            state = frozenset(counts.items()), frozenset(failures)
            if state not in self._looks:
                self._looks[state] = self._look(plan, records, failures, frames)
            claims, rounds = self._looks[state], rounds + 1
            remaining = self._wanted(claims, counts)
            if not remaining:
                return Standing(plan, claims, rounds)
            counts = {setting: number + (setting in remaining) for setting, number in counts.items()}

    def unknown(self) -> Claims:
        """Every claim before its first seeds are complete."""
        why = "its first seeds are not complete"
        return {
            study.name: tuple(
                Outlook(member.name, claim.name, "open", (), 0, None, why)
                for member in study.members
                for claim in member.claims
            )
            for study in self.whole.studies
        }

    def with_seeds(self, number: int, of: Collection[CellOfPlan] | None = None) -> Plan:
        """The plan that gives this number of seeds to all cells, or to some and the first ones to the others."""
        more = {setting for cell, setting in self._settings.items() if of is None or cell in of}
        settings = self._settings.values()
        return self._plan({one: max(number, one[2]) if one in more else one[2] for one in settings})

    def claimed(self, claims: Claims | None) -> set[CellOfPlan]:
        """Cells of claims that are not decided; of all claims before the first round is complete."""
        undecided = claims and {
            (name, one.study, one.claim)
            for name, some in claims.items()
            for one in some
            if one.state == "open"
        }
        return {
            (study.name, *cell)
            for study in self.whole.studies
            for member in study.members
            for claim in member.claims
            if undecided is None or (study.name, member.name, claim.name) in undecided
            for cell in named_cells(study, member.name, claim)
        }

    def _look(
        self,
        plan: Plan,
        records: Records,
        failures: Mapping[str, str],
        frames: Mapping[str, pd.DataFrame],
    ) -> Claims:
        """Every claim on the seeds of a plan; one with a cell that can get no further seed is hopeless.

        Args:
            failures: as of `standing`.
            frames: of all seeds, by the name of a study's plan.
        """
        claims: Claims = {}
        for study in plan.studies:
            closed = []
            for claim in outlooks(study, _part(frames[study.name], study), records, self.max_seeds):
                why = None if claim.state == "decided" else self._why_closed(study, claim, failures)
                closed.append(replace(claim, state="hopeless", cells=(), reason=why) if why else claim)
            claims[study.name] = tuple(closed)
        return claims

    def _plan(self, counts: Mapping[Setting, int]) -> Plan:
        allowed = {
            name: set(self._seeds[name[0]][: counts[setting]]) for name, setting in self._settings.items()
        }
        return self.whole.only(lambda study, cell: cell.seed in allowed[study.name, cell.study, cell.cell])

    def _wanted(self, claims: Claims, counts: Mapping[Setting, int]) -> dict[Setting, int]:
        """Settings that get their next seed: of each open claim's those that have the fewest, to stay paired."""
        wanted: dict[Setting, int] = {}
        for name, some in claims.items():
            for claim in some:
                settings = {self._settings[name, *cell] for cell in claim.cells}
                level = min((counts[setting] for setting in settings), default=self.max_seeds)
                needed = (claim.seeds_needed or self.max_seeds) - claim.seeds
                for setting in settings:
                    if counts[setting] == level < self.max_seeds:
                        wanted[setting] = min(needed, wanted.get(setting, needed))
        return wanted

    def _by_trial(self, counts: Mapping[Setting, int], remaining: Mapping[Setting, int]) -> dict[str, int]:
        """What each wanted setting's newest trial waits for."""
        newest = {
            (study.name, cell.study, cell.cell, cell.seed): cell.trial
            for study in self.whole.studies
            for cell in study.cells
        }
        return {
            newest[*cell, self._seeds[cell[0]][counts[setting] - 1]]: remaining[setting]
            for cell, setting in self._settings.items()
            if setting in remaining
        }

    def _why_closed(self, study: StudyPlan, claim: Outlook, failures: Mapping[str, str]) -> str | None:
        """Why an undecided claim gets no further seed, where it isn't for what its numbers say."""
        (stated,) = (
            one
            for member in study.members
            for one in member.claims
            if (member.name, one.name) == (claim.study, claim.claim)
        )
        cells = set(named_cells(study, claim.study, stated))
        own = [cell for cell in study.cells if (cell.study, cell.cell) in cells]
        for cell in own:
            if cell.trial in failures:
                return f"{cell.name} failed with seed {cell.seed}: {failures[cell.trial]}"
        counts = Counter((cell.study, cell.cell) for cell in own)
        if claim.cells and min(counts[cell] for cell in claim.cells) >= self.max_seeds:
            return f"undecided at the cap of {self.max_seeds} seeds"
        return None


def allocate(
    studies: Sequence[str],
    recipe: str | None,
    seeds: tuple[int, ...] | None,
    sets: tuple[str, ...],
    max_seeds: int,
) -> Allocation:
    """An allocation for studies under a recipe. Args: as of `make_plan`.

    Raises:
        SpecError: there is nothing to decide, or the first seeds are more than the most.
    """
    first = make_plan(studies, recipe, seeds, sets)
    if not any(member.claims for study in first.studies for member in study.members):
        raise SpecError(f"--until-decided: {' '.join(studies)} state no claims to decide")
    sequences = {study.name: _sequence(study.seeds, max_seeds) for study in first.studies}
    union = tuple(sorted(set().union(*sequences.values())))
    whole = make_plan(studies, recipe, union, sets)
    return Allocation(first, whole.only(lambda study, cell: cell.seed in sequences[study.name]), max_seeds)


def _sequence(first: tuple[int, ...], number: int) -> tuple[int, ...]:
    """The first seeds in ascending order, then the next integers."""
    if number < len(first):
        raise SpecError(
            f"--max-seeds: got {number}, expected at least {len(first)}, the number of first seeds"
        )
    start = max(first) + 1
    if start + number - len(first) > LARGEST + 1:
        raise SpecError(
            f"--seeds: got {max(first)}, expected a seed with {number - len(first)} more up to {LARGEST}"
        )
    return (*sorted(first), *range(start, start + number - len(first)))


def _part(frame: pd.DataFrame, study: StudyPlan) -> pd.DataFrame:
    """The lines of a frame that are of a plan's seeds."""
    kept = pd.MultiIndex.from_tuples([(cell.study, cell.cell, cell.seed) for cell in study.cells])
    return frame[pd.MultiIndex.from_frame(frame[["study", "cell", "seed"]]).isin(kept)]
