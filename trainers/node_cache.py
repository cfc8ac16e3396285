"""The folder of this node in which copies are kept of what lies elsewhere. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

VARIABLE = "ABLATE_CACHE"


def cache_folder() -> Path:
    """ABLATE_CACHE, or `ablate` in the user's cache folder. It may not be there yet."""
    chosen = os.environ.get(VARIABLE)
    return Path(os.path.abspath(os.path.expanduser(chosen))) if chosen else user_cache_path("ablate")
