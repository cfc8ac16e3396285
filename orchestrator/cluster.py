"""Connects to Ray, and says what it has room for."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from orchestrator.errors import AblateError, CapacityError
from orchestrator.packing import Node, Packing, described
from orchestrator.redaction import redacted
from orchestrator.spec import Resources

# A short poll: Train's report and start-up wait for it. It costs one small RPC each time.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # processes that start at once; with a search algorithm Tune would start one after the other
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

WHERE_TOKENS_ARE = "RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token"

_ONLY_THIS_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, Ray's node has the address 127.0.0.1: its default on Windows and macOS, and it works on Linux too."""


@contextmanager
def connected(address: str) -> Iterator[list[Node]]:
    """A Ray session: `local` starts one on this machine and ends it, `auto` or host:port joins one.

    Nobody connects without the token (unless RAY_AUTH_MODE says otherwise), and a local session listens on
    loopback only. The local one keeps its dashboard: without it Tune leaks placement groups.

    Raises:
        AblateError: no cluster answers at the address, or it takes another token.
    """
    local = address == "local"
    environment = {name: os.environ.setdefault(name, value) for name, value in _ENVIRONMENT.items()}
    expect_a_token()
    if local:
        _keep_a_token()
        with _on_loopback():
            yield from _session(address, {"include_dashboard": True})
    else:
        _refuse_unreachable(address)
        # a Ray job may set some of these too: they are in the environment then, so that ours are the same
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
        yield from _session(address, {"runtime_env": {"env_vars": environment}})


def expect_a_token() -> None:
    """Clusters are reached with their token, unless RAY_AUTH_MODE says otherwise; before Ray looks, which is once."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")


def _refuse_unreachable(address: str) -> None:
    """Where nothing answers, Ray would try for a quarter of an hour and say nothing."""
    host, _, port = address.rpartition(":")
    if "/" in host or not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise AblateError(_why_not(address, error)) from None


def _session(address: str, options: dict[str, Any]) -> Iterator[list[Node]]:
    import ray

    try:
        with nullcontext() if address == "local" else _without_native_log(), _told_without_secrets():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # Ray raises bare Exceptions too
        raise AblateError(_why_not(address, error)) from None
    try:
        yield nodes_now()
    finally:
        ray.shutdown()


def nodes_now() -> list[Node]:
    """Those of the connected cluster that are alive."""
    import ray

    return [_node(node) for node in ray.nodes() if node["Alive"]]


def _node(told: dict[str, Any]) -> Node:
    resources = dict(told["Resources"])
    kinds = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")]
    cpus, gpus, memory = (resources.pop(name, 0) for name in ("CPU", "GPU", "memory"))
    custom = tuple(
        (name, amount)
        for name, amount in sorted(resources.items())
        if name != "object_store_memory" and not name.startswith(("node:", "accelerator_type:"))
    )
    name = f"{told['NodeManagerHostname']} ({told['NodeManagerAddress']})"
    return Node(cpus, gpus, told["NodeID"], name, memory, ", ".join(kinds), custom)


def _why_not(address: str, error: Exception) -> str:
    first = (redacted(str(error)).strip().splitlines() or [type(error).__name__])[0][:160]
    if address == "local":
        return f"Ray could not be started here: {first}"
    # a cluster that refuses the token looks to Ray like one that isn't there
    return (
        f"no Ray cluster answers at --address {address}: {first}; is it up, and is its token where it is looked "
        f"for: {WHERE_TOKENS_ARE} (RAY_AUTH_MODE=disabled: it has none)?"
    )


@contextmanager
def _without_native_log() -> Iterator[None]:
    """Where no cluster answers, Ray's C++ part writes 20 lines straight to stderr, whatever its log level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _told_without_secrets() -> Iterator[None]:
    """Ray keeps the command line of whoever connects, for its dashboard and logs; it may hold a URI with a password."""
    from ray._private import utils

    command_line = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: redacted(command_line())
    try:
        yield
    finally:
        utils.get_entrypoint_name = command_line


@contextmanager
def _on_loopback() -> Iterator[None]:
    """What Ray and torch start meanwhile in this process and below it listens on loopback.

    Ray reads its switch when it is first imported, which may be long past: hence also the constant.
    """
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    wanted = {_ONLY_THIS_MACHINE: "0", "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = os.environ[_ONLY_THIS_MACHINE] != "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name in ours:
            os.environ.pop(name, None)


def _keep_a_token() -> None:
    """A token for local sessions where Ray looks for it, readable by its owner only; Ray's own file is for everybody.

    An unwritable home is no hindrance: the token then lives for this process alone.
    """
    if os.environ["RAY_AUTH_MODE"].lower() != "token" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & {
        *os.environ
    }:
        return
    path = Path.home() / ".ray" / "auth_token"
    token = secrets.token_hex(32)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            new = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(new, "w") as file:
                file.write(token)
        path.chmod(0o600)
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = token


def why_it_fits_nowhere(nodes: list[Node], footprint: Resources) -> CapacityError | None:
    """None where a trial of a footprint fits, were nothing else there; a worker never spans nodes."""
    if Packing(nodes).place(footprint):
        return None
    workers = workers_that_fit(nodes, footprint)
    apart = ", not placed as asked" if workers >= footprint.workers else ""
    largest = max(nodes, key=lambda node: (node.gpus, node.cpus), default=Node(0, 0))
    return CapacityError(
        f"a trial needs {described(footprint)}, the cluster of {len(nodes)} node(s) fits {workers} such "
        f"worker(s){apart}; its largest node has {largest.cpus:g} CPU, {largest.gpus:g} GPU; see resources.* in "
        "the recipe"
    )


def workers_that_fit(nodes: list[Node], footprint: Resources) -> int:
    """How many single workers of a footprint the cluster has room for, wherever they lie."""
    packing, one, workers = Packing(nodes), footprint.model_copy(update={"workers": 1}), 0
    while packing.place(one):
        workers += 1
    return workers
