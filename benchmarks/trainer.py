"""Where a training's CPU time goes: the phases of a step, gradient caching, and the live view of collapse.

Command: python benchmarks/trainer.py [RECIPE] [--set PATH=VALUE]... [--parts P [P ...]]
Microseconds per image for views, forward, backward and optimizer; then forward and backward in P parts, with
the MiB of activations that autograd holds for the backward pass; then what the live view adds to an epoch.
One core; process time, so that a busy machine disturbs little. Compare only figures of one run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import count, pairwise
from pathlib import Path

import torch

from orchestrator.library import load_recipe
from trainers.collapse import CollapseWatch
from trainers.config import TrialConfig
from trainers.context import TrialContext
from trainers.contrastive import Losses, Outputs, build_model, make_reproducible, objective
from trainers.data.datasets import load_dataset
from trainers.data.loader import ViewLoader
from trainers.gradient_cache import backward_in_parts
from trainers.lars import build_optimizer
from trainers.precision import autocast

STEPS = 10


class Training:
    """One trial's steps on fresh batches, and the end of its epochs."""

    def __init__(self, config: TrialConfig) -> None:
        self.config, context = config, TrialContext(directory=Path())
        make_reproducible(config, context)
        dataset = load_dataset(config.data)
        loader = ViewLoader(dataset, config)
        self.steps_per_epoch = loader.steps_per_epoch
        self.batches = (batch for epoch in count() for batch in loader.epoch(epoch))
        self.model = build_model(config, dataset, context)
        self.optimizer = build_optimizer(config.optimizer, self.model.parameters())
        self.cast = partial(autocast, config.precision, context.device)

    def phases(self, step: int) -> dict[str, float]:
        """Seconds of each phase of a step in one piece."""
        marks = [("", time.process_time())]
        view1, view2, labels = next(self.batches)
        marks.append(("views", time.process_time()))
        with self.cast():
            losses = self.losses(self.model(view1, view2, step), labels)
        marks.append(("forward", time.process_time()))
        losses.total.backward()
        marks.append(("backward", time.process_time()))
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(("optimizer", time.process_time()))
        return {name: mark - before for (_, before), (name, mark) in pairwise(marks)}

    def both_passes(self, step: int, parts: int) -> float:
        """Seconds of forward and backward in parts, or in one piece."""
        view1, view2, labels = next(self.batches)
        compare = partial(self.losses, labels=labels)
        start = time.process_time()
        if parts > 1:
            scaler = torch.amp.GradScaler("cpu", enabled=False)
            backward_in_parts(self.model, (view1, view2), step, parts, compare, scaler, self.cast)
        else:
            with self.cast():
                losses = compare(self.model(view1, view2, step))
            losses.total.backward()
        seconds = time.process_time() - start
        self.optimizer.zero_grad()
        return seconds

    def losses(self, outputs: Outputs, labels: torch.Tensor) -> Losses:
        return objective(outputs, labels, self.config.loss)

    def live_view(self, folder: Path) -> float:
        """Seconds at an epoch's end: as features, those of one batch time and again."""
        view1, view2, _ = next(self.batches)
        with torch.no_grad(), self.cast():
            outputs = self.model(view1, view2, 0)
        watch = CollapseWatch(
            self.config, TrialContext(directory=folder), not self.model.head.evaluates_to_r, spectra=[]
        )
        start = time.process_time()
        for epoch in range(STEPS):
            for _ in range(self.steps_per_epoch):
                watch.see(outputs.r1, outputs.z1)
            watch.measure(epoch)
        return (time.process_time() - start) / STEPS


def most_held(model: torch.nn.Module, run: Callable[[], object]) -> int:
    """The most bytes that autograd held at one time for backward passes, beside parameters and buffers."""
    own = {x.untyped_storage().data_ptr() for x in [*model.parameters(), *model.buffers()]}
    holders: dict[int, int] = {}  # storage -> how many saved tensors lie in it
    held = most = 0

    class Saved:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal held, most
            self.tensor, storage = tensor, tensor.untyped_storage()
            self.place = storage.data_ptr()
            self.bytes = 0 if self.place in own else storage.nbytes()
            holders[self.place] = holders.get(self.place, 0) + 1
            held += self.bytes if holders[self.place] == 1 else 0
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            holders[self.place] -= 1
            held -= self.bytes if holders[self.place] == 0 else 0

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        run()
    return most


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default="digits")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4], help="of gradient_cache")
    arguments = parser.parse_args()
    training = Training(load_recipe(arguments.recipe, tuple(arguments.sets)).recipe.trial(0))
    images = training.config.batch_size

    training.phases(0)  # the first step allocates and compiles kernels
    phases = [training.phases(step) for step in range(1, STEPS + 1)]
    mean = {name: sum(step[name] for step in phases) / STEPS for name in phases[0]}
    step_seconds = sum(mean.values())
    title = " ".join([arguments.recipe, *arguments.sets])
    print(f"{title}: {images / step_seconds:.0f} images/s on one core")
    print("  " + "  ".join(f"{name} {seconds / images * 1e6:.0f} us" for name, seconds in mean.items()))

    rounds = [{p: training.both_passes(step, p) for p in arguments.parts} for step in range(STEPS)]
    for parts in arguments.parts:
        seconds = sum(r[parts] for r in rounds) / STEPS
        held = most_held(training.model, partial(training.both_passes, 0, parts))
        print(
            f"  gradient_cache {parts}: forward and backward {seconds / images * 1e6:.0f} us, "
            f"{held / 2**20:.1f} MiB held"
        )
    with tempfile.TemporaryDirectory() as folder:
        seconds = training.live_view(Path(folder))
    share = seconds / (step_seconds * training.steps_per_epoch)
    print(f"  live view: {seconds * 1e3:.1f} ms an epoch, {100 * share:.2f} % of it")


if __name__ == "__main__":
    main()
