"""Runs a test's function on several gloo ranks, each a process of one thread."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Ranks are forked from one clean server that has imported once what they all need (DDP takes dynamo):
# tenths of a second a run, where a spawn costs each rank several.
multiprocessing.set_forkserver_preload(["torch._dynamo", "trainers.losses", "trainers.heads"])


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """What `function(*args)` returned on each of `world_size` ranks, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _rank, (function, world_size, folder, args), nprocs=world_size, start_method="forkserver"
        )
        return [pickle.loads(Path(folder, f"result-{rank}").read_bytes()) for rank in range(world_size)]


def _rank(
    rank: int, function: Callable[..., Any], world_size: int, folder: str, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    try:
        Path(folder, f"result-{rank}").write_bytes(pickle.dumps(function(*args)))
        dist.barrier()
    finally:
        dist.destroy_process_group()
