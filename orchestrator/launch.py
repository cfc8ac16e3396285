"""What the verbs `run`, `report`, `sync` and `ui` do once their arguments are known to be good."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.text import Text

from orchestrator import cluster, preflight
from orchestrator.autoscaling import autoscales, nodes_for
from orchestrator.delivery import tracked_beside
from orchestrator.errors import AblateError, CapacityError
from orchestrator.mlflow_access import is_remote
from orchestrator.plan import Job, Plan, StudyPlan, estimate, jobs
from orchestrator.progress import Progress, duration
from orchestrator.redaction import redacted
from orchestrator.report import TableStyle, make_report, write
from orchestrator.report import console as console_blocks
from orchestrator.report.frames import Records
from orchestrator.report.tables import DEFAULT_STYLE
from orchestrator.schedule import concurrency, run_jobs, with_threads
from orchestrator.spec import Executor
from orchestrator.store import Store
from orchestrator.tracking import Tracker, default_uri


def launch(
    plan: Plan,
    missing: list[Job],
    store: Store,
    address: str,
    executor: Executor,
    max_concurrent: int | None,
    tracking_uri: str | None,
    console: Console,
) -> int:
    """Run the missing jobs, project to MLflow alongside, write the reports.

    Returns:
        How many trials of the plan are not complete.
    """

    def say(sentence: str) -> None:
        console.print(Text(sentence, "yellow"), soft_wrap=True)

    for sentence in store.set_aside_damaged():
        say(sentence)
    if missing:
        train = sum(job.train for job in missing)
        console.print(f"{train} to train, {len(missing) - train} to evaluate only; starting Ray")
        local = address == "local"  # which nothing makes grow
        with (
            cluster.connected(address) as there,
            nullcontext(there) if local else nodes_for(missing, max_concurrent, there, say) as nodes,
        ):
            missing = with_threads(missing, nodes)
            if not local:  # where this process has looked itself
                looked = preflight.check(missing, nodes, store, executor, tracking_uri, say)
                preflight.show(console, looked)
                preflight.refuse(looked)
            at_once = concurrency(missing, nodes, max_concurrent)
            if cost := estimate(plan, missing, store, at_once):
                console.print(f"about {duration(cost.seconds)} with {at_once} at once (from {cost.basis})")
            with (
                tracked_beside(plan, store, tracking_uri, console) as tracker,
                Progress(console, missing, at_once) as progress,
            ):
                run_jobs(missing, plan.recipe.name, store, executor, max_concurrent, progress, tracker.notify)
    else:
        console.print(
            Text(f"all {len(plan.trials)} trials are in {store.root}; nothing to do"), soft_wrap=True
        )
        with tracked_beside(plan, store, tracking_uri, console):
            pass
    report_all(plan, store, console)
    return len(jobs(plan, store))


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
