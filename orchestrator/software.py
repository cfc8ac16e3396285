"""Which software a result is made with, here: versions of packages, the commit of this code, and what it computes."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import os
import platform
import re
import subprocess
import tarfile
from collections.abc import Mapping
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


@functools.cache
def code() -> str:
    """A digest of what the code under trainers/ does: comments, docstrings and formatting are outside."""
    import trainers

    folder = Path(next(iter(trainers.__path__)))
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.py")}
    return digest_of_code(files)


@functools.cache
def code_of_commit(commit: str) -> str | None:
    """The same digest at a commit of this checkout; None where it is not known, or files differed from it (+)."""
    if not re.fullmatch(r"[0-9a-f]{7,40}", commit):
        return None
    folder = Path(__file__).resolve().parent.parent
    try:
        packed = subprocess.run(
            ["git", "-C", str(folder), "archive", "--format=tar", commit, "trainers"],
            capture_output=True,
            timeout=30,
            check=True,
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            members = [member for member in archive if member.isfile() and member.name.endswith(".py")]
            files = {
                member.name.removeprefix("trainers/"): content.read()
                for member in members
                if (content := archive.extractfile(member))
            }
        return digest_of_code(files)
    except (OSError, subprocess.SubprocessError, tarfile.TarError, SyntaxError):
        return None


def digest_of_code(files: Mapping[str, bytes]) -> str:
    """48 bits of SHA-256 over the syntax trees of Python files, by name."""
    digest = hashlib.sha256()
    for name in sorted(files):
        tree = _WithoutDocstrings().visit(ast.parse(files[name]))
        digest.update(f"{name}\0{ast.unparse(tree)}\0".encode())
    return digest.hexdigest()[:12]


class _WithoutDocstrings(ast.NodeTransformer):
    """Leaves out strings that stand alone, which compute nothing."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        alone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if alone else node
