"""Numbers of a judgement as people write them."""

from __future__ import annotations

import math
import re

MINUS = "−"


def count(n: int, noun: str) -> str:
    """1 -> "one seed", 3 -> "3 seeds"."""
    return f"one {noun}" if n == 1 else f"{n} {noun}s"


def spoken(metric: str) -> str:
    """`linear_probe/top1` -> "linear probe top-1", `theory/loss` -> "loss"."""
    words = metric.removeprefix("theory/").replace("/", " ").replace("_", " ")
    return re.sub(r"\btop(\d)", r"top-\1", words)


def quoted(label: str) -> str:
    """A label to put into a sentence, whose commas would be taken for the sentence's."""
    return f"“{label}”" if "," in label else label


def plain(value: float, digits: int = 3) -> str:
    """A number of which no uncertainty is known, with so many significant digits."""
    return f"{value:.{digits}g}".replace("-", MINUS)


def rounded(values: tuple[float, ...], uncertainty: float, sign: bool = False) -> list[str]:
    """Values to the digit that their uncertainty reaches (to its second one where it begins with 1 or 2), and to one
    decimal at least, as the paper prints its numbers.
    """
    if not (uncertainty > 0 and math.isfinite(uncertainty)):
        return [f"{value:{'+' if sign else ''}.3g}".replace("-", MINUS) for value in values]
    exponent = math.floor(math.log10(uncertainty))
    decimals = -exponent + (uncertainty < 2.95 * 10.0**exponent)
    if decimals > 5:
        # so small that a power of ten reads better than zeros
        texts = [f"{value:{'+' if sign else ''}.2e}" for value in values]
    else:
        texts = [f"{value:{'+' if sign else ''}.{max(1, decimals)}f}" for value in values]
    return [_without_negative_zero(text).replace("-", MINUS) for text in texts]


def with_unit(text: str, unit: str) -> str:
    """1 -> "1 point", 1.5 -> "1.5 points"."""
    shown = unit.removesuffix("s") if text in ("1", f"{MINUS}1") else unit
    return f"{text} {shown}" if unit else text


def p_text(p: float) -> str:
    """0.0312 -> "p = 0.031", 1e-7 -> "p < 0.0001"."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def _without_negative_zero(text: str) -> str:
    return text[1:] if text.startswith("-") and float(text) == 0 else text
