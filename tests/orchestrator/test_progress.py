"""What is on screen: counts and the time left, also for resumed trials and evaluations alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import progress as module
from orchestrator.plan import Job, jobs, make_plan
from orchestrator.progress import Progress, duration
from orchestrator.store import Store


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def started(folder: Path, train: bool = True) -> tuple[Progress, list[Job], io.StringIO]:
    missing = jobs(make_plan(["table1"], "digits", seeds=(0,)), Store(folder))
    if not train:
        missing = [
            Job(job.trial, job.config, False, job.evaluations, job.resources, job.label) for job in missing
        ]
    text = io.StringIO()
    return Progress(Console(file=text, width=200), missing, at_once=2), missing, text


def test_time_left_follows_the_pace_of_this_run(tmp_path: Path, clock: list[float]) -> None:
    shown, missing, text = started(tmp_path)
    epochs = missing[0].config.epochs
    shown.begin(missing[0].trial)
    assert shown.seconds_left() is None
    clock[0] = 10.0
    for epoch in range(epochs // 2):
        shown.advance(missing[0].trial, {"epoch": epoch, "loss": 1.0})
    assert shown.seconds_left() == pytest.approx(70.0)  # an eighth of four trials took 10 s
    assert shown.count("running") == 1
    shown.finish(missing[0].trial, "DataError: [/x] gone")
    assert "failed: DataError: [/x] gone" in text.getvalue()
    assert shown.seconds_left() == pytest.approx(30.0)


def test_epochs_of_an_earlier_attempt_do_not_count_as_speed(tmp_path: Path, clock: list[float]) -> None:
    shown, missing, _ = started(tmp_path)
    epochs = missing[0].config.epochs
    shown.begin(missing[0].trial)
    clock[0] = 10.0
    shown.advance(missing[0].trial, {"epoch": epochs - 2, "loss": 1.0})
    shown.advance(missing[0].trial, {"epoch": epochs - 1, "loss": 1.0})
    assert shown.seconds_left() == pytest.approx(10.0 / 2 * 3 * epochs)


def test_evaluations_alone_are_shown_as_such(tmp_path: Path, clock: list[float]) -> None:
    shown, missing, _ = started(tmp_path, train=False)
    shown.begin(missing[0].trial)
    assert shown.count("evaluating") == 1
    clock[0] = 4.0
    shown.finish(missing[0].trial)
    assert shown.seconds_left() == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown"), (59.6, "60 s"), (100, "2 min"), (3725, "62 min"), (7500, "2 h 05 min")],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
