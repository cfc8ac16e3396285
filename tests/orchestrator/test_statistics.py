import math

import numpy as np
import pytest

from orchestrator.report.statistics import mean_interval


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
