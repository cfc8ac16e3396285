"""Seconds and memory that trials side by side need for a decoded data set: each its own, or one in the object store.

python benchmarks/data_sharing.py --kind fashion_mnist --trials 4

Every trial is a process. Memory is its PSS, in which a page that n processes share counts 1/n in each; what a process
has before it loads is subtracted, and every page is touched.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from orchestrator import cluster


class Trial:
    """A process that has imported what a trial imports."""

    def __init__(self) -> None:
        import orchestrator.work  # noqa: F401
        from trainers.data.datasets import Dataset

        self.before = pss()
        self.dataset: Dataset | None = None

    def load(self, kind: str, root: str | None, shared: Any) -> float:
        """Seconds until the data are there, from their files or from the object store."""
        from orchestrator.sharing import dataset_in_place
        from trainers.config import DataConfig
        from trainers.data.datasets import load_dataset

        started = time.perf_counter()
        self.dataset = dataset_in_place(shared, print)
        if self.dataset is None:
            self.dataset = load_dataset(DataConfig(kind=kind, root=root, image_size=28))
        seconds = time.perf_counter() - started
        for split in (self.dataset.train, self.dataset.validation):
            assert split.images is not None
            split.images.sum()
        return seconds

    def memory(self) -> float:
        """MB of PSS more than before."""
        return (pss() - self.before) / 1e6


def pss() -> int:
    """Bytes of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="fashion_mnist")
    parser.add_argument("--root")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with cluster.connected("local"):
        import ray

        from orchestrator.sharing import _put
        from trainers.config import DataConfig

        print(f"{given.kind}, {given.trials} trials at once")
        print("| data | seconds until there, mean over trials | MB, sum over trials | seconds to put |")
        print("| :-- | --: | --: | --: |")
        for repeat in range(2 * given.repeats):
            started = time.perf_counter()
            shared = _put(DataConfig(kind=given.kind, root=given.root, image_size=28)) if repeat % 2 else None
            put = time.perf_counter() - started
            trials = [ray.remote(num_cpus=0)(Trial).remote() for _ in range(given.trials)]
            ray.get([trial.memory.remote() for trial in trials])  # all have started
            seconds = ray.get([trial.load.remote(given.kind, given.root, shared) for trial in trials])
            memory = ray.get([trial.memory.remote() for trial in trials])
            label = "shared" if repeat % 2 else "each its own"
            mean = sum(seconds) / len(seconds)
            print(
                f"| {label} | {mean:.2f} | {sum(memory):.0f} | {f'{put:.2f}' if shared else ''} |", flush=True
            )
            for trial in trials:
                ray.kill(trial)


if __name__ == "__main__":
    main()
