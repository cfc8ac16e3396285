"""Nodes that go, orchestrators that meet, signals that end a run, trials that hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness import Run, await_true, differences, leftovers, outcome, said, standing_cluster

pytestmark = [pytest.mark.faults, pytest.mark.cluster]

Told = Callable[[str, str, str], None]


def trained(run: Run) -> int:
    return len(list(run.store.glob("trials/*/record.json")))


def test_nodes_that_go_take_no_trial_with_them(tmp_path: Path, told: Told) -> None:
    seeds = ("--seeds", "0,1,2,3")
    undisturbed = Run(tmp_path / "undisturbed", seeds)
    assert undisturbed.finish()[0] == 0
    run = Run(tmp_path / "run", seeds)
    with standing_cluster(1, 1, 1, 1, tag="nodes") as cluster:
        run.arguments += ("--address", cluster.address)
        process = run.start()
        holders = await_true(lambda: len(run.holders()) >= 2 and run.holders(), 180)
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
        driver = psutil.Process(next(iter(holders.values())))
        lost = next(raylets[parent.pid] for parent in driver.parents() if parent.pid in raylets)
        cluster.remove_node(lost, allow_graceful=False)
        went = time.monotonic()
        time.sleep(2)
        other = next(node for node in cluster.worker_nodes if node is not lost)
        cluster.remove_node(other, allow_graceful=False)
        assert process.wait(400) == 0, said(process)
        took = time.monotonic() - went
        assert differences(outcome(run.store), outcome(undisturbed.store)) == []
        assert leftovers(run) == []
    told(
        "two of four nodes go, one of them with a trial's driver",
        "the steps since the last state; every trial recorded once, equal to the bit",
        f"{took:.0f} s from the first loss to the end of the study on the other two",
    )


def test_two_orchestrators_share_the_work(tmp_path: Path, told: Told) -> None:
    seeds = ("--seeds", "0,1,2,3")
    undisturbed = Run(tmp_path / "undisturbed", seeds)
    assert undisturbed.finish()[0] == 0
    one = Run(tmp_path / "run", (*seeds, "--max-concurrent", "1"))
    first, second = one.start(), one.start()
    for process in (first, second):
        assert process.wait(400) == 0, said(process)
    assert differences(outcome(one.store), outcome(undisturbed.store)) == []
    for history in one.store.glob("trials/*/history.jsonl"):
        epochs = [json.loads(line)["epoch"] for line in history.read_text().splitlines()]
        assert epochs == list(range(8))
    lines = (said(first) + said(second)).splitlines()
    trainings = [line for line in lines if ": done in" in line and ", loss" in line]
    assert len(trainings) == 4, "\n".join(lines)  # whoever only waited for a trial shows no loss
    assert leftovers(one) == []
    told("two commands started at once on one store", "nothing; each trial was trained once", "none needed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_ends_the_command_soon_with_all_states_saved(
    tmp_path: Path, told: Told, number: signal.Signals
) -> None:
    sets = (*Run(tmp_path / "x").sets[:-1], "epochs=40", "limits.state_seconds=3600")
    undisturbed = Run(tmp_path / "undisturbed", ("--seeds", "0"), sets)
    assert undisturbed.finish()[0] == 0
    run = Run(tmp_path / "run", ("--seeds", "0"), sets)
    process = run.start()
    await_true(lambda: list(run.store.glob("trials/*/history.jsonl")), 120)
    time.sleep(0.3)
    started = time.monotonic()
    os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches Ray's processes too
    code = process.wait(15)
    took = time.monotonic() - started
    assert code == 130, said(process)
    assert "interrupted; the same command goes on from here" in said(process)
    assert leftovers(run) == []
    assert list(run.store.glob("trials/*/checkpoints/state-*.safetensors"))
    code, text = run.finish()
    assert code == 0, text
    assert differences(outcome(run.store), outcome(undisturbed.store)) == []
    told(
        f"{number.name} to the command and all of Ray",
        "nothing; running trials save their states",
        f"{took:.1f} s",
    )


@pytest.mark.parametrize("executor", ["inline", "train"])
def test_a_trial_that_stands_still_is_ended_and_others_go_on(
    tmp_path: Path, told: Told, executor: str
) -> None:
    run = Run(tmp_path, ("--seeds", "0,1", "--executor", executor, "--max-concurrent", "1"))
    run.sets += ("limits.silent_seconds=12",)
    process = run.start()
    holders = run.await_lease(process)
    trial, pid = next(iter(holders.items()))
    await_true(lambda: list(run.store.glob(f"trials/{trial}/checkpoints/state-*")), 120)
    workers = [p.pid for p in run.processes() if "RayTrainWorker" in " ".join(p.cmdline())]
    frozen = workers[0] if executor == "train" else pid
    os.kill(frozen, signal.SIGSTOP)
    started = time.monotonic()
    failure = tmp_path / "store" / "trials" / trial / "failure.json"
    await_true(failure.exists, 60)
    took = time.monotonic() - started
    assert process.wait(300) == 3, said(process)
    text = said(process)
    assert "no progress for" in text
    assert "limits.silent_seconds = 12" in text
    assert trained(run) == 1
    assert leftovers(run) == []
    told(
        f"a process of a trial (`{executor}`) is frozen (SIGSTOP), `limits.silent_seconds` 12",
        "the trial fails with step and remedy, the others go on; the same command resumes it",
        f"{took:.0f} s until it is ended",
    )


def test_a_full_disk_ends_trials_with_a_line_and_the_same_command_goes_on(tmp_path: Path, told: Told) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(mounted)], check=False)
    if made.returncode:
        pytest.skip("needs to mount a small file system")
    try:
        undisturbed = Run(tmp_path / "undisturbed", ("--seeds", "0,1"))
        assert undisturbed.finish()[0] == 0
        run = Run(mounted / "run", ("--seeds", "0,1"))
        process = run.start()
        run.await_lease(process)
        filler = mounted / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(65536))
            except OSError:
                pass
        code = process.wait(120)
        filler.unlink()
        assert code in (1, 3), said(process)
        assert "space" in said(process), said(process)
        assert "Traceback" not in said(process)
        assert json.dumps(outcome_keys(run)) == "[]" or set(outcome_keys(run)) <= set(
            outcome_keys(undisturbed)
        )
        code, text = run.finish()
        assert code == 0, text
        assert differences(outcome(run.store), outcome(undisturbed.store)) == []
        assert leftovers(run) == []
        told(
            "the store's disk is full",
            "nothing that was recorded; trials end with a line",
            "the same command goes on",
        )
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=False)


def outcome_keys(run: Run) -> list[str]:
    return sorted(path.parent.name for path in run.store.glob("trials/*/record.json"))


def test_an_altered_record_is_set_aside_and_only_its_work_done_again(tmp_path: Path, told: Told) -> None:
    run = Run(tmp_path, ("--seeds", "0,1"))
    assert run.finish()[0] == 0
    before = outcome(run.store)
    victim = sorted(run.store.glob("trials/*/record.json"))[0]
    content = json.loads(victim.read_text())
    content["metrics"]["loss"] += 1e-9
    victim.write_text(json.dumps(content))
    started = time.monotonic()
    code, text = run.finish()
    assert code == 0, text
    assert victim.parent.name in text
    assert "1 to train" in text
    assert len(list(run.store.glob("damaged/*"))) == 1
    assert differences(outcome(run.store), before) == []
    told(
        "a digit of a record is altered",
        "nothing; it is set aside, and made anew from the finished model",
        f"{time.monotonic() - started:.0f} s for the whole command",
    )
