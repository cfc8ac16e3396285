"""Studies, recipes and flags that can't be used are refused in one line that says what is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import library, yaml_files
from orchestrator.errors import SpecError
from orchestrator.library import expand, load_recipe, load_study, merge
from orchestrator.plan import make_plan


@pytest.mark.parametrize("name", library.names(library.STUDIES))
def test_every_study_plans_under_every_recipe(name: str) -> None:
    for recipe in library.names(library.RECIPES):
        plan = make_plan([name], recipe)
        assert plan.trials
        assert {cell.trial for cell in plan.cells()} == set(plan.trials)


def test_dotted_and_nested_overrides_are_one() -> None:
    assert expand({"a.b": 1, "a": {"c.d": 2}}, "x") == {"a": {"b": 1, "c": {"d": 2}}}


def test_an_override_of_another_kind_leaves_nothing_of_the_old_one() -> None:
    base = {"optimizer": {"kind": "lars", "lr": 4.8, "trust_coefficient": 0.1}}
    assert merge(base, {"optimizer": {"kind": "sgd", "lr": 1}})["optimizer"] == {"kind": "sgd", "lr": 1}
    assert merge(base, {"optimizer": {"lr": 1}})["optimizer"]["trust_coefficient"] == 0.1


def test_overrides_are_judged_together_not_one_after_the_other() -> None:
    recipe = load_recipe("digits", ("epochs=2", "schedule.warmup_epochs=1")).recipe
    assert (recipe.epochs, recipe.schedule.warmup_epochs) == (2, 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1.", 1.0),
        ("-3", -3),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("360/2048", "360/2048"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("2026-11-21", "2026-11-21"),
        ("1:30", "1:30"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    assert yaml_files.parse(text, "x") == value


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
@settings(max_examples=50, deadline=None)
def test_any_value_for_a_field_is_taken_or_refused_in_one_line(value: Any) -> None:
    raw = {**load_recipe("digits").raw, "epochs": value}
    warmup = raw["schedule"]["warmup_epochs"]
    if type(value) is int and warmup <= value <= 100_000:
        assert library.validate(library.Recipe, raw, "file.yaml").epochs == value
        return
    with pytest.raises(SpecError, match=r"\Afile\.yaml: .{1,390}\Z"):
        library.validate(library.Recipe, raw, "file.yaml")


STUDY = """
name: mine
title: Mine
source: Table 1
cells:
  - {name: a, label: A, set: {head: {kind: none}}}
"""


CLAIM = "claims:\n  - {{name: c, text: T, source: S, test: order, cells: {}}}\n"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: mine", "name: 7", "name: got 7, takes string"),
        ("name: mine", "name: ../mine", 'name: got "../mine", takes text that matches'),
        ("name: mine", "nmae: mine", "nmae: unknown field; did you mean 'name'?"),
        ("title: Mine", "", "title: missing, and required"),
        ("cells:", "seeds: []\ncells:", "seeds: got []"),
        ("cells:", "seeds: [0, 0]\ncells:", "seeds: got 0 more than once"),
        ("cells:", "seeds: [-1]\ncells:", "seeds[0]: got -1"),
        ("cells:", "seeds: [1.5]\ncells:", "seeds[0]: got 1.5"),
        ("cells:", "seeds: 3\ncells:", "seeds: got 3"),
        (
            "cells:\n  - {name: a, label: A, set: {head: {kind: none}}}",
            "",
            "cells: got none and no `include`",
        ),
        ("cells:", "include: [table1, table1]\ncells:", "include: got table1 more than once"),
        ("{head: {kind: none}}", "{faithfulness: {negativs: corrected}}", "did you mean 'negatives'?"),
        (
            "{head: {kind: none}}",
            "{faithfulness: {negatives: mine}}",
            "takes as_published, as_released, corrected",
        ),
        ("{head: {kind: none}}", "{faithfulness: {lars_norm: corrected}}", "takes as_published, as_released"),
        (
            "{head: {kind: none}}",
            "{faithfulness: {scaler_state: corrected}}",
            "takes none: it is decided in the code",
        ),
        ("{head: {kind: none}}", "{faithfulness: 3}", "faithfulness: got 3"),
        (
            "cells:",
            CLAIM.format("[a, b]") + "cells:",
            "claims.c: got cell 'b', takes a cell of this study: a",
        ),
        ("cells:", CLAIM.format("[a, table1/mlp]") + "cells:", "claims.c: got cell 'table1/mlp'"),
        (
            "cells:",
            "include: [table1]\n" + CLAIM.format("[a, table1/mlpp]") + "cells:",
            "got cell 'table1/mlpp'; did you mean 'table1/mlp'?",
        ),
        ("cells:", CLAIM.format("[a]") + "cells:", 'claims[0].cells: got ["a"], takes at least 2'),
        (
            "cells:",
            CLAIM.format("[a, a], margn: 1") + "cells:",
            "claims[0].margn: unknown field; did you mean 'margin'?",
        ),
        (
            "cells:",
            CLAIM.format("[a, a]").replace("order", "ordered") + "cells:",
            "claims[0].test: got \"ordered\"; did you mean 'order'?; takes one of order, equivalent",
        ),
        (
            "cells:",
            "figures:\n  - {name: f}\ncells:",
            'figures[0]: got {"name": "f"}, takes a mapping with a `kind`',
        ),
        ("cells:", "toy: {networks: 1}\ncells:", "toy.networks: got 1"),
        ("cells:", "toy: {layers: 2}\ncells:", "set.head: unknown field"),
        ("cells:", "cels:", "unknown field; did you mean 'cells'?"),
        ("cells:", "evaluations: [knnn]\ncells:", "did you mean 'knn'?; takes one of linear_probe"),
        ("{name: a,", "{name: a, lr: 3,", "cells[0].lr: unknown field"),
        ("{kind: none}}}", "{kind: none}}}\n  - {name: a, label: B}", "cells: got a more than once"),
        ("{kind: none}", "{kind: nonne}", "set.head.kind: got \"nonne\"; did you mean 'none'?"),
        ("{kind: none}", "{kind: subvector}", "set.head.d0: missing, and required"),
        ("{kind: none}", "{kind: subvector, d0: 257}", "d0: got 257, takes at most"),
        ("{kind: none}", "{kind: subvector, d0: 0}", "head.d0: got 0"),
        ("{kind: none}", "{kind: subvector, d0: 1.5}", "head.d0: got 1.5"),
        ("{kind: none}", "{kind: subvector, d0: 1/0}", 'head.d0: got "1/0"'),
        ("{kind: none}", "{kind: subvector, d0: true}", "head.d0: got true"),
        ("{kind: none}", "{kind: grouped, groups: 7}", "does not divide into 7 groups"),
        ("{kind: none}", "{kind: none, d0: 4}", "set.head.d0: unknown field; takes kind"),
        ("{head: {kind: none}}", "{haed: 1}", "set.haed: unknown field; did you mean 'head'?"),
        ("{head: {kind: none}}", "{optimizer..lr: 1}", "takes a dotted path"),
        ("{head: {kind: none}}", "[1]", "cells[0].set: got [1]"),
        ("title: Mine", "title: Mine\ntitle: Yours", "key 'title' appears twice"),
        ("title: Mine", "title: [", "not valid YAML: line"),
        ("title: Mine", "title: &a x\nrecipe: *a", "aliases"),
        ("title: Mine", "title: !!python/object:os.system x", "not valid YAML"),
        ("title: Mine", "1: x", "key 1 is not text"),
        ("title: Mine", "title: Mine\nseeds: [1e999]", "1e999 is out of range"),
    ],
)
def test_a_malformed_study_is_refused_by_file_and_field(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        make_plan([str(path)], "digits")
    message = str(caught.value)
    assert says in message
    assert "mine.yaml" in message
    assert "\n" not in message


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(STUDY.encode() + b"# \xff")
    with pytest.raises(SpecError, match=r"not UTF-8 at byte \d+"):
        load_study(str(path))


def test_studies_that_include_each_other_are_refused(tmp_path: Path) -> None:
    a, b = (tmp_path / f"{name}.yaml" for name in "ab")
    for mine, other in ((a, b), (b, a)):
        mine.write_text(f"name: {mine.stem}\ntitle: t\nsource: s\ninclude: [{other.stem}]\n")
    with pytest.raises(SpecError, match="a -> b -> a goes round in a circle"):
        make_plan([str(a)])
