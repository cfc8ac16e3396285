"""Accuracy against d0 (Fig. 12), metrics while training, and one metric against another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.exhibits import CurveFigure, ScatterFigure, TrainingFigure
from orchestrator.measured import frame_metric
from orchestrator.report.figures.data import INTERVAL_SEEDS, comparable, points_of
from orchestrator.report.figures.drawing import canvas
from orchestrator.report.figures.drawing.canvas import Look, literal
from orchestrator.report.phrases import metric_label
from orchestrator.report.statistics import mean_interval

_HEADS = {
    "subvector": "DirectCLR: the first d₀ features",
    "dropout": "Random dropout to d₀ features",
    "low_rank": "Fixed projector of rank d₀",
}
_ROLES = {
    "cells": canvas.categorical(3)[0],
    "compare": canvas.categorical(3)[1],
    "line": Look("#000000", "--", "s"),
}
NUMBERED_POINTS = 24
_OFFSETS = [
    *((x, y) for y in (5, -5) for x in (7, -7)),
    *((0, 8), (0, -8), (9, 0), (-9, 0)),
    *((x, y) for y in (9, -9) for x in (12, -12)),
]
"""Where a point's number may stand, in points from it; the first is best."""


# --- accuracy against d0 ------------------------------------------------------------------------


def curve(spec: CurveFigure, data: pd.DataFrame) -> Figure:
    """Fig. 12. The paper's values get a panel of their own where they were measured on other data or another
    backbone, and where ours would be crushed beside them.
    """
    ours, paper = data[data["source"] == "ours"], data[data["source"] == "paper"]
    crushed = _span(data["value"]) > 2 * _span(ours["value"])
    apart = len(paper) > 0 and (crushed or not comparable(data))
    handles, labels = _curve_key(ours, paper)
    below = canvas.key_height(labels, canvas.ONE_COLUMN)
    figure = canvas.new_figure(canvas.ONE_COLUMN, (3.1 if apart else 2.3) + below)
    ratios = [2.2, 1] if apart else [1]
    axes = list(figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios).flat)
    for role, lines in ours.groupby("role", sort=False):
        _draw_role(axes[0], lines, role)
    for one in paper.to_dict("records"):
        look = _ROLES[one["role"]]
        axes[-1].plot(
            one["d0"], one["value"], look.marker, color=look.color, markerfacecolor="white", markersize=5, zorder=4,
            clip_on=False,
        )  # fmt: skip
    literal(axes[0].set_ylabel(canvas.plain(spec.metric_label, 40)))
    if apart:
        axes[1].set_ylabel("Paper", color=canvas.MUTED)
        axes[1].margins(y=0.25)
        figure.align_ylabels(axes)
    _d0_axis(axes[-1], data)
    canvas.key(figure, handles, labels)
    return figure


def _curve_key(ours: pd.DataFrame, paper: pd.DataFrame) -> tuple[list[Line2D], list[str]]:
    handles, labels = [], []
    for role, lines in ours.groupby("role", sort=False):
        handles.append(canvas.handle(_ROLES[role], marker=role != "line"))
        labels.append(_role_label(lines, role))
    if len(paper):
        hollow = {"markerfacecolor": "white", "markersize": 4.5}
        handles.append(canvas.handle(Look(canvas.MUTED, "", "o"), marker=True, **hollow))
        labels.append(f"Paper ({paper['measured_on'].iloc[0]})")
    return handles, labels


def _span(values: pd.Series) -> float:
    return float(values.max() - values.min())


def _role_label(lines: pd.DataFrame, role: str) -> str:
    if role == "line":
        return str(lines["label"].iloc[0])
    heads = set(lines["head"]) - {"none"}
    return _HEADS.get(heads.pop(), "Swept cells") if len(heads) == 1 else "Swept cells"


def _draw_role(axes: Axes, lines: pd.DataFrame, role: str) -> None:
    look = _ROLES[role]
    points = pd.DataFrame(
        [(d0, *mean_interval(group.tolist())) for d0, group in lines.groupby("d0")["value"]],
        columns=["d0", "mean", "low", "high", "n"],
    ).astype({"low": float, "high": float})
    points.loc[points["n"] < INTERVAL_SEEDS, ["low", "high"]] = np.nan
    if role == "line":
        axes.axhline(points["mean"].iloc[0], color=look.color, linestyle=look.dash, linewidth=1)
        if points["low"].notna().all():
            axes.axhspan(
                points["low"].iloc[0], points["high"].iloc[0], color=look.color, alpha=0.1, linewidth=0
            )
        return
    axes.plot(
        points["d0"],
        points["mean"],
        color=look.color,
        linestyle=look.dash,
        marker=look.marker,
        markersize=3.5,
    )
    axes.fill_between(points["d0"], points["low"], points["high"], color=look.color, alpha=0.18, linewidth=0)
    if points["n"].max() > 1:
        axes.plot(
            lines["d0"], lines["value"], ".", color=look.color, markersize=5, markeredgewidth=0, alpha=0.55
        )


def _d0_axis(axes: Axes, data: pd.DataFrame) -> None:
    axes.set_xscale("log", base=2)
    places = sorted(set(data["d0"]))
    room = (np.log2(places[-1]) - np.log2(places[0])) / 11
    kept: list[int] = []
    for place in reversed(places):  # the last one, d0 = D, always gets its number
        if not kept or np.log2(kept[-1]) - np.log2(place) >= room:
            kept.append(place)
    axes.set_xticks(kept, [str(place) for place in kept])
    axes.set_xticks([place for place in places if place not in kept], minor=True)
    axes.xaxis.set_minor_formatter("")
    dims = sorted(set(data["dim"]))
    of = f" of D = {dims[0]}" if len(dims) == 1 else ""
    axes.set_xlabel(f"d₀: features{of} that the loss sees")


# --- while training -----------------------------------------------------------------------------

_EPOCH_METRICS = {
    "loss": "Training loss",
    "lr": "Learning rate",
    "online_top1": "Online probe top-1 (%)",
    "representation_rankme": "RankMe of representation",
    "embedding_rankme": "RankMe of embedding",
}


def training(spec: TrainingFigure, data: pd.DataFrame) -> Figure:
    """A panel a metric; the mean over seeds, from the least to the greatest."""
    names = canvas.names(data)
    looks = canvas.categorical(len(names))
    figure, axes = canvas.panels(len(spec.metrics), 2.1, list(names.values()))
    for metric, one in zip(spec.metrics, axes, strict=True):
        here = data[data["metric"] == metric]
        for (study, cell), look in zip(names, looks, strict=True):
            mine = here[(here["study"] == study) & (here["cell"] == cell)]
            by_epoch = mine.groupby("epochs")["value"].agg(["min", "mean", "max"])
            single: dict[str, Any] = {"marker": look.marker, "markersize": 3.5} if len(by_epoch) == 1 else {}
            one.plot(by_epoch.index, by_epoch["mean"], color=look.color, linestyle=look.dash, **single)
            if mine["seed"].nunique() > 1:
                one.fill_between(
                    by_epoch.index,
                    by_epoch["min"],
                    by_epoch["max"],
                    color=look.color,
                    alpha=0.18,
                    linewidth=0,
                )
        one.set_xlabel("Epochs")
        canvas.whole_numbers(one)
        literal(one.set_ylabel(canvas.plain(_EPOCH_METRICS.get(metric, metric.replace("_", " ")), 40)))
    canvas.key(figure, [canvas.handle(look) for look in looks], list(names.values()))
    return figure


# --- one metric against another -----------------------------------------------------------------


def scatter(spec: ScatterFigure, data: pd.DataFrame) -> Figure:
    """A point a cell, its colour and shape by study; few enough points are numbered, with a key beside."""
    points = points_of(data)
    numbered = len(points) <= NUMBERED_POINTS
    width = canvas.TWO_COLUMNS if numbered else canvas.ONE_COLUMN
    studies = list(dict.fromkeys(points["study"]))
    looks = dict(zip(studies, canvas.categorical(len(studies)), strict=True))
    below = 0.0 if numbered else canvas.key_height(studies, width)
    entries = list(_numbered(points)) if numbered else []
    lines = sum(label.count("\n") + 1 for _, label in entries)
    figure = canvas.new_figure(width, max(2.8 + below, 0.145 * lines + 0.2))
    axes = figure.subplots()
    for study, group in points.groupby("study", sort=False):
        look = looks[study]
        bars = [
            [group[name] - group[f"{name}_low"], group[f"{name}_high"] - group[name]] for name in ("x", "y")
        ]
        axes.errorbar(
            group["x"], group["y"], xerr=bars[0], yerr=bars[1], linestyle="", marker=look.marker, color=look.color,
            markersize=4.5, elinewidth=0.6, alpha=0.85,
        )  # fmt: skip
    literal(axes.set_xlabel(canvas.plain(metric_label(frame_metric(spec.x)), 60)))
    literal(axes.set_ylabel(canvas.plain(metric_label(frame_metric(spec.y)), 40)))
    marks = {study: canvas.handle(Look(look.color, "", look.marker), marker=True, markersize=4.5)
             for study, look in looks.items()}  # fmt: skip
    if numbered:
        _number_points(axes, points["x"].to_numpy(), points["y"].to_numpy())
        canvas.key_beside(figure, [marks.get(study) for study, _ in entries], [label for _, label in entries])
    else:
        canvas.key(figure, list(marks.values()), studies)
    return figure


def _numbered(points: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(study or "", line of the key): each study's name above its points."""
    last: Any = None
    for number, (study, label) in enumerate(zip(points["study"], points["label"], strict=True), start=1):
        if study != last:
            yield "", study
        last = study
        text = canvas.plain(label, 46, lines=2).replace("\n", "\n\u2007\u2007\u2002")
        yield study, f"{number:\u2007>2}\u2002{text}"


def _number_points(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Number the points 1, 2, ..., each beside its point where neither a point nor a number is yet."""
    panel = (
        2.3 * 72,
        2.2 * 72,
    )  # about what the points span, in the unit of the offsets; only distances matter
    centres = np.column_stack(
        [values / (np.ptp(values) or 1.0) * size for values, size in zip((x, y), panel, strict=True)]
    )
    taken = list(centres)
    for number, centre in enumerate(centres, start=1):
        clear = [
            min(np.abs((centre + offset - other) / (5, 4)).max() for other in taken) for offset in _OFFSETS
        ]
        # clear enough is clear: then the first place is best
        offset = _OFFSETS[int(np.argmax(np.minimum(clear, 1.2)))]
        taken.append(centre + offset)
        axes.annotate(
            str(number), (x[number - 1], y[number - 1]), xytext=offset, textcoords="offset points",
            ha="center", va="center", fontsize=6.5,
        )  # fmt: skip
