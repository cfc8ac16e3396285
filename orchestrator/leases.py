"""One process at a time works on a trial, whatever commands, clusters and machines share the store.

    <root>/leases/<key>/<token>             who holds the trial; renewed by its modification time
    <root>/leases/<key>/<token>.progress    where the work stands
    <root>/leases/<key>/<token>.renewed     in an object store, where nothing has a modification time of its own:
                                            how often it was renewed
    <root>/.runs/<run>/stop                 asks the trials of a run to save and end
    <root>/leases.lock                      spares those who take at once a second try

Whoever wants a trial creates a file of a name that nobody else ever has, and holds the trial if no other living
process has one there: of two who try at once, the later sees the earlier. Files of the dead are removed before, so a
process that slept through a take-over finds its own gone, and stops before it writes. All this needs of a file
system is that what one process made, all others list from then on: local disks, NFS and S3 do that.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator import records
from orchestrator.errors import AblateError
from orchestrator.processes import lives, machine, started
from orchestrator.records import RecordError
from trainers.files import make_folder, open_own, read_regular, write_atomically
from trainers.locations import is_local, location

_NAME = re.compile(r"[0-9a-f]{8,40}")
_TOKEN = re.compile(r"[0-9a-f]{16}")
_MOST_BYTES, _LONGEST = 10_000, 300
_PROGRESS_EVERY_S = 2.0
_STOP_EVERY_S = 0.5
_LOCK_S = 5.0
_REMOTE_EVERY_S = 3.0
"""Between what a fence asks and tells an object store: the training doesn't wait for it."""
_AT_ONCE = 16
"""Requests to an object store."""


class LeaseLost(Exception):
    """Another process has taken the trial over; this one has to stop without writing."""


@dataclass(frozen=True)
class Holder:
    """A process that works on a trial.

    Attributes:
        run: of the command that started it.
        machine: boot and process namespace, within which `pid` and `started` (in ticks since boot) tell
            whether it lives.
        token: of this very lease, which no other ever has.
    """

    run: str
    host: str
    machine: str
    pid: int
    started: str
    token: str

    def __str__(self) -> str:
        return f"run {self.run} on {self.host}, process {self.pid}"


_HOLDER = TypeAdapter(Holder)


class Fence:
    """What other processes of a trial, such as Ray Train's workers, need of its lease. Can be pickled."""

    def __init__(self, root: Path, key: str, holder: Holder) -> None:
        self._root, self._key, self._holder = root, key, holder
        self._place = root / "leases" / _named(key)
        self._progress = self._place / f"{holder.token}.progress"
        self._count, self._told, self._asked, self._stop = 0, -1e9, -1e9, False
        self._where: str | None = None
        self._errand: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _fence, (str(self._root), self._key, self._holder)

    def confirm(self) -> None:
        """Asked before each write.

        Raises:
            LeaseLost: this lease holds the trial no more.
        """
        token = self._place / self._holder.token
        try:  # opened, not listed: a network file system may show an old listing for a minute
            if is_local(token):
                os.close(os.open(token, os.O_RDONLY))
            else:
                token.stat()
        except OSError as error:
            if not is_local(token) and not isinstance(error, FileNotFoundError):
                raise  # an object store that is away for a while takes nothing over
            raise LeaseLost(
                f"trial {self._key} was taken over by another process; this one stops without writing"
            ) from None

    def beat(self, where: str) -> None:
        """The work goes on and stands at `where`. Cheap: most calls only look at a clock."""
        if not is_local(self._place):
            self._where = where
            self._run_errands()
            return
        now = time.monotonic()
        if now - self._told < _PROGRESS_EVERY_S:
            return
        self._told = now
        self._tell(where)

    def _tell(self, where: str) -> None:
        self._count += 1
        content = json.dumps({"by": _me(), "count": self._count, "where": where})
        with suppress(OSError):  # a full disk ends a trial where its results are written, not here
            if not is_local(self._progress):
                write_atomically(self._progress, content)
                return
            partial = self._progress.with_suffix(f".{secrets.token_hex(4)}")
            partial.write_text(content)
            partial.replace(self._progress)

    def _run_errands(self) -> None:
        """In a thread that ends by itself, at most one at a time."""
        now = time.monotonic()
        if now - self._told < _REMOTE_EVERY_S or (self._errand and self._errand.is_alive()):
            return
        self._told = now
        self._errand = threading.Thread(target=self._errands, name="lease errands", daemon=True)
        self._errand.start()

    def _errands(self) -> None:
        where, self._where = self._where, None
        if where is not None:
            self._tell(where)
        with suppress(OSError):
            self._stop = self._stop or _stop_file(self._root, self._holder.run).exists()

    def others_beat(self) -> bool:
        """Whether another process of the trial was the last to tell where the work stands."""
        with suppress(OSError, RecordError, LookupError, TypeError):
            return bool(_read(self._progress)["by"] != _me())
        return False

    def stopping(self) -> bool:
        """Whether the run was asked to save and end; of an object store, as of some seconds ago."""
        if not is_local(self._place):
            self._run_errands()
            return self._stop
        now = time.monotonic()
        if not self._stop and now - self._asked > _STOP_EVERY_S:
            self._asked, self._stop = now, _stop_file(self._root, self._holder.run).exists()
        return self._stop


class Lease:
    """A trial that is ours until the `with` ends; a thread renews it meanwhile."""

    def __init__(self, root: Path, key: str, holder: Holder, ttl: float) -> None:
        self.holder = holder
        self.fence = Fence(root, key, holder)
        self._place, self._ttl = root / "leases" / key, ttl
        self._released = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name=f"lease {key}", daemon=True)
        self._renewing.start()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the trial back; a lease that was lost leaves the files to its taker."""
        self._released.set()
        if not is_local(self._place):
            self._renewing.join(5)  # what it writes now would stay behind
        with suppress(OSError):  # another may be in the folder by now
            _remove(self._place, self.holder.token)
            if is_local(self._place):
                self._place.rmdir()

    def _renew(self) -> None:
        token, count = self._place / self.holder.token, 0
        while not self._released.wait(self._ttl / 6):
            with suppress(OSError):  # gone: it was taken over, which whoever is about to write finds too
                if is_local(token):
                    os.utime(token)
                else:  # beside it: written anew, a lease that was taken over would be there again
                    count += 1
                    write_atomically(self._place / f"{token.name}.renewed", str(count))


class Leases:
    """The leases of a store, as one run sees them.

    A holder on another machine counts as dead once this object has seen it unrenewed for `ttl` seconds of its own
    clock: what clocks of other machines and file systems say is never compared.

    Args:
        root: of the store.
        run: of the command on whose behalf trials are taken.
    """

    def __init__(self, root: Path, run: str, ttl: float = 60.0) -> None:
        self.root, self.run, self.ttl = root, _named(run), ttl
        self._seen: dict[Path, tuple[int, float]] = {}  # when it was renewed, and when that was new

    def acquire(self, key: str) -> Lease | Holder:
        """Take a trial, from a dead holder too; its holder if that is alive."""
        place = self._place(key)
        with _alone(self.root):
            while True:
                if holder := self.holder(key):
                    return holder
                try:
                    self._bury(place)
                    ours = self._create(place)
                except (FileNotFoundError, FileExistsError):  # the folder went, given back just now
                    continue
                if _tokens(place) == [ours.token]:
                    return Lease(self.root, key, ours, self.ttl)
                _remove(place, ours.token)
                time.sleep(0.001 * secrets.randbelow(50))  # so that the next try of one of us is alone

    def holder(self, key: str) -> Holder | None:
        """Who holds a trial; None if nobody alive does."""
        place = self._place(key)
        return next((holder for token in _tokens(place) if (holder := self._live(place, token))), None)

    def progress(self, key: str) -> tuple[str, str] | None:
        """What changes whenever the work has moved, and where it stands or stood when its process died."""
        with suppress(OSError, RecordError, LookupError, TypeError, ValueError):
            told = sorted(self._place(key).glob("*.progress"))
            newest = max(told, key=lambda path: path.stat().st_mtime_ns) if len(told) > 1 else told[0]
            content = _read(newest)
            return f"{newest.stem}:{content['by']}:{content['count']}", str(content["where"])[:_LONGEST]
        return None

    def held(self) -> dict[str, Holder]:
        """Trial -> its live holder."""
        names = sorted(path.name for path in (self.root / "leases").glob("*") if _NAME.fullmatch(path.name))
        if is_local(self.root) or len(names) < 2:
            holders = map(self.holder, names)
            return {name: holder for name, holder in zip(names, holders, strict=True) if holder}
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # each is a few round trips
            found = list(pool.map(self.holder, names))
        return {name: holder for name, holder in zip(names, found, strict=True) if holder}

    def request_stop(self) -> None:
        """Ask this run's trials, on all machines, to save their states and end."""
        path = _stop_file(self.root, self.run)
        make_folder(path.parent)
        write_atomically(path, "stop\n")

    def stop_requested(self) -> bool:
        return _stop_file(self.root, self.run).exists()

    def clear_dead(self) -> None:
        """Remove what dead holders left, of trials that nobody will take again."""
        for place in sorted((self.root / "leases").glob("*")):
            if not _NAME.fullmatch(place.name) or not place.is_dir():
                continue
            if isinstance(lease := self.acquire(place.name), Lease):
                lease.release()

    def _place(self, key: str) -> Path:
        place = self.root / "leases" / _named(key)
        if is_local(place) and place.is_symlink():
            raise AblateError(f"lease {key}: {place} is a link; remove it")
        return place

    def _create(self, place: Path) -> Holder:
        make_folder(place)
        me, host = os.getpid(), socket.gethostname()
        ours = Holder(self.run, host, machine(), me, started(me) or "", secrets.token_hex(8))
        if not is_local(place):
            write_atomically(place / ours.token, json.dumps(asdict(ours)))
            return ours
        file = os.open(place / ours.token, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        with os.fdopen(file, "w") as stream:
            json.dump(asdict(ours), stream)
        return ours

    def _bury(self, place: Path) -> None:
        """Remove the files of dead holders, and what they told of their work after that."""
        dead = [token for token in _tokens(place) if not self._live(place, token)]
        for token in dead:
            _remove(place, token)
        kept = _tokens(place)
        for name in _names(place):
            if name[:16] not in kept and "." in name:
                (place / name).unlink(missing_ok=True)

    def _live(self, place: Path, token: str) -> Holder | None:
        path = place / token
        try:
            content, renewed = _read(path), _renewed(path)
            holder = _HOLDER.validate_python({**content, "token": token})
        except FileNotFoundError:
            return None
        except (RecordError, ValidationError, TypeError, OSError):  # being written, or its writer died at it
            holder, renewed = Holder("unknown", "unknown", "unknown", 0, "", token), 0
        if holder.machine == machine():
            return holder if lives(holder.pid, holder.started) else None
        now = time.monotonic()
        if path not in self._seen or self._seen[path][0] != renewed:
            self._seen[path] = renewed, now
        return holder if now - self._seen[path][1] < self.ttl else None


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """No other process takes or gives back a trial of the store meanwhile.

    Whoever doesn't get the lock soon, since its owner is frozen or the file system knows none, goes on without: it
    only makes it rare that two see each other, and both try again.
    """
    if not is_local(root):
        yield
        return
    with os.fdopen(open_own(root / "leases.lock", os.O_RDWR), "r+") as lock:
        deadline = time.monotonic() + _LOCK_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.02)
                continue
            except OSError:
                pass
            break
        yield


def _read(path: Path) -> Any:
    """What a lease's file says, whoever wrote it."""
    return records.parse(read_regular(path, _MOST_BYTES))


def _renewed(path: Path) -> int:
    """What changes whenever a lease is renewed."""
    if is_local(path):
        return path.stat().st_mtime_ns
    try:
        return int(read_regular(path.with_name(f"{path.name}.renewed"), 20))
    except (FileNotFoundError, ValueError):
        return 0


def _fence(root: str, key: str, holder: Holder) -> Fence:
    return Fence(location(root), key, holder)


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise AblateError(f"lease {name[:40]!r}: takes the key of a trial or a run, hexadecimal digits")
    return name


def run_folder(root: Path, run: str) -> Path:
    """What belongs to one command of a store, and goes when it ends."""
    return root / ".runs" / _named(run)


def _stop_file(root: Path, run: str) -> Path:
    return run_folder(root, run) / "stop"


def _me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _remove(place: Path, token: str) -> None:
    """A lease and what was told of its work; the lease last, since whoever is about to write asks for it."""
    for path in [*place.glob(f"{token}.*"), place / token]:
        path.unlink(missing_ok=True)


def _tokens(place: Path) -> list[str]:
    return sorted(name for name in _names(place) if _TOKEN.fullmatch(name))


def _names(place: Path) -> list[str]:
    """Of what is in a folder; in an object store the folder goes with the last of it."""
    try:
        return os.listdir(place) if is_local(place) else [path.name for path in place.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
