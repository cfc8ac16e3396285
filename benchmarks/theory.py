"""Seconds of each figure of the theory: wall and CPU time of its one run of toy networks, by number of threads.

Command: python benchmarks/theory.py [STUDY.yaml]... [--threads N]...
Without names, every studies/theory_*.yaml. A busy machine shows in wall time beyond CPU time over threads.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import yaml

from trainers.config import ToyConfig, ToyRun
from trainers.theory import run_toys

STUDIES = Path(__file__).resolve().parent.parent / "studies"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", type=Path, default=sorted(STUDIES.glob("theory_*.yaml")))
    parser.add_argument("--threads", type=int, action="append")
    arguments = parser.parse_args()
    print(
        f"{'study':24} {'cases':>5} {'networks':>8} {'threads':>7} {'wall s':>7} {'CPU s':>7} {'us/step':>8}"
    )
    for study in arguments.studies:
        run = toy_run(study)
        steps = run.networks * sum(case.iterations for case in run.cases)
        for threads in arguments.threads or [1, 2]:
            wall, cpu = time.perf_counter(), time.process_time()
            run_toys(run, torch.device("cpu"), lambda metrics: None, threads)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(
                f"{study.stem:24} {len(run.cases):5} {run.networks:8} {threads:7} {wall:7.1f} {cpu:7.1f} "
                f"{cpu / steps * 1e6:8.0f}",
                flush=True,
            )


def toy_run(study: Path) -> ToyRun:
    """The run of a theory study: its cells over the networks that they share."""
    content = yaml.safe_load(study.read_text(encoding="utf-8"))
    shared = dict(content["toy"])
    family = {name: shared.pop(name) for name in ("networks", "seed") if name in shared}
    cases = tuple(ToyConfig.model_validate(shared | cell.get("set", {})) for cell in content["cells"])
    return ToyRun(cases=cases, **family)


if __name__ == "__main__":
    main()
