"""How the verbs that only look show plans, recipes and lists on a terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.plan import Job, Plan, StudyPlan
from orchestrator.progress import duration
from orchestrator.spec import Recipe, Study
from trainers.config import ToyRun, TrialConfig


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
        table = plain_table("cell", "head", *(f"seed {seed}" for seed in study.seeds))
        table.title, table.title_justify = Text(f"{study.name}: {study.study.title}"), "left"
        first_shown: dict[str, str] = {}
        rows: dict[str, list[str]] = {}
        for cell in study.cells:
            config = plan.trials[cell.trial]
            if isinstance(config, ToyRun):
                continue
            head = config.head
            sizes = head.model_dump(exclude={"kind"}, exclude_defaults=True)
            text = head.kind + (
                " " + " ".join(f"{name}={value}" for name, value in sizes.items()) if sizes else ""
            )
            row = rows.setdefault(cell.name, [cell.name, text])
            owner = first_shown.setdefault(cell.trial, cell.name)
            if owner != cell.name:
                row.append(f"[dim]= {owner}[/dim]")
            elif cell.trial in to_train:
                row.append("train")
            elif to_evaluate & set(cell.evaluations.values()):
                row.append("evaluate")
            else:
                row.append("[green]there[/green]")
        for row in rows.values():
            table.add_row(*row)
        console.print(table)
    console.print(_summary(plan, missing))


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
        seeds = len({plan.trials[key].seed for key in trained})
        to_train = sum(job.train for job in missing if not job.is_toy)
        to_evaluate = sum(len(job.evaluations) for job in missing)
        lines.append(
            f"{len(shown)} cells need {len(trained)} trainings and {len(plan.evaluations)} evaluations over "
            f"{seeds} seeds; {to_train} trainings and {to_evaluate} evaluations are missing."
        )
    if toys := plan.trials.keys() - trained:
        shown = {cell.name for cell in cells if cell.case is not None}
        lines.append(
            f"{len(shown)} cells of toy networks need {len(toys)} runs; "
            f"{sum(job.is_toy for job in missing)} are missing."
        )
    return "\n".join(lines)


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
    """To standard output, for scripts."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
