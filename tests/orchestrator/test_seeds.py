"""Which seeds a command is about, and what is shown where cells have different ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow_stores import new_store, sync
from synthetic import fill

from orchestrator.display import PlainConsole, show_plan
from orchestrator.errors import SpecError
from orchestrator.plan import Plan, jobs, make_plan
from orchestrator.report.content import make_report
from orchestrator.report.phrases import provenance_summary, status
from orchestrator.report.render import files
from orchestrator.seeds import parse_seeds, with_every_seed
from orchestrator.store import Store
from orchestrator.tracking import TrackedRecords, default_uri
from trainers.config import TrialConfig


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0,1,2", (0, 1, 2)), ("0-4", (0, 1, 2, 3, 4)), ("7,0-2", (7, 0, 1, 2)), ("5-5", (5,)), ("1, 3-4", (1, 3, 4))],
)  # fmt: skip
def test_seeds_are_named_one_by_one_or_as_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@given(st.text(alphabet="0123456789-,all ", max_size=12))
def test_any_text_is_seeds_each_once_or_refused(text: str) -> None:
    try:
        seeds = parse_seeds(text)
    except SpecError:
        return
    if seeds != "all":
        assert seeds
        assert len(set(seeds)) == len(seeds) <= 1000


@pytest.mark.parametrize("text", ["", "-1", "3-1", "0-1000", "0-2,2", "0,,1", "ALL", "1e3", str(2**31), "²"])
def test_other_seeds_are_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(SpecError, match=r"--seeds: got .*expected"):
        parse_seeds(text)


# --- cells with different seeds -------------------------------------------------------------------


def uneven(cells: dict[str, int]) -> Plan:
    """Table 1 with seeds 0 to 3, of which some cells have the first n alone."""
    whole = make_plan(["table1"], "digits", seeds=(0, 1, 2, 3))
    return whole.only(lambda study, cell: cell.seed < cells.get(cell.cell, 4))


def accuracy(config: TrialConfig) -> float:
    return 60 + len(config.head.kind) + 0.7 * config.seed


@pytest.fixture(scope="module")
def plan() -> Plan:
    return uneven({"mlp": 2, "none": 3})


@pytest.fixture(scope="module")
def store(plan: Plan, tmp_path_factory: pytest.TempPathFactory, set_up: object) -> Iterator[Store]:
    store = new_store(tmp_path_factory.mktemp("seeds") / "store", set_up)
    fill(plan, store, top1=accuracy)
    sync(plan, store)
    return store


def test_a_part_of_a_plan_has_no_work_that_only_the_rest_needs(plan: Plan) -> None:
    assert len(plan.trials) == 2 + 3 + 4 + 4
    assert {cell.trial for cell in plan.cells()} == plan.trials.keys() == plan.resources.keys()
    assert {trial for trial, _ in plan.evaluations.values()} == plan.trials.keys()
    assert plan.studies[0].seeds == (0, 1, 2, 3)
    assert uneven(dict.fromkeys(("mlp", "linear", "none", "directclr"), 1)).studies[0].seeds == (0,)


def test_all_seeds_are_those_that_each_cell_was_trained_with(plan: Plan, store: Store) -> None:
    found = with_every_seed(["table1"], "digits", (), lambda study: store)
    assert found == plan
    assert jobs(found, store) == []
    other_recipe = with_every_seed(["table1"], "digits", ("epochs=7",), lambda study: store)
    assert [cell.seed for cell in other_recipe.cells()] == [0, 0, 0, 0], (
        "a cell without trainings has one gap"
    )


def test_a_failed_training_is_among_all_seeds_and_one_that_was_only_begun_is_not(tmp_path: Path) -> None:
    plan, store = make_plan(["table1"], "digits", seeds=(0, 1, 2)), Store(tmp_path)
    of = {(cell.cell, cell.seed): cell.trial for cell in plan.cells()}
    fill(plan, store, fail=[of["none", 1]], skip=[of["none", 2]])
    store.begin_trial(of["none", 2], plan.trials[of["none", 2]].model_dump(mode="json"))
    found = with_every_seed(["table1"], "digits", (), lambda study: store)
    assert [cell.seed for cell in found.cells() if cell.cell == "none"] == [0, 1]
    assert [job.trial for job in jobs(found, store)] == [of["none", 1]]


def test_the_report_of_all_seeds_is_the_same_from_the_store_and_from_mlflow(plan: Plan, store: Store) -> None:
    tracked = TrackedRecords(default_uri(store), plan.studies[0])
    assert with_every_seed(["table1"], "digits", (), lambda study: tracked) == plan
    study = plan.studies[0]
    assert files(make_report(plan, study, tracked)) == files(make_report(plan, study, store))


def test_a_report_says_how_many_seeds_each_cell_has(plan: Plan, store: Store) -> None:
    report = make_report(plan, plan.studies[0], store)
    assert report.missing == []
    facts = report.provenance
    assert facts["seeds_by_cell"]["table1/none"] == [0, 1, 2]
    assert "2 to 4 seeds a cell" in status(facts)
    shown = dict(provenance_summary(facts))["Seeds"]
    assert (
        shown == "0, 1 of table1/mlp; 0, 1, 2 of table1/none; 0, 1, 2, 3 of table1/linear, table1/directclr"
    )
    (table,) = report.tables
    assert [row.ours.n for row in table.rows if row.ours] == [2, 4, 3, 4]
    assert table.seeds == (0, 1, 2, 3)


def test_a_plan_shows_nothing_where_a_cell_has_no_such_seed(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(PlainConsole(width=200), plan, jobs(plan, Store(tmp_path)))
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split().count("train") for line in text.splitlines() if "table1/" in line}
    assert rows == {"table1/mlp": 2, "table1/linear": 4, "table1/none": 3, "table1/directclr": 4}
    assert "over 2 to 4 seeds; 13 trainings" in " ".join(text.split())
