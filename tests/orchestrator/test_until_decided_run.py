"""`ablate run --until-decided` as a person has it: killed in its second round, continued, its report made again."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.orchestrator.small import TINY

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STUDY = """
name: mine
title: Two heads
source: Table 1
seeds: [0]
cells:
  - {name: none, label: no projector, set: {head: {kind: none}}}
  - {name: linear, label: linear projector, set: {head: {kind: linear}}}
  - {name: unclaimed, label: in no claim, set: {head: {kind: mlp}}}
evaluations: [spectrum]
claims:
  - {name: alive, text: More than nothing is left, source: nowhere, test: above, cells: [none, linear],
     metric: representation/rankme, value: 0.1}
"""
"""One seed says nothing of a rank's spread, so that there is a second round; a rank is never below 1."""
SETS = (*TINY, "epochs=1", "schedule.warmup_epochs=0")


def command(folder: Path, verb: str, *arguments: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(STUDY)
    sets = [part for assignment in SETS for part in ("--set", assignment)]
    ablate = (sys.executable, "-m", "orchestrator.cli", verb, str(folder / "mine.yaml"), "--recipe", "digits")
    return [*ablate, *sets, "--store", str(folder / "store"), *arguments]


UNTIL = ("--until-decided", "--max-seeds", "4")


def finished(folder: Path, verb: str, *arguments: str) -> str:
    done = subprocess.run(
        command(folder, verb, *arguments), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def report(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_killed_in_its_second_round_comes_to_the_same_verdicts_and_report(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    said = finished(undisturbed, "run", *UNTIL)
    assert said.count("starting Ray") == 1
    assert "round 2, 0 of 1 claim decided, 1 open: 2 trainings to do" in said
    process = subprocess.Popen(
        command(killed, "run", *UNTIL), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while len(list(killed.glob("store/trials/*/record.json"))) < 4:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    finished(killed, "run", *UNTIL)
    place = next(killed.glob("store/studies/*/report"))
    written = report(place)
    expected = report(next(undisturbed.glob("store/studies/*/report")))
    for name in ("claims.csv", "cells.csv"):
        assert written[name] == expected[name]

    assert "starting Ray" not in finished(killed, "run", *UNTIL)
    assert report(place) == written
    finished(killed, "report", "--seeds", "all")
    assert report(place) == written
    out = tmp_path / "from_mlflow"
    finished(killed, "report", "--seeds", "all", "--source", "mlflow", "--out", str(out))
    assert report(out) == written
