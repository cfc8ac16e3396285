"""Properties that hold for whatever people write: specifications, overrides, keys, names, escapes."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import string
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from orchestrator import library, yaml_files
from orchestrator.errors import SpecError
from orchestrator.exhibits import Name
from orchestrator.messages import for_a_terminal, validate
from orchestrator.overrides import at, expand, merge
from orchestrator.report import escape, render
from orchestrator.spec import Cell, Recipe, Study, content_key, trial_key
from orchestrator.store import Store

few = settings(max_examples=60, deadline=None)
words = st.text(string.ascii_lowercase + "_", min_size=1, max_size=6)
anything = st.text(max_size=60)
hostile = st.one_of(
    anything,
    st.text("<>&\"'`\\{}$%#_^~|[]()=+-@\n\t!*/ab\u202e\0", max_size=40),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            "=HYPERLINK(1)",
            "{{7*7}}",
            "{% raw %}",
            "\\input{/etc/passwd}",
            "![x](javascript:1)",
        ]
    ),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6), anything)
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)
mappings = st.dictionaries(words, plain, max_size=4)
RECIPES = library.names(library.RECIPES)


def recipe(name: str = "digits") -> Recipe:
    return library.load_recipe(name).recipe


def shuffled(content: Any, order: random.Random) -> Any:
    if isinstance(content, dict):
        names = list(content)
        order.shuffle(names)
        return {name: shuffled(content[name], order) for name in names}
    return [shuffled(item, order) for item in content] if isinstance(content, list) else content


# --- specifications -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_written_as_yaml_is_read_back_equal(name: str) -> None:
    text = yaml.safe_dump(recipe(name).model_dump(mode="json"))
    assert validate(Recipe, yaml_files.parse(text, "here"), "here") == recipe(name)


@pytest.mark.parametrize("name", library.names(library.STUDIES))
def test_a_study_written_as_yaml_is_read_back_equal(name: str) -> None:
    study = library.load_study(name)[0]
    text = yaml.safe_dump(study.model_dump(mode="json"))
    assert validate(Study, yaml_files.parse(text, "here"), "here") == study


@few
@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=200), mappings)
def test_a_cell_of_any_label_is_read_back_equal(label: str, changes: dict[str, Any]) -> None:
    cell = Cell(name="a", label=label, set=changes)
    text = json.dumps(cell.model_dump(mode="json"))
    assert validate(Cell, json.loads(text), "here") == cell


@few
@given(st.one_of(anything, st.binary(max_size=60).map(lambda raw: raw.decode("latin-1"))))
def test_any_text_is_yaml_or_refused_in_words(text: str) -> None:
    try:
        value = yaml_files.parse(text, "here")
    except SpecError as error:
        assert str(error).startswith("here: ")  # noqa: PT017  (either outcome will do)
    else:
        json.dumps(value, default=str)


@few
@given(mappings)
def test_any_mapping_is_a_study_or_refused_in_words(content: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="here"):
        validate(Study, content, "here")


# --- overrides ------------------------------------------------------------------------------------


@few
@given(st.lists(words, min_size=1, max_size=4), scalars)
def test_a_dotted_path_expands_to_what_is_found_there(path: list[str], value: Any) -> None:
    assert at(expand({".".join(path): value}, "here"), ".".join(path)) == value


@few
@given(mappings)
def test_a_merge_with_nothing_or_with_itself_changes_nothing(content: dict[str, Any]) -> None:
    assert merge(content, {}) == content
    assert merge({}, content) == content
    assert merge(content, content) == content


@few
@given(mappings, mappings)
def test_a_merge_holds_what_the_override_says_and_leaves_its_inputs_alone(
    base: dict[str, Any], override: dict[str, Any]
) -> None:
    before = json.dumps([base, override])
    merged = merge(base, override)
    assert json.dumps([base, override]) == before
    assert set(merged) == {*base, *override}
    assert merge(merged, override) == merged
    assert all(merged[name] == value for name, value in override.items() if not isinstance(value, dict))


# --- keys -----------------------------------------------------------------------------------------


@few
@given(mappings, st.randoms(use_true_random=False))
def test_the_order_of_fields_changes_no_key(content: dict[str, Any], order: random.Random) -> None:
    assert content_key(shuffled(content, order)) == content_key(content)


@few
@given(mappings, mappings)
def test_keys_are_equal_where_the_content_is(one: dict[str, Any], other: dict[str, Any]) -> None:
    # as JSON: true is not 1, and 1.0 is not 1
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (content_key(one) == content_key(other)) == same


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(RECIPES), st.integers(0, 2**31 - 1), st.randoms(use_true_random=False))
def test_a_trial_keeps_its_key_when_its_fields_are_shuffled_and_defaults_spelt_out(
    name: str, seed: int, order: random.Random
) -> None:
    trained = recipe(name)
    again = validate(Recipe, shuffled(trained.model_dump(mode="json"), order), "here")
    assert trial_key(again.trial(seed), 1) == trial_key(trained.trial(seed), 1)


@settings(max_examples=30, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "title": words,
            "resources": st.fixed_dictionaries({"workers": st.sampled_from([1, 2, 4])}),
            "limits": st.fixed_dictionaries({"state_seconds": st.integers(0, 1000)}),
            "cost": st.none(),
            "seed_sd": st.floats(0, 5),
        },
    ),
    st.integers(0, 1000),
)
def test_what_changes_no_number_changes_no_key_and_what_does_changes_it(
    changes: dict[str, Any], seed: int
) -> None:
    base = recipe()
    neutral = validate(Recipe, merge(base.model_dump(mode="json"), changes), "here")
    key = trial_key(base.trial(seed), 1)
    assert trial_key(neutral.trial(seed), 1) == key
    longer = validate(Recipe, merge(base.model_dump(mode="json"), {"epochs": base.epochs + 1}), "here")
    assert key not in (
        trial_key(longer.trial(seed), 1),
        trial_key(base.trial(seed + 1), 1),
        trial_key(base.trial(seed), 2),
    )


# --- names ----------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.one_of(anything, st.text("./\\~ab\0\n:*", max_size=12)))
def test_a_name_that_is_taken_stays_in_its_folder(name: str) -> None:
    try:
        taken = TypeAdapter(Name).validate_python(name)
    except ValidationError:
        return
    root = Path("/somewhere/reports")
    assert (root / taken).resolve().parent == root
    assert taken.isprintable()


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        anything, st.text("./\\~0af\0\n", max_size=25), st.text("0123456789abcdef", min_size=20, max_size=20)
    )
)
def test_a_stores_folders_lie_in_the_store_whatever_the_key(key: str) -> None:
    store = Store(Path("/somewhere/store"))
    for place in (store.trial_directory, store.evaluation_directory):
        try:
            folder = place(key)
        except Exception as error:  # refused, whatever the kind of error
            assert not isinstance(error, OSError)  # noqa: PT017
        else:
            assert folder.resolve().is_relative_to(store.root.resolve())
            assert folder.resolve().parent.parent == store.root.resolve()


# --- escapes --------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(hostile)
def test_a_csv_cell_is_one_cell_and_no_formula(text: str) -> None:
    cell = escape.csv_text(text)
    assert not cell.lstrip().startswith(("=", "+", "-", "@", "|", "%", "\t", "\r", "＝", "＋", "－", "＠"))
    file = io.StringIO()
    csv.writer(file).writerow([cell, "next"])
    assert list(csv.reader(io.StringIO(file.getvalue()))) == [[cell, "next"]]
    assert "\n" not in file.getvalue().rstrip("\r\n")
    # where lists are separated by semicolons, a cell begins behind each
    for part in file.getvalue().split(";"):
        assert not part.lstrip().startswith(("=", "+", "-", "@", "|", "%", "＝", "＋", "－", "＠"))


@settings(max_examples=200, deadline=None)
@given(hostile)
def test_latex_holds_no_command_but_those_of_the_escape(text: str) -> None:
    written = escape.latex(text)
    commands = set(re.findall(r"\\([a-zA-Z]+)", written))
    assert commands <= {"textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar",
                        "checkmark", "pm", "dots"}  # fmt: skip
    left = re.sub(r"\\[&%$#_{}]|\$\\pm\$|\$-\$|\\[a-z]+\{\}|\{[\[\]*]\}", "", written)
    assert not set("\\&%$#_{}~^\n") & set(left), left


class Reader(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@settings(max_examples=200, deadline=None)
@given(hostile)
def test_markdown_holds_no_live_markup(text: str) -> None:
    written = escape.markdown(text)
    assert "\n" not in written
    assert not set("<>") & set(written)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]|~$#]", written), written
    reader = Reader()
    reader.feed(written)
    assert reader.tags == []


def test_the_pages_escape_whatever_a_template_shows() -> None:
    source = Path(render.__file__).read_text()
    assert source.count("Environment(") == source.count("autoescape=True") == 1


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=2000))
def test_a_message_is_one_printable_line_that_fits(text: str) -> None:
    shown = for_a_terminal(text)
    assert len(shown) <= 480
    assert shown.isprintable()
    shown.encode()


@given(st.text(string.ascii_letters + " ,:;'./-", max_size=400))
@few
def test_a_plain_message_is_shown_as_it_is(text: str) -> None:
    assert for_a_terminal(text) == text.strip()
