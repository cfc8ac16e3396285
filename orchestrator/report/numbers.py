"""Measured numbers as text, with the decimals of their metric."""

from __future__ import annotations

from typing import Literal

NONE = "—"
MINUS = "−"


def number(value: float, metric: str, sign: bool = False, decimals: int | None = None) -> str:
    """Percentages, ranks and counts with one decimal, as the paper prints them; anything else with three.

    A value too small for its decimals has an exponent instead: 2.1e−5.

    Args:
        decimals: as many, whatever the metric.
    """
    if decimals is None and 0 < abs(value) < 0.0005 and _decimals(metric) == 3:
        mantissa, exponent = f"{value:{'+' if sign else ''}.1e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    text = f"{value:{'+' if sign else ''}.{_decimals(metric) if decimals is None else decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def _decimals(metric: str) -> int:
    return 1 if metric.endswith(("top1", "top5", "rankme", "rank")) or "directions" in metric else 3


def with_spread(mean: float, half: float | None, metric: str, decimals: int | None = None) -> str:
    """94.3 ± 1.2; 94.3 alone where nothing is known of the spread or there is none, and never ± 0.0."""
    shown = number(mean, metric, decimals=decimals)
    if half is None or half == 0:
        return shown
    if "e" in shown:
        return f"{shown} ± {number(half, metric)}"
    places = _decimals(metric) if decimals is None else decimals
    text = f"{half:.{places}f}"
    return f"{shown} ± <{10.0**-places:.{places}f}" if float(text) == 0 else f"{shown} ± {text}"


def bounds(metric: str) -> tuple[float, float] | None:
    """Least and greatest value that a metric can have, where it is a share of something."""
    if metric.endswith(("top1", "top5")):
        return 0.0, 100.0
    return (0.0, 1.0) if metric.endswith("_fraction") else None


def better(metric: str) -> Literal[1, -1, 0]:
    """1: higher is better, -1: lower is, 0: neither."""
    if metric.endswith(("top1", "top5")):
        return 1
    return -1 if metric.endswith("loss") else 0
