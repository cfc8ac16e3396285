"""How the verbs that only look show plans, recipes and lists on a terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.plan import Job, Plan
from orchestrator.progress import duration
from orchestrator.spec import Recipe


def show_plan(console: Console, plan: Plan, missing: list[Job]) -> None:
    """The matrix of cells and seeds: what is trained, what is shared, what is there already."""
    to_train = {job.trial for job in missing if job.train}
    to_evaluate = {key for job in missing for key in job.evaluations}
    for study in plan.studies:
        table = plain_table("cell", "head", *(f"seed {seed}" for seed in study.seeds))
        table.title, table.title_justify = Text(f"{study.name}: {study.study.title}"), "left"
        first_shown: dict[str, str] = {}
        rows: dict[str, list[str]] = {}
        for cell in study.cells:
            head = plan.trials[cell.trial].head
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
    cells = {(cell.study, cell.cell) for cell in plan.cells()}
    console.print(
        f"{len(cells)} cells need {len(plan.trials)} trainings and {len(plan.evaluations)} evaluations over "
        f"{len({config.seed for config in plan.trials.values()})} seeds; {len(to_train)} trainings and "
        f"{len(to_evaluate)} evaluations are missing."
    )


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
