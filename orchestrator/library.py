"""Finds studies and recipes, lays overrides over them, and says in one line what is wrong with one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import ledger, yaml_files
from orchestrator.errors import SpecError
from orchestrator.messages import did_you_mean, shorten, validate
from orchestrator.overrides import expand, merge
from orchestrator.spec import Cell, Recipe, Study, ToyFamily, content_key
from trainers.config import ToyConfig

STUDIES = Path(__file__).resolve().parent.parent / "studies"
RECIPES = STUDIES / "recipes"


@dataclass(frozen=True)
class RecipeSource:
    """A recipe with its defaults and `--set` overrides, as plain data, to which cells add theirs."""

    base: Recipe
    raw: dict[str, Any]
    recipe: Recipe
    overrides: dict[str, Any]

    @property
    def label(self) -> str:
        """The recipe's name; overrides that can change numbers give its reports a place of their own."""
        plain = _numbers(self.base)
        changed = {field: value for field, value in _numbers(self.recipe).items() if value != plain[field]}
        return f"{self.base.name}-{content_key(changed)[:6]}" if changed else self.base.name

    def with_cell(self, cell: Cell, study_file: Path) -> Recipe:
        """The recipe under one cell's override.

        Raises:
            SpecError: naming the study's file, the cell and the field.
        """
        where = f"{study_file}: cell {cell.name!r} under recipe {self.base.name}"
        changes = expand(cell.set, where)
        own = changes.pop("faithfulness", {})
        # The recipe's switches, then the cell's fields, then its switches: a cell stays what its label says.
        # The first see the cell's fields too, since some mean anything for one head alone.
        switched = ledger.apply(merge(self.raw, changes), where)
        raw = ledger.apply({**merge(switched, changes), "faithfulness": own}, where)
        if isinstance(own, dict):
            raw["faithfulness"] = {**self.raw["faithfulness"], **own}
        return validate(Recipe, raw, where, prefix="set.")


def names(folder: Path) -> list[str]:
    """Names of the YAML files of a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_study(name_or_path: str, beside: Path | None = None) -> tuple[Study, Path]:
    """A study by its name in `studies/`, or by a path to a YAML file; with its file, for messages.

    Args:
        beside: a study that includes this one; its folder is looked in first.
    """
    sibling = beside.parent / f"{name_or_path}.yaml" if beside else None
    path = sibling if sibling and sibling.is_file() else _locate(name_or_path, STUDIES, "study")
    study = validate(Study, yaml_files.load_mapping(path), str(path))
    _require_own_name(study.name, path)
    return study, path


def load_recipe(name_or_path: str, sets: tuple[str, ...] = ()) -> RecipeSource:
    """A recipe by name or path, under `--set path=value` overrides (value is YAML)."""
    path = _locate(name_or_path, RECIPES, "recipe")
    base = recipe = _recipe(yaml_files.load_mapping(path), str(path))
    _require_own_name(base.name, path)
    raw = recipe.model_dump(mode="json")  # with the defaults, so that an override may name just one field
    overrides: dict[str, Any] = {}
    for assignment in sets:
        field, separator, value = assignment.partition("=")
        if not separator or not field:
            raise SpecError(f"--set {assignment}: got no '=', takes path=value, such as epochs=4")
        where = f"--set {assignment}"
        overrides = merge(overrides, expand({field: yaml_files.parse(value, where)}, where))
    if overrides:
        # all at once: one override may be allowed only by another
        raw = merge(raw, overrides)
        where = " ".join(f"--set {assignment}" for assignment in sets)
        recipe = _recipe(raw, where)
        ledger.refuse_ineffective(raw, overrides, where)
    return RecipeSource(base, raw, recipe, overrides)


def toy_case(family: ToyFamily, recipe: Recipe, cell: Cell, file: str) -> ToyConfig:
    """A cell of a theory study: the study's shared fields, under the recipe's override, under the cell's.

    Raises:
        SpecError: naming the study's file, the cell and the field.
    """
    where = f"{file}: cell {cell.name!r} under recipe {recipe.name}"
    shared = family.model_dump(mode="json", exclude=set(ToyFamily.model_fields) - set(ToyConfig.model_fields))
    return validate(
        ToyConfig, merge(merge(shared, recipe.toy), expand(cell.set, where)), where, prefix="set."
    )


def _locate(name_or_path: str, folder: Path, what: str) -> Path:
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        try:
            found = path.is_file()
        except OSError as error:
            raise SpecError(f"{what} {shorten(name_or_path)}: {error.strerror}") from None
        if not found:
            raise SpecError(f"{what} {name_or_path}: no such file")
        return path
    known = names(folder)
    if name_or_path not in known:
        raise SpecError(
            f"{what} {name_or_path!r}: unknown{did_you_mean(name_or_path, known)}; takes a path to a YAML file "
            f"or one of {', '.join(known)}"
        )
    return folder / f"{name_or_path}.yaml"


def _recipe(raw: dict[str, Any], where: str) -> Recipe:
    return validate(Recipe, ledger.apply(raw, where), where)


def _require_own_name(name: str, path: Path) -> None:
    """Reports are kept under names: a copied file must not write over the original's."""
    if name != path.stem:
        raise SpecError(f"{path}: name: got {name!r}, takes the file's own, {path.stem!r}")


def _numbers(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(
        mode="json",
        exclude={
            "name": True,
            "title": True,
            "faithfulness": True,  # what its switches do is in the other fields
            "resources": True,
            "cost": True,
            "data": {"root"},
        },
    )
