"""The paper's suite at ImageNet scale on clusters of 8, 32 and 256 accelerators, reckoned from the real plan.

    python benchmarks/scaling.py [--seeds 3] [--speed 1] [--price 2]

Nothing is trained: `make_plan` tells the trials, and the queue's own packing tells when each could start, as it would
on an idle cluster without overhead. Hours are those of V100s as the paper's released code states them (224 a training,
160 a linear evaluation under its protocol), divided by `--speed` for faster accelerators.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass

from orchestrator.packing import Node, next_to_start
from orchestrator.plan import make_plan
from orchestrator.spec import Resources

TRAINING_HOURS, REFERENCE_PROBE_HOURS = 224.0, 160.0
"""Of one V100: PAPER.md, "Cost"."""
CACHED_HOURS = 1.0
"""An assumption: one pass of the backbone over 1.33 million images on one accelerator, then probes on the features."""
TWO_FORWARDS = 4 / 3
"""Of gradient caching: two forwards and a backward in place of one and one, a backward being two forwards."""


@dataclass(frozen=True)
class Timeline:
    """Hours, and accelerator-hours."""

    until_trained: float
    until_done: float
    used: float


def simulate(
    trainings: int, gang: Resources, training: float, measuring: float, nodes: list[Node], whole: bool
) -> Timeline:
    """Start whatever fits, the largest first, whenever something ends.

    Args:
        training, measuring: hours of one, wall time.
        whole: whether a gang keeps its accelerators while it is measured.
    """
    waiting = [gang] * trainings
    running: list[tuple[float, int, Resources, bool]] = []
    now = trained = used = 0.0
    number = 0
    while waiting or running:
        while (footprint := next_to_start(nodes, [one for _, _, one, _ in running], waiting)) is not None:
            waiting.remove(footprint)
            trains = footprint == gang
            hours = training + (measuring if whole else 0) if trains else measuring
            used += hours * footprint.workers * footprint.gpus_per_worker
            number += 1
            heapq.heappush(running, (now + hours, number, footprint, trains))
        now, _, _, trains = heapq.heappop(running)
        if trains:
            trained = now
            if not whole:
                waiting.append(gang.evaluation)
    return Timeline(trained, now, used)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--speed", type=float, default=1, help="of an accelerator, in V100s")
    parser.add_argument("--price", type=float, default=2, help="of an accelerator-hour")
    asked = parser.parse_args()
    seeds = tuple(range(asked.seeds))
    print(
        f"{asked.seeds} seed(s), accelerators of {asked.speed:g} V100s at {asked.price:g} an hour\n\n"
        "| accelerators | recipe | linear evaluation | trained after | done after | accelerator-hours | used | cost "
        "| done after, were gangs kept until measured |\n|--:|---|---|--:|--:|--:|--:|--:|--:|"
    )
    for machines in (1, 4, 32):
        name = "imagenet_8gpu" if machines == 1 else "imagenet"
        plan = make_plan(["paper"], name, seeds, ("data.root=/data/imagenet",))
        gang = next(footprint for footprint in plan.resources.values() if footprint.workers > 1)
        trainings = sum(footprint == gang for footprint in plan.resources.values())
        nodes = [Node(8 * gang.cpus_per_worker, 8) for _ in range(machines)]
        extra = TWO_FORWARDS if machines == 1 else 1.0
        training = TRAINING_HOURS * extra / gang.workers / asked.speed
        for protocol, measuring in (("reference", REFERENCE_PROBE_HOURS), ("cached", CACHED_HOURS)):
            found, kept = (
                simulate(trainings, gang, training, measuring / asked.speed, nodes, whole)
                for whole in (False, True)
            )
            share = found.used / found.until_done / (8 * machines)
            print(
                f"| {8 * machines} | `{name}` | {protocol} | {_span(found.until_trained)} | {_span(found.until_done)} "
                f"| {found.used:,.0f} | {share:.0%} | {found.until_done * 8 * machines * asked.price:,.0f} "
                f"| {_span(kept.until_done)} |"
            )
    print(f"\n{trainings // asked.seeds} trainings a seed")


def _span(hours: float) -> str:
    return f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.1f} days"


if __name__ == "__main__":
    main()
