"""Which process a number means, and whether it lives: what a lease on this machine is worth."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path


@cache
def machine() -> str:
    """Within which a process number means one process: the boot, and the namespace of numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: nobody counts as dead before its lease has run out
        return f"{socket.gethostname()}:{os.getpid()}"


def started(pid: int) -> str | None:
    """When a process started, in ticks since boot; None if it is gone, or dead and not yet collected."""
    fields = _stat(pid)
    return None if not fields or fields[0] in "ZX" else fields[19]


def lives(pid: int, when: str) -> bool:
    """Whether the process of this machine that has a number is the one that started then."""
    if _stat(pid):
        return started(pid) == when
    try:
        os.kill(pid, 0)  # signals nobody
    except PermissionError:  # another user's, where /proc shows only one's own
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def parent_of(pid: int) -> int | None:
    """The number of the process that started one; None where that can't be told."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _stat(pid: int) -> list[str]:
    """What the system tells of a process after its name; nothing where there is none, or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
