"""Reaching and reading MLflow: a client that gives up soon, errors as one line, records from runs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.errors import AblateError, SpecError
from orchestrator.plan import StudyPlan
from orchestrator.projection import TOYS, arrays_path
from orchestrator.report.escape import one_line
from orchestrator.report.tracked import redacted
from orchestrator.store import Arrays, Record
from trainers.files import HISTORY

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FILES = "artifacts"
"""The tag that lists a child's files."""

_UNREACHABLE = ("Max retries exceeded", "timed out", "Connection refused", "Connection aborted")


class TrackingError(AblateError):
    """MLflow can't be read or written; the records in the store are not touched by it."""


def connect(uri: str) -> MlflowClient:
    """A client that gives up soon. A database is made if there is none.

    Raises:
        SpecError: the URI is of a kind that MLflow no longer takes.
    """
    check_uri(uri)
    # MLflow's own defaults keep a caller waiting for four minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    # after the import, which sets levels of its own; errors are raised too, and told in one line
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not is_remote(uri):
        _probe_database(uri)
    return MlflowClient(tracking_uri=uri)


def check_uri(uri: str) -> None:
    """Refuse a URI of a kind that MLflow no longer takes, without importing it.

    Raises:
        SpecError: names what is taken.
    """
    if ("://" not in uri and uri != "databricks") or uri.startswith("file:"):
        raise SpecError(
            f"--tracking-uri {redacted(uri)}: takes a server (http://host:5000) or a database "
            "(sqlite:///folder/mlflow.db)"
        )


def is_remote(uri: str) -> bool:
    """Whether a server, not this process, decides where artifacts lie."""
    return uri.startswith(("http://", "https://", "databricks"))


def find_runs(client: MlflowClient, experiment: str, study: str) -> dict[str, Run]:
    """Trial key -> run, the parent under the empty key. One query for each thousand runs."""
    runs: dict[str, Run] = {}
    token = None
    while True:
        page = client.search_runs(
            [experiment],
            f"tags.study = '{study}'",
            max_results=1000,
            page_token=token,
            order_by=["start_time DESC"],  # should there be two of one trial, the older one counts
        )
        runs |= {run.data.tags.get("trial_key", ""): run for run in page}
        token = page.token
        if not token:
            return runs


class TrackedRecords:
    """What MLflow holds of a study's records: `orchestrator.report.frames.Records` without a store.

    Numbers are read at once, files when they are asked for.
    """

    def __init__(self, uri: str, study: StudyPlan) -> None:
        """Read all runs of a study.

        Raises:
            TrackingError: MLflow can't be reached, or has no runs of this study.
        """
        self._uri = uri
        with translated_errors(uri):
            self._client = connect(uri)
            experiment = self._client.get_experiment_by_name(study.study.name)
            runs = find_runs(self._client, experiment.experiment_id, study.name) if experiment else {}
        if not runs:
            raise TrackingError(
                f"MLflow at {redacted(uri)}: has no runs of {study.name}; `ablate run` makes them"
            )
        self._trials = {key: run for key, run in runs.items() if key}
        self._evaluations: dict[str, Record] = {}
        self._trial_of: dict[str, str] = {}
        self._toys: dict[str, Record] = {}
        for trial, run in self._trials.items():
            for tag, value in run.data.tags.items():
                if tag.startswith("evaluation."):
                    facts = json.loads(value)
                    facts["metrics"] = {name: _value(run, key) for name, key in facts["metrics"].items()}
                    self._evaluations[facts["key"]] = facts
                    self._trial_of[facts["key"]] = trial

    def trial_record(self, key: str) -> Record | None:
        run = self._trials.get(key)
        if run is None or "record" not in run.data.tags:
            return None
        record = json.loads(run.data.tags["record"])
        if record["kind"] == "toy":
            if key not in self._toys:
                self._toys[key] = json.loads(self._file(key, TOYS) or "{}")
            return {**record, **self._toys[key], "metrics": {}}
        trained = {
            name.removeprefix("pretrain/"): value
            for name, value in run.data.metrics.items()
            if name.startswith("pretrain/")
        }
        return {**record, "metrics": trained}

    def trial_failure(self, key: str) -> Record | None:
        run = self._trials.get(key)
        return json.loads(run.data.tags["failure"]) if run and "failure" in run.data.tags else None

    def evaluation_record(self, key: str) -> Record | None:
        return self._evaluations.get(key)

    def evaluation_arrays(self, key: str) -> Arrays | None:
        return self._arrays(self._trial_of[key], key) if key in self._trial_of else None

    def trial_arrays(self, key: str) -> Arrays | None:
        return self._arrays(key, key)

    def history(self, key: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self._file(key, HISTORY) or b"").splitlines()]

    def _arrays(self, trial: str, key: str) -> Arrays | None:
        content = self._file(trial, arrays_path(key))
        if content is None:
            return None
        with translated_errors(self._uri), np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)

    def _file(self, trial: str, path: str) -> bytes | None:
        """A file of a child run; None if it was never given to MLflow.

        Raises:
            TrackingError: it was, and can't be fetched.
        """
        run = self._trials.get(trial)
        if run is None or path not in json.loads(run.data.tags.get(FILES, "[]")):
            return None
        with translated_errors(self._uri), tempfile.TemporaryDirectory(prefix="ablate-") as folder:
            return Path(self._client.download_artifacts(run.info.run_id, path, folder)).read_bytes()


def _value(run: Run, key: str) -> float:
    value = float(run.data.metrics[key])
    return math.copysign(math.inf, value) if abs(value) >= 1.797e308 else value


@contextlib.contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Whatever MLflow, SQLAlchemy, alembic or requests raise becomes one line without credentials."""
    try:
        yield
    except AblateError:
        raise
    except Exception as error:
        text = str(error)
        if any(sign in text for sign in _UNREACHABLE):
            shown = "cannot be reached"
        else:
            shown = f"{type(error).__name__}: {one_line(redacted(text.replace(uri, redacted(uri))))}"
        raise TrackingError(
            f"MLflow at {redacted(uri)}: {shown}; the records are safe in the store"
        ) from error


def _probe_database(uri: str) -> None:
    """MLflow tries ten times over two minutes to open a database; one try tells as much."""
    import sqlalchemy

    timeout = {"connect_timeout": 10} if uri.startswith(("postgresql", "mysql")) else {}
    engine = sqlalchemy.create_engine(uri, connect_args=timeout)
    if engine.url.drivername.startswith("sqlite") and engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
    with engine.connect():
        pass
    engine.dispose()
