import csv
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from rich.console import Console
from synthetic import fill, write_suite

from orchestrator.plan import make_plan
from orchestrator.report import escape, numbers, tables, terminal
from orchestrator.report.content import make_report
from orchestrator.report.frames import cells_frame, holes
from orchestrator.report.latex import to_latex
from orchestrator.report.markdown import to_markdown
from orchestrator.report.statistics import Interval
from orchestrator.report.tables import TableStyle
from orchestrator.report.uncertainty import Uncertainty
from orchestrator.store import Store

VALUES = {
    "mlp": (62.5, 64.0), "linear": (60.0, 61.0), "none": (51.0, 51.5), "subvector": (62.0, 62.5),
    "orthogonal": (51.0, 51.5), "diagonal": (59.0, 61.0), "low_rank": (62.5, 62.5),
}  # fmt: skip
"""Top-1 accuracy by head, of two seeds."""

NASTY = [
    '=HYPERLINK("http://x","y")',
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "a|b\nc",
    "<script>alert(1)</script>",
    "50% & more_ #1 {x} ~ ^ \\ $5",
    "[4em] row",
    "* starred",
    '"quoted", comma',
    "*bold* _it_ `code` [a](b)",
    "✓ done",
    "[red]markup[/red]",
    "日本語",
]


@pytest.fixture(scope="module")
def plan():
    return make_plan(["quickstart"], "digits")


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The tables of a training study and of a theory study, all numbers there."""
    folder = tmp_path_factory.mktemp("suite")
    plan, store = make_plan([str(write_suite(folder))]), Store(folder / "store")
    fill(plan, store)
    return make_report(plan, plan.studies[0], store).tables


def filled(plan, store, **style):
    study = plan.studies[0]
    return tables.fill(study, cells_frame(study, store), holes(study, store), TableStyle(**style))


def by_head(config):
    return VALUES[config.head.kind][config.seed]


def two_way_sd(values):
    """Standard deviation of what neither row nor column explains of a (rows, columns) table, and its freedom."""
    values = np.array(values)
    rows, columns = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    freedom = (values.shape[0] - 1) * (values.shape[1] - 1)
    return math.sqrt(((values - rows - columns + values.mean()) ** 2).sum() / freedom), freedom


SD, FREEDOM = two_way_sd([VALUES[head] for head in ("mlp", "linear", "none", "subvector")])
HALF = scipy.stats.t.ppf(0.975, FREEDOM) * SD / math.sqrt(2)
"""Of Table 1: half of the 95 % interval of a row's mean."""


@pytest.fixture(scope="module")
def full(plan, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("full"))
    fill(plan, store, top1=by_head)
    return filled(plan, store)


@pytest.fixture(scope="module")
def as_published(tmp_path_factory):
    """The tables under the paper's own recipe."""
    plan, store = make_plan(["quickstart"], "imagenet"), Store(tmp_path_factory.mktemp("imagenet"))
    fill(plan, store, top1=by_head)
    return filled(plan, store)


@pytest.fixture(scope="module")
def holed(plan, tmp_path_factory):
    """Table 2 with one row of one seed, one of none; a failure and a gap."""
    store = Store(tmp_path_factory.mktemp("holed"))
    study = plan.studies[0]
    keys = {(cell.cell, cell.seed): cell.trial for cell in study.cells if cell.study == "table2"}
    gaps = [keys["low_rank", 0], keys["low_rank", 1]]
    fill(plan, store, fail=[keys["trainable", 1]], skip=gaps)
    return filled(plan, store)


def nasty_table(plan, store, text):
    """Table 1 with a text in all places where a study may put one."""
    study = plan.studies[0]
    member = study.members[0]
    table = member.tables[0]
    rows = tuple(row.model_copy(update={"columns": (text, row.columns[1])}) for row in table.rows)
    table = table.model_copy(
        update={"rows": rows, "title": text, "columns": (text, "Projector"), "source": text}
    )
    study = replace(study, members=(member.model_copy(update={"tables": (table,)}),))
    return tables.fill(study, cells_frame(study, store), holes(study, store))[0]


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


# --- content ------------------------------------------------------------------------------------


def test_both_tables_are_there_with_the_papers_rows_in_its_order(full):
    first, second = full
    assert [table.name for table in full] == ["table1", "table2"]
    assert [row.paper for row in first.rows] == [66.5, 61.1, 51.5, 62.7]
    assert [row.paper for row in second.rows] == [51.5, 52.2, 61.1, 60.2, 62.3, 62.7]
    assert [row.columns[1:] for row in second.rows] == [
        ("", ""), ("", ""), ("", ""), ("✓", ""), ("", "✓"), ("✓", "✓"),
    ]  # fmt: skip


def test_a_row_shows_its_mean_with_the_interval_pooled_over_the_table(full):
    table = full[0]
    assert FREEDOM == 3
    assert [table.texts(row)[0] for row in table.rows] == [
        f"{mean:.1f} ± {HALF:.1f}" for mean in (63.25, 60.5, 51.25, 62.25)
    ]
    assert (
        table.legend[0] == "Mean over n seeds ± 95 % interval (pooled over all rows, 3 degrees of freedom)."
    )


def test_the_papers_number_is_subtracted_only_where_data_and_backbone_are_the_papers(full, as_published):
    here, there = full[0], as_published[0]
    assert here.header[2:] == ("Top-1 accuracy (%)", "Paper (ImageNet)", "n")
    assert here.texts(here.rows[0])[1:] == ("66.5", "2")
    assert {row.difference for row in here.rows} == {None}
    assert there.header[2:] == ("Top-1 accuracy (%)", "Paper", "Difference", "n")
    assert there.texts(there.rows[0])[1:] == ("66.5", "−3.2", "2")
    assert there.rows[0].difference == 63.25 - 66.5
    assert there.texts(there.rows[3])[2] == "−0.5"


@pytest.mark.parametrize(
    "change", ["data.name=mine", "data.image_size=64", "backbone={kind: resnet18}", "data.train_images=10000"]
)
def test_other_data_or_another_backbone_are_not_the_papers(change):
    plan = make_plan(["table1"], "imagenet", sets=(change,))
    assert not any(cell.as_published for cell in plan.cells())


def test_a_study_may_say_what_its_published_numbers_were_measured_on(tmp_path):
    study = tmp_path / "mine.yaml"
    study.write_text(
        "name: mine\ntitle: t\nsource: s\npublished: {data: digits, image_size: 16, backbone: thin_resnet}\n"
        "cells:\n  - {name: a, label: A, set: {head: {kind: none}}}\n"
        "  - {name: b, label: B, set: {data.image_size: 8}}\n"
        "tables:\n  - name: t\n    title: T\n    source: s\n    columns: [x]\n"
        "    rows: [{cell: a, columns: [A], paper: 90.0}, {cell: b, columns: [B], paper: 80.0}]\n"
    )
    plan, store = make_plan([str(study)]), Store(tmp_path / "store")
    fill(plan, store)
    (table,) = filled(plan, store)
    assert [row.difference is None for row in table.rows] == [False, True]
    assert table.header[2:4] == ("Paper (scikit-learn digits)", "Difference")


def test_the_papers_numbers_can_be_left_out(plan, tmp_path):
    fill(plan, Store(tmp_path), top1=by_head)
    table = filled(plan, Store(tmp_path), paper=False)[0]
    assert table.header[2:] == ("Top-1 accuracy (%)", "n")
    for text in (to_markdown(table), to_latex(table)):
        assert "aper" not in text
        assert "66.5" not in text


def test_a_single_seed_shows_no_interval_and_the_table_says_so(tmp_path):
    plan = make_plan(["table1"], "digits", seeds=(7,))
    fill(plan, Store(tmp_path))
    table = filled(plan, Store(tmp_path))[0]
    assert table.texts(table.rows[0]) == ("98.1", "66.5", "1")
    for text in (to_markdown(table), to_latex(table)):
        assert "n = 1" in text
        assert "±" not in text
        assert r"\pm" not in text
    line = read_csv(tables.to_csv(table))[0]
    assert (line["n"], line["ci_low"], line["ci_high"], line["sd"]) == ("1", "", "", "")


# --- spread -------------------------------------------------------------------------------------


def test_the_standard_deviation_of_a_run_may_follow_the_mean(plan, tmp_path):
    fill(plan, Store(tmp_path), top1=by_head)
    table = filled(plan, Store(tmp_path), spread="sd")[0]
    assert table.texts(table.rows[2])[0] == f"51.2 ± {SD:.1f}"
    assert "standard deviation (pooled over all rows" in table.legend[0]
    plain = filled(plan, Store(tmp_path), spread="none")[0]
    assert plain.texts(plain.rows[2])[0] == "51.2"
    assert plain.legend[0] == "Mean over n seeds."


def test_rows_that_one_training_serves_count_once_in_the_spread(plan, tmp_path):
    study, store = plan.studies[0], Store(tmp_path)
    fill(plan, store, top1=by_head)
    member = study.members[0]
    doubled = member.tables[0].model_copy(update={"rows": member.tables[0].rows * 2})
    study = replace(study, members=(member.model_copy(update={"tables": (doubled,)}),))
    (table,) = tables.fill(study, cells_frame(study, store), [])
    assert (table.rows[5].sd, table.uncertainty.pooled.degrees_of_freedom) == (pytest.approx(SD), FREEDOM)


def test_a_row_that_varies_more_has_a_spread_of_its_own_and_the_legend_says_so(tmp_path):
    plan, store = make_plan(["table1"], "digits", seeds=tuple(range(8))), Store(tmp_path)
    wide = {"mlp": 5.0, "linear": 0.1, "none": 0.1, "subvector": 0.1}
    random = np.random.default_rng(0)
    values = {(head, seed): 60 + sd * random.normal() for head, sd in wide.items() for seed in range(8)}
    fill(plan, store, top1=lambda config: values[config.head.kind, config.seed])
    (table,) = filled(plan, store, spread="sd")
    row = table.rows[0]
    assert row.sd == pytest.approx(np.std([values["mlp", seed] for seed in range(8)], ddof=1))
    others, freedom = two_way_sd(
        [[values[head, seed] for seed in range(8)] for head in wide if head != "mlp"]
    )
    assert [row.sd for row in table.rows[1:]] == pytest.approx([others] * 3)
    assert (
        f"(pooled over rows of like spread, {freedom} degrees of freedom; its own for “{row.label}”"
        in table.legend[0]
    )


def test_two_seeds_have_no_spread_of_their_own():
    uncertainty = Uncertainty({"a": {0: 1.0, 1: 2.0}})
    assert uncertainty.interval("a") == Interval(1.5, None, None, 2)


def test_runs_that_agree_show_no_spread_rather_than_a_zero(plan, tmp_path):
    fill(plan, Store(tmp_path), top1=lambda config: 90.0)
    table = filled(plan, Store(tmp_path))[0]
    assert table.texts(table.rows[0])[0] == "90.0"
    assert table.legend[0] == "Mean over n seeds; all seeds of a row gave the same."


def test_rows_that_move_alike_with_the_seed_have_no_spread_beside_each_other(plan, tmp_path):
    fill(plan, Store(tmp_path), top1=lambda config: 90.0 + 0.3 * config.seed)
    table = filled(plan, Store(tmp_path))[0]
    assert table.texts(table.rows[0])[0] in ("90.1", "90.2")
    assert table.legend[0].endswith(
        "from one of the seeds to the next all rows move alike, so there is no ±."
    )


def test_an_interval_beyond_what_an_accuracy_can_be_is_noted(plan, tmp_path):
    near = {head: (99.0, 100.0) if head == "mlp" else (3.0, 1.0) for head in VALUES}
    fill(plan, Store(tmp_path), top1=lambda config: near[config.head.kind][config.seed])
    table = filled(plan, Store(tmp_path))[0]
    above, below = (table.rows[position] for position in (0, 1))
    assert above.ours.high > 100
    assert below.ours.low < 0
    assert [table.notes[mark] for mark in above.marks] == ["The interval ends at 100 %: ± reaches beyond it"]
    assert [table.notes[mark] for mark in below.marks] == ["The interval ends at 0 %: ± reaches beyond it"]
    assert not filled(plan, Store(tmp_path), spread="sd")[0].notes


# --- style --------------------------------------------------------------------------------------


def test_decimals_may_be_chosen(plan, tmp_path):
    fill(plan, Store(tmp_path), top1=by_head)
    table = filled(plan, Store(tmp_path), decimals=2)[0]
    assert table.texts(table.rows[0]) == (f"63.25 ± {HALF:.2f}", "66.50", "2")


def test_the_best_mean_is_bold_on_demand_and_ties_share_it(plan, tmp_path):
    tied = VALUES | {"subvector": (64.0, 62.5)}
    fill(plan, Store(tmp_path), top1=lambda config: tied[config.head.kind][config.seed])
    table = filled(plan, Store(tmp_path), bold_best=True)[0]
    assert [table.is_best(row) for row in table.rows] == [True, False, False, True]
    assert [line.count("**63.2") for line in to_markdown(table).splitlines() if line.startswith("| S")] == [
        1,
        0,
        0,
    ]
    assert [r"{\boldmath$" in "".join(row) for row in latex_rows(to_latex(table))] == [
        True,
        False,
        False,
        True,
    ]
    plain = filled(plan, Store(tmp_path))[0]
    assert "boldmath" not in to_latex(plain)


def test_of_losses_the_lowest_is_best_and_of_counts_none(plan, tmp_path):
    study, store = plan.studies[0], Store(tmp_path)
    fill(plan, store, top1=by_head)
    frame = cells_frame(study, store)
    losses = frame["metric"] == "linear_probe/loss"
    frame.loc[losses, "value"] = [float(position) for position in range(losses.sum())]
    member = study.members[0]
    best = []
    for metric in ("linear_probe/loss", "embedding/directions"):
        table = member.tables[0].model_copy(update={"metric": metric})
        changed = replace(study, members=(member.model_copy(update={"tables": (table,)}),))
        (made,) = tables.fill(changed, frame, [], TableStyle(bold_best=True))
        best.append([made.is_best(row) for row in made.rows])
    assert best == [[True, False, False, False], [False] * 4]


def test_a_missing_cell_is_a_dash_with_the_reason_in_a_note(holed):
    rows = {row.cell: row for row in holed[1].rows}
    gap, half = rows["low_rank"], rows["trainable"]
    assert holed[1].texts(gap) == ("—", "62.3", "0")
    assert [holed[1].notes[mark] for mark in gap.marks] == ["Seeds 0, 1: training not done yet"]
    assert half.ours.n == 1
    assert [holed[1].notes[mark] for mark in half.marks] == [
        "Seed 1: training failed: NonFiniteLossError: loss is not finite at step 17 of linear"
    ]
    assert rows["none"].marks == ()


def test_rows_with_the_same_reason_share_a_note(plan, tmp_path):
    store = Store(tmp_path)
    fill(plan, store, without=["linear_probe"])
    table = filled(plan, store)[1]
    assert list(table.notes.values()) == ["Seeds 0, 1: linear probe not done yet"]
    assert {row.marks for row in table.rows} == {("a",)}
    assert {table.texts(row)[0] for row in table.rows} == {"—"}


def test_a_metric_that_does_not_apply_is_said_to(tmp_path):
    study = tmp_path / "odd.yaml"
    study.write_text(
        "name: odd\ntitle: t\nsource: s\nevaluations: [subvector_probe]\n"
        "cells:\n  - {name: a, label: A, set: {head: {kind: none}}}\n"
        "tables:\n  - name: t\n    title: T\n    source: s\n    metric: subvector_probe/top1\n"
        "    columns: [x]\n    rows: [{cell: a, columns: [A]}]\n"
    )
    plan = make_plan([str(study)])
    store = Store(tmp_path / "store")
    fill(plan, store)
    assert list(filled(plan, store)[0].notes.values()) == ["Seed 0: subvector_probe/top1 does not apply here"]


def test_tables_of_the_same_name_keep_apart(plan, tmp_path):
    study = plan.studies[0]
    same = [
        member.model_copy(update={"tables": (member.tables[0].model_copy(update={"name": "main"}),)})
        for member in study.members
    ]
    empty = Store(tmp_path)
    made = tables.fill(replace(study, members=tuple(same)), cells_frame(study, empty), [])
    assert [table.name for table in made] == ["table1.main", "table2.main"]


def test_a_spectrum_metric_may_be_tabulated(plan, tmp_path):
    study, store = plan.studies[0], Store(tmp_path)
    fill(plan, store)
    member = study.members[0]
    table = member.tables[0].model_copy(update={"metric": "spectrum/embedding/rankme"})
    study = replace(study, members=(member.model_copy(update={"tables": (table,)}),))
    made = tables.fill(study, cells_frame(study, store), holes(study, store))[0]
    assert made.texts(made.rows[0])[0].startswith("24.0")


@pytest.mark.parametrize(
    ("value", "metric", "sign", "text"),
    [
        (62.649, "linear_probe/top1", False, "62.6"),
        (-0.04, "linear_probe/top1", True, "0.0"),
        (0.04, "knn/top5", True, "0.0"),
        (-3.25, "knn/top1", True, "−3.2"),
        (0.12345, "linear_probe/loss", False, "0.123"),
        (math.nan, "knn/top1", False, "nan"),
        (-math.inf, "knn/top1", True, "−inf"),
        (7.25, "embedding/effective_rank", False, "7.2"),
        (8.0, "theory/collapsed_directions_at_start", False, "8.0"),
        (0.00049, "theory/conserved_drift", False, "4.9e−4"),
        (-0.0000123, "theory/conserved_drift", True, "−1.2e−5"),
        (0.0, "theory/conserved_drift", True, "0.000"),
        (0.04, "knn/top1", False, "0.0"),
    ],
)
def test_numbers_have_the_papers_decimals(value, metric, sign, text):
    assert numbers.number(value, metric, sign) == text


def test_notes_are_lettered_past_z():
    assert [tables.letters(index) for index in (0, 25, 26, 701, 702)] == ["a", "z", "aa", "zz", "aaa"]


def test_a_half_width_has_the_decimals_of_its_mean_and_is_never_zero():
    assert numbers.with_spread(0.25, 0.0001, "linear_probe/loss") == "0.250 ± <0.001"
    assert numbers.with_spread(98.0, 0.04, "knn/top1") == "98.0 ± <0.1"
    assert numbers.with_spread(98.0, 0.04, "knn/top1", decimals=2) == "98.00 ± 0.04"
    assert numbers.with_spread(98.0, 0.0, "knn/top1") == "98.0"
    assert numbers.with_spread(2e-5, 1e-6, "theory/conserved_drift") == "2.0e−5 ± 1.0e−6"


def test_a_row_may_have_a_metric_of_its_own(suite):
    probes = suite[0]
    assert [row.metric for row in probes.rows] == ["linear_probe/top1"] * 2 + ["subvector_probe/top1"]
    assert [probes.texts(row)[:2] for row in probes.rows[1:]] == [("95.2", "62.7"), ("85.2", "47.9")]
    lines = read_csv(tables.to_csv(probes))
    assert [line["metric"] for line in lines] == [row.metric for row in probes.rows]
    assert [float(line["seed_1"]) for line in lines] == [96.3, 95.3, 85.3]


def test_rows_that_lack_their_own_metric_say_which(tmp_path):
    plan = make_plan([str(write_suite(tmp_path))])
    store = Store(tmp_path / "store")
    fill(plan, store, without=["subvector_probe"])
    probes = filled(plan, store)[0]
    assert [[probes.notes[mark] for mark in row.marks] for row in probes.rows] == [
        [], [], ["Seeds 0, 1: subvector probe not done yet"],
    ]  # fmt: skip


def test_a_theory_table_counts_networks_and_has_no_column_for_what_the_paper_lacks(suite):
    toys = suite[1]
    assert toys.header == ("k", "Collapsed directions", "n")
    assert [toys.texts(row) for row in toys.rows] == [("0.0", "3"), ("2.0", "3")]
    assert toys.legend == ("Mean over n networks; all networks of a row gave the same.",)
    assert toys.setting == "toy networks"
    assert [line["seed_2"] for line in read_csv(tables.to_csv(toys))] == ["0.0", "2.0"]
    assert r"\begin{tabular}{lrr}" in to_latex(toys)


def test_missing_toy_networks_are_no_seeds(tmp_path):
    plan = make_plan([str(write_suite(tmp_path))])
    assert list(filled(plan, Store(tmp_path / "store"))[1].notes.values()) == ["Training not done yet"]


def test_captions_name_the_data_and_no_rank_correlation(full):
    for text in (to_markdown(full[0]), to_latex(full[0])):
        assert re.search(r"Scikit-learn digits at 16 px \(chance 10 \\?% ?\)", text)
        assert "Kendall" not in text


# --- CSV ----------------------------------------------------------------------------------------


def test_csv_holds_raw_numbers_from_which_the_table_follows(full):
    for table in full:
        for line, row in zip(read_csv(tables.to_csv(table)), table.rows, strict=True):
            seeds = [float(line["seed_0"]), float(line["seed_1"])]
            assert tuple(seeds) in VALUES.values()
            assert float(line["mean"]) == sum(seeds) / 2
            assert float(line["paper"]) == row.paper
            half = (
                scipy.stats.t.ppf(0.975, int(line["degrees_of_freedom"])) * float(line["sd"]) / math.sqrt(2)
            )
            assert float(line["ci_high"]) - float(line["mean"]) == pytest.approx(half)
            assert (line["metric"], line["recipe"], line["n"]) == ("linear_probe/top1", "digits", "2")


@pytest.mark.parametrize("text", NASTY)
def test_no_csv_cell_can_be_taken_for_a_formula(plan, tmp_path, text):
    content = tables.to_csv(nasty_table(plan, Store(tmp_path), text))
    lines = list(csv.reader(io.StringIO(content)))
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    for line in lines:
        for cell in line:
            assert not cell.lstrip().startswith(("=", "+", "@", "\t", "\r"))
            assert not cell.startswith("-") or re.fullmatch(r"-[0-9.e+-]+", cell)


def test_a_negative_number_stays_a_number(as_published):
    assert [float(line["difference"]) for line in read_csv(tables.to_csv(as_published[0]))] == pytest.approx(
        [63.25 - 66.5, 60.5 - 61.1, 51.25 - 51.5, 62.25 - 62.7]
    )


# --- Markdown -----------------------------------------------------------------------------------


def markdown_cells(line):
    return re.split(r"(?<!\\)\|", line.strip())[1:-1]


def test_markdown_is_a_grid_with_one_line_per_row(full, holed):
    for table in (*full, *holed):
        grid = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
        assert len(grid) == 2 + len(table.rows)
        assert {len(markdown_cells(line)) for line in grid} == {len(table.header)}


@pytest.mark.parametrize("text", NASTY)
def test_no_text_breaks_a_markdown_grid_or_becomes_markup(plan, tmp_path, text):
    content = to_markdown(nasty_table(plan, Store(tmp_path), text))
    grid = [line for line in content.splitlines() if line.startswith("|")]
    assert len(grid) == 6
    assert {len(markdown_cells(line)) for line in grid} == {5}
    assert "<script" not in content
    shown = escape.markdown(text)
    assert re.search(r"(?<!\\)[`_\[\]|]", shown) is None
    plain = re.sub(r"\\([\\`*_\[\]|~$#])", r"\1", shown)
    plain = plain.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert plain == " ".join(text.split())


# --- LaTeX --------------------------------------------------------------------------------------


def latex_rows(text):
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    return [re.split(r"(?<!\\)&", row) for row in body.split(r"\\") if row.strip()]


def test_latex_is_booktabs_with_ticks_and_signed_math(full):
    text = to_latex(full[1])
    for part in (
        r"\begin{table}", r"\toprule", r"\midrule", r"\bottomrule", r"\end{table}",
        r"\caption{Linear-probe accuracy with constrained linear projectors.", r"\label{tab:table2}",
        r"\begin{tabular}{lccrrr}", r"Top-1 accuracy (\%)",
    ):  # fmt: skip
        assert part in text
    rows = [[cell.strip() for cell in row] for row in latex_rows(text)]
    assert [row[0] for row in rows][-1] == "fixed low-rank diagonal projector"
    assert [tuple(cell.startswith(r"\checkmark") for cell in row[1:3]) for row in rows] == [
        (False, False), (False, False), (False, False), (True, False), (False, True), (True, True),
    ]  # fmt: skip
    assert re.fullmatch(r"\$51\.2 \\pm [0-9]\.[0-9]\$", rows[0][3])
    assert [row[4] for row in rows][:3] == ["$51.5$", "$52.2$", "$61.1$"]
    assert all(cell.count("$") % 2 == 0 for row in rows for cell in row)


def test_latex_shows_holes_with_their_notes(holed):
    text = to_latex(holed[1])
    gap = next(row for row in latex_rows(text) if "fixed low-rank projector" in row[0])
    assert gap[3].strip() == r"---\textsuperscript{b}"
    assert r"\textsuperscript{b} Seeds 0, 1: training not done yet." in text


def test_latex_has_powers_of_ten(suite):
    (row, *rows), spec = suite[1].rows, suite[1].spec.model_copy(update={"metric": "theory/loss"})
    tiny = replace(row, metric="theory/loss", ours=Interval(2.1e-5, 1.9e-5, 2.3e-5, 3))
    text = to_latex(replace(suite[1], spec=spec, rows=(tiny, *rows)))
    assert r"$2.1 \times 10^{-5} \pm 2.0 \times 10^{-6}$" in text


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("a & b", r"a \& b"),
        ("50%", r"50\%"),
        ("low_rank", r"low\_rank"),
        ("#1 $2", r"\#1 \$2"),
        ("{x}", r"\{x\}"),
        ("a~b^c", r"a\textasciitilde{}b\textasciicircum{}c"),
        ("\\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("✓", r"\checkmark{}"),
        ("[4em]", "{[}4em{]}"),
        ("a\nb", "a b"),
    ],
)
def test_latex_special_characters_are_escaped(text, latex):
    assert escape.latex(text) == latex


@pytest.mark.parametrize("text", NASTY)
def test_no_text_breaks_a_latex_table(plan, tmp_path, text):
    content = to_latex(nasty_table(plan, Store(tmp_path), text))
    rows = latex_rows(content)
    assert len(rows) == 4
    assert {len(row) for row in rows} == {5}
    for row in rows:
        assert not row[0].strip().startswith(("[", "*"))
    unescaped = re.sub(r"\\[&%$#_{}\\]", "", content)
    assert unescaped.count("{") == unescaped.count("}")
    assert re.search(r"(?<!\\)[#_~^]", unescaped) is None


# --- terminal -----------------------------------------------------------------------------------


def on_a_terminal(table):
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(terminal.filled_table(table))
    return console.file.getvalue()


def test_the_terminal_shows_the_same_numbers_and_notes(holed):
    for table in holed:
        shown = on_a_terminal(table)
        for row in table.rows:
            for text in table.texts(row):
                assert text in shown
        for note in table.notes.values():
            assert note in shown


def test_a_label_is_not_read_as_terminal_markup(plan, tmp_path):
    shown = on_a_terminal(nasty_table(plan, Store(tmp_path), "[red]\x1b[31mx[/red]"))
    assert "[red]" in shown
    assert "\x1b" not in shown
