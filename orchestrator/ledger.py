"""The faithfulness ledger: where text, released code and correction differ, as named switches.

The entries are data (`studies/ledger/switches.yaml`). A recipe's `faithfulness` chooses versions by
name; `apply` turns them into the fields that they stand for, before the recipe is validated.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from orchestrator import yaml_files
from orchestrator.errors import SpecError
from orchestrator.exhibits import Name
from orchestrator.messages import did_you_mean, validate
from orchestrator.overrides import at, merge
from orchestrator.spec import Version
from trainers.config import Config

FILE = Path(__file__).resolve().parent.parent / "studies" / "ledger" / "switches.yaml"


class Switch(Config):
    """One point of difference, and the fields that each version of the method sets."""

    name: Name
    title: str = Field(min_length=1, max_length=200)
    paper: str = Field(min_length=1, max_length=400)
    released: str = Field(min_length=1, max_length=400)
    ours: str = Field(min_length=1, max_length=400, description="what is in force by default, and why")
    source: str = Field(min_length=1, max_length=200)
    moves: Literal["trainings", "measurements", "theory", "nothing"]
    where: dict[str, str] = Field(
        {}, description="fields that a recipe must have for the switch to mean anything"
    )
    choices: dict[Version, dict[str, Any]] = Field({}, description="version -> the fields it sets")

    def applies(self, recipe: dict[str, Any]) -> bool:
        return all(at(recipe, path) == value for path, value in self.where.items())

    def in_force(self, recipe: dict[str, Any]) -> list[Version]:
        """The versions whose fields a recipe has."""
        if not self.applies(recipe):
            return []
        return [version for version, fields in self.choices.items() if _within(fields, recipe)]


class Ledger(Config):
    switches: tuple[Switch, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_once(self) -> Ledger:
        names = [switch.name for switch in self.switches]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"switches: got {', '.join(sorted(repeated))} more than once, takes each once")
        return self


@functools.cache
def ledger() -> dict[str, Switch]:
    """All switches by name."""
    loaded = validate(Ledger, yaml_files.load_mapping(FILE), str(FILE))
    return {switch.name: switch for switch in loaded.switches}


def apply(recipe: dict[str, Any], where: str) -> dict[str, Any]:
    """A recipe as plain data, with the fields of the versions that its `faithfulness` names.

    A switch that means nothing for a recipe (the diagonal projector's, under another head) changes nothing.

    Raises:
        SpecError: an unknown switch, or a version that a switch does not have.
    """
    chosen = recipe.get("faithfulness")
    if not isinstance(chosen, dict):
        return recipe
    for name, version in chosen.items():
        known = ledger()
        if name not in known:
            raise SpecError(
                f"{where}: faithfulness: got switch {name!r}{did_you_mean(str(name), list(known))}, takes one of "
                f"{', '.join(name for name, switch in known.items() if switch.choices)}"
            )
        switch = known[name]
        if version not in switch.choices:
            takes = ", ".join(switch.choices) or f"none: it is decided in the code ({switch.ours})"
            raise SpecError(f"{where}: faithfulness.{name}: got {version!r}, takes {takes}")
        if switch.applies(recipe):
            recipe = merge(recipe, switch.choices[version])
    return recipe


def refuse_ineffective(recipe: dict[str, Any], overrides: dict[str, Any], where: str) -> None:
    """Refuse a switch that means nothing for a recipe, or sets a field that is overridden beside it.

    Heads are what cells set, so a switch that is about one head is let through.

    Raises:
        SpecError: naming the switch.
    """
    for name, version in overrides.get("faithfulness", {}).items():
        switch = ledger()[name]
        for path, needed in switch.where.items():
            if path != "head.kind" and at(recipe, path) != needed:
                raise SpecError(
                    f"{where}: faithfulness.{name}: means nothing here, takes a recipe with {path} = {needed}"
                )
        for path in _paths(switch.choices[version]):
            given = at(overrides, path)
            if given is not None and given != at(switch.choices[version], path):
                raise SpecError(f"{where}: faithfulness.{name}: sets {path} too, takes one of the two")


def _paths(fields: dict[str, Any]) -> list[str]:
    """Dotted paths of all values."""
    found = []
    for name, value in fields.items():
        found += [f"{name}.{below}" for below in _paths(value)] if isinstance(value, dict) else [name]
    return found


def _within(fields: dict[str, Any], content: Any) -> bool:
    """Whether content has all these fields, with these values."""
    if not isinstance(content, dict):
        return False
    return all(
        _within(value, content.get(name)) if isinstance(value, dict) else content.get(name) == value
        for name, value in fields.items()
    )
