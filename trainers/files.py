"""Names of the files a training leaves, reading and replacing them. Imports no torch.

A store may come from anybody: nothing is written through a link, and nothing that never ends is read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainers.locations import filesystem, is_local

STATES = "state-*.safetensors"
MODEL = "model.safetensors"
HISTORY = "history.jsonl"
SPECTRA = "spectra.jsonl"
PATIENCE_S = 300.0
"""With an object store that is away, where results would be lost."""
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}")


def write_atomically(
    path: Path, content: str | bytes, guard: Callable[[], None] = lambda: None, patience: float = 0.0
) -> None:
    """Replace a file in one step: a reader, or a restart after a kill, sees the old one or the new.

    Args:
        guard: asked once all is written, just before the name is given; raises where this process must not.
            In an object store it is asked just before the object is put there, which has no two steps.
        patience: seconds for which an object store that doesn't answer is tried again.
    """
    if not is_local(path):
        system, name = filesystem(path)
        plain = content.encode() if isinstance(content, str) else content
        _trying(lambda: system.pipe_file(name, plain), guard, patience)
        return
    partial = partial_name(path)
    try:
        with partial.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        guard()
        put_in_place(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # it may be what fills the disk
        raise


def partial_name(path: Path) -> Path:
    """Beside a file, a name while it is written that no other process or machine takes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left half written; called by whoever alone may write in the folder."""
    if not is_local(folder):  # where an object appears whole or not at all
        return
    for path in folder.glob(".*.*"):
        if _PARTIAL.fullmatch(path.name):
            path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """With the folders above it; object stores have none."""
    if is_local(folder):
        folder.mkdir(parents=True, exist_ok=True)


def remove_folder(folder: Path) -> None:
    """With all that is in it; what can't be removed stays."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    system, name = filesystem(folder)
    with suppress(OSError):
        system.rm(name, recursive=True)


def append_line(path: Path, line: str) -> None:
    """Add to a file that one process at a time writes; it is made if there is none, and no link is followed."""
    if is_local(path):
        with os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND), "w") as file:
            file.write(line + "\n")
        return
    system, name = filesystem(path)
    try:
        before: bytes = system.cat_file(name)
    except FileNotFoundError:
        before = b""
    system.pipe_file(name, before + line.encode() + b"\n")


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a file that is written in place; it is made if there is none, and no link is followed."""
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)


def read_regular(path: Path, most: int) -> bytes:
    """A file's content.

    Raises:
        OSError: there is none, it is longer than `most` bytes (EFBIG), or no file that ends (EINVAL).
    """
    if not is_local(path):
        system, name = filesystem(path)
        content: bytes = system.cat_file(name, start=0, end=most + 1)
        if len(content) > most:
            raise OSError(errno.EFBIG, f"has more than {most} bytes", str(path))
        return content
    # without waiting for the other end of a pipe
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"has {status.st_size} bytes, takes at most {most}", str(path))
        return file.read(most + 1)


def put_file(file: Path, path: Path, guard: Callable[[], None]) -> None:
    """Bring a finished file of this machine to its place in an object store. Args: guard: as of `write_atomically`."""
    system, name = filesystem(path)
    _trying(lambda: system.put_file(str(file), name), guard, PATIENCE_S)


def _trying(put: Callable[[], object], guard: Callable[[], None], patience: float) -> None:
    """Put an object, again and again while the store doesn't answer (EIO): what was computed is worth the wait."""
    deadline, pause = time.monotonic() + patience, 1.0
    while True:
        try:
            guard()
            put()
            return
        except OSError as error:
            if error.errno != errno.EIO or time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 15.0)


def put_in_place(partial: Path, path: Path) -> None:
    """Give a written file its name, to last: the folder too is flushed, so that a power cut keeps the name."""
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
