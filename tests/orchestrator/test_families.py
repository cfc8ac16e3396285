import math

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from test_claims import claim, plan_of

from orchestrator.analysis.families import decidable
from orchestrator.analysis.power import PRIOR_FREEDOM, detectable
from orchestrator.analysis.sequential import look_level


@pytest.mark.parametrize(("seeds", "family"), [(2, 1), (3, 4), (5, 8)])
def test_the_detectable_gap_is_decided_with_its_power_in_simulated_looks(seeds, family):
    cells, sd = 8, 0.5
    gap = detectable(seeds, sd, family, cells, 0.05, 0.8)
    values = np.random.default_rng(0).normal(0, sd, (6000, cells, seeds))
    values[:, 0] += gap
    centred = values - values.mean(1, keepdims=True)
    squares = ((centred - centred.mean(2, keepdims=True)) ** 2).sum((1, 2))
    difference = values[:, 0] - values[:, 1]
    own = difference.var(1, ddof=1)
    freedom, others = (cells - 1) * (seeds - 1), (cells - 2) * (seeds - 1)
    moderated = PRIOR_FREEDOM * 2 * (squares - own * (seeds - 1) / 2) / others + (seeds - 1) * own
    moderated /= PRIOR_FREEDOM + seeds - 1
    pooled = student.sf(difference.mean(1) / np.sqrt(2 * squares / freedom / seeds), freedom)
    alone = student.sf(difference.mean(1) / np.sqrt(moderated / seeds), PRIOR_FREEDOM + seeds - 1)
    hits = (pooled <= look_level(seeds, 0.025 / family)) & (alone <= look_level(seeds, 0.025))
    assert hits.mean() == pytest.approx(0.8, abs=0.06)


def test_one_seed_detects_what_the_normal_test_with_the_assumed_spread_does():
    gap = detectable(1, 0.5, 1, 8, 0.05, 0.8)
    reached = norm.sf(norm.isf(look_level(1, 0.025)), loc=gap / (math.sqrt(2) * 0.5))
    assert reached == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("seeds", "size"), [((2, 1, 8), (3, 1, 8)), ((3, 200, 8), (3, 1, 8)), ((3, 4, 3), (3, 4, 12))]
)
def test_more_seeds_smaller_families_and_more_cells_detect_smaller_gaps(seeds, size):
    (few, large, small), (many, little, wide) = seeds, size
    assert detectable(few, 0.5, large, small, 0.05, 0.8) > detectable(many, 0.5, little, wide, 0.05, 0.8)


def test_no_gap_is_detectable_beyond_the_looks_that_are_paid_for():
    assert detectable(21, 0.5, 1, 8, 0.05, 0.8) == math.inf


def test_each_family_of_trained_cells_has_a_line():
    claims = [claim("order", ["a", "b"], group=number) for number in (1, 1, 2, None)]
    lines = decidable(plan_of(claims, "abcdefgh", seeds=3))
    assert [line.partition(":")[0] for line in lines] == [
        "claim 1 (2 claims)",
        "claim 2 (1 claim)",
        "study (1 claim)",
    ]
    gap = detectable(3, 0.2, 2, 8, 0.05, 0.8)
    assert lines[0].endswith(f"3 seeds decide gaps from {gap:.2g} points")
