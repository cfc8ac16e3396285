"""Ends trials that stand still: a stalled disk, a collective that waits for a dead peer, a frozen process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from orchestrator.leases import Fence, Holder, LeaseLost, Leases
from orchestrator.processes import parent_of, started
from orchestrator.store import Store
from trainers.locations import location

HUNG = "Hung"
"""Type of the failure that is kept; `run` tells whose, so that the same run does not try again."""
_PAUSE_S = 5.0
"""So much later than it should, this thread may be woken on a busy machine."""


class HangWatch:
    """A thread of the command that looks at the progress of this run's trials.

    A trial that told of no step for longer than its recipe allows gets a failure in the store, and its process is
    killed, wherever it runs. Tune then starts it again, and the trial finds the failure and ends. Time in which this
    command itself was stopped, by Ctrl-Z or with its machine, counts for nobody.

    Args:
        silent_seconds: of each trial, `limits.silent_seconds`.
        end: kills the process of a trial's holder; takes its time, may raise.
        say: told of a trial and why it is ended, since a process that waits for a dead disk can't be killed.
    """

    def __init__(
        self,
        store: Store,
        leases: Leases,
        silent_seconds: dict[str, float],
        end: Callable[[str, Holder], None],
        say: Callable[[str, str], None],
    ) -> None:
        self._store, self._leases, self._silent_seconds = store, leases, silent_seconds
        self._end, self._say = end, say
        self._seen: dict[str, tuple[object, float]] = {}  # what was last told, and when that was new
        self._done = threading.Event()
        self._interval = min([5.0, *(seconds / 10 for seconds in silent_seconds.values())])
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)

    def __enter__(self) -> HangWatch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        asleep = time.monotonic()
        while not self._done.wait(self._interval):
            stopped = time.monotonic() - asleep - self._interval
            if stopped > _PAUSE_S:
                self._seen = {key: (state, when + stopped) for key, (state, when) in self._seen.items()}
            with suppress(OSError):  # a store that is away for a while
                self._look()
            asleep = time.monotonic()

    def _look(self) -> None:
        now = time.monotonic()
        ours = {key: h for key, h in self._leases.held().items() if h.run == self._leases.run}
        self._seen = {key: seen for key, seen in self._seen.items() if key in ours}
        for key, holder in ours.items():
            state = (holder.token, told := self._leases.progress(key))
            if key not in self._seen or self._seen[key][0] != state:
                self._seen[key] = state, now
                continue
            silent, allowed = now - self._seen[key][1], self._silent_seconds.get(key)
            if allowed is None or silent <= allowed:
                continue
            failure = hung(self._leases.run, holder, told[1] if told else "its start", silent, allowed)
            self._seen[key] = state, now  # should killing fail, it is tried again after as long a time
            self._say(key, failure["error"])
            with suppress(OSError):  # a full disk must not save it
                self._store.fail_trial(key, failure)
            with suppress(Exception):
                self._end(key, holder)


def hung(run: str, holder: Holder, where: str, silent: float, allowed: float) -> dict[str, str]:
    """The failure of a trial that stood still."""
    error = (
        f"no progress for {silent:.0f} s since {where}, ended (limits.silent_seconds = {allowed:g}): a stalled disk or "
        f"network at {holder.host} is the usual reason; the same command goes on from the last state"
    )
    when = datetime.now(UTC).isoformat(timespec="microseconds")
    return {"error": error, "type": HUNG, "traceback": "", "when": when, "run": run}


def end_process(root: str, key: str, holder: Holder) -> None:
    """Kill a trial's holder; to be called in a worker of the same Ray on its machine.

    A lease is a file, which may name any process: only a worker that the same node of Ray started is killed, and
    only while it is the process that took the lease, and still holds it.
    """
    try:
        Fence(location(root), key, holder).confirm()
    except LeaseLost:  # it moved on to its next trial meanwhile
        return
    if parent_of(holder.pid) == os.getppid() and started(holder.pid) == holder.started:
        with suppress(ProcessLookupError):
            os.kill(holder.pid, signal.SIGKILL)
