"""Which software a result is made with, here: versions of packages, and the commit of this code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "ray", "numpy", "mlflow", "pandas")


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The checkout's commit, with a + if files differ from it; None outside a checkout.

    A Ray job has no checkout: the commit of the one that it was sent from is in ABLATE_COMMIT.
    """
    if told := os.environ.get("ABLATE_COMMIT"):
        return told[:60]
    folder = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
