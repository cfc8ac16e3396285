"""Names of the files a training leaves, reading and replacing them. Imports no torch.

A store may come from anybody: nothing is written through a link, and nothing that never ends is read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

STATES = "state-*.safetensors"
MODEL = "model.safetensors"
HISTORY = "history.jsonl"
SPECTRA = "spectra.jsonl"
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}")


def write_atomically(path: Path, content: str | bytes, guard: Callable[[], None] = lambda: None) -> None:
    """Replace a file in one step: a reader, or a restart after a kill, sees the old one or the new.

    Args:
        guard: asked once all is written, just before the name is given; raises where this process must not.
    """
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
    for path in folder.glob(".*.*"):
        if _PARTIAL.fullmatch(path.name):
            path.unlink(missing_ok=True)


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a file that is written in place; it is made if there is none, and no link is followed."""
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)


def read_regular(path: Path, most: int) -> bytes:
    """A file's content.

    Raises:
        OSError: there is none, it is longer than `most` bytes (EFBIG), or no file that ends (EINVAL).
    """
    # without waiting for the other end of a pipe
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"has {status.st_size} bytes, takes at most {most}", str(path))
        return file.read(most + 1)


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
