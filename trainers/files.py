"""Names of the files a training leaves, and replacing one in a single step. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

STATES = "state-*.safetensors"
MODEL = "model.safetensors"
HISTORY = "history.jsonl"
SPECTRA = "spectra.jsonl"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: a reader, or a restart after a kill, sees the old one or the new."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    put_in_place(partial, path)


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
