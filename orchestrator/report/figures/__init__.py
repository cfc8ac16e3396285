"""The paper's figures with our numbers: what each shows as one tidy table, its caption, and what is missing.

Tables and captions are made in `data` and `toy_data`, without matplotlib; `drawing` draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import pandas as pd

from orchestrator.exhibits import (
    CurveFigure,
    Figure,
    ScatterFigure,
    SpectrumFigure,
    ToyAlignmentFigure,
    ToyEvolutionFigure,
    ToySpectrumFigure,
    TrainingFigure,
)
from orchestrator.plan import StudyPlan
from orchestrator.report.figures import data as figure_data
from orchestrator.report.figures import toy_data as toy_figure_data
from orchestrator.report.figures.source import Source
from orchestrator.report.frames import Records, holes
from orchestrator.report.phrases import upper_first
from orchestrator.report.tables import write_csv
from orchestrator.spec import Study


@dataclass(frozen=True, eq=False)
class FilledFigure:
    """A figure of a study with numbers.

    Attributes:
        name: unique in a report; the stem of its files.
        study: the member study that shows it.
        data: what is drawn, a line an observation or a mean; every measured number in it is finite.
        caption: what is drawn, of how many seeds or networks, and what the bands are.
        notes: what is missing, and why.
    """

    name: str
    study: str
    spec: Figure
    data: pd.DataFrame
    caption: str
    notes: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw yet; the pictures are valid then, and say so."""
        return self.data.empty

    def csv(self) -> str:
        """The data in full precision."""
        columns = [
            [None if value is pd.NA else value for value in self.data[name].tolist()] for name in self.data
        ]
        return write_csv([str(name) for name in self.data], zip(*columns, strict=True))

    # matplotlib takes half a second to import: only who wants a picture pays for it

    def svg(self) -> bytes:
        """The same bytes for the same data; letters are outlines, so that it looks alike everywhere."""
        from orchestrator.report.figures import drawing

        return drawing.render(self.spec, self.data, "svg")

    def png(self) -> bytes:
        """200 dots per inch, as wide as one or two columns of a paper."""
        from orchestrator.report.figures import drawing

        return drawing.render(self.spec, self.data, "png")


def fill_figures(
    study: StudyPlan, cells: pd.DataFrame, records: Records, paper: bool = True
) -> list[FilledFigure]:
    """All figures of a study's members, in their order, with what there is of their data.

    Args:
        cells: of `frames.cells_frame`.
        records: where arrays and histories are read from.
        paper: whether the paper's values are drawn beside ours.
    """
    missing = holes(study, records)
    names = [figure.name for member in study.members for figure in member.figures]
    filled = []
    for member in study.members:
        for figure in member.figures:
            name = figure.name if names.count(figure.name) == 1 else f"{member.name}.{figure.name}"
            source = Source(study, member, cells, records, missing, paper)
            data, caption = _fill(figure, source)
            caption = f"{caption}{_setting(study, member)} Source: {figure.source}."
            filled.append(FilledFigure(name, member.name, figure, data, caption, source.notes()))
    return filled


def _setting(study: StudyPlan, member: Study) -> str:
    """Under what the numbers were measured; captions of toy networks say so themselves."""
    if member.toy is not None or study.setting is None:
        return ""
    return f" {upper_first(study.setting.caption)}."


def _fill(figure: Figure, source: Source) -> tuple[pd.DataFrame, str]:
    """Data and caption of one figure."""
    match figure:
        case SpectrumFigure():
            return figure_data.spectrum(figure, source)
        case CurveFigure():
            return figure_data.curve(figure, source)
        case TrainingFigure():
            return figure_data.training(figure, source)
        case ScatterFigure():
            return figure_data.scatter(figure, source)
        case ToySpectrumFigure():
            return toy_figure_data.spectrum(figure, source)
        case ToyAlignmentFigure():
            return toy_figure_data.alignment(figure, source)
        case ToyEvolutionFigure():
            return toy_figure_data.evolution(figure, source)
        case _:
            assert_never(figure)
