"""Reaching and reading MLflow: a client that gives up soon, errors as one line, records from runs."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from orchestrator import records
from orchestrator.errors import AblateError, SpecError
from orchestrator.plan import StudyPlan
from orchestrator.projection import TOYS, arrays_path
from orchestrator.records import Arrays, Record
from orchestrator.redaction import redacted
from orchestrator.report.escape import one_line
from trainers.files import HISTORY, read_regular

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FILES = "artifacts"
"""The tag that lists a child's files."""

_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"

_SIGNS = (
    (r"too many (5\d\d|429) error responses|failed with error code (5\d\d|429)", "answers with an error"),
    (r"[Rr]ead timed out", "does not answer"),
    (r"Remote end closed|Connection aborted|Connection broken", "breaks connections off"),
    (r"Max retries exceeded|timed out|Connection refused", "cannot be reached"),
)
"""What the texts of requests and urllib3 come down to; the first that fits."""

Made = TypeVar("Made")


class TrackingError(AblateError):
    """MLflow can't be read or written; the records in the store are not touched by it."""


def connect(uri: str) -> MlflowClient:
    """A client that gives up soon. A database is made if there is none.

    Raises:
        SpecError: the URI is of a kind that MLflow no longer takes.
    """
    check_uri(uri)
    # MLflow's own defaults keep a caller waiting for four minutes
    os.environ.setdefault(_RETRIES, "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    # an overloaded server may ask for an hour's patience
    os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    # after the import, which sets levels of its own; errors are raised too, and told in one line
    for name in ("mlflow", "alembic", "urllib3"):
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


def all_runs(client: MlflowClient, experiment: str, study: str) -> dict[str, list[Run]]:
    """Trial key -> its runs, the parent's under the empty key. One query for each thousand runs.

    More than one of a key is a creation that was late when its answer had been given up. The first is the one that
    counts, the same one at each call: one that was written to its end (others may be linked to it), else the older.
    """
    runs: dict[str, list[Run]] = {}
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.study = '{study}'", max_results=1000, page_token=token)
        for run in page:
            runs.setdefault(run.data.tags.get("trial_key", ""), []).append(run)
        token = page.token
        if not token:
            break
    for found in runs.values():
        found.sort(
            key=lambda run: ("projection" not in run.data.tags, run.info.start_time or 0, run.info.run_id)
        )
    return runs


def create_once(create: Callable[[], Made], find: Callable[[], Made | None]) -> Made:
    """What `create` makes; where its answer was lost, what it has made is found instead of made again.

    MLflow's client by itself would repeat the request, and a server that had done it makes a second one.
    """
    before = os.environ[_RETRIES]
    try:
        os.environ[_RETRIES] = "0"
        return create()
    except Exception:
        os.environ[_RETRIES] = before
        found = find()
        if found is None:
            raise
        return found
    finally:
        os.environ[_RETRIES] = before


def delete_tag(client: MlflowClient, run_id: str, name: str) -> None:
    """Remove a tag; one that is gone already was removed by a request whose answer was lost."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_tag(run_id, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


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
            runs = all_runs(self._client, experiment.experiment_id, study.name) if experiment else {}
        if not runs:
            raise TrackingError(
                f"MLflow at {redacted(uri)}: has no runs of {study.name}; `ablate run` makes them"
            )
        self._trials = {key: found[0] for key, found in runs.items() if key}
        self._evaluations: dict[str, Record] = {}
        self._trial_of: dict[str, str] = {}
        self._toys: dict[str, Record] = {}
        for trial, run in self._trials.items():
            for tag, value in run.data.tags.items():
                if tag.startswith("evaluation."):
                    with self._told_by(run):
                        facts = records.parse(value)
                        facts["metrics"] = {name: _value(run, key) for name, key in facts["metrics"].items()}
                        self._evaluations[facts["key"]] = records.evaluation(facts)
                    self._trial_of[facts["key"]] = trial

    def seeds(self) -> set[int]:
        """Of every training of the study that finished or failed."""
        seeds = [run.data.params.get("seed", "") for run in self._trials.values()]
        return {int(seed) for seed in seeds if re.fullmatch("[0-9]{1,10}", seed) and int(seed) < 2**31}

    def trial_record(self, key: str) -> Record | None:
        run = self._trials.get(key)
        if run is None or "record" not in run.data.tags:
            return None
        with self._told_by(run):
            record = records.parse(run.data.tags["record"])
            if record["kind"] == "toy":
                if key not in self._toys:
                    self._toys[key] = records.parse(self._file(key, TOYS) or b"{}")
                return records.trial({**record, **self._toys[key], "metrics": {}})
            trained = {
                name.removeprefix("pretrain/"): value
                for name, value in run.data.metrics.items()
                if name.startswith("pretrain/")
            }
            return records.trial({**record, "metrics": trained})

    def trial_failure(self, key: str) -> Record | None:
        run = self._trials.get(key)
        if run is None or "failure" not in run.data.tags:
            return None
        with self._told_by(run):
            return records.failure(records.parse(run.data.tags["failure"]))

    def evaluation_record(self, key: str) -> Record | None:
        return self._evaluations.get(key)

    def evaluation_arrays(self, key: str) -> Arrays | None:
        return self._arrays(self._trial_of[key], key) if key in self._trial_of else None

    def trial_arrays(self, key: str) -> Arrays | None:
        return self._arrays(key, key)

    def history(self, key: str) -> list[dict[str, float]]:
        content = self._file(key, HISTORY) or b""
        with self._told_by(self._trials.get(key)):
            return records.history(records.parse_lines(content))

    def _arrays(self, trial: str, key: str) -> Arrays | None:
        content = self._file(trial, arrays_path(key))
        if content is None:
            return None
        with self._told_by(self._trials[trial]):
            return records.arrays(content)

    def _file(self, trial: str, path: str) -> bytes | None:
        """A file of a child run; None if it was never given to MLflow.

        Raises:
            TrackingError: it was, and can't be fetched.
        """
        run = self._trials.get(trial)
        with self._told_by(run):
            if run is None or path not in records.parse(run.data.tags.get(FILES, "[]")):
                return None
        with translated_errors(self._uri), tempfile.TemporaryDirectory(prefix="ablate-") as folder:
            found = self._client.download_artifacts(run.info.run_id, path, folder)
            return read_regular(Path(found), records.MOST_ARRAY_BYTES)

    @contextlib.contextmanager
    def _told_by(self, run: Run | None) -> Iterator[None]:
        """What a run says and `ablate` never writes, as one line: a server may be anybody's."""
        try:
            yield
        except (records.RecordError, LookupError, TypeError, AttributeError) as error:
            raise TrackingError(
                f"MLflow at {redacted(self._uri)}: run {run.info.run_id if run else ''} says what `ablate` does not "
                f"write ({one_line(error, 120)}); the records in the store are not touched by it"
            ) from None


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
        sign = next(((found, says) for sign, says in _SIGNS if (found := re.search(sign, text))), None)
        if sign:
            number = next(filter(None, sign[0].groups()), None)
            shown = f"{sign[1]} ({number})" if number else sign[1]
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
