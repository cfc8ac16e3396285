"""One process at a time works on a trial, whatever commands, clusters and machines share the store.

    <root>/leases/<key>/<generation>            who holds the trial; renewed by its modification time
    <root>/leases/<key>/<generation>.progress   where the work stands
    <root>/leases/<run>.stop                    asks the trials of a run to save and end
    <root>/leases.lock                          held for the moment of taking or giving back

A lease is taken by creating the file of the next generation, which only one process can; the highest
generation holds. So a take-over renames and deletes nothing that anybody relies on, and the generation tells a
process that slept through one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from orchestrator.errors import AblateError

_NAME = re.compile(r"[0-9a-f]{8,40}")
_PROGRESS_EVERY_S = 2.0
_STOP_EVERY_S = 0.5


class LeaseLost(Exception):
    """Another process has taken the trial over; this one has to stop without writing."""


@dataclass(frozen=True)
class Holder:
    """A process that works on a trial.

    Attributes:
        run: of the command that started it.
        machine: boot and process namespace, within which `pid` and `started` (in ticks since boot) tell
            whether it lives.
        generation: of its lease.
    """

    run: str
    host: str
    machine: str
    pid: int
    started: str
    generation: int

    def __str__(self) -> str:
        return f"run {self.run} on {self.host}, process {self.pid}"


class Fence:
    """What other processes of a trial, such as Ray Train's workers, need of its lease. Can be pickled."""

    def __init__(self, root: Path, key: str, run: str, generation: int) -> None:
        self._root, self._key, self._run, self._generation = root, key, run, generation
        self._place = root / "leases" / key
        self._count, self._told, self._asked, self._stop = 0, -1e9, -1e9, False

    def confirm(self) -> None:
        """Asked before each write.

        Raises:
            LeaseLost: this generation holds the trial no more.
        """
        generations = _generations(self._place)
        if self._generation not in generations or generations[-1] > self._generation:
            raise LeaseLost(
                f"trial {self._key} was taken over by another process; this one stops without writing"
            )

    def beat(self, where: str) -> None:
        """The work goes on and stands at `where`. Cheap: most calls only look at a clock."""
        now = time.monotonic()
        if now - self._told < _PROGRESS_EVERY_S:
            return
        self._told, self._count = now, self._count + 1
        path = self._place / f"{self._generation:010d}.progress"
        partial = path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # a full disk ends a trial where its results are written, not here
            partial.write_text(json.dumps({"count": f"{os.getpid()}:{self._count}", "where": where}))
            partial.replace(path)

    def stopping(self) -> bool:
        """Whether the run was asked to save and end."""
        now = time.monotonic()
        if not self._stop and now - self._asked > _STOP_EVERY_S:
            self._asked, self._stop = now, _stop_file(self._root, self._run).exists()
        return self._stop


class Lease:
    """A trial that is ours until the `with` ends; a thread renews it meanwhile."""

    def __init__(self, root: Path, key: str, holder: Holder, ttl: float) -> None:
        self.holder = holder
        self.fence = Fence(root, key, holder.run, holder.generation)
        self._place, self._ttl = root / "leases" / key, ttl
        self._path = self._place / f"{holder.generation:010d}"
        self._released = threading.Event()
        threading.Thread(target=self._renew, name=f"lease {key}", daemon=True).start()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def confirm(self) -> None:
        """As `Fence.confirm`."""
        self.fence.confirm()

    def release(self) -> None:
        """Give the trial back; a lease that was lost leaves the files to its taker."""
        self._released.set()
        with suppress(LeaseLost, OSError), _alone(self._place.parent.parent):
            self.confirm()
            for path in self._place.glob(f"{self.holder.generation:010d}.*"):
                path.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
            self._place.rmdir()

    def _renew(self) -> None:
        while not self._released.wait(self._ttl / 6):
            with suppress(OSError):  # gone: it was taken over, which `confirm` finds
                os.utime(self._path)


class Leases:
    """The leases of a store, as one run sees them.

    Args:
        root: of the store.
        run: of the command on whose behalf trials are taken.
        ttl: seconds without renewal after which a holder on another machine counts as dead.
    """

    def __init__(self, root: Path, run: str, ttl: float = 60.0) -> None:
        self.root, self.run, self.ttl = Path(root), run, ttl
        _named(run)

    def acquire(self, key: str) -> Lease | Holder:
        """Take a trial, from a dead holder too; its holder if that is alive."""
        place = self._place(key)
        with _alone(self.root):
            place.mkdir(parents=True, exist_ok=True)
            generations = _generations(place)
            if generations and (holder := self._live(place, generations[-1])):
                return holder
            generation, me = (generations[-1] if generations else 0) + 1, os.getpid()
            ours = Holder(self.run, socket.gethostname(), _machine(), me, _ticks(me) or "", generation)
            # exclusively, should the file system know no locks
            file = os.open(place / f"{generation:010d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            with os.fdopen(file, "w") as stream:
                json.dump(asdict(ours), stream)
            for older in generations:
                for path in place.glob(f"{older:010d}*"):
                    path.unlink(missing_ok=True)
            return Lease(self.root, key, ours, self.ttl)

    def holder(self, key: str) -> tuple[Holder, float, str] | None:
        """Who holds a trial, seconds since they renewed, and where the work stands; None if nobody alive does."""
        place = self._place(key)
        generations = _generations(place)
        if not generations or not (holder := self._live(place, generations[-1])):
            return None
        told = self.progress(key)
        return holder, _age(place, place / f"{generations[-1]:010d}"), told[1] if told else "its start"

    def progress(self, key: str) -> tuple[str, str] | None:
        """What changes whenever the holder's work has moved, and where it stands."""
        place = self._place(key)
        for generation in reversed(_generations(place)):
            with suppress(OSError, ValueError, KeyError):
                told = json.loads((place / f"{generation:010d}.progress").read_text())
                return f"{generation}:{told['count']}", str(told["where"])
            break
        return None

    def held(self) -> dict[str, Holder]:
        """Trial -> its live holder."""
        found = {}
        for place in sorted((self.root / "leases").glob("*")):
            if _NAME.fullmatch(place.name) and (generations := _generations(place)):
                holder = self._live(place, generations[-1])
                if holder:
                    found[place.name] = holder
        return found

    def request_stop(self) -> None:
        """Ask this run's trials, on all machines, to save their states and end."""
        path = _stop_file(self.root, self.run)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def stop_requested(self) -> bool:
        return _stop_file(self.root, self.run).exists()

    def clear_stop(self) -> None:
        _stop_file(self.root, self.run).unlink(missing_ok=True)

    def clear_dead(self) -> None:
        """Remove what dead holders left, of trials that nobody will take again."""
        for place in (self.root / "leases").glob("*"):
            if not _NAME.fullmatch(place.name) or not place.is_dir():
                continue
            generations = _generations(place)
            if not generations or not self._live(place, generations[-1]):
                lease = self.acquire(place.name)
                if isinstance(lease, Lease):
                    lease.release()
                    if not _generations(place):
                        shutil.rmtree(place, ignore_errors=True)

    def _place(self, key: str) -> Path:
        return self.root / "leases" / _named(key)

    def _live(self, place: Path, generation: int) -> Holder | None:
        path = place / f"{generation:010d}"
        try:
            holder = Holder(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # being written just now, or its writer died at it
            holder = Holder("unknown", "unknown", "unknown", 0, "", generation)
        if holder.machine == _machine():
            return holder if _ticks(holder.pid) == holder.started else None
        try:
            return holder if _age(place, path) < self.ttl else None
        except FileNotFoundError:
            return None


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """No other process takes or gives back a trial of the store meanwhile."""
    with (root / "leases.lock").open("w") as lock:
        with suppress(OSError):  # a file system without locks: exclusive creation has to do
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise AblateError(f"lease {name[:40]!r}: takes the key of a trial or a run, hexadecimal digits")
    return name


def _stop_file(root: Path, run: str) -> Path:
    return root / "leases" / f"{_named(run)}.stop"


def _generations(place: Path) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(place) if name.isdigit())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _age(place: Path, path: Path) -> float:
    """Seconds since a file was renewed, by the clock of its file system: machines' own may differ."""
    probe = place.parent / f".clock-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@cache
def _machine() -> str:
    """Within which a process number means one process: the boot, and the namespace of numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: nobody counts as dead before its lease has run out
        return f"{socket.gethostname()}:{os.getpid()}"


def _ticks(pid: int) -> str | None:
    """When a process started, in ticks since boot; None if it is gone, or dead and not yet collected."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else after_name[19]
