"""Turns a validation error into one line: file, field, what it got, what it takes."""

from __future__ import annotations

import difflib
import json
import types
import typing
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.errors import SpecError

M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], raw: dict[str, Any], where: str, prefix: str = "") -> M:
    """Plain data as a model.

    Args:
        where: file (or flag) for the message.
        prefix: put before the field's path, for data that are nested in a file.

    Raises:
        SpecError: one line on the first problem, with a count of the rest.
    """
    try:
        # through JSON: strict, yet lists may become tuples
        return model.model_validate_json(json.dumps(raw, allow_nan=False))
    except ValidationError as error:
        # a misspelt field is also a missing one: tell the misspelling
        problems = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise SpecError(f"{where}: {_describe(model, raw, problems[0], prefix)}{more}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"{where}: {str(error)[:200]}") from None


def did_you_mean(word: str, known: list[str]) -> str:
    """ "; did you mean 'x'?" or nothing."""
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def shorten(value: Any, limit: int = 60) -> str:
    """A value as text that fits a line, without control characters."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def for_a_terminal(message: str, limit: int = 480) -> str:
    """A message as one line: control characters, bidi marks and lone surrogates as escapes; cut in the middle.

    Paths and names of any kind get into messages; the remedy is at the end, so the middle is what goes.
    """
    flat = " ".join(line.strip() for line in message.splitlines())
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in (
            flat if len(flat) <= limit else f"{flat[: limit - limit // 3 - 5]} ... {flat[-limit // 3 :]}"
        )
    )
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


_DISCRIMINATORS = ("kind", "test")
"""Fields that say which member of a union a mapping is."""


def _describe(model: type[BaseModel], raw: Any, problem: Any, prefix: str) -> str:
    location = problem["loc"]
    path = prefix + _path(raw, location)
    kind, got, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        return f"{path}: unknown field{did_you_mean(location[-1], known)}; takes {', '.join(known)}"
    if kind == "missing":
        return f"{path}: missing, and required"
    if kind == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
        tag = context["tag"]
        field = context["discriminator"].strip("'")
        return f"{path}.{field}: got {shorten(tag)}{did_you_mean(tag, tags)}; takes one of {', '.join(tags)}"
    if kind == "union_tag_not_found":
        field = context["discriminator"].strip("'")
        return f"{path}: got {shorten(got)}, takes a mapping with a `{field}`"
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        if ": got " in message or location == ():
            return f"{path}.{message}" if path else message
        return f"{path}: got {shorten(got)}, {message}" if not isinstance(got, dict) else f"{path}: {message}"
    if kind == "literal_error":
        choices = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return f"{path}: got {shorten(got)}{did_you_mean(got, choices)}; takes one of {', '.join(choices)}"
    if kind == "string_pattern_mismatch":
        return f"{path}: got {shorten(got)}, takes text that matches {context['pattern']}"
    if kind in ("too_short", "too_long"):
        limit = (
            f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        )
        return f"{path}: got {shorten(got)}, takes {limit}"
    return f"{path}: got {shorten(got)}, takes {message.removeprefix('Input should be ').removeprefix('a valid ')}"


def _path(raw: Any, location: tuple[Any, ...]) -> str:
    """pydantic's location without the tags of discriminated unions, as a.b[2].c."""
    path, here = "", raw
    for element in location:
        if isinstance(element, int):
            path += f"[{element}]"
            here = here[element] if isinstance(here, list) and element < len(here) else None
        elif isinstance(here, dict) and element not in here and element in map(here.get, _DISCRIMINATORS):
            continue
        elif isinstance(element, str) and here is not None and not isinstance(here, dict):
            continue  # a branch of a plain union, such as int | str
        else:
            path += f".{element}" if path else str(element)
            here = here.get(element) if isinstance(here, dict) else None
    return path


def _fields_at(annotation: Any, location: tuple[Any, ...]) -> list[str]:
    """Names of the fields that the model at a location has."""
    for element in location:
        annotation = _plain(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[element].annotation
        elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
            annotation = next(
                (member for member in typing.get_args(annotation) if element in _tags(member)), None
            )
        elif typing.get_origin(annotation) is tuple:
            annotation = typing.get_args(annotation)[0]
        else:
            return []
    annotation = _plain(annotation)
    return (
        list(annotation.model_fields)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel)
        else []
    )


def _plain(annotation: Any) -> Any:
    """The annotation without Annotated[...] and | None."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    members = [member for member in typing.get_args(annotation) if member is not type(None)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and len(members) == 1:
        return members[0]
    return annotation


def _tags(model: Any) -> tuple[Any, ...]:
    fields = getattr(model, "model_fields", {})
    field = next((fields[name] for name in _DISCRIMINATORS if name in fields), None)
    return typing.get_args(field.annotation) if field else ()
