"""What others can reach and do while a run goes on, and what a file from anywhere can do to it."""

from __future__ import annotations

import ast
import ipaddress
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator
import trainers
from orchestrator import cluster

ROOT = Path(orchestrator.__file__).parent.parent

SESSION = """
import json, subprocess, sys, urllib.error, urllib.request
import psutil
from orchestrator.cluster import connected

with connected("local"):
    import ray

    @ray.remote
    def work():
        return 1

    assert ray.get(work.remote()) == 1
    me = psutil.Process()
    listening = set()
    for process in [me, *me.children(recursive=True)]:
        try:
            listening |= {one.laddr.ip for one in process.net_connections("inet") if one.status == "LISTEN"}
        except psutil.Error:
            pass
    context = ray.get_runtime_context()
    answers = {}
    for token in ("0" * 64, None):
        request = urllib.request.Request(f"http://{ray._private.worker._global_node.webui_url}/api/jobs/")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            answers[str(token)] = urllib.request.urlopen(request, timeout=20).status
        except urllib.error.HTTPError as error:
            answers[str(token)] = error.code
    stranger = subprocess.run(
        [sys.executable, "-c", STRANGER, context.gcs_address], capture_output=True, text=True, timeout=90
    )
    print(json.dumps({"listening": sorted(listening), "jobs": answers, "stranger": stranger.stdout + stranger.stderr}))
"""

STRANGER = """
import os, sys
os.environ["RAY_AUTH_TOKEN"] = "0" * 64
from orchestrator.cluster import connected
from orchestrator.errors import AblateError
try:
    with connected(sys.argv[1]):
        print("let in")
except AblateError as error:
    print("refused:", error)
"""


@pytest.mark.cluster
def test_a_local_run_listens_on_loopback_only_and_lets_in_nobody_without_its_token(tmp_path: Path) -> None:
    outside = ("RAY_AUTH", "RAY_ADDRESS", "RAY_ENABLE", "GLOO", "NCCL")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
    done = subprocess.run(
        [sys.executable, "-c", f"STRANGER = {STRANGER!r}\n{SESSION}"],
        cwd=ROOT,
        env=environment | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    token_file = tmp_path / ".ray" / "auth_token"
    token = token_file.read_text()
    assert len(token) >= 32
    assert token not in done.stdout + done.stderr
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    found = json.loads(done.stdout.splitlines()[-1])
    addresses = [ipaddress.ip_address(address) for address in found["listening"]]
    assert addresses
    for address in addresses:
        plain = getattr(address, "ipv4_mapped", None) or address
        assert plain.is_loopback, found["listening"]
    assert set(found["jobs"].values()) <= {401, 403}
    assert "let in" not in found["stranger"]
    assert "refused:" in found["stranger"]
    assert len(found["stranger"].strip().splitlines()) == 1
    assert "RAY_AUTH_TOKEN" in found["stranger"]


def test_a_token_that_is_there_is_kept_and_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("theirs")
    path.chmod(0o644)
    cluster._keep_a_token()
    assert path.read_text() == "theirs"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_home_that_takes_no_file_leaves_a_token_for_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ray").touch()  # where the folder belongs
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "for monkeypatch to restore")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    cluster._keep_a_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


MODULES = sorted(
    path for package in (orchestrator, trainers) for path in Path(package.__file__ or "").parent.rglob("*.py")
)
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe(source: str) -> list[str]:
    """Calls and imports in a module that would run code out of a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [*{*names} - {"pickle"}]
            found += [f"line {node.lineno}: {name}" for name in modules if name.split(".")[0] in UNPICKLERS]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {one.arg: ast.unparse(one.value) for one in node.keywords}
        if (
            (called.endswith("torch.load") and keywords.get("weights_only") != "True")
            or (called == "yaml.load" and "_Loader" not in ast.unparse(node))
            or called.startswith("pickle.")  # its exceptions may be named
            or called in ("yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "os.popen")
            or keywords.get("allow_pickle") == "True"
            or keywords.get("shell") == "True"
        ):
            found.append(f"line {node.lineno}: {called}")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_code_out_of_a_file(module: Path) -> None:
    assert unsafe(module.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle; pickle.load(file)",
        "from pickle import load",
        "from dill import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "eval(text)",
    ],
)
def test_the_search_for_such_code_finds_it(source: str) -> None:
    assert unsafe(source)
