"""Clusters that start nodes when they are asked for: Ray's own autoscaler, with nodes that are processes here."""

from __future__ import annotations

import json
import socket

import pytest
from heads import standing_head

from orchestrator.autoscaling import _bundles
from orchestrator.spec import Resources
from tests.orchestrator.small import STUDY, TINY

PORT = 6379
"""At which Ray's provider of such nodes takes the head to be, whatever it is told."""
_LISTS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"),
    *("rsync_exclude", "rsync_filter"),
)
SCALING = {
    "cluster_name": "fake_multinode",
    "provider": {"type": "fake_multinode"},
    "head_node_type": "ray.head.default",
    "max_workers": 1,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 1.0,
    "available_node_types": {
        "two_cpus": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    },
    **{name: [] for name in _LISTS},
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    "file_mounts_sync_continuously": False,
}


def test_a_demand_is_what_each_worker_holds() -> None:
    assert _bundles(Resources(workers=2, cpus_per_worker=3)) == [{"CPU": 3.0}] * 2
    assert _bundles(Resources(gpus_per_worker=1)) == [{"CPU": 1.0, "GPU": 1}]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_cluster_without_a_node_that_fits_is_asked_for_one_and_waited_for(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tmp_path = tmp_path_factory.mktemp("grows")  # a short name: sockets lie below
    (tmp_path / "mine.yaml").write_text(STUDY)
    (tmp_path / "scaling.yaml").write_text(json.dumps(SCALING))
    sets = [part for assignment in TINY for part in ("--set", assignment)]
    fake = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    options = (f"--autoscaling-config={tmp_path / 'scaling.yaml'}",)
    try:
        socket.create_server(("", PORT)).close()
    except OSError:
        pytest.skip(f"port {PORT} is taken")
    with standing_head(tmp_path / "head", *options, cpus=0, alone=False, port=PORT, **fake) as head:
        study = (str(tmp_path / "mine.yaml"), "--address", head.address, "--store", str(tmp_path / "store"))
        looked = head.ablate("preflight", *study)
        assert looked.returncode == 0, looked.stderr
        assert "asks the cluster's autoscaler for nodes" in " ".join(looked.stdout.split())
        done = head.ablate("run", *study, *sets)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "waiting 15 min for the cluster's autoscaler" in done.stdout
        assert "2 CPU" in done.stdout, "the node that came was looked at too"
