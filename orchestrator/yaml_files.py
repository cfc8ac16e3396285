"""Strict YAML: YAML 1.2 scalars, no duplicate keys, no aliases, no tags that build objects."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import SpecError

MAX_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """PyYAML speaks YAML 1.1, where 1e-6 is a string and `no` a boolean; this one speaks 1.2."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  (the base class's contract)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not taken here", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_finite(self, node: yaml.ScalarNode) -> float:
        value = float(self.construct_scalar(node))
        if math.isinf(value):
            raise yaml.MarkedYAMLError(problem=f"{node.value} is out of range", problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is not text; quote it", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} appears twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|false)$", "tf"),
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_finite)


def parse(text: str, source: str) -> Any:
    """One YAML document as plain dicts, lists and scalars.

    Raises:
        SpecError: with source, line and column.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SpecError(f"{source}: not valid YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:  # of odd tags
        raise SpecError(f"{source}: not valid YAML: {type(error).__name__}: {str(error)[:120]}") from None


def load_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        SpecError: unreadable, too large, not UTF-8, not YAML, or not a mapping.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{path}: got {path.stat().st_size} bytes, takes at most {MAX_BYTES}")
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    value = parse(text, str(path))
    if not isinstance(value, dict):
        raise SpecError(f"{path}: got {type(value).__name__}, takes a mapping of fields")
    return value
