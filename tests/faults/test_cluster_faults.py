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
from harness import SMALL, Run, at_work, await_true, differences, leftovers, outcome, said, standing_cluster

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
        lost = raylets[raylet_of(psutil.Process(next(iter(holders.values()))), raylets)]
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


def test_the_node_of_one_worker_of_a_gang_goes_and_the_gang_goes_on(tmp_path: Path, told: Told) -> None:
    gang = ("--executor", "train", "--set", "resources.workers=2", "--seeds", "0")
    undisturbed = Run(tmp_path / "undisturbed", gang)
    assert undisturbed.finish()[0] == 0
    run = Run(tmp_path / "run", gang)
    with standing_cluster(1, 1, 1, tag="gang nodes") as cluster:
        run.arguments += ("--address", cluster.address)
        process = run.start()
        await_true(lambda: list(run.store.glob("trials/*/checkpoints/state-*")), 180)
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
        workers = [one for one in at_work("gang nodes") if "RayTrainWorker" in " ".join(one.cmdline())]
        drivers = {raylet_of(psutil.Process(pid), raylets) for pid in run.holders().values()}
        nodes = [raylets[pid] for one in workers if (pid := raylet_of(one, raylets)) not in drivers and pid]
        cluster.remove_node(nodes[0], allow_graceful=False)
        went = time.monotonic()
        assert process.wait(400) == 0, said(process)
        took = time.monotonic() - went
        assert differences(outcome(run.store), outcome(undisturbed.store)) == []
        assert leftovers(run) == []
    told(
        "the node of one worker of a gang of two goes (`train`)",
        "the steps since the last state; equal to the bit",
        f"{took:.0f} s from the loss to the end of the study on a third node",
    )


def test_a_changed_study_on_another_cluster_does_just_what_is_missing(tmp_path: Path, told: Told) -> None:
    run = Run(tmp_path / "run", ("--seeds", "0"))
    process = run.start()
    await_true(lambda: trained(run) == 1, 120)  # and killed while it is measured, tracked or reported
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    before = {path: path.stat().st_mtime_ns for path in run.store.glob("trials/*/record.json")}
    line = "  - {name: half, label: one half, set: {head: {kind: subvector, d0: 1/2}}}\n"
    whole = "  - {name: whole, label: all of it, set: {head: {kind: none}}}\n"
    (run.folder / "faulty.yaml").write_text(run.study.replace(line, line + whole))
    with standing_cluster(2, tag="changed") as cluster:
        run.arguments = ("--seeds", "0,1", "--address", cluster.address)
        code, text = run.finish()
    assert code == 0, text
    assert "3 to train" in text
    assert trained(run) == 4
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert leftovers(run) == []
    told(
        "kill -9 after the first record; then a cell and a seed more, on another cluster",
        "nothing; 3 of 4 trials are trained, the first is kept",
        "the changed command goes on",
    )


def raylet_of(process: psutil.Process, raylets: dict[int, object]) -> int | None:
    """Which node of a simulated cluster a process runs on."""
    return next((parent.pid for parent in process.parents() if parent.pid in raylets), None)


@pytest.mark.short
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


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.short), signal.SIGTERM],
    ids=["ctrl-c", "sigterm"],
)
def test_a_signal_ends_the_command_soon_with_all_states_saved(
    tmp_path: Path, told: Told, number: signal.Signals
) -> None:
    steps = 160  # of an epoch: a state at its end by chance is unlikely
    changes = ("data.train_images=1280", "batch_size=8", "epochs=12", "limits.state_seconds=3600")
    sets = (*SMALL, *changes)
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
    # where Ray, which the signal hit too, did not end by itself, the next command removes its scratch
    assert [left for left in leftovers(run) if not left.startswith(".runs/")] == []
    saved = max(run.store.glob("trials/*/checkpoints/state-*.safetensors"))
    assert int(saved.stem.split("-")[1]) % steps != 0, "saved for the signal, within an epoch"
    code, text = run.finish()
    assert code == 0, text
    assert differences(outcome(run.store), outcome(undisturbed.store)) == []
    assert leftovers(run) == []
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
