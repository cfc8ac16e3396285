"""Text for places that read some characters as commands: lines, CSV cells, Markdown, LaTeX."""

from __future__ import annotations

import re

_ALL = 10_000

# what spreadsheets take for the start of a formula, and its full-width twins
_FORMULA = ("=", "+", "-", "@", "|", "%", "＝", "＋", "－", "＠")

_MARKDOWN = {ord(character): f"\\{character}" for character in "\\`*_[]|~$#"} | {
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord("&"): "&amp;",
}

_LATEX = {ord(character): f"\\{character}" for character in "&%$#_{}"} | {
    ord("\\"): r"\textbackslash{}",
    ord("~"): r"\textasciitilde{}",
    ord("^"): r"\textasciicircum{}",
    ord("<"): r"\textless{}",
    ord(">"): r"\textgreater{}",
    ord("|"): r"\textbar{}",
    # at the start of a row these would be read as an argument of the \\ before it
    ord("["): "{[}",
    ord("]"): "{]}",
    ord("*"): "{*}",
    ord("✓"): r"\checkmark{}",
    ord("—"): "---",
    ord("±"): r"$\pm$",
    ord("−"): "$-$",
    ord("…"): r"\dots{}",
}


def one_line(text: object, limit: int = 300) -> str:
    """Text without line breaks and control characters, cut to a length that fits a note."""
    flat = "".join(character if character.isprintable() else " " for character in str(text))
    flat = " ".join(flat.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


# where the list separator is a semicolon, a cell starts behind each
_CELL_START = re.compile(rf"(^|;\s*)(?=[{re.escape(''.join(_FORMULA))}])")


def csv_text(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe goes before what would start one."""
    return _CELL_START.sub(r"\1'", one_line(text, _ALL))


def markdown(text: str) -> str:
    return one_line(text, _ALL).translate(_MARKDOWN)


def latex(text: str) -> str:
    return one_line(text, _ALL).translate(_LATEX)
