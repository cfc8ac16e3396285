import re

import pytest
from test_claims import claim, verdict_on

from orchestrator.report import paths

VALUES = {"a": [62.0, 63.0, 62.5, 64.0, 63.5], "b": [60.0, 61.5, 60.5, 61.0, 62.5]}


def numbers(path):
    """Values of the axis by its ticks: a straight line through the places of two of them."""
    (y0, v0), (y1, v1) = sorted((float(y), float(v.replace("−", "-"))) for y, v in path.ticks)[
        :: len(path.ticks) - 1
    ]
    return lambda y: v0 + (float(y) - y0) * (v1 - v0) / (y1 - y0)


def test_dots_stand_at_the_estimates_after_each_number_of_seeds():
    found = verdict_on(claim("order", ["a", "b"]), VALUES)
    path = paths.path(found)
    value = numbers(path)
    differences = [first - second for first, second in zip(*VALUES.values(), strict=True)]
    expected = [sum(differences[:n]) / n for n in (point.seeds for point in found.path)]
    assert [value(look.y) for look in path.looks] == pytest.approx(expected, abs=0.1)
    assert [look.label for look in path.looks] == [str(point.seeds) for point in found.path]
    assert path.looks[-1].label == "5"
    last = found.path[-1]
    assert (value(path.looks[-1].low), value(path.looks[-1].high)) == pytest.approx(
        (last.ci_low, last.ci_high), abs=0.1
    )
    assert value(path.references[0]) == pytest.approx(0, abs=0.05)
    assert re.match(r"Estimate: .* at 5 seeds, 95 % interval \[", path.spoken)


def test_a_single_look_has_no_picture():
    values = {name: some[:1] for name, some in VALUES.items()}
    assert paths.path(verdict_on(claim("order", ["a", "b"]), values)) is None


@pytest.mark.parametrize(
    ("one", "held"),
    [
        (claim("order", ["a", "b"], margin=1.5), (1.5,)),
        (claim("equivalent", ["a", "b"], margin=1.5), (1.5, -1.5)),
        (claim("above", ["a"], metric="linear_probe/top1", value=60), (60,)),
        (claim("rising", ["b", "a", "a"], metric="linear_probe/top1"), (0.0,)),
    ],
)
def test_a_claim_is_held_against_its_margin_its_value_or_zero(one, held):
    assert paths.references(verdict_on(one, VALUES)) == held


def test_every_mark_lies_inside_the_picture():
    path = paths.path(verdict_on(claim("equivalent", ["a", "b"], margin=1.5), VALUES))
    for look in path.looks:
        assert paths.LEFT < float(look.x) < paths.WIDTH
        for y in (look.y, look.low, look.high):
            assert y is None or paths.TOP <= float(y) <= paths.HEIGHT - paths.BOTTOM
