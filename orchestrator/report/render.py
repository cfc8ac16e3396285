"""Writes a study's report: tables, cells.csv, provenance.json, report.md and index.html."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator.errors import AblateError
from orchestrator.plan import Plan, StudyPlan
from orchestrator.report import escape, tables
from orchestrator.report.frames import COLUMNS, Hole, Records, Snapshot, cells_frame, holes
from orchestrator.report.provenance import provenance
from orchestrator.report.statistics import mean_interval
from orchestrator.report.tables import FilledTable
from orchestrator.store import Store
from trainers.files import write_atomically

TEMPLATES = Path(__file__).parent / "templates"

METRIC_LABELS = {
    "linear_probe/top1": "Linear probe top-1 (%)",
    "linear_probe/top5": "Linear probe top-5 (%)",
    "linear_probe/loss": "Linear probe loss",
    "subvector_probe/top1": "Subvector probe top-1 (%)",
    "subvector_probe/top5": "Subvector probe top-5 (%)",
    "subvector_probe/loss": "Subvector probe loss",
    "knn/top1": "kNN top-1 (%)",
    "knn/top5": "kNN top-5 (%)",
    "representation/rankme": "RankMe of representation",
    "embedding/rankme": "RankMe of embedding",
    "representation/collapsed_fraction": "Collapsed share of representation",
    "embedding/collapsed_fraction": "Collapsed share of embedding",
    "pretrain/loss": "Last training loss",
    "pretrain/online_top1": "Last online top-1 (%)",
}


@dataclass(frozen=True)
class OverviewRow:
    """One cell against all metrics, as text."""

    study: str
    label: str
    seeds: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """All cells of all member studies against all metrics."""

    metrics: tuple[str, ...]
    studies: dict[str, tuple[OverviewRow, ...]]


@dataclass(frozen=True)
class Report:
    """What one study under one recipe came to; the same records make the same report."""

    study: StudyPlan
    cells: pd.DataFrame
    missing: list[Hole]
    tables: list[FilledTable]
    overview: Overview
    provenance: dict[str, Any]


def make_report(plan: Plan, study: StudyPlan, records: Records) -> Report:
    """Everything that a report shows, from records."""
    records = Snapshot(records)
    cells = cells_frame(study, records)
    missing = holes(study, records)
    facts = provenance(plan, study, records, missing)
    return Report(study, cells, missing, tables.fill(study, cells, missing), _overview(study, cells), facts)


def write_report(
    plan: Plan, study: StudyPlan, store: Store, *, out: Path | None = None, source: Records | None = None
) -> Path:
    """Write a study's report, each file replaced in one step; unchanged records give unchanged bytes.

    Args:
        out: directory; default: the study's own in the store.
        source: where records are read from; default: the store. `tracking.TrackedRecords` reads MLflow's.

    Returns:
        The report's directory; `index.html` is its front page.

    Raises:
        AblateError: the directory can't be written.
    """
    directory = out if out is not None else store.report_directory(study.name)
    contents = files(make_report(plan, study, source if source is not None else store))
    try:
        for name, text in contents.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
    except OSError as error:
        raise AblateError(f"report {directory}: cannot be written: {error.strerror}") from None
    return directory


def files(report: Report) -> dict[str, str]:
    """All files of a report: path under its directory -> text."""
    return table_files(report) | {
        "provenance.json": json.dumps(report.provenance, indent=1, ensure_ascii=False) + "\n",
        "report.md": markdown(report),
        "index.html": html(report),
    }


def table_files(report: Report) -> dict[str, str]:
    """The files that hold numbers: the tables in three formats, and cells.csv."""
    contents = {"cells.csv": _cells_csv(report.cells)}
    for table in report.tables:
        contents[f"tables/{table.name}.csv"] = tables.to_csv(table)
        contents[f"tables/{table.name}.md"] = tables.to_markdown(table)
        contents[f"tables/{table.name}.tex"] = tables.to_latex(table)
    return contents


def markdown(report: Report) -> str:
    """The report as one Markdown page."""
    plain = escape.markdown
    facts, overview = report.provenance, report.overview
    blocks = [
        f"# {plain(report.study.study.title)}",
        f"{plain(facts['source'])}. {plain(_status(report))}",
    ]
    blocks += [tables.to_markdown(table).rstrip() for table in report.tables]
    header = ["Study", "Cell", *(metric_label(metric) for metric in overview.metrics), "n"]
    lines = [
        [plain(row.study), plain(row.label), *row.texts, str(row.seeds)]
        for rows in overview.studies.values()
        for row in rows
    ]
    grid = tables.markdown_grid([*map(plain, header)], lines, left=2)
    blocks += ["## All cells and metrics", grid.rstrip()]
    if report.missing:
        lines = [[plain(hole.study), plain(hole.label), str(hole.seed), hole.what.replace("_", " "),
                  plain(hole.reason)] for hole in report.missing]  # fmt: skip
        grid = tables.markdown_grid(["Study", "Cell", "Seed", "Missing", "Reason"], lines, left=5)
        blocks += ["## Missing", grid.rstrip()]
    summary = [f"- {plain(name)}: {plain(value)}" for name, value in provenance_summary(facts)]
    blocks += ["## Provenance", "\n".join(summary)]
    return "\n\n".join(blocks) + "\n"


def html(report: Report) -> str:
    """The report as one self-contained page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {
        "metric_label": metric_label,
        "to_latex": tables.to_latex,
        "number": tables.number,
        "duration": duration,
    }
    return environment.get_template("index.html.j2").render(
        report=report,
        facts=report.provenance,
        status=_status(report),
        summary=provenance_summary(report.provenance),
    )


def metric_label(metric: str) -> str:
    """A metric's name for people."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


def duration(seconds: float) -> str:
    """12.3 -> "12.3 s", 312 -> "5 min 12 s", 9000 -> "2 h 30 min"."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def provenance_summary(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The provenance in some lines: name and value."""
    versions = "; ".join(f"{name} {', '.join(found)}" for name, found in facts["versions"].items())
    hardware = "; ".join(
        ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in place.items())
        for place in facts["hardware"]
    )
    datasets = "; ".join(f"{data['name']} (sha256 {data['fingerprint'][:16]})" for data in facts["datasets"])
    memory = facts["peak_memory_bytes"]
    lines = [
        ("Recipe", facts["recipe"]),
        ("Seeds", ", ".join(map(str, facts["seeds"]))),
        ("Overrides", json.dumps(facts["overrides"], ensure_ascii=False) if facts["overrides"] else "none"),
        (
            "Training",
            f"{facts['trials_done']} of {facts['trials_planned']} trials, {duration(facts['training_seconds'])} in sum",
        ),
        (
            "Evaluations",
            f"{facts['evaluations_done']} of {facts['evaluations_planned']}, "
            f"{duration(facts['evaluation_seconds'])} in sum",
        ),
        ("First start, last end (UTC)", f"{_minute(facts['started'])}, {_minute(facts['finished'])}"),
        ("Peak memory of a trial", f"{memory / 2**20:.0f} MiB" if memory else "not recorded"),
        ("Executor", ", ".join(facts["executors"]) or "none"),
        ("Hardware", hardware or "none"),
        ("Data", datasets or "none"),
        ("Commit", ", ".join(facts["commits"]) or "not recorded"),
        ("Numerics version", ", ".join(map(str, facts["numerics_versions"])) or "none"),
        ("Versions", versions or "none"),
    ]
    return [(name, escape.one_line(value, limit=2000)) for name, value in lines]


def _status(report: Report) -> str:
    facts = report.provenance
    seeds = len(facts["seeds"])
    done = f"{facts['trials_done']} of {facts['trials_planned']} trainings"
    measured = f"{facts['evaluations_done']} of {facts['evaluations_planned']} evaluations"
    return f"Recipe {facts['recipe']}, {seeds} seed{'s' if seeds > 1 else ''}: {done} and {measured} done."


def _minute(stamp: str | None) -> str:
    return stamp[:16].replace("T", " ") if stamp else "—"


def _overview(study: StudyPlan, cells: pd.DataFrame) -> Overview:
    known = list(METRIC_LABELS)
    metrics = tuple(
        sorted(
            dict.fromkeys(cells["metric"]),
            key=lambda name: known.index(name) if name in known else len(known),
        )
    )
    values: dict[tuple[str, str, str], list[float]] = {}
    for study_name, cell, metric, value in zip(
        cells["study"], cells["cell"], cells["metric"], cells["value"], strict=True
    ):
        values.setdefault((study_name, cell, metric), []).append(value)
    studies: dict[str, tuple[OverviewRow, ...]] = {}
    for study_name, cell, label in dict.fromkeys((cell.study, cell.cell, cell.label) for cell in study.cells):
        found = [values.get((study_name, cell, metric), []) for metric in metrics]
        texts = tuple(
            tables.interval_text(mean_interval(some) if some else None, metric)
            for some, metric in zip(found, metrics, strict=True)
        )
        row = OverviewRow(study_name, label, max(map(len, found), default=0), texts)
        studies[study_name] = (*studies.get(study_name, ()), row)
    return Overview(metrics, studies)


def _cells_csv(cells: pd.DataFrame) -> str:
    def plain(value: object) -> object:
        return None if isinstance(value, float) and math.isnan(value) else value

    lines: Sequence[Sequence[object]] = cells.astype(object).values.tolist()
    return tables.write_csv(COLUMNS, [[plain(value) for value in line] for line in lines])
