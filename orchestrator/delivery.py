"""MLflow kept up to date beside a run, which never waits for it longer than it says."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from orchestrator.plan import Plan
from orchestrator.redaction import redacted
from orchestrator.report.escape import one_line
from orchestrator.store import Store
from orchestrator.tracking import Tracker, TrackingError, default_uri

_SECONDS, _SECONDS_WHEN_INTERRUPTED = 30.0, 1.0
_SILENT_SECONDS = 3.0
"""After which a command that only waits for MLflow says so."""


@contextmanager
def tracked_beside(
    plan: Plan, store: Store, tracking_uri: str | None, console: Console
) -> Iterator[BackgroundTracker]:
    """A plan's runs in MLflow while it is worked on; what is lacking at the end is said, and fails nothing."""
    tracker = BackgroundTracker(Tracker(tracking_uri or default_uri(store), store), plan)
    seconds = _SECONDS
    try:
        yield tracker
    except BaseException:  # Ctrl-C above all: nobody waits for MLflow then
        seconds = _SECONDS_WHEN_INTERRUPTED
        raise
    finally:
        if problem := tracker.close(seconds, lambda sentence: console.print(Text(sentence), soft_wrap=True)):
            said = Text(f"tracking: {problem}; `ablate sync` delivers what is missing", "yellow")
            console.print(said, soft_wrap=True)


class BackgroundTracker:
    """Syncs a plan from a thread of its own while trials run; its errors reach nobody but `close`'s caller."""

    def __init__(self, tracker: Tracker, plan: Plan) -> None:
        self._tracker, self._plan = tracker, plan
        self._wanted, self._closing = threading.Event(), threading.Event()
        self._error: TrackingError | None = None
        # a daemon: a server that hangs must not keep the command from ending
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Something was recorded; returns at once."""
        self._wanted.set()

    def follow(self, plan: Plan) -> None:
        """What the next sync is about, where a run goes on to further seeds."""
        self._plan = plan

    def close(
        self, timeout: float = 120.0, say: Callable[[str], None] = lambda sentence: None
    ) -> TrackingError | None:
        """Sync a last time.

        Args:
            timeout: seconds to wait for it; what is under way then ends with the process, and a later sync does it.
            say: told, in a sentence, if that is not a matter of a moment.

        Returns:
            What went wrong with the last sync, None if nothing did.
        """
        where = redacted(self._tracker.uri)
        self._closing.set()
        self._wanted.set()
        self._thread.join(min(timeout, _SILENT_SECONDS))
        if self._thread.is_alive() and timeout > _SILENT_SECONDS:
            say(f"bringing MLflow at {where} up to date; waiting {timeout - _SILENT_SECONDS:g} s at most")
            self._thread.join(timeout - _SILENT_SECONDS)
        if self._thread.is_alive():
            return TrackingError(
                f"MLflow at {where}: not up to date after {timeout:g} s; the records are safe in the store"
            )
        return self._error

    def _work(self) -> None:
        self._try(self._tracker.prepare)
        while True:
            self._wanted.wait()
            last = self._closing.is_set()
            self._wanted.clear()
            self._try(functools.partial(self._sync, last))
            if last:
                return

    def _sync(self, final: bool) -> None:
        plan = self._plan
        for study in plan.studies:
            self._tracker.sync(plan, study, final)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
            self._error = None
        except TrackingError as error:
            self._error = error
        except Exception as error:  # whatever it is, trainings go on
            self._error = TrackingError(
                f"tracking failed: {type(error).__name__}: {one_line(redacted(str(error)))}"
            )
