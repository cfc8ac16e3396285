"""Reaching and reading MLflow: a client that gives up soon, errors as one line, records from runs."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import AblateError, SpecError
from orchestrator.plan import StudyPlan
from orchestrator.report.escape import one_line
from orchestrator.store import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

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

    # after the import, which sets levels of its own
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
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
    """What MLflow holds of a study's records: `orchestrator.report.frames.Records` without a store."""

    def __init__(self, uri: str, study: StudyPlan) -> None:
        """Read all runs of a study at once.

        Raises:
            TrackingError: MLflow can't be reached, or has no runs of this study.
        """
        with translated_errors(uri):
            client = connect(uri)
            experiment = client.get_experiment_by_name(study.study.name)
            runs = find_runs(client, experiment.experiment_id, study.name) if experiment else {}
        if not runs:
            raise TrackingError(
                f"MLflow at {redacted(uri)}: has no runs of {study.name}; `ablate run` makes them"
            )
        self._trials = {key: run.data for key, run in runs.items() if key}
        self._evaluations: dict[str, Record] = {}
        for data in self._trials.values():
            for name, value in data.tags.items():
                if name.startswith("evaluation."):
                    facts = json.loads(value)
                    facts["metrics"] = {name: _value(data, key) for name, key in facts["metrics"].items()}
                    self._evaluations[facts["key"]] = facts

    def trial_record(self, key: str) -> Record | None:
        data = self._trials.get(key)
        if data is None or "record" not in data.tags:
            return None
        trained = {
            name.removeprefix("pretrain/"): value
            for name, value in data.metrics.items()
            if name.startswith("pretrain/")
        }
        return {**json.loads(data.tags["record"]), "metrics": trained}

    def trial_failure(self, key: str) -> Record | None:
        data = self._trials.get(key)
        return json.loads(data.tags["failure"]) if data and "failure" in data.tags else None

    def evaluation_record(self, key: str) -> Record | None:
        return self._evaluations.get(key)


def _value(data: Any, key: str) -> float:
    value = float(data.metrics[key])
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


def redacted(text: str) -> str:
    """A URI, or text with URIs in it, without users, passwords and queries."""
    return re.sub(r"(//[^\s?]*)\?\S*", r"\1", re.sub(r"//[^/@\s]+@", "//***@", text))


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
