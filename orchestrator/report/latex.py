"""A table as LaTeX: booktabs, a caption as a paper has it, notes below."""

from __future__ import annotations

import re

from orchestrator.report import escape
from orchestrator.report.numbers import MINUS, NONE
from orchestrator.report.phrases import upper_first
from orchestrator.report.tables import FilledTable, Row

_SYMBOLS = (("over n ", "over $n$ "), ("n = 1:", "$n = 1$:"), (" p = ", " $p$ = "))
"""Of legends, once escaped: what is typeset as math."""


def to_latex(table: FilledTable) -> str:
    """A floating table for a paper. Needs the packages booktabs and, for ticks, amssymb."""
    alignment = "".join("c" if ticks else "l" for ticks in table.ticked)
    alignment += "r" * (len(table.header) - len(table.ticked))
    header = [*map(escape.latex, table.header[:-1]), "$n$"]
    notes = [f"\\textsuperscript{{{mark}}} {escape.latex(text)}." for mark, text in table.notes.items()]
    lines = [
        "% needs \\usepackage{booktabs} and \\usepackage{amssymb}",
        "\\begin{table}[t]",
        "  \\centering",
        f"  \\caption{{{_caption(table)}}}",
        f"  \\label{{tab:{table.name}}}",
        f"  \\begin{{tabular}}{{{alignment}}}",
        "    \\toprule",
        f"    {' & '.join(header)} \\\\",
        "    \\midrule",
        *(f"    {' & '.join(_cells(table, row))} \\\\" for row in table.rows),
        "    \\bottomrule",
        "  \\end{tabular}",
        *(["  \\par\\smallskip", f"  {{\\footnotesize {' '.join(notes)}}}"] if notes else []),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _caption(table: FilledTable) -> str:
    legend = escape.latex(" ".join(table.legend))
    for text, symbols in _SYMBOLS:
        legend = legend.replace(text, symbols)
    setting = upper_first(table.setting)
    parts = (escape.latex(table.spec.title), escape.latex(f"{setting}.") if setting else "", legend)
    return " ".join(part for part in parts if part)


def _cells(table: FilledTable, row: Row) -> list[str]:
    ours, *others = (_math(text) for text in table.texts(row))
    if table.is_best(row):
        ours = f"{{\\boldmath{ours}}}"
    marks = f"\\textsuperscript{{{','.join(row.marks)}}}" if row.marks else ""
    return [*map(escape.latex, row.columns), ours + marks, *others]


def _math(text: str) -> str:
    """94.3 ± 1.2 -> $94.3 \\pm 1.2$, 2.1e−5 -> $2.1 \\times 10^{-5}$; a dash stays text."""
    if text in ("", NONE):
        return escape.latex(text)
    plain = re.sub(r"e(-?[0-9]+)", r" \\times 10^{\1}", text.replace(MINUS, "-"))
    return "$" + plain.replace("± <", r"\pm {<}").replace("±", r"\pm") + "$"
