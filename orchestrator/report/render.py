"""Writes a study's report: tables, figures, claims.csv, cells.csv, provenance.json, report.md and index.html."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator.errors import AblateError
from orchestrator.plan import Plan, StudyPlan
from orchestrator.report import paths, phrases, sentences, strips, tables, verdicts
from orchestrator.report.claims import claims_csv, path_csv
from orchestrator.report.content import Report, make_report
from orchestrator.report.figures import FilledFigure
from orchestrator.report.frames import COLUMNS, Records
from orchestrator.report.latex import to_latex
from orchestrator.report.markdown import markdown, to_markdown
from orchestrator.report.tables import DEFAULT_STYLE, TableStyle
from orchestrator.store import Store
from trainers.files import make_folder, write_atomically
from trainers.locations import is_local

TEMPLATES = Path(__file__).parent / "templates"

EMBEDDED_BYTES = 3_500_000
"""Of pictures inside the page, so that it can be mailed: what is beyond is linked as a file beside it."""

PIXELS_PER_POINT = 1.6
"""A fifth larger than in print, where they are as wide as a column or two."""

Files = dict[str, str | bytes]


def write_report(
    plan: Plan,
    study: StudyPlan,
    store: Store,
    *,
    out: Path | None = None,
    source: Records | None = None,
    tracking: str | None = None,
    style: TableStyle = DEFAULT_STYLE,
) -> Path:
    """Make a study's report from records and write it.

    Args:
        out: directory; default: the study's own in the store.
        source: where records are read from; default: the store. `tracking.TrackedRecords` reads MLflow's.
        tracking: MLflow's URI, for the line that says where the runs are.
        style: how the numbers of tables are written.

    Returns:
        The report's directory; `index.html` is its front page.

    Raises:
        AblateError: the directory can't be written.
    """
    directory = out if out is not None else store.report_directory(study.name)
    write(make_report(plan, study, source if source is not None else store, tracking, style), directory)
    return directory


def write(report: Report, directory: Path) -> None:
    """Write a report, each file replaced in one step; unchanged records give unchanged bytes.

    Raises:
        AblateError: the directory can't be written.
    """
    contents = files(report)
    try:
        for name, content in contents.items():
            path = directory / name
            make_folder(path.parent)
            if is_local(path) and not path.parent.resolve().is_relative_to(directory.resolve()):
                raise AblateError(f"report {directory}: {path.parent.name} leads out of it; remove that link")
            write_atomically(path, content)
    except OSError as error:
        raise AblateError(f"report {directory}: cannot be written: {error.strerror}") from None


def files(report: Report) -> Files:
    """All files of a report, pictures too: path under its directory -> content."""
    pictures = figure_files(report)
    return {
        **table_files(report),
        **pictures,
        "provenance.json": json.dumps(report.provenance, indent=1, ensure_ascii=False) + "\n",
        "report.md": markdown(report),
        "index.html": html(report, pictures),
    }


def table_files(report: Report) -> dict[str, str]:
    """The files that hold numbers: the tables in three formats, claims.csv if there are claims, cells.csv."""
    contents = {"cells.csv": _cells_csv(report.cells)}
    if report.claims:
        contents["claims.csv"] = claims_csv(report.claims)
        contents["claims_by_seeds.csv"] = path_csv(report.claims)
    for table in report.tables:
        contents[f"tables/{table.name}.csv"] = tables.to_csv(table)
        contents[f"tables/{table.name}.md"] = to_markdown(table)
        contents[f"tables/{table.name}.tex"] = to_latex(table)
    return contents


def figure_files(report: Report) -> Files:
    """The figures as pictures and data, those that show something; drawing them takes seconds."""
    return {
        f"figures/{figure.name}.{ending}": content
        for figure in report.figures
        if not figure.empty
        for ending, content in drawn(figure).items()
    }


_DRAWN: dict[str, Files] = {}


def drawn(figure: FilledFigure) -> Files:
    """A figure as svg, png and csv, drawn once in a process: MLflow and the report show the same pictures."""
    identity = figure_identity(figure)
    if identity not in _DRAWN:
        _DRAWN[identity] = {"svg": figure.svg(), "png": figure.png(), "csv": figure.csv()}
    return _DRAWN[identity]


def figure_identity(figure: FilledFigure) -> str:
    """A digest of all that the pictures follow from."""
    content = json.dumps([figure.spec.model_dump(mode="json"), figure.csv()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def html(report: Report, pictures: Files) -> str:
    """The report as one page that needs no other file.

    Args:
        pictures: of `figure_files`.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%").replace(" ± ", "\u00a0± ")
    modules = {
        "paths": paths,
        "phrases": phrases,
        "sentences": sentences,
        "strips": strips,
        "verdicts": verdicts,
    }
    environment.globals |= modules | {"to_latex": to_latex}
    return environment.get_template("index.html.j2").render(
        report=report,
        facts=report.provenance,
        status=phrases.status(report.provenance),
        summary=phrases.provenance_summary(report.provenance),
        images=_images(report.figures, pictures),
    )


@dataclass(frozen=True)
class Image:
    """A figure on the page: where it is found, and how wide it is shown in pixels."""

    source: str
    width: int


def _images(figures: Sequence[FilledFigure], pictures: Files) -> dict[str, Image]:
    """Figures by name: in the page itself, smallest first up to a limit, or in the file beside it."""
    drawn = {figure.name: f"figures/{figure.name}.svg" for figure in figures if not figure.empty}
    images, left = {}, EMBEDDED_BYTES
    for name, path in sorted(drawn.items(), key=lambda item: len(pictures[item[1]])):
        content = pictures[path]
        assert isinstance(content, bytes)
        encoded = base64.b64encode(content).decode()
        left -= len(encoded)
        points = re.search(rb'<svg[^>]* width="([0-9.]+)pt"', content)
        images[name] = Image(
            source=f"data:image/svg+xml;base64,{encoded}" if left >= 0 else path,
            width=round(PIXELS_PER_POINT * float(points[1])) if points else 640,
        )
    return images


def _cells_csv(cells: pd.DataFrame) -> str:
    def plain(value: object) -> object:
        return None if isinstance(value, float) and math.isnan(value) else value

    lines: Sequence[Sequence[object]] = cells.astype(object).values.tolist()
    return tables.write_csv(COLUMNS, [[plain(value) for value in line] for line in lines])
