"""Names of the files a training leaves, and replacing one in a single step. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

STATE = "state.safetensors"
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
    partial.replace(path)
