"""Names of the files a training leaves, and replacing one in a single step. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

STATE = "state.safetensors"
MODEL = "model.safetensors"
HISTORY = "history.jsonl"
SPECTRA = "spectra.jsonl"


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one step: a reader, or a restart after a kill, sees the old one or the new."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
