"""Memory that is not there, and a store that can no longer be written: one trial ends with a line, others go on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import SMALL, Run, await_true, differences, leftovers, outcome, said, started, the_line

pytestmark = [pytest.mark.faults, pytest.mark.cluster]

Told = Callable[[str, str, str], None]

STUDY = """
name: faulty
title: One trial that is hurt, and one that is not
source: Table 1
seeds: [0]
cells:
  - {name: hurt, label: the one hurt, set: {head: {kind: subvector, d0: 1/2}}}
  - {name: other, label: the other, set: {head: {kind: none}}}
evaluations: [linear_probe, spectrum]
tables:
  - name: trials
    title: Trials
    source: Table 1
    columns: [Trial]
    rows: [{cell: hurt, columns: [hurt]}, {cell: other, columns: [other]}]
"""
LINE = "the one hurt, seed 0: failed: "
OTHER = "the other, seed 0: done in"
REMEDY = "lower batch_size, raise gradient_cache, or run fewer at once (--max-concurrent)"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = Run(tmp_path_factory.mktemp("undisturbed"), study=STUDY)
    code, text = run.finish()
    assert code == 0, text
    return outcome(run.store)


failing_line = partial(the_line, start=LINE)


def trial_of(run: Run, head: str) -> str:
    """The key of the trial with a head, once its process has begun it."""
    for path in run.store.glob("trials/*/config.json"):
        if f'"kind": "{head}"' in path.read_text():
            return path.parent.name
    return ""


def process_of(run: Run, head: str) -> int | None:
    return run.holders().get(trial_of(run, head))


# --- memory ---------------------------------------------------------------------------------------


def kill_each_time(
    run: Run, process: subprocess.Popen[str], victims: Callable[[int], list[int]]
) -> list[float]:
    """What the kernel does to a process too large for its machine: as often as it comes back. When it did."""
    killed: set[int] = set()
    moments = []
    deadline = time.monotonic() + 180
    while process.poll() is None:
        assert time.monotonic() < deadline, said(process)
        holder = process_of(run, "subvector")
        for pid in victims(holder) if holder else []:
            trial = trial_of(run, "subvector")
            told = run.store.glob(f"leases/{trial}/*.progress")
            moved = [path for path in told if '"step' in path.read_text()]
            if pid not in killed and moved:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                killed.add(pid)
                moments.append(time.monotonic())
                for path in moved:  # of this attempt; the next one's is waited for
                    path.unlink(missing_ok=True) if len(killed) < 4 else None
        time.sleep(0.02)
    return moments


def test_a_trial_that_is_killed_each_time_it_starts_ends_with_a_line(
    tmp_path: Path, undisturbed: dict[str, Any], told: Told
) -> None:
    run = Run(tmp_path, ("--executor", "inline"), study=STUDY)
    with started(run) as process:
        moments = kill_each_time(run, process, lambda holder: [holder])
        assert process.returncode == 3, said(process)
        assert len(moments) == 4
    line = failing_line(said(process))
    assert f"its process was lost 4 times; out of memory is the usual reason: {REMEDY} (at step " in line
    assert OTHER in said(process)
    assert leftovers(run) == []

    code, text = run.finish()
    assert code == 0, text
    assert differences(outcome(run.store), undisturbed) == []
    told(
        "kill -9 of a trial's process each time it starts, as the kernel does for want of memory",
        "that trial; it ends naming step and remedy, others go on; the same command ends equal to the bit",
        f"{moments[-1] - moments[0]:.0f} s from the first kill to the fourth, the last",
    )


def test_a_gang_whose_worker_is_lost_each_time_ends_with_a_line(
    tmp_path: Path, undisturbed: dict[str, Any], told: Told
) -> None:
    run = Run(tmp_path, ("--executor", "train", "--max-concurrent", "1"), study=STUDY)

    def workers(holder: int) -> list[int]:
        found = []
        for process in run.processes():
            with suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process.pid)
        return found

    with started(run) as process:
        moments = kill_each_time(run, process, workers)
        assert process.returncode == 3, said(process)
        assert len(moments) == 4
    line = failing_line(said(process))
    assert f"its process was lost 4 times; out of memory is the usual reason: {REMEDY} (at step " in line
    assert OTHER in said(process)
    assert leftovers(run) == []
    told(
        "kill -9 of a trial's worker (`train`) each time it starts",
        "that trial; it ends naming step and remedy, others go on",
        f"{moments[-1] - moments[0]:.0f} s from the first kill to the fourth, the last",
    )


GREEDY = STUDY.replace(
    "set: {head: {kind: subvector, d0: 1/2}}", "set: {head: {kind: subvector, d0: 1/2}, %s}"
)
WIDE = "data.image_size: 64, batch_size: 640, epochs: 2"
BEYOND_ALL = "head: {kind: mlp, hidden_dim: 1048576, out_dim: 1048576}"


def test_an_allocation_that_fails_ends_its_trial_alone_and_names_the_step(tmp_path: Path, told: Told) -> None:
    study = GREEDY % WIDE
    undisturbed = Run(tmp_path / "undisturbed", study=study)
    code, text = undisturbed.finish()
    assert code == 0, text

    run = Run(tmp_path / "run", ("--max-concurrent", "1"), study=study)
    with started(run) as process:
        pid = await_true(lambda: process_of(run, "subvector"), 120)
        held = psutil.Process(pid).memory_info().vms + 500 * 2**20
        psutil.Process(pid).rlimit(resource.RLIMIT_AS, (held, held))
        assert process.wait(120) == 3, said(process)
    line = failing_line(said(process))
    assert f"out of memory; {REMEDY} (at step 0)" in line
    assert OTHER in said(process)  # in the same process, as far as the limit lets it

    code, text = run.finish()
    assert code == 0, text
    assert differences(outcome(run.store), outcome(undisturbed.store)) == []
    assert leftovers(run) == []
    told(
        "a step's allocation fails (address space of the trial's process limited)",
        "that trial; it ends naming step and remedy, others go on; the same command ends equal to the bit",
        "the same command goes on",
    )


def test_a_model_larger_than_any_machine_ends_its_trial_alone(tmp_path: Path, told: Told) -> None:
    run = Run(tmp_path, study=STUDY.replace("head: {kind: subvector, d0: 1/2}", BEYOND_ALL))
    code, text = run.finish()
    assert code == 3, text
    assert f"out of memory; {REMEDY} (at its start)" in failing_line(text)
    assert OTHER in text
    told(
        "a head of 4 TiB",
        "that trial; it ends with the remedy, others go on",
        "none needed",
    )


def test_a_loader_process_that_is_killed_ends_its_trial_alone(
    tmp_path: Path, undisturbed: dict[str, Any], told: Told
) -> None:
    sets = (*SMALL, "resources.loader_processes=1")
    run = Run(tmp_path, ("--max-concurrent", "1"), sets, STUDY)
    with started(run) as process:
        pid = await_true(lambda: process_of(run, "subvector"), 120)
        trial = trial_of(run, "subvector")
        await_true(lambda: list(run.store.glob(f"leases/{trial}/*.progress")), 60)
        loaders = [child.pid for child in psutil.Process(pid).children(recursive=True)]
        assert loaders
        for loader in loaders:
            os.kill(loader, signal.SIGKILL)
        assert process.wait(120) == 3, said(process)
    line = failing_line(said(process))
    assert "a loader process was lost; out of memory is the usual reason" in line
    assert "lower resources.loader_processes" in line
    assert "(at step " in line
    assert OTHER in said(process)
    code, text = run.finish()
    assert code == 0, text
    assert differences(outcome(run.store), undisturbed) == []
    assert leftovers(run) == []
    told(
        "kill -9 of a trial's loader processes",
        "that trial; it ends naming step and remedy, others go on; the same command ends equal to the bit",
        "the same command goes on",
    )


# --- the store ------------------------------------------------------------------------------------


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """A folder as a mount of its own, which can be made read-only; skips where that is not allowed."""
    folder.mkdir(parents=True)
    if subprocess.run(["mount", "--bind", str(folder), str(folder)], check=False).returncode:
        pytest.skip("needs to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def remount(folder: Path, how: str) -> bool:
    """False while a file there is just being written."""
    done = subprocess.run(
        ["mount", "-o", f"remount,bind,{how}", str(folder)], check=False, capture_output=True
    )
    return done.returncode == 0


def test_a_store_made_read_only_ends_trials_with_a_line_and_the_same_command_goes_on(
    tmp_path: Path, undisturbed: dict[str, Any], told: Told
) -> None:
    run = Run(tmp_path / "run", study=STUDY)
    # MLflow's database holds a file of its own open
    run.arguments = ("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    with mounted(run.store):
        with started(run) as process:
            run.await_lease(process)
            await_true(lambda: list(run.store.glob("trials/*/checkpoints/state-*")), 120)
            await_true(lambda: remount(run.store, "ro"), 30)
            went = time.monotonic()
            code = process.wait(120)
            took = time.monotonic() - went
            text = said(process)
        again, refusal = run.finish()
        assert remount(run.store, "rw")
        assert again == 2, refusal  # before anything starts
        assert refusal.strip().endswith(
            f"--store {run.store}: cannot be written: a read-only file system, or another's folder; make it writable, "
            "and the same command goes on"
        )
        assert code in (1, 3), text
        assert "Traceback" not in text, text
        for label in ("the one hurt", "the other"):
            line = the_line(text, f"{label}, seed 0: failed: ")
            assert "Read-only file system" in line, text
            assert "writable, and the same command goes on" in line, text
        code, text = run.finish()
        assert code == 0, text
        assert differences(outcome(run.store), undisturbed) == []
        assert leftovers(run) == []
    told(
        "the store becomes read-only while trials train",
        "nothing that was recorded; trials end with a line, the same command ends equal to the bit",
        f"{took:.0f} s until the command has ended",
    )
