"""What one MLflow run should hold, as plain data, and a hash that tells whether it does already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

VERSION = 1
"""Part of every hash: raised when runs should be written anew though their records are the same."""

TAG_LIMIT = 8000

Point = tuple[str, float, int, int]
"""Metric, value, milliseconds since 1970, step."""


@dataclass(frozen=True)
class Artifact:
    """A file of a run, made only when it is to be written.

    Attributes:
        identity: equal for equal contents, so that what was written before is known to be right.
        make: the content; None: there is none after all.
    """

    identity: str
    make: Callable[[], str | bytes | None]


@dataclass(frozen=True)
class RunContent:
    """What one run should hold.

    Attributes:
        key: the trial's key; empty for the parent.
        status: MLflow's word: FINISHED, FAILED or RUNNING (incomplete).
        start, end: milliseconds since 1970; None: not known, or not yet.
        metrics: values with their time, of which the last written counts.
        artifacts: by their path.
    """

    key: str
    name: str
    status: str
    start: int | None
    end: int | None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        content = [self.name, self.status, self.start, self.end, self.params, self.tags, self.metrics]
        return digest([VERSION, *content, {path: file.identity for path, file in self.artifacts.items()}])


def milliseconds(stamp: str) -> int:
    """An ISO 8601 time with zone as milliseconds since 1970."""
    when = datetime.fromisoformat(stamp)
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def canonical(value: Any) -> str:
    """Plain data as JSON, the same text for equal data."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def digest(value: Any) -> str:
    """Of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
