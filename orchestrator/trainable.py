"""What Ray Tune starts for each job: take the trial's lease, do what is still missing, tell how it ended."""

from __future__ import annotations

import gc
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.failures import failure
from orchestrator.gangs import cause, train_gang
from orchestrator.hangs import HUNG
from orchestrator.leases import Fence, Holder, Lease, LeaseLost, Leases, run_folder
from orchestrator.plan import Job
from orchestrator.sharing import SharedData, dataset_in_place
from orchestrator.spec import Executor, Resources
from orchestrator.store import Store

if TYPE_CHECKING:
    import torch

TRIAL, PART, EVALUATION = "trial", "part", "evaluation"
"""Of Tune's configuration: the trial, and which part of it; without, all that its process does."""
TRAINED = "trained"
"""What a trial's result says when its gang is done: it is measured by another process, with a footprint of its own."""
_START = "its start"


@dataclass(frozen=True)
class Assignment:
    """All that a Tune trial needs to know of its job.

    Attributes:
        executor: `inline` trains in the Tune trial's own process, `train` through Ray Train.
        holds: what the Tune trial's own process occupies; None: next to nothing, its workers have room of their own.
        run: of the command.
        data: decoded, in the object store; None: the trial reads its own.
    """

    job: Job
    recipe: str
    store: str
    executor: str
    run: str
    holds: Resources | None = None
    data: SharedData | None = None


def assigned(
    job: Job, recipe: str, store: Store, executor: Executor, run: str, data: SharedData | None = None
) -> Assignment:
    """A job with its executor.

    A gang needs Ray Train, and so does what is trained with other resources than it is measured with: its accelerators
    go to the next training, while a process of its own measures.
    """
    alone = job.resources.workers == 1 and _accelerators_and_cpus(job.resources) == _accelerators_and_cpus(
        job.resources.evaluation
    )
    chosen: str = executor
    if job.is_toy:
        chosen = "inline"
    elif executor == "auto":
        chosen = "inline" if alone or not job.train else "train"
    holds = job.footprint if chosen == "inline" else None
    return Assignment(job, recipe, str(store.root), chosen, run, holds, data)


def _accelerators_and_cpus(footprint: Resources) -> tuple[float, int]:
    return footprint.gpus_per_worker, footprint.cpus_per_worker


def part_of(config: dict[str, Any], assignments: dict[str, Assignment]) -> Assignment:
    """What one of Tune's trials is to do."""
    assignment = assignments[config[TRIAL]]
    if config.get(PART) != EVALUATION:
        return assignment
    return replace(assignment, executor="inline", holds=assignment.job.resources.evaluation)


def driver_resources(config: dict[str, Any], assignments: dict[str, Assignment]) -> dict[str, float]:
    """What a Tune trial itself holds. Train's workers have a placement group of their own."""
    assignment = part_of(config, assignments)
    if assignment.holds is None:
        # Nothing at all is refused, and any share of a CPU would keep the last workers from fitting.
        return {"memory": 1.0}
    return {"CPU": assignment.holds.cpus_per_worker, "GPU": assignment.holds.gpus_per_worker}


def run_job(config: dict[str, Any], assignments: dict[str, Assignment]) -> dict[str, Any]:
    """Train if needed, then evaluate. Errors of the work end in the store, not in Tune.

    Returns:
        `error` (None: all is done), `held` (by whom else), `stopped`, or `trained`: it is to be measured yet.
    """
    gc.collect()  # the traceback of a trial that failed in this process holds its tensors in a cycle
    assignment = part_of(config, assignments)
    store, trial = Store(assignment.store), assignment.job.trial
    before = store.trial_failure(trial)
    if before and before.get("type") == HUNG and before.get("run") == assignment.run:
        return {"error": before["error"]}
    leases = Leases(store.root, assignment.run)
    try:
        lease = _acquire(leases, trial)
    except OSError as error:
        return {"error": failure(error, error, _START)["error"]}
    if leases.stop_requested():
        if isinstance(lease, Lease):
            lease.release()
        return {"stopped": True}
    if isinstance(lease, Holder):
        return {"held": str(lease)}
    with lease:
        try:
            job = still_missing(assignment.job, store)
            if assignment.holds is None:
                if job.train:
                    _train_gang(replace(assignment, job=job), store, lease.fence)
                return {TRAINED: True} if job.evaluations else {"error": None}
            _work(replace(assignment, job=job), store, lease.fence)
        except Exception as error:
            return _ended(error, store, leases, trial)
    return {"error": None}


def _acquire(leases: Leases, trial: str) -> Lease | Holder:
    """Take a trial, and wait for what this run itself held on a node that is gone: its lease has to run out."""
    deadline = time.monotonic() + 2 * leases.ttl
    while True:
        found = leases.acquire(trial)
        ours = isinstance(found, Holder) and found.run == leases.run
        if not ours or leases.stop_requested() or time.monotonic() > deadline:
            return found
        time.sleep(1)


def _ended(error: Exception, store: Store, leases: Leases, trial: str) -> dict[str, Any]:
    from trainers.context import Interrupted

    why = cause(error)
    if isinstance(why, Interrupted):
        return {"stopped": True}
    if isinstance(why, LeaseLost):
        return {"held": str(why)}
    told = failure(why, error, place_of(leases, trial))
    with suppress(OSError):  # a full disk must not end the other trials, and this one is told of on screen
        store.fail_trial(trial, told)
    return {"error": f"{told['type']}: {told['error']}"}


def place_of(leases: Leases, trial: str) -> str:
    """Where a trial's work stood when its holder last told."""
    told = leases.progress(trial)
    return told[1] if told else _START


def still_missing(job: Job, store: Store) -> Job:
    """What is left to do of a job now that nobody else can be at it: another run may have done it meanwhile."""
    from orchestrator import work

    done = store.trial_record(job.trial) is not None and (not job.is_toy or store.has_arrays(job.trial))
    evaluations = {key: e for key, e in job.evaluations.items() if store.evaluation_record(key) is None}
    # a model that is needed once more, and damaged, is trained again
    done = done and (not evaluations or work.has_good_model(job.trial, store))
    return replace(job, train=not done, evaluations=evaluations)


def _train_gang(assignment: Assignment, store: Store, fence: Fence) -> None:
    folder = run_folder(store.root, assignment.run)
    train_gang(assignment.job, assignment.recipe, store, fence, folder, assignment.data)


def _work(assignment: Assignment, store: Store, fence: Fence) -> None:
    """What is left to do of a job, in this process."""
    from ray import tune

    from orchestrator import work

    job, holds = assignment.job, assignment.holds
    assert holds is not None
    if job.is_toy:
        if job.train:
            work.train_toys(job, store, fence, tune.report)
        return
    device, dataset = _device(holds), dataset_in_place(assignment.data, partial(store.note, job.trial))
    if job.train and holds != job.resources:  # it was to be measured only, and its model was found damaged
        _train_gang(assignment, store, fence)
    elif job.train:
        work.train_trial(
            job, assignment.recipe, store, fence, "inline", {"device": device}, tune.report, dataset
        )
    if job.evaluations:
        measured = replace(job, resources=holds)
        work.evaluate_trial(measured, store, fence, assignment.executor, device, dataset)


def _device(footprint: Resources) -> torch.device:
    import torch

    return torch.device("cuda", 0) if footprint.gpus_per_worker else torch.device("cpu")
