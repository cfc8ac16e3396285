"""What a report says, made once from records; `render` writes it, `projection` tells MLflow of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from orchestrator.plan import Plan, StudyPlan
from orchestrator.report import tables
from orchestrator.report.claims import Judgement, judge, table_agreement
from orchestrator.report.figures import FilledFigure, fill_figures
from orchestrator.report.frames import Hole, Records, Snapshot, cells_frame, holes
from orchestrator.report.overview import Overview, overviews
from orchestrator.report.provenance import provenance
from orchestrator.report.tables import DEFAULT_STYLE, FilledTable, TableStyle
from orchestrator.report.tracked import Tracked, tracked
from orchestrator.spec import Study


@dataclass(frozen=True)
class Section:
    """What one member study shows."""

    study: Study
    tables: tuple[FilledTable, ...]
    figures: tuple[FilledFigure, ...]


@dataclass(frozen=True)
class Gap:
    """Holes of one kind of one cell that have the same reason; no seeds: of all its toy networks."""

    study: str
    label: str
    what: str
    reason: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """What one study under one recipe came to; the same records make the same report.

    Figures are drawn only when their pictures are asked for.
    """

    study: StudyPlan
    cells: pd.DataFrame
    missing: list[Hole]
    tables: list[FilledTable]
    figures: list[FilledFigure]
    claims: list[Judgement]
    overviews: list[Overview]
    provenance: dict[str, Any]
    tracked: Tracked | None = None

    @property
    def sections(self) -> list[Section]:
        """The member studies that show something, in order."""
        found = [
            Section(
                member,
                tuple(table for table in self.tables if table.study == member.name),
                tuple(figure for figure in self.figures if figure.study == member.name),
            )
            for member in self.study.members
        ]
        return [section for section in found if section.tables or section.figures]

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """(what, in words) of data, backbone, training, overrides; nothing where there are toy networks alone."""
        trained = any(cell.case is None for cell in self.study.cells)
        return self.study.setting.lines if trained and self.study.setting else ()

    @property
    def headed(self) -> bool:
        """Whether sections have headings: a single study's is the page's own, and a few tables need none."""
        return len(self.sections) > 1 and bool(self.figures or self.claims)

    @property
    def not_run(self) -> list[tuple[str, str]]:
        """(study, what of the paper is not covered and why)."""
        members = {member.name: member for member in (*self.study.members, self.study.study)}
        return [(name, text) for name, member in members.items() for text in member.not_run]

    @property
    def undrawn(self) -> list[FilledFigure]:
        """Figures of which there is nothing to show yet."""
        return [figure for figure in self.figures if figure.empty]

    @property
    def gaps(self) -> list[Gap]:
        """What is missing, with the seeds of one reason together."""
        seeds: dict[tuple[str, str, str, str, str], list[int]] = {}
        for hole in self.missing:
            of_one_kind = seeds.setdefault((hole.study, hole.cell, hole.label, hole.what, hole.reason), [])
            of_one_kind += [] if hole.seed is None else [hole.seed]
        return [
            Gap(study, label, what.replace("_", " "), reason, tuple(found))
            for (study, _, label, what, reason), found in seeds.items()
        ]


def make_report(
    plan: Plan,
    study: StudyPlan,
    records: Records,
    tracking: str | None = None,
    style: TableStyle = DEFAULT_STYLE,
) -> Report:
    """Everything that a report shows, from records.

    Args:
        tracking: MLflow's URI, for the line that says where the runs are; the numbers don't depend on it.
        style: how the numbers of tables are written.
    """
    records = Snapshot(records)
    records.bring(plan.trials, plan.evaluations)
    cells = cells_frame(study, records)
    missing = holes(study, records)
    return Report(
        study=study,
        cells=cells,
        missing=missing,
        tables=[
            replace(table, agreement=str(table_agreement(study, table) or ""))
            for table in tables.fill(study, cells, missing, style)
        ],
        figures=fill_figures(study, cells, records, paper=style.paper),
        claims=judge(study, cells, records),
        overviews=overviews(study, cells),
        provenance=provenance(plan, study, records, missing),
        tracked=tracked(tracking, study) if tracking else None,
    )
