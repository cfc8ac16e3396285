"""The toy networks of the paper's theory (Sections 4 and 5, App. B and C): all cases of a figure in one run.

Cases of one architecture are trained as one batch of matrices, with gradients in closed form, in float64.
Each depth is a batch of its own, which takes a sixth less time than padding all to the deepest with identities.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from trainers.config import ToyRun
from trainers.theory.measures import summarise
from trainers.theory.training import Part, Series, split, train

REPORTS = 100


@dataclass(frozen=True)
class ToyResult:
    """What a run measured, at T recorded iterations, the first and the last among them.

    Attributes:
        metrics: for each case by name one value per network, see `measures.summarise`.
        arrays: those of case n are named "n/...": iterations (T,), weight_singular_values
            (networks, T, L, dim) and embedding_spectrum (networks, T, dim), see `measures.embedding_spectrum`;
            with L > 1 alignment (networks, L - 1, dim, dim) at the end; without ReLU product_singular_values
            (networks, T, dim). Of linear networks contrast_eigenvalues (of X per sample, Eq. 6), (networks,
            T, dim); with L > 1 conserved_drift (networks, T), and predicted_growth and aligned (networks, T,
            dim), see `measures.growth_agreement`.
    """

    metrics: list[dict[str, list[float]]]
    arrays: dict[str, np.ndarray]


def run_toys(
    run: ToyRun,
    device: torch.device,
    report: Callable[[dict[str, float]], None],
    threads: int = 1,
) -> ToyResult:
    """Train all networks of all cases and measure them. The numbers do not depend on `threads`.

    Args:
        report: called at most 100 times, in the calling thread, with `epoch` (the hundredth of the work that
            is done, from 0), `epochs` (100), `loss` (mean over networks and iterations since the last
            report) and `seconds` (since then).
        threads: parts of the run trained at the same time, on the CPU.

    Raises:
        FloatingPointError: a loss or a weight became infinite or NaN; names case, network, iteration, remedy.
    """
    parts = split(run, device)
    progress = _Progress(sum(part.work for part in parts), report)
    results = _train_all(parts, device, progress, threads if device.type == "cpu" else 1)
    metrics: list[dict[str, list[float]]] = []
    arrays: dict[str, np.ndarray] = {}
    for n in range(len(run.cases)):
        series = _joined([(part, found[n]) for part, found in zip(parts, results, strict=True) if n in found])
        metrics.append(summarise(series))
        arrays |= {f"{n}/{name}": values for name, values in series.items() if name != "loss"}
    return ToyResult(metrics, arrays)


def _joined(found: list[tuple[Part, Series]]) -> Series:
    """One case's series of all its networks, in their order."""
    ordered = [series for _, series in sorted(found, key=lambda pair: pair[0].networks.start)]
    joined = {name: np.concatenate([series[name] for series in ordered]) for name in ordered[0]}
    return joined | {"iterations": ordered[0]["iterations"]}


class _Stopped(Exception):
    """Another part failed, or the caller gave up."""


def _train_all(
    parts: list[Part], device: torch.device, progress: _Progress, threads: int
) -> list[dict[int, Series]]:
    """The parts side by side, each on one thread; the first error ends them all."""
    events: queue.SimpleQueue[tuple[int, float] | Future[dict[int, Series]]] = queue.SimpleQueue()
    stopped = False

    def watch(work: int, loss: float) -> None:
        if stopped:
            raise _Stopped
        events.put((work, loss))

    with _one_thread_each(), ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(train, part, device, watch) for part in parts]
        try:
            for future in futures:
                future.add_done_callback(events.put)
            running = len(futures)
            while running:
                event = events.get()
                if isinstance(event, Future):
                    event.result()
                    running -= 1
                else:
                    progress.add(*event)
        finally:
            stopped = True
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Matrices this small are faster on one core; parts run side by side instead."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Progress:
    """Reports each hundredth of the work once."""

    def __init__(self, total: int, report: Callable[[dict[str, float]], None]) -> None:
        self.total, self.report = total, report
        self.done = self.reported = self.since = 0
        self.loss = 0.0
        self.clock = time.perf_counter()

    def add(self, work: int, loss: float) -> None:
        """Some work is done, at this mean loss."""
        self.done += work
        self.since += work
        self.loss += work * loss
        reached = REPORTS * self.done // self.total
        if reached == self.reported:
            return
        now = time.perf_counter()
        self.report(
            {
                "epoch": reached - 1,
                "epochs": REPORTS,
                "loss": self.loss / self.since,
                "seconds": now - self.clock,
            }
        )
        self.reported, self.clock, self.since, self.loss = reached, now, 0, 0.0
