"""What schedulers write belongs to one command and goes with it, however it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.leases import Leases
from orchestrator.scratch import scratch

MINE, OTHER = "aaaaaaaa", "bbbbbbbb"

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.scratch import scratch
with scratch(Path(sys.argv[1]), "bbbbbbbb") as folder:
    (folder / "state").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob(".runs/*") if path.name not in ("leases", "leases.lock"))


def other_command(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == str(root / ".runs" / OTHER)
    return process


def fail_in_the_middle(root: Path) -> None:
    with scratch(root, MINE) as folder:
        (folder / "tune").mkdir()
        Leases(root, MINE).request_stop()
        raise RuntimeError("in the middle")


def test_a_folder_goes_with_its_command_even_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="in the middle"):
        fail_in_the_middle(tmp_path)
    assert folders(tmp_path) == []
    assert not Leases(tmp_path, MINE).stop_requested()


def test_a_living_commands_folder_stays_and_a_killed_ones_goes(tmp_path: Path) -> None:
    other = other_command(tmp_path)
    try:
        with scratch(tmp_path, MINE):
            assert folders(tmp_path) == [MINE, OTHER]
        assert folders(tmp_path) == [OTHER]
    finally:
        other.kill()
        other.wait()
    with scratch(tmp_path, MINE):
        assert folders(tmp_path) == [MINE]
    assert list(tmp_path.glob(".runs/leases/*")) == []


def test_nothing_but_folders_of_commands_is_removed(tmp_path: Path) -> None:
    kept = tmp_path / ".runs" / "notes of mine"
    kept.mkdir(parents=True)
    with scratch(tmp_path, MINE):
        pass
    assert kept.is_dir()
