"""`ablate run --retrain CELL`: what is finished is set aside, once for each command, however often that is repeated.

A command keeps a note of what it sets aside (<root>/retraining/<command>.json) until all of it is trained anew. Killed
and repeated, it goes on: what is trained anew by then stays, and what was not yet set aside is. Nothing is deleted: old
records lie in <root>/set_aside/, model and all.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.errors import AblateError, SpecError
from orchestrator.leases import Holder, Leases
from orchestrator.messages import did_you_mean
from orchestrator.plan import Job, Plan
from orchestrator.spec import content_key
from orchestrator.store import RECORD, Store
from trainers.files import make_folder, remove_folder, write_atomically


def chosen(plan: Plan, names: Sequence[str]) -> list[str]:
    """The keys of the trials that serve some cells, each once.

    Raises:
        SpecError: a name is of no cell of the plan.
    """
    cells = plan.cells()
    known = sorted({name for cell in cells for name in (cell.cell, cell.name)})
    keys: dict[str, None] = {}
    for name in names:
        found = [cell.trial for cell in cells if name in (cell.cell, cell.name)]
        if not found:
            raise SpecError(
                f"--retrain {name}: no such cell{did_you_mean(name, known)}; expected a cell, or study/cell, of the "
                "studies that are run"
            )
        keys |= dict.fromkeys(found)
    return list(keys)


def job(plan: Plan, key: str) -> Job:
    """The training of a trial and nothing else, for checks before anything is set aside."""
    return Job(key, plan.trials[key], True, {}, plan.resources[key], key, plan.limits[key])


def set_aside(keys: Sequence[str], store: Store) -> list[str]:
    """Set the finished ones of some trials aside, with their evaluations; a sentence for each.

    Raises:
        AblateError: another command works on one of them.
    """
    note = _note(keys, store)
    begun: dict[str, str] | None = store.read(note, _mapping)
    if begun is None:
        begun = {key: record["finished"] for key in keys if (record := store.trial_record(key))}
        make_folder(note.parent)
        write_atomically(note, json.dumps(begun))
    sentences = []
    leases = Leases(store.root, uuid.uuid4().hex[:8])
    for key, finished in begun.items():
        record = store.trial_record(key)
        if record is None or record["finished"] != finished:
            continue  # of an earlier attempt of this command: set aside already, or trained anew
        lease = leases.acquire(key)
        if isinstance(lease, Holder):
            raise AblateError(f"--retrain: trial {key} is worked on by {lease}; wait for its end")
        with lease:
            place = _move(key, store)
        sentences.append(f"trial {key} of {finished[:16]} is set aside as {place.relative_to(store.root)}")
    return sentences


def finish(keys: Sequence[str], store: Store) -> None:
    """Forget the command, once all of its trials are trained anew: the next one like it trains them again."""
    if keys and all(store.trial_record(key) for key in keys):
        _note(keys, store).unlink(missing_ok=True)


def _note(keys: Sequence[str], store: Store) -> Path:
    return store.inside(store.root / "retraining" / f"{content_key({'retrain': sorted(keys)})}.json")


def _mapping(raw: Any) -> dict[str, str]:
    return {str(key): str(value) for key, value in dict(raw).items()}


def _move(key: str, store: Store) -> Path:
    """Move a trial and its evaluations, the trial's record last: without it nothing of this counts as begun."""
    when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    place = store.inside(store.root / "set_aside" / f"{key}-{when}")
    for evaluation in store.evaluations_of(key):
        _move_files(store.evaluation_directory(evaluation), place / "evaluations" / evaluation)
    _move_files(store.trial_directory(key), place / "trial")
    return place


def _move_files(folder: Path, place: Path) -> None:
    files = sorted(_files(folder), key=lambda path: path.name == RECORD)
    for path in files:
        target = place / path.relative_to(folder)
        make_folder(target.parent)
        path.rename(target)
    remove_folder(folder)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
