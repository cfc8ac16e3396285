"""Does scheduling cost nothing and block nobody? Simulated trials of mixed footprints on simulated nodes.

    python benchmarks/scheduling.py [--trials 1000] [--nodes 16] [--cpus 4] [--seconds 30] [--gangs 20] [--json FILE]

Real Ray nodes (a raylet each), the real queue, Tune, leases, records and, for gangs, Ray Train; only what a trial does
is replaced by a sleep, and its footprint is of CPUs that these nodes claim to have. Told are

- utilisation: of what the cluster had from the first start to the last end, the share that trials held, the start of
  their processes included, and the share in which they slept; and the same of the bound: a scheduler
  without any overhead that starts the same trials in the same order on the same nodes;
- overhead: how much longer a trial held its room than it slept, of the first trials and of the last, without the first
  of each process, which waits for Python to start.

Half an hour on two cores and 12 GiB with the defaults.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.library import load_recipe
from orchestrator.packing import Node, Packing, next_to_start, size
from orchestrator.plan import Job
from orchestrator.progress import Progress
from orchestrator.spec import Resources
from orchestrator.store import Store

MIX = {Resources(cpus_per_worker=cpus): share for cpus, share in ((1, 0.4), (2, 0.3), (3, 0.15), (4, 0.15))}
GANGS = (
    Resources(workers=2, cpus_per_worker=4, placement="strict_spread"),
    Resources(workers=4, placement="strict_pack"),
    Resources(workers=6, cpus_per_worker=2),
)


def make_jobs(trials: int, gangs: int, seconds: float) -> tuple[list[Job], dict[str, float]]:
    """Jobs of mixed footprints and how long each sleeps: uniform around `seconds`."""
    draw = random.Random(0)
    config = load_recipe("digits").recipe.trial(seed=0)
    jobs, sleeps = [], {}
    for number in range(trials):
        key = f"{number:020x}"
        simple = draw.choices(list(MIX), list(MIX.values()))[0]
        footprint = GANGS[number % len(GANGS)] if number < gangs else simple
        jobs.append(Job(key, config, True, {}, footprint, f"trial {number}"))
        sleeps[key] = draw.uniform(0.5, 1.5) * seconds
    draw.shuffle(jobs)
    return jobs, sleeps


def bound(jobs: list[Job], sleeps: dict[str, float], nodes: list[Node]) -> float:
    """Seconds that a scheduler without overhead takes: whenever a trial ends, the largest that fit start."""
    waiting = sorted(jobs, key=lambda job: size(job.resources), reverse=True)
    running: list[tuple[float, str, Resources]] = []
    now = 0.0
    while waiting or running:
        while waiting:
            footprint = next_to_start(nodes, [r for _, _, r in running], [job.resources for job in waiting])
            if footprint is None:
                break
            job = next(one for one in waiting if one.resources == footprint)
            waiting.remove(job)
            heapq.heappush(running, (now + sleeps[job.trial], job.trial, footprint))
        now, _, _ = heapq.heappop(running)
    return now


class Timed(Progress):
    """Keeps when each trial began and ended."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.times: dict[str, list[float]] = {}

    def begin(self, trial: str) -> None:
        super().begin(trial)
        self.times.setdefault(trial, [time.monotonic()])

    def finish(self, trial: str, error: str | None = None, notes: Any = ()) -> None:
        super().finish(trial, error, notes)
        self.times[trial].append(time.monotonic())
        assert error is None, error


def sleep_instead() -> None:
    """In each worker process: a trial sleeps, and is recorded."""
    import types

    from orchestrator import trainable

    sleeps = json.loads(Path(os.environ["SLEEPS"]).read_text())

    def train_trial(
        job: Job, recipe: str, store: Store, fence: Any, executor: str, fields: Any, *rest: Any
    ) -> None:
        began, slept = time.time(), sleeps[job.trial]
        until = time.monotonic() + slept
        while time.monotonic() < until:
            fence.beat("asleep")
            time.sleep(min(0.5, max(0.0, until - time.monotonic())))
        if fields.get("rank", 0) == 0:
            store.begin_trial(job.trial, {})
            store.commit_trial(
                job.trial,
                {"kind": "slept", "key": job.trial, "began": began, "process": os.getpid()},
                guard=fence.confirm,
            )

    fake = types.ModuleType("orchestrator.work")
    fake.train_trial = train_trial  # type: ignore[attr-defined]
    fake.has_good_model = lambda *_: False  # type: ignore[attr-defined]
    sys.modules["orchestrator.work"] = fake
    import orchestrator

    orchestrator.work = fake  # type: ignore[attr-defined]
    # torch takes 300 MB and two seconds of each process
    trainable._device = lambda footprint: None  # type: ignore[assignment,return-value]
    trainable.dataset_in_place = lambda data, note: None
    trainable.still_missing = lambda job, store: job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--cpus", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--gangs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()

    jobs, sleeps = make_jobs(asked.trials, asked.gangs, asked.seconds)
    nodes = [Node(asked.cpus, 0) for _ in range(asked.nodes)]
    for job in jobs:
        assert Packing(nodes).place(job.resources), job.resources
    ideal = bound(jobs, sleeps, nodes)
    occupied = sum(job.resources.workers * job.resources.cpus_per_worker * sleeps[job.trial] for job in jobs)
    print(f"{len(jobs)} trials, {asked.gangs} of them gangs; the bound is {ideal:.0f} s", flush=True)

    with tempfile.TemporaryDirectory(prefix="ablate-") as folder:
        table = Path(folder, "sleeps.json")
        table.write_text(json.dumps(sleeps))
        os.environ.update(SLEEPS=str(table), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        times = run(jobs, asked.nodes, asked.cpus, Path(folder, "store"))

    first, last = min(begun for begun, _ in times.values()), max(ended for _, ended in times.values())
    took = last - first
    held = sum(
        job.resources.workers * job.resources.cpus_per_worker * (times[job.trial][1] - times[job.trial][0])
        for job in jobs
    )
    capacity = asked.nodes * asked.cpus
    order = sorted(
        (trial for trial in times if job_of(jobs, trial).resources.workers == 1), key=lambda t: times[t][0]
    )
    over = [times[trial][1] - times[trial][0] - sleeps[trial] for trial in order[capacity:]]
    fifth = max(1, len(over) // 5)
    gangs = [
        times[job.trial][1] - times[job.trial][0] - sleeps[job.trial]
        for job in jobs
        if job.resources.workers > 1
    ]
    told = {
        "trials": len(jobs),
        "nodes": asked.nodes,
        "CPUs of a node": asked.cpus,
        "seconds": round(took, 1),
        "seconds of the bound": round(ideal, 1),
        "utilisation, held": round(held / took / capacity, 4),
        "utilisation, asleep": round(occupied / took / capacity, 4),
        "utilisation of the bound": round(occupied / ideal / capacity, 4),
        "of the bound": round(ideal / took, 4),
        "overhead of a trial, s, median of the first fifth": round(statistics.median(over[:fifth]), 3),
        "overhead of a trial, s, median of the last fifth": round(statistics.median(over[-fifth:]), 3),
        "overhead of a gang, s, median": round(statistics.median(gangs), 1) if gangs else None,
    }
    for name, value in told.items():
        print(f"{name}: {value}")
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


def job_of(jobs: list[Job], trial: str) -> Job:
    return next(job for job in jobs if job.trial == trial)


def run(jobs: list[Job], nodes: int, cpus: int, root: Path) -> dict[str, list[float]]:
    """On a cluster of simulated nodes; when each trial began and ended, in seconds of this process's clock."""
    from orchestrator import cluster as ours

    os.environ.update(ours._ENVIRONMENT)
    import ray
    from ray.cluster_utils import Cluster

    from orchestrator.schedule import run_jobs

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": True,
            "dashboard_port": 0,
            "object_store_memory": 150_000_000,
        },
    )
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=cpus, object_store_memory=80_000_000)
        ray.init(
            cluster.address,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={
                "env_vars": {**ours._ENVIRONMENT, "SLEEPS": os.environ["SLEEPS"], "PYTHONPATH": os.getcwd()},
                "worker_process_setup_hook": sleep_instead,
            },
        )
        store = Store(root)
        store.prepare()
        with Timed(Console(file=sys.stderr), jobs, nodes * cpus) as progress:
            run_jobs(jobs, "digits", store, "auto", None, progress, lambda: None)
        return progress.times
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
