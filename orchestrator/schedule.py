"""Ray Tune over the missing jobs. One training function, two executors.

`inline` trains in the Tune trial's own process (single-worker trials); `train` wraps the same
function in Ray Train's TorchTrainer (DDP, any number of workers). Tune is given a trial when it
truly fits (`largest_first`): the inner worker group of `train` is not part of the trial's own
resources, so an unbounded Tune would fill a cluster with processes that wait.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster import nodes_now, why_it_fits_nowhere
from orchestrator.failures import ProcessLost, failure
from orchestrator.gangs import LOST, RESTARTS, last_line
from orchestrator.hangs import HangWatch, end_process
from orchestrator.interruption import Interruption, time_limit
from orchestrator.leases import Holder, Leases
from orchestrator.packing import Node, side_by_side
from orchestrator.plan import Job
from orchestrator.progress import Progress
from orchestrator.room import RoomWatch
from orchestrator.scratch import for_ray, scratch
from orchestrator.sharing import shared_data
from orchestrator.spec import Executor, Resources
from orchestrator.store import Store
from orchestrator.trainable import (
    TRAINED,
    TRIAL,
    Assignment,
    assigned,
    driver_resources,
    place_of,
    run_job,
)
from trainers.files import remove_folder

if TYPE_CHECKING:
    from orchestrator.largest_first import LargestFirst


def with_threads(jobs: list[Job], nodes: list[Node]) -> list[Job]:
    """Toy networks that have a cluster to themselves take a second CPU each, where one node has two.

    Beside trainings they take one: a second would keep others waiting, and the numbers are the same.
    """
    if not all(job.is_toy for job in jobs) or max(node.cpus for node in nodes) < 2:
        return jobs
    return [replace(job, resources=Resources(cpus_per_worker=2)) for job in jobs]


def concurrency(jobs: list[Job], nodes: list[Node], limit: int | None) -> int:
    """How many jobs run side by side at the start, the largest first.

    Raises:
        CapacityError: one of them fits nowhere.
    """
    for footprint in {used for job in jobs for used in _footprints(job)}:
        if problem := why_it_fits_nowhere(nodes, footprint):
            raise problem
    fitting = side_by_side(nodes, [job.footprint for job in jobs])
    return min(fitting, limit) if limit else fitting


def _footprints(job: Job) -> list[Resources]:
    return [job.footprint, job.resources.evaluation] if job.evaluations else [job.footprint]


def run_jobs(
    jobs: list[Job],
    recipe: str,
    store: Store,
    executor: Executor,
    max_concurrent: int | None,
    progress: Progress,
    on_finished: Callable[[], None],
    seconds: float | None = None,
) -> None:
    """Run every job to its end; a failed one leaves its reason in the store and stops no other.

    Needs a connected Ray (`cluster.connected`).

    Args:
        seconds: after which no further trial starts, and running ones save their states and end, to be resumed by
            another run; None: no limit.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once running trials have saved their states.
    """
    run = uuid.uuid4().hex[:8]
    leases = Leases(store.root, run)
    data = shared_data(jobs, progress.say)
    assignments = {
        job.trial: assigned(job, recipe, store, executor, run, data.get(job.trial)) for job in jobs
    }
    leases.clear_dead()
    limits = {job.trial: job.limits.silent_seconds for job in jobs}

    def finished(trial: str, error: str | None) -> None:
        notes = [note["text"] for note in store.notes(trial) if note["when"] >= progress.began(trial)]
        progress.finish(trial, error, notes)
        on_finished()

    progress.console.file = sys.stdout
    try:
        with (
            scratch(store.root, run) as folder,
            Interruption(leases, progress.say),
            HangWatch(store, leases, limits, partial(_end_remotely, str(store.root)), progress.warn),
            time_limit(seconds, leases, progress.say) as over,
        ):
            while assignments and not over.is_set():
                held = _one_round(
                    assignments, store, leases, folder, max_concurrent, progress, finished, over
                )
                assignments = {trial: assignments[trial] for trial in held}
                _await_others(assignments, leases, progress, over)
    finally:
        with suppress(OSError):
            leases.clear_dead()  # of trials whose processes were killed


def _one_round(
    assignments: dict[str, Assignment],
    store: Store,
    leases: Leases,
    folder: Path,
    max_concurrent: int | None,
    progress: Progress,
    finished: Callable[[str, str | None], None],
    over: threading.Event,
) -> list[str]:
    """Tune over the given trials; those that another run holds come back."""
    from ray import tune

    from orchestrator.largest_first import LargestFirst

    name = f"tune-{uuid.uuid4().hex[:8]}"
    held: list[str] = []
    room = RoomWatch(nodes_now, progress.say)
    footprints = {trial: one.job.footprint for trial, one in assignments.items()}
    later = {
        trial: one.job.resources.evaluation
        for trial, one in assignments.items()
        if one.holds is None and one.job.evaluations
    }
    queue = LargestFirst(footprints, later, nodes_now, max_concurrent, room, over.is_set)
    trainable = tune.with_parameters(run_job, assignments=assignments)
    tuner = tune.Tuner(
        tune.with_resources(trainable, partial(driver_resources, assignments=assignments)),
        tune_config=tune.TuneConfig(
            # The next trial finds torch imported: seconds saved each. Not on accelerators, where one trial's
            # device error would stay in the process for all that follow; nor beside gangs: an idle process
            # that waits for its next trial would keep room that Tune doesn't know a gang to want.
            reuse_actors=all(
                one.holds is not None and not one.holds.gpus_per_worker for one in assignments.values()
            ),
            search_alg=queue,
            num_samples=len(assignments) + len(later),
            trial_name_creator=_trial_name,
            trial_dirname_creator=lambda trial: "-".join(map(str, trial.config.values())),
        ),
        run_config=tune.RunConfig(
            name=name,
            **for_ray(folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            callbacks=[_follow(progress, finished, held.append, store, leases, room, queue)],
        ),
    )
    for logger in (
        "ray.tune",
        "ray.air",
    ):  # tracebacks of failed trials; ours is a line, and the store has the rest
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):  # Tune's own words; ours go to the console
            tuner.fit()
    except Exception as error:
        raise (room.problem or error) from None
    finally:
        remove_folder(folder / name)
    return held


def _await_others(
    assignments: dict[str, Assignment], leases: Leases, progress: Progress, over: threading.Event
) -> None:
    """Wait until one of the trials that other runs hold is free again: finished, failed, or its holder dead."""
    while assignments and not over.is_set():
        live = leases.held()
        if any(trial not in live for trial in assignments):
            with suppress(OSError):
                leases.clear_dead()  # of another machine: trials, which look for the first time, take it for alive
            return
        for trial in assignments:
            progress.hold(trial, str(live[trial]))
        over.wait(1)


def _end_remotely(root: str, key: str, holder: Holder) -> None:
    """Kill a trial's process on the node that it runs on."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node in ray.nodes():
        if node["Alive"] and node["NodeManagerHostname"] == holder.host:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ending = ray.remote(num_cpus=0, scheduling_strategy=there)(end_process)
            ray.get(ending.remote(root, key, holder), timeout=60)
            return


def _trial_name(trial: Any) -> str:
    return str(trial.config[TRIAL])


def _follow(
    progress: Progress,
    finished: Callable[[str, str | None], None],
    held: Callable[[str], None],
    store: Store,
    leases: Leases,
    room: RoomWatch,
    queue: LargestFirst,
) -> Any:
    """A Tune callback that keeps the screen and the tracker up to date, and looks whether trials find room."""
    from ray import tune

    class Follow(tune.Callback):
        def __init__(self, *listeners: Any) -> None:
            self.progress, self.finished, self.held, self.store, self.leases, self.room, self.queue = (
                listeners
            )

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks to restore them later; this one lives with its screen

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            waiting = [self.queue.needs(trial.trial_id) for trial in trials if trial.status == "PENDING"]
            waiting += self.queue.waiting.values()
            self.progress.waits_for = self.queue.reason
            self.room.look(waiting, running=any(trial.status == "RUNNING" for trial in trials))

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.progress.begin(_trial_name(trial))

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if "epoch" in result:
                self.progress.advance(_trial_name(trial), result)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            result, name = trial.last_result, _trial_name(trial)
            if "held" in result:
                self.progress.hold(name, result["held"])
                self.held(name)
            elif TRAINED in result:
                self.progress.trained(name)
            elif "stopped" not in result:
                self.finished(name, result.get("error"))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            # raised outside the work itself: its process was killed too often, or could not begin
            name, lost = _trial_name(trial), trial.get_pickled_error()
            error = ProcessLost(last_line(lost) if lost else LOST)
            told = failure(error, error, place_of(self.leases, name))
            with suppress(OSError):  # a full disk must not end the other trials
                self.store.fail_trial(name, told)
            self.finished(name, told["error"])

    return Follow(progress, finished, held, store, leases, room, queue)
