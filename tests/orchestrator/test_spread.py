import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.spread import Spread, pooled_spread


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 1000))
def test_with_every_seed_of_every_cell_it_is_the_closed_form_of_two_way_analysis_of_variance(
    cells, seeds, draw
):
    values = np.random.default_rng(draw).normal(50, 2, (cells, seeds))
    residuals = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    freedom = (cells - 1) * (seeds - 1)
    spread = pooled_spread({cell: dict(enumerate(row)) for cell, row in enumerate(values.tolist())})
    assert spread.degrees_of_freedom == freedom
    assert spread.sd == pytest.approx(math.sqrt((residuals**2).sum() / freedom))


@pytest.mark.parametrize("draw", range(5))
def test_with_seeds_missing_it_is_the_residual_of_ordinary_least_squares_by_statsmodels(draw):
    rng = np.random.default_rng(draw)
    lines = [
        {"cell": f"c{cell}", "seed": seed, "value": 10 * cell + 3 * seed + rng.normal()}
        for cell in range(5)
        for seed in range(6)
        if seed < 2 or rng.random() < 0.5
    ]
    cells: dict[str, dict[int, float]] = {}
    for line in lines:
        cells.setdefault(line["cell"], {})[line["seed"]] = line["value"]
    fit = smf.ols("value ~ C(cell) + C(seed)", pd.DataFrame(lines)).fit()
    spread = pooled_spread(cells)
    assert spread.degrees_of_freedom == fit.df_resid
    assert spread.sd == pytest.approx(math.sqrt(fit.mse_resid))


def test_cells_that_share_no_seed_lend_each_other_only_their_own_degrees_of_freedom():
    left = {"a": {0: 1.0, 1: 2.0}, "b": {0: 5.0, 1: 6.4}}
    right = {"c": {2: 7.0, 3: 9.0}, "d": {2: 1.0, 3: 3.8}}
    assert pooled_spread(left | right).degrees_of_freedom == 2
    assert pooled_spread(left | right).sd == pytest.approx(
        math.sqrt((pooled_spread(left).sd ** 2 + pooled_spread(right).sd ** 2) / 2)
    )


@pytest.mark.parametrize("cells", [{}, {"a": {}}, {"a": {0: 1.0}, "b": {0: 2.0}}, {"a": {0: 1.0, 1: 2.0}}])
def test_one_seed_or_one_cell_leaves_no_degree_of_freedom(cells):
    assert pooled_spread(cells) == Spread(None, 0)


def test_what_all_cells_of_a_seed_share_is_no_spread():
    cells = {cell: {seed: 10.0 * cell + 7.0 * seed for seed in range(3)} for cell in range(4)}
    spread = pooled_spread(cells)
    assert spread.degrees_of_freedom == 6
    assert spread.sd == pytest.approx(0, abs=1e-9)
