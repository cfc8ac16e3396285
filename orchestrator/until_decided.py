"""`ablate run --until-decided`: rounds of trainings until every claim is decided, hopeless, or the budget is spent."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import fsum

from orchestrator.allocation import Allocation, Claims, Standing
from orchestrator.errors import SpecError
from orchestrator.plan import Job, Plan, jobs
from orchestrator.progress import duration
from orchestrator.report.claims.outlook import State
from orchestrator.report.escape import one_line
from orchestrator.seeds import settled
from orchestrator.store import Store
from trainers.config import TrialConfig

_BUDGET = re.compile(r"(?=[0-9])(?:([0-9]{1,5})h)?(?:([0-9]{1,5})m)?(?:([0-9]{1,7})s)?")
_LINES = 12
"""Of open claims in a round; a paper states more than a screen holds."""
_WORDS: dict[State, str] = {"open": "open", "hopeless": "out of reach"}


def parse_budget(text: str) -> float:
    """`90s`, `30m`, `4h` or `1h30m` in seconds.

    Raises:
        SpecError: anything else.
    """
    match = _BUDGET.fullmatch(text.strip())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    if not (total := 3600 * hours + 60 * minutes + seconds):
        raise SpecError(f"--budget: got {text!r}, expected a time such as 90s, 30m, 4h or 1h30m")
    return float(total)


@dataclass(frozen=True)
class Budget:
    """Wall time of a command.

    Attributes:
        seconds: None: no limit.
        started: on the monotonic clock.
    """

    seconds: float | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def used(self) -> float:
        return time.monotonic() - self.started

    @property
    def deadline(self) -> float | None:
        return None if self.seconds is None else self.started + self.seconds

    @property
    def spent(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(frozen=True)
class End:
    """What it came to.

    Attributes:
        plan: every training that ended, for the report.
        claims: as of the last complete round.
        cut_off: whether the budget was spent within a round.
    """

    plan: Plan
    claims: Claims
    cut_off: bool


def until_decided(
    allocation: Allocation,
    budget: Budget,
    store: Store,
    train: Callable[[Plan, list[Job]], None],
    say: Callable[[str], None],
) -> tuple[End, list[str]]:
    """Train round by round.

    Args:
        train: runs jobs of a plan to their end, or until the budget is spent.
        say: given a line at a time.

    Returns:
        What it came to, and in lines for a screen.
    """
    tried: set[str] = set()
    while True:
        lacking, failures = _open_work(allocation, store, tried)
        standing = allocation.standing(store, lacking, failures)
        missing = [job for job in jobs(standing.plan, store) if job.trial not in tried]
        missing.sort(key=lambda job: standing.remaining.get(job.trial, 0))
        if not missing or budget.spent:
            break
        for line in _round(standing, missing, store, budget):
            say(line)
        train(standing.plan, missing)
        tried |= {job.trial for job in missing}
    plan = settled(standing.plan, lambda study: store)
    end = End(plan, standing.claims or allocation.unknown(), cut_off=bool(missing))
    return end, list(_summary(allocation, standing, end, store, budget))


@dataclass(frozen=True)
class Forecast:
    """Before anything is run.

    Attributes:
        at_most: what is left to do if every claim that is not decided needs all seeds that it may get.
    """

    standing: Standing
    at_most: list[Job]
    max_seeds: int

    def lines(self, seconds: float | None, at_once: int) -> Iterator[str]:
        """Args: seconds: that `at_most` is estimated to last with this many trials at once."""
        if self.standing.claims is not None:
            yield f"{_states(self.standing.claims)} after {_count(self.standing.rounds, 'complete round')}"
            yield from _claim_lines(self.standing.claims, "open")
            yield from _claim_lines(self.standing.claims, "hopeless")
        time_needed = f", about {duration(seconds)} with {at_once} at once" if seconds else ""
        trainings = _count(sum(job.train for job in self.at_most), "training")
        yield f"At most {trainings}{time_needed}, if open claims need up to {self.max_seeds} seeds."


def forecast(allocation: Allocation, store: Store) -> Forecast:
    """Where a plan stands, and its worst case."""
    lacking, failures = _open_work(allocation, store, None)
    standing = allocation.standing(store, lacking, failures)
    most = allocation.with_seeds(allocation.max_seeds, allocation.claimed(standing.claims))
    return Forecast(standing, jobs(most, store), allocation.max_seeds)


def _open_work(
    allocation: Allocation, store: Store, tried: set[str] | None
) -> tuple[set[str], dict[str, str]]:
    """What is still to be made, and the errors of what failed though it was tried; tried None: by anybody."""
    lacking: set[str] = set()
    failures: dict[str, str] = {}
    for job in jobs(allocation.whole, store):
        failure = store.trial_failure(job.trial) if tried is None or job.trial in tried else None
        if failure:
            failures[job.trial] = one_line(str(failure["error"]))
        else:
            lacking |= {job.trial, *job.evaluations} if job.train else job.evaluations.keys()
    return lacking, failures


# --- what is said ---------------------------------------------------------------------------------


def _round(standing: Standing, missing: list[Job], store: Store, budget: Budget) -> Iterator[str]:
    """Which claim waits for what, and the bill so far."""
    work = f"{_count(sum(job.train for job in missing), 'training')} to do"
    if standing.claims is None:
        yield f"round 1, the first seeds of every cell: {work}"
    else:
        yield f"round {standing.rounds + 1}, {_states(standing.claims)}: {work}"
        yield from _claim_lines(standing.claims, "open", _LINES)
    trained, seconds = _trained(standing.plan, store)
    limit = "" if budget.seconds is None else f" of the budget of {duration(budget.seconds)}"
    yield f"  so far {_count(trained, 'training')}, {duration(seconds)} of training; {duration(budget.used)}{limit}"


def _claim_lines(claims: Claims, state: State, most: int | None = None) -> Iterator[str]:
    """Each claim of a state with what it waits for, those that are nearest to a verdict first."""
    chosen = sorted(
        (one for some in claims.values() for one in some if one.state == state),
        key=lambda one: (one.seeds_needed is None, (one.seeds_needed or 0) - one.seeds),
    )
    for one in chosen[:most]:
        cells = [cell if study == one.study else f"{study}/{cell}" for study, cell in one.cells]
        names = ", ".join(cells) if len(cells) < 5 else f"{len(cells)} cells"
        waits = f", has {one.seeds}; next seed: {names}" if cells else ""
        yield f"  {one.study}/{one.claim}: {one.reason}{waits}"
    if most is not None and len(chosen) > most:
        yield f"  and {len(chosen) - most} more"


def _summary(
    allocation: Allocation, standing: Standing, end: End, store: Store, budget: Budget
) -> Iterator[str]:
    """The states of all claims, and the seeds spent beside those of a fixed plan."""
    rounds = f"{_count(standing.rounds, 'complete round')}, {duration(budget.used)}"
    yield f"{_states(end.claims)} after {rounds}"
    if end.cut_off:
        left_open = sum(one.state == "open" for some in end.claims.values() for one in some)
        yield (
            f"the budget is spent within round {standing.rounds + 1}, {_count(left_open, 'claim')} left open; "
            "the same command goes on"
        )
    yield from _claim_lines(end.claims, "open")
    yield from _claim_lines(end.claims, "hopeless")
    seeds = Counter(
        (study.name, cell.name) for study in end.plan.studies for cell in study.cells if cell.case is None
    )
    fewest, most = min(seeds.values(), default=0), max(seeds.values(), default=0)
    trained, seconds = _trained(end.plan, store)
    fixed = sum(isinstance(config, TrialConfig) for config in allocation.with_seeds(most).trials.values())
    spread = f"{most}" if fewest == most else f"{fewest} to {most}"
    yield (
        f"{spread} seeds a cell: {_count(trained, 'training')}, {duration(seconds)} of training; "
        f"{most} seeds for every cell would be {_count(fixed, 'training')}"
    )


def _states(claims: Claims) -> str:
    """5 of 8 claims decided, 2 open, 1 out of reach"""
    states = Counter(one.state for some in claims.values() for one in some)
    parts = [f"{states['decided']} of {_count(states.total(), 'claim')} decided"]
    parts += [f"{states[state]} {word}" for state, word in _WORDS.items() if states[state]]
    return ", ".join(parts)


def _trained(plan: Plan, store: Store) -> tuple[int, float]:
    """Trainings of a plan that have finished, whoever made them, and their seconds in sum."""
    records = [
        record
        for key, config in plan.trials.items()
        if isinstance(config, TrialConfig) and (record := store.trial_record(key))
    ]
    return len(records), fsum(record["seconds"] for record in records)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
