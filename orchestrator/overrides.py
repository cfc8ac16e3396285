"""Overrides of plain data: dotted paths, and one mapping laid over another."""

from __future__ import annotations

from typing import Any

from orchestrator.errors import SpecError

_SAME_FIELDS = ("loss",)
"""Fields whose kinds all have the same fields, so that another kind keeps the rest."""


def expand(overrides: dict[str, Any], where: str) -> dict[str, Any]:
    """{"optimizer.lr": 1} -> {"optimizer": {"lr": 1}}."""
    expanded: dict[str, Any] = {}
    for path, value in overrides.items():
        parts = path.split(".")
        if not all(parts):
            raise SpecError(f"{where}: {path!r}: takes a dotted path such as optimizer.lr")
        nested: Any = expand(value, where) if isinstance(value, dict) else value
        for part in reversed(parts):
            nested = {part: nested}
        expanded = merge(expanded, nested)
    return expanded


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Override laid over base, mapping by mapping. A new `kind` replaces: other kinds' fields don't carry over."""
    merged = dict(base)
    for key, value in override.items():
        below = merged.get(key)
        same_kind = (
            isinstance(value, dict)
            and isinstance(below, dict)
            and ("kind" not in value or value["kind"] == below.get("kind") or key in _SAME_FIELDS)
        )
        merged[key] = merge(below, value) if same_kind else value  # type: ignore[arg-type]
    return merged


def at(content: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for part in path.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
