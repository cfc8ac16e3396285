"""A cluster of several machines, an object store and MLflow on PostgreSQL: the same command, keys and numbers.

Needs root; `pytest tests/cluster -m network` runs it (about 15 minutes on two cores).
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store import Store
from tests.cluster import machines
from tests.cluster.machines import BUCKET, Network, await_that, network
from tests.trainers.object_store import forget_connections
from trainers import checkpoint
from trainers.files import MODEL

pytestmark = [pytest.mark.network, pytest.mark.skipif(bool(machines.missing()), reason=machines.missing())]

SMALL = (
    "--recipe",
    "digits",
    "--set",
    "epochs=2",
    "--set",
    "schedule.warmup_epochs=1",
    "--set",
    "toy.iterations=150",
)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("net")) as made:
        made.services()
        made.head()
        for name in ("node1", "node2"):
            made.worker(name, cpus=2)
        yield made


@pytest.fixture
def keys(net: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process may read the object store."""
    for name, value in net.environment().items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    yield
    forget_connections()


def submitted(net: Network, store: str, *arguments: str) -> str:
    done = net.ablate(
        "submit", *arguments, "--address", net.page, "--store", f"s3://{BUCKET}/{store}", "--tracking-uri", net.mlflow,
        timeout=1800,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said + "\n".join(one.logs() for one in net.machines.values())
    return said


def numbers(store: Store) -> dict[str, Any]:
    """All that was measured, by key: what must not depend on where it was."""
    found: dict[str, Any] = {}
    for record in store.trial_records():
        history = [
            {name: value for name, value in epoch.items() if name not in ("seconds", "images_per_second")}
            for epoch in store.history(record["key"])
        ]
        found[record["key"]] = record["config"], _timeless(record["metrics"]), history, record.get("cases")
    for folder in (store.root / "evaluations").glob("*"):
        record = store.evaluation_record(folder.name)
        assert record is not None
        found[folder.name] = record["trial"], record["metrics"]
    assert store.damage == {}
    return found


def _timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in ("seconds", "images_per_second")}


@pytest.mark.usefixtures("keys")
def test_a_submitted_paper_has_the_keys_and_numbers_of_the_local_run(net: Network, tmp_path: Path) -> None:
    submitted(net, "paper", "paper", "--seeds", "0", *SMALL)
    local = net.ablate(
        "run", "paper", "--seeds", "0", *SMALL, "--store", str(tmp_path / "local"), timeout=1800
    )
    assert local.returncode == 0, local.stderr
    there, here = Store(f"s3://{BUCKET}/paper"), Store(tmp_path / "local")
    mine = numbers(here)
    assert len(mine) > 50
    assert numbers(there) == mine

    again = submitted(net, "paper", "paper", "--seeds", "0", *SMALL)
    assert "nothing to do" in again

    # from the laptop: status, and the report of the shared store and of the remote MLflow
    status = net.ablate("status", "--json", "--store", f"s3://{BUCKET}/paper")
    assert {line["state"] for line in json.loads(status.stdout)} == {"finished"}
    for source in ("store", "mlflow"):
        made = net.ablate(
            "report", "paper", "--seeds", "0", *SMALL, "--store", f"s3://{BUCKET}/paper", "--tracking-uri", net.mlflow,
            "--source", source, "--out", str(tmp_path / source),
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    name = next((tmp_path / "local" / "studies").glob("paper@*")) / "report"
    for file in ("cells.csv", "claims.csv", "tables/table1.tex", "figures/figure12.csv"):
        expected = (name / file).read_bytes()
        assert (tmp_path / "store" / file).read_bytes() == expected, file
        assert (tmp_path / "mlflow" / file).read_bytes() == expected, file
    left = [path.name for folder in ("leases", ".runs") for path in (there.root / folder).glob("*")]
    assert left == []


@pytest.mark.usefixtures("keys")
def test_four_workers_on_two_machines_equal_four_on_one(net: Network) -> None:
    gang = (
        "table1", "--seeds", "0", *SMALL, "--set", "resources.workers=4", "--set", "deterministic=true",
    )  # fmt: skip
    submitted(net, "apart", *gang, "--set", "resources.placement=spread")
    net.worker("large", cpus=4)
    submitted(net, "together", *gang, "--set", "resources.placement=strict_pack")
    apart, together = Store(f"s3://{BUCKET}/apart"), Store(f"s3://{BUCKET}/together")
    assert numbers(apart) == numbers(together)
    for record in apart.trial_records():
        other = together.trial_record(record["key"])
        assert other is not None
        assert (record["environment"]["workers"], record["environment"]["workers_beside"]) == (4, 2)
        assert (other["environment"]["workers"], other["environment"]["workers_beside"]) == (4, 4)
        models = [
            checkpoint.read(store.trial_directory(record["key"]) / "checkpoints" / MODEL)[0]
            for store in (apart, together)
        ]
        assert all(models[0][name].equal(models[1][name]) for name in models[0])


@pytest.mark.usefixtures("keys")
def test_a_machine_that_goes_takes_no_trial_with_it_and_one_that_comes_is_used(
    net: Network, tmp_path: Path
) -> None:
    done = net.ablate(
        "submit", "table2", "--seeds", "0", "--set", "epochs=30", "--address", net.page, "--no-follow", "--json",
        "--store", f"s3://{BUCKET}/moving", "--tracking-uri", net.mlflow, "--max-concurrent", "4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    store = Store(f"s3://{BUCKET}/moving")
    gone = net.machines["node1"]
    await_that(lambda: len(list((store.root / "leases").glob("*"))) >= 3, "nothing runs", gone, 180)
    time.sleep(5)
    gone.stop()
    net.worker("late", cpus=2)
    submitted(net, "moving", "table2", "--seeds", "0", "--set", "epochs=30", "--max-concurrent", "4")
    local = net.ablate(
        "run", "table2", "--seeds", "0", "--set", "epochs=30", "--store", str(tmp_path / "local")
    )
    assert local.returncode == 0, local.stderr
    undisturbed = numbers(Store(tmp_path / "local"))
    assert len(undisturbed) > 6
    assert numbers(store) == undisturbed


def test_nobody_reaches_the_jobs_without_the_token(net: Network) -> None:
    for headers in ({}, {"Authorization": "Bearer 0"}):
        request = urllib.request.Request(f"{net.page}/api/jobs/", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20)
        assert refused.value.code in (401, 403)
    done = net.ablate(
        "submit", "table1", "--address", net.page, "--store", f"s3://{BUCKET}/x", RAY_AUTH_TOKEN="0" * 64
    )
    assert done.returncode == 1
    assert re.search(r"token", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
