"""A tracking server that is away, slow or wrong: trainings notice nothing, and everything arrives exactly once."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import SMALL, Run, await_true, differences, leftovers, outcome, said, started
from mlflow_server import Proxy, Server, served
from tracked import content, runs

pytestmark = [pytest.mark.faults, pytest.mark.cluster]

Told = Callable[[str, str, str], None]

TRIALS = 4
SHORT = (*SMALL, "epochs=6")
UNFINISHED = "`ablate sync` delivers what is missing"


@dataclass
class Undisturbed:
    """What a run leaves whose server was well."""

    outcome: dict[str, Any]
    runs: dict[str, dict[str, Any]]


def tracked_run(folder: Path, proxy: Proxy) -> Run:
    """One trial after the other, so that there is a middle."""
    seeds = ",".join(map(str, range(TRIALS)))
    arguments = ("--seeds", seeds, "--max-concurrent", "1", "--tracking-uri", proxy.uri)
    return Run(folder, arguments, SHORT)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    with served(folder / "server") as (server, proxy):
        run = tracked_run(folder, proxy)
        code, text = run.finish()
        assert code == 0, text
        assert "tracking:" not in text
        found = Undisturbed(outcome(run.store), runs(server))
    assert len(found.outcome) == 3 * TRIALS
    assert len(found.runs) == 1 + TRIALS
    return found


def delivered_by(run: Run, verb: str) -> tuple[float, str]:
    """The same studies once more by `sync` or `run`; seconds, and all that it said."""
    sets = [part for assignment in run.sets for part in ("--set", assignment)]
    arguments = list(run.arguments)
    if verb == "sync":
        place = arguments.index("--max-concurrent")
        del arguments[place : place + 2]
    command = [
        sys.executable,
        "-m",
        "orchestrator.cli",
        verb,
        str(run.folder / "faulty.yaml"),
        *sets,
        *arguments,
    ]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--store", str(run.store)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tracking:" not in done.stdout
    return time.monotonic() - started, done.stdout


@dataclass
class Figures:
    """Of one outage, for the table.

    Attributes:
        lacking: runs that MLflow lacked, or had in part, when the command had ended.
        lines: that said so.
        seconds: of the delivery.
    """

    lacking: int
    lines: list[str]
    seconds: float


def check(run: Run, code: int, text: str, server: Server, well: Undisturbed, by: str) -> Figures:
    """The command's end, its records, and after one more command MLflow, are as if nothing had happened."""
    assert code == 0, text
    assert "Traceback" not in text
    assert "WARNING" not in text
    assert differences(outcome(run.store), well.outcome) == []
    before = stored(server)
    lacking = [key for key in well.runs if before.get(key) != well.runs[key]]
    lines = [line for line in text.splitlines() if "tracking:" in line]
    assert len(lines) == bool(lacking), text
    assert all(UNFINISHED in line and "records are safe" in line for line in lines)
    seconds, _ = delivered_by(run, by)
    after = runs(server)
    assert after.keys() == well.runs.keys()
    assert differences(after, well.runs) == []
    known = content(server)
    for verb in ("sync", "run"):
        delivered_by(run, verb)
        assert differences_of_content(content(server), known) == []
    assert leftovers(run) == []
    return Figures(len(lacking), lines, seconds)


def stored(server: Server) -> dict[str, dict[str, Any]]:
    """As `runs`, of a server that may have nothing yet."""
    return runs(server) if server.query("select * from experiments where name != 'Default'") else {}


def differences_of_content(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    return [f"{table}: {one[table]} != {two[table]}" for table in one if one[table] != two[table]]


@contextmanager
def outage(tmp_path: Path) -> Iterator[tuple[Server, Proxy, Run]]:
    with served(tmp_path / "server") as (server, proxy):
        yield server, proxy, tracked_run(tmp_path / "run", proxy)


@pytest.mark.parametrize("mode", ["refuse", "silent", "500"])
def test_a_server_that_is_sick_from_start_to_end_gets_everything_afterwards(
    tmp_path: Path, told: Told, undisturbed: Undisturbed, mode: str
) -> None:
    with outage(tmp_path) as (server, proxy, run):
        proxy.set(mode)
        code, text = run.finish()
        assert proxy.requests == 0
        proxy.set("pass")
        found = check(run, code, text, server, undisturbed, "sync")
    assert found.lacking == 1 + TRIALS
    says = {
        "refuse": "cannot be reached",
        "silent": "does not answer|not up to date after 30 s",
        "500": r"answers with an error \(500\)",
    }
    assert re.search(says[mode], found.lines[0])
    what = {"refuse": "is away", "silent": "takes requests and never answers", "500": "answers 500"}
    told(
        f"MLflow {what[mode]} from start to end",
        f"nothing; one line says that {found.lacking} runs are not delivered",
        f"`ablate sync` delivers each once in {found.seconds:.0f} s",
    )


@pytest.mark.parametrize(
    "comes_back", [True, pytest.param(False, marks=pytest.mark.short)], ids=["and-comes-back", "for-good"]
)
def test_a_server_killed_in_the_middle_has_every_run_and_point_once_in_the_end(
    tmp_path: Path, told: Told, undisturbed: Undisturbed, comes_back: bool
) -> None:
    # another process on the same database: a start of its own might take longer than all the trainings
    with (
        outage(tmp_path) as (server, proxy, run),
        served(tmp_path / "server") as (other, _),
        started(run) as process,
    ):
        await_true(lambda: proxy.writes >= 4, 120)  # the parent is there, a trial's run has begun
        proxy.set("refuse")
        server.kill()
        gone, before = time.monotonic(), trained(run)
        if comes_back:
            await_true(lambda: trained(run) > before, 120)
        else:
            process.wait(300)
        away = time.monotonic() - gone
        proxy.backend = other.port
        proxy.set("pass")
        code = process.wait(300)
        found = check(run, code, said(process), other, undisturbed, "run")
    assert bool(found.lines) == (not comes_back)
    told(
        f"MLflow's server is killed in the middle of a delivery{' and starts again' if comes_back else ''}",
        f"nothing; {found.lacking} of {1 + TRIALS} runs not up to date at the command's end",
        f"{away:.1f} s away; then the run's next sync"
        if comes_back
        else f"the same command, {found.seconds:.0f} s",
    )


def trained(run: Run) -> int:
    return len(list(run.store.glob("trials/*/record.json")))


def test_a_slow_server_has_every_run_and_point_once_in_the_end(
    tmp_path: Path, told: Told, undisturbed: Undisturbed
) -> None:
    with outage(tmp_path) as (server, proxy, run):
        proxy.delay = 2.0
        proxy.set("slow")
        code, text = run.finish()
        proxy.set("pass")
        time.sleep(proxy.delay)
        found = check(run, code, text, server, undisturbed, "sync")
    told(
        f"MLflow takes {proxy.delay:g} s for each answer",
        f"nothing; {found.lacking} of {1 + TRIALS} runs not up to date at the command's end",
        f"`ablate sync` of the rest in {found.seconds:.0f} s once it is fast",
    )


@pytest.mark.parametrize("every", [1, 2], ids=["each", "every-second"])
def test_writes_whose_answers_are_lost_are_not_done_twice(
    tmp_path: Path, told: Told, undisturbed: Undisturbed, every: int
) -> None:
    with outage(tmp_path) as (server, proxy, run):
        proxy.every = every
        proxy.set("lost")
        code, text = run.finish()
        lost = proxy.lost
        proxy.set("pass")
        found = check(run, code, text, server, undisturbed, "run" if every == 1 else "sync")
    assert lost >= 2
    told(
        f"MLflow does what it is asked, and {'each' if every == 1 else 'every second'} answer to a write is lost",
        f"nothing; {lost} answers lost, {found.lacking} of {1 + TRIALS} runs not up to date at the command's end",
        f"the same command in {found.seconds:.0f} s" if found.lacking else "none needed",
    )
