"""The parent run of a study: each cell's mean, the verdicts, tables and figures."""

from __future__ import annotations

import functools

from orchestrator.projection.content import TAG_LIMIT, Artifact, RunContent, canonical, digest, milliseconds
from orchestrator.report import verdicts
from orchestrator.report.content import Report
from orchestrator.report.figures import FilledFigure
from orchestrator.report.frames import Hole
from orchestrator.report.markdown import to_markdown
from orchestrator.report.render import drawn, figure_identity, table_files
from orchestrator.report.statistics import mean_interval


def parent(report: Report, figures: bool = True) -> RunContent:
    """The study's run: each cell's mean, interval and n, the verdicts, tables and figures.

    Args:
        figures: whether it has them; while trials still run they are not worth the seconds of drawing.
    """
    facts, study = report.provenance, report.study
    files = {path: Artifact(digest(text), text.encode) for path, text in table_files(report).items()}
    if figures:
        files |= _figures(report)
    tags = {
        "kind": "study",
        "study": study.name,
        "recipe": study.recipe,
        "seeds": ", ".join(map(str, study.seeds))[:TAG_LIMIT],
        "overrides": canonical(facts["overrides"])[:TAG_LIMIT],
        "mlflow.note.content": _note(report),
    }
    named = dict(zip(verdicts.unique_names(report.claims), report.claims, strict=True))
    tags |= {f"claim.{name}": judgement.verdict for name, judgement in named.items()}
    return RunContent(
        key="",
        name=study.name,
        status=_status(report.missing),
        start=milliseconds(facts["started"]) if facts["started"] else None,
        end=milliseconds(facts["finished"]) if facts["finished"] else None,
        tags=tags,
        metrics=_cell_metrics(report) | _claim_metrics(report),
        artifacts=files,
    )


def _cell_metrics(report: Report) -> dict[str, tuple[float, int]]:
    when = milliseconds(report.provenance["finished"]) if report.provenance["finished"] else 0
    metrics: dict[str, tuple[float, int]] = {}
    for (study, cell, metric), group in report.cells.groupby(["study", "cell", "metric"], sort=False):
        interval = mean_interval(group["value"].tolist())
        values = {
            "mean": interval.mean,
            "ci_low": interval.low,
            "ci_high": interval.high,
            "n": float(interval.n),
        }
        metrics |= {
            f"cells/{study}/{cell}/{metric}/{name}": (value, when)
            for name, value in values.items()
            if value is not None
        }
    return metrics


def _claim_metrics(report: Report) -> dict[str, tuple[float, int]]:
    when = milliseconds(report.provenance["finished"]) if report.provenance["finished"] else 0
    names = ("effect", "ci_low", "ci_high", "p", "p_adjusted")
    return {
        f"claims/{claim}/{name}": (float(value), when)
        for claim, judgement in zip(verdicts.unique_names(report.claims), report.claims, strict=True)
        for name in names
        if (value := getattr(judgement, name)) is not None
    }


def _figures(report: Report) -> dict[str, Artifact]:
    return {
        f"figures/{figure.name}.{ending}": Artifact(
            figure_identity(figure), functools.partial(_picture, figure, ending)
        )
        for figure in report.figures
        if not figure.empty
        for ending in ("svg", "png", "csv")
    }


def _picture(figure: FilledFigure, ending: str) -> str | bytes:
    return drawn(figure)[ending]


def _status(missing: list[Hole]) -> str:
    if not missing:
        return "FINISHED"
    return "FAILED" if all(hole.reason.startswith("failed") for hole in missing) else "RUNNING"


def _note(report: Report) -> str:
    """The verdicts in a sentence, and the tables, as many as fit, as the run's description."""
    note = f"{verdicts.sentence(report.claims)}\n\n" if report.claims else ""
    for table in report.tables:
        longer = f"{note}{to_markdown(table)}\n"
        if len(longer) > TAG_LIMIT:
            break
        note = longer
    return note
