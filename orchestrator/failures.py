"""Why a trial failed, as it is told: one line with what happened, where, and what helps."""

from __future__ import annotations

import errno
import re
import traceback
from datetime import UTC, datetime
from typing import Any

from orchestrator.redaction import redacted

REMEDY_FOR_MEMORY = "lower batch_size, raise gradient_cache, or run fewer at once (--max-concurrent)"
_REMEDY_FOR_LOADERS = "lower resources.loader_processes, or run fewer at once (--max-concurrent)"
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "can't start new thread",
    "bad_alloc",
    "could not create a primitive",  # oneDNN's words
)
_WRITABLE, _BACK = "make the store writable", "bring it back"
_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: _WRITABLE,
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.ENOENT: _BACK,
    errno.ENOTDIR: _BACK,
    errno.ENOTCONN: _BACK,
    errno.ESTALE: _BACK,
    errno.EIO: "look at the disk or the network that it lies on",
}
_AT_A_STEP = re.compile(r"\bstep \d")
_LONGEST = 600
"""Characters of a line that people are shown: a path and some names fit."""


class ProcessLost(Exception):
    """A process of a trial died each time it was started; says how often, and what helps."""


class EvaluationsFailed(Exception):
    """Some of a trial's evaluations could not be made; the others are committed.

    Attributes:
        errors: by the key of the evaluation.
    """

    def __init__(self, errors: dict[str, Exception]) -> None:
        super().__init__(errors)
        self.errors = errors


def failure(error: BaseException, raised: BaseException, where: str | None = None) -> dict[str, Any]:
    """A failed attempt as it is kept beside the trial: one line for people, the traceback for us.

    Args:
        error: the cause, which people are shown; a note in it of where it happened is told.
        raised: what arrived here, which may wrap it and hold the worker's traceback as text.
        where: the work stood when last heard of, such as "step 120"; told where the error itself does not.
    """
    if isinstance(error, EvaluationsFailed):
        return _of_evaluations(error, where)
    line = redacted(_remedied(error))
    where = next(iter(getattr(error, "__notes__", ())), where)
    if where and not _AT_A_STEP.search(line):
        line = f"{line} (at {where})"
    return {
        "error": line,
        "type": type(error).__name__,
        "traceback": redacted("".join(traceback.format_exception(raised))),
        "when": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def _of_evaluations(error: EvaluationsFailed, where: str | None) -> dict[str, Any]:
    """The first failure of an evaluation, with the reasons of all, and each one's own under its key."""
    told = {key: failure(own, own, where) for key, own in error.errors.items()}
    lines = {key: one["error"] for key, one in told.items()}
    first = next(iter(told.values()))
    return {**first, "error": "; ".join(dict.fromkeys(lines.values())), "evaluations": lines}


def _remedied(error: BaseException) -> str:
    """What happened and what helps, in a line."""
    text = str(error)
    if isinstance(error, ProcessLost):
        return text
    if isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY):
        return f"out of memory; {REMEDY_FOR_MEMORY}"
    if text.startswith("DataLoader worker"):  # torch has no class for it
        return f"a loader process was lost; out of memory is the usual reason: {_REMEDY_FOR_LOADERS}"
    if isinstance(error, OSError) and (told := of_the_file_system(error)):
        return told
    return (text.strip().splitlines() or [type(error).__name__])[0][:_LONGEST]


def of_the_file_system(error: OSError) -> str | None:
    """What a disk or a network refused, where, and what helps; None of an error of another kind."""
    if error.errno not in _REMEDIES:
        return None
    place = f" at {error.filename}" if error.filename else ""
    return f"{error.strerror}{place}; {_REMEDIES[error.errno]}, and the same command goes on"
