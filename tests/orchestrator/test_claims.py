import csv
import importlib.util
import io
import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm, page_trend_test, spearmanr, ttest_1samp, ttest_rel
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired
from synthetic import fill

from orchestrator.analysis.power import pooled_power, t_power
from orchestrator.analysis.sequential import MOST_LOOKS, always_valid, look_level
from orchestrator.plan import PlannedCell, StudyPlan, make_plan
from orchestrator.report import tables
from orchestrator.report.claims import CSV_COLUMNS, claims_csv, judge, path_csv, table_agreement, wording
from orchestrator.report.claims.hypotheses import (
    AllOf,
    AnyOf,
    Beyond,
    ClaimTest,
    Rising,
    decide,
    seeds_needed,
)
from orchestrator.report.claims.samples import OneRun, Replicates
from orchestrator.report.frames import COLUMNS, cells_frame, holes
from orchestrator.report.spread import pooled_spread
from orchestrator.spec import Study
from orchestrator.store import Store

TOP1 = "linear_probe/top1"
PAPER = {
    "mlp": 66.5, "linear": 61.1, "none": 51.5, "directclr": 62.7, "orthogonal": 52.2, "diagonal": 60.2,
    "low_rank": 62.3, "low_rank_diagonal": 62.7, "random": 43.0,
}  # fmt: skip


def load_benchmark():
    file = Path(__file__).resolve().parents[2] / "benchmarks" / "claims.py"
    spec = importlib.util.spec_from_file_location("claims_benchmark", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


benchmark = load_benchmark()


# --- a study in memory ----------------------------------------------------------------------------


class NoRecords:
    def evaluation_arrays(self, key):
        return None


class Bits:
    """Per-example correctness by evaluation key."""

    def __init__(self, correct):
        self.correct = correct

    def evaluation_arrays(self, key):
        return {"correct": self.correct[key]} if key in self.correct else None


def claim(test, cells, **fields):
    named = {"name": f"claim_{test}", "text": "a sentence", "source": "Table 1"}
    return named | {"test": test, "cells": cells} | fields


def read_study(**fields):
    return Study.model_validate_json(json.dumps({"title": "A study", "source": "Table 1"} | fields))


def plan_of(claims, cells, *, seeds=3, trials=None, toy=False, **statistics):
    """A plan of one study whose cells are labelled by their names, each with a training of its own."""
    claims = [one | {"name": f"{one['name']}_{position}"} for position, one in enumerate(claims)]
    study = read_study(
        name="study",
        cells=[{"name": name, "label": name} for name in cells],
        evaluations=["linear_probe", "subvector_probe", "knn", "spectrum"],
        claims=claims,
        statistics=statistics,
        **({"toy": {}} if toy else {}),
    )
    planned = tuple(
        PlannedCell("study", name, name, seed, (trials or {}).get(name, name) + f"-{seed}",
                    {} if toy else {"linear_probe": f"{name}-{seed}"}, position if toy else None)
        for position, name in enumerate(cells)
        for seed in range(seeds)
    )  # fmt: skip
    return StudyPlan(study, (study,), "digits", tuple(range(seeds)), planned)


def frame_of(values, metric=TOP1):
    """{cell: [value of each seed, None where there is none]} -> cells frame."""
    lines = [
        ("study", cell, cell, "digits", seed, f"{cell}-{seed}", metric, value, math.nan)
        for cell, row in values.items()
        for seed, value in enumerate(row)
        if value is not None
    ]
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype({"seed": "int64", "value": "float64"})


def verdict_on(one_claim, values, metric=TOP1, records=None, **fields):
    seeds = max(map(len, values.values()))
    (judgement,) = judge(
        plan_of([one_claim], values, seeds=seeds, **fields), frame_of(values, metric), records or NoRecords()
    )
    return judgement


def seen_at_every_look(first, second, alternative, shift=0.0):
    """p of scipy's paired t test after 2, 3, .. seeds, paid for as looks."""
    return always_valid(
        {
            n: ttest_rel(np.array(first[:n]) - shift, second[:n], alternative=alternative).pvalue
            for n in range(2, len(first) + 1)
        }
    )


def published(seeds=3, sd=0.1, seed=0):
    """The paper's numbers as if they were of several seeds with a small spread."""
    rng = np.random.default_rng(seed)
    values = {name: (value + rng.normal(0, sd, seeds)).tolist() for name, value in PAPER.items()}
    return values


# --- the paper's own numbers ------------------------------------------------------------------------

ORDERINGS = [
    claim("order", ["mlp", "directclr", "linear", "none"], group=1),
    claim("order", ["low_rank", "linear"], group=3),
    claim("order", ["low_rank_diagonal", "diagonal"], group=3),
    claim("order", ["directclr", "directclr"], metrics=[TOP1, "subvector_probe/top1"], margin=5, group=4),
    claim("order", ["directclr", "random"], margin=5, group=4),
]
SAMENESS = [
    claim("equivalent", ["orthogonal", "none"], margin=1.5, group=2),
    claim("equivalent", ["low_rank", "low_rank_diagonal"], margin=1.5, group=2),
    claim("equivalent", ["linear", "diagonal"], margin=1.5, group=2),
]


@pytest.mark.parametrize("seed", range(5))
def test_the_paper_s_numbers_over_three_seeds_support_its_orderings_with_holm_over_all_claims(seed):
    values = published(seed=seed)
    rng = np.random.default_rng(100 + seed)
    subvector = frame_of({"directclr": (47.9 + rng.normal(0, 0.1, 3)).tolist()}, "subvector_probe/top1")
    cells = pd.concat([frame_of(values), subvector])
    judgements = judge(plan_of(ORDERINGS + SAMENESS, values), cells, NoRecords())
    assert [one.verdict for one in judgements[:5]] == ["supported"] * 5
    assert "contradicted" not in [one.verdict for one in judgements]
    assert all(one.p <= one.p_adjusted < 0.05 for one in judgements[:5])
    assert [one.family for one in judgements] == [f"claim {group}" for group in (1, 3, 3, 4, 4, 2, 2, 2)]


@pytest.mark.parametrize("errors", ["independent", "correlated"])
def test_one_seed_on_fifty_thousand_images_leaves_62_3_against_62_7_undecided(errors):
    rng = np.random.default_rng(0)
    images, low, high = 50_000, round(0.623 * 50_000), round(0.627 * 50_000)
    second = np.zeros(images, bool)
    second[:high] = True
    first = np.zeros(images, bool)
    if errors == "independent":
        first[:low] = True
        first = rng.permutation(first)
    else:
        only_first = (images // 5 - (high - low)) // 2  # disagreement of 20 %
        first[: low - only_first] = True
        first[high : high + only_first] = True
        assert np.mean(first != second) == pytest.approx(0.2, abs=0.01)
    records = Bits({"low_rank-0": first, "low_rank_diagonal-0": second})
    values = {"low_rank_diagonal": [62.7], "low_rank": [62.3]}
    found = verdict_on(claim("order", list(values)), values, records=records)
    assert found.verdict == "undecided"
    assert found.effect == pytest.approx(0.4)
    assert found.ci_low < 0 < found.ci_high
    assert found.seeds_needed is None or found.seeds_needed > 10
    assert "one seed" in found.test
    assert "50,000 images" in found.test
    assert "assumed spread of 0.2 points between seeds" in found.test


# --- t over seeds -----------------------------------------------------------------------------------


def test_a_difference_over_seeds_has_the_paired_t_of_scipy():
    first, second = [62.7, 62.1, 62.9, 62.4], [61.1, 61.9, 61.0, 61.3]
    found = verdict_on(claim("order", ["a", "b"], margin=0.5), {"a": first, "b": second})
    assert found.p == pytest.approx(2 * seen_at_every_look(first, second, "greater", 0.5))
    assert found.p == found.p_strict == found.p_pooled
    ends = [
        ttest_rel(first[:n], second[:n]).confidence_interval(1 - 2 * look_level(n, 0.025)) for n in (2, 3, 4)
    ]
    assert found.ci_low == pytest.approx(max(low for low, _ in ends))
    assert found.ci_high == pytest.approx(min(high for _, high in ends))
    assert found.effect == pytest.approx(1.2)
    assert (found.test, found.unit, found.seeds) == ("paired t over 4 seeds", "points", 4)


def test_a_chain_is_supported_as_surely_as_its_least_sure_step():
    values = {"a": [66.0, 66.2, 66.4], "b": [63.0, 63.1, 63.3], "c": [62.0, 61.4, 61.1]}
    found = verdict_on(claim("order", ["a", "b", "c"]), values)
    steps = [seen_at_every_look(values[x], values[y], "greater") for x, y in ("ab", "bc")]
    assert found.p_strict == pytest.approx(2 * max(steps))
    assert found.effect == pytest.approx(np.mean(values["b"]) - np.mean(values["c"]))
    assert [name for name, _ in found.details] == ["a > b", "b > c"]
    assert found.note.startswith("The smallest of 2 steps: b exceeds c by")


def test_a_chain_is_contradicted_by_its_worst_step_which_pays_for_the_number_of_steps():
    values = {"a": [60.0, 60.1, 60.2], "b": [63.0, 63.2, 63.3], "c": [50.0, 50.4, 50.1]}
    found = verdict_on(claim("order", ["a", "b", "c"]), values)
    assert found.verdict == "contradicted"
    assert found.p_strict == pytest.approx(2 * 2 * seen_at_every_look(values["a"], values["b"], "less"))
    assert "a falls short of b by 3." in found.note


def test_the_interval_of_a_note_has_the_sign_of_the_effect_beside_it():
    first, second = [60.0, 61.0, 62.5], [63.0, 62.0, 64.0]
    found = verdict_on(claim("order", ["a", "b"]), {"a": first, "b": second})
    low, high = ttest_rel(first, second).confidence_interval(1 - 2 * look_level(3, 0.025))
    shown = f"difference −{11 / 6:.1f}, 95 % interval −{-low:.1f} to {high:.1f}, paired over 3 seeds"
    assert (found.effect, found.ci_low, found.ci_high) == pytest.approx((-11 / 6, low, high))
    assert found.note.startswith(f"A falls short of b by {11 / 6:.1f} points ({shown})")


def test_a_difference_that_falls_short_of_the_margin_contradicts():
    first, second = [62.7, 62.8, 62.9], [61.1, 61.3, 61.2]
    found = verdict_on(claim("order", ["a", "b"], margin=5), {"a": first, "b": second})
    assert found.verdict == "contradicted"
    assert found.p == pytest.approx(2 * seen_at_every_look(first, second, "less", 5))
    assert found.note.endswith(", where more than 5 is claimed.")


def test_equivalence_is_the_two_one_sided_tests_of_statsmodels():
    first, second = [52.2, 52.0, 52.2, 52.3], [51.9, 51.6, 51.9, 51.9]
    found = verdict_on(claim("equivalent", ["a", "b"], margin=1.5), {"a": first, "b": second})
    sides = []
    for side in (1, 2):  # of statsmodels' result: p of the lower and of the upper test
        looks = {
            n: ttost_paired(np.array(first[:n]), np.array(second[:n]), -1.5, 1.5)[side][1] for n in (2, 3, 4)
        }
        sides.append(always_valid(looks))
    assert found.p == pytest.approx(2 * max(sides))
    assert found.verdict == "supported"


def test_cells_that_differ_by_more_than_the_margin_contradict_equivalence():
    first, second = [60.0, 60.3, 60.1], [55.0, 55.1, 55.4]
    found = verdict_on(claim("equivalent", ["a", "b"], margin=1.5), {"a": first, "b": second})
    assert found.verdict == "contradicted"
    assert found.p == pytest.approx(2 * 2 * seen_at_every_look(first, second, "greater", 1.5))


@pytest.mark.parametrize(
    ("test", "side", "verdict"), [("above", "greater", "supported"), ("below", "less", "contradicted")]
)
def test_a_level_is_the_one_sample_t_of_the_cell_nearest_to_it(test, side, verdict):
    values = {"a": [0.9, 0.95, 0.93, 0.91], "b": [0.5, 0.55, 0.52, 0.51]}
    found = verdict_on(
        claim(test, ["a", "b"], metric="representation/collapsed_fraction", value=0.4),
        values,
        "representation/collapsed_fraction",
    )
    assert found.verdict == verdict
    p_values = [seen_at_every_look(row, [0.4] * 4, "greater") for row in values.values()]
    assert found.p == pytest.approx(2 * max(p_values) if test == "above" else 2 * 2 * min(p_values))
    assert found.effect == pytest.approx(np.mean(values["b" if test == "above" else "a"]))
    assert f"{test} 0.4 is claimed" in found.note


def test_differences_without_spread_have_the_exact_sign_test():
    values = {"a": [60.3, 61.1, 62.7], "b": [60.0, 60.8, 62.4]}
    assert len({x - y for x, y in zip(values["a"], values["b"], strict=True)}) > 1  # float rounding
    found = verdict_on(claim("order", ["a", "b"]), values)
    assert found.p == pytest.approx(2 * always_valid({2: 0.5**2, 3: 0.5**3}))
    assert (found.ci_low, found.ci_high) == (found.effect, found.effect)
    enough = [n for n in range(2, 21) if 0.5**n <= look_level(n, 0.025)]
    assert found.seeds_needed == enough[0]
    equal = verdict_on(claim("order", ["a", "b"], margin=0.3), values)
    assert equal.p == 1
    assert "0.3 points (paired over 3 seeds, without spread)" in found.note


def test_only_seeds_that_both_cells_have_are_paired():
    values = {"a": [62.0, 63.0, 64.0, None], "b": [None, 62.1, 62.8, 10.0]}
    found = verdict_on(claim("order", ["a", "b"]), values)
    assert found.seeds == 2
    assert found.p == pytest.approx(2 * seen_at_every_look([63, 64], [62.1, 62.8], "greater"))


# --- one seed ---------------------------------------------------------------------------------------


@given(st.integers(0, 30), st.integers(0, 30), st.integers(60, 200))
def test_without_a_seed_spread_one_run_has_mcnemar_s_exact_test(only_first, only_second, images):
    run = OneRun(only_first, only_second, images, seed_sd=0)
    two_sided = min(1.0, 2 * min(run.p_of_look(0, 1), run.p_of_look(0, -1)))
    table = [[0, only_first], [only_second, 0]]
    assert two_sided == pytest.approx(mcnemar(table, exact=True).pvalue)


@given(st.integers(1, 300), st.integers(0, 300))
def test_with_a_vanishing_seed_spread_it_nears_mcnemar_s_corrected_test(only_first, only_second):
    run = OneRun(only_first, only_second, 1000, seed_sd=1e-9)
    side = 1 if only_first >= only_second else -1
    expected = mcnemar([[0, only_first], [only_second, 0]], exact=False, correction=True).pvalue
    if only_first != only_second:  # statsmodels corrects a difference of 0 to 1
        assert 2 * run.p_of_look(0, side) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("null", [-3.0, 0.0, 1.5, 5.0])
@pytest.mark.parametrize(("only_first", "only_second"), [(40, 25), (3, 0), (0, 0), (10, 60)])
def test_the_variance_of_the_images_is_at_its_most_likely_value_under_the_null(null, only_first, only_second):
    images, gap = 500, null / 100

    def unlikelihood(chance_second):
        chances = np.array([chance_second + gap, chance_second, 1 - 2 * chance_second - gap])
        counts = np.array([only_first, only_second, images - only_first - only_second])
        return -np.sum(counts * np.log(np.maximum(chances, 1e-300)))

    bounds = (max(0.0, -gap), (1 - gap) / 2)
    likely = minimize_scalar(unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = (2 * likely + gap - gap**2) / images
    surplus = (only_first - only_second) / images - gap - 1 / images
    run = OneRun(only_first, only_second, images, seed_sd=0.3)
    expected = norm.sf(100 * surplus / math.sqrt(1e4 * variance + 2 * 0.3**2))
    assert run.p_of_look(null, 1) == pytest.approx(expected, rel=1e-3)
    assert run.p(null, 1, "pooled") == pytest.approx(always_valid({1: expected}), rel=1e-3)


@given(st.integers(0, 200), st.integers(0, 200), st.floats(-10, 10), st.floats(0.05, 2))
def test_one_run_looks_the_same_from_either_cell(only_first, only_second, null, seed_sd):
    run = OneRun(only_first, only_second, 1000, seed_sd)
    mirrored = OneRun(only_second, only_first, 1000, seed_sd)
    assert run.p(null, 1, "alone") == pytest.approx(mirrored.p(-null, -1, "alone"))
    assert run.interval == pytest.approx(tuple(-bound for bound in reversed(mirrored.interval)), abs=1e-6)


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0.05, 2))
def test_the_interval_of_one_run_ends_where_its_test_refuses(only_first, only_second, seed_sd):
    run = OneRun(only_first, only_second, 1000, seed_sd)
    low, high = run.interval
    assert low < run.effect < high
    assert run.p(low, 1, "alone") == pytest.approx(0.025, rel=1e-3)
    assert run.p(high, -1, "alone") == pytest.approx(0.025, rel=1e-3)


def test_one_seed_without_correctness_has_no_test():
    found = verdict_on(claim("order", ["a", "b"]), {"a": [90.0], "b": [10.0]})
    assert (found.verdict, found.p, found.seeds, found.seeds_needed) == ("undecided", None, 1, None)
    assert found.test == "none: one seed says nothing of the spread"
    assert found.effect == 80
    assert "can't be said from one seed" in found.note


def test_one_seed_of_a_metric_that_is_no_accuracy_has_no_test():
    values = {"a": [30.0], "b": [10.0]}
    rank = "representation/rankme"
    records = Bits({"a-0": np.ones(9, bool), "b-0": np.zeros(9, bool)})
    found = verdict_on(claim("order", ["a", "b"], metric=rank), values, rank, records)
    assert found.p is None
    level = verdict_on(claim("above", ["a"], metric=rank, value=3), {"a": [30.0]}, rank, records)
    assert (level.verdict, level.p) == ("undecided", None)


def test_two_probes_of_one_seed_are_compared_image_by_image():
    one_claim = claim("order", ["a", "a"], metrics=[TOP1, "knn/top1"], margin=5)
    plan = plan_of([one_claim], ["a"], seeds=1)
    plan.cells[0].evaluations["knn"] = "knn"
    whole, nearest = np.arange(1000) < 600, np.arange(1000) < 450
    cells = pd.concat([frame_of({"a": [60.0]}), frame_of({"a": [45.0]}, "knn/top1")])
    (found,) = judge(plan, cells, Bits({"a-0": whole, "knn": nearest}))
    assert found.verdict == "supported"
    assert found.effect == 15
    assert found.note.startswith("A (linear probe top-1) exceeds a (knn top-1) by 15")


# --- trends, peaks, correlations ------------------------------------------------------------------


def test_a_trend_over_seeds_is_page_s_and_falls_where_it_does_not_rise():
    values = {name: [level, level + 0.3, level - 0.1] for level, name in enumerate("abcde")}
    rising = verdict_on(claim("rising", list("abcde"), metric=TOP1), values)
    falling = verdict_on(claim("falling", list("abcde"), metric=TOP1), values)
    assert (rising.verdict, falling.verdict) == ("supported", "contradicted")
    looks = {n: page_trend_test(np.array(list(values.values())).T[:n], method="exact").pvalue for n in (2, 3)}
    assert rising.p == falling.p == pytest.approx(2 * always_valid({1: 1 / 120, **looks}), rel=1e-4)
    assert rising.effect == falling.effect == pytest.approx(4)
    assert rising.test == "Page's test of a trend, not of each step, over 3 seeds"
    assert "not at the last cell" not in rising.note


def test_a_trend_of_one_seed_says_so_and_counts_orders():
    values = {name: [float(level)] for level, name in enumerate("abcdef")}
    found = verdict_on(
        claim("rising", list("abcdef"), metric="representation/rankme"), values, "representation/rankme"
    )
    assert found.p == pytest.approx(2 * always_valid({1: 1 / 720}))
    assert found.verdict == "supported"
    assert "one seed" in found.test
    assert (found.ci_low, found.ci_high) == (None, None)


def test_a_trend_whose_best_cell_is_not_the_last_says_where_it_is():
    values = {name: [level, level + 0.3, level - 0.1] for level, name in enumerate("abcde")}
    values["e"] = [3.5, 3.6, 3.4]
    values["d"] = [4.5, 4.6, 4.4]
    found = verdict_on(claim("rising", list("abcde"), metric=TOP1), values)
    assert found.verdict == "supported"
    assert "it is highest at d, not at the last cell" in found.note


@pytest.mark.parametrize(
    ("test", "verdict"), [("increasing", "contradicted"), ("decreasing", "contradicted")]
)
def test_a_curve_with_a_peak_inside_neither_increases_nor_decreases_at_every_step(test, verdict):
    values = {"a": [50.0, 50.2, 50.1], "b": [62.0, 62.1, 62.4], "c": [51.0, 51.3, 51.5]}
    found = verdict_on(claim(test, list("abc"), metric=TOP1), values)
    assert found.verdict == verdict


def test_increasing_is_an_order_of_every_step_from_the_last_cell_to_the_first():
    values = {"a": [50.0, 50.2, 50.1], "b": [52.0, 52.1, 52.4], "c": [58.0, 58.3, 58.5]}
    increasing = verdict_on(claim("increasing", list("abc"), metric=TOP1), values)
    order = verdict_on(claim("order", list("cba"), metric=TOP1), values)
    assert increasing.verdict == order.verdict == "supported"
    assert (increasing.p, increasing.effect, increasing.details) == (order.p, order.effect, order.details)


def test_values_that_differ_by_rounding_alone_show_no_trend():
    values = {name: [1.0 + 1e-15 * level] * 10 for level, name in enumerate("abcdef")}
    assert (
        verdict_on(
            claim("rising", list("abcdef"), metric="representation/rankme"), values, "representation/rankme"
        ).p
        == 1
    )


def test_a_peak_takes_one_inner_cell_above_both_ends():
    values = {
        "a": [50.0, 50.2, 50.1],
        "b": [62.0, 62.1, 62.4],
        "c": [58.0, 58.4, 58.1],
        "d": [51.0, 51.3, 51.5],
    }
    found = verdict_on(claim("interior_peak", list("abcd")), values)
    over = [max(seen_at_every_look(values[inner], values[end], "greater") for end in "ad") for inner in "bc"]
    assert found.verdict == "supported"
    assert found.p_strict == pytest.approx(2 * 2 * min(over))
    assert found.effect == pytest.approx(np.mean(values["b"]) - np.mean(values["d"]))
    assert found.note.startswith("B, the best of 2 inner cells, exceeds the higher end, d, by")


def test_a_peak_at_an_end_contradicts():
    values = {
        "a": [50.0, 50.2, 50.1],
        "b": [52.0, 52.1, 52.4],
        "c": [58.0, 58.4, 58.1],
        "d": [61.0, 61.3, 61.5],
    }
    found = verdict_on(claim("interior_peak", list("abcd")), values)
    under = max(seen_at_every_look(values[inner], values["d"], "less") for inner in "bc")
    assert found.verdict == "contradicted"
    assert found.p_strict == pytest.approx(2 * 2 * under)


def correlated(x, y, **fields):
    cells = [f"c{position}" for position in range(len(x))]
    one_claim = claim("correlated", [], x="representation/rankme", y=TOP1)
    frame = pd.concat(
        [
            frame_of(dict(zip(cells, x, strict=True)), "representation/rankme"),
            frame_of(dict(zip(cells, y, strict=True))),
        ]
    )
    (found,) = judge(plan_of([one_claim], cells, seeds=len(x[0]), **fields), frame, NoRecords())
    return found


def test_a_rank_correlation_is_of_the_means_of_all_cells():
    found = correlated(
        [[1, 3], [2, 5], [9, 9], [4, 40], [50, 51]], [[50, 51], [52, 52], [53, 53], [60, 61], [58, 60]]
    )
    # ranks of the means 2, 3.5, 9, 22, 50.5 and 50.5, 52, 53, 60.5, 59: one swap of neighbours
    assert found.effect == pytest.approx(0.9)
    # two seeds: no swap, or one of four; the first alone has the ranks 1, 2, 4, 3, 5 and 1, 2, 3, 5, 4
    orders = [spearmanr([1, 2, 4, 3, 5], order).statistic for order in itertools.permutations(range(1, 6))]
    first = np.mean(np.array(orders) >= spearmanr([1, 2, 4, 3, 5], [1, 2, 3, 5, 4]).statistic - 1e-9)
    assert found.p == pytest.approx(2 * always_valid({1: first, 2: 5 / 120}))
    assert found.seeds == 2
    assert "over 5 cells" in found.test


def test_cells_that_one_training_serves_are_one_point():
    rows = [[1], [2], [3], [4], [4]]
    found = correlated(rows, rows, trials={"c4": "c3"})
    assert "over 4 cells" in found.test


def test_a_suite_s_correlation_that_names_no_cells_is_over_those_of_its_members():
    member = plan_of([], "abcd", seeds=1)
    over_all = [claim("correlated", [], x="representation/rankme", y=TOP1)]
    suite = read_study(name="suite", include=["study"], claims=over_all)
    plan = StudyPlan(suite, (*member.members, suite), "digits", member.seeds, member.cells)
    values = {name: [float(position)] for position, name in enumerate("abcd")}
    frame = pd.concat([frame_of(values), frame_of(values, "representation/rankme")])
    (found,) = judge(plan, frame, NoRecords())
    assert found.effect == 1
    assert "over 4 cells" in found.test


def test_three_cells_are_too_few_for_a_correlation():
    found = correlated([[1], [2], [3]], [[1], [2], [3]])
    assert (found.verdict, found.p, found.effect) == ("undecided", None, None)
    assert found.note == "3 cells with both representation rankme and linear probe top-1."


def test_a_constant_has_no_correlation():
    found = correlated([[1], [1], [1], [1]], [[1], [2], [3], [4]])
    assert (found.p, found.effect, found.ci_low) == (1.0, None, None)
    assert "not defined" in found.note


# --- what isn't there -----------------------------------------------------------------------------


def test_cells_without_numbers_are_named():
    values = {"a": [62.0, 62.1], "b": [], "c": [math.nan, math.inf]}
    found = verdict_on(claim("order", ["a", "b", "c"]), values)
    assert (found.verdict, found.test, found.p, found.effect) == ("undecided", "no numbers yet", None, None)
    assert found.note == "Lacks linear probe top-1 of b, c."


def test_cells_without_a_common_seed_are_not_compared():
    found = verdict_on(claim("order", ["a", "b"]), {"a": [62.0, None], "b": [None, 61.0]})
    assert (found.verdict, found.test, found.p) == ("undecided", "none: no seed in common", None)
    trend = verdict_on(
        claim("rising", list("abc"), metric=TOP1), {"a": [1, 2, None], "b": [None, 1, 2], "c": [1, None, 2]}
    )
    assert trend.test == "none: no seed in common"


def test_two_names_of_one_training_are_equal_by_construction_and_cost_no_alpha():
    claims = [claim("equivalent", ["full", "none"], margin=1.5), claim("order", ["mlp", "none"])]
    values = {"mlp": [66.0, 66.2, 66.3], "none": [51.0, 51.5, 51.2], "full": [51.0, 51.5, 51.2]}
    plan = plan_of(claims, values, trials={"full": "none"})
    same, order = judge(plan, frame_of(values), NoRecords())
    assert (same.verdict, same.p, same.p_adjusted, same.test) == (
        "supported",
        None,
        None,
        "one training serves both",
    )
    assert "by construction, nothing was tested" in same.note
    assert order.p_adjusted == order.p
    before, _ = judge(plan, frame_of({}), NoRecords())
    assert (before.verdict, before.test) == ("undecided", "no numbers yet")


@pytest.mark.parametrize("test", ["order", "increasing", "decreasing"])
def test_an_order_of_one_training_with_itself_is_contradicted_by_construction(test):
    values = {"mlp": [66.0, 66.2, 66.3], "none": [51.0, 51.5, 51.2], "full": [51.0, 51.5, 51.2]}
    plan = plan_of([claim(test, ["mlp", "none", "full"])], values, trials={"full": "none"})
    (found,) = judge(plan, frame_of(values), NoRecords())
    assert (found.verdict, found.p, found.test) == ("contradicted", None, "one training serves both")
    assert "by construction, nothing was tested" in found.note


def test_one_training_by_two_metrics_is_no_identity():
    one_claim = claim("order", ["a", "a"], metrics=[TOP1, "knn/top1"])
    cells = pd.concat([frame_of({"a": [60.0, 60.3, 60.1]}), frame_of({"a": [45.0, 45.2, 45.3]}, "knn/top1")])
    (found,) = judge(plan_of([one_claim], ["a"]), cells, NoRecords())
    assert (found.verdict, found.p is None) == ("supported", False)


def test_networks_of_a_theory_study_are_its_replicates():
    values = {"k0": [16.0, 15.5, 16.0, 15.8], "k8": [8.0, 8.1, 8.0, 8.3]}
    rank = "theory/embedding_effective_rank"
    found = verdict_on(claim("order", ["k0", "k8"], metric=rank), values, rank, toy=True)
    assert (found.verdict, found.seeds, found.unit) == ("supported", 4, "")
    assert found.test == "paired t over 4 networks"


def test_a_study_without_claims_has_no_judgements():
    plan = plan_of([], ["a"])
    assert judge(plan, frame_of({"a": [1.0]}), NoRecords()) == []
    assert claims_csv([]).splitlines() == [",".join(CSV_COLUMNS)]


# --- many claims ------------------------------------------------------------------------------------


def test_holm_runs_over_a_family_whether_its_claims_have_numbers_or_not():
    values = {"a": [66.0, 66.2, 66.3], "b": [60.0, 60.3, 60.1], "c": [59.6, 59.7, 60.2], "d": []}
    claims = [claim("order", ["a", "b"]), claim("order", ["b", "c"]), claim("order", ["c", "d"])]
    strong, weak, missing = judge(plan_of(claims, values), frame_of(values), NoRecords())
    assert strong.p_adjusted == max(3 * strong.p_pooled, strong.p)
    assert weak.p_adjusted == max(2 * weak.p_pooled, weak.p)
    assert missing.p_adjusted is None
    assert [one.verdict for one in (strong, weak, missing)] == ["supported", "undecided", "undecided"]


def test_claims_of_one_number_are_a_family_and_toy_networks_another():
    values = {"a": [66.0, 66.2, 66.3], "b": [60.0, 60.3, 60.1]}
    claims = [claim("order", ["a", "b"], group=number) for number in (1, 1, 2, None)]
    families = [one.family for one in judge(plan_of(claims, values), frame_of(values), NoRecords())]
    assert families == ["claim 1", "claim 1", "claim 2", "study"]
    loss = [one | {"metric": "theory/loss"} for one in claims]
    toys = judge(plan_of(loss, values, toy=True), frame_of(values, "theory/loss"), NoRecords())
    assert {one.family for one in toys} == {"toy networks"}


def test_what_another_family_asserts_costs_a_claim_nothing():
    values = {"a": [66.0, 66.2, 66.3], "b": [60.0, 60.3, 60.1]}
    alone = claim("order", ["a", "b"], group=1)
    (lone,) = judge(plan_of([alone], values), frame_of(values), NoRecords())
    beside, *_ = judge(
        plan_of([alone, *[claim("order", ["a", "b"], group=2)] * 5], values), frame_of(values), NoRecords()
    )
    assert beside.p_adjusted == lone.p_adjusted


def test_a_suite_judges_its_members_claims_by_its_own_alpha(tmp_path):
    values = {"a": [62.0, 62.4, 62.3], "b": [61.0, 61.1, 61.2]}
    lenient = verdict_on(claim("order", ["a", "b"]), values)
    strict = verdict_on(claim("order", ["a", "b"]), values, alpha=0.01)
    assert 0.01 < lenient.p < 0.05
    assert (lenient.verdict, strict.verdict) == ("supported", "undecided")
    member = plan_of([claim("order", ["a", "b"])], values, seeds=3)
    suite = read_study(name="suite", include=["study"], statistics={"alpha": 0.01})
    plan = StudyPlan(suite, member.members, "digits", member.seeds, member.cells)
    assert judge(plan, frame_of(values), NoRecords())[0].verdict == "undecided"


def test_a_claim_names_cells_of_included_studies():
    values = {"a": [62.0, 62.1, 62.4], "b": [51.0, 51.1, 51.2]}
    member = plan_of([], values)
    claims = [claim("order", ["study/a", "study/b"])]
    suite = read_study(name="suite", include=["study"], claims=claims)
    plan = StudyPlan(suite, (*member.members, suite), "digits", member.seeds, member.cells)
    (found,) = judge(plan, frame_of(values), NoRecords())
    assert (found.study, found.verdict) == ("suite", "supported")


@given(st.data(), st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_swapping_two_cells_flips_effect_and_verdict(data, n):
    row = st.lists(st.integers(5000, 5100).map(lambda value: value / 100), min_size=n, max_size=n)
    values = {"a": data.draw(row), "b": data.draw(row)}
    one, other = (verdict_on(claim("order", cells), values) for cells in (["a", "b"], ["b", "a"]))
    assert other.effect == pytest.approx(-one.effect, abs=1e-9)
    assert (other.ci_low, other.ci_high) == pytest.approx((-one.ci_high, -one.ci_low), abs=1e-9)
    assert other.p == pytest.approx(one.p)
    flipped = {"supported": "contradicted", "contradicted": "supported", "undecided": "undecided"}
    assert other.verdict == flipped[one.verdict]


@given(st.data(), st.sampled_from([0.001, 3.0, 1000.0]), st.integers(-40, 400))
@settings(max_examples=25, deadline=None)
def test_neither_the_unit_nor_a_constant_that_all_share_changes_a_verdict(data, factor, constant):
    row = st.lists(st.integers(5000, 5100).map(lambda value: value / 100), min_size=3, max_size=3)
    values = {name: data.draw(row) for name in "abc"}
    moved = {name: [factor * (value + constant) for value in row] for name, row in values.items()}
    for one_claim, scaled in (
        (claim("order", list("abc"), margin=0.25), {"margin": 0.25 * factor}),
        (claim("equivalent", ["a", "b"], margin=0.5), {"margin": 0.5 * factor}),
        (claim("rising", list("abc"), metric=TOP1), {}),
        (claim("interior_peak", list("abc")), {}),
    ):
        before, after = verdict_on(one_claim, values), verdict_on(one_claim | scaled, moved)
        assert after.p == pytest.approx(before.p, rel=1e-6)
        assert after.effect == pytest.approx(factor * before.effect, rel=1e-6, abs=1e-6 * factor)
        assert after.verdict == before.verdict


# --- seed by seed -----------------------------------------------------------------------------------


def test_a_path_ends_at_the_claim_and_is_what_fewer_seeds_said():
    rng = np.random.default_rng(3)
    values = {name: (60 - position + rng.normal(0, 0.3, 5)).tolist() for position, name in enumerate("abc")}
    whole = verdict_on(claim("order", list("abc")), values)
    assert [point.seeds for point in whole.path] == [1, 2, 3, 4, 5]
    for point in whole.path:
        part = verdict_on(
            claim("order", list("abc")), {name: row[: point.seeds] for name, row in values.items()}
        )
        assert point[1:] == (part.effect, part.ci_low, part.ci_high, part.p)


@given(st.integers(0, 300))
@settings(max_examples=25, deadline=None)
def test_a_verdict_stays_as_seeds_are_added(draw):
    rng = np.random.default_rng(draw)
    values = {name: (60 - position + rng.normal(0, 0.6, 6)).tolist() for position, name in enumerate("abcd")}
    for one_claim in (
        claim("order", list("abc")),
        claim("equivalent", ["a", "b"], margin=2),
        claim("interior_peak", list("abc")),
        claim("falling", list("abcd"), metric=TOP1),
    ):
        p_values = [point.p for point in verdict_on(one_claim, values).path if point.p is not None]
        assert p_values == sorted(p_values, reverse=True)


def test_a_verdict_rests_on_the_first_twenty_seeds():
    rng = np.random.default_rng(0)
    values = {name: (60 + rng.normal(0, 1, 25)).tolist() for name in "ab"}
    found = verdict_on(claim("order", ["a", "b"]), values)
    first = verdict_on(claim("order", ["a", "b"]), {name: row[:20] for name, row in values.items()})
    assert (found.seeds, found.p, found.effect) == (20, first.p, first.effect)
    assert found.test == "paired t over the first 20 of 25 seeds"


def test_path_csv_holds_a_line_per_claim_and_number_of_seeds():
    values = {"a": [66.0, 66.2, 66.3], "b": [60.0, 60.3, 60.1]}
    judgements = judge(plan_of([claim("order", ["a", "b"])], values), frame_of(values), NoRecords())
    lines = list(csv.DictReader(io.StringIO(path_csv(judgements))))
    assert [line["seeds"] for line in lines] == ["1", "2", "3"]
    assert (lines[0]["p"], lines[0]["ci_low"]) == ("", "")
    assert float(lines[2]["p"]) == judgements[0].p


# --- seeds needed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "spread"), [(1.0, 0.4), (0.5, 0.6), (0.1, 0.5)])
def test_the_power_of_t_is_that_of_statsmodels(shift, spread):
    for n in (2, 3, 10, 400):
        expected = TTestPower().power(shift / spread, n, 0.025, alternative="larger")
        assert t_power(shift, spread, n, 0.025) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [-6.0, 1.3, 2.48, 4.92])
def test_the_power_of_large_effects_is_a_number_for_any_number_of_seeds(size):
    found = [t_power(size, 1.0, n, 0.025) for n in range(40, 1001, 30)]
    assert found == pytest.approx([float(size > 0)] * len(found), abs=1e-6)


def fewest_seeds(size, alpha, have=1):
    """Fewest seeds by which statsmodels' power of the t test reaches 0.8 at the level of that look."""
    return next(
        n
        for n in range(max(2, have + 1), MOST_LOOKS + 1)
        if TTestPower().power(size, n, look_level(n, alpha / 2), alternative="larger") >= 0.8
    )


def test_the_seeds_needed_for_an_order_are_those_of_statsmodels():
    sample = Replicates((0.9, 0.3, 0.7, 0.0, 0.5))
    test = ClaimTest(Beyond(sample, 0, 1), Beyond(sample, 0, -1))
    assert seeds_needed(test, 0.05, 0.05, 0.8) == fewest_seeds(sample.effect / sample.spread, 0.05)


def test_a_chain_that_leans_to_be_contradicted_pays_for_its_steps_in_seeds_too():
    values = {"a": [60.0, 60.4, 61.2], "b": [61.0, 61.3, 61.9]}
    chain = verdict_on(claim("order", list("abc")), values | {"c": [55.0, 54.8, 55.1]})
    gaps = Replicates(tuple(x - y for x, y in zip(values["b"], values["a"], strict=True)))
    pooled = pooled_spread(
        {name: dict(enumerate(row)) for name, row in (values | {"c": [55.0, 54.8, 55.1]}).items()}
    )
    expected = next(
        n
        for n in range(4, 21)
        if pooled_power(gaps.effect, pooled.sd, n, 2 * (n - 1), look_level(n, 0.0125), look_level(n, 0.0125))
        >= 0.8
    )
    assert chain.verdict == "undecided"
    assert chain.seeds_needed == expected


def test_the_seeds_needed_for_equivalence_bring_the_power_and_hardly_more():
    sample = Replicates((0.5, -0.4, 0.2, 0.3))
    holds = AllOf([Beyond(sample, -1, 1), Beyond(sample, 1, -1)])
    fails = AnyOf([Beyond(sample, -1, -1), Beyond(sample, 1, 1)])
    n = seeds_needed(ClaimTest(holds, fails), 0.05, 0.05, 0.8)
    rng = np.random.default_rng(0)

    def power(n):
        draws = rng.normal(sample.effect, sample.spread, (20_000, n))
        above = ttest_1samp(draws, -1, axis=1, alternative="greater").pvalue
        below = ttest_1samp(draws, 1, axis=1, alternative="less").pvalue
        return np.mean(np.maximum(above, below) <= look_level(n, 0.025))

    assert power(n) > 0.8 > power(n - 1)


def test_an_undecided_claim_says_how_many_seeds_its_share_of_alpha_needs():
    values = {"a": [62.0, 61.6, 62.5], "b": [61.0, 61.1, 61.2]}
    alone = verdict_on(claim("order", ["a", "b"]), values)
    first, second = judge(plan_of([claim("order", ["a", "b"])] * 2, values), frame_of(values), NoRecords())
    sample = Replicates(tuple(x - y for x, y in zip(values["a"], values["b"], strict=True)))
    for found, alpha in ((alone, 0.05), (first, 0.025), (second, 0.025)):
        needed = fewest_seeds(sample.effect / sample.spread, alpha, have=3)
        assert found.verdict == "undecided"
        assert found.seeds_needed == needed
        assert f"undecided: it would take about {needed} seeds for a power of 80 %" in found.note


def test_an_effect_too_small_for_twenty_seeds_says_so():
    found = verdict_on(claim("order", ["a", "b"]), {"a": [60.0, 62.0, 61.0001], "b": [61.0, 61.0, 61.0]})
    assert found.seeds_needed is None
    assert "more than 20 seeds" in found.note


def test_a_trend_that_is_perfect_and_still_undecided_needs_more_seeds_than_there_are():
    values = {name: [float(level), level + 1.0] for level, name in enumerate("abc")}
    found = verdict_on(claim("rising", list("abc"), metric=TOP1), values)
    assert found.p == pytest.approx(2 * always_valid({1: 1 / 6, 2: 1 / 36}))
    assert 2 < found.seeds_needed < 6


def test_a_trend_needs_as_many_seeds_as_bring_its_power():
    rng = np.random.default_rng(1)
    slope = 0.25

    def blocks(n):
        return slope * np.arange(5) + rng.normal(size=(n, 5))

    many = Rising(blocks(4000), looks=False)  # their mean correlation and its spread are nearly the true ones
    n = next(n for n in range(2, 100) if many.power(n, 0.025, 0.025) >= 0.8)
    supported = [Rising(blocks(n), looks=False).p("pooled") <= 0.025 for _ in range(500)]
    assert np.mean(supported) == pytest.approx(0.8, abs=0.07)


# --- how often it errs ------------------------------------------------------------------------------


def allowed(alpha, draws):
    return alpha + 3 * benchmark.standard_error(alpha, draws)


ASSUMED = [scenario for scenario in benchmark.SCENARIOS if not scenario.outside]


@pytest.mark.parametrize("scenario", ASSUMED[::4], ids=lambda scenario: scenario.name)
def test_where_nothing_is_to_be_found_few_draws_have_a_verdict_at_any_number_of_seeds(scenario):
    assert benchmark.false_verdicts(scenario, 60) <= allowed(benchmark.ALPHA, 60)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ASSUMED, ids=lambda scenario: scenario.name)
def test_where_nothing_is_to_be_found_verdicts_are_no_more_frequent_than_alpha(scenario):
    assert benchmark.false_verdicts(scenario, 1000, seed=1) <= allowed(benchmark.ALPHA, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("effect", benchmark.EFFECTS, ids=lambda effect: effect.name)
def test_effects_are_supported_at_least_as_often_as_foretold(effect):
    error = benchmark.standard_error(effect.foretold, 1000)
    assert benchmark.supported(effect, 1000, seed=1) >= effect.foretold - 3 * error - 0.02


# --- words, files, tables -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "uncertainty", "texts"),
    [
        ((1.6, 1.2), 0.4, ["1.6", "1.2"]),
        ((-1.6, 1.2), 0.15, ["−1.60", "1.20"]),
        ((23.4,), 12.0, ["23.4"]),
        ((-0.004,), 0.3, ["0.0"]),
        ((1.23e-8,), 3e-9, ["1.23e−08"]),
        ((14.8,), 0.0, ["14.8"]),
    ],
)
def test_numbers_end_where_their_uncertainty_begins(values, uncertainty, texts):
    assert wording.rounded(values, uncertainty) == texts


def test_a_note_reads_as_a_sentence():
    values = {"DirectCLR": [62.5, 62.7, 63.0], "linear": [61.0, 61.1, 61.3]}
    plan = plan_of([claim("order", ["a", "b"])], ["a", "b"])
    cells = tuple(
        PlannedCell(cell.study, cell.cell, {"a": "DirectCLR", "b": "the linear projector"}[cell.cell], cell.seed,
                    cell.trial, cell.evaluations)
        for cell in plan.cells
    )  # fmt: skip
    plan = StudyPlan(plan.study, plan.members, plan.recipe, plan.seeds, cells)
    frame = frame_of({"a": values["DirectCLR"], "b": values["linear"]})
    (found,) = judge(plan, frame, NoRecords())
    assert found.note == (
        "DirectCLR exceeds the linear projector by 1.6 points (95 % interval 1.1 to 2.1, paired over 3 seeds)."
    )


def test_claims_csv_holds_every_claim_and_no_formula():
    nasty = claim("order", ["a", "b"], group=1) | {"text": "=HYPERLINK(1)"}
    values = {"a": [66.0, 66.2, 66.3], "b": [60.0, 60.3, 60.1], "c": []}
    judgements = judge(plan_of([nasty, claim("order", ["b", "c"])], values), frame_of(values), NoRecords())
    first, second = csv.DictReader(io.StringIO(claims_csv(judgements)))
    assert tuple(first) == CSV_COLUMNS
    assert first["text"] == "'=HYPERLINK(1)"
    assert (first["claim"], first["study"], first["group"]) == ("claim_order_0", "study", "1")
    assert float(first["effect"]) == judgements[0].effect
    assert float(first["p_adjusted"]) == judgements[0].p_adjusted
    assert (second["verdict"], second["p"], second["effect"]) == ("undecided", "", "")


@pytest.mark.parametrize(
    ("seeds", "method"),
    [((0,), "McNemar on 500 images of one seed"), ((0, 1, 2), "paired t over 3 seeds")],
)
def test_a_stored_study_is_judged_from_its_records(tmp_path, seeds, method):
    plan, store = make_plan(["table1"], "digits", seeds), Store(tmp_path)
    means = {"mlp": 95, "subvector": 85, "linear": 75, "none": 55}
    spread = {"mlp": (0, 0.2, -0.2), "subvector": (0.1, 0, 0.2), "linear": (0, 0, 0.3), "none": (0, 0.4, 0)}
    fill(plan, store, top1=lambda config: means[config.head.kind] + spread[config.head.kind][config.seed])
    study = plan.studies[0]
    ordering = judge(study, cells_frame(study, store), store)[0]
    assert ordering.verdict == "supported"
    assert method in ordering.test


def test_a_table_agrees_with_the_paper_as_far_as_its_order_does(tmp_path):
    plan = make_plan(["table1"], "digits", (0, 1))
    store = Store(tmp_path)
    ours = {"mlp": 95.0, "subvector": 85.0, "linear": 75.0, "none": 55.0}
    fill(
        plan,
        store,
        top1=lambda config: ours[config.head.kind] - 15 * (config.seed and config.head.kind == "mlp"),
    )
    study = plan.studies[0]
    (table, *_) = tables.fill(study, cells_frame(study, store), holes(study, store))
    found = table_agreement(study, table)
    assert found.rows == (1.0, pytest.approx(2 / 24), 4)
    assert found.by_seed == (1.0, pytest.approx(2 / 3))
    assert str(found) == (
        "Kendall's τ of our order with the paper's: 1 over 4 rows (two-sided p = 0.083; 0.67 to 1 by single seeds)"
    )


def test_rows_of_one_training_count_once_in_a_table_s_agreement(tmp_path):
    """Table 1's linear projector is Table 2's trainable one."""
    plan = make_plan(["table2"], "digits", (0,))
    study, store = plan.studies[0], Store(tmp_path)
    fill(plan, store)
    (table, *_) = tables.fill(study, cells_frame(study, store), holes(study, store))
    twice = replace(
        table,
        rows=(*table.rows, table.rows[2]),
        spec=table.spec.model_copy(update={"rows": (*table.spec.rows, table.spec.rows[2])}),
    )
    assert table_agreement(study, table).rows.n == 5  # none and orthogonal are one training
    assert table_agreement(study, twice) == table_agreement(study, table)


def test_a_table_without_numbers_has_no_agreement(tmp_path):
    plan = make_plan(["table1"], "digits", (0,))
    study = plan.studies[0]
    store = Store(tmp_path)
    (table, *_) = tables.fill(study, cells_frame(study, store), holes(study, store))
    assert table_agreement(study, table) is None


def test_decisions_come_in_the_order_of_their_tests():
    def shifted(by):
        sample = Replicates(tuple(by + value for value in (0.1, -0.1, 0.05)))
        return ClaimTest(Beyond(sample, 0, 1), Beyond(sample, 0, -1))

    verdicts = [one.verdict for one in decide([shifted(0.0), shifted(5.0), shifted(-5.0)], 0.05)]
    assert verdicts == ["undecided", "supported", "contradicted"]
    assert decide([], 0.05) == []
