"""Trainings with several workers, through Ray Train."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.failures import REMEDY_FOR_MEMORY, ProcessLost
from orchestrator.leases import Fence
from orchestrator.plan import Job
from orchestrator.scratch import for_ray
from orchestrator.sharing import SharedData, dataset_in_place
from orchestrator.store import Store
from trainers.files import remove_folder

RESTARTS = 3
"""So often what was lost is started again: a trial's process, a gang."""
ROOM_SECONDS = 900.0
"""So long a gang waits for nodes that fit it, before its trial fails."""

_ATTEMPTS = 1 + RESTARTS
LOST = f"its process was lost {_ATTEMPTS} times; out of memory is the usual reason: {REMEDY_FOR_MEMORY}"
_NO_ROOM = {"WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError"}
_LOST_AT_ITS_START = "WorkerGroupStartupFailedError"
_BROKEN = ("onnection", "Broken pipe", "gloo/transport", "NCCL", "TCPStore", "recvValue")


def train_gang(
    job: Job, recipe: str, store: Store, fence: Fence, folder: Path, data: SharedData | None = None
) -> None:
    """Train with a worker group, from its trial's last state, until it is done.

    A lost process is replaced and room waited for; an error of the training itself is not repeated.

    Args:
        folder: for what Ray Train keeps meanwhile.
        data: in the object store, if they are.
    """
    from ray.train import ControllerError, WorkerGroupError

    lost, began = 0, time.monotonic()
    while True:
        try:
            with _beating_until_workers_do(fence, f"the start of {job.resources.workers} workers"):
                _fit(job, recipe, store, fence, folder, data)
            return
        except WorkerGroupError as error:
            if lost == RESTARTS or not lost_process(error):
                raise
            lost, began = lost + 1, time.monotonic()
        except ControllerError as error:
            kind = type(cause(error)).__name__
            if kind == _LOST_AT_ITS_START:
                if lost == RESTARTS:
                    raise ProcessLost(LOST) from error
                lost += 1
                continue
            if kind not in _NO_ROOM:
                raise
            if time.monotonic() - began > ROOM_SECONDS:
                raise ProcessLost(
                    f"no room for {job.resources.workers} workers in {ROOM_SECONDS:.0f} s; give the cluster more "
                    "nodes, or run fewer at once (--max-concurrent)"
                ) from error


@contextmanager
def _beating_until_workers_do(fence: Fence, what: str) -> Iterator[None]:
    """Ray starts processes, or waits for room for them, in its own time: that is no silence of the trial's."""
    ended, until = threading.Event(), time.monotonic() + ROOM_SECONDS

    def beat() -> None:
        fence.beat(what)
        while not ended.wait(1) and not fence.others_beat() and time.monotonic() < until:
            fence.beat(what)

    thread = threading.Thread(target=beat, name="gang's start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _fit(job: Job, recipe: str, store: Store, fence: Fence, folder: Path, data: SharedData | None) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    footprint = job.resources
    # a name of its own each time: what Train kept of an attempt under the same name, it would go on from
    name = f"train-{job.trial}-{uuid.uuid4().hex[:8]}"
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "job": job,
            "recipe": recipe,
            "store": str(store.root),
            "fence": fence,
            "data": data,
        },
        scaling_config=ScalingConfig(
            num_workers=footprint.workers,
            use_gpu=footprint.gpus_per_worker > 0,
            resources_per_worker={"CPU": footprint.cpus_per_worker, "GPU": footprint.gpus_per_worker},
            placement_strategy=footprint.placement.upper(),
        ),
        run_config=RunConfig(
            name=name,
            **for_ray(folder),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=1),
            callbacks=[TuneReportCallback()],
        ),
    )
    try:
        trainer.fit()
    finally:
        remove_folder(folder / name)


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
    note = partial(Store(config["store"]).note, config["job"].trial)
    work.train_trial(
        config["job"],
        config["recipe"],
        Store(config["store"]),
        config["fence"],
        "train",
        fields,
        lambda metrics: ray.train.report(metrics),
        dataset_in_place(config["data"], note if fields["rank"] == 0 else lambda text: None),
    )


# --- which error is the cause ---------------------------------------------------------------------


def lost_process(error: Any) -> bool:
    """Whether a worker died or hung, rather than failed: its peers then fail too, for want of it.

    Where a whole node goes, its peers' broken connections may be all that is known yet.
    """
    from ray.exceptions import RayActorError

    failures = error.worker_failures.values()
    if any(isinstance(one, RayActorError) or hasattr(one, "health_check_failure") for one in failures):
        return True
    return bool(failures) and all(_derived(cause(one)) == 2 for one in failures)


def cause(error: BaseException) -> BaseException:
    """The error of the work itself, out of the wrappers of Ray Train and Ray tasks."""
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return min(map(cause, error.worker_failures.values()), key=_derived)
    if isinstance(error, ControllerError):
        return cause(error.controller_failure)
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        return error.cause
    error = getattr(error, "health_check_failure", error)
    if isinstance(error, (RayActorError, WorkerCrashedError, OutOfMemoryError)):
        return ProcessLost(last_line(error))
    return error


def _derived(error: BaseException) -> int:
    """How likely a worker's error only follows from another worker's: ours never, a broken connection surely."""
    if type(error).__module__.startswith("trainers"):
        return 0
    text = str(error)
    broken = isinstance(error, ConnectionError) or any(sign in text for sign in _BROKEN)
    return 2 if broken else 1


def last_line(error: BaseException) -> str:
    """What Ray says of a process that it lost, in words of ours."""
    from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

    if isinstance(error, OutOfMemoryError) or "low on memory" in str(error):
        return f"its process was killed {_ATTEMPTS} times, as its node ran out of memory; {REMEDY_FOR_MEMORY}"
    if isinstance(error, (RayActorError, WorkerCrashedError)):
        return LOST
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
