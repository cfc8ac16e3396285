"""Ray and MLflow for all that one command trains, started when there is something to train."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.text import Text

from orchestrator import cluster, preflight
from orchestrator.autoscaling import nodes_for
from orchestrator.delivery import BackgroundTracker, tracked_beside
from orchestrator.packing import Node
from orchestrator.plan import Job, Plan, estimate
from orchestrator.progress import Progress, duration
from orchestrator.schedule import concurrency, run_jobs, with_threads
from orchestrator.spec import Executor
from orchestrator.store import Store


@dataclass(frozen=True)
class Where:
    """Where a command trains and tracks, as its options say."""

    address: str = "local"
    executor: Executor = "auto"
    max_concurrent: int | None = None
    tracking_uri: str | None = None


class Runner:
    """Runs jobs, as often as asked, in one session of Ray and with one tracker beside it."""

    def __init__(self, where: Where, store: Store, console: Console) -> None:
        self._where, self._store, self._console = where, store, console
        self._until_end = ExitStack()
        self._nodes: list[Node] | None = None
        self._tracker: BackgroundTracker | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._until_end.__exit__(kind, error, trace)

    def run(self, plan: Plan, missing: list[Job], deadline: float | None = None) -> None:
        """Run jobs of a plan to their end.

        Args:
            deadline: on the monotonic clock, when running trials save their states and end; None: no limit.

        Raises:
            CapacityError: one of them fits nowhere.
        """
        train = sum(job.train for job in missing)
        starting = "; starting Ray" if self._nodes is None else ""
        self._console.print(f"{train} to train, {len(missing) - train} to evaluate only{starting}")
        where, is_first = self._where, self._nodes is None
        if self._nodes is None:
            self._nodes = self._until_end.enter_context(cluster.connected(where.address))
        there = self._nodes if is_first else cluster.nodes_now()
        local = where.address == "local"  # which nothing makes grow
        with (
            nullcontext(there)
            if local
            else nodes_for(missing, where.max_concurrent, there, self._say) as nodes
        ):
            missing = with_threads(missing, nodes)
            if is_first and not local:  # where this process has looked itself
                looked = preflight.check(
                    missing, nodes, self._store, where.executor, where.tracking_uri, self._say
                )
                preflight.show(self._console, looked)
                preflight.refuse(looked)
            self._run(plan, missing, concurrency(missing, nodes, where.max_concurrent), deadline)

    def track(self, plan: Plan) -> None:
        """What MLflow is to hold from now on."""
        if self._tracker is None:
            beside = tracked_beside(plan, self._store, self._where.tracking_uri, self._console)
            self._tracker = self._until_end.enter_context(beside)
        self._tracker.follow(plan)

    def _run(self, plan: Plan, missing: list[Job], at_once: int, deadline: float | None) -> None:
        if cost := estimate(plan, missing, self._store, at_once):
            self._console.print(f"about {duration(cost.seconds)} with {at_once} at once (from {cost.basis})")
        self.track(plan)
        assert self._tracker is not None
        where = self._where
        with Progress(self._console, missing, at_once) as progress:
            run_jobs(
                missing,
                plan.recipe.name,
                self._store,
                where.executor,
                where.max_concurrent,
                progress,
                self._tracker.notify,
                None if deadline is None else deadline - time.monotonic(),
            )

    def _say(self, sentence: str) -> None:
        self._console.print(Text(sentence, "yellow"), soft_wrap=True)
