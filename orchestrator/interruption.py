"""What ends a run before its trials have ended: Ctrl-C and SIGTERM, or a time limit. They save their states."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from orchestrator.leases import Leases

SAVING_SECONDS, ENDING_SECONDS = 8.0, 5.0
"""What running trials get to save in, and then Ray to end in: less than 15 s from key to prompt."""

GOES_ON = "interrupted; the same command goes on from here"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While it is entered, the first signal asks this run's trials to save, the second ends at once.

    Either way the main thread gets a KeyboardInterrupt: when no trial of the run holds its lease any more,
    and after `SAVING_SECONDS` at the latest. A Ray that doesn't end by itself, since the signal hit it too, is left.
    Signals reach the main thread alone; elsewhere this does nothing. Whatever hangs, a stalled store above all, the
    process ends.

    Args:
        leases: of this run; they tell how many trials are still saving.
        say: told once, in a sentence, what is waited for.
    """

    def __init__(self, leases: Leases, say: Callable[[str], None]) -> None:
        self.leases, self._say = leases, say
        self._before: dict[signal.Signals, Any] = {}
        self._asked = False
        self._over, self._saved = threading.Event(), threading.Event()
        self._waiting = threading.Thread(target=self._await_signal, name="saving", daemon=True)

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _interrupt)
            self._waiting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        try:
            if self._asked:
                self._waiting.join(1)  # it may be waiting for a store that answers no more
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        if self._asked and error is None:  # all trials had ended before the main thread was told
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        # Nothing else here: the handler may interrupt whoever holds the locks that files, screen and threads need,
        # and the next signal may interrupt the handler at any point.
        self._asked = True

    def _await_signal(self) -> None:
        while not self._asked and not self._over.wait(0.1):
            pass
        if not self._asked:
            return
        last = threading.Timer(SAVING_SECONDS + ENDING_SECONDS, self._give_up)
        last.daemon = True
        last.start()
        threading.Thread(target=self._save, name="stop", daemon=True).start()
        deadline = time.monotonic() + SAVING_SECONDS
        while time.monotonic() < deadline and not self._saved.wait(0.1) and not self._over.is_set():
            pass
        if not self._over.is_set():
            os.kill(os.getpid(), signal.SIGALRM)  # to have the main thread raise, wherever it is

    def _save(self) -> None:
        """Ask for states and wait for them; ends with the process where the store answers no more."""
        with suppress(OSError):  # a store that is read-only, or gone
            self.leases.request_stop()
            if running := self._running():
                self._say(
                    f"interrupted; {running} running trial(s) save their states, Ctrl-C again ends at once"
                )
            while self._running() and not self._over.wait(0.1):
                pass
        self._saved.set()

    def _give_up(self) -> None:
        sentence = f"Ray does not end by itself; {GOES_ON}"
        threading.Thread(target=self._say, args=(sentence,), daemon=True).start()
        time.sleep(0.5)  # the screen may be as stuck as the rest
        os._exit(130)

    def _running(self) -> int:
        return sum(holder.run == self.leases.run for holder in self.leases.held().values())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def time_limit(
    seconds: float | None, leases: Leases, say: Callable[[str], None]
) -> Iterator[threading.Event]:
    """An event that is set when the time is over, at which the run's trials are asked to save and end."""
    over = threading.Event()

    def end() -> None:
        over.set()
        with suppress(OSError):  # running trials then go on to their ends
            leases.request_stop()
        say("the budget is spent: running trials save their states, no further one starts")

    timer = threading.Timer(seconds, end) if seconds is not None else None
    if timer:
        timer.daemon = True
        timer.start()
    try:
        yield over
    finally:
        if timer:
            timer.cancel()
