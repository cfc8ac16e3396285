"""What is on screen while trials run: done, running, waiting, each trial's epoch and loss, time left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.plan import Job
from trainers.config import ToyRun

_LINE_EVERY_S = 15.0


@dataclass
class _Row:
    label: str
    seed: int
    epochs: int
    state: str = "waiting"
    epoch: int = 0
    first_epoch: int = 0
    loss: float | None = None
    online_top1: float | None = None
    started: float | None = None
    seconds: float = 0.0
    began: str = ""
    holder: str = ""

    @property
    def work(self) -> int:
        """Epochs that this run has to do; an evaluation alone counts as one."""
        return max(self.epochs - self.first_epoch, 1)

    @property
    def covered(self) -> int:
        ended = self.state in ("done", "failed")
        return self.work if ended else self.epoch - self.first_epoch if self.epoch else 0


@dataclass
class Progress:
    """State of all jobs of a run. Drawn live on a terminal, as lines where there is none."""

    console: Console
    jobs: list[Job]
    at_once: int
    waits_for: str = ""
    started: float = field(default_factory=lambda: time.monotonic())

    def __post_init__(self) -> None:
        self.rows = {job.trial: _Row(job.label, job.config.seed, _epochs(job)) for job in self.jobs}
        self._live = Live(
            get_renderable=self._draw, console=self.console, refresh_per_second=2, transient=True
        )
        self._last_line = 0.0
        self._interactive = self.console.is_terminal

    def __enter__(self) -> Progress:
        if self._interactive:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._interactive:
            self._live.stop()

    def begin(self, trial: str) -> None:
        row = self.rows[trial]
        if row.state == "trained":
            row.state = "evaluating"
            return
        row.state, row.started = "starting" if row.epochs else "evaluating", time.monotonic()
        row.began = row.began or datetime.now(UTC).isoformat(timespec="microseconds")

    def began(self, trial: str) -> str:
        """When a trial first began in this run, as the store writes times."""
        return self.rows[trial].began

    def hold(self, trial: str, holder: str) -> None:
        """Another run is at this trial."""
        row = self.rows[trial]
        if (row.state, row.holder) != ("elsewhere", holder):
            row.state, row.holder = "elsewhere", holder
            self.warn(trial, f"left to {holder}")

    def warn(self, trial: str, sentence: str) -> None:
        """A line about one trial."""
        row = self.rows[trial]
        self.say(f"{row.label}, seed {row.seed}: {sentence}")

    def say(self, sentence: str) -> None:
        """A line above what is live."""
        self.console.print(Text(sentence, "yellow"), soft_wrap=True)

    def advance(self, trial: str, metrics: dict[str, float]) -> None:
        """One epoch of a trial is done."""
        row = self.rows[trial]
        if row.state != "running":
            row.state, row.first_epoch = "running", int(metrics["epoch"])
        row.epoch = int(metrics["epoch"]) + 1
        row.loss, row.online_top1 = metrics.get("loss"), metrics.get("online_top1")
        if row.epoch >= row.epochs:
            row.state = "evaluating"
        if not self._interactive and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.console.print(self._summary(), soft_wrap=True)

    def trained(self, trial: str) -> None:
        """It waits for another process to measure it."""
        self.rows[trial].state = "trained"

    def finish(self, trial: str, error: str | None = None, notes: Sequence[str] = ()) -> None:
        row = self.rows[trial]
        for note in notes:
            self.warn(trial, note)
        row.state = "failed" if error else "done"
        row.seconds = time.monotonic() - (row.started or time.monotonic())
        outcome = Text(f"failed: {error}", "red") if error else Text(f"done in {row.seconds:.0f} s", "green")
        line = Text.assemble((f"{row.label}, seed {row.seed}: ", ""), outcome)
        if row.loss is not None and not error:
            line.append(f", loss {row.loss:.3f}")
        self.console.print(line, soft_wrap=True)

    def count(self, *states: str) -> int:
        return sum(row.state in states for row in self.rows.values())

    def seconds_left(self) -> float | None:
        """From the pace of this run so far; None before a trial is a fifth done: start-up would mislead."""
        total = sum(row.work for row in self.rows.values())
        covered = sum(row.covered for row in self.rows.values())
        if not any(row.covered >= row.work / 5 for row in self.rows.values()):
            return None
        return (time.monotonic() - self.started) / covered * (total - covered)

    def _summary(self) -> Text:
        left = self.seconds_left()
        running = self.count("starting", "running", "evaluating")
        text = Text(f"{self.count('done')} of {len(self.rows)} trials done, {running} running, ")
        waiting = self.count("waiting", "trained")
        text.append(f"{waiting} waiting")
        if waiting and self.waits_for and not self._interactive:
            text.append(f" {self.waits_for}")
        if self.count("elsewhere"):
            text.append(f", {self.count('elsewhere')} left to other runs")
        if self.count("failed"):
            text.append(f", {self.count('failed')} failed", "red")
        text.append(f"; about {duration(left)} left" if left is not None else "; time left not known yet")
        return text

    def _draw(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("trial", "seed", "", "epoch", "loss", "online top-1"):
            table.add_column(column, justify="left" if column in ("trial", "") else "right")
        for row in self.rows.values():
            if row.state not in ("starting", "running", "evaluating"):
                continue
            bar = ProgressBar(max(row.epochs, 1), row.epoch, width=20)
            epoch = f"{row.epoch}/{row.epochs}" if row.state == "running" else row.state
            loss = "" if row.loss is None else f"{row.loss:.3f}"
            top1 = "" if row.online_top1 is None else f"{row.online_top1:.1f} %"
            table.add_row(Text(row.label), str(row.seed), bar, epoch, loss, top1)
        waiting = self.count("waiting", "trained")
        why = (
            f"waiting: {waiting}, {self.waits_for or f'as {self.at_once} fit side by side'}"
            if waiting
            else ""
        )
        return Group(table, self._summary(), Text(why, "dim"))


def _epochs(job: Job) -> int:
    """Steps of a job's bar: epochs of a training; a run of toy networks reports every hundredth."""
    if isinstance(job.config, ToyRun):
        return 100
    return job.config.epochs if job.train else 0


def duration(seconds: float | None) -> str:
    """3725 -> '1 h 02 min'."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
