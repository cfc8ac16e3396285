"""What a sick tracking server costs trainings: ratios of one run.

Command: python benchmarks/tracking_outage.py [--rounds N] [--trials N] [--epochs N] [--kept FILE]
Whole runs of `ablate`, two trials at once where there are two cores, in six ways: with MLflow's database in the store,
with a server that is well, and with one that is away, silent, slow (2 s an answer) or answers 500. The ways take turns,
so that a busy machine slows all alike. Counted are the seconds that each epoch says of itself, of each the least of all
rounds; of the whole command those on the clock (at its end it waits up to 30 s for a server), and the CPU time of its
own process, where tracking has its thread: trials have processes of their own, and lose no more than that. With --kept,
rounds that are made one by one on a busy machine count together.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

from harness import SMALL, Run, said
from mlflow_server import served

WAYS: dict[str, str | None] = {
    "database in the store": None,
    "server, well": "pass",
    "server, away": "refuse",
    "server, silent": "silent",
    "server, 2 s an answer": "slow",
    "server, answers 500": "500",
}

Epochs = dict[str, float]
"""trial/epoch -> seconds."""


def run_once(mode: str | None, trials: int, epochs: int) -> tuple[Epochs, float, float]:
    """Seconds of each epoch, wall and CPU seconds of the command, on a server and a store of its own."""
    with tempfile.TemporaryDirectory() as place, served(Path(place) / "server") as (_, proxy):
        arguments = ["--seeds", ",".join(map(str, range(trials)))]
        if mode:
            proxy.set(mode)
            arguments += ["--tracking-uri", proxy.uri]
        run = Run(Path(place) / "run", tuple(arguments), (*SMALL, f"epochs={epochs}"))
        began, spent = time.monotonic(), 0.0
        process = run.start()
        while process.poll() is None:
            with suppress(psutil.Error):
                times = psutil.Process(process.pid).cpu_times()
                spent = max(spent, times.user + times.system)
            time.sleep(0.1)
        wall = time.monotonic() - began
        assert process.returncode == 0, said(process)
        proxy.set("pass")
        return seconds_of_epochs(run.store), wall, spent


def seconds_of_epochs(store: Path) -> Epochs:
    found = {}
    for path in sorted(store.glob("trials/*/history.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            found[f"{path.parent.name}/{entry['epoch']}"] = float(entry["seconds"])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each way")
    parser.add_argument("--trials", type=int, default=4, help="of each run")
    parser.add_argument("--epochs", type=int, default=8, help="of each trial")
    parser.add_argument("--kept", type=Path, help="file of earlier rounds, to which this one's are added")
    arguments = parser.parse_args()
    kept = arguments.kept
    rounds: list[dict[str, tuple[Epochs, float, float]]] = (
        json.loads(kept.read_text()) if kept and kept.exists() else []
    )
    for _ in range(arguments.rounds):
        rounds.append({way: run_once(mode, arguments.trials, arguments.epochs) for way, mode in WAYS.items()})
        if kept:
            kept.write_text(json.dumps(rounds))
    print(f"{arguments.trials} trials of {arguments.epochs} epochs, {len(rounds)} rounds")
    print(f"{'':24}{'training s':>12}{'ratio':>8}{'command s':>12}{'its CPU s':>12}")
    spent = {way: sum(map(min, zip(*(one[way][0].values() for one in rounds), strict=True))) for way in WAYS}
    for way, seconds in spent.items():
        wall, cpu = (min(one[way][place] for one in rounds) for place in (1, 2))
        ratio = seconds / spent["database in the store"]
        print(f"{way:24}{seconds:12.2f}{ratio:8.3f}{wall:12.1f}{cpu:12.1f}")


if __name__ == "__main__":
    main()
