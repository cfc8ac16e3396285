"""What the verbs `run`, `report`, `sync` and `ui` do once their arguments are known to be good."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from orchestrator import cluster, preflight
from orchestrator.allocation import Allocation
from orchestrator.autoscaling import autoscales
from orchestrator.errors import AblateError, CapacityError
from orchestrator.freshness import changed_code, changed_data, reused
from orchestrator.mlflow_access import is_remote
from orchestrator.plan import Job, Plan, StudyPlan, jobs
from orchestrator.redaction import redacted
from orchestrator.report import TableStyle, make_report, write
from orchestrator.report import console as console_blocks
from orchestrator.report.frames import Records
from orchestrator.report.tables import DEFAULT_STYLE
from orchestrator.runner import Runner, Where
from orchestrator.schedule import concurrency
from orchestrator.spec import Executor
from orchestrator.store import Store
from orchestrator.tracking import Tracker, default_uri
from orchestrator.until_decided import Budget, until_decided


def launch(plan: Plan, missing: list[Job], store: Store, where: Where, console: Console) -> int:
    """Run the missing jobs, project to MLflow alongside, write the reports.

    Returns:
        How many trials of the plan are not complete.
    """
    _set_aside_damaged(store, console)
    with Runner(where, store, console) as runner:
        if missing:
            runner.run(plan, missing)
        else:
            nothing = f"all {len(plan.trials)} trials are in {store.root}; nothing to do"
            console.print(Text(nothing), soft_wrap=True)
        runner.track(plan)
    report_all(plan, store, console)
    return len(jobs(plan, store))


def launch_until_decided(
    allocation: Allocation, seconds: float | None, store: Store, where: Where, console: Console
) -> int:
    """Train seed by seed what open claims need, project to MLflow alongside, write the reports.

    Args:
        seconds: of wall time, after which running trials save their states and end; None: no limit.

    Returns:
        How many trials failed.
    """

    def say(sentence: str) -> None:
        console.print(Text(sentence), soft_wrap=True)

    budget = Budget(seconds)
    _set_aside_damaged(store, console)
    with Runner(where, store, console) as runner:
        end, summary = until_decided(
            allocation, budget, store, lambda plan, missing: runner.run(plan, missing, budget.deadline), say
        )
        runner.track(end.plan)
    report_all(end.plan, store, console)
    for line in summary:
        say(line)
    return sum(store.trial_failure(job.trial) is not None for job in jobs(end.plan, store))


def _set_aside_damaged(store: Store, console: Console) -> None:
    for sentence in store.set_aside_damaged():
        console.print(Text(sentence, "yellow"), soft_wrap=True)


def check_cluster(
    plan: Plan,
    store: Store,
    address: str,
    executor: Executor,
    tracking_uri: str | None,
    console: Console,
) -> list[preflight.Looked]:
    """Look whether all of a plan can run on a cluster, training nothing; shown as it would be before a run.

    Raises:
        CapacityError: it can't, whatever happens.
    """
    everything = [
        Job(key, config, True, {}, plan.resources[key], key, plan.limits[key])
        for key, config in plan.trials.items()
    ]
    with cluster.connected(address) as nodes:
        looked = preflight.check(
            everything,
            nodes,
            store,
            executor,
            tracking_uri,
            lambda text: console.print(Text(text, "yellow"), soft_wrap=True),
        )
        preflight.show(console, looked)
        preflight.refuse(looked)
        try:
            at_once = concurrency(everything, nodes, None)
            console.print(f"{at_once} trial{'s' if at_once > 1 else ''} at once")
        except CapacityError as error:
            if not autoscales():
                raise
            told = f"{error}; `ablate run` asks the cluster's autoscaler for nodes, and waits for them"
            console.print(Text(told, "yellow"), soft_wrap=True)
    return looked


def report_all(
    plan: Plan,
    store: Store,
    console: Console,
    records_of: Callable[[StudyPlan], Records] | None = None,
    out: Path | None = None,
    tracking_uri: str | None = None,
    style: TableStyle = DEFAULT_STYLE,
) -> None:
    """Write and show the report of every study of a plan.

    Args:
        records_of: where a study's numbers are read; default: the store.
        out: default: in the store.
    """
    uri = tracking_uri or default_uri(store)
    for study in plan.studies:
        records = records_of(study) if records_of else store
        # several studies asked into one folder each get a folder of their own in it
        asked = out / study.name if out and len(plan.studies) > 1 else out
        place = asked or store.report_directory(study.name)
        report = make_report(plan, study, records, uri, style)
        write(report, place)
        for shown in console_blocks(report):
            console.print(shown)
        shown_by = reused(plan, study.cells, records)
        for sentence in (*report.provenance["warnings"], *changed_data(shown_by), *changed_code(shown_by)):
            console.print(Text(sentence, "yellow"), soft_wrap=True)
        console.print(Text(f"report: {place / 'index.html'}"), soft_wrap=True)


def sync_all(plan: Plan, store: Store, tracking_uri: str | None, console: Console) -> None:
    """Bring MLflow up to date with the records of a plan's studies."""
    tracker = Tracker(tracking_uri or default_uri(store), store)
    for study in plan.studies:
        result = tracker.sync(plan, study)
        console.print(
            f"{study.name}: {result.created} runs created, {result.updated} updated, {result.unchanged} unchanged"
        )


def serve_ui(store: Store, tracking_uri: str | None, port: int, console: Console) -> None:
    """MLflow's own server on the store's database until Ctrl-C; a remote server has its page already."""
    uri = tracking_uri or default_uri(store)
    if is_remote(uri):
        console.print(Text(f"these runs are on a server with a page of its own: {redacted(uri)}"))
        return
    console.print(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    # not as an argument: those are there for all users of the machine to see
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    try:
        code = subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return
    if code:
        raise AblateError(
            f"mlflow server ended with exit code {code}; is port {port} taken? (--port takes another)"
        )
