import csv
import io
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console
from synthetic import fill, write_suite

from orchestrator.plan import make_plan
from orchestrator.report import escape, numbers, tables
from orchestrator.report.content import make_report
from orchestrator.report.frames import cells_frame, holes
from orchestrator.report.statistics import Interval
from orchestrator.store import Store

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
    return make_plan(["quickstart"])


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The tables of a training study and of a theory study, all numbers there."""
    folder = tmp_path_factory.mktemp("suite")
    plan, store = make_plan([str(write_suite(folder))]), Store(folder / "store")
    fill(plan, store)
    return make_report(plan, plan.studies[0], store).tables


def filled(plan, store):
    study = plan.studies[0]
    return tables.fill(study, cells_frame(study, store), holes(study, store))


@pytest.fixture(scope="module")
def full(plan, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("full"))
    fill(plan, store, top1=lambda config: {0: 61.5, 1: 63.0}[config.seed] + (config.head.kind == "mlp"))
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


def test_a_row_shows_mean_interval_paper_difference_and_n(full):
    table = full[0]
    half = math.tan(math.pi * 0.475) * 0.75  # two seeds: t with one degree of freedom is Cauchy
    assert table.texts(table.rows[0]) == (f"63.2 ± {half:.1f}", "66.5", "−3.2", "2")
    assert table.rows[0].difference == 63.25 - 66.5
    assert table.texts(table.rows[3])[2] == "−0.5"
    assert "95 % t interval" in " ".join(table.legend)


def test_a_single_seed_shows_no_interval_and_the_table_says_so(tmp_path):
    plan = make_plan(["table1"], "digits", seeds=(7,))
    fill(plan, Store(tmp_path))
    table = filled(plan, Store(tmp_path))[0]
    assert table.texts(table.rows[0]) == ("98.1", "66.5", "+31.6", "1")
    for text in (tables.to_markdown(table), tables.to_latex(table)):
        assert "n = 1" in text
        assert "±" not in text
        assert r"\pm" not in text
    line = read_csv(tables.to_csv(table))[0]
    assert (line["n"], line["ci_low"], line["ci_high"]) == ("1", "", "")


def test_a_missing_cell_is_a_dash_with_the_reason_in_a_note(holed):
    rows = {row.cell: row for row in holed[1].rows}
    gap, half = rows["low_rank"], rows["trainable"]
    assert holed[1].texts(gap) == ("—", "62.3", "", "0")
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
    assert made.texts(made.rows[0])[0].startswith("24.0 ± ")


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


def test_a_half_width_has_the_decimals_of_its_mean():
    assert numbers.interval_text(Interval(0.25, 0.2499, 0.2501, 3), "linear_probe/loss") == "0.250 ± 0.000"
    assert numbers.interval_text(Interval(2e-5, 1.9e-5, 2.1e-5, 3), "theory/conserved_drift") == (
        "2.0e−5 ± 1.0e−6"
    )


def test_a_row_may_have_a_metric_of_its_own(suite):
    probes = suite[0]
    assert [row.metric for row in probes.rows] == ["linear_probe/top1"] * 2 + ["subvector_probe/top1"]
    assert [probes.texts(row)[:2] for row in probes.rows[1:]] == [
        ("95.2 ± 1.9", "62.7"),
        ("85.2 ± 1.9", "47.9"),
    ]
    assert probes.rows[2].difference == pytest.approx(85.15 - 47.9)
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
    assert [toys.texts(row) for row in toys.rows] == [("0.0 ± 0.0", "3"), ("2.0 ± 0.0", "3")]
    assert toys.legend == ("Mean ± 95 % t interval over n networks.", "Source: Section 4.2.")
    assert [line["seed_2"] for line in read_csv(tables.to_csv(toys))] == ["0.0", "2.0"]
    assert r"\begin{tabular}{lrr}" in tables.to_latex(toys)


def test_missing_toy_networks_are_no_seeds(tmp_path):
    plan = make_plan([str(write_suite(tmp_path))])
    assert list(filled(plan, Store(tmp_path / "store"))[1].notes.values()) == ["Training not done yet"]


def test_every_form_of_a_table_says_whether_it_has_the_papers_order(suite):
    said = "Kendall's τ of our order with the paper's: 1 over 2 rows"
    probes = suite[0]
    assert said in " ".join(probes.legend)
    assert escape.markdown(said) in tables.to_markdown(probes)
    assert said in " ".join(terminal(probes).split())
    assert said.replace("τ", r"$\tau$") in tables.to_latex(probes)
    assert "two-sided $p$ = 1" in tables.to_latex(probes)
    assert "τ" not in " ".join(suite[1].legend)


# --- CSV ----------------------------------------------------------------------------------------


def test_csv_holds_raw_numbers_from_which_the_table_follows(full):
    for table in full:
        for line, row in zip(read_csv(tables.to_csv(table)), table.rows, strict=True):
            seeds = [float(line["seed_0"]), float(line["seed_1"])]
            assert seeds == [61.5 + (row.cell == "mlp"), 63.0 + (row.cell == "mlp")]
            assert float(line["mean"]) == sum(seeds) / 2
            assert float(line["difference"]) == float(line["mean"]) - row.paper
            assert float(line["ci_high"]) - float(line["mean"]) == pytest.approx(
                math.tan(math.pi * 0.475) * 0.75
            )
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


def test_a_negative_number_stays_a_number(full):
    assert "-3.25" in tables.to_csv(full[0])


# --- Markdown -----------------------------------------------------------------------------------


def markdown_cells(line):
    return re.split(r"(?<!\\)\|", line.strip())[1:-1]


def test_markdown_is_a_grid_with_one_line_per_row(full, holed):
    for table in (*full, *holed):
        grid = [line for line in tables.to_markdown(table).splitlines() if line.startswith("|")]
        assert len(grid) == 2 + len(table.rows)
        assert {len(markdown_cells(line)) for line in grid} == {len(table.header)}


@pytest.mark.parametrize("text", NASTY)
def test_no_text_breaks_a_markdown_grid_or_becomes_markup(plan, tmp_path, text):
    content = tables.to_markdown(nasty_table(plan, Store(tmp_path), text))
    grid = [line for line in content.splitlines() if line.startswith("|")]
    assert len(grid) == 6
    assert {len(markdown_cells(line)) for line in grid} == {6}
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
    text = tables.to_latex(full[1])
    for part in (
        r"\begin{table}", r"\toprule", r"\midrule", r"\bottomrule", r"\end{table}",
        r"\caption{Linear-probe accuracy with constrained linear projectors.", r"\label{tab:table2}",
        r"\begin{tabular}{lccrrrr}", r"Top-1 accuracy (\%)",
    ):  # fmt: skip
        assert part in text
    rows = [[cell.strip() for cell in row] for row in latex_rows(text)]
    assert [row[0] for row in rows][-1] == "fixed low-rank diagonal projector"
    assert [tuple(cell.startswith(r"\checkmark") for cell in row[1:3]) for row in rows] == [
        (False, False), (False, False), (False, False), (True, False), (False, True), (True, True),
    ]  # fmt: skip
    assert rows[0][3] == r"$62.2 \pm 9.5$"
    assert [row[5] for row in rows][:3] == ["$+10.8$", "$+10.0$", "$+1.1$"]
    assert all(cell.count("$") % 2 == 0 for row in rows for cell in row)


def test_latex_shows_holes_with_their_notes(holed):
    text = tables.to_latex(holed[1])
    gap = next(row for row in latex_rows(text) if "fixed low-rank projector" in row[0])
    assert gap[3].strip() == r"---\textsuperscript{b}"
    assert r"\textsuperscript{b} Seeds 0, 1: training not done yet" in text


def test_latex_has_powers_of_ten(suite):
    (row, *rows), spec = suite[1].rows, suite[1].spec.model_copy(update={"metric": "theory/loss"})
    tiny = replace(row, metric="theory/loss", ours=Interval(2.1e-5, 1.9e-5, 2.3e-5, 3))
    text = tables.to_latex(replace(suite[1], spec=spec, rows=(tiny, *rows)))
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
    content = tables.to_latex(nasty_table(plan, Store(tmp_path), text))
    rows = latex_rows(content)
    assert len(rows) == 4
    assert {len(row) for row in rows} == {6}
    for row in rows:
        assert not row[0].strip().startswith(("[", "*"))
    unescaped = re.sub(r"\\[&%$#_{}\\]", "", content)
    assert unescaped.count("{") == unescaped.count("}")
    assert re.search(r"(?<!\\)[#_~^]", unescaped) is None


# --- terminal -----------------------------------------------------------------------------------


def terminal(table):
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(tables.console(table))
    return console.file.getvalue()


def test_the_terminal_shows_the_same_numbers_and_notes(holed):
    for table in holed:
        shown = terminal(table)
        for row in table.rows:
            for text in table.texts(row):
                assert text in shown
        for note in table.notes.values():
            assert note in shown


def test_a_label_is_not_read_as_terminal_markup(plan, tmp_path):
    shown = terminal(nasty_table(plan, Store(tmp_path), "[red]\x1b[31mx[/red]"))
    assert "[red]" in shown
    assert "\x1b" not in shown
