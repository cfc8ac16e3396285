"""The report as one Markdown page, with its figures as pictures beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.report import phrases, sentences, verdicts
from orchestrator.report.claims import Judgement
from orchestrator.report.content import Report, Section
from orchestrator.report.escape import markdown as plain
from orchestrator.report.figures import FilledFigure
from orchestrator.report.overview import Overview
from orchestrator.report.tables import FilledTable
from orchestrator.spec import Study


def markdown(report: Report) -> str:
    """The report as one Markdown page."""
    study, facts = report.study.study, report.provenance
    said = verdicts.sentence(report.claims) + " " if report.claims else ""
    blocks = [f"# {plain(study.title)}", f"{plain(facts['source'])}. {plain(said + phrases.status(facts))}"]
    if report.setting:
        blocks.append("\n".join(f"- {name}: {plain(text)}" for name, text in report.setting))
    blocks += _words(study)
    if report.claims:
        blocks += ["## Claims", *_claims(report)]
    for section in report.sections:
        blocks += _section(section, headed=report.headed, worded=section.study is not study)
    blocks += ["## All cells and metrics", *map(_overview, report.overviews), plain(phrases.OVERVIEW_LEGEND)]
    blocks += _not_run(report)
    summary = [f"- {plain(name)}: {plain(value)}" for name, value in phrases.provenance_summary(facts)]
    if report.tracked:
        address = f" <{report.tracked.address}>" if report.tracked.address else ""
        summary.append(f"- Tracking: {plain(report.tracked.text)}{address}")
    blocks += ["## Provenance", "\n".join(summary)]
    return "\n\n".join(blocks) + "\n"


def _words(study: Study) -> list[str]:
    """What a study asks, and what the paper says of it."""
    about = [plain(study.about)] if study.about else []
    return [*about, f"*The paper:* {plain(study.summary)}"] if study.summary else about


def _section(section: Section, headed: bool, worded: bool) -> Iterable[str]:
    if headed:
        yield f"## {plain(section.study.title)}"
    if worded:
        yield from _words(section.study)
    for table in section.tables:
        yield f"*Here:* {plain(sentences.ours(table))}"
        yield to_markdown(table).rstrip()
    for figure in section.figures:
        if not figure.empty:
            yield _figure(figure)


def grid(header: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A GitHub table of texts that are Markdown already; the first `left` columns are left-aligned."""
    rule = [":--" if position < left else "--:" for position in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows)) + "\n"


def to_markdown(table: FilledTable) -> str:
    """A table with its setting above and its legend and notes below."""
    rows = []
    for row in table.rows:
        ours, *others = table.texts(row)
        shown = f"**{plain(ours)}**" if table.is_best(row) else plain(ours)
        marks = f" <sup>{','.join(row.marks)}</sup>" if row.marks else ""
        rows.append([*map(plain, row.columns), shown + marks, *others])
    lines = grid([*map(plain, table.header)], rows, left=len(table.spec.columns))
    notes = [f"<sup>{mark}</sup> {plain(text)}." for mark, text in table.notes.items()]
    setting = f" {plain(phrases.upper_first(table.setting))}." if table.setting else ""
    title = f"**{plain(phrases.sentence(table.spec.title))}**{setting}"
    return "\n".join([title, "", lines, "  \n".join([plain(" ".join(table.legend)), *notes]), ""])


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
    yield grid(["", *verdicts.HEADER], lines, left=5).rstrip()
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
    spread = ["", f"*{phrases.SPREAD_ROW}*", *overview.spread, ""]
    return grid([*map(plain, header)], [*lines, spread], left=2).rstrip()


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
        yield grid(["Study", "Cell", "Seeds", "Missing", "Reason"], lines, left=5).rstrip()
