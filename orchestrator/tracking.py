"""Records -> MLflow, idempotent: an experiment per study, a parent per study@recipe, a child per trial.

MLflow is a projection: it can be deleted and written anew from the store. It is written only through
`MlflowClient`, by one process at a time, and never stands in the way of a training.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import math
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from orchestrator.leases import Holder, Leases
from orchestrator.mlflow_access import (
    FILES,
    TrackedRecords,
    TrackingError,
    all_runs,
    connect,
    create_once,
    delete_tag,
    is_remote,
    translated_errors,
)
from orchestrator.plan import Plan, StudyPlan
from orchestrator.projection import Artifact, Point, RunContent, children, history_points, parent
from orchestrator.report.content import make_report
from orchestrator.report.frames import Snapshot
from orchestrator.store import Store
from trainers.locations import is_local

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["SyncResult", "TrackedRecords", "Tracker", "TrackingError", "default_uri"]

_BATCH = 1000
_BATCH_OF_TAGS = 100
"""What MLflow takes in one call: points, and tags or parameters."""

_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Has MLflow's pages show trainings, not language-model traces."""

_WRITING = hashlib.sha256(b"mlflow").hexdigest()[:20]
"""Lease of whoever writes to MLflow from a store at a URL."""

_IDENTITY = ("kind", "study", "trial_key")
"""Tags that a run is born with, so that an interrupted sync finds it again."""


@dataclass(frozen=True)
class SyncResult:
    """Numbers of runs, the parent included."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0

    def __add__(self, other: SyncResult) -> SyncResult:
        return SyncResult(
            self.created + other.created, self.updated + other.updated, self.unchanged + other.unchanged
        )


def default_uri(store: Store) -> str:
    """The database inside a store; of one at a URL, in the user's cache: `ablate sync` makes it anew elsewhere."""
    path = str(store.on_this_machine / "mlflow.db").replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}"


class Tracker:
    """Writes studies of one store into one MLflow."""

    def __init__(self, uri: str, store: Store) -> None:
        self.uri = uri
        self.store = store

    def prepare(self) -> None:
        """Import MLflow and make its database: seconds that may pass before the first sync.

        Raises:
            TrackingError: MLflow can't be reached.
        """
        with _one_writer(self.store), translated_errors(self.uri):
            connect(self.uri)

    def sync(self, plan: Plan, study: StudyPlan, final: bool = True) -> SyncResult:
        """Bring a study's runs up to date; what is right already is left alone.

        Args:
            final: whether figures are drawn though trials are missing; while they run that would be for nothing.

        Raises:
            TrackingError: MLflow can't be reached, or refuses.
        """
        with _one_writer(self.store):
            # read under the lock, so that no older state is written over a newer one
            records = Snapshot(self.store)
            records.bring(plan.trials, plan.evaluations)
            report = make_report(plan, study, records)
            top = parent(report, figures=final or not report.missing)
            below = children(plan, study, records, self.store.trial_directory)
            with translated_errors(self.uri):
                client = connect(self.uri)
                experiment = self._experiment(client, study.study.name)
                runs = self._runs(client, experiment, study.name)
                parent_id, result = self._write(client, experiment, runs, top, links={})
                for content in below:
                    _, done = self._write(
                        client, experiment, runs, content, {"mlflow.parentRunId": parent_id}
                    )
                    result += done
        return result

    def _experiment(self, client: MlflowClient, name: str) -> str:
        found = client.get_experiment_by_name(name)
        if found is None:
            place = (
                None if is_remote(self.uri) else (self.store.on_this_machine / "mlartifacts" / name).as_uri()
            )

            def find() -> str | None:
                made = client.get_experiment_by_name(name)
                return made.experiment_id if made else None

            create = functools.partial(client.create_experiment, name, place, _EXPERIMENT_TAGS)
            return str(create_once(create, find))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _runs(self, client: MlflowClient, experiment: str, study: str) -> dict[str, Run]:
        """The run of each trial; a second one is deleted."""
        runs = all_runs(client, experiment, study)
        for found in runs.values():
            for surplus in found[1:]:
                client.delete_run(surplus.info.run_id)
        return {key: found[0] for key, found in runs.items()}

    def _write(
        self,
        client: MlflowClient,
        experiment: str,
        runs: dict[str, Run],
        content: RunContent,
        links: dict[str, str],
    ) -> tuple[str, SyncResult]:
        """One run, found again by its tags; its id and what was done."""
        run = runs.get(content.key)
        if run is not None:
            right = {**links, "projection": content.hash}
            if right.items() <= run.data.tags.items():
                return run.info.run_id, SyncResult(unchanged=1)
            self._update(client, run, content, links)
            return run.info.run_id, SyncResult(updated=1)
        tags = links | {name: content.tags[name] for name in _IDENTITY if name in content.tags}
        run = create_once(
            lambda: client.create_run(experiment, content.start, tags, content.name),
            lambda: self._runs(client, experiment, content.tags["study"]).get(content.key),
        )
        self._update(client, run, content, links)
        return run.info.run_id, SyncResult(created=1)

    def _update(self, client: MlflowClient, run: Run, content: RunContent, links: dict[str, str]) -> None:
        """Write what differs. The hash goes last: an interrupted update is done again."""
        from mlflow.entities import Metric, Param, RunTag

        run_id, old = run.info.run_id, run.data
        # a later revision has a higher step, so that a value that changed is the one that MLflow shows; its number
        # is taken before its points are written, lest one that was cut off and another value share a step
        again = old.tags.get("begun") == content.hash
        revision = int(old.tags.get("revision", "-1")) + (not again)
        tags = {"revision": str(revision), "begun": content.hash} | links | content.tags
        params = [Param(name, value) for name, value in content.params.items() if name not in old.params]
        labels = [RunTag(name, value) for name, value in tags.items()]
        for first in range(0, max(len(params), len(labels)), _BATCH_OF_TAGS):
            last = first + _BATCH_OF_TAGS
            client.log_batch(run_id, params=params[first:last], tags=labels[first:last])
        state = {"projection": content.hash}
        points = _changed(old.metrics, content.metrics, revision)
        record = self.store.trial_record(content.key) if content.key else None
        if record and old.tags.get("history") != record["finished"]:
            points += _lacking(client, run, history_points(record, self.store.history(content.key)))
            state["history"] = record["finished"]
        for first in range(0, len(points), _BATCH):
            batch = points[first : first + _BATCH]
            client.log_batch(run_id, metrics=[Metric(*point) for point in batch])
        for name in _stale_tags(old.tags, tags):
            delete_tag(client, run_id, name)
        own = self.store.on_this_machine if self.uri == default_uri(self.store) else None
        files = _upload(client, run, content.artifacts, own)
        if content.status == "RUNNING":
            client.update_run(run_id, status=content.status)
        else:
            client.set_terminated(run_id, content.status, content.end)
        if content.key:
            state[FILES] = json.dumps(files)
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in state.items()])


def _changed(old: dict[str, float], new: dict[str, tuple[float, int]], revision: int) -> list[Point]:
    """Points for values that are new or differ; a value that is no more becomes NaN."""
    points = [
        (name, value, when, revision)
        for name, (value, when) in new.items()
        if name not in old or not _same(old[name], value)
    ]
    last = max((when for _, when in new.values()), default=0)
    ours = ("eval/", "cells/", "theory/", "claims/")
    gone = [
        name for name, value in old.items() if name.startswith(ours) and name not in new and value == value
    ]
    return points + [(name, math.nan, last, revision) for name in gone]


def _lacking(client: MlflowClient, run: Run, points: list[Point]) -> list[Point]:
    """Points that a run has not yet: a record that was made anew tells the same curves at other times."""
    names = {name for name, *_ in points} & run.data.metrics.keys()
    kept = [point for name in names for point in client.get_metric_history(run.info.run_id, name)]
    known = {(point.key, point.step, _kept(point.value)) for point in kept}
    return [point for point in points if (point[0], point[3], _kept(point[1])) not in known]


def _same(stored: float, value: float) -> bool:
    return _kept(stored) == _kept(value)


def _kept(value: float) -> float | None:
    """As MLflow keeps it, so that equal values compare equal: infinity is its largest number."""
    largest = 1.7976931348623157e308
    return None if math.isnan(value) else max(-largest, min(largest, value))


def _stale_tags(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Tags of ours that no longer hold: an error that was mended, a protocol that is no longer shown."""
    return [
        name
        for name in old
        if name not in new and (name in ("error", "failure") or name.startswith(("evaluation.", "claim.")))
    ]


def _upload(client: MlflowClient, run: Run, artifacts: dict[str, Artifact], base: Path | None) -> list[str]:
    """Make a run's files and give them to MLflow; the paths of those that there are."""
    _refuse_other_places(run, artifacts, base)
    run_id, written = run.info.run_id, []
    with tempfile.TemporaryDirectory(prefix="ablate-") as folder:
        for name, artifact in artifacts.items():
            content = artifact.make()
            if content is None:
                continue
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            written.append(name)
        if written:
            client.log_artifacts(run_id, folder)
    return written


def _refuse_other_places(run: Run, names: Iterable[str], base: Path | None) -> None:
    """A database says where its runs' files lie, and may be anybody's: those of a store's own lie in the store."""
    place = urlparse(run.info.artifact_uri)
    if place.scheme not in ("", "file"):
        return
    folder = Path(unquote(place.path))
    within = (base or folder).resolve()
    for path in (folder, *(folder / name for name in names)):
        if not path.resolve().is_relative_to(within):
            raise TrackingError(
                f"mlflow.db: a run keeps its files in {path}, outside of {within}; remove mlflow.db and mlartifacts, "
                "and `ablate sync` makes them anew"
            )


@contextlib.contextmanager
def _one_writer(store: Store) -> Iterator[None]:
    """Two commands on one store take turns: MLflow's first set-up of a database fails when done twice at once."""
    place = store.on_this_machine
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = os.open(place / "mlflow.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise TrackingError(f"--store {place}: cannot be written: {error.strerror}") from None
    with os.fdopen(lock):
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.nullcontext() if is_local(store.root) else _lease(store):
            yield


@contextlib.contextmanager
def _lease(store: Store) -> Iterator[None]:
    """A lock of a file ends at the machine; commands of several may share a store at a URL."""
    leases = Leases(store.root, uuid.uuid4().hex[:8])
    while isinstance(found := leases.acquire(_WRITING), Holder):
        time.sleep(1)
    with found:
        yield
