"""What a study shows and asserts: tables, figures and claims, as the YAML files say them.

A cell is named as in its own study, or as `study/cell` where it is one of an included study.
"""

from __future__ import annotations

from typing import Annotated, Literal, assert_never

from pydantic import Field, model_validator

from trainers.config import Config

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$", description="a-z, 0-9, _ . -")]
CellName = Annotated[
    str, Field(pattern=r"^([a-z0-9][a-z0-9_.-]{0,62}/)?[a-z0-9][a-z0-9_.-]{0,62}$", description="cell, or study/cell")
]  # fmt: skip
Metric = Annotated[str, Field(pattern=r"^[a-z_]+(/[a-z0-9_]+)+$")]
Title = Annotated[str, Field(min_length=1, max_length=300)]
Source = Annotated[str, Field(min_length=1, max_length=200, description="where in the paper")]


# --- tables -------------------------------------------------------------------------------------


class TableRow(Config):
    cell: Name
    columns: tuple[Annotated[str, Field(max_length=200)], ...]
    paper: float | None = Field(None, description="the paper's published value")
    metric: Metric | None = Field(None, description="of this row, where it isn't the table's")


class Table(Config):
    """A table of the paper: which cells, how they are named, which metric, the paper's numbers."""

    name: Name
    title: Title
    source: Source
    metric: Metric = "linear_probe/top1"
    metric_label: str = "Top-1 accuracy (%)"
    columns: tuple[Annotated[str, Field(min_length=1, max_length=60)], ...] = Field(min_length=1)
    rows: tuple[TableRow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rows_fill_columns(self) -> Table:
        for position, row in enumerate(self.rows):
            if len(row.columns) != len(self.columns):
                raise ValueError(
                    f"rows[{position}].columns: got {len(row.columns)} entries, takes {len(self.columns)}"
                )
        return self


# --- figures ------------------------------------------------------------------------------------


class _Figure(Config):
    name: Name
    title: Title
    source: Source


class SpectrumPanel(Config):
    title: str = Field("", max_length=120)
    cells: tuple[CellName, ...] = Field(min_length=1, max_length=8)


class SpectrumFigure(_Figure):
    """Log singular values of the covariance (Eq. 1) by rank, a line a cell (Figs. 2, 7b, 9)."""

    kind: Literal["spectrum"]
    subject: Literal["representation", "embedding"]
    panels: tuple[SpectrumPanel, ...] = Field(min_length=1, max_length=6)


class CurvePoint(Config):
    """A value that the paper publishes: at this cell's place on the axis."""

    cell: CellName
    paper: float


class CurveFigure(_Figure):
    """A metric against the number of features that the loss sees, d0 (Fig. 12)."""

    kind: Literal["curve"]
    metric: Metric = "linear_probe/top1"
    metric_label: str = "Top-1 accuracy (%)"
    cells: tuple[CellName, ...] = Field(min_length=2, description="their heads' d0 are the axis")
    line: CellName | None = Field(None, description="a cell drawn as a horizontal line: no projector")
    compare: tuple[CellName, ...] = Field((), description="a second curve over d0: random dropout")
    paper: tuple[CurvePoint, ...] = ()


class ToySpectrumFigure(_Figure):
    """Singular values at the end of the toy networks' training, a line a cell (Figs. 3, 11)."""

    kind: Literal["toy_spectrum"]
    of: Literal["weight", "embedding"]
    log: bool
    cells: tuple[CellName, ...] = Field(min_length=1, max_length=12)


class ToyAlignmentFigure(_Figure):
    """|V2^T U1| as a heat map (Fig. 5)."""

    kind: Literal["toy_alignment"]
    cell: CellName


class ToyEvolutionFigure(_Figure):
    """Singular values of every weight and of the embedding covariance over iterations (Figs. 6a-c)."""

    kind: Literal["toy_evolution"]
    cell: CellName


class TrainingFigure(_Figure):
    """Metrics of each epoch, a line a cell: the collapse as it happens."""

    kind: Literal["training"]
    metrics: tuple[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], ...] = Field(min_length=1, max_length=4)
    cells: tuple[CellName, ...] = Field(min_length=1, max_length=8)


class ScatterFigure(_Figure):
    """One metric against another, a point a cell and seed; no cells named means all."""

    kind: Literal["scatter"]
    x: Metric
    y: Metric
    cells: tuple[CellName, ...] = ()


Figure = Annotated[
    SpectrumFigure
    | CurveFigure
    | ToySpectrumFigure
    | ToyAlignmentFigure
    | ToyEvolutionFigure
    | TrainingFigure
    | ScatterFigure,
    Field(discriminator="kind"),
]


# --- claims -------------------------------------------------------------------------------------


class _Claim(Config):
    name: Name
    group: int | None = Field(None, ge=1, le=99, description="number of the claim in the paper's list")
    text: str = Field(min_length=1, max_length=500, description="the paper's sentence")
    source: Source


class OrderClaim(_Claim):
    """Each cell's metric exceeds the next one's, by more than `margin` (in the metric's unit)."""

    test: Literal["order"]
    cells: tuple[CellName, ...] = Field(min_length=2, max_length=20, description="highest first")
    metric: Metric = "linear_probe/top1"
    metrics: tuple[Metric, ...] | None = Field(None, description="one a cell, where they differ")
    margin: float = Field(0.0, ge=0, description="how much 'much higher' means")

    @model_validator(mode="after")
    def _one_metric_a_cell(self) -> OrderClaim:
        if self.metrics is not None and len(self.metrics) != len(self.cells):
            raise ValueError(
                f"metrics: got {len(self.metrics)}, takes one for each of {len(self.cells)} cells"
            )
        return self

    def metric_of(self, position: int) -> str:
        """The metric that the cell at this position of the chain is judged by."""
        return self.metrics[position] if self.metrics else self.metric


class EquivalenceClaim(_Claim):
    """Two cells differ by less than `margin`: two one-sided tests."""

    test: Literal["equivalent"]
    cells: tuple[CellName, CellName]
    metric: Metric = "linear_probe/top1"
    margin: float = Field(gt=0)


class LevelClaim(_Claim):
    """The metric of every one of the cells lies above (or below) a value."""

    test: Literal["above", "below"]
    cells: tuple[CellName, ...] = Field(min_length=1, max_length=50)
    metric: Metric
    value: float


class TrendClaim(_Claim):
    """The metric tends to rise (or fall) along the cells, not at every step: Page's test for ordered alternatives."""

    test: Literal["rising", "falling"]
    cells: tuple[CellName, ...] = Field(min_length=3, max_length=50)
    metric: Metric


class MonotoneClaim(_Claim):
    """The metric rises (or falls) at every step from one cell to the next."""

    test: Literal["increasing", "decreasing"]
    cells: tuple[CellName, ...] = Field(min_length=2, max_length=50)
    metric: Metric = "linear_probe/top1"


class PeakClaim(_Claim):
    """The metric, along the cells in order, is higher somewhere inside than at both ends."""

    test: Literal["interior_peak"]
    cells: tuple[CellName, ...] = Field(min_length=3, max_length=50)
    metric: Metric = "linear_probe/top1"


class CorrelationClaim(_Claim):
    """Over cells, two metrics are rank-correlated; no cells named means all."""

    test: Literal["correlated"]
    x: Metric
    y: Metric
    cells: tuple[CellName, ...] = ()


Claim = Annotated[
    OrderClaim | EquivalenceClaim | LevelClaim | TrendClaim | MonotoneClaim | PeakClaim | CorrelationClaim,
    Field(discriminator="test"),
]


class Statistics(Config):
    """How a study's claims are judged."""

    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="chance of any false verdict in a family of claims (Holm)"
    )
    power: float = Field(0.8, gt=0.5, lt=1, description="for the number of seeds that would decide")


def metrics_of(shown: Table | Figure | Claim) -> list[tuple[Metric, tuple[CellName, ...]]]:
    """The metrics that a table, figure or claim is made of, each with the cells it is of; no cells means all.

    Figures of spectra and of the course of a training are made of arrays and histories instead.
    """
    match shown:
        case Table():
            return [(row.metric or shown.metric, (row.cell,)) for row in shown.rows]
        case CurveFigure():
            line = (shown.line,) if shown.line else ()
            return [(shown.metric, (*shown.cells, *line, *shown.compare))]
        case ScatterFigure() | CorrelationClaim():
            return [(shown.x, shown.cells), (shown.y, shown.cells)]
        case OrderClaim():
            return [(shown.metric_of(position), (cell,)) for position, cell in enumerate(shown.cells)]
        case EquivalenceClaim() | LevelClaim() | TrendClaim() | MonotoneClaim() | PeakClaim():
            return [(shown.metric, shown.cells)]
        case (
            TrainingFigure()
            | SpectrumFigure()
            | ToySpectrumFigure()
            | ToyAlignmentFigure()
            | ToyEvolutionFigure()
        ):
            return []
        case _:
            assert_never(shown)


def cells_of(shown: Table | Figure | Claim) -> list[str]:
    """All cells that a table, figure or claim names, each once."""
    match shown:
        case Table():
            names = [row.cell for row in shown.rows]
        case SpectrumFigure():
            names = [cell for panel in shown.panels for cell in panel.cells]
        case CurveFigure():
            line = [shown.line] if shown.line else []
            names = [*shown.cells, *line, *shown.compare, *(point.cell for point in shown.paper)]
        case ToyAlignmentFigure() | ToyEvolutionFigure():
            names = [shown.cell]
        case ToySpectrumFigure() | TrainingFigure() | ScatterFigure():
            names = list(shown.cells)
        case (
            OrderClaim()
            | EquivalenceClaim()
            | LevelClaim()
            | TrendClaim()
            | MonotoneClaim()
            | PeakClaim()
            | CorrelationClaim()
        ):
            names = list(shown.cells)
        case _:
            assert_never(shown)
    return list(dict.fromkeys(names))
