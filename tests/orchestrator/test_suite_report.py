"""A report of several studies with figures, claims and toy networks."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from pages import Page, contents
from rich.console import Console
from synthetic import fill, write_suite

from orchestrator.plan import make_plan
from orchestrator.report import console, make_report, render, write
from orchestrator.report.phrases import sentence, status
from orchestrator.report.render import files
from orchestrator.report.tracked import tracked
from orchestrator.report.verdicts import adjusted_p, effect, groups, origin, seeds_needed, unique_names
from orchestrator.report.verdicts import sentence as verdict_sentence
from orchestrator.store import Store

FIGURES = ("spectra", "sweep", "live", "weights", "alignment")
NAMES = {
    "cells.csv", "claims.csv", "claims_by_seeds.csv", "index.html", "provenance.json", "report.md",
    *(f"tables/{name}.{ending}" for name in ("probes", "collapse") for ending in ("csv", "md", "tex")),
    *(f"figures/{name}.{ending}" for name in FIGURES for ending in ("svg", "png", "csv")),
}  # fmt: skip


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def plan(suite_file):
    return make_plan([str(suite_file)])


@pytest.fixture(scope="module")
def store(plan, tmp_path_factory):
    """A store with everything done; for tests that only look."""
    store = Store(tmp_path_factory.mktemp("store"))
    fill(plan, store)
    return store


@pytest.fixture(scope="module")
def report(plan, store):
    return make_report(plan, plan.studies[0], store)


@pytest.fixture(scope="module")
def made(report):
    return files(report)


@pytest.fixture(scope="module")
def page(made):
    return Page(made["index.html"])


def of(page, tag):
    return [attributes for name, attributes in page.tags if name == tag]


# --- files --------------------------------------------------------------------------------------


def test_figures_and_claims_are_files_beside_the_tables(report, tmp_path):
    write(report, tmp_path)
    written = contents(tmp_path)
    assert set(written) == NAMES
    assert written["figures/spectra.png"].startswith(b"\x89PNG\r\n")
    assert ElementTree.fromstring(written["figures/spectra.svg"]).tag.endswith("svg")
    assert written["claims.csv"].count(b"\n") == 1 + len(report.claims)


def test_the_same_records_give_the_same_bytes(suite_file, tmp_path, made, monkeypatch):
    monkeypatch.setattr(render, "_DRAWN", {})
    plan, store = make_plan([str(suite_file)]), Store(tmp_path)
    fill(plan, store)
    assert files(make_report(plan, plan.studies[0], store)) == made


def test_a_figure_is_drawn_once_in_a_process_and_anew_when_its_data_change(report, monkeypatch):
    figure = report.figures[0]
    before = render.drawn(figure)
    monkeypatch.setattr(type(figure), "svg", lambda self: b"drawn again")
    assert render.drawn(figure) == before
    changed = replace(figure, data=figure.data.iloc[:-1])
    assert render.drawn(changed)["svg"] == b"drawn again"


def test_no_picture_is_drawn_before_it_is_asked_for(plan, store, monkeypatch):
    monkeypatch.setattr(render, "drawn", lambda figure: 1 / 0)
    report = make_report(plan, plan.studies[0], store)
    assert len(report.figures) == 5
    with pytest.raises(ZeroDivisionError):
        files(report)


# --- the page -----------------------------------------------------------------------------------


def test_the_page_holds_its_figures_and_loads_nothing_from_elsewhere(made, page):
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    images = of(page, "img")
    assert len(images) == len(FIGURES)
    for name, image in zip(FIGURES, images, strict=True):
        kind, encoded = image["src"].split(",")
        assert kind == "data:image/svg+xml;base64"
        assert base64.b64decode(encoded) == made[f"figures/{name}.svg"]
        assert len(image["alt"]) > 20
    links = {attributes["href"] for attributes in of(page, "a")}
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert links <= NAMES | {f"#{name}" for name in ids}
    assert {f"figures/{name}.{ending}" for name in FIGURES for ending in ("svg", "png", "csv")} <= links
    assert page.stack == []


def test_pictures_beyond_the_limit_are_linked_smallest_kept(made, report, monkeypatch):
    sizes = sorted(len(base64.b64encode(made[f"figures/{name}.svg"])) for name in FIGURES)
    monkeypatch.setattr(render, "EMBEDDED_BYTES", sizes[0] + sizes[1])
    pictures = render.figure_files(report)
    sources = [image["src"] for image in of(Page(render.html(report, pictures)), "img")]
    assert sum(source.startswith("data:") for source in sources) == 2
    assert all(source in NAMES for source in sources if not source.startswith("data:"))


def test_studies_follow_one_another_with_what_each_asks(made, page):
    headings = re.findall(r"<h2>(.*?)</h2>", made["index.html"])
    assert headings == [
        "Claims", "Projectors at three scales", "One linear layer under strong augmentation",
        "All cells and metrics", "Not run here, and why", "Provenance",
    ]  # fmt: skip
    for text in ("One page of everything.", "Does a subvector of the", "Augmentation noise that exceeds"):
        assert page.text.count(text) == 1
    targets = [link["href"] for link in of(page, "a") if link["href"].startswith("#")]
    assert targets == ["#claims", "#trained", "#theory", "#overview", "#missing", "#provenance"]


def test_the_header_counts_what_was_done_and_what_came_of_it(report, page):
    assert "6 of 6 trainings, 1 of 1 toy runs and 20 of 20 evaluations done" in page.text
    assert verdict_sentence(report.claims) in page.text


def test_claims_stand_under_their_numbers_with_sign_word_effect_and_test(report, page):
    claims = page.tables[0]
    assert [row[0] for row in claims if len(row) == 1] == ["Claim 1", "Claim 5", "Claim 7", "Further claims"]
    rows = [row for row in claims[1:] if len(row) == 6]
    by_number = sorted(report.claims, key=lambda one: one.claim.group or 99)
    signs = {"supported": "✓", "contradicted": "✗", "undecided": "?"}
    for row, judgement in zip(rows, by_number, strict=True):
        assert row[0].startswith(f"{judgement.claim.text} {judgement.claim.source}")
        assert judgement.note.replace(" %", "\u00a0%") in row[0]
        assert all(name in row[0] for name, _ in judgement.details)
        assert row[1] == f"{signs[judgement.verdict]} {judgement.verdict}"
        assert row[2] == "".join(effect(judgement)) or judgement.effect is None
        assert row[3] == judgement.test
        assert row[4:] == [adjusted_p(judgement), seeds_needed(judgement)]


def test_studies_that_measure_other_things_have_overviews_of_their_own(report, page):
    trained, theory = report.overviews
    assert list(trained.studies) == ["trained"]
    assert list(theory.studies) == ["theory"]
    assert not set(trained.metrics) & set(theory.metrics)
    assert all(metric.startswith("theory/") for metric in theory.metrics)
    assert [row.n for row in theory.studies["theory"]] == [3, 3, 3]
    weak, _, deep = theory.studies["theory"]
    drift = theory.metrics.index("theory/conserved_drift")
    assert (weak.texts[drift], deep.texts[drift][:6]) == ("—", "2.0e−5")


def test_what_is_left_out_is_said_with_its_reason(plan, tmp_path):
    toys = next(cell.trial for cell in plan.cells() if cell.case is not None)
    store = Store(tmp_path)
    fill(plan, store, skip=[toys], fail=[next(iter(plan.trials))])
    report = make_report(plan, plan.studies[0], store)
    made = files(report)
    assert "figures/weights.svg" not in made
    assert "figures/spectra.svg" in made
    page = Page(made["index.html"])
    assert len(of(page, "img")) == 3
    for text in (page.text, made["report.md"]):
        assert "ImageNet: 384 V100-hours a cell." in text
        assert "The random dropout of Appendix F" in text
        assert "Singular values of W.: nothing to draw yet." in text
        assert "0 of 1 toy runs" in text
    gaps = {row[0]: row[1:] for row in page.tables[-2][1:]}
    assert gaps["theory k = 2"] == ["all networks", "training", "not done yet"]
    assert gaps["trained 2-layer projector"][0] == "0"


def test_seeds_with_the_same_reason_share_a_line(plan, tmp_path):
    report = make_report(plan, plan.studies[0], Store(tmp_path))
    assert [(gap.study, gap.seeds) for gap in report.gaps] == [("trained", (0, 1))] * 4 + [("theory", ())] * 3
    assert len(report.missing) == 4 * 2 + 3


def test_provenance_counts_toy_runs_apart_from_trainings(plan, report):
    facts = report.provenance
    assert (facts["trials_done"], facts["toys_done"], facts["toy_seconds"]) == (6, 1, 6.5)
    assert facts["training_seconds"] == pytest.approx(6 * 12.3)
    kinds = [trial["kind"] for trial in facts["trials"].values()]
    assert kinds == ["training"] * 6 + ["toy networks"]
    toys = list(facts["trials"].values())[-1]
    assert toys["cells"] == ["theory/weak", "theory/strong", "theory/deep"]
    assert len(toys["config"]["cases"]) == 3
    assert sum(place["trials"] for place in facts["hardware"]) == 7
    assert [data["name"] for data in facts["datasets"]] == ["digits"]


def test_a_theory_study_alone_speaks_of_no_trainings(suite_file, tmp_path):
    plan = make_plan([str(suite_file.parent / "theory.yaml")])
    fill(plan, Store(tmp_path))
    report = make_report(plan, plan.studies[0], Store(tmp_path))
    assert status(report.provenance).endswith(": 1 of 1 toy runs done.")
    page = Page(files(report)["index.html"])
    assert "trainings" not in page.text
    assert "digits at" not in page.text
    assert "Training" not in page.text
    # a single study's sections need no list of them
    assert "nav" not in dict(page.tags)


HOSTILE = '"><img src=x onerror=alert(1)><script>alert(1)</script>'


def test_no_text_of_figures_claims_or_summaries_becomes_html(plan, store):
    study = plan.studies[0]
    members = []
    for member in study.members:
        figures = tuple(
            one.model_copy(update={"title": HOSTILE, "source": HOSTILE}) for one in member.figures
        )
        claims = tuple(one.model_copy(update={"text": HOSTILE, "source": HOSTILE}) for one in member.claims)
        hostile = {"title": HOSTILE, "summary": HOSTILE, "not_run": (HOSTILE,)}
        members.append(member.model_copy(update=hostile | {"figures": figures, "claims": claims}))
    cells = tuple(replace(cell, label=HOSTILE) for cell in study.cells)
    report = make_report(plan, replace(study, members=tuple(members), cells=cells), store)
    page = Page(render.html(report, render.figure_files(report)))
    assert len(of(page, "img")) == len(FIGURES)
    assert not of(page, "script")
    assert not any("onerror" in attributes for _, attributes in page.tags)
    markdown = render.markdown(report)
    assert "<img" not in markdown
    assert "<script" not in markdown


# --- Markdown and terminal ------------------------------------------------------------------------


def test_markdown_has_the_same_sections_with_pictures_beside_it(made, report):
    text = made["report.md"]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == re.findall(r"<h2>(.*?)</h2>", made["index.html"])
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures == [f"figures/{name}.png" for name in FIGURES]
    assert set(pictures) <= set(made)
    grid = [line for line in text.split("## Claims")[1].split("##")[0].splitlines() if line.startswith("|")]
    assert len(grid) == 2 + len(report.claims)
    assert {len(re.split(r"(?<!\\)\|", line)) for line in grid} == {9}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_terminal_shows_tables_verdicts_and_counts_within_its_width(report, width):
    terminal = Console(width=width, file=io.StringIO(), color_system=None)
    for shown in console(report):
        terminal.print(shown)
    printed = terminal.file.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    text = " ".join(printed.split())
    assert text.endswith(verdict_sentence(report.claims))
    counts = [sum(one.verdict == word for one in report.claims) for word in ("supported", "undecided")]
    said = text.split("The paper's claims")[1].removesuffix(verdict_sentence(report.claims))
    assert [said.count(word) for word in ("supported", "undecided")] == counts
    assert "scikit-learn digits at 16 px; chance is 10 %" in text
    assert "What the loss leaves outside" in text


# --- words ----------------------------------------------------------------------------------------


def verdicts(report, *words):
    return [replace(report.claims[0], verdict=word) for word in words]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["undecided"], "The one claim about trained networks is undecided."),
        (["supported"] * 2, "All 2 claims about trained networks are supported."),
        (
            ["supported", "undecided", "undecided"],
            "Of 3 claims about trained networks, 1 is supported and 2 undecided.",
        ),
        (
            ["contradicted", "supported", "undecided", "supported"],
            "Of 4 claims about trained networks, 2 are supported, 1 contradicted and 1 undecided.",
        ),
    ],
)
def test_verdicts_are_counted_in_words(report, words, said):
    assert verdict_sentence(verdicts(report, *words)) == said


def test_toy_networks_and_what_holds_by_construction_are_counted_apart(report):
    origins = {one.claim_name: origin(one) for one in report.claims}
    assert origins == {"order": "toy networks", "same": "by construction", "bad": "trained networks"}
    trained, toys, given = (
        [one for one in report.claims if origin(one) == name]
        for name in ("trained networks", "toy networks", "by construction")
    )
    assert [len(some) for some in (trained, toys, given)] == [2, 1, 1]
    said = verdict_sentence([*given, *toys * 3, *verdicts(report, "supported", "contradicted")])
    verdict = toys[0].verdict
    assert said == (
        f"Of 2 claims about trained networks, 1 is supported and 1 contradicted; all 3 claims about toy networks are "
        f"{verdict}; 1 holds by construction."
    )
    assert verdict_sentence(given * 2) == "2 hold by construction."


def test_effects_have_their_unit_and_the_digits_of_their_interval(report):
    one = replace(report.claims[0], effect=-1.23456, ci_low=-2.5, ci_high=0.1, unit="points")
    assert effect(one) == ("−1.2 points", "[−2.5, 0.1]")
    assert effect(replace(one, ci_low=None, ci_high=None))[1] == ""
    assert effect(replace(one, ci_low=-1.23456, ci_high=-1.23456)) == ("−1.23 points", "")
    assert effect(replace(one, effect=None, ci_low=None, ci_high=None)) == ("", "")


def test_seeds_that_would_decide_are_told_of_undecided_claims_only(report):
    (one,) = verdicts(report, "undecided")
    assert seeds_needed(replace(one, seeds_needed=12)) == "12"
    assert seeds_needed(replace(one, seeds_needed=None)) == "—"
    assert seeds_needed(replace(one, seeds_needed=None, verdict="supported")) == ""


def test_claims_of_one_name_keep_apart(report):
    assert [one.claim.name for one in report.claims].count("order") == 2
    assert unique_names(report.claims) == ["trained.order", "same", "bad", "theory.order"]


def test_claims_without_a_number_come_last(report):
    assert [group.number for group in groups(report.claims)] == [1, 5, 7, None]


def test_titles_end_with_one_full_stop():
    assert [sentence(text) for text in ("A title", "A title.", "Why?")] == ["A title.", "A title.", "Why?"]


# --- where the runs are ---------------------------------------------------------------------------


def test_a_servers_page_is_linked_without_credentials(plan, store):
    uri = "https://me:secret@host:5000/mlflow/?token=secret"
    report = make_report(plan, plan.studies[0], store, uri)
    address = "https://host:5000/mlflow/#/experiments?experimentSearchFilter=suite"
    page = Page(render.html(report, render.figure_files(report)))
    assert address in {link["href"] for link in of(page, "a")}
    for text in (page.text, render.markdown(report)):
        assert "MLflow experiment suite, run suite@digits" in text.replace("\\", "")
        assert "secret" not in text


def test_a_databases_place_is_not_told(plan):
    told = tracked("sqlite:////home/me/ablations/mlflow.db", plan.studies[0])
    assert told.address is None
    assert "home" not in told.text
    assert "`ablate ui`" in told.text


def test_numbers_do_not_depend_on_where_runs_are_tracked(plan, store, report, made):
    other = files(make_report(plan, plan.studies[0], store, "http://host:5000"))
    assert {name for name in NAMES if made[name] != other[name]} == {"index.html", "report.md"}
    assert json.loads(made["provenance.json"]) == report.provenance
