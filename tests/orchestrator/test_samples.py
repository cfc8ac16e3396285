import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from orchestrator.analysis.power import PRIOR_FREEDOM, pooled_power
from orchestrator.analysis.sequential import always_valid
from orchestrator.report.claims.samples import Replicates
from orchestrator.report.spread import Pool, outlying_cells

A, B, C = "a", "b", "c"


def drawn(spreads, seeds, draw, gap=0.0):
    rng = np.random.default_rng(draw)
    values = rng.normal(60, 1, seeds) + rng.normal(0, 1, (len(spreads), seeds)) * np.array(spreads)[:, None]
    values[0] += gap
    return values


def sample_of(values):
    """First minus second row, all rows lending their spread."""
    seeds = values.shape[1]
    pool = Pool({row: dict(enumerate(line)) for row, line in enumerate(values.tolist())})
    pooled = tuple(pool.until(seed, (0, 1)) for seed in range(1, seeds))
    return Replicates(tuple((values[0] - values[1]).tolist()), pool=pooled)


@pytest.mark.parametrize("draw", range(4))
def test_the_pooled_test_has_the_variance_of_two_way_analysis_of_variance(draw):
    values = drawn([0.5] * 5, 4, draw, gap=0.7)
    looks = {}
    for n in (2, 3, 4):
        part = values[:, :n]
        residuals = part - part.mean(1, keepdims=True) - part.mean(0) + part.mean()
        freedom = 4 * (n - 1)
        error = math.sqrt(2 * (residuals**2).sum() / freedom / n)
        looks[n] = student.sf((part[0] - part[1]).mean() / error, freedom)
    assert sample_of(values).p(0, 1, "pooled") == pytest.approx(always_valid(looks))


@pytest.mark.parametrize("draw", range(4))
def test_the_test_that_decides_alone_weighs_the_pair_s_own_variance_with_that_of_the_other_cells(draw):
    values = drawn([0.5] * 5, 3, draw, gap=0.7)
    looks = {}
    for n in (2, 3):
        part = values[:, :n]
        # the pair's difference and the other three cells against it are independent in the two-way model
        residuals = part - part.mean(1, keepdims=True) - part.mean(0) + part.mean()
        own = np.var(part[0] - part[1], ddof=1)
        others = 2 * ((residuals**2).sum() - own * (n - 1) / 2) / (3 * (n - 1))
        freedom = PRIOR_FREEDOM + n - 1
        variance = (PRIOR_FREEDOM * others + (n - 1) * own) / freedom
        looks[n] = student.sf((part[0] - part[1]).mean() / math.sqrt(variance / n), freedom)
    assert sample_of(values).p(0, 1, "alone") == pytest.approx(always_valid(looks))


@given(st.integers(0, 500), st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_two_cells_alone_have_the_strict_test(draw, seeds):
    sample = sample_of(drawn([0.5, 0.5], seeds, draw, gap=0.4))
    assert sample.p(0, 1, "pooled") == sample.p(0, 1, "alone") == sample.p(0, 1, "strict")
    assert not sample.pools


@given(st.integers(0, 500), st.integers(2, 6), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_the_interval_holds_what_neither_test_refuses(draw, seeds, gap):
    sample = sample_of(drawn([0.5] * 4, seeds, draw, gap))
    low, high = sample.interval
    for null, inside in ((low - 1e-6, False), (low + 1e-6, True), (high - 1e-6, True), (high + 1e-6, False)):
        refused = any(
            max(sample.p(null, side, kind) for kind in ("pooled", "alone")) <= 0.025 for side in (1, -1)
        )
        assert refused != inside


@given(st.integers(0, 200), st.floats(-2, 2))
@settings(max_examples=30, deadline=None)
def test_a_further_seed_never_raises_a_p(draw, gap):
    values = drawn([0.5] * 4, 6, draw, gap)
    for kind in ("strict", "pooled", "alone"):
        p_values = [sample_of(values[:, :n]).p(0, 1, kind) for n in range(2, 7)]
        assert p_values == sorted(p_values, reverse=True)


def test_a_cell_that_varies_far_more_than_the_others_is_left_out_of_the_pool():
    values = drawn([0.5] * 7 + [20.0], 4, 0, gap=2.0)
    cells = {row: dict(enumerate(line)) for row, line in enumerate(values.tolist())}
    assert outlying_cells(cells) == {7}
    pool = Pool(cells)
    assert pool.until(3, (0, 1)).sd == pytest.approx(0.5, rel=0.4)
    assert pool.until(3, (0, 7)).sd is None


def test_cells_of_one_spread_are_seldom_left_out():
    left_out = [
        bool(
            outlying_cells({row: dict(enumerate(line)) for row, line in enumerate(drawn([0.5] * 8, 3, draw))})
        )
        for draw in range(400)
    ]
    assert np.mean(left_out) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_equal_values_leave_no_cell_out():
    assert outlying_cells({"a": {0: 1.0, 1: 1.0}, "b": {0: 1.0, 1: 1.0}, "c": {0: 1.0, 1: 1.0}}) == set()


def test_the_power_of_both_tests_together_is_nearly_what_simulation_gives():
    """Gap of 2 points, seed spread 0.5, 8 cells, third seed alone."""
    level = 0.004
    foretold = pooled_power(2.0, 0.5, 3, 7 * 2, level, 0.025)
    rng, hits = np.random.default_rng(0), 0
    for _ in range(3000):
        values = rng.normal(0, 0.5, (8, 3))
        values[0] += 2
        residuals = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
        squares, difference = (residuals**2).sum(), values[0] - values[1]
        own = np.var(difference, ddof=1)
        moderated = (PRIOR_FREEDOM * 2 * (squares - own) / 12 + 2 * own) / (PRIOR_FREEDOM + 2)
        pooled = student.sf(difference.mean() / math.sqrt(2 * squares / 14 / 3), 14)
        alone = student.sf(difference.mean() / math.sqrt(moderated / 3), PRIOR_FREEDOM + 2)
        hits += pooled <= level and alone <= 0.025
    assert foretold == pytest.approx(hits / 3000, abs=0.05)
