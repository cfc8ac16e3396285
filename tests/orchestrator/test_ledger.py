"""The faithfulness ledger: every switch does what it says, for every recipe that it means anything for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.ledger import apply, ledger
from orchestrator.library import load_recipe
from orchestrator.plan import make_plan
from orchestrator.spec import trial_key

CHOICES = [(name, version) for name, switch in ledger().items() for version in switch.choices]
RECIPES = ("digits", "imagenet")


def plain(recipe: str, *sets: str) -> dict[str, Any]:
    return load_recipe(recipe, sets).recipe.model_dump(mode="json")


@pytest.mark.parametrize(("name", "version"), CHOICES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_chosen_version_is_in_force_and_nothing_else_moves(name: str, version: str, recipe: str) -> None:
    switch, before = ledger()[name], plain(recipe)
    others = {path: value for path, value in switch.where.items() if path != "head.kind"}
    if not switch.model_copy(update={"where": others}).applies(before):
        with pytest.raises(SpecError, match="means nothing here, takes a recipe with"):
            plain(recipe, f"faithfulness.{name}={version}")
        return
    after = plain(recipe, f"faithfulness.{name}={version}")
    assert after.pop("faithfulness") == {name: version}
    before.pop("faithfulness")
    if not switch.applies(before):
        assert after == before
        return
    assert version in switch.in_force(after)
    allowed = set(switch.choices[version])
    assert {field for field in after if after[field] != before[field]} <= allowed


def test_every_version_of_a_switch_is_another_configuration() -> None:
    """A switch that moves trainings has versions with different keys; one that moves none has the same."""
    sets = ("head={kind: diagonal}",)
    for name, switch in ledger().items():
        keys = {
            trial_key(
                load_recipe(
                    "imagenet", (*sets, f"faithfulness.{name}={version}", "batch_size=1024")
                ).recipe.trial(0),
                1,
            )
            for version in switch.choices
        }
        if switch.choices and switch.moves == "trainings":
            assert len(keys) == len(switch.choices) > 1, name
        elif switch.moves in ("measurements", "theory"):
            assert len(keys) == 1, name


def test_a_cell_stays_what_its_label_says_under_a_switch_of_the_recipe() -> None:
    turned = make_plan(["beyond"], seeds=(0,), sets=("faithfulness.negatives=as_published",))
    kinds = {cell.name: turned.trials[cell.trial].loss.kind for cell in turned.cells()}  # type: ignore[union-attr]
    assert kinds["beyond/ntxent_mlp"] == "ntxent"
    assert kinds["table1/mlp"] == "same_view"
    own = make_plan(["faithfulness"], seeds=(0,), sets=("faithfulness.negatives=as_published",))
    kinds = {cell.name: own.trials[cell.trial].loss.kind for cell in own.cells()}  # type: ignore[union-attr]
    assert kinds["faithfulness/negatives_corrected"] == "ntxent"
    assert kinds["faithfulness/base"] == "same_view"


def test_a_switch_and_a_field_that_it_sets_are_not_taken_together() -> None:
    with pytest.raises(SpecError, match=r"faithfulness.temperature: sets loss.temperature too"):
        plain("digits", "loss.temperature=0.5", "faithfulness.temperature=as_published")


def test_the_recipe_as_published_follows_the_released_code_where_the_text_is_silent() -> None:
    recipe = plain("imagenet")
    for name, switch in ledger().items():
        if (
            "as_released" in switch.choices
            and name not in ("toy_loss", "toy_bias")
            and switch.applies(recipe)
        ):
            assert "as_released" in switch.in_force(recipe), name


def test_a_switch_wins_over_the_field_that_it_sets_and_keeps_the_others() -> None:
    recipe = load_recipe("digits", ("loss.temperature=0.3", "faithfulness.negatives=corrected")).recipe
    assert (recipe.loss.kind, recipe.loss.temperature) == ("ntxent", 0.3)


def test_applying_twice_is_applying_once() -> None:
    raw = plain("digits") | {"faithfulness": {"negatives": "as_published", "views": "as_published"}}
    once = apply(raw, "x")
    assert json.dumps(apply(once, "x"), sort_keys=True) == json.dumps(once, sort_keys=True)


def test_the_study_turns_every_switch_that_a_cpu_can() -> None:
    plan = make_plan(["faithfulness"], seeds=(0,))
    turned = {
        (name, version)
        for cell in plan.studies[0].study.cells
        for name, version in cell.set.get("faithfulness", {}).items()
    }
    base = plain("digits")
    for name, switch in ledger().items():
        if switch.choices and switch.moves in ("trainings", "measurements") and name != "precision":
            others = {(name, version) for version in switch.choices} - {
                (name, version) for version in switch.in_force(base | {"head": {"kind": "diagonal"}})
            }
            assert others & turned, name
