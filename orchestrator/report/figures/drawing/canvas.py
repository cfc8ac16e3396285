"""The look of every figure: sizes and type for print, colours that all readers can tell apart, fixed bytes."""

from __future__ import annotations

import io
import textwrap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from orchestrator.report.escape import one_line

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0
"""Widths in inches, as conference and journal templates have them."""
FONT = 8
SMALL = 7
MUTED = "#666666"
SHADE = "#ebebeb"

# Okabe & Ito's palette without its yellow, which is too light for a line on white
CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
# for print in grey
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")

SLASH = [(-1, -0.4), (1, 0.4)]
"""A marker; two of them break an axis."""

_STYLE: dict[Any, Any] = {
    "axes.grid": False,
    "axes.labelsize": FONT,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": FONT,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": FONT,
    "lines.linewidth": 1.3,
    "svg.fonttype": "path",
    "svg.hashsalt": "ablate",  # identifiers in the file are random without one
    "xtick.labelsize": SMALL,
    "xtick.major.width": 0.6,
    "ytick.labelsize": SMALL,
    "ytick.major.width": 0.6,
}
_STYLE_LOCK = threading.Lock()


@dataclass(frozen=True)
class Look:
    """How one line of a figure is drawn."""

    color: Any
    dash: Any
    marker: str


def render(draw: Callable[[], Figure], kind: Literal["svg", "png"]) -> bytes:
    """Draw and save in the style of this module, whatever the user's own settings are.

    matplotlib keeps its settings in one place for the whole process, so renderings take turns.
    """
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with _STYLE_LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        draw().savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()


def new_figure(
    width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> Figure:
    """White, so that it reads on a dark page too. `compressed` is for panels of a fixed aspect."""
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def empty() -> Figure:
    """What stands for a figure without data."""
    figure = new_figure(ONE_COLUMN, 1.0)
    figure.text(0.5, 0.5, "No data yet", ha="center", va="center", color=MUTED)
    return figure


def panels(
    count: int, height: float, keyed: Sequence[str] = (), share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """Panels side by side, three at most: one column of a paper wide for a single one, else two.

    Args:
        height: of a row of panels, in inches.
        keyed: labels of the key below, for which room is made.
    """
    columns = {1: 1, 2: 2, 4: 2}.get(count, 3)
    rows = -(-count // columns)
    width = ONE_COLUMN if columns == 1 else TWO_COLUMNS
    figure = new_figure(width, rows * height + key_height(keyed, width))
    grid = figure.subplots(rows, columns, sharey=share_y, squeeze=False)
    axes: list[Axes] = list(grid.flat)
    for spare in axes[count:]:
        figure.delaxes(spare)
    return figure, axes[:count]


def whole_numbers(axes: Axes) -> None:
    """Ticks at whole numbers only, on the axis of ranks or epochs."""
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def break_axis(axes: Axes, height: float) -> None:
    """Two slashes and a gap on the vertical axis: what lies below is not on its scale.

    Args:
        height: of the break, in the unit of the axis.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    for points, marker, color, size in (
        (0.0, "|", "white", 3.4),
        (-1.7, SLASH, "black", 6.0),
        (1.7, SLASH, "black", 6.0),
    ):
        beside = axes.get_yaxis_transform() + ScaledTranslation(0, points / 72, figure.dpi_scale_trans)
        axes.plot(
            0, height, transform=beside, marker=marker, markersize=size, color=color, clip_on=False, zorder=5,
            markeredgewidth=2.0 if marker == "|" else 0.8,
        )  # fmt: skip


def label_left(axes: Sequence[Axes], label: str) -> None:
    """One label for each row of panels that share an axis."""
    for one in axes:
        place = one.get_subplotspec()
        if place is not None and place.is_first_col():
            one.set_ylabel(label)


def names(data: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(study, cell) -> its label; with the cell's name where two cells have the same one."""
    cells = data.drop_duplicates(["study", "cell"])
    repeated = set(cells["label"][cells["label"].duplicated()])
    return {
        (study, cell): f"{label} ({study}/{cell})" if label in repeated else label
        for study, cell, label in zip(cells["study"], cells["cell"], cells["label"], strict=True)
    }


def categorical(count: int) -> list[Look]:
    """Looks of things that have no order."""
    return [
        Look(
            CATEGORIES[i % len(CATEGORIES)],
            DASHES[(i % len(CATEGORIES) + i // len(CATEGORIES)) % len(DASHES)],
            MARKERS[i % len(MARKERS)],
        )
        for i in range(count)
    ]


def ordered(count: int) -> list[Look]:
    """Looks of things in an order: amplitudes, depths, ranks. Dark comes first."""
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, max(count, 2)))
    return [Look(tuple(shades[i]), "-", MARKERS[i % len(MARKERS)]) for i in range(count)]


# --- text: labels come from YAML files, and none of them is to be read as a formula -------------


def plain(text: str, width: int = 60, lines: int = 3) -> str:
    """Text of a label in lines of `width` characters, without characters that the font lacks."""
    font = get_font(findfont(FontProperties(family=_STYLE["font.family"])))
    shown = "".join(
        letter if font.get_char_index(ord(letter)) else "\N{REPLACEMENT CHARACTER}"
        for letter in one_line(text)
    )
    return textwrap.fill(shown, width, max_lines=lines, placeholder=" …")


def literal(text: Text) -> Text:
    """The same text object, whose dollar signs are dollar signs."""
    text.set_parse_math(False)
    return text


def title(axes: Axes, text: str) -> None:
    """Above a panel, in as many letters as fit it."""
    place = axes.get_subplotspec()
    columns = place.get_gridspec().ncols if place else 1
    if text:
        literal(axes.set_title(plain(text, {1: 46, 2: 50}.get(columns, 33))))


def key_height(labels: Sequence[str], width: float) -> float:
    """Inches that `key` takes under the panels."""
    if not labels:
        return 0.0
    columns, wrapped = _key_layout(labels, width)
    rows = -(-len(wrapped) // columns)  # entries fill the key column by column
    lines = [max(label.count("\n") + 1 for label in wrapped[row::rows]) for row in range(rows)]
    return 0.08 + 0.135 * sum(lines) + 0.04 * rows


def key(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend under the panels, where it covers no data."""
    if labels:
        columns, wrapped = _key_layout(labels, figure.get_figwidth())
        _legend(figure, handles, wrapped, loc="outside lower center", ncols=columns, fontsize=FONT)


def key_beside(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend right of the panel; where a handle is None, the label is a heading."""
    blank = Line2D([], [], linestyle="")
    legend = _legend(
        figure,
        [one or blank for one in handles],
        labels,
        loc="outside right upper",
        fontsize=SMALL,
        handlelength=1,
    )
    for text, one in zip(legend.get_texts(), handles, strict=True):
        if one is None:
            text.set_color(MUTED)


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], **settings: Any) -> Legend:
    blank = [str(position) for position in range(len(labels))]  # matplotlib drops labels with a leading _
    spacing = {"handlelength": 2.6, "columnspacing": 1.4, "labelspacing": 0.35, "borderaxespad": 0.2}
    legend = figure.legend(handles, blank, **(spacing | settings | {"frameon": False}))
    for text, label in zip(legend.get_texts(), labels, strict=True):
        literal(text).set_text(label)
    return legend


def _key_layout(labels: Sequence[str], width: float) -> tuple[int, list[str]]:
    letters = int(width * 15.5)  # of this font in a line; a handle takes the room of seven
    wrapped = [plain(label, letters - 7) for label in labels]
    longest = max((len(line) for label in wrapped for line in label.split("\n")), default=1)
    return max(1, min(len(wrapped), letters // (longest + 7))), wrapped


def handle(look: Look, marker: bool = False, **changes: Any) -> Line2D:
    """A legend's sample of a line."""
    settings = {
        "color": look.color,
        "linestyle": look.dash,
        "marker": look.marker if marker else "",
        "markersize": 3.5,
    }
    return Line2D([], [], **(settings | changes))
