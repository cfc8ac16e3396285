"""How the verbs that only look show plans, recipes and lists on a terminal."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from orchestrator.ledger import ledger
from orchestrator.plan import Job, Plan, StudyPlan
from orchestrator.progress import duration
from orchestrator.spec import Recipe, Study
from trainers.config import ToyConfig, ToyRun, TrialConfig

_COMMANDS = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Kinds of characters that a terminal may take for more than text: escapes, bidi marks, halves of characters."""


def plain_text(text: str) -> str:
    """Without what could command a terminal; line ends stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(one for one in text if one == "\n" or unicodedata.category(one) not in _COMMANDS)


class PlainConsole(Console):
    """A console on which text is text, wherever it came from: no markup, no codes, no escapes of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is shown, whatever it is part of: a table, a live display, a line."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text == (text := plain_text(segment.text)):
                yield segment
            else:
                yield Segment(text, segment.style)


def show_plan(console: Console, plan: Plan, missing: list[Job]) -> None:
    """The matrix of cells and seeds: what is trained, what is shared, what is there already."""
    to_train = {job.trial for job in missing if job.train}
    to_evaluate = {key for job in missing for key in job.evaluations}
    for study in plan.studies:
        for member in study.members:
            if member.toy:
                console.print(_toy_line(study, member, to_train))
        if all(cell.case is not None for cell in study.cells):
            continue
        table = plain_table("cell", "setting", *(f"seed {seed}" for seed in study.seeds))
        table.title, table.title_justify = Text(f"{study.name}: {study.study.title}"), "left"
        first_shown: dict[str, str] = {}
        settings: dict[str, str] = {}
        states: dict[str, dict[int, str | Text]] = {}
        for cell in study.cells:
            config = plan.trials[cell.trial]
            if isinstance(config, ToyRun):
                continue
            settings.setdefault(cell.name, _setting(config, plan.recipe))
            owner = first_shown.setdefault(cell.trial, cell.name)
            state: str | Text = Text("there", "green")
            if owner != cell.name:
                state = Text(f"= {owner}", "dim")
            elif cell.trial in to_train:
                state = "train"
            elif to_evaluate & set(cell.evaluations.values()):
                state = "evaluate"
            states.setdefault(cell.name, {})[cell.seed] = state
        for name, setting in settings.items():
            table.add_row(name, setting, *(states[name].get(seed, "") for seed in study.seeds))
        console.print(table)
        _show_decidable(console, study)
    console.print(_summary(plan, missing))


def _show_decidable(console: Console, study: StudyPlan) -> None:
    """What the planned seeds can decide, by family of claims."""
    from orchestrator.analysis.families import decidable  # scipy: other verbs do without

    lines = decidable(study)
    if lines:
        power = f"power {100 * study.study.statistics.power:.0f} %"
        spread = f"spread between seeds of {study.seed_sd:g} points assumed"
        console.print(f"What the seeds decide ({power}, {spread}), by family of claims:")
    for line in lines:
        console.print(f"  {line}")


def _setting(config: TrialConfig, recipe: Recipe) -> str:
    """The head with its sizes, and which other parts differ from the recipe's."""
    sizes = config.head.model_dump(exclude={"kind"}, exclude_defaults=True)
    plain = recipe.trial(config.seed)
    data = plain.data.model_copy(update={"validation_images": None})  # no part of a training
    plain = plain.model_copy(update={"data": data})
    changed = [name for name in TrialConfig.model_fields if getattr(config, name) != getattr(plain, name)]
    others = [f"own {name.replace('_', ' ')}" for name in changed if name != "head"]
    return " ".join([config.head.kind, *(f"{name}={value}" for name, value in sizes.items()), *others])


def _toy_line(study: StudyPlan, member: Study, to_train: set[str]) -> Text:
    """A theory study is one run, whatever the seeds."""
    cells = [cell for cell in study.cells if cell.study == member.name]
    state = "train" if cells[0].trial in to_train else "there"
    return Text(f"{member.name}: {len(member.cells)} cells of toy networks, one run of {len(cells)}: {state}")


def _summary(plan: Plan, missing: list[Job]) -> str:
    """'31 cells need 18 trainings a seed ...'"""
    trained = {key for key, config in plan.trials.items() if isinstance(config, TrialConfig)}
    cells = plan.cells()
    lines = []
    if trained:
        shown = {cell.name for cell in cells if cell.trial in trained}
        counts = Counter(
            (study.name, cell.name) for study in plan.studies for cell in study.cells if cell.trial in trained
        )
        fewest, most = min(counts.values()), max(counts.values())
        seeds = str(most) if fewest == most else f"{fewest} to {most}"
        to_train = sum(job.train for job in missing if not job.is_toy)
        to_evaluate = sum(len(job.evaluations) for job in missing)
        lines.append(
            f"{len(shown)} cells need {len(trained)} trainings and {len(plan.evaluations)} evaluations over "
            f"{seeds} seed{'s' if most > 1 else ''}; {to_train} trainings and {to_evaluate} evaluations are missing."
        )
    if toys := plan.trials.keys() - trained:
        shown = {cell.name for cell in cells if cell.case is not None}
        lines.append(
            f"{len(shown)} cells of toy networks need {len(toys)} run{'s' if len(toys) > 1 else ''}; "
            f"{sum(job.is_toy for job in missing)} are missing."
        )
    return "\n".join(lines)


def show_measured(console: Console, measured: dict[str, Any]) -> None:
    """What `ablate evaluate` found of a checkpoint."""
    console.print(
        Text(
            f"{measured['checkpoint']} ({measured['layout']} layout): {measured['backbone']['kind']}, "
            f"head {measured['head']['kind']}; on {measured['data']}"
        ),
        soft_wrap=True,
    )
    table = plain_table("evaluation", "metric", "value")
    for kind, evaluation in measured["evaluations"].items():
        for metric, value in evaluation["metrics"].items():
            table.add_row(kind, metric, f"{value:.6g}")
    console.print(table)
    evaluations = measured["evaluations"].values()
    corrupt = sorted({name for evaluation in evaluations for name in evaluation.get("corrupt_images", ())})
    if corrupt:
        told = f"{len(corrupt)} image(s) cannot be decoded, another of the class stands in for each: "
        console.print(Text(told + ", ".join(corrupt), "yellow"), soft_wrap=True)


def ledger_entries(recipe: Recipe) -> list[dict[str, Any]]:
    """Every switch as plain data; `in_force`: the versions that the recipe follows."""
    content = recipe.model_dump(mode="json")
    content["toy"] = ToyConfig().model_dump(mode="json") | content["toy"]
    return [
        switch.model_dump(mode="json")
        | {"in_force": switch.in_force(content), "applies": switch.applies(content)}
        for switch in ledger().values()
    ]


def show_ledger(console: Console, recipe: Recipe, entries: list[dict[str, Any]]) -> None:
    """A block a switch: what text and code say, what may be chosen and what a recipe follows."""
    console.print(Text(f"Versions in force under recipe {recipe.name}:"))
    for entry in entries:
        console.print(Text.assemble("\n", (entry["name"], "bold"), f": {entry['title']}"))
        lines = plain_table("", "")
        lines.show_header = False
        for name in ("paper", "released", "ours", "source", "moves"):
            lines.add_row(Text(f"  {name}", "dim"), Text(entry[name]))
        lines.add_row(Text("  in force", "dim"), Text(_in_force(entry), "green"))
        console.print(lines)
    console.print(Text("\nTurn one with --set faithfulness.NAME=VERSION, in a recipe, or in a cell's `set`."))


def _in_force(entry: dict[str, Any]) -> str:
    if not entry["choices"]:
        return "ours, no switch"
    takes = ", ".join(entry["choices"])
    if not entry["applies"]:
        where = ", ".join(f"{path} = {value}" for path, value in entry["where"].items())
        return f"only where {where} (takes {takes})"
    return f"{' and '.join(entry['in_force']) or 'ours'} (takes {takes})"


def scale(recipe: Recipe) -> str:
    """'20 epochs on 1 CPU, about 15 s a trial'."""
    workers = f"{recipe.resources.workers} x {recipe.resources.gpus_per_worker:g} GPU" if (
        recipe.resources.gpus_per_worker
    ) else f"{recipe.resources.workers * recipe.resources.cpus_per_worker} CPU"  # fmt: skip
    cost = f", about {duration(recipe.cost.seconds)} a trial" if recipe.cost else ""
    return f"{recipe.epochs} epochs on {workers}{cost}"


def plain_table(*columns: str) -> Table:
    """A table without lines, whose long cells fold."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_json(value: Any) -> None:
    """To standard output, for scripts; what could command a terminal is told by its number."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("".join(one if plain_text(one) else json.dumps(one)[1:-1] for one in text) + "\n")
