"""Where a training step's CPU time goes, in microseconds per image: views, forward, backward, optimizer.

Command: python benchmarks/trainer.py [RECIPE] [--set PATH=VALUE]...
One core; process time, so that a busy machine disturbs little. Compare only figures of one run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from orchestrator.library import load_recipe
from trainers.context import TrialContext
from trainers.contrastive import build_model
from trainers.data.datasets import load_dataset
from trainers.data.loader import ViewLoader
from trainers.lars import build_optimizer
from trainers.precision import autocast

STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default="digits")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_recipe(arguments.recipe, tuple(arguments.sets)).recipe.trial(0)
    dataset = load_dataset(config.data)
    context = TrialContext(directory=Path())
    model = build_model(config, dataset, context)
    optimizer = build_optimizer(config.optimizer, model.parameters())
    batches = (batch for epoch in range(STEPS) for batch in ViewLoader(dataset, config).epoch(epoch))
    spent: dict[str, float] = {}
    for step in range(STEPS + 1):
        clock = time.process_time()
        marks = []
        view1, view2, labels = next(batches)
        marks.append(("views", time.process_time()))
        with autocast(config.precision, context.device):
            loss, _, _ = model(view1, view2, labels, step)
        marks.append(("forward", time.process_time()))
        loss.backward()
        marks.append(("backward", time.process_time()))
        optimizer.step()
        optimizer.zero_grad()
        marks.append(("optimizer", time.process_time()))
        if step == 0:
            continue  # the first step allocates and compiles kernels
        for name, mark in marks:
            spent[name] = spent.get(name, 0.0) + mark - clock
            clock = mark
    images = STEPS * config.batch_size
    print(
        f"{arguments.recipe} {' '.join(arguments.sets)}: {images / sum(spent.values()):.0f} images/s on one core"
    )
    print("  ".join(f"{name} {seconds / images * 1e6:.0f} us" for name, seconds in spent.items()))


if __name__ == "__main__":
    main()
