"""kill -9 at random moments: of trials, workers, drivers, the command, the machine. Equal to the bit afterwards."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from harness import (
    Run,
    at_work,
    await_true,
    differences,
    end_tree,
    leftovers,
    outcome,
    said,
    standing_cluster,
)

pytestmark = [pytest.mark.faults, pytest.mark.cluster]

Told = Callable[[str, str, str], None]

INLINE = ("--executor", "inline")
TRAIN = ("--executor", "train", "--set", "resources.workers=2", "--set", "epochs=6")
CLUSTER = "cluster of gangs"


@pytest.fixture(scope="module")
def kills(pytestconfig: pytest.Config) -> int:
    """Of each of the five campaigns here."""
    return max(1, pytestconfig.getoption("--kills") // 5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, kills: int) -> Run:
    """Single-worker trials that nothing happened to, of as many seeds as any campaign has."""
    return reference(tmp_path_factory.mktemp("undisturbed"), INLINE, max(kills, 4))


@pytest.fixture(scope="module")
def undisturbed_gangs(tmp_path_factory: pytest.TempPathFactory, kills: int) -> Run:
    return reference(tmp_path_factory.mktemp("undisturbed"), TRAIN, kills)


def seeds(count: int) -> tuple[str, str]:
    return "--seeds", ",".join(map(str, range(count)))


def reference(folder: Path, arguments: tuple[str, ...], count: int) -> Run:
    run = Run(folder, (*arguments, *seeds(count)))
    code, text = run.finish(1500)
    assert code == 0, text
    return run


def check(run: Run, undisturbed: Run, trials: int) -> None:
    found = outcome(run.store)
    assert len(list(run.store.glob("trials/*/record.json"))) == trials
    expected = {key: part for key, part in outcome(undisturbed.store).items() if key in found}
    assert differences(found, expected) == []
    assert leftovers(run) == []
    assert not list(run.store.glob("damaged/*"))


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def lost_trials_of_one_command(run: Run, kills: int, victims: Callable[[Run, int], list[int]]) -> list[float]:
    """Kill a process of each of `kills` trials once, at a random moment; the command goes on by itself."""
    random.seed(0)
    process = run.start()
    moments: dict[str, float] = {}
    hit: dict[str, float] = {}
    gone: list[float] = []
    deadline = time.monotonic() + 120 * kills + 120
    while process.poll() is None:
        assert time.monotonic() < deadline, said(process)
        for trial, pid in run.holders().items():
            moments.setdefault(trial, time.monotonic() + random.uniform(0.0, 5.0))
            if trial not in hit and time.monotonic() > moments[trial]:
                if not (found := victims(run, pid)):
                    continue
                kill(random.choice(found))
                hit[trial] = time.monotonic()
        for trial, when in list(hit.items()):
            if when and trial in run.holders() and time.monotonic() - when > 0.1:
                gone.append(time.monotonic() - when)
                hit[trial] = 0.0
        time.sleep(0.05)
    assert process.returncode == 0, said(process)
    assert len(hit) == kills, f"only {len(hit)} of {kills} trials lived long enough to be killed"
    return gone


def the_trial(run: Run, holder: int) -> list[int]:
    return [holder]


def a_train_worker(run: Run, holder: int) -> list[int]:
    found = []
    for process in at_work(CLUSTER):
        with suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


@pytest.mark.short
def test_trials_killed_at_random_moments_end_equal_to_the_bit(
    tmp_path: Path, told: Told, kills: int, undisturbed: Run
) -> None:
    run = Run(tmp_path, (*INLINE, *seeds(kills)))
    recovered = lost_trials_of_one_command(run, kills, the_trial)
    check(run, undisturbed, kills)
    told(
        f"kill -9 of a trial's process (`inline`), {kills} times at random moments",
        "nothing; 0 records lost, 0 leases or processes left, all results equal to the bit",
        f"{statistics.median(recovered):.1f} s until the trial goes on",
    )


@pytest.mark.parametrize(
    "whole_machine", [pytest.param(False, marks=pytest.mark.short), True], ids=["command", "machine"]
)
def test_a_command_killed_at_random_moments_goes_on_equal_to_the_bit(
    tmp_path: Path, told: Told, kills: int, undisturbed: Run, whole_machine: bool
) -> None:
    trials = min(kills + 1, 4)
    arguments = (*INLINE, *seeds(trials))
    run = Run(tmp_path / "killed", arguments)
    random.seed(1)
    restarts = []
    for number in range(kills):
        if number % 3 == 0 and number:  # else the study is finished before all kills are done
            check_finished(run, undisturbed, trials)
            run = Run(tmp_path / f"killed{number}", arguments)
        process = run.start()
        started = time.monotonic()
        run.await_lease(process)
        restarts.append(time.monotonic() - started)
        time.sleep(random.uniform(0.0, 4.0))
        if whole_machine:
            end_tree(process.pid)
        else:
            kill(process.pid)
        process.wait(30)
        await_true(lambda run=run: not run.processes(), 60)
    check_finished(run, undisturbed, trials)
    told(
        f"kill -9 of {'every process at once' if whole_machine else 'the command'}, {kills} times at random moments",
        "the steps since the last state; 0 records lost, 0 leases or processes left, all results equal to the bit",
        f"{statistics.median(restarts):.1f} s from the same command to a trial that goes on",
    )


def check_finished(run: Run, undisturbed: Run, trials: int) -> None:
    code, text = run.finish(600)
    assert code == 0, text
    check(run, undisturbed, trials)


@pytest.mark.parametrize(
    "victims",
    [pytest.param(a_train_worker, marks=pytest.mark.short), the_trial],
    ids=["worker", "driver"],
)
def test_gangs_killed_at_random_moments_end_equal_to_the_bit(
    tmp_path: Path,
    told: Told,
    kills: int,
    undisturbed_gangs: Run,
    victims: Callable[[Run, int], list[int]],
) -> None:
    run = Run(tmp_path, undisturbed_gangs.arguments)
    with standing_cluster(2, tag=CLUSTER) as cluster:
        run.arguments += ("--address", cluster.address)
        recovered = lost_trials_of_one_command(run, kills, victims)
        check(run, undisturbed_gangs, kills)
        assert left_placement_groups(cluster.address) == 0
        await_true(lambda: not [name for name in names(at_work(CLUSTER)) if "Train" in name], 60)
    if victims is a_train_worker:
        what, recovery = "one worker of a gang of two", "the gang starts again by itself"
    else:
        what = "a gang's trial driver"
        recovery = f"{statistics.median(recovered):.1f} s until the trial has a driver again"
    told(
        f"kill -9 of {what} (`train`), {kills} times at random moments",
        "nothing; 0 records lost, 0 placement groups, leases or processes left, all results equal to the bit",
        recovery,
    )


def names(processes: list[psutil.Process]) -> list[str]:
    found = []
    for process in processes:
        with suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return found


def left_placement_groups(address: str) -> int:
    """Placement groups of a standing cluster that still hold something, a while after the command's end."""
    import ray
    from ray.util import placement_group_table

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        for _ in range(50):
            left = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
            if not left:
                break
            time.sleep(0.2)
        return len(left)
    finally:
        ray.shutdown()
