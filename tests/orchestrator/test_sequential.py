import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, ttest_1samp

from orchestrator.analysis.sequential import CHANCES, GRID, MOST_LOOKS, WEIGHTS, always_valid, look_level

one_p = st.floats(1e-9, 1)


def test_the_looks_share_all_of_the_error_rate():
    assert len(WEIGHTS) == MOST_LOOKS
    assert sum(WEIGHTS) == pytest.approx(1)


def test_no_chance_exceeds_bonferroni_s_bound():
    assert all(chance <= x for x, chance in zip(GRID, CHANCES, strict=True))


@given(st.dictionaries(st.integers(1, 20), one_p, min_size=1))
def test_p_over_looks_is_at_most_that_of_bonferroni_and_at_least_that_of_the_best_look(looks):
    p = always_valid(looks)
    assert min(1.0, min(looks.values())) * 0.99 <= p or p == 1
    assert p <= min(1.0, min(value / WEIGHTS[look - 1] for look, value in looks.items())) * 1.000001


@given(st.dictionaries(st.integers(1, 20), one_p, min_size=1), st.integers(1, 20), one_p)
def test_a_further_look_never_raises_p(looks, look, p):
    assert always_valid({look: p} | looks) <= always_valid({key: looks[key] for key in looks if key != look})


@given(st.integers(1, 20), st.floats(1e-7, 0.9))
def test_the_level_of_a_look_is_the_p_that_just_decides(look, level):
    at = look_level(look, level)
    assert always_valid({look: at}) == pytest.approx(level, rel=1e-6)


def test_looks_beyond_the_twentieth_decide_nothing():
    assert always_valid({21: 1e-12}) == 1
    assert look_level(21, 0.5) == 0


@pytest.mark.parametrize("level", [0.05, 0.025, 0.005])
def test_looking_at_every_number_of_seeds_refuses_a_true_null_about_as_often_as_stated(level):
    """By scipy's t test on 20,000 paths; those of the first look, at one seed, are not among them."""
    values = np.random.default_rng(0).normal(size=(20_000, MOST_LOOKS))
    refused = np.zeros(len(values), dtype=bool)
    for n in range(2, MOST_LOOKS + 1):
        refused |= ttest_1samp(values[:, :n], 0, axis=1, alternative="greater").pvalue <= look_level(n, level)
    error = 3 * np.sqrt(level / len(values))
    assert 0.8 * level - error <= refused.mean() <= level + error


def test_looks_with_a_known_spread_err_no_more_often():
    steps = np.random.default_rng(1).normal(size=(20_000, MOST_LOOKS))
    n = np.arange(1, MOST_LOOKS + 1)
    p = norm.sf(np.cumsum(steps, axis=1) / np.sqrt(n))
    levels = np.array([look_level(look, 0.025) for look in n])
    assert (p <= levels).any(axis=1).mean() <= 0.025 + 3 * np.sqrt(0.025 / 20_000)
