"""Connects to Ray, and says how many trials of a footprint fit on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import AblateError, CapacityError
from orchestrator.spec import Resources

# A short poll: Train's report and start-up wait for it. It costs one small RPC each time.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Node:
    cpus: float
    gpus: float


@contextmanager
def connected(address: str) -> Iterator[list[Node]]:
    """A Ray session: `local` starts one on this machine and ends it, `auto` or host:port joins one.

    The local one keeps its dashboard (loopback only): without it Tune leaks placement groups.

    Raises:
        AblateError: no cluster answers at the address.
    """
    local = address == "local"
    environment = {name: os.environ.setdefault(name, value) for name, value in _ENVIRONMENT.items()}
    if local:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    place: dict[str, Any] = (
        {"include_dashboard": True} if local else {"runtime_env": {"env_vars": environment}}
    )
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **place)
    except Exception as error:  # Ray raises bare Exceptions too
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        what = "Ray could not be started here" if local else f"no Ray cluster answers at --address {address}"
        raise AblateError(f"{what}: {first}") from None
    try:
        yield [
            Node(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
            for node in ray.nodes()
            if node["Alive"]
        ]
    finally:
        ray.shutdown()


def trials_at_once(nodes: list[Node], footprint: Resources, limit: int | None = None) -> int:
    """How many trials of one footprint fit side by side; a worker never spans nodes.

    Raises:
        CapacityError: not even one fits on the whole cluster.
    """
    workers = sum(_workers_on(node, footprint) for node in nodes)
    fitting = workers // footprint.workers
    if fitting == 0:
        largest = max(nodes, key=lambda node: (node.gpus, node.cpus), default=Node(0, 0))
        raise CapacityError(
            f"a trial needs {footprint.workers} x ({footprint.cpus_per_worker} CPU, "
            f"{footprint.gpus_per_worker:g} GPU), "
            f"the cluster of {len(nodes)} node(s) fits {workers} such worker(s); its largest node has "
            f"{largest.cpus:g} CPU, {largest.gpus:g} GPU; see resources.* in the recipe"
        )
    return min(fitting, limit) if limit else fitting


def _workers_on(node: Node, footprint: Resources) -> int:
    by_cpu = int(node.cpus // footprint.cpus_per_worker)
    share = footprint.gpus_per_worker
    if not share:
        return by_cpu
    # a worker's share lies on one GPU; the small term undoes 1 // 0.2 = 4
    by_gpu = int(node.gpus) * int(1 / share + 1e-9) if share < 1 else int(node.gpus // share)
    return min(by_cpu, by_gpu)
