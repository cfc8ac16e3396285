import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kendalltau, page_trend_test, permutation_test, rankdata, spearmanr
from statsmodels.stats.multitest import multipletests

from orchestrator.report.statistics import (
    holm,
    mean_interval,
    midranks,
    page_p,
    rank_agreement,
    spearman,
    spearman_interval,
)


def test_two_seeds_give_the_cauchy_quantile_times_half_the_distance():
    # t with one degree of freedom is Cauchy: quantile p is tan(pi (p - 1/2)); s / sqrt(2) = |a - b| / 2
    found = mean_interval([60.0, 61.0])
    assert found.mean == 60.5
    assert found.high == pytest.approx(60.5 + math.tan(math.pi * 0.475) * 0.5, rel=1e-12)
    assert found.low == pytest.approx(60.5 - math.tan(math.pi * 0.475) * 0.5, rel=1e-12)
    assert found.n == 2


def test_three_seeds_give_the_closed_form_for_two_degrees_of_freedom():
    values, level = [1.0, 2.0, 6.0], 0.9
    p = (1 + level) / 2
    quantile = 2 * (p - 0.5) * math.sqrt(2 / (4 * p * (1 - p)))
    spread = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2)
    assert mean_interval(values, level).half_width == pytest.approx(
        quantile * spread / math.sqrt(3), rel=1e-12
    )


def test_ten_seeds_give_the_printed_table_value():
    values = list(np.arange(10.0))  # s = sqrt(55 / 6)
    assert mean_interval(values).half_width == pytest.approx(2.262157 * math.sqrt(55 / 6 / 10), rel=1e-6)


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(62.7, 0.4, (4000, 3))
    covered = [low <= 62.7 <= high for _, low, high, _ in (mean_interval(row) for row in draws.tolist())]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_a_single_seed_has_no_interval():
    assert mean_interval([62.7]) == (62.7, None, None, 1)
    assert mean_interval([62.7]).half_width is None


def test_equal_values_have_themselves_as_mean_and_no_width():
    assert mean_interval([0.1] * 3) == (0.1, 0.1, 0.1, 3)


def test_the_order_of_the_seeds_changes_no_bit_of_the_mean():
    values = np.random.default_rng(1).normal(60, 1, 9).tolist()
    assert (
        mean_interval(values).mean == mean_interval(values[::-1]).mean == mean_interval(sorted(values)).mean
    )


def test_values_that_are_no_numbers_are_not_hidden():
    assert math.isnan(mean_interval([1.0, math.nan]).mean)
    assert mean_interval([1.0, math.inf]).mean == math.inf


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([1.0], 0.0), ([1.0], 1.0), ([1.0, 2.0], 95.0)])
def test_no_values_or_an_impossible_level_are_refused(values, level):
    with pytest.raises(ValueError, match="takes"):
        mean_interval(values, level)


# --- Holm ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=10, deadline=None)  # statsmodels takes its time
def test_holm_is_that_of_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist(), abs=1e-12)


def test_holm_of_no_tests_is_empty():
    assert holm([]) == []


# --- Page and Spearman --------------------------------------------------------------------------


@pytest.mark.parametrize(("seeds", "cells"), [(2, 3), (3, 5), (2, 9), (6, 4)])
def test_page_is_that_of_scipy_where_nothing_ties(seeds, cells):
    values = np.random.default_rng(cells).normal(size=(seeds, cells)) + 0.2 * np.arange(cells)
    found = page_trend_test(values, method="exact")
    assert page_p(values) == pytest.approx(found.pvalue, rel=1e-9)


@given(arrays(np.int64, st.tuples(st.integers(1, 2), st.integers(3, 4)), elements=st.integers(0, 3)))
@settings(max_examples=40, deadline=None)
def test_page_with_ties_is_the_share_of_all_orders_within_seeds_that_rise_as_much(values):
    steps = np.arange(values.shape[1])
    ranks = rankdata(values, axis=1)
    orders = [[steps @ order for order in itertools.permutations(row)] for row in ranks]
    sums = np.array([sum(one) for one in itertools.product(*orders)])
    assert page_p(values.astype(float)) == pytest.approx(np.mean(sums >= (ranks @ steps).sum() - 1e-9))


def test_page_of_constant_values_shows_nothing_where_scipy_ignores_the_ties():
    assert page_p(np.ones((3, 4))) == 1
    assert page_p(np.ones((2, 12))) == 1


def test_page_of_one_seed_needs_five_cells_in_order_for_less_than_one_percent():
    assert page_p(np.arange(4.0)[None]) == pytest.approx(1 / 24)
    assert page_p(np.arange(5.0)[None]) == pytest.approx(1 / 120)


def test_page_of_many_cells_is_near_the_share_of_random_orders():
    rng = np.random.default_rng(3)
    values = np.round(rng.normal(size=(3, 14)) + 0.06 * np.arange(14), 1)
    ranks = rankdata(values, axis=1)
    shuffled = rng.permuted(np.broadcast_to(ranks, (40_000, 3, 14)), axis=2)
    share = np.mean((shuffled @ np.arange(14)).sum(axis=1) >= (ranks @ np.arange(14)).sum() - 1e-9)
    assert 0.001 < share < 0.2
    assert page_p(values) == pytest.approx(share, rel=0.1)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
def test_spearman_is_that_of_scipy(pairs):
    x, y = (list(map(float, column)) for column in zip(*pairs, strict=True))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(spearman(x, y))
    else:
        assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_the_p_of_a_rank_correlation_is_that_of_all_permutations():
    x, y = np.array([1.0, 2, 2, 4, 5, 6]), np.array([2.0, 1, 3, 3, 6, 5])
    exact = permutation_test((x,), lambda a: spearmanr(a, y).statistic, permutation_type="pairings",
                             n_resamples=np.inf, alternative="greater")  # fmt: skip
    assert page_p(y[None], midranks(x)) == pytest.approx(exact.pvalue)


def test_the_interval_of_a_rank_correlation_is_the_closed_form():
    rho, n = 0.6, 12
    half = 1.959963985 * math.sqrt((1 + 0.18) / 9)
    low, high = spearman_interval(rho, n)
    assert (low, high) == pytest.approx(
        (math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half))
    )
    assert spearman_interval(-rho, n) == pytest.approx((-high, -low))
    assert spearman_interval(0.5, 3) is None


def test_a_perfect_rank_correlation_has_an_interval_that_ends_at_one():
    low, high = spearman_interval(1.0, 6)
    assert high == 1
    assert 0 < low < 1
    assert spearman_interval(-1.0, 6) == (-1, -low)


# --- agreement with the paper's order -----------------------------------------------------------


def test_the_paper_s_own_order_of_four_rows_is_one_of_twenty_four():
    assert rank_agreement([93.0, 92, 91, 90], [66.5, 62.7, 61.1, 51.5]) == (1.0, pytest.approx(2 / 24), 4)


@pytest.mark.parametrize("rows", [5, 8, 9, 20])
def test_agreement_is_kendall_s_of_scipy_where_nothing_ties(rows):
    rng = np.random.default_rng(rows)
    ours, paper = rng.normal(size=rows).tolist(), rng.normal(size=rows).tolist()
    expected = kendalltau(ours, paper, method="exact")
    assert rank_agreement(ours, paper) == (
        pytest.approx(expected.statistic), pytest.approx(expected.pvalue), rows
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_agreement_with_ties_counts_all_orders(pairs):
    ours, paper = (list(column) for column in zip(*pairs, strict=True))
    found = rank_agreement(ours, paper)
    if len(set(ours)) == 1 or len(set(paper)) == 1:
        assert found == (None, None, len(ours))
    else:
        taus = [kendalltau(order, paper).statistic for order in itertools.permutations(ours)]
        assert found.tau == pytest.approx(kendalltau(ours, paper).statistic)
        assert found.p == pytest.approx(np.mean(np.abs(taus) >= abs(found.tau) - 1e-9))


@pytest.mark.parametrize("rows", [[], [1.0]])
def test_fewer_than_two_rows_have_no_order(rows):
    assert rank_agreement(rows, rows) == (None, None, len(rows))


def test_agreement_of_lists_that_differ_in_length_is_refused():
    with pytest.raises(ValueError, match="argument 2"):
        rank_agreement([1.0, 2.0], [1.0])
