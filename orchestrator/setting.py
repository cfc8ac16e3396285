"""Under what numbers were measured, in words: data, backbone, chance level, length, and what was overridden."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.spec import Published, Recipe
from trainers.config import BackboneConfig, DataConfig, ThinResNet

_NAMES = {
    "digits": "scikit-learn digits",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
    "imagenet": "ImageNet",
    "imagenet100": "ImageNet-100",
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "thin_resnet": "thin ResNet",
}
_CLASSES = {
    "digits": 10,
    "fashion_mnist": 10,
    "cifar10": 10,
    "cifar100": 100,
    "stl10": 10,
    "imagenet": 1000,
    "imagenet100": 100,
}
_NO_NUMBERS = ("resources", "limits", "cost", "data.root")
"""Overrides that change no number."""


@dataclass(frozen=True)
class Setting:
    """A recipe as a report names it.

    Attributes:
        data, backbone: in words.
        chance: accuracy of guessing, in percent; None where the number of classes is not known.
        length: epochs and batch.
        changes: overrides as path=value, those that can change numbers.
    """

    recipe: str
    data: str
    backbone: str
    chance: float | None
    length: str
    changes: tuple[str, ...]

    @property
    def caption(self) -> str:
        """digits at 16 px (chance 10 %), thin ResNet, 20 epochs; epochs=20."""
        chance = "" if self.chance is None else f" (chance {self.chance:.3g} %)"
        changes = f"; with {', '.join(self.changes)}" if self.changes else ""
        return f"{self.data}{chance}, {self.backbone}, {self.length}{changes}"

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """(what, in words), for the top of a page."""
        chance = "" if self.chance is None else f"; chance is {self.chance:.3g} %"
        changes = f", with {', '.join(self.changes)}" if self.changes else ", unchanged"
        return (
            ("Data", self.data + chance),
            ("Backbone", self.backbone),
            ("Training", self.length),
            ("Recipe", self.recipe + changes),
        )


def setting(recipe: Recipe, overrides: Mapping[str, Any]) -> Setting:
    """A recipe in words.

    Args:
        overrides: of the recipe, nested; they are in it already.
    """
    data, classes = recipe.data, class_count(recipe.data)
    kept = f", {data.train_images:,} images" if data.train_images else ""
    return Setting(
        recipe=recipe.name,
        data=f"{name_of(data.name or data.kind)} at {data.image_size} px{kept}",
        backbone=_backbone(recipe.backbone),
        chance=100 / classes if classes else None,
        length=f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''} of batch {recipe.batch_size}",
        changes=tuple(change for change in _flat(overrides) if not change.startswith(_NO_NUMBERS)),
    )


def name_of(kind: str) -> str:
    """A data set or backbone as people write it."""
    return _NAMES.get(kind, kind)


def published_words(published: Published) -> str:
    """ImageNet, ResNet-50."""
    return f"{name_of(published.data)}, {name_of(published.backbone)}"


def class_count(data: DataConfig) -> int | None:
    """How many classes there are; None of a folder whose name says nothing."""
    return data.classes or _CLASSES.get(data.name or data.kind)


def is_as_published(recipe: Recipe, published: Published) -> bool:
    """Whether a recipe's numbers can be compared with published ones: same data, image size and backbone."""
    data = recipe.data
    whole = data.train_images is None and data.validation_images is None
    ours = Published(data=data.name or data.kind, image_size=data.image_size, backbone=recipe.backbone.kind)
    return whole and ours == published


def _backbone(backbone: BackboneConfig) -> str:
    if isinstance(backbone, ThinResNet):
        blocks = "-".join(map(str, backbone.blocks))
        return f"thin ResNet of width {backbone.width}, blocks {blocks} (D = {backbone.representation_dim})"
    return f"{name_of(backbone.kind)} (D = {backbone.representation_dim})"


def _flat(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in overrides.items():
        if isinstance(value, Mapping) and "kind" not in value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{name}={text}"
