"""The tidy table and the caption of each kind of figure that shows trained models."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from pydantic import ValidationError

from orchestrator.exhibits import CurveFigure, ScatterFigure, SpectrumFigure, TrainingFigure
from orchestrator.measured import frame_metric
from orchestrator.plan import PlannedCell
from orchestrator.report.figures.source import (
    CELL,
    NO_ARRAYS,
    NOT_FINITE,
    Source,
    joined,
    lines,
    noise_floor,
    noise_text,
    repeats,
    repeats_text,
)
from trainers.config import NoHead, TrialConfig

INTERVAL_SEEDS = 3
"""A t interval over two runs is nine times as wide as their distance: fewer seeds show only points."""

SPECTRUM_COLUMNS = ("panel", *CELL, "seed", "trial", "rank", "singular_value", "noise_floor")
CURVE_COLUMNS = ("source", "measured_on", "role", *CELL, "head", "d0", "dim", "seed", "trial", "value")
TRAINING_COLUMNS = (*CELL, "seed", "trial", "epochs", "metric", "value")
SCATTER_COLUMNS = (*CELL, "seed", "trial", "x", "y")


def spectrum(figure: SpectrumFigure, source: Source) -> tuple[pd.DataFrame, str]:
    """Figs. 2, 7b, 9: `rank` counts from 1 for the largest; `panel` from 1."""
    parts, scaled = [], set()
    for panel, spec in enumerate(figure.panels, start=1):
        for cell in (planned for name in dict.fromkeys(spec.cells) for planned in source.cell(name)):
            key = cell.evaluations.get("spectrum")
            record = source.records.evaluation_record(key) if key else None
            arrays = (source.records.evaluation_arrays(key) if key else None) or {}
            values = arrays.get(f"{figure.subject}_singular_values")
            if record is None:
                source.lacks(cell, "training", "spectrum", otherwise="its study measures no spectrum")
            elif values is None:
                source.lacks(cell, otherwise=NO_ARRAYS)
            elif values.ndim != 1 or not len(values):
                source.lacks(cell, otherwise="its spectrum is no list of numbers")
            elif not np.isfinite(values).all():
                source.lacks(cell, otherwise=f"spectrum {NOT_FINITE}")
            else:
                scaled.add(record["evaluation"].get("normalize") is True)
                ranks = np.arange(1, len(values) + 1)
                parts.append(
                    lines(
                        cell, panel=panel, seed=cell.seed, trial=cell.trial, rank=ranks, singular_value=values
                    )
                )
    data = joined(parts, SPECTRUM_COLUMNS[:-1])
    floor = noise_floor(data["singular_value"], data["rank"])
    data["noise_floor"] = floor
    vectors = f"{figure.subject}s of the validation images"
    if scaled == {True}:
        vectors += ", each scaled to unit length"
    caption = f"Natural logarithm of the singular values of the covariance (Eq. 1) of the {vectors}."
    return data, caption + _seeds(data, "geometric mean") + noise_text(data["singular_value"], floor)


def curve(figure: CurveFigure, source: Source) -> tuple[pd.DataFrame, str]:
    """Fig. 12: `role` is cells, compare or line; lines of `source` paper hold what the paper publishes.

    `measured_on` is empty of ours unless it is what the paper's values were measured on.
    """
    values = source.values(frame_metric(figure.metric))
    roles = dict.fromkeys(figure.cells, "cells") | dict.fromkeys(figure.compare, "compare")
    roles |= {figure.line: "line"} if figure.line else {}
    published = {point.cell: point.paper for point in figure.paper} if source.paper else {}
    ours, paper = [], []
    for name, role in roles.items():
        place: dict[str, object] = {}
        for cell in source.cell(name):
            place = _place(cell, source) or place
            value = values.get((cell.name, cell.seed))
            if value is None:
                source.lacks(cell, "training", _kind(figure.metric), otherwise=f"no {figure.metric}")
            elif not np.isfinite(value):
                source.lacks(cell, otherwise=f"{figure.metric} {NOT_FINITE}")
            elif not place:
                source.lacks(cell, otherwise="its head has no d0, or its record does not say it")
            else:
                measured_on = source.published if cell.as_published else ""
                identity = {"source": "ours", "measured_on": measured_on, "role": role, "seed": cell.seed,
                            "trial": cell.trial}  # fmt: skip
                ours.append(lines(cell, **identity, **place, value=[value]))
        if place and name in published:
            identity = {"source": "paper", "measured_on": source.published, "role": role, "seed": pd.NA,
                        "trial": ""}  # fmt: skip
            paper.append(lines(cell, **identity, **place, value=[published[name]]))
    for name in (name for name in published if name not in roles):
        source.remark(
            source.cell(name)[0], "the paper's value has no place, as it is not a cell of this curve"
        )
    data = joined([*ours, *paper] if ours else [], CURVE_COLUMNS).astype({"seed": "Int64"})
    return data, _curve_caption(figure, data)


def _place(cell: PlannedCell, source: Source) -> dict[str, object] | None:
    """Where a cell stands on the axis. No projector shows the loss all D features."""
    record = source.records.trial_record(cell.trial)
    if record is None or "config" not in record:
        return None
    try:
        config = TrialConfig.model_validate_json(json.dumps(record["config"]))
    except ValidationError:
        return None
    dim = config.backbone.representation_dim
    d0 = dim if isinstance(config.head, NoHead) else getattr(config.head, "d0", None)
    return None if d0 is None else {"head": config.head.kind, "d0": d0, "dim": dim}


def _curve_caption(figure: CurveFigure, data: pd.DataFrame) -> str:
    ours = data[data["source"] == "ours"]
    counts = repeats(ours, "seed")
    most = counts[1]
    caption = f"{figure.metric_label} against d0, the number of features that the loss sees."
    if most:
        caption += f" {repeats_text(counts)}: a dot a run"
        caption += ", the line through their means" if most > 1 else ""
        caption += ", the band their 95 % t interval" if most >= INTERVAL_SEEDS else ""
        caption += "; too few seeds for an interval." if 1 < most < INTERVAL_SEEDS else "."
    paper = data[data["source"] == "paper"]
    if len(paper):
        place = "" if comparable(data) else ", on an axis of their own, since data and backbone are others"
        caption += f" Hollow: the paper's values ({paper['measured_on'].iloc[0]}), at the same d0/D{place}."
    return caption


def comparable(data: pd.DataFrame) -> bool:
    """Whether a curve's values were measured on what the paper's were."""
    return data["measured_on"].nunique() == 1


def training(figure: TrainingFigure, source: Source) -> tuple[pd.DataFrame, str]:
    """Each epoch's metrics; `epochs` is how many were finished, from 1."""
    parts = []
    for cell in (planned for name in dict.fromkeys(figure.cells) for planned in source.cell(name)):
        history = source.records.history(cell.trial)
        if source.records.trial_record(cell.trial) is None:
            source.lacks(cell, "training", otherwise="")
        for metric in figure.metrics:
            points = [(int(entry["epoch"]) + 1, entry[metric]) for entry in history if metric in entry]
            finite = [point for point in points if np.isfinite(point[1])]
            if history and not points:
                source.lacks(cell, otherwise=f"no {metric} was recorded")
            if bad := len(points) - len(finite):
                source.lacks(cell, otherwise=f"{metric} {NOT_FINITE}, in {repeats_text((bad, bad), 'epoch')}")
            if finite:
                epochs, values = zip(*finite, strict=True)
                identity = {"seed": cell.seed, "trial": cell.trial, "metric": metric}
                parts.append(lines(cell, **identity, epochs=epochs, value=np.array(values, dtype=float)))
    data = joined(parts, TRAINING_COLUMNS)
    return data, "Metrics of each epoch while training." + _seeds(data, "mean")


def scatter(figure: ScatterFigure, source: Source) -> tuple[pd.DataFrame, str]:
    """One metric against another: a line a cell and seed."""
    x, y = (source.values(frame_metric(metric)) for metric in (figure.x, figure.y))
    parts = []
    for cell in (planned for name in figure.cells or source.every_cell() for planned in source.cell(name)):
        point = (cell.name, cell.seed)
        lacking = [metric for metric, known in ((figure.x, x), (figure.y, y)) if point not in known]
        if lacking:
            # "all cells" are those whose studies measure both
            if figure.cells or (_measures(cell, figure.x) and _measures(cell, figure.y)):
                kinds = map(_kind, lacking)
                source.lacks(cell, "training", *kinds, otherwise=f"no {' and no '.join(lacking)}")
        elif not np.isfinite([x[point], y[point]]).all():
            source.lacks(cell, otherwise=f"{figure.x} or {figure.y} {NOT_FINITE}")
        else:
            parts.append(lines(cell, seed=cell.seed, trial=cell.trial, x=x[point], y=[y[point]]))
    data = joined(parts, SCATTER_COLUMNS)
    return data, _scatter_caption(data)


def points_of(data: pd.DataFrame) -> pd.DataFrame:
    """A scatter's points: means, least and greatest of each cell's seeds; cells that share a training are one."""
    if data.empty:
        return pd.DataFrame(columns=[*CELL, "x", "y", "x_low", "x_high", "y_low", "y_high"])
    points = data.groupby(["study", "cell"], sort=False, as_index=False).agg(
        label=("label", "first"),
        trials=("trial", lambda trials: tuple(sorted(trials))),
        x=("x", "mean"),
        y=("y", "mean"),
        x_low=("x", "min"),
        x_high=("x", "max"),
        y_low=("y", "min"),
        y_high=("y", "max"),
    )
    return points.drop_duplicates(["trials", "x", "y"], ignore_index=True)


def _scatter_caption(data: pd.DataFrame) -> str:
    points = points_of(data)
    counts = repeats(data, "seed")
    most = counts[1]
    caption = "A point a cell; cells that share their trainings are one point."
    if most:
        caption += f" {repeats_text(counts)}"
        caption += ": means, bars from the least to the greatest." if most > 1 else "."
    # rank correlation is Pearson's of ranks: scipy's would take a second to import
    rho = points["x"].rank().corr(points["y"].rank()) if len(points) > 2 else np.nan
    if np.isfinite(rho):
        caption += f" Spearman's ρ = {rho:.2f} over {len(points)} points.".replace("-", "−")
    return caption


def _seeds(data: pd.DataFrame, middle: str) -> str:
    counts = repeats(data, "seed")
    if counts[1] == 0:
        return ""
    band = f": the line is the {middle}, the band goes from the least to the greatest"
    return f" {repeats_text(counts)}{band if counts[1] > 1 else ''}."


def _kind(metric: str) -> str:
    """The evaluation, or the training, that measures a metric."""
    subject = frame_metric(metric).split("/")[0]
    if subject in ("representation", "embedding"):
        return "spectrum"
    return "training" if subject in ("pretrain", "theory") else subject


def _measures(cell: PlannedCell, metric: str) -> bool:
    """Whether a cell's study asks for a metric."""
    if _kind(metric) == "training":
        return metric.startswith("theory/") == (cell.case is not None)
    return _kind(metric) in cell.evaluations
