"""Decoded data sets in Ray's object store: once on each node, and read in place by all of its trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.plan import Job
from trainers.config import DataConfig, TrialConfig

if TYPE_CHECKING:
    from trainers.data.datasets import Dataset

_ARRIVAL_SECONDS = 300.0
"""So long a node may take to get the arrays from another; a trial then reads the files."""


@dataclass(frozen=True)
class SharedData:
    """A reference to arrays, wrapped: Ray would put the arrays in the place of a bare one."""

    reference: Any


def shared_data(jobs: list[Job], warn: Callable[[str], None]) -> dict[str, SharedData]:
    """Read each small data set of the jobs and put it into the object store; needs a connected Ray.

    Image folders stay where they are: they don't fit. So does what can't be read or stored here; its trials read, and
    complain, themselves.

    Args:
        warn: called with each sentence that reading has for people.

    Returns:
        By trial, of those whose data are there now. This process owns them: they last as long as it does.
    """
    from ray.exceptions import RayError

    from trainers.data.datasets import DataError

    there: dict[DataConfig, SharedData] = {}
    by_trial = {}
    for job in jobs:
        if not isinstance(job.config, TrialConfig) or job.config.data.kind == "imagefolder":
            continue
        data = job.config.data.model_copy(update={"validation_images": None})
        try:
            by_trial[job.trial] = there[data] = there.get(data) or _put(data, warn)
        except (DataError, OSError, MemoryError, RayError):
            continue
    return by_trial


def _put(data: DataConfig, warn: Callable[[str], None]) -> SharedData:
    import ray

    from trainers.data.datasets import load_dataset

    return SharedData(ray.put(load_dataset(data, note=warn).arrays()))


def dataset_in_place(data: SharedData | None, note: Callable[[str], None]) -> Dataset | None:
    """A shared data set, without a copy; None where there is none.

    Args:
        note: told of one that is lost, with its node or owner.
    """
    import ray
    from ray.exceptions import RayError

    from trainers.data.datasets import Dataset

    if data is None:
        return None
    try:
        return Dataset.from_arrays(ray.get(data.reference, timeout=_ARRIVAL_SECONDS))
    except RayError as error:
        note(f"its data are no longer in Ray's object store ({type(error).__name__}); read from data.root")
        return None
