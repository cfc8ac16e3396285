"""What fits side by side, held against brute force; and the order in which trials start."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.packing import Node, Packing, next_to_start, side_by_side, size
from orchestrator.spec import Resources

SMALL = Resources()
FOOTPRINTS = st.builds(
    Resources,
    workers=st.integers(1, 3),
    cpus_per_worker=st.integers(1, 3),
    gpus_per_worker=st.sampled_from([0, 1, 2]),
    placement=st.sampled_from(["pack", "strict_pack", "spread", "strict_spread"]),
)
NODES = st.lists(st.builds(Node, st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=3)


def really_fits(nodes: list[Node], footprint: Resources) -> bool:
    """Whether any way to put the workers on the nodes respects all capacities and the placement."""
    for places in itertools.product(range(len(nodes)), repeat=footprint.workers):
        if footprint.placement == "strict_pack" and len(set(places)) > 1:
            continue
        if footprint.placement == "strict_spread" and len(set(places)) < footprint.workers:
            continue
        if all(
            places.count(index) * footprint.cpus_per_worker <= node.cpus
            and places.count(index) * footprint.gpus_per_worker <= node.gpus
            for index, node in enumerate(nodes)
        ):
            return True
    return False


@given(NODES, FOOTPRINTS)
def test_a_trial_fits_an_empty_cluster_just_where_some_placement_exists(
    nodes: list[Node], footprint: Resources
) -> None:
    assert Packing(nodes).place(footprint) == really_fits(nodes, footprint)


@settings(max_examples=200)
@given(NODES, st.lists(FOOTPRINTS, max_size=6))
def test_no_more_is_placed_than_there_is(nodes: list[Node], footprints: list[Resources]) -> None:
    packing = Packing(nodes)
    placed = [footprint for footprint in footprints if packing.place(footprint)]
    assert sum(one.workers * one.cpus_per_worker for one in placed) <= sum(node.cpus for node in nodes)
    assert sum(one.workers * one.gpus_per_worker for one in placed) <= sum(node.gpus for node in nodes)
    assert all(free.cpus >= 0 and all(left >= -1e-6 for left in free.gpus) for free in packing._free)


@given(NODES, st.lists(FOOTPRINTS, min_size=1, max_size=5))
def test_whatever_waits_on_an_empty_cluster_something_starts_if_anything_fits(
    nodes: list[Node], waiting: list[Resources]
) -> None:
    chosen = next_to_start(nodes, [], waiting)
    fitting = [footprint for footprint in waiting if really_fits(nodes, footprint)]
    assert chosen == (max(fitting, key=size) if fitting else None) or (
        chosen in fitting and size(chosen) == size(max(fitting, key=size))
    )


@pytest.mark.parametrize(
    ("footprint", "fits"),
    [
        (Resources(workers=4, gpus_per_worker=1, placement="strict_pack"), 4),
        (Resources(workers=6, gpus_per_worker=1, placement="strict_pack"), 2),
        (Resources(workers=6, gpus_per_worker=1), 2),
        (Resources(workers=2, gpus_per_worker=1, placement="strict_spread"), 8),
        (Resources(workers=3, gpus_per_worker=1, placement="strict_spread"), 0),
        (Resources(gpus_per_worker=0.25), 64),
        (Resources(gpus_per_worker=0.75), 16),
        (Resources(cpus_per_worker=16), 8),
    ],
)
def test_two_nodes_of_eight_accelerators(footprint: Resources, fits: int) -> None:
    assert side_by_side([Node(64, 8)] * 2, [footprint] * 100) == fits


def test_a_small_trial_starts_beside_a_large_one_that_leaves_room_and_the_large_one_goes_first() -> None:
    nodes = [Node(8, 4), Node(8, 4)]
    gang = Resources(workers=6, gpus_per_worker=1)
    assert next_to_start(nodes, [], [SMALL, gang, gang]) == gang
    assert next_to_start(nodes, [gang], [SMALL, gang]) == SMALL
    assert next_to_start(nodes, [gang], [gang]) is None
    assert next_to_start(nodes, [gang, SMALL, SMALL], [Resources(gpus_per_worker=1)]) is not None


def test_evaluation_on_cpus_leaves_the_accelerators_to_the_next_training() -> None:
    training = Resources(workers=4, gpus_per_worker=1, evaluation_gpus=0)
    nodes = [Node(8, 4)]
    assert next_to_start(nodes, [training], [training]) is None
    assert next_to_start(nodes, [training.evaluation], [training]) == training
    assert training.evaluation.evaluation == training.evaluation.model_copy(
        update={"evaluation_gpus": None, "evaluation_cpus": None}
    )


@given(st.lists(FOOTPRINTS, max_size=5))
def test_running_trials_of_a_node_that_went_hinder_nobody(running: list[Any]) -> None:
    assert next_to_start([Node(1, 0)], [*running, Resources(workers=100)], [SMALL]) in (None, SMALL)
