"""Singular values against rank or time, and the alignment of singular vectors: Figs. 2, 3, 5, 6, 7b, 9, 11."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from orchestrator.exhibits import SpectrumFigure, ToySpectrumFigure
from orchestrator.report.figures.drawing import canvas
from orchestrator.report.figures.drawing.canvas import Look
from orchestrator.report.figures.toy_data import over_networks

RANK = "Singular value rank index"
LOG = "Log of singular values"
LINEAR = "Singular values"
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")

Bands = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Low, middle and high of a line, in the values' unit."""


class _LogAxis:
    """Heights on a logarithmic axis, with a strip below it for what is numerical noise.

    A value at or below the floor has no height of its own: its line runs through the strip, each line
    in a lane of its own, so that one sees how many directions are lost. The strip lies just below the
    least value that is real, however far the floor is.
    """

    def __init__(self, floor: float, values: np.ndarray, lanes: int) -> None:
        """`values` are all that will be drawn."""
        self.floor, self.lanes = floor, lanes
        real = np.log(values[values > floor])
        self.has_strip = real.size < values.size
        span = max(float(np.ptp(real)), 1.0) if real.size else 1.0
        self.top = max(float(real.min()) - 0.06 * span, np.log(floor)) if real.size else float(np.log(floor))
        self.height = 0.18 * span

    def place(self, values: np.ndarray, lane: int) -> np.ndarray:
        # the upper part of the strip is for words
        within = self.top - self.height * (0.45 + 0.5 * (lane + 0.5) / self.lanes)
        return np.where(values > self.floor, np.log(np.maximum(values, self.floor)), within)

    def finish(self, axes: Axes) -> None:
        """Shade the strip and say what it is."""
        if not self.has_strip:
            return
        axes.axhspan(self.top - self.height, self.top, color=canvas.SHADE, linewidth=0, zorder=0)
        axes.set_ylim(bottom=self.top - self.height)
        axes.set_yticks([tick for tick in axes.get_yticks() if self.top < tick <= axes.get_ylim()[1]])
        canvas.break_axis(axes, self.top)
        below = f"{np.log(self.floor):.0f}".replace("-", "−")
        axes.annotate(
            f"axis broken: numerical noise, below {below}", (0, self.top - 0.23 * self.height),
            xycoords=axes.get_yaxis_transform(), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6.5,
            color=canvas.MUTED,
        )  # fmt: skip


def _line(
    axes: Axes, x: np.ndarray, bands: Bands, look: Look, log: _LogAxis | None, lane: int, marker: bool = False
) -> None:
    low, middle, high = (log.place(values, lane) for values in bands) if log else bands
    settings: dict[str, Any] = (
        {"marker": look.marker, "markersize": 3.2, "markeredgewidth": 0} if marker else {}
    )
    axes.plot(x, middle, color=look.color, linestyle=look.dash, **settings)
    if not np.array_equal(low, high):
        axes.fill_between(x, low, high, color=look.color, alpha=0.18, linewidth=0)


def _finish(axes: Axes, log: _LogAxis | None) -> None:
    if log:
        log.finish(axes)
    else:  # from zero, with room for the markers that stand on it
        axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])


# --- trained models -----------------------------------------------------------------------------


def spectrum(spec: SpectrumFigure, data: pd.DataFrame) -> Figure:
    """Figs. 2, 7b, 9. A cell looks alike in all panels."""
    names = canvas.names(data)
    looks = dict(zip(names, canvas.categorical(len(names)), strict=True))
    log = _LogAxis(float(data["noise_floor"].iloc[0]), data["singular_value"].to_numpy(), len(names))
    figure, axes = canvas.panels(len(spec.panels), 2.2, list(names.values()), share_y=True)
    for position, (panel, one) in enumerate(zip(spec.panels, axes, strict=True), start=1):
        here = data[data["panel"] == position]
        for lane, (study, cell) in enumerate(names):
            mine = here[(here["study"] == study) & (here["cell"] == cell)]
            if len(mine):
                rank, bands = _over_seeds(mine, log.floor)
                _line(one, rank, bands, looks[study, cell], log, lane)
        canvas.title(one, panel.title)
        one.set_xlabel(RANK)
        canvas.whole_numbers(one)
        log.finish(one)
    canvas.label_left(axes, LOG)
    canvas.key(figure, [canvas.handle(look) for look in looks.values()], list(names.values()))
    return figure


def _over_seeds(lines: pd.DataFrame, floor: float) -> tuple[np.ndarray, Bands]:
    """Least, geometric mean and greatest by rank. Noise counts as zero, and so does a mean that it is part of."""
    values = lines.pivot(index="rank", columns="seed", values="singular_value").to_numpy()  # (ranks, seeds)
    real = np.where(values > floor, values, 0.0)
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(real).mean(axis=1))
    return np.arange(1, len(real) + 1), (real.min(axis=1), mean, real.max(axis=1))


# --- toy networks -------------------------------------------------------------------------------


def toy_spectrum(spec: ToySpectrumFigure, data: pd.DataFrame) -> Figure:
    """Figs. 3, 11: the median over networks, 10th to 90th percentile."""
    names = canvas.names(data)
    quantiles = over_networks(data)
    log = None
    if spec.log:
        drawn = quantiles[["low", "median", "high"]].to_numpy()
        log = _LogAxis(float(data["noise_floor"].iloc[0]), drawn, len(names))
    figure, (axes,) = canvas.panels(1, 2.4, list(names.values()))
    looks = canvas.ordered(len(names))
    for lane, ((study, cell), look) in enumerate(zip(names, looks, strict=True)):
        mine = quantiles[(quantiles["study"] == study) & (quantiles["cell"] == cell)]
        _line(axes, mine["rank"].to_numpy(), _bands(mine), look, log, lane, marker=True)
    axes.set_xlabel(RANK)
    canvas.whole_numbers(axes)
    axes.set_ylabel(LOG if log else LINEAR)
    _finish(axes, log)
    canvas.key(figure, [canvas.handle(look, marker=True) for look in looks], list(names.values()))
    return figure


def _bands(quantiles: pd.DataFrame) -> Bands:
    low, middle, high = (quantiles[name].to_numpy() for name in ("low", "median", "high"))
    return low, middle, high


def toy_alignment(data: pd.DataFrame) -> Figure:
    """Fig. 5, as a heat map of the mean over networks."""
    matrix = data.pivot(index="row", columns="column", values="mean")
    figure = canvas.new_figure(canvas.ONE_COLUMN, 2.8, layout="compressed")
    axes = figure.subplots()
    extent = (0.5, matrix.shape[1] + 0.5, matrix.shape[0] + 0.5, 0.5)
    image = axes.imshow(
        matrix.to_numpy(), vmin=0, vmax=1, cmap="viridis", extent=extent, interpolation="nearest"
    )
    axes.set_xlabel("Left singular vector of W₁")
    axes.set_ylabel("Right singular vector of W₂")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("|A|")
    bar.outline.set_visible(False)
    return figure


def toy_evolution(data: pd.DataFrame) -> Figure:
    """Figs. 6a-c: a panel for each weight and one for the embedding; a line a rank, its colour tells which."""
    subjects = list(dict.fromkeys(data["of"]))
    figure, axes = canvas.panels(len(subjects), 2.0)
    ranks = int(data["rank"].max())
    looks = canvas.ordered(ranks)
    for position, (subject, one) in enumerate(zip(subjects, axes, strict=True)):
        here = data[data["of"] == subject]
        log = None
        if subject == "embedding":
            drawn = here[["low", "median", "high"]].to_numpy()
            log = _LogAxis(float(here["noise_floor"].iloc[0]), drawn, ranks)
        for rank, lines in here.groupby("rank"):
            _line(one, lines["iteration"].to_numpy(), _bands(lines), looks[rank - 1], log, rank - 1)
        _finish(one, log)
        what = "Embedding covariance" if log else f"Weight {subject.translate(_SUBSCRIPTS)}"
        canvas.title(one, f"({ascii_lowercase[position]}) {what}")
        one.set_xlabel("Iterations")
        one.set_ylabel(LOG if log else LINEAR)
    _rank_bar(figure, axes, looks)
    return figure


def _rank_bar(figure: Figure, axes: list[Axes], looks: list[Look]) -> None:
    ranks = len(looks)
    colors = ScalarMappable(
        BoundaryNorm(np.arange(0.5, ranks + 1), ranks), ListedColormap([look.color for look in looks])
    )
    bar = figure.colorbar(
        colors, ax=axes, fraction=0.03, pad=0.015, ticks=sorted({1, ranks // 2, ranks} - {0})
    )
    bar.set_label("Rank")
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.ax.invert_yaxis()  # the largest singular value is on top of the panels too
