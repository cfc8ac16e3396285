"""A report on a terminal of 80 columns: the tables, what each shows, a line a claim, and the counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.report import escape, sentences, verdicts
from orchestrator.report.claims import Judgement
from orchestrator.report.content import Report
from orchestrator.report.phrases import upper_first
from orchestrator.report.tables import FilledTable
from orchestrator.report.verdicts import Origin

_STYLES = {"supported": "green", "contradicted": "red", "undecided": "dim"}


def console(report: Report) -> Iterator[RenderableType]:
    """Block by block. Texts of studies are never read as rich markup."""
    yield Text(escape.one_line(report.study.study.title), "bold")
    if report.setting:
        yield Text("; ".join(escape.one_line(text) for _, text in report.setting), "dim")
    for table in report.tables:
        yield filled_table(table)
        yield Padding(Text(escape.one_line(sentences.ours(table), 1000)), (0, 0, 1, 1))
    if report.claims:
        yield claim_lines(report.claims)
        yield Padding(Text(verdicts.sentence(report.claims), "bold"), (1, 0, 0, 1))


def filled_table(table: FilledTable) -> Table:
    """A table with its legend; its setting stands once above all of them, see `Report`."""
    notes = [f"{mark}: {escape.one_line(text)}" for mark, text in table.notes.items()]
    legend = " ".join(table.legend)
    shown = Table(
        title=Text(escape.one_line(table.spec.title), "bold"),
        caption=Text("\n".join([escape.one_line(legend, 1000), *notes]), "dim"),
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for position, name in enumerate(table.header):
        left = position < len(table.spec.columns)
        shown.add_column(Text(escape.one_line(name)), justify="left" if left else "right", no_wrap=False)
    for row in table.rows:
        ours, *others = table.texts(row)
        marks = f" {','.join(row.marks)}" if row.marks else ""
        numbers = (Text(ours + marks, "bold" if table.is_best(row) else ""), *map(Text, others))
        shown.add_row(*(Text(escape.one_line(text)) for text in row.columns), *numbers)
    return shown


def claim_lines(judgements: Sequence[Judgement]) -> Table:
    """A line a claim: sign, the paper's sentence, effect with interval or what would decide; by what decides it."""
    shown = Table(box=None, padding=(0, 1), show_header=False, title_justify="left")
    shown.title = Text("The paper's claims", "bold")
    shown.add_column(no_wrap=True)
    shown.add_column(ratio=1)
    shown.add_column(no_wrap=True, justify="right")
    last: Origin | None = None
    for judgement in sorted(judgements, key=_place):
        if (origin := verdicts.origin(judgement)) != last:
            shown.add_row("", Text(upper_first(origin), "dim"), "")
        last = origin
        style = _STYLES[judgement.verdict]
        shown.add_row(
            Text(verdicts.SIGNS[judgement.verdict], style),
            Text(escape.one_line(judgement.claim.text)),
            Text(_outcome(judgement), style),
        )
    return shown


def _place(judgement: Judgement) -> tuple[int, int]:
    """What trainings decided comes first, and of each kind the decided claims."""
    origins = ("trained networks", "toy networks", "by construction")
    return origins.index(verdicts.origin(judgement)), list(verdicts.SIGNS).index(judgement.verdict)


def _outcome(judgement: Judgement) -> str:
    effect, interval = verdicts.effect(judgement)
    needed = verdicts.seeds_needed(judgement)
    seeds = f", {needed} seeds?" if judgement.seeds_needed is not None and needed else ""
    return f"{judgement.verdict}{seeds}\n{effect} {interval}".strip()
