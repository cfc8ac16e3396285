"""Stores with an MLflow database of their own, and what a sync left in it."""

import shutil
import sqlite3
from contextlib import closing

from orchestrator.store import Store
from orchestrator.tracking import Tracker, default_uri


def new_store(root, set_up):
    store = Store(root)
    store.prepare()
    shutil.copy(set_up[0], store.root / "mlflow.db")
    return store


def sync(plan, store):
    return Tracker(default_uri(store), store).sync(plan, plan.studies[0])


def query(store, sql):
    with closing(sqlite3.connect(store.root / "mlflow.db")) as database:
        return database.execute(sql).fetchall()


def rows(store):
    tables = ("experiments", "runs", "metrics", "latest_metrics", "params", "tags")
    return {table: query(store, f"select count(*) from {table}")[0][0] for table in tables}


def content(store):
    """Everything that a sync writes, without MLflow's random run ids."""
    name = "(select name from runs r where r.run_uuid = t.run_uuid)"
    return {
        "runs": sorted(query(store, "select name, status, start_time, end_time from runs")),
        "metrics": sorted(query(store, f"select {name}, key, value, step, timestamp, is_nan from metrics t")),
        "params": sorted(query(store, f"select {name}, key, value from params t")),
        "tags": sorted(
            query(
                store,
                f"select {name}, key, value from tags t where key not in ('mlflow.parentRunId', 'mlflow.user')",
            )
        ),
    }
