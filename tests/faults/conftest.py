"""The table of docs/reliability.md: each test says what it did and measured; a whole run of the suite writes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Row = Callable[[str, str, str], None]
_ROWS = pytest.StashKey[list[tuple[str, str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=50, help="kills of the campaign in test_kills.py")
    parser.addoption("--faults-json", default=None, help="file that gets the rows of docs/reliability.md")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Iterator[Row]:
    """Call it with fault, what was lost, and time to recover; kept only if the test passes."""
    rows: list[tuple[str, str, str]] = []
    yield lambda fault, lost, recovered: rows.append((fault, lost, recovered))
    request.config.stash[_ROWS] += rows


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--faults-json")
    rows = session.config.stash.get(_ROWS, [])
    if target and rows:
        path = Path(target)
        known = json.loads(path.read_text()) if path.exists() else []
        told_now = {row[0] for row in rows}
        kept = [row for row in known if row[0] not in told_now]
        path.write_text(json.dumps(kept + [list(row) for row in rows], indent=1) + "\n")
