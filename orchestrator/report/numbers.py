"""Measured numbers as text, with the decimals of their metric."""

from __future__ import annotations

from orchestrator.report.statistics import Interval

NONE = "—"
MINUS = "−"


def number(value: float, metric: str, sign: bool = False) -> str:
    """Percentages, ranks and counts with one decimal, as the paper prints them; anything else with three.

    A value too small for its decimals has an exponent instead: 2.1e−5.
    """
    if 0 < abs(value) < 0.0005 and _decimals(metric) == 3:
        mantissa, exponent = f"{value:{'+' if sign else ''}.1e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    text = f"{value:{'+' if sign else ''}.{_decimals(metric)}f}"
    if sign and float(text) == 0:
        text = text[1:]
    return text.replace("-", MINUS)


def _decimals(metric: str) -> int:
    return 1 if metric.endswith(("top1", "top5", "rankme", "rank")) or "directions" in metric else 3


def interval_text(interval: Interval | None, metric: str) -> str:
    """94.3 ± 1.2."""
    if interval is None:
        return NONE
    mean, half = number(interval.mean, metric), interval.half_width
    if half is None:
        return mean
    # beside a mean that is not small, a small half-width is a zero
    return f"{mean} ± {number(half, metric) if 'e' in mean else f'{half:.{_decimals(metric)}f}'}"
