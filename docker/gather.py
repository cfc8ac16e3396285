#!/usr/bin/env python3
"""Waits until a Ray cluster has what a study is to have, then becomes the command that follows.

    gather.py --gpus 32 -- ablate run paper --recipe imagenet --address auto
    gather.py --nodes 4 --minutes 10
    gather.py                          # asks for nothing any more: workers that are idle may go

`ablate run` runs side by side what fits the nodes that are there when it starts, so an autoscaling cluster has to grow
first: its autoscaler is asked for the CPUs and GPUs, and keeps them until it is asked for others. Where the cluster is,
RAY_ADDRESS says, or it is this machine's; its token is where Ray looks for it.

Exit codes: 4, after the time, saying what is missing; otherwise the command's.
"""

import argparse
import os
import subprocess
import sys
import time

LOOK_EVERY = 2.0


def main() -> None:
    takes = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    takes.add_argument("--nodes", type=int, default=0, help="nodes, the head being one")
    takes.add_argument("--cpus", type=int, default=0)
    takes.add_argument("--gpus", type=int, default=0)
    takes.add_argument("--minutes", type=float, default=30, help="to wait at most; default 30")
    takes.add_argument("command", nargs="*", help="after --")
    asked = takes.parse_args()
    wanted = {"nodes": asked.nodes, "CPUs": asked.cpus, "GPUs": asked.gpus}
    deadline = time.monotonic() + 60 * asked.minutes

    import ray
    from ray.autoscaler.sdk import request_resources

    connect(deadline)
    request_resources(bundles=[{"CPU": 1}] * asked.cpus + [{"GPU": 1}] * asked.gpus)
    said = ""
    while missing := {name: count for name, count in wanted.items() if present()[name] < count}:
        here = present()
        what = ", ".join(f"{here[name]:g} of {count} {name}" for name, count in missing.items())
        if time.monotonic() > deadline:
            tell(f"after {asked.minutes:g} minutes the cluster has {what}")
            sys.exit(4)
        if what != said:
            said = what
            tell(f"waiting for the cluster, which has {what}")
        time.sleep(LOOK_EVERY)
    tell("the cluster has " + ", ".join(f"{count:g} {name}" for name, count in present().items()))
    ray.shutdown()
    if asked.command:
        os.execvp(asked.command[0], asked.command)  # noqa: S606


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


def present() -> dict[str, float]:
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return {
        "nodes": len(alive),
        "CPUs": sum(resources.get("CPU", 0) for resources in alive),
        "GPUs": sum(resources.get("GPU", 0) for resources in alive),
    }


def tell(sentence: str) -> None:
    print(f"gather: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
