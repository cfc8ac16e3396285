"""Which trials fit side by side on the nodes of a cluster, and which of those that wait is to start next.

Placement itself is Ray's. This only keeps what is started to what truly fits, since a gang's workers are no part of
the Tune trial that starts them, and a process that waits for room costs memory. Where Ray places otherwise than is
reckoned here, a trial waits in Ray's queue and holds nothing meanwhile: no mix of footprints ends in a deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from orchestrator.spec import Resources

_TINY = 1e-6
"""Three thirds of an accelerator are one."""


@dataclass(frozen=True)
class Node:
    """Attributes:
    name: for people: its host and address.
    memory: bytes.
    custom: other resources that it offers, with their amounts.
    """

    cpus: float
    gpus: float
    id: str = ""
    name: str = ""
    memory: float = 0
    accelerator: str = ""
    custom: tuple[tuple[str, float], ...] = ()


def size(footprint: Resources) -> tuple[float, int, int]:
    """What larger trials have more of: accelerators, then CPUs, then workers."""
    workers = footprint.workers
    return footprint.gpus_per_worker * workers, footprint.cpus_per_worker * workers, workers


def described(footprint: Resources) -> str:
    """`4 x (2 CPU, 1 GPU)`, as messages have it."""
    return f"{footprint.workers} x ({footprint.cpus_per_worker} CPU, {footprint.gpus_per_worker:g} GPU)"


class Packing:
    """What is left of each node once trials are placed."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._free = [_Free(node.cpus, [1.0] * int(node.gpus)) for node in nodes]

    def place(self, footprint: Resources) -> bool:
        """Place one trial's workers as its placement says, where the least is left over; False if they don't fit."""
        wanted = footprint.workers
        rooms = [(node.fits(footprint, wanted), node) for node in self._free]
        whole = [node for fits, node in rooms if fits == wanted]
        strategy = footprint.placement
        if strategy in ("pack", "strict_pack") and whole:
            min(whole, key=_Free.left).take(footprint, wanted)
            return True
        if strategy == "strict_pack":
            return False
        if strategy == "strict_spread":
            rooms = [(min(fits, 1), node) for fits, node in rooms]
        if sum(fits for fits, _ in rooms) < wanted:
            return False
        match strategy:
            case "pack":  # on as few nodes as possible
                for fits, node in sorted(rooms, key=lambda room: -room[0]):
                    wanted -= node.take(footprint, min(fits, wanted))
            case "spread" | "strict_spread":
                while wanted:  # a worker on each node that has room, and again
                    for fits, node in sorted(rooms, key=lambda room: -room[0]):
                        if wanted and fits and node.fits(footprint, 1):
                            wanted -= node.take(footprint, 1)
            case _:
                assert_never(strategy)
        return True


class _Free:
    def __init__(self, cpus: float, gpus: list[float]) -> None:
        self.cpus, self.gpus = cpus, gpus  # of each accelerator, what is left

    def left(self) -> tuple[float, float]:
        return sum(self.gpus), self.cpus

    def fits(self, footprint: Resources, most: int) -> int:
        """How many workers; at most so many."""
        by_cpu = int((self.cpus + _TINY) // footprint.cpus_per_worker)
        share = footprint.gpus_per_worker
        if not share:
            return min(by_cpu, most)
        if share < 1:  # a worker's share lies on one accelerator
            by_gpu = sum(int((left + _TINY) / share) for left in self.gpus)
        else:
            by_gpu = int(sum(left > 1 - _TINY for left in self.gpus) // share)
        return min(by_cpu, by_gpu, most)

    def take(self, footprint: Resources, workers: int) -> int:
        """Take the room of so many workers, which fit."""
        self.cpus -= workers * footprint.cpus_per_worker
        share = footprint.gpus_per_worker
        for _ in range(workers if 0 < share < 1 else 0):
            enough = [index for index, left in enumerate(self.gpus) if left + _TINY >= share]
            fullest = min(enough, key=lambda index: self.gpus[index])
            self.gpus[fullest] -= share
        if share >= 1:
            whole = [index for index, left in enumerate(self.gpus) if left > 1 - _TINY]
            for index in whole[: round(workers * share)]:
                self.gpus[index] = 0.0
        return workers


def side_by_side(nodes: Iterable[Node], footprints: Iterable[Resources]) -> int:
    """How many of the given trials run at once at the start, the largest first."""
    packing = Packing(nodes)
    full: set[Resources] = set()
    placed = 0
    for footprint in sorted(footprints, key=size, reverse=True):
        if footprint in full:
            continue
        if packing.place(footprint):
            placed += 1
        else:
            full.add(footprint)
    return placed


def next_to_start(
    nodes: Iterable[Node], running: Iterable[Resources], waiting: Iterable[Resources]
) -> Resources | None:
    """The largest waiting footprint that fits beside what runs; None if none does."""
    packing = Packing(nodes)
    for footprint in sorted(running, key=size, reverse=True):
        packing.place(footprint)  # else its node is gone, or Ray has placed it better
    for footprint in sorted(set(waiting), key=size, reverse=True):
        if packing.place(footprint):
            return footprint
    return None
