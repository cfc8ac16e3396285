"""What runs on a worker: train a trial and commit it, measure a trial and commit that. Knows no Ray.

Both executors call the same two functions; only the TrialContext differs.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from orchestrator.failures import EvaluationsFailed
from orchestrator.leases import Fence
from orchestrator.plan import Job
from orchestrator.software import code, commit, versions
from orchestrator.store import Store
from trainers import EVALUATION_VERSION, NUMERICS_VERSION, THEORY_VERSION
from trainers.checkpoint import DamagedError, read
from trainers.config import EvaluationConfig, ToyRun, TrialConfig
from trainers.context import Interrupted, TrialContext
from trainers.contrastive import ContrastiveModel, load_model, make_reproducible, train
from trainers.data.datasets import DataError, Dataset, load_dataset
from trainers.data.signature import signature
from trainers.evaluate import PROBE_STATES, evaluate
from trainers.files import MODEL, sha256_of
from trainers.theory import run_toys


def train_trial(
    job: Job,
    recipe: str,
    store: Store,
    fence: Fence,
    executor: str,
    context_fields: dict[str, Any],
    report: Callable[..., None],
    dataset: Dataset | None = None,
) -> None:
    """Train from the trial's last state to its end; rank 0 commits the record.

    Args:
        dataset: the trial's data, if they are loaded already.

    Raises:
        LeaseLost: another process has taken the trial over.
        trainers.context.Interrupted: the run was asked to stop; the state is saved.
    """
    assert isinstance(job.config, TrialConfig)
    started = _now()
    directory = store.trial_directory(job.trial)
    rank = context_fields.get("rank", 0)
    if rank == 0:
        store.begin_trial(job.trial, job.config.model_dump(mode="json"))
    context = TrialContext(
        directory=directory,
        report=report,
        loader_processes=job.resources.loader_processes,
        threads=job.resources.cpus_per_worker,
        state_seconds=job.limits.state_seconds,
        corrupt_images=job.limits.corrupt_images,
        beat=fence.beat if rank == 0 else lambda where: None,
        note=partial(store.note, job.trial) if rank == 0 else lambda text: None,
        guard=fence.confirm,
        stopping=fence.stopping,
        **context_fields,
    )
    result = train(job.config, context, dataset)
    if context.rank != 0:
        return
    record = {
        "kind": "trial",
        "key": job.trial,
        "recipe": recipe,
        "config": job.config.model_dump(mode="json"),
        "numerics_version": NUMERICS_VERSION,
        "started": started,
        "finished": _now(),
        "seconds": sum(epoch["seconds"] for epoch in result.history),  # of all attempts
        "epochs": len(result.history),
        "metrics": result.metrics,
        "dataset": {
            "name": job.config.data.name or job.config.data.kind,
            "fingerprint": result.dataset_fingerprint,
            "signature": signature(job.config.data),
        },
        "environment": environment(executor, job, context.device),
    }
    if result.corrupt_images:
        record["corrupt_images"] = result.corrupt_images
    store.commit_trial(job.trial, record, guard=fence.confirm)


def has_good_model(trial: str, store: Store) -> bool:
    """Whether a finished trial's weights are there and meet their checksum."""
    try:
        read(store.trial_directory(trial) / "checkpoints" / MODEL)
    except (FileNotFoundError, DamagedError):
        return False
    return True


def train_toys(job: Job, store: Store, fence: Fence, report: Callable[..., None]) -> None:
    """Train all toy networks of a figure and commit them with what the figure is drawn from."""
    assert isinstance(job.config, ToyRun)
    started, clock = _now(), time.perf_counter()
    store.begin_trial(job.trial, job.config.model_dump(mode="json"))
    device = torch.device("cpu")

    def tell(metrics: dict[str, float]) -> None:
        fence.beat(f"{metrics['epoch'] + 1:g} of 100 parts")
        if fence.stopping():
            raise Interrupted  # there are no states: a run of toy networks takes a minute
        report(metrics)

    result = run_toys(job.config, device, tell, threads=job.resources.cpus_per_worker)
    record = {
        "kind": "toy",
        "key": job.trial,
        "recipe": "",
        "config": job.config.model_dump(mode="json"),
        "numerics_version": THEORY_VERSION,
        "started": started,
        "finished": _now(),
        "seconds": time.perf_counter() - clock,
        "metrics": {},
        "cases": result.metrics,
        "environment": environment("inline", job, device),
    }
    store.commit_trial(job.trial, record, result.arrays, fence.confirm)


def evaluate_trial(
    job: Job,
    store: Store,
    fence: Fence,
    executor: str,
    device: torch.device,
    dataset: Dataset | None = None,
) -> None:
    """Measure a trained trial; each evaluation is committed on its own.

    Args:
        dataset: the trial's data with all validation images, if they are loaded already.

    Raises:
        EvaluationsFailed: some cannot be made; the others are.
    """
    standing = _Standing(fence)
    with standing:
        _evaluate_trial(job, store, fence, executor, device, dataset, standing.beat)


def _evaluate_trial(
    job: Job,
    store: Store,
    fence: Fence,
    executor: str,
    device: torch.device,
    dataset: Dataset | None,
    beat: Callable[[str], None],
) -> None:
    assert isinstance(job.config, TrialConfig)
    directory = store.trial_directory(job.trial)
    context = TrialContext(directory=directory, device=device, threads=job.resources.cpus_per_worker)
    make_reproducible(job.config, context)
    if dataset is None:
        whole = job.config.data.model_copy(update={"validation_images": None})
        dataset = load_dataset(whole, beat, partial(store.note, job.trial))
    model = load_model(directory / "checkpoints" / MODEL, job.config, dataset, context)
    errors: dict[str, Exception] = {}
    for images, evaluations in _by_validation_images(job).items():
        try:
            measured_on = dataset.validated_on(images)
        except DataError as error:
            errors |= dict.fromkeys(evaluations, error)
            continue
        one = replace(job, evaluations=evaluations)
        errors |= _commit_evaluations(one, model, measured_on, images, store, fence, executor, device, beat)
    if errors:
        raise EvaluationsFailed(errors)
    fence.confirm()
    for state in (directory / "checkpoints").glob(PROBE_STATES):
        state.unlink(missing_ok=True)
    store.clear_failure(job.trial)


def _commit_evaluations(
    job: Job,
    model: ContrastiveModel,
    dataset: Dataset,
    images: int | None,
    store: Store,
    fence: Fence,
    executor: str,
    device: torch.device,
    beat: Callable[[str], None],
) -> dict[str, Exception]:
    """Make a job's evaluations on one data set; the errors of those that cannot be made, by key."""
    assert isinstance(job.config, TrialConfig)
    checkpoints = store.trial_directory(job.trial) / "checkpoints"
    weights = sha256_of(checkpoints / MODEL)
    waiting, errors = dict(job.evaluations), dict[str, Exception]()

    def failed(error: Exception) -> None:
        key = next(iter(waiting))
        del waiting[key]
        errors[key] = error

    started, clock = _now(), time.perf_counter()
    results = evaluate(
        job.config,
        model.backbone,
        model.head,
        list(job.evaluations.values()),
        device,
        loader_processes=job.resources.loader_processes,
        dataset=dataset,
        corrupt_images=job.limits.corrupt_images,
        beat=beat,
        note=lambda text: store.note(job.trial, f"evaluation: {text}"),
        states=checkpoints,
        # states of a probe hold what it measured so far, on these images
        states_of=weights if images is None else f"{weights} on {images} images",
        guard=fence.confirm,
        failed=failed,
    )
    for result in results:
        key = next(iter(waiting))
        protocol = waiting.pop(key)
        config = protocol.model_dump(mode="json")
        record = {
            "kind": "evaluation",
            "key": key,
            "trial": job.trial,
            "evaluation": config,
            "metrics": result.metrics,
            "numerics_version": EVALUATION_VERSION,
            "started": started,
            "finished": _now(),
            "seconds": time.perf_counter() - clock,  # the first also extracts the features
            "environment": environment(executor, job, device),
        }
        if result.corrupt_images:
            record["corrupt_images"] = result.corrupt_images
        store.commit_evaluation(key, config, record, result.arrays, fence.confirm)
        started, clock = _now(), time.perf_counter()
    return errors


def _by_validation_images(job: Job) -> dict[int | None, dict[str, EvaluationConfig]]:
    """A job's evaluations, those together that are made on the same images."""
    assert isinstance(job.config, TrialConfig)
    groups: dict[int | None, dict[str, EvaluationConfig]] = {}
    for key, protocol in job.evaluations.items():
        images = job.validation_images.get(key, job.config.data.validation_images)
        groups.setdefault(images, {})[key] = protocol
    return groups


class _Standing:
    """Tells where an evaluation stands, and gives what ends it a note of that."""

    def __init__(self, fence: Fence) -> None:
        self._fence, self._where = fence, "its evaluation"

    def beat(self, where: str) -> None:
        """Ends the evaluation at once when asked to: what it committed stays, and probes keep states of their own."""
        self._where = where
        self._fence.beat(where)
        if self._fence.stopping():
            raise Interrupted

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(self._where)


def environment(executor: str, job: Job, device: torch.device) -> dict[str, Any]:
    """Where and with what a result was made. No part of its key."""
    return {
        "executor": executor,
        "workers": job.resources.workers,
        # on rank 0's machine, as torch's launchers tell
        "workers_beside": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "cpus_per_worker": job.resources.cpus_per_worker,
        "gpus_per_worker": job.resources.gpus_per_worker,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": _processor(),
        "versions": versions(),
        "commit": commit(),
        "code": code(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
