#!/usr/bin/env python3
"""Waits until a Ray cluster has so many nodes, the head being one: `gather.py --nodes 4 --minutes 10`.

Where the cluster is, RAY_ADDRESS says; its token is where Ray looks for it. Exit code 4, after the time, with what is
missing.
"""

import argparse
import os
import subprocess
import sys
import time

LOOK_EVERY = 2.0


def main() -> None:
    takes = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    takes.add_argument("--nodes", type=int, required=True)
    takes.add_argument("--minutes", type=float, default=10, help="to wait at most; default 10")
    asked = takes.parse_args()
    deadline = time.monotonic() + 60 * asked.minutes
    connect(deadline)
    said = 0
    while len(here := alive()) < asked.nodes:
        if time.monotonic() > deadline:
            tell(
                f"after {asked.minutes:g} minutes {len(here)} of {asked.nodes} nodes are there: {', '.join(here)}"
            )
            sys.exit(4)
        if len(here) != said:
            said = len(here)
            tell(f"waiting for nodes: {len(here)} of {asked.nodes} are there ({', '.join(here)})")
        time.sleep(LOOK_EVERY)
    tell(f"all {len(here)} nodes are there")


def connect(deadline: float) -> None:
    """Once the head is up: it may be starting. `ray.init` says much, and may end the process, where none answers."""
    import ray

    told = False
    while True:
        answer = subprocess.run(["ray", "health-check"], capture_output=True, text=True)
        if answer.returncode == 0:
            break
        if time.monotonic() > deadline:
            last = (answer.stderr.strip().splitlines() or ["it does not say why"])[-1]
            tell(f"no Ray cluster answers: {last[:160]}")
            sys.exit(4)
        if not told:
            told = True
            tell(f"waiting for Ray's head at {os.environ.get('RAY_ADDRESS', 'this machine')}")
        time.sleep(LOOK_EVERY)
    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")


def alive() -> list[str]:
    """Host names of the nodes that are there."""
    import ray

    return sorted(node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"])


def tell(sentence: str) -> None:
    print(f"gather: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
