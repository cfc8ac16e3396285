"""Where Ray Tune and Ray Train keep what they need while a command runs: <store>/.runs/<run>/, gone with the command.

A command holds a lease on its own name, so that another one, of the same store, can tell what a killed one left
behind from what a living one needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.leases import Lease, Leases, run_folder
from trainers.files import make_folder, remove_folder
from trainers.locations import filesystem, is_local

_RUN = re.compile(r"[0-9a-f]{8}")


@contextmanager
def scratch(root: Path, run: str) -> Iterator[Path]:
    """The folder of one command below a store's root; what dead commands left there is removed first."""
    folder = run_folder(root, run)
    make_folder(folder.parent)
    runs = Leases(folder.parent, run)
    with suppress(OSError):  # what cannot be removed stays for the next command
        _sweep(runs)
    own = runs.acquire(run)
    assert isinstance(own, Lease), f"two commands were given the name {run}"
    with own:
        make_folder(folder)
        try:
            yield folder
        finally:
            remove_folder(folder)


def for_ray(folder: Path) -> dict[str, Any]:
    """A folder as Ray's `RunConfig` takes it: it knows object stores by another library."""
    if is_local(folder):
        return {"storage_path": str(folder)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    system, name = filesystem(folder)
    return {"storage_path": name, "storage_filesystem": PyFileSystem(FSSpecHandler(system))}


def _sweep(runs: Leases) -> None:
    """Listed before the leases are read: a folder is made by a command that holds its own.

    Folders of other machines' commands stay until one of theirs sweeps: from here, a command that is stopped for a
    while can't be told from a dead one.
    """
    folders = [path for path in runs.root.glob("*") if _RUN.fullmatch(path.name)]
    runs.clear_dead()
    held = runs.held()
    for folder in folders:
        if folder.name not in held:
            remove_folder(folder)
