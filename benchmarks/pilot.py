"""Pilot for a recipe: probe accuracy and time of the 2-layer projector alone, under settings one at a time.

A recipe is tuned on this baseline and on time, never on what the paper claims of the other heads.
Each line of the output is one setting:

    python benchmarks/pilot.py glyphs_quick "" "loss.temperature=0.1" "epochs=20 batch_size=128"
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from orchestrator.library import load_recipe
from trainers.context import TrialContext
from trainers.contrastive import load_model, train
from trainers.data.datasets import load_dataset
from trainers.evaluate import evaluate


def measure(recipe_name: str, setting: str, seed: int) -> str:
    """Train and probe one setting; a line with its accuracies and its seconds of processor time."""
    recipe = load_recipe(recipe_name, ("head.kind=mlp", *setting.split())).recipe
    config = recipe.trial(seed)
    dataset = load_dataset(config.data)
    with tempfile.TemporaryDirectory() as folder:
        context = TrialContext(directory=Path(folder), threads=1)
        started = time.process_time()
        result = train(config, context, dataset)
        trained = time.process_time()
        model = load_model(result.model_path, config, dataset, context)
        protocols = [recipe.evaluation(kind) for kind in ("linear_probe", "knn", "spectrum")]
        wanted = [protocol for protocol in protocols if protocol is not None]
        probe, knn, spectrum = evaluate(
            config, model.backbone, model.head, wanted, torch.device("cpu"), dataset=dataset
        )
        ended = time.process_time()
    return (
        f"| {setting or 'as it is'} | {seed} | {probe.metrics['top1']:.1f} | {knn.metrics['top1']:.1f} "
        f"| {spectrum.metrics['representation/rankme']:.0f} | {result.metrics['loss']:.2f} "
        f"| {trained - started:.0f} | {ended - trained:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument(
        "settings", nargs="+", help="overrides of the recipe, with spaces between them; '': none"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        "| setting | seed | probe top-1 | kNN top-1 | RankMe | loss | training CPU s | evaluation CPU s |",
        flush=True,
    )
    print("| :-- | --: | --: | --: | --: | --: | --: | --: |", flush=True)
    for setting in arguments.settings:
        print(measure(arguments.recipe, setting, arguments.seed), flush=True)


if __name__ == "__main__":
    main()
