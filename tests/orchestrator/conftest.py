import os
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator

AT_ONCE = """
import sys, threading
from orchestrator.store import Store
from orchestrator.tracking import Tracker, default_uri
store = Store(sys.argv[1])
tracker = Tracker(default_uri(store), store)
threads = [threading.Thread(target=tracker.prepare) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


@pytest.fixture(scope="session")
def set_up(tmp_path_factory):
    """MLflow takes seconds to set up a database: done once, by two writers at the same time."""
    root = tmp_path_factory.mktemp("mlflow")
    environment = {**os.environ, "PYTHONPATH": str(Path(orchestrator.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, str(root)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    return root / "mlflow.db", done
