"""What the verbs `run`, `report`, `sync` and `ui` do once their arguments are known to be good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rich.console import Console

from orchestrator import cluster
from orchestrator.errors import AblateError
from orchestrator.plan import Job, Plan, estimate
from orchestrator.progress import Progress, duration
from orchestrator.report import write_report
from orchestrator.report.frames import Records
from orchestrator.report.tables import console_tables
from orchestrator.schedule import concurrency, run_jobs
from orchestrator.spec import Executor
from orchestrator.store import Store
from orchestrator.tracking import BackgroundTracker, TrackedRecords, Tracker, default_uri


def launch(
    plan: Plan,
    missing: list[Job],
    store: Store,
    address: str,
    executor: Executor,
    max_concurrent: int | None,
    tracking_uri: str | None,
    console: Console,
) -> dict[str, str]:
    """Run the missing jobs, project to MLflow alongside, write the reports.

    Returns:
        trial key -> reason, of those that failed.
    """
    tracker = BackgroundTracker(Tracker(tracking_uri or default_uri(store), store), plan)
    failed: dict[str, str] = {}
    try:
        if missing:
            failed = _run_missing(plan, missing, store, address, executor, max_concurrent, tracker, console)
        else:
            console.print(f"all {len(plan.trials)} trials are in {store.root}; nothing to train")
    finally:
        if problem := tracker.close():
            console.print(
                f"tracking: {problem}; `ablate sync` delivers what is missing", style="yellow", markup=False
            )
    report_all(plan, store, console)
    return failed


def _run_missing(
    plan: Plan,
    missing: list[Job],
    store: Store,
    address: str,
    executor: Executor,
    max_concurrent: int | None,
    tracker: BackgroundTracker,
    console: Console,
) -> dict[str, str]:
    to_train = sum(job.train for job in missing)
    console.print(f"{to_train} trials to train, {len(missing) - to_train} to evaluate only; starting Ray")
    with cluster.connected(address) as nodes:
        at_once = concurrency(missing, nodes, max_concurrent)
        if cost := estimate(plan, missing, store, at_once):
            console.print(f"about {duration(cost.seconds)} with {at_once} at once (from {cost.basis})")
        with Progress(console, missing, at_once) as progress:
            outcome = run_jobs(
                missing, plan.recipe.name, store, executor, at_once, progress, on_finished=tracker.notify
            )
    return outcome.failed


def report_all(
    plan: Plan,
    store: Store,
    console: Console,
    out: Path | None = None,
    source: str = "store",
    tracking_uri: str | None = None,
) -> None:
    """Write and show the report of every study of a plan."""
    uri = tracking_uri or default_uri(store)
    for study in plan.studies:
        records: Records = TrackedRecords(uri, study) if source == "mlflow" else store
        # several studies asked into one folder each get a folder of their own in it
        place = out / study.name if out and len(plan.studies) > 1 else out
        directory = write_report(plan, study, store, out=place, source=records)
        for table in console_tables(study, records):
            console.print(table)
        console.print(f"report: {directory / 'index.html'}", soft_wrap=True)


def sync_all(plan: Plan, store: Store, tracking_uri: str | None, console: Console) -> None:
    tracker = Tracker(tracking_uri or default_uri(store), store)
    for study in plan.studies:
        result = tracker.sync(plan, study)
        console.print(
            f"{study.name}: {result.created} runs created, {result.updated} updated, {result.unchanged} unchanged"
        )


def serve_ui(store: Store, tracking_uri: str | None, port: int, console: Console) -> None:
    uri = tracking_uri or default_uri(store)
    console.print(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise AblateError(
            f"mlflow server ended with exit code {code}; is port {port} taken? (--port takes another)"
        )
