import json
import math
from dataclasses import replace
from math import fsum

import pandas as pd
import pytest
from pages import Page, contents
from synthetic import ENVIRONMENT, fill, stamp

from orchestrator.errors import AblateError
from orchestrator.plan import make_plan
from orchestrator.report import write_report
from orchestrator.report.content import make_report
from orchestrator.report.frames import cells_frame
from orchestrator.report.phrases import duration
from orchestrator.report.render import files
from orchestrator.store import Store

NAMES = {
    "cells.csv", "claims.csv", "claims_by_seeds.csv", "index.html", "provenance.json", "report.md",
    "tables/table1.csv", "tables/table1.md", "tables/table1.tex",
    "tables/table2.csv", "tables/table2.md", "tables/table2.tex",
}  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    return make_plan(["quickstart"], "digits")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_a_report_has_all_its_files_and_nothing_half_written(plan, store):
    fill(plan, store)
    directory = write_report(plan, plan.studies[0], store)
    assert directory == store.root / "studies" / "quickstart@digits" / "report"
    assert set(contents(directory)) == NAMES


def test_reporting_twice_changes_no_byte(plan, store):
    fill(plan, store, fail=[list(plan.trials)[1]], skip=[list(plan.trials)[4]])
    first = contents(write_report(plan, plan.studies[0], store))
    assert contents(write_report(plan, plan.studies[0], store)) == first


def test_two_stores_with_the_same_records_give_the_same_report(plan, store, tmp_path):
    other = Store(tmp_path / "elsewhere")
    fill(plan, store)
    fill(plan, other)
    fresh = make_plan(["quickstart"], "digits")
    assert contents(write_report(plan, plan.studies[0], store)) == contents(
        write_report(fresh, fresh.studies[0], other, out=tmp_path / "out")
    )


def test_a_later_seed_changes_the_report(plan, store):
    fill(plan, store, skip=[key for key, config in plan.trials.items() if config.seed == 1])
    first = contents(write_report(plan, plan.studies[0], store))
    fill(plan, store)
    second = contents(write_report(plan, plan.studies[0], store))
    assert all(first[name] != second[name] for name in NAMES)


def test_cells_csv_is_the_frame(plan, store):
    fill(plan, store, top1=lambda config: 10 + config.seed / 3)
    directory = write_report(plan, plan.studies[0], store)
    read = pd.read_csv(directory / "cells.csv")
    expected = cells_frame(plan.studies[0], store)
    pd.testing.assert_frame_equal(read, expected, check_dtype=False, check_exact=True)


def test_provenance_sums_each_trial_once(plan, store):
    fill(plan, store)
    facts = json.loads((write_report(plan, plan.studies[0], store) / "provenance.json").read_text())
    assert (facts["trials_planned"], facts["trials_done"]) == (12, 12)
    assert facts["training_seconds"] == fsum([12.3] * 12)
    assert facts["evaluation_seconds"] == fsum([0.7] * 12 * 3)
    assert facts["seeds"] == [0, 1]
    assert facts["missing"] == []
    assert facts["commits"] == [ENVIRONMENT["commit"]]
    assert facts["versions"]["torch"] == ["2.14.1"]
    assert facts["hardware"][0]["trials"] == 12
    assert facts["hardware"][0]["cpu"] == ENVIRONMENT["cpu"]
    assert facts["datasets"] == [{"name": "digits", "fingerprint": "5" * 64}]
    assert facts["started"] == stamp(0)
    assert set(facts["trials"]) == set(plan.trials)
    keys = {key for trial in facts["trials"].values() for key in trial["evaluations"]}
    assert keys == set(plan.evaluations)
    shared = [trial for trial in facts["trials"].values() if len(trial["cells"]) > 1]
    assert sorted(trial["cells"] for trial in shared)[0] == ["table1/directclr", "table2/low_rank_diagonal"]


def test_provenance_names_the_overrides_and_what_is_missing(store):
    plan = make_plan(["table1"], "digits", sets=("epochs=4", "schedule.warmup_epochs=1"), seeds=(3,))
    first = next(iter(plan.trials))
    fill(plan, store, fail=[first], without=["knn"])
    facts = json.loads((write_report(plan, plan.studies[0], store) / "provenance.json").read_text())
    assert facts["overrides"] == {"epochs": 4, "schedule": {"warmup_epochs": 1}}
    assert facts["recipe"].startswith("digits-")
    assert facts["missing"][0] == {
        "study": "table1",
        "cell": "mlp",
        "seed": 3,
        "what": "training",
        "trial": first,
        "reason": "failed: NonFiniteLossError: loss is not finite at step 17 of mlp",
    }
    assert [hole["what"] for hole in facts["missing"][1:]] == ["knn"] * 3


def test_machines_that_differ_are_all_named(plan, store):
    fill(plan, store)
    key = list(plan.trials)[5]
    record = store.trial_record(key)
    record["environment"] = {**ENVIRONMENT, "cpu": "Another CPU", "versions": {"torch": "2.15.0"}}
    store.commit_trial(key, record)
    facts = make_report(plan, plan.studies[0], store).provenance
    assert [(place["cpu"], place["trials"]) for place in facts["hardware"]] == [
        (ENVIRONMENT["cpu"], 11),
        ("Another CPU", 1),
    ]
    assert facts["versions"]["torch"] == ["2.14.1", "2.15.0"]


def test_the_page_loads_nothing_from_elsewhere(plan, store):
    fill(plan, store)
    page = Page(files(make_report(plan, plan.studies[0], store))["index.html"])
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object"})
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert links <= NAMES | {f"#{name}" for name in ids}
    assert not any("src" in attributes for _, attributes in page.tags)
    assert page.stack == []


def test_the_page_shows_both_tables_with_the_papers_value(plan, store):
    fill(plan, store)
    page = Page(files(make_report(plan, plan.studies[0], store))["index.html"])
    claims, first, second, overview, trials = page.tables
    assert claims[0][:2] == ["Claim", "Verdict"]
    assert [name.strip() for name in first[0][:4]] == [
        "Loss function", "Projector", "Top-1 accuracy (%)", "Paper (ImageNet)",
    ]  # fmt: skip
    assert first[0][4:] == ["Each seed88.096.3", "n"]
    assert first[1][:4] == ["SimCLR", "2-layer nonlinear projector", "96.2", "66.5"]
    assert first[1][5] == "2"
    assert second[-1][:3] == ["fixed low-rank diagonal projector", "✓", "✓"]
    assert "RankMe of representation" in overview[0]
    # a line per cell, one per study and one of the spread
    assert len(overview) == 1 + 10 + 2 + 1
    assert overview[-1][0] == "Standard deviation of one run"
    assert len(trials) == 1 + 12


def test_the_page_says_why_a_number_is_missing(plan, store):
    fill(plan, store, fail=[next(iter(plan.trials))])
    page = Page(files(make_report(plan, plan.studies[0], store))["index.html"])
    missing = page.tables[4]
    assert missing[1][1:] == [
        "0",
        "training",
        "failed: NonFiniteLossError: loss is not finite at step 17 of mlp",
    ]
    assert page.text.count("loss is not finite at step 17 of mlp") >= 2  # the note under the table, too
    assert "11 of 12 trainings" in page.text


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b < c"])
def test_no_text_of_a_study_or_an_error_becomes_html(plan, store, text):
    study = plan.studies[0]
    member = study.members[0]
    rows = tuple(row.model_copy(update={"columns": (text, text)}) for row in member.tables[0].rows)
    table = member.tables[0].model_copy(update={"rows": rows, "title": text, "columns": (text, text)})
    study = replace(
        study,
        study=study.study.model_copy(update={"title": text, "source": text}),
        members=(member.model_copy(update={"tables": (table,)}),),
        cells=tuple(replace(cell, label=text) for cell in study.cells),
    )
    store.prepare()
    store.fail_trial(next(iter(plan.trials)), {"error": text, "type": "E", "traceback": "", "when": stamp(1)})
    made = files(make_report(plan, study, store))
    page = Page(made["index.html"])
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert page.tables[1][1][0] == text
    assert page.tables[-2][1][-1] == f"failed: {text}"
    assert "<script" not in made["report.md"]
    assert "<img" not in made["report.md"]


def test_an_empty_store_gives_a_report_of_holes(plan, store):
    made = files(make_report(plan, plan.studies[0], store))
    assert set(made) == NAMES
    assert "0 of 12 trainings" in Page(made["index.html"]).text
    assert len(make_report(plan, plan.studies[0], store).missing) == 20
    assert json.loads(made["provenance.json"])["training_seconds"] == 0


def test_a_folder_that_cannot_be_written_is_one_line(plan, store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AblateError, match=r"^report .*file/out: cannot be written: Not a directory$"):
        write_report(plan, plan.studies[0], store, out=tmp_path / "file" / "out")


def test_numbers_that_are_not_finite_leave_the_files_readable(plan, store):
    fill(plan, store, top1=lambda config: math.nan if config.seed else math.inf)
    directory = write_report(plan, plan.studies[0], store)
    json.loads((directory / "provenance.json").read_text())
    assert len(pd.read_csv(directory / "cells.csv")) == 300


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (12.34, "12.3 s"), (99.94, "99.9 s"), (99.96, "1 min 40 s"), (312, "5 min 12 s"),
     (3599.6, "1 h 0 min"), (9000, "2 h 30 min")],
)  # fmt: skip
def test_durations_read_like_durations(seconds, text):
    assert duration(seconds) == text
