"""Draws the tables of `figure_data` for print, with matplotlib: each kind of figure as the paper has it."""

from __future__ import annotations

from typing import Literal, assert_never

import pandas as pd
from matplotlib.figure import Figure

from orchestrator import exhibits
from orchestrator.report.figures.drawing import canvas, metrics, spectra


def render(spec: exhibits.Figure, data: pd.DataFrame, kind: Literal["svg", "png"]) -> bytes:
    """A picture of a figure's data; of an empty table one that says so. The same data give the same bytes."""
    return canvas.render(lambda: canvas.empty() if data.empty else _draw(spec, data), kind)


def _draw(spec: exhibits.Figure, data: pd.DataFrame) -> Figure:
    match spec:
        case exhibits.SpectrumFigure():
            return spectra.spectrum(spec, data)
        case exhibits.ToySpectrumFigure():
            return spectra.toy_spectrum(spec, data)
        case exhibits.ToyAlignmentFigure():
            return spectra.toy_alignment(data)
        case exhibits.ToyEvolutionFigure():
            return spectra.toy_evolution(data)
        case exhibits.CurveFigure():
            return metrics.curve(spec, data)
        case exhibits.TrainingFigure():
            return metrics.training(spec, data)
        case exhibits.ScatterFigure():
            return metrics.scatter(spec, data)
        case _:
            assert_never(spec)
