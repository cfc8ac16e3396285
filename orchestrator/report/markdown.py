"""The report as one Markdown page, with its figures as pictures beside it."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.report import phrases, tables, verdicts
from orchestrator.report.claims import Judgement
from orchestrator.report.content import Report, Section
from orchestrator.report.escape import markdown as plain
from orchestrator.report.figures import FilledFigure
from orchestrator.report.overview import Overview


def markdown(report: Report) -> str:
    """The report as one Markdown page."""
    study, facts = report.study.study, report.provenance
    said = verdicts.sentence(report.claims) + " " if report.claims else ""
    blocks = [f"# {plain(study.title)}", f"{plain(facts['source'])}. {plain(said + phrases.status(facts))}"]
    if study.summary:
        blocks.append(plain(study.summary))
    if report.claims:
        blocks += ["## Claims", *_claims(report)]
    for section in report.sections:
        blocks += _section(section, headed=report.headed, summary=section.study is not study)
    blocks += ["## All cells and metrics", *map(_overview, report.overviews)]
    blocks += _not_run(report)
    summary = [f"- {plain(name)}: {plain(value)}" for name, value in phrases.provenance_summary(facts)]
    if report.tracked:
        address = f" <{report.tracked.address}>" if report.tracked.address else ""
        summary.append(f"- Tracking: {plain(report.tracked.text)}{address}")
    blocks += ["## Provenance", "\n".join(summary)]
    return "\n\n".join(blocks) + "\n"


def _section(section: Section, headed: bool, summary: bool) -> Iterable[str]:
    if headed:
        yield f"## {plain(section.study.title)}"
    if section.study.summary and summary:
        yield plain(section.study.summary)
    for table in section.tables:
        yield tables.to_markdown(table).rstrip()
    for figure in section.figures:
        if not figure.empty:
            yield _figure(figure)


def _figure(figure: FilledFigure) -> str:
    notes = [plain(note) for note in figure.notes]
    text = "  \n".join([f"**{plain(phrases.sentence(figure.spec.title))}** {plain(figure.caption)}", *notes])
    return f"![{plain(figure.spec.title)}](figures/{figure.name}.png)\n\n{text}"


def _claims(report: Report) -> Iterable[str]:
    lines = [
        _claim(group.number, judgement)
        for group in verdicts.groups(report.claims)
        for judgement in group.judgements
    ]
    yield tables.markdown_grid(["", *verdicts.HEADER], lines, left=5).rstrip()
    yield plain(verdicts.LEGEND)


def _claim(number: int | None, judgement: Judgement) -> list[str]:
    claim = judgement.claim
    details = [f"{plain(name)}: {plain(text)}" for name, text in judgement.details]
    said = [f"*{plain(judgement.note)}*"] if judgement.note else []
    return [
        str(number or ""),
        "<br>".join([f"{plain(claim.text)} ({plain(claim.source)})", *said, *details]),
        plain(verdicts.verdict(judgement)),
        plain(" ".join(verdicts.effect(judgement)).strip()),
        plain(judgement.test),
        plain(verdicts.adjusted_p(judgement)),
        verdicts.seeds_needed(judgement),
    ]


def _overview(overview: Overview) -> str:
    header = ["Study", "Cell", *map(phrases.metric_label, overview.metrics), "n"]
    lines = [
        [plain(row.study), plain(row.label), *row.texts, str(row.n)]
        for rows in overview.studies.values()
        for row in rows
    ]
    return tables.markdown_grid([*map(plain, header)], lines, left=2).rstrip()


def _not_run(report: Report) -> Iterable[str]:
    told = [f"- {plain(study)}: {plain(text)}" for study, text in report.not_run]
    told += [
        f"- {plain(figure.spec.title)}: nothing to draw yet. {' '.join(map(plain, figure.notes))}".rstrip()
        for figure in report.undrawn
    ]
    if told or report.gaps:
        yield "## Not run here, and why"
    if told:
        yield "\n".join(told)
    if report.gaps:
        lines = [
            [plain(gap.study), plain(gap.label), phrases.seeds_text(gap.seeds), gap.what, plain(gap.reason)]
            for gap in report.gaps
        ]
        yield tables.markdown_grid(["Study", "Cell", "Seeds", "Missing", "Reason"], lines, left=5).rstrip()
