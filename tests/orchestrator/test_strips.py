from test_sentences import table_of

from orchestrator.report import strips


def test_dots_stand_on_the_scale_of_all_rows_with_a_bar_at_the_mean():
    table = table_of([(60.0, 62.0), (70.0, 80.0), (None, None)])
    assert strips.ends(table) == ("60.0", "80.0")
    first, second = (strips.strip(table, row) for row in table.rows[:2])
    # 124 pixels for 20 points, from 4 on
    assert first.places == ("4.0", "16.4")
    assert second.places == ("66.0", "128.0")
    assert (first.mean, second.mean) == ("10.2", "97.0")
    assert second.spoken == "seed 0: 70.0, seed 1: 80.0"
    assert strips.strip(table, table.rows[2]) is None


def test_a_single_run_has_a_dot_without_a_bar():
    table = table_of([(60.0,), (70.0,)])
    assert strips.strip(table, table.rows[0]).mean is None


def test_where_nothing_varies_there_is_nothing_to_see():
    table = table_of([(60.0, 60.0), (60.0, 60.0)])
    assert strips.ends(table) is None
    assert strips.strip(table, table.rows[0]) is None


def test_of_many_networks_the_range_is_spoken():
    table = table_of([tuple(range(20)), tuple(range(1, 21))], metric="theory/loss", networks=True)
    assert strips.strip(table, table.rows[0]).spoken == "20 networks from 0.000 to 19.000"
