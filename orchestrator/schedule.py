"""Ray Tune over the missing jobs. One training function, two executors.

`inline` trains in the Tune trial's own process (single-worker trials); `train` wraps the same
function in Ray Train's TorchTrainer (DDP, any number of workers). Tune always holds the whole list
of jobs and starts as many as truly fit: the inner worker group of `train` is not part of the
trial's own resources, so an unbounded Tune would deadlock on a full cluster.
"""

from __future__ import annotations

import io
import logging
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.cluster import Node, trials_at_once
from orchestrator.hangs import HUNG, HangWatch, end_process
from orchestrator.interruption import Interruption
from orchestrator.leases import Fence, Holder, LeaseLost, Leases
from orchestrator.plan import Job
from orchestrator.progress import Progress
from orchestrator.spec import Executor, Resources
from orchestrator.store import Store

_RESTARTS_AFTER_LOST_PROCESS = 3
_LESS = "lower batch_size, raise gradient_cache, or run fewer at once (--max-concurrent)"
_ATTEMPTS = 1 + _RESTARTS_AFTER_LOST_PROCESS
_LOST = f"its process was lost {_ATTEMPTS} times; out of memory is the usual reason: {_LESS}"


@dataclass(frozen=True)
class _Assignment:
    """All that a Tune trial needs to know of its job."""

    job: Job
    recipe: str
    store: str
    executor: str
    run: str


def with_threads(jobs: list[Job], nodes: list[Node]) -> list[Job]:
    """Toy networks that have a cluster to themselves take a second CPU each, where one node has two.

    Beside trainings they take one: a second would keep others waiting, and the numbers are the same.
    """
    if not all(job.is_toy for job in jobs) or max(node.cpus for node in nodes) < 2:
        return jobs
    return [replace(job, resources=Resources(cpus_per_worker=2)) for job in jobs]


def concurrency(jobs: list[Job], nodes: list[Node], limit: int | None) -> int:
    """How many jobs run side by side: what fits of the largest footprint among them."""
    footprints = {job.resources for job in jobs}
    return min(trials_at_once(nodes, footprint, limit) for footprint in footprints)


def run_jobs(
    jobs: list[Job],
    recipe: str,
    store: Store,
    executor: Executor,
    at_once: int,
    progress: Progress,
    on_finished: Callable[[], None],
) -> None:
    """Run every job to its end; a failed one leaves its reason in the store and stops no other.

    Needs a connected Ray (`cluster.connected`).

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once running trials have saved their states.
    """
    run = uuid.uuid4().hex[:8]
    leases = Leases(store.root, run)
    assignments = {
        job.trial: _Assignment(job, recipe, str(store.root), _executor(executor, job), run) for job in jobs
    }
    leases.clear_dead()
    limits = {job.trial: job.limits.silent_seconds for job in jobs}

    def finished(trial: str, error: str | None) -> None:
        notes = [note["text"] for note in store.notes(trial) if note["when"] >= progress.began(trial)]
        progress.finish(trial, error, notes)
        on_finished()

    progress.console.file = sys.stdout
    try:
        with Interruption(leases, progress.say), HangWatch(store, leases, limits, _end_remotely):
            while assignments:
                held = _one_round(assignments, store, at_once, progress, finished)
                assignments = {trial: assignments[trial] for trial in held}
                _await_others(assignments, leases, progress)
    finally:
        leases.clear_dead()  # of trials whose processes were killed


def _one_round(
    assignments: dict[str, _Assignment],
    store: Store,
    at_once: int,
    progress: Progress,
    finished: Callable[[str, str | None], None],
) -> list[str]:
    """Tune over the given trials; those that another run holds come back."""
    from ray import tune

    scratch, name = store.root / ".tune", f"run-{uuid.uuid4().hex[:8]}"
    held: list[str] = []
    trainable = tune.with_parameters(_run_job, assignments=assignments)
    jobs = [assignment.job for assignment in assignments.values()]
    tuner = tune.Tuner(
        tune.with_resources(trainable, lambda config: _driver_resources(assignments[config["trial"]])),
        param_space={"trial": tune.grid_search(list(assignments))},
        tune_config=tune.TuneConfig(
            # The next trial finds torch imported: seconds saved each. Not on accelerators, where one
            # trial's device error would stay in the process for all that follow.
            reuse_actors=not any(job.resources.gpus_per_worker for job in jobs),
            max_concurrent_trials=at_once,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=_RESTARTS_AFTER_LOST_PROCESS),
            callbacks=[_follow(progress, finished, held.append, store)],
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
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)
    return held


def _await_others(assignments: dict[str, _Assignment], leases: Leases, progress: Progress) -> None:
    """Wait until one of the trials that other runs hold is free again: finished, failed, or its holder dead."""
    while assignments:
        holders = {trial: leases.holder(trial) for trial in assignments}
        live = leases.held()
        if any(trial not in live for trial in holders):
            return
        for trial in holders:
            progress.hold(trial, str(live[trial]))
        time.sleep(1)


def _end_remotely(holder: Holder) -> None:
    """Kill a trial's process on the node that it runs on."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node in ray.nodes():
        if node["Alive"] and node["NodeManagerHostname"] == holder.host:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ray.get(ray.remote(num_cpus=0, scheduling_strategy=there)(end_process).remote(holder), timeout=60)
            return


def _executor(wanted: Executor, job: Job) -> str:
    if job.is_toy:
        return "inline"
    if wanted != "auto":
        return wanted
    return "inline" if job.resources.workers == 1 else "train"


def _driver_resources(assignment: _Assignment) -> dict[str, float]:
    """What the Tune trial itself holds. Train's workers have a placement group of their own."""
    footprint = assignment.job.resources
    if assignment.executor == "train":
        # Nothing at all is refused, and any share of a CPU would keep the last workers from fitting.
        return {"memory": 1.0}
    return {"CPU": footprint.cpus_per_worker, "GPU": footprint.gpus_per_worker}


def _trial_name(trial: Any) -> str:
    return str(trial.config["trial"])


def _run_job(config: dict[str, Any], assignments: dict[str, _Assignment]) -> dict[str, Any]:
    """The Tune trainable: train if needed, then evaluate. Errors of the work end in the store, not in Tune."""
    from orchestrator import work
    from trainers.context import Interrupted

    assignment = assignments[config["trial"]]
    store, trial = Store(assignment.store), assignment.job.trial
    failure = store.trial_failure(trial)
    if failure and failure.get("type") == HUNG and failure.get("run") == assignment.run:
        return {"error": failure["error"]}
    leases = Leases(store.root, assignment.run)
    if leases.stop_requested():
        return {"stopped": True}
    try:
        lease = leases.acquire(trial)
    except OSError as error:
        return {"error": work.failure(error, error)["error"]}
    if isinstance(lease, Holder):
        return {"held": str(lease)}
    with lease:
        try:
            job = still_missing(assignment.job, store)
            _work(replace(assignment, job=job), store, lease.fence)
        except Exception as error:
            cause = _cause(error)
            if isinstance(cause, Interrupted):
                return {"stopped": True}
            if isinstance(cause, LeaseLost):
                return {"held": str(cause)}
            told = leases.progress(trial)
            failure = work.failure(cause, error, told[1] if told else None)
            with suppress(
                OSError
            ):  # a full disk must not end the other trials, and this one is told of on screen
                store.fail_trial(trial, failure)
            return {"error": f"{failure['type']}: {failure['error']}"}
    return {"error": None}


def still_missing(job: Job, store: Store) -> Job:
    """What is left to do of a job now that nobody else can be at it: another run may have done it meanwhile."""
    from orchestrator import work

    done = store.trial_record(job.trial) is not None and (not job.is_toy or store.has_arrays(job.trial))
    evaluations = {key: e for key, e in job.evaluations.items() if store.evaluation_record(key) is None}
    # a model that is needed once more, and damaged, is trained again
    done = done and (not evaluations or work.has_good_model(job.trial, store))
    return replace(job, train=not done, evaluations=evaluations)


def _work(assignment: _Assignment, store: Store, fence: Fence) -> None:
    job = assignment.job
    if job.is_toy:
        _train_toys(job, store, fence)
    elif assignment.executor == "inline":
        _work_inline(job, assignment.recipe, store, fence)
    else:
        _work_in_train(job, assignment.recipe, store, fence)


def _train_toys(job: Job, store: Store, fence: Fence) -> None:
    from ray import tune

    from orchestrator import work

    if job.train:
        work.train_toys(job, store, fence, tune.report)


def _work_inline(job: Job, recipe: str, store: Store, fence: Fence) -> None:
    import torch
    from ray import tune

    from orchestrator import work

    device = torch.device("cuda", 0) if job.resources.gpus_per_worker else torch.device("cpu")
    if job.train:
        work.train_trial(job, recipe, store, fence, "inline", {"device": device}, tune.report)
    if job.evaluations:
        work.evaluate_trial(job, store, fence, "inline", device)


def _work_in_train(job: Job, recipe: str, store: Store, fence: Fence) -> None:
    import ray

    footprint = job.resources
    if job.train:
        _train_gang(job, recipe, store, fence)
    if job.evaluations:
        options: dict[str, Any] = {
            "num_cpus": footprint.cpus_per_worker,
            "num_gpus": footprint.gpus_per_worker,
            "max_retries": _RESTARTS_AFTER_LOST_PROCESS,
        }
        options["scheduling_strategy"] = "DEFAULT"  # not inside the trial's own, all but empty, bundle
        ray.get(ray.remote(**options)(_evaluate_worker).remote(job, str(store.root), fence))


def _train_gang(job: Job, recipe: str, store: Store, fence: Fence) -> None:
    """Train with a worker group; a lost process is replaced, an error of the training itself is not repeated."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    footprint = job.resources
    scratch = store.root / ".train"
    for restarts_left in reversed(range(1 + _RESTARTS_AFTER_LOST_PROCESS)):
        # a name of its own each time: what Train kept of an attempt under the same name, it would go on from
        name = f"{job.trial}-{uuid.uuid4().hex[:8]}"
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"job": job, "recipe": recipe, "store": str(store.root), "fence": fence},
            scaling_config=ScalingConfig(
                num_workers=footprint.workers,
                use_gpu=footprint.gpus_per_worker > 0,
                resources_per_worker={"CPU": footprint.cpus_per_worker, "GPU": footprint.gpus_per_worker},
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(scratch),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=1),
                callbacks=[TuneReportCallback()],
            ),
        )
        try:
            trainer.fit()
            return
        except WorkerGroupError as error:
            if not restarts_left or not _lost_process(error):
                raise
        finally:
            shutil.rmtree(scratch / name, ignore_errors=True)


def _lost_process(error: Any) -> bool:
    """Whether a worker died or hung, rather than failed: its peers then fail too, for want of it."""
    from ray.exceptions import RayActorError

    return any(
        isinstance(failure, RayActorError) or hasattr(failure, "health_check_failure")
        for failure in error.worker_failures.values()
    )


def _train_worker(config: dict[str, Any]) -> None:
    """The loop of every Train worker: the same training function, on this rank."""
    import ray.train
    from ray.train.torch import get_device

    from orchestrator import work

    context = ray.train.get_context()
    fields = {
        "rank": context.get_world_rank(),
        "world_size": context.get_world_size(),
        "device": get_device(),
    }
    work.train_trial(
        config["job"],
        config["recipe"],
        Store(config["store"]),
        config["fence"],
        "train",
        fields,
        lambda metrics: ray.train.report(metrics),
    )


def _evaluate_worker(job: Job, store: str, fence: Fence) -> None:
    import torch

    from orchestrator import work

    device = torch.device("cuda", 0) if job.resources.gpus_per_worker else torch.device("cpu")
    work.evaluate_trial(job, Store(store), fence, "train", device)


def _cause(error: BaseException) -> BaseException:
    """The error of the work itself, out of the wrappers of Ray Train and Ray tasks."""
    from ray.exceptions import RayTaskError
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return min(map(_cause, error.worker_failures.values()), key=_derived)
    if isinstance(error, ControllerError):
        return _cause(error.controller_failure)
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        return error.cause
    return getattr(error, "health_check_failure", error)


def _derived(error: BaseException) -> int:
    """How likely a worker's error only follows from another worker's: ours never, a broken connection surely."""
    if type(error).__module__.startswith("trainers"):
        return 0
    broken = isinstance(error, ConnectionError) or "onnection" in str(error)
    return 2 if broken else 1


def _follow(
    progress: Progress,
    finished: Callable[[str, str | None], None],
    held: Callable[[str], None],
    store: Store,
) -> Any:
    """A Tune callback that keeps the screen and the tracker up to date."""
    from ray import tune

    class Follow(tune.Callback):
        def __init__(self, *listeners: Any) -> None:
            self.progress, self.finished, self.held, self.store = listeners

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks to restore them later; this one lives with its screen

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
            elif "stopped" not in result:
                self.finished(name, result.get("error"))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            # raised outside the work itself: its process was killed too often, or could not begin
            name, lost = _trial_name(trial), trial.get_pickled_error()
            error = _last_line(lost) if lost else _LOST
            when = datetime.now(UTC).isoformat(timespec="microseconds")
            with suppress(OSError):  # a full disk must not end the other trials
                self.store.fail_trial(name, {"error": error, "type": "Lost", "traceback": "", "when": when})
            self.finished(name, error)

    return Follow(progress, finished, held, store)


def _last_line(error: BaseException) -> str:
    from ray.exceptions import OutOfMemoryError, RayActorError

    if isinstance(error, OutOfMemoryError) or "low on memory" in str(error):
        return f"its process was killed {_ATTEMPTS} times, as its node ran out of memory; {_LESS}"
    if isinstance(error, RayActorError):
        return _LOST
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
