"""Which seeds a command is about: named ones, ranges, or every one that was trained, cell by cell."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from orchestrator.errors import SpecError
from orchestrator.plan import Plan, PlannedCell, StudyPlan, make_plan
from orchestrator.records import Record

ALL: Literal["all"] = "all"
MOST = 1000
"""As in a study's file."""
LARGEST = 2**31 - 1

_PART = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")


class SeedRecords(Protocol):
    """A store, or what MLflow holds of a study."""

    def seeds(self) -> set[int]:
        """Of every training that was ever begun."""

    def trial_record(self, key: str) -> Record | None: ...

    def trial_failure(self, key: str) -> Record | None: ...


def parse_seeds(text: str | None) -> tuple[int, ...] | Literal["all"] | None:
    """The value of `--seeds`: `0,1,2`, `0-4`, `0-4,7` or `all`; None where it is not given.

    Raises:
        SpecError: anything else.
    """
    if text is None or text == ALL:
        return text
    seeds: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise SpecError(f"--seeds: got {text!r}, expected seeds such as 0,1,2 or 0-4, or all")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last <= LARGEST:
            raise SpecError(f"--seeds: got {part.strip()!r}, expected ascending seeds from 0 to {LARGEST}")
        if last - first + len(seeds) >= MOST:
            raise SpecError(f"--seeds: got more than {MOST} seeds, expected at most {MOST}")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise SpecError(f"--seeds: got {text!r}, expected each seed once")
    return tuple(seeds)


def with_every_seed(
    studies: Sequence[str],
    recipe: str | None,
    sets: tuple[str, ...],
    records_of: Callable[[StudyPlan], SeedRecords],
) -> Plan:
    """A plan of all trainings that finished or failed, whatever seeds they have; see `make_plan`.

    Args:
        records_of: where the trainings of a study are looked for.
    """
    plain = make_plan(studies, recipe, None, sets)
    records = {study.name: records_of(study) for study in plain.studies}
    seeds = set().union(*(source.seeds() for source in records.values()))
    seeds |= {seed for study in plain.studies for seed in study.seeds}
    return settled(make_plan(studies, recipe, tuple(sorted(seeds)), sets), records.__getitem__)


def settled(plan: Plan, records_of: Callable[[str], SeedRecords]) -> Plan:
    """The part of a plan whose training finished or failed; a cell that has none keeps its first seed, as a gap.

    Args:
        records_of: by the name of a study's plan.
    """
    kept = {
        (study.name, cell.name, cell.seed)
        for study in plan.studies
        for cell in study.cells
        if _is_settled(cell, records_of(study.name))
    }
    known = {name[:2] for name in kept}
    first = {
        (study.name, cell.name): cell.seed
        for study in plan.studies
        for cell in sorted(study.cells, key=lambda cell: -cell.seed)
    }
    kept |= {(*name, seed) for name, seed in first.items() if name not in known}
    return plan.only(lambda study, cell: (study.name, cell.name, cell.seed) in kept)


def _is_settled(cell: PlannedCell, records: SeedRecords) -> bool:
    return records.trial_record(cell.trial) is not None or records.trial_failure(cell.trial) is not None
