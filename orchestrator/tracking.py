"""Records -> MLflow, idempotent: an experiment per study, a parent per study@recipe, a child per trial.

MLflow is a projection: it can be deleted and written anew from the store. It is written only through
`MlflowClient`, by one process at a time, and never stands in the way of a training.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import math
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.mlflow_access import (
    FILES,
    TrackedRecords,
    TrackingError,
    connect,
    find_runs,
    is_remote,
    translated_errors,
)
from orchestrator.plan import Plan, StudyPlan
from orchestrator.projection import Artifact, Point, RunContent, children, history_points, parent
from orchestrator.report.content import make_report
from orchestrator.report.escape import one_line
from orchestrator.report.frames import Snapshot
from orchestrator.report.tracked import redacted
from orchestrator.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["BackgroundTracker", "SyncResult", "TrackedRecords", "Tracker", "TrackingError", "default_uri"]

_BATCH = 1000
_BATCH_OF_TAGS = 100
"""What MLflow takes in one call: points, and tags or parameters."""

_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Has MLflow's pages show trainings, not language-model traces."""

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
    """The database inside a store."""
    path = str(store.root / "mlflow.db").replace("%", "%25").replace("?", "%3F")
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
            report = make_report(plan, study, records)
            top = parent(report, figures=final or not report.missing)
            below = children(plan, study, records, self.store.trial_directory)
            with translated_errors(self.uri):
                client = connect(self.uri)
                experiment = self._experiment(client, study.study.name)
                runs = find_runs(client, experiment, study.name)
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
            place = None if is_remote(self.uri) else (self.store.root / "mlartifacts" / name).as_uri()
            return str(client.create_experiment(name, artifact_location=place, tags=_EXPERIMENT_TAGS))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

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
            done = SyncResult(unchanged=1)
            if run.data.tags.get("projection") != content.hash:
                self._update(client, run, content)
                done = SyncResult(updated=1)
            return run.info.run_id, done
        tags = links | {name: content.tags[name] for name in _IDENTITY if name in content.tags}
        run = client.create_run(experiment, start_time=content.start, tags=tags, run_name=content.name)
        self._update(client, run, content)
        return run.info.run_id, SyncResult(created=1)

    def _update(self, client: MlflowClient, run: Run, content: RunContent) -> None:
        """Write what differs. The hash goes last: an interrupted update is done again."""
        from mlflow.entities import Metric, Param, RunTag

        run_id, old = run.info.run_id, run.data
        # a later revision has a higher step, so that a value that changed is the one that MLflow shows
        revision = int(old.tags.get("revision", "-1")) + 1
        points = _changed(old.metrics, content.metrics, revision)
        record = self.store.trial_record(content.key) if content.key else None
        tags = dict(content.tags)
        if record and old.tags.get("history") != record["finished"]:
            points += history_points(record, self.store.history(content.key))
            tags["history"] = record["finished"]
        params = [Param(name, value) for name, value in content.params.items() if name not in old.params]
        for first in range(0, len(points), _BATCH):
            batch = points[first : first + _BATCH]
            client.log_batch(run_id, metrics=[Metric(*point) for point in batch])
        labels = [RunTag(name, value) for name, value in tags.items()]
        for first in range(0, max(len(params), len(labels)), _BATCH_OF_TAGS):
            last = first + _BATCH_OF_TAGS
            client.log_batch(run_id, params=params[first:last], tags=labels[first:last])
        for name in _stale_tags(old.tags, tags):
            client.delete_tag(run_id, name)
        files = _upload(client, run_id, content.artifacts)
        if content.status == "RUNNING":
            client.update_run(run_id, status=content.status)
        else:
            client.set_terminated(run_id, content.status, content.end)
        state = {"revision": str(revision), "projection": content.hash}
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


def _same(stored: float, value: float) -> bool:
    if math.isnan(value):
        return math.isnan(stored)
    largest = 1.7976931348623157e308  # MLflow keeps infinity as this
    return stored == max(-largest, min(largest, value))


def _stale_tags(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Tags of ours that no longer hold: an error that was mended, a protocol that is no longer shown."""
    return [
        name
        for name in old
        if name not in new and (name in ("error", "failure") or name.startswith(("evaluation.", "claim.")))
    ]


def _upload(client: MlflowClient, run_id: str, artifacts: dict[str, Artifact]) -> list[str]:
    """Make a run's files and give them to MLflow; the paths of those that there are."""
    written = []
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


@contextlib.contextmanager
def _one_writer(store: Store) -> Iterator[None]:
    """Two commands on one store take turns: MLflow's first set-up of a database fails when done twice at once."""
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        lock = (store.root / "mlflow.lock").open("w")
    except OSError as error:
        raise TrackingError(f"--store {store.root}: cannot be written: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- beside a run -------------------------------------------------------------------------------


class BackgroundTracker:
    """Syncs a plan from a thread of its own while trials run; its errors reach nobody but `close`'s caller."""

    def __init__(self, tracker: Tracker, plan: Plan) -> None:
        self._tracker, self._plan = tracker, plan
        self._wanted, self._closing = threading.Event(), threading.Event()
        self._error: TrackingError | None = None
        # a daemon: a server that hangs must not keep the command from ending
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Something was recorded; returns at once."""
        self._wanted.set()

    def close(self, timeout: float = 120.0) -> TrackingError | None:
        """Sync a last time.

        Returns:
            What went wrong with the last sync, None if nothing did.
        """
        self._closing.set()
        self._wanted.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            where = redacted(self._tracker.uri)
            return TrackingError(
                f"MLflow at {where}: no answer in {timeout:g} s; the records are safe in the store"
            )
        return self._error

    def _work(self) -> None:
        self._try(self._tracker.prepare)
        while True:
            self._wanted.wait()
            last = self._closing.is_set()
            self._wanted.clear()
            self._try(functools.partial(self._sync, last))
            if last:
                return

    def _sync(self, final: bool) -> None:
        for study in self._plan.studies:
            self._tracker.sync(self._plan, study, final)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
            self._error = None
        except TrackingError as error:
            self._error = error
        except Exception as error:  # whatever it is, trainings go on
            self._error = TrackingError(f"tracking failed: {type(error).__name__}: {one_line(error)}")
