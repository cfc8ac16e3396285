"""Shards at a URL, brought to this node once for all of its processes and trials."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from fsspec import Callback

from trainers.data.formats import DataError
from trainers.data.shards import find_shards
from trainers.files import partial_name, put_in_place, remove_partial, write_atomically
from trainers.locations import LocationError, filesystem, location
from trainers.node_cache import VARIABLE, cache_folder

STREAMS = 8
"""Shards that come at the same time."""
_TRIES = 3
_MD5 = re.compile(r"[0-9a-f]{32}")
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created")


@dataclass(frozen=True)
class RemoteShard:
    """What the server tells of a shard.

    Attributes:
        version: changes when the shard does.
        md5: in hexadecimal digits; None where the server tells none.
    """

    name: str
    bytes: int
    version: str
    md5: str | None

    def source(self, url: str) -> dict[str, Any]:
        """What is kept beside a copy, to be compared with."""
        return {"url": f"{url}/{self.name}", "bytes": self.bytes, "version": self.version}


def list_shards(url: str) -> list[RemoteShard]:
    """The shards at a URL, as its server lists them now; none is read.

    Raises:
        DataError: the URL cannot be listed, or a split has no shards or too few.
    """
    url = url.rstrip("/")
    system, place = _open(url)
    try:
        system.invalidate_cache()
        entries = {str(entry["name"]).rsplit("/", 1)[-1]: entry for entry in system.ls(place, detail=True)}
        shards = [name for part in find_shards(url, entries).values() for name in part]
        # a list of a web server's may lack sizes
        sizes = [entries[name].get("size") or system.size(f"{place}/{name}") for name in shards]
        return [
            _remote_shard(name, int(size), entries[name]) for name, size in zip(shards, sizes, strict=True)
        ]
    except FileNotFoundError:
        raise DataError(f"{url}: nothing is there; set data.root to where the shards are") from None
    except DataError:
        raise
    except Exception as error:  # each kind of server has errors of its own
        raise DataError(f"{url}: cannot be listed ({_reason(error)}){_help(error)}") from None


def fetch_shards(url: str, beat: Callable[[str], None], note: Callable[[str], None]) -> Path:
    """The folder of this node with the shards of a URL; those that it lacks, or has of another version, are fetched.

    One process of a node fetches, the others wait for it.

    Args:
        beat: told how far it is; what it raises ends the fetching.
        note: told once what was fetched, and whereto.

    Raises:
        DataError: a shard cannot be fetched, arrives damaged, or finds no room.
    """
    shards = list_shards(url)
    folder = cache_folder() / "shards" / f"{_readable(url)}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, url, beat):
            _remove_others(folder, {shard.name for shard in shards})
            missing = [shard for shard in shards if not _is_there(folder, url, shard)]
            if missing:
                remove_partial(folder)
                _refuse_without_room(folder, url, missing)
                _Fetching(url, folder, beat).all(missing)
                size = _gigabytes(sum(shard.bytes for shard in missing))
                note(f"fetched {len(missing)} shards, {size}, of {url} to {folder} ({VARIABLE} says where)")
    except OSError as error:
        raise DataError(_cannot_be_kept(folder, error)) from None
    return folder


@contextmanager
def _alone(folder: Path, url: str, beat: Callable[[str], None]) -> Iterator[None]:
    """Until the end of the `with`, no other process of this node fetches this URL; a killed one holds nothing."""
    lock = FileLock(folder / "lock")
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            beat(f"waiting for another process of this node to fetch {url}")
    try:
        yield
    finally:
        lock.release()


def _remove_others(folder: Path, names: set[str]) -> None:
    """Shards that the server has no more are no more of the data."""
    for copy in folder.glob("*.tar"):
        if copy.name not in names:
            copy.unlink()


def _is_there(folder: Path, url: str, shard: RemoteShard) -> bool:
    copy = folder / shard.name
    with suppress(OSError, ValueError):
        kept = json.loads(_source(copy).read_bytes())
        return bool(kept == shard.source(url) and copy.stat().st_size == shard.bytes)
    return False


def _source(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.source.json")


def _refuse_without_room(folder: Path, url: str, missing: list[RemoteShard]) -> None:
    needed, free = sum(shard.bytes for shard in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: has {_gigabytes(free)} free, takes {_gigabytes(needed)} of {url}; make room, or set {VARIABLE} "
            "to a folder that has it"
        )


class _Stopped(Exception):
    """Another shard failed, or the work was ended."""


@dataclass
class _Fetching:
    """Fetches shards side by side, and tells how far they are."""

    url: str
    folder: Path
    beat: Callable[[str], None]
    arrived: int = 0
    md5_is_told: bool = True
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def all(self, shards: list[RemoteShard]) -> None:
        whole, told = _gigabytes(sum(shard.bytes for shard in shards)), -1
        with ThreadPoolExecutor(min(STREAMS, len(shards))) as pool:
            pending = {pool.submit(self.one, shard) for shard in shards}
            try:
                while pending:
                    done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                    # a server that sends nothing is a silence
                    if self.arrived != told:
                        told = self.arrived
                        self.beat(f"fetching {self.url}, {_gigabytes(told)} of {whole}")
            except BaseException:
                self.stopped.set()
                for future in pending:
                    future.cancel()
                raise

    def one(self, shard: RemoteShard) -> None:
        """Fetch a shard, and give it its name once it is whole."""
        copy = self.folder / shard.name
        partial = partial_name(copy)
        try:
            self._download(shard, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            put_in_place(partial, copy)
            write_atomically(_source(copy), json.dumps(shard.source(self.url)))
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _download(self, shard: RemoteShard, partial: Path) -> None:
        """Until size and checksum are what the server tells; the second time a wrong checksum may be no checksum."""
        seen: set[str] = set()
        for _ in range(_TRIES):
            self._get(shard, partial)
            if partial.stat().st_size != shard.bytes:
                continue
            if shard.md5 is None or not self.md5_is_told:
                return
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, _md5).hexdigest()
            if digest == shard.md5:
                return
            if digest in seen:  # the same bytes twice: the ETag of an encrypted object only looks like an MD5
                self.md5_is_told = False
                return
            seen.add(digest)
        raise DataError(
            f"{self.url}/{shard.name}: arrived damaged {_TRIES} times, takes {shard.bytes} bytes; put it there again, "
            "or look at the network"
        )

    def _get(self, shard: RemoteShard, partial: Path) -> None:
        system, place = _open(self.url)
        try:
            system.get_file(f"{place}/{shard.name}", str(partial), callback=_Count(self))
        except (DataError, _Stopped):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(_cannot_be_kept(self.folder, error)) from None
            raise DataError(
                f"{self.url}/{shard.name}: cannot be fetched ({_reason(error)}){_help(error)}"
            ) from None

    def add(self, count: int) -> None:
        with self.lock:
            self.arrived += count
        if self.stopped.is_set():
            raise _Stopped


class _Count(Callback):
    """fsspec tells it of each piece that arrived."""

    def __init__(self, fetching: _Fetching) -> None:
        super().__init__()
        self._fetching = fetching

    def relative_update(self, inc: int = 1) -> None:
        self._fetching.add(inc)


# --- words ----------------------------------------------------------------------------------------


def _open(url: str) -> tuple[Any, str]:
    try:
        system, place = filesystem(location(url))
    except LocationError as error:
        raise DataError(f"data.root: {error}") from None
    return system, place.rstrip("/")


def _remote_shard(name: str, size: int, entry: dict[str, Any]) -> RemoteShard:
    version = next((str(entry[key]) for key in _VERSION_FIELDS if entry.get(key)), "").strip('"')
    md5 = version if _MD5.fullmatch(version) else None  # S3's, of an object that was put in one piece
    if entry.get("md5Hash"):  # Google's
        md5 = base64.b64decode(entry["md5Hash"]).hex()
    return RemoteShard(name, size, version, md5)


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _readable(url: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", url.rsplit("/", 1)[-1])[:40]


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:160]


def _help(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "; say who you are in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in AWS_PROFILE, on every node"
    return "; the same command goes on once it answers"


def _cannot_be_kept(folder: Path, error: OSError) -> str:
    return f"{folder}: cannot be written ({_reason(error)}); make room, or set {VARIABLE} to another folder"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
