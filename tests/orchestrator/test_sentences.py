import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.exhibits import Table, TableRow
from orchestrator.report import sentences
from orchestrator.report.tables import FilledTable, Row, TableStyle
from orchestrator.report.uncertainty import Uncertainty

TOP1 = "linear_probe/top1"


def table_of(values, paper=None, *, shared=(), metric=TOP1, networks=False):
    """A table of rows "a", "b", ... with the values of each by seed.

    Args:
        values: a row's values, None where a seed has none.
        paper: the paper's number of each row, or None.
        shared: pairs of rows that one training serves; the second takes the values of the first.
    """
    names = [chr(ord("a") + position) for position in range(len(values))]
    values, training = list(values), list(range(len(values)))
    for first, second in shared:
        values[second], training[second] = values[first], first
    rows = [
        Row("study", name, name, (name,), metric, dict(enumerate(some)), None, published, (), trained, False)
        for name, some, published, trained in zip(
            names, values, paper or [None] * len(values), training, strict=True
        )
    ]
    uncertainty = Uncertainty({row.key: row.known for row in rows if row.known})
    rows = [replace(row, ours=uncertainty.interval(row.key)) if row.known else row for row in rows]
    spec = Table(
        name="t",
        title="T",
        source="Table 1",
        columns=("x",),
        rows=tuple(TableRow(cell=row.cell, columns=row.columns) for row in rows),
    )
    return FilledTable(
        "t",
        "study",
        spec,
        "digits",
        "",
        "ImageNet",
        (0, 1, 2),
        networks,
        tuple(rows),
        {},
        uncertainty,
    )


def test_highest_lowest_gap_and_order_are_named():
    table = table_of([(62.5, 64.0), (60.0, 61.0), (51.0, 51.5)], [66.5, 51.5, 61.1])
    matrix = np.array([(62.5, 64.0), (60.0, 61.0), (51.0, 51.5)])
    residuals = matrix - matrix.mean(1, keepdims=True) - matrix.mean(0) + matrix.mean()
    sd = np.sqrt((residuals**2).sum() / 2)
    half = scipy.stats.t.ppf(1 - 0.05 / 3 / 2, 2) * sd  # sqrt(2 / 2 seeds), three pairs
    assert sentences.ours(table) == (
        f"“a” is highest, with 63.2, and “c” lowest, with 51.2: 12.0 points apart (95 % interval "
        f"{12 - half:.1f} to {12 + half:.1f}, widened for the choice among 3). "
        "2 of 3 pairs come in the paper's order."
    )


def test_an_interval_that_includes_zero_leaves_the_order_open():
    said = sentences.ours(table_of([(60.0, 61.0, 62.0), (61.0, 60.0, 61.5)]))
    assert ": which is higher is open)" in said
    assert "widened" not in said  # there was no choice


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ([(None, None), (None, None)], {}, "No row has a number yet."),
        ([(60.0, 61.0), (None, None)], {}, "“a” has 60.5: 2 seeds. 1 of 2 rows has no number yet."),
        ([(60.0, 61.0), (0.0, 0.0)], {"shared": [(0, 1)]}, "“a” and “b” have 60.5: 2 seeds."),
        ([(60.0, 61.0), (60.5, 60.5)], {}, "All 2 settings have the same mean, 60.5."),
        ([(60.0,), (50.0,)], {},
         "“a” is highest, with 60.0, and “b” lowest, with 50.0: 10.0 points apart (1 seed, so no interval)."),
        ([(60.0, 61.0), (50.0, None)], {},
         "“a” is highest, with 60.5, and “b” lowest, with 50.0: 10.5 points apart (no interval)."),
        ([(4.0, 4.0), (0.0, 0.0)], {"metric": "theory/collapsed_directions", "networks": True},
         "“a” is highest, with 4.0, and “b” lowest, with 0.0: 4.0 apart (no interval)."),
        ([(60.0,), (60.01,)], {}, "“b” is highest, with 60.0, and “a” lowest, with 60.0: less than 0.1 points apart (1 "
         "seed, so no interval)."),
        ([(60.0,), (float("nan"),)], {}, "“a” has 60.0: 1 seed. 1 of 2 rows has no number yet."),
        ([(60.0,), (50.0,)], {"paper": [1.0, 2.0]}, "“a” is highest, with 60.0, and “b” lowest, with 50.0: 10.0 points "
         "apart (1 seed, so no interval). The order is not the paper's."),
    ],
)  # fmt: skip
def test_what_there_is_to_say_is_said(values, options, said):
    assert sentences.ours(table_of(values, **options)) == said


def test_without_the_papers_numbers_nothing_is_said_of_its_order():
    table = table_of([(60.0,), (50.0,)], [1.0, 2.0])
    assert "paper" in sentences.ours(table)
    assert "paper" not in sentences.ours(replace(table, style=TableStyle(paper=False)))


numbers = st.integers(0, 40).map(lambda n: 50 + n / 4) | st.none()


@st.composite
def tables(draw):
    rows, seeds = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    values = draw(st.lists(st.tuples(*[numbers] * seeds), min_size=rows, max_size=rows))
    paper = draw(st.lists(st.sampled_from([None, 51.5, 61.1, 62.7, 66.5]), min_size=rows, max_size=rows))
    shared = [(0, rows - 1)] if rows > 1 and draw(st.booleans()) else []
    return table_of(values, paper, shared=shared)


@settings(max_examples=300, deadline=None)
@given(tables())
def test_whatever_the_numbers_the_sentence_is_true(table):
    said = sentences.ours(table)
    means = {row.cell: np.mean(list(row.known.values())) for row in table.rows if row.known}
    lacking = len(table.rows) - len(means)
    assert ("no number yet" in said) == (lacking > 0 and bool(means))
    assert (said == "No row has a number yet.") == (not means)
    high, low = (choose(means.values(), default=None) for choose in (max, min))
    if "highest" in said:
        first, last = said.split(" lowest")[0].split("highest")
        assert set(re.findall("“(.)”", first)) == {cell for cell, mean in means.items() if mean == high}
        assert set(re.findall("“(.)”", last)) == {cell for cell, mean in means.items() if mean == low}
        assert high > low
    elif "have the same mean" in said:
        assert high == low
    elif means:
        assert set(re.findall("“(.)”", said)) == set(means)
    distinct = {}
    for row in table.rows:
        if row.known:
            distinct.setdefault(row.training, row)
    pairs = [
        (means[a.cell] - means[b.cell], a.paper - b.paper)
        for a, b in itertools.combinations(distinct.values(), 2)
        if None not in (a.paper, b.paper) and a.paper != b.paper
    ]
    agree = sum(ours * theirs > 0 for ours, theirs in pairs)
    if counted := re.search(r"(\d+) of (\d+) pairs come in the paper's order", said):
        assert (agree, len(pairs)) == tuple(map(int, counted.groups()))
    elif "The order is the paper's" in said:
        assert agree == len(pairs) > 0
    elif "The order is not the paper's" in said:
        assert (agree, len(pairs)) == (0, 1)
    else:
        assert not pairs or high == low
    reported = sum(row.paper is not None for row in distinct.values())
    among = re.search(r" among the (\d+) that it reports\.", said)
    assert (int(among[1]) if among else len(distinct)) == (reported if "paper's" in said else len(distinct))


def test_rows_of_one_label_are_told_apart_by_what_the_table_says_of_them():
    table = table_of([(60.0,), (50.0,)])
    same = replace(table, rows=tuple(replace(row, label="DirectCLR") for row in table.rows))
    assert sentences.ours(same).startswith("“DirectCLR: a” is highest, with 60.0, and “DirectCLR: b” lowest")
