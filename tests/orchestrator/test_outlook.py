import numpy as np
import pandas as pd
from test_claims import TOP1, NoRecords, claim, frame_of, plan_of

from orchestrator.report.claims.outlook import Outlook, outlooks


def outlook_on(one_claim, values, max_seeds=20, metric=TOP1):
    plan = plan_of([one_claim], values, seeds=max(map(len, values.values())))
    (found,) = outlooks(plan, frame_of(values, metric), NoRecords(), max_seeds)
    return found


def test_a_clear_order_is_decided_and_asks_for_nothing():
    found = outlook_on(claim("order", ["a", "b"]), {"a": [60.0, 60.1, 60.3], "b": [50.0, 50.2, 50.1]})
    assert found == Outlook("study", "claim_order_0", "decided", (), 3, None, "supported")


def test_a_likely_order_asks_for_a_seed_of_each_of_its_cells():
    found = outlook_on(
        claim("order", ["a", "b"]), {"a": [60.0, 60.5, 61.3], "b": [59.6, 59.0, 59.9], "c": [1, 2, 3]}
    )
    assert (found.state, found.cells) == ("open", (("study", "a"), ("study", "b")))
    assert 3 < found.seeds_needed <= 20
    assert found.reason == f"needs about {found.seeds_needed} seeds"


def test_a_difference_far_below_the_spread_is_hopeless_within_the_cap():
    found = outlook_on(claim("order", ["a", "b"]), {"a": [60.0, 62.0, 61.0], "b": [61.0, 60.9, 61.0]})
    assert (found.state, found.cells) == ("hopeless", ())


def test_a_difference_far_below_the_spread_is_not_given_up_after_two_seeds():
    found = outlook_on(claim("order", ["a", "b"]), {"a": [60.0, 62.0], "b": [61.0, 61.0]})
    assert (found.state, found.cells) == ("open", (("study", "a"), ("study", "b")))
    assert "2 of 3 seeds" in found.reason


def test_a_claim_at_the_cap_is_hopeless():
    values = {"a": [60.0, 60.5, 61.3], "b": [59.6, 59.0, 59.9]}
    assert outlook_on(claim("order", ["a", "b"]), values, max_seeds=3).state == "hopeless"


def test_one_seed_of_a_metric_that_needs_two_is_open():
    found = outlook_on(claim("above", ["a"], metric="representation/rankme", value=3), {"a": [30.0]},
                       metric="representation/rankme")  # fmt: skip
    assert (found.state, found.cells, found.seeds_needed) == ("open", (("study", "a"),), None)


def test_cells_without_numbers_are_hopeless():
    found = outlook_on(claim("order", ["a", "b"]), {"a": [60.0, 60.2], "b": [None, None]})
    assert (found.state, found.cells) == ("hopeless", ())


def test_a_correlation_over_cells_is_hopeless_as_seeds_bring_no_cells():
    plan = plan_of([claim("correlated", [], x=TOP1, y="knn/top1")], list("abcde"), seeds=2)
    rng = np.random.default_rng(0)
    frames = [
        frame_of({name: rng.normal(size=2).tolist() for name in "abcde"}, metric)
        for metric in (TOP1, "knn/top1")
    ]
    (found,) = outlooks(plan, pd.concat(frames), NoRecords(), 20)
    assert (found.state, found.cells) == ("hopeless", ())
    assert "more cells" in found.reason
