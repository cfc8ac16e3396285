"""A folder that may be anybody's: what is read of it is checked, and no link leads a write out of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator import records
from orchestrator.errors import SpecError
from orchestrator.records import RecordError
from trainers.files import make_folder, read_regular
from trainers.locations import LocationError, is_local, location

_NO_FILE = (errno.EINVAL, errno.EFBIG, errno.ELOOP)
"""Of what stands where a file belongs: a pipe, a folder, a device, far too much, a link to itself."""


class UntrustedFolder:
    """What a store is before it is known what lies in it.

    Args:
        root: its path, or the URL of a folder in an object store.

    Attributes:
        damage: what was met and not believed since this object was made, and why; `set_aside_damaged` moves it.
    """

    def __init__(self, root: Path | str) -> None:
        try:
            self.root = location(root)
        except LocationError as error:
            raise SpecError(f"--store {error}") from None
        self.damage: dict[Path, str] = {}

    def refuse_links(self) -> None:
        """Refuse a folder in which something leads out of it.

        Raises:
            SpecError: names the link.
        """
        if not is_local(self.root):  # object stores have no links
            return
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.is_symlink():
                    self.inside(self.root / entry.name)

    def inside(self, path: Path) -> Path:
        """A path of the store, which no link leads out of it.

        Raises:
            SpecError: one does.
        """
        if is_local(path) and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            name = path.relative_to(self.root)
            raise SpecError(
                f"--store {self.root}: {name} leads out of it; remove that link (one to the whole store is fine)"
            )
        return path

    def set_aside_damaged(self) -> list[str]:
        """Move what was met and is damaged into <root>/damaged/; a sentence for each. Nothing is deleted."""
        sentences = []
        for path, reason in sorted(self.damage.items()):
            relative = path.relative_to(self.root)
            when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
            place = self.root / "damaged" / "-".join((*relative.parts, when))
            try:
                make_folder(place.parent)
                path.rename(place)
            except FileNotFoundError:  # another command was faster
                continue
            except OSError as error:
                raise SpecError(f"--store {self.root}: cannot be written: {error.strerror}") from None
            sentences.append(
                f"{relative}: {reason}; set aside as damaged/{place.name}, its work is done again"
            )
        self.damage.clear()
        return sentences

    def read(
        self,
        path: Path,
        check: Callable[[Any], Any],
        parse: Callable[[bytes], Any] = records.parse,
        most: int = records.MOST_BYTES,
    ) -> Any:
        """What a file says; None where there is none, or one that is not to be believed.

        Args:
            check: gives back what was parsed, or raises RecordError.
            most: bytes.

        Raises:
            SpecError: it can't be read.
        """
        try:
            return check(parse(read_regular(path, most)))
        except FileNotFoundError:
            return None
        except RecordError as error:
            self.damage[path] = str(error)
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise SpecError(f"--store: {path}: {error.strerror}") from None
            self.damage[path] = error.strerror or "not readable"
        return None
