"""Whether records that are reused were made of the data and by the code that are here now."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from orchestrator.plan import Plan, PlannedCell
from orchestrator.records import Record
from orchestrator.software import code, code_of_commit
from trainers.config import DataConfig, TrialConfig

_NAMED = 3
"""So many cells are named in a sentence; of more their number is given."""


class TrialRecords(Protocol):
    """Where records of trials are read from."""

    def trial_record(self, key: str) -> Record | None: ...


@dataclass(frozen=True)
class Reused:
    """A record of a training, and the cells that show it.

    Attributes:
        data: where the plan has the data now; None: as the record says.
    """

    cells: tuple[str, ...]
    record: Record
    data: DataConfig | None = None


def reused(plan: Plan, cells: Iterable[PlannedCell], records: TrialRecords) -> list[Reused]:
    """The finished trainings and toy networks among some cells of a plan."""
    names: dict[str, list[str]] = {}
    for cell in cells:
        names.setdefault(cell.trial, []).append(cell.name)
    found = []
    for key, shown in names.items():
        config = plan.trials[key]
        data = config.data if isinstance(config, TrialConfig) else None
        if record := records.trial_record(key):
            found.append(Reused(tuple(dict.fromkeys(shown)), record, data))
    return found


def different_data(records: list[Reused]) -> list[str]:
    """A sentence for each data set that records of one report were trained on two versions of."""
    versions: dict[str, dict[str, list[Reused]]] = {}
    for one in records:
        if data := _data_of(one.record):
            alike = data.model_dump_json(exclude={"root"})
            fingerprint = one.record["dataset"]["fingerprint"]
            versions.setdefault(alike, {}).setdefault(fingerprint, []).append(one)
    sentences = []
    for found in versions.values():
        if len(found) > 1:
            (first, some), (second, others) = list(found.items())[:2]
            sentences.append(
                f"data {_name(some[0].record)!r} had other contents when {_cells(some)} was trained than when "
                f"{_cells(others)} was (sha256 {first[:8]} against {second[:8]}): their numbers do not compare; bring "
                "the data back as they were, or train the older anew with `ablate run --retrain CELL`"
            )
    return sentences


def changed_data(records: list[Reused]) -> list[str]:
    """A sentence for each data set whose contents here are not those that a record was trained on.

    Data are read only where their signature is not the recorded one.
    """
    groups: dict[tuple[str, str, str | None], list[Reused]] = {}
    for one in records:
        if data := _data_of(one.record):
            told = one.record["dataset"]
            now = data if one.data is None else data.model_copy(update={"root": one.data.root})
            group = (now.model_dump_json(), told["fingerprint"], told.get("signature"))
            groups.setdefault(group, []).append(one)
    sentences = []
    for (data_json, fingerprint, signature), found in groups.items():
        here = _contents(DataConfig.model_validate_json(data_json), fingerprint, signature)
        if here is not None:
            sentences.append(
                f"data {_name(found[0].record)!r} has other contents than when {_cells(found)} was trained "
                f"(sha256 {here[:8]} against {fingerprint[:8]}): numbers are those of the old contents; bring them "
                "back, or train anew with `ablate run --retrain CELL`"
            )
    return sentences


def changed_code(records: list[Reused]) -> list[str]:
    """A sentence where the code under trainers/ is not that by which records were made."""
    here = code()
    stale = [one for one in records if (made := _code_of(one.record)) is not None and made != here]
    if not stale:
        return []
    made = ", ".join(dict.fromkeys(str(_code_of(one.record)) for one in stale))
    return [
        f"trainers/ has changed since {_cells(stale)} was trained (code {here} here, {made} there): numbers are "
        "those of the code before; if the change moves them, train anew with `ablate run --retrain CELL`"
    ]


def _contents(data: DataConfig, fingerprint: str, signature: str | None) -> str | None:
    """The fingerprint of the data here, if it is another; None where it is not, or where nobody can tell cheaply."""
    from trainers.data.signature import signature as signature_of

    now = signature_of(data)
    if now is None or now == signature or (signature is None and data.kind in ("imagefolder", "glyphs")):
        return None
    from trainers.data.datasets import DataError, load_dataset

    try:
        here = load_dataset(data).fingerprint()
    except (DataError, OSError):
        return None  # said where data are needed
    return here if here != fingerprint else None


def _data_of(record: Record) -> DataConfig | None:
    """The data of a training's record, whoever wrote it."""
    if record.get("kind") != "trial":
        return None
    try:
        return DataConfig.model_validate_json(json.dumps(record["config"].get("data")))
    except ValidationError:
        return None


def _name(record: Record) -> str:
    return str(record["dataset"]["name"])


def _code_of(record: Record) -> str | None:
    """The digest of the code that made a record; of older records by their commit, where that is known here."""
    environment = record["environment"]
    if made := environment.get("code"):
        return str(made)
    return code_of_commit(commit) if (commit := environment.get("commit")) else None


def _cells(records: list[Reused]) -> str:
    names = list(dict.fromkeys(name for one in records for name in one.cells))
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
