"""All that an MLflow server holds of a study, read out of its database and its folder without MLflow."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mlflow_server import Server

_CLOCKS = ("pretrain/seconds", "pretrain/images_per_second")
_OF_TIME_AND_PLACE = (
    "record",
    "history",
    "projection",
    "revision",
    "begun",
    "mlflow.user",
    "mlflow.parentRunId",
)
_RESULTS = (".npz", "spectra.jsonl", ".csv", ".md", ".tex")
"""Files that are equal to the byte whenever and wherever they were made."""


def content(server: Server) -> dict[str, Any]:
    """To the last point, clocks included: whether a sync changed anything."""
    tables = ("experiments", "experiment_tags", "runs", "metrics", "latest_metrics", "params", "tags")
    found: dict[str, Any] = {
        table: sorted(map(repr, server.query(f"select * from {table}"))) for table in tables
    }
    files = {path: path.stat().st_mtime_ns for path in server.artifacts.rglob("*") if path.is_file()}
    return found | {"files": {str(path): when for path, when in sorted(files.items())}}


def runs(server: Server) -> dict[str, dict[str, Any]]:
    """Trial key -> its run (the parent under ""), without what a clock or a place says; nothing is there twice.

    The parent's numbers are written again whenever a trial is added: of those the last counts.
    """
    assert server.query("select count(*) from experiments where name != 'Default'") == [(1,)]
    found: dict[str, dict[str, Any]] = {}
    names = {}
    for run, name, status in server.query("select run_uuid, name, status from runs"):
        tags = dict(server.query(f"select key, value from tags where run_uuid = '{run}'"))
        key = tags.get("trial_key", "")
        assert key not in found, f"two runs of {key or 'the study'}"
        names[run] = key
        found[key] = {
            "name": name,
            "status": status,
            "parent": tags.get("mlflow.parentRunId"),
            "tags": {tag: _timeless(value) for tag, value in tags.items() if tag not in _OF_TIME_AND_PLACE},
            "params": sorted(server.query(f"select key, value from params where run_uuid = '{run}'")),
            "points": _points(server, run, bool(key)),
            "files": _files(server, run),
        }
    for run in found.values():
        run["parent"] = names[run["parent"]] if run["parent"] else None
    return found


def _points(server: Server, run: str, child: bool) -> list[tuple[Any, ...]]:
    rows = server.query(
        f"select key, step, value, is_nan from metrics where run_uuid = '{run}' order by key, step"
    )
    assert not (twice := _more_than_once(row[:2] for row in rows)), f"points twice: {twice}"
    latest = server.query(
        f"select key, value, is_nan from latest_metrics where run_uuid = '{run}' order by key"
    )
    if not child:
        return latest
    # an evaluation's step is the revision that brought it: another one where its training was delivered before it
    twice = _more_than_once(key for key, *_ in rows if not key.startswith("pretrain/"))
    assert not twice, f"values twice: {twice}"
    curves = [row for row in rows if row[0].startswith("pretrain/")]
    return [row[:2] if row[0] in _CLOCKS else row for row in curves] + [
        row for row in latest if not row[0].startswith("pretrain/")
    ]


def _more_than_once(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _timeless(value: str) -> Any:
    if not value.startswith("{"):
        return value
    facts = json.loads(value)
    return {name: facts[name] for name in ("key", "metrics", "error", "type") if name in facts}


def _files(server: Server, run: str) -> dict[str, str]:
    folder = next(iter(server.artifacts.glob(f"*/{run}/artifacts")), None)
    paths = [path for path in folder.rglob("*") if path.is_file()] if folder else []
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.name.endswith(_RESULTS)
        else ""
        for path in paths
        if folder
    }
