"""Asks the cluster's autoscaler for the nodes that trials need, and waits for them.

Ray tells nowhere which types of nodes an autoscaler knows, so that nobody can say beforehand whether one will fit. And
trials that are kept back until they fit are no demand that an autoscaler would see. So the demand is stated, and where
no node fits a trial one is waited for, as long as for nodes that went; only then is the cluster said never to fit it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from orchestrator.cluster import nodes_now, why_it_fits_nowhere
from orchestrator.errors import CapacityError
from orchestrator.packing import Node
from orchestrator.plan import Job
from orchestrator.progress import duration
from orchestrator.room import GIVE_UP_AFTER
from orchestrator.spec import Resources

_LOOK_EVERY = 2.0
_STATUS = "__autoscaling_status"
_UNNAMED = "node_"
"""How a monitor that only reports names the types of nodes, each after its node."""


def autoscales() -> bool:
    """Whether the connected cluster has an autoscaler that starts nodes. Every cluster has one that reports."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        types = [node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)]
    else:
        report = json.loads(_internal_kv_get(_STATUS) or "{}").get("autoscaler_report") or {}
        types = list((report.get("node_type_mapping") or {}).values())
    return any(not name.startswith(_UNNAMED) for name in types)


@contextmanager
def nodes_for(
    jobs: Sequence[Job], limit: int | None, nodes: list[Node], say: Callable[[str], None]
) -> Iterator[list[Node]]:
    """The cluster's nodes, once each of the jobs fits by itself if an autoscaler can bring that about.

    What all jobs need, or as many as may run at once, is asked for until the end: nodes start within the autoscaler's
    bounds, and idle ones go after it.

    Raises:
        CapacityError: one fits nowhere, and the autoscaler brought no node for it.
    """
    if not autoscales():
        yield nodes
        return
    from ray.autoscaler.sdk import request_resources

    footprints = [job.footprint for job in jobs]
    request_resources(bundles=[bundle for footprint in footprints[:limit] for bundle in _bundles(footprint)])
    try:
        yield _once_all_fit(set(footprints), nodes, say)
    finally:
        request_resources(bundles=[])


def _bundles(footprint: Resources) -> list[dict[str, float]]:
    worker = {"CPU": float(footprint.cpus_per_worker), "GPU": footprint.gpus_per_worker}
    return [{name: amount for name, amount in worker.items() if amount}] * footprint.workers


def _once_all_fit(footprints: set[Resources], nodes: list[Node], say: Callable[[str], None]) -> list[Node]:
    began, told = time.monotonic(), False
    while problem := next(filter(None, (why_it_fits_nowhere(nodes, one) for one in footprints)), None):
        if not told:
            told = True
            say(f"{problem}; waiting {duration(GIVE_UP_AFTER)} for the cluster's autoscaler")
        if time.monotonic() - began > GIVE_UP_AFTER:
            raise CapacityError(
                f"{problem}; the autoscaler brought no such node in {duration(GIVE_UP_AFTER)}"
            )
        time.sleep(_LOOK_EVERY)
        nodes = nodes_now()
    return nodes
