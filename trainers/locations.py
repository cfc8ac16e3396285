"""Folders by path or by URL, through one filesystem library (fsspec): local disks, NFS, S3 and whatever else it knows.

A URL's folder takes the calls of `pathlib.Path`, so most code doesn't ask which it has. What differs is here and in
`trainers.files`: an object appears whole or not at all, folders need no making, there are no links, nothing is
appended to, and an error of the network is an OSError like a disk's.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/", re.IGNORECASE)
_EXTRAS = {"s3": "s3", "s3a": "s3"}
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class LocationError(ValueError):
    """A URL that can't be used, and what to do about it; never quotes the URL, which may hold keys."""


def is_url(text: str | Path) -> bool:
    return _URL.match(str(text)) is not None


def location(root: str | Path) -> Path:
    """A folder by its path, made absolute, or by its URL: an object that takes Path's calls.

    Nothing is asked of the network.

    Raises:
        LocationError: a scheme that fsspec doesn't know or whose package is missing, a URL with keys in it, or one
            that names no bucket.
    """
    text = str(root)
    if not (match := _URL.match(text)):
        return Path(os.path.abspath(os.path.expanduser(text)))
    scheme = match["scheme"].lower()
    authority, _, _ = text.partition("://")[2].partition("/")
    if "://" not in text or not authority:
        raise LocationError(f"{scheme}:...: takes {scheme}://BUCKET/FOLDER")
    if "@" in authority or "?" in text:
        raise LocationError(
            f"{scheme}://...: got a URL with keys or a query in it, takes BUCKET/FOLDER alone; keys and endpoint are "
            "taken from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
        )
    if scheme == "file":
        raise LocationError("file://...: takes the path itself")
    from upath import UPath

    try:
        if scheme in _EXTRAS:
            _register_s3()
        found = UPath(text.rstrip("/"), **_options(scheme))
        _ = found.fs  # imports what the scheme needs
    except ImportError:
        extra, package = _EXTRAS.get(scheme), _PACKAGES.get(scheme, "its package")
        install = f"pip install 'directclr-ablations[{extra}]'" if extra else f"pip install {package}"
        raise LocationError(
            f"{scheme}://...: needs a package that is not here: {install}, on all nodes"
        ) from None
    except ValueError:
        takes = "takes a path, s3://BUCKET/FOLDER, or another of fsspec's"
        raise LocationError(f"{scheme}://...: unknown scheme; {takes}") from None
    return cast(Path, found)


def is_local(path: Path) -> bool:
    """Whether a folder or file is on a file system of this machine, NFS included."""
    return isinstance(path, Path)


def filesystem(path: Path) -> tuple[Any, str]:
    """The fsspec filesystem of a URL's file or folder, and its path there."""
    remote = cast(Any, path)
    return remote.fs, str(remote.path)


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """A file that libraries can open by name: itself, or a copy that goes with the `with`.

    Raises:
        OSError: there is none, or it can't be brought here.
    """
    if is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ablate-") as folder:
        copy = Path(folder, path.name)
        system, name = filesystem(path)
        system.get_file(name, str(copy))
        yield copy


def _options(scheme: str) -> dict[str, Any]:
    """Listings are never kept: what another machine wrote a moment ago counts. A dead server is found out soon."""
    if scheme not in _EXTRAS:
        return {} if scheme == "memory" else {"use_listings_cache": False}
    patience = {"connect_timeout": 5, "read_timeout": 30, "retries": {"mode": "standard", "max_attempts": 4}}
    return {"use_listings_cache": False, "config_kwargs": patience}


@cache
def _register_s3() -> None:
    import fsspec

    from trainers.s3 import S3

    for scheme in _EXTRAS:
        fsspec.register_implementation(scheme, S3, clobber=True)
