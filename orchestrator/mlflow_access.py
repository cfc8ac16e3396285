"""Reaching MLflow: a client that gives up soon, errors as one line, the runs of a study in one query."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import AblateError
from orchestrator.report.escape import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_UNREACHABLE = ("Max retries exceeded", "timed out", "Connection refused", "Connection aborted")


class TrackingError(AblateError):
    """MLflow can't be read or written; the records in the store are not touched by it."""


def connect(uri: str) -> MlflowClient:
    """A client that gives up soon. A database is made if there is none.

    Raises:
        TrackingError: the URI is of a kind that MLflow no longer takes.
    """
    if ("://" not in uri and uri != "databricks") or uri.startswith("file:"):
        raise TrackingError(
            f"--tracking-uri {redacted(uri)}: takes a server (http://host:5000) or a database "
            "(sqlite:///folder/mlflow.db)"
        )
    # MLflow's own defaults keep a caller waiting for four minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    # after the import, which sets levels of its own
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not is_remote(uri):
        _probe_database(uri)
    return MlflowClient(tracking_uri=uri)


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
