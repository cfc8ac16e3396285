"""The verbs of `ablate`. Heavy libraries (Ray, torch, MLflow) are imported only by the verbs that need them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from orchestrator import freshness, library, retraining
from orchestrator.display import (
    PlainConsole,
    ledger_entries,
    plain_table,
    print_json,
    scale,
    show_ledger,
    show_measured,
    show_plan,
)
from orchestrator.errors import AblateError, SpecError
from orchestrator.failures import of_the_file_system
from orchestrator.messages import for_a_terminal
from orchestrator.plan import Job, Plan, StudyPlan, estimate, jobs, make_plan
from orchestrator.progress import duration
from orchestrator.redaction import redacted
from orchestrator.seeds import ALL, SeedRecords, parse_seeds, with_every_seed
from orchestrator.spec import Executor, Recipe, Resources, Study
from orchestrator.store import Store
from trainers.config import TrialConfig

if TYPE_CHECKING:
    from orchestrator.allocation import Allocation
    from orchestrator.tracking import TrackedRecords
    from orchestrator.until_decided import Forecast

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="One command trains, evaluates, tracks and tabulates a paper's ablation.",
)
console = PlainConsole()
problems = PlainConsole(stderr=True, highlight=False)

_MAX_SEEDS = 20
"""What --until-decided gives a cell at most: as many as a verdict may rest on."""

Studies = Annotated[list[str], typer.Argument(metavar="STUDY...", help="name in studies/, or a YAML file")]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="name in studies/recipes/, or a YAML file")]
Seeds = Annotated[
    str | None,
    typer.Option(
        help="such as 0,1,2 or 0-4; all: each cell with every seed that it was trained with; "
        "default: the study's own"
    ),
]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="override of the recipe")]
StoreRoot = Annotated[
    str,
    typer.Option(
        "--store", envvar="ABLATE_STORE", help="where records live: a folder, or s3://BUCKET/FOLDER"
    ),
]
TrackingUri = Annotated[
    str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="default: SQLite in the store")
]
AsJson = Annotated[bool, typer.Option("--json", help="for scripts")]
UntilDecided = Annotated[
    bool,
    typer.Option(
        "--until-decided", help="further seeds for the cells of claims that are undecided, and no others"
    ),
]
BudgetText = Annotated[
    str | None,
    typer.Option("--budget", metavar="TIME", help="with --until-decided: of this command, such as 30m or 4h"),
]
MaxSeeds = Annotated[
    int | None,
    typer.Option(min=1, max=_MAX_SEEDS, help=f"with --until-decided: of a cell; default: {_MAX_SEEDS}"),
]
DEFAULT_STORE = "ablations"

_TRACKING_SCHEMES = {"http", "https", "sqlite", "mysql", "postgresql", "mssql", "databricks", "databricks-uc"}


@app.command("list", epilog="Example: `ablate list`")
def list_(as_json: AsJson = False) -> None:
    """Studies and recipes that are here."""
    studies = [library.load_study(name)[0] for name in library.names(library.STUDIES)]
    recipes = [library.load_recipe(name).recipe for name in library.names(library.RECIPES)]
    if as_json:
        print_json(
            {
                "studies": {study.name: study.title for study in studies},
                "recipes": {recipe.name: recipe.title for recipe in recipes},
            }
        )
        return
    for title, rows in (
        ("study", [(study.name, study.title, study.source) for study in studies]),
        ("recipe", [(recipe.name, recipe.title, scale(recipe)) for recipe in recipes]),
    ):
        table = plain_table(title, "", "")
        for row in rows:
            table.add_row(*row)
        console.print(table)


@app.command(epilog="Example: `ablate show table1`")
def show(study: str, as_json: AsJson = False) -> None:
    """A study (or recipe) as it is understood, with every default filled in."""
    loaded = _load_either(study)
    if as_json:
        print_json(loaded.model_dump(mode="json"))
        return
    console.print(Text.assemble((loaded.name, "bold"), f": {loaded.title}"))
    if isinstance(loaded, Recipe):
        console.print_json(loaded.model_dump_json())
        return
    console.print(Text(f"{loaded.source}; recipe {loaded.recipe}, seeds {', '.join(map(str, loaded.seeds))}"))
    if loaded.include:
        console.print(f"consists of {', '.join(loaded.include)}")
    if loaded.toy:
        shared = loaded.toy.model_dump(mode="json", exclude={"cost"})
        console.print(Text("toy networks: " + ", ".join(f"{name} {value}" for name, value in shared.items())))
    for what in ("tables", "figures", "claims"):
        if shown := [one.name for one in getattr(loaded, what)]:
            console.print(Text(f"{what}: {', '.join(shown)}"))
    cells = plain_table("cell", "label", "override")
    for cell in loaded.cells:
        cells.add_row(cell.name, Text(cell.label), Text(json.dumps(cell.set)))
    console.print(cells)


@app.command(
    "plan",
    epilog="Examples: `ablate plan quickstart --recipe digits --seeds 0-2`; `ablate plan paper --until-decided`",
)
def plan_(
    studies: Studies,
    recipe: RecipeName = None,
    seeds: Seeds = None,
    sets: Sets = None,
    until_decided: UntilDecided = False,
    max_seeds: MaxSeeds = None,
    store_root: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """What a run would train: the matrix, what is shared, what is there already, how long it takes.

    With --until-decided: its next round, where the claims stand, and what it would train at most.
    """
    store = Store(store_root)
    allocation = _allocation(until_decided, studies, recipe, seeds, sets, None, max_seeds)
    expected = _forecast(allocation, store) if allocation else None
    plan = expected.standing.plan if expected else _plan(studies, recipe, seeds, sets, lambda study: store)
    missing = jobs(plan, store)
    slots = _slots_here(plan.recipe)
    cost = estimate(plan, missing, store, slots)
    if as_json:
        print_json(
            {
                "cells": [cell.__dict__ for cell in plan.cells()],
                "trials": {key: config.model_dump(mode="json") for key, config in plan.trials.items()},
                "to_train": [job.trial for job in missing if job.train],
                "to_evaluate": {key: job.trial for job in missing for key in job.evaluations},
                "seconds": cost.seconds if cost else None,
            }
            | (_forecast_as_plain(expected) if expected else {})
        )
        return
    show_plan(console, plan, missing)
    if not missing:
        console.print("Nothing to do.")
    elif cost:
        console.print(f"Time: about {duration(cost.seconds)} with {slots} at once (from {cost.basis}).")
    else:
        console.print("Time: unknown; no trial of this recipe has finished here, and it states no cost.")
    if expected:
        at_most = estimate(plan, expected.at_most, store, slots)
        for line in expected.lines(at_most.seconds if at_most else None, slots):
            console.print(Text(line), soft_wrap=True)


@app.command(
    epilog="Examples: `ablate run quickstart --seeds 0-2 --set epochs=20`; "
    "`ablate run paper --until-decided --budget 4h`"
)
def run(
    studies: Studies,
    recipe: RecipeName = None,
    seeds: Seeds = None,
    sets: Sets = None,
    address: Annotated[str, typer.Option(help="auto, local, or host:port of a Ray cluster")] = "local",
    executor: Annotated[
        Executor, typer.Option(help="inline: in the trial's process; train: Ray Train, DDP")
    ] = "auto",
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="fewer trials at once than fit")] = None,
    until_decided: UntilDecided = False,
    budget: BudgetText = None,
    max_seeds: MaxSeeds = None,
    retrain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CELL", help="train this cell, or study/cell, anew; its old records are set aside"
        ),
    ] = None,
    store_root: StoreRoot = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
) -> None:
    """Train and evaluate what is missing, track it, write the report. The same command continues a cut-off run.

    With --until-decided, cells get seeds one by one for as long as a claim needs them: until each is decided, would
    need more than --max-seeds, or the --budget is spent.
    """
    if retrain and until_decided:
        raise SpecError("--retrain: got --until-decided with it, expected one of the two")
    store = Store(store_root)
    allocation = _allocation(until_decided, studies, recipe, seeds, sets, budget, max_seeds)
    plan = allocation.first if allocation else _plan(studies, recipe, seeds, sets, lambda study: store)
    _check_tracking(tracking_uri)
    anew = retraining.chosen(plan, retrain or ())
    missing = jobs(plan, store)
    _check_data(plan.recipe, [*missing, *(retraining.job(plan, key) for key in anew)])
    _refuse_inline_gangs(executor, [job.resources for job in missing])
    store.prepare()
    if anew:
        for sentence in retraining.set_aside(anew, store):
            _say(sentence)
        missing = jobs(plan, store)
    from orchestrator.launch import launch, launch_until_decided
    from orchestrator.runner import Where

    where = Where(address, executor, max_concurrent, tracking_uri)
    if allocation:
        incomplete = launch_until_decided(allocation, _seconds(budget), store, where, console)
    else:
        incomplete = launch(plan, missing, store, where, console)
    retraining.finish(anew, store)
    raise typer.Exit(3 if incomplete else 0)


@app.command(
    epilog="Example: `ablate submit paper --recipe imagenet --address http://head:8265 --store /shared/ablations`"
)
def submit(
    studies: Studies,
    address: Annotated[str, typer.Option(help="page of the cluster's head, such as http://head:8265")],
    recipe: RecipeName = None,
    seeds: Seeds = None,
    sets: Sets = None,
    executor: Annotated[Executor, typer.Option(help="as of `ablate run`")] = "auto",
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="fewer trials at once than fit")] = None,
    until_decided: UntilDecided = False,
    budget: BudgetText = None,
    max_seeds: MaxSeeds = None,
    store_root: StoreRoot = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
    follow: Annotated[bool, typer.Option(help="show the job's log to its end, return its exit code")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="with --no-follow: the job's name")] = False,
) -> None:
    """Run on a cluster from here, as a Ray job. The same command again follows the job that it started."""
    from orchestrator import submit as jobs_api

    if as_json and follow:
        raise SpecError("--json: takes --no-follow with it")
    allocation = _allocation(until_decided, studies, recipe, seeds, sets, budget, max_seeds)
    seeds_here = None if seeds == ALL else seeds  # this machine may not see the store
    plan = (
        allocation.first
        if allocation
        else _plan(studies, recipe, seeds_here, sets, lambda study: Store(store_root))
    )
    _check_tracking(tracking_uri)
    _refuse_inline_gangs(executor, plan.resources.values())
    asked = jobs_api.Asked(
        tuple(studies),
        recipe,
        seeds,
        tuple(sets or ()),
        executor,
        max_concurrent,
        str(store_root),
        until_decided,
        budget,
        max_seeds,
    )
    jobs_api.refuse_what_no_cluster_sees(asked, plan, address, tracking_uri)
    submitted, client = jobs_api.submit(asked, address, tracking_uri, console.width, _say)
    if as_json:
        print_json({"job": submitted.job, "address": redacted(address), "started": submitted.started})
        return
    _say(f"{submitted.job} {'is started' if submitted.started else 'is under way already'}")
    if not follow:
        _say(f"the same command without --no-follow follows it, `{submitted.stop_command}` ends it")
        return
    raise typer.Exit(jobs_api.follow(submitted, client, _show, _say))


@app.command(
    epilog="Example: `ablate preflight paper --recipe imagenet --address auto --store /shared/ablations`"
)
def preflight(
    studies: Studies,
    recipe: RecipeName = None,
    seeds: Seeds = None,
    sets: Sets = None,
    address: Annotated[str, typer.Option(help="auto, local, or host:port of a Ray cluster")] = "auto",
    executor: Annotated[Executor, typer.Option(help="as of `ablate run`")] = "auto",
    store_root: StoreRoot = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Look at every node of a cluster, as `ablate run` does before it trains; trains nothing."""
    store = Store(store_root)
    plan = _plan(studies, recipe, seeds, sets, lambda study: store)
    _check_tracking(tracking_uri)
    _refuse_inline_gangs(executor, plan.resources.values())
    store.prepare()
    from orchestrator.launch import check_cluster
    from orchestrator.preflight import as_plain

    shown = problems if as_json else console
    looked = check_cluster(plan, store, address, executor, tracking_uri, shown)
    if as_json:
        print_json(as_plain(looked))


@app.command(epilog="Example: `ablate report quickstart --out paper/tables`")
def report(
    studies: Studies,
    recipe: RecipeName = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option(help="default: in the store")] = None,
    source: Annotated[Literal["store", "mlflow"], typer.Option(help="where numbers are read")] = "store",
    spread: Annotated[
        Literal["interval", "sd", "none"],
        typer.Option(help="after ±: 95 % interval of the mean, standard deviation of a run, or nothing"),
    ] = "interval",
    bold_best: Annotated[bool, typer.Option(help="the best mean of a table in bold")] = False,
    decimals: Annotated[
        int | None, typer.Option(min=0, max=6, help="of tables; default: those of the metric")
    ] = None,
    paper: Annotated[bool, typer.Option(help="the paper's numbers beside ours")] = True,
    store_root: StoreRoot = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write tables, cells and page from what is there, training nothing."""
    store = Store(store_root)

    def records_of(study: StudyPlan) -> Store | TrackedRecords:
        if source == "store":
            return store
        from orchestrator.tracking import TrackedRecords, default_uri

        return TrackedRecords(tracking_uri or default_uri(store), study)

    plan = _plan(studies, recipe, seeds, sets, records_of)
    if source == "store":
        store.require()
    elif out is None:  # a machine that sees the tracking server alone keeps reports in a store of its own
        store.prepare()
    from orchestrator.launch import report_all
    from orchestrator.report import TableStyle

    style = TableStyle(spread, bold_best, decimals, paper)
    report_all(plan, store, console, records_of, out, tracking_uri, style)


@app.command(epilog="Example: `ablate status`")
def status(store_root: StoreRoot = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Every trial of the store: finished, failed and why, or under way."""
    store = Store(store_root)
    if os.path.lexists(store_root) and not os.path.isdir(store_root):
        store.require()
    rows = list(store.status())
    if as_json:
        print_json(rows)
        return
    table = plain_table("trial", "recipe", "head", "seed", "state", "epochs", "loss", "seconds")
    table.columns[0].no_wrap = True  # to be copied in one piece
    for row in rows:
        table.add_row(*(str(row[column]) for column in ("trial", "recipe", "head", "seed")), row["state"],
                      str(row["epochs"]), row["loss"], row["seconds"])  # fmt: skip
    console.print(table if rows else f"no trials in {store.root}")
    for path, reason in store.damage.items():
        told = f"{path.relative_to(store.root)}: {reason}; `ablate run` sets it aside and does its work again"
        console.print(Text(told, "yellow"), soft_wrap=True)
    for row in rows:
        if row["error"]:
            console.print(Text.assemble((row["trial"], "red"), " ", row["error"]), soft_wrap=True)
    finished = [freshness.Reused((f"trial {record['key']}",), record) for record in store.trial_records()]
    for sentence in (*freshness.different_data(finished), *freshness.changed_data(finished)):
        console.print(Text(sentence, "yellow"), soft_wrap=True)


@app.command(epilog="Example: `ablate sync quickstart`")
def sync(
    studies: Studies,
    recipe: RecipeName = None,
    seeds: Seeds = None,
    sets: Sets = None,
    store_root: StoreRoot = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
) -> None:
    """Bring MLflow up to date with the records of the store."""
    store = Store(store_root)
    plan = _plan(studies, recipe, seeds, sets, lambda study: store)
    _check_tracking(tracking_uri)
    store.require()
    from orchestrator.launch import sync_all

    sync_all(plan, store, tracking_uri, console)


@app.command(epilog="Example: `ablate ui --port 5000`")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    store_root: StoreRoot = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
) -> None:
    """MLflow's page on the store's runs, on loopback, until Ctrl-C."""
    _check_tracking(tracking_uri)
    store = Store(store_root)
    store.require()
    from orchestrator.launch import serve_ui

    serve_ui(store, tracking_uri, port, console)


@app.command(
    epilog="Example: `ablate evaluate resnet50.pth --recipe imagenet --head subvector --d0 360/2048`"
)
def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="a file of ours or the released code's, or a trial's key"),
    ],
    recipe: Annotated[
        str, typer.Option(help="data, backbone and protocols: a name in studies/recipes/, or a file")
    ],
    head: Annotated[
        Literal["none", "linear", "mlp", "subvector"] | None, typer.Option(help="default: the file's own")
    ] = None,
    d0: Annotated[
        str | None, typer.Option(help="of the subvector: a number, or a fraction such as 360/2048")
    ] = None,
    evaluations: Annotated[
        str | None,
        typer.Option(metavar="KIND,...", help="such as linear_probe,knn; default: all that apply"),
    ] = None,
    sets: Sets = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto: cuda if there is one")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="folder for metrics.json and each evaluation's arrays.npz")
    ] = None,
    store_root: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint from anywhere under a recipe's protocols; nothing but probes is trained."""
    from orchestrator.checkpoints import measure

    measured = measure(
        checkpoint,
        recipe,
        Store(store_root),
        sets=tuple(sets or ()),
        head=head,
        d0=d0,
        kinds=evaluations,
        device=device,
        out=out,
    )
    if as_json:
        print_json(measured)
    else:
        show_measured(console, measured)
    if measured["failed"]:
        raise AblateError("; ".join(f"{kind}: {reason}" for kind, reason in measured["failed"].items()))


@app.command(epilog="Example: `ablate export 3f9a1c --format torchvision --out resnet50.pth`")
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="KEY|CHECKPOINT", help="a finished trial's key (six digits do), or a file"),
    ],
    file_format: Annotated[
        Literal["torchvision", "safetensors"],
        typer.Option("--format", help="torchvision: a .pth that its ResNets load; safetensors: any backbone"),
    ],
    out: Annotated[Path, typer.Option(help="file to write")],
    store_root: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Write the backbone of a trial, or of a checkpoint from anywhere, for others to load."""
    from orchestrator.checkpoints import export as export_backbone

    written = export_backbone(checkpoint, file_format, out, Store(store_root))
    if as_json:
        print_json(written)
        return
    loads = f"{written['tensors']} tensors"
    if written["network"]:
        loads = f"torchvision.models.{written['network']}() takes it with strict=False, lacking fc"
    console.print(Text(f"{written['file']}: backbone of {written['checkpoint']}; {loads}"), soft_wrap=True)


@app.command(epilog="Example: `ablate shard /data/imagenet s3://bucket/imagenet`")
def shard(
    folder: Annotated[Path, typer.Argument(help="of images: train/CLASS/* and val/CLASS/*")],
    out: Annotated[str, typer.Argument(help="a folder, or a URL such as s3://bucket/imagenet")],
    megabytes: Annotated[
        int, typer.Option(min=1, max=100_000, help="of images in a shard, or a little more")
    ] = 1000,
) -> None:
    """Pack an image folder into tar shards that `data.root` may name in its place."""
    from trainers.data.formats import DataError
    from trainers.data.packing import pack

    try:
        made = pack(folder, out, megabytes * 10**6, lambda name: console.print(Text(name)))
    except DataError as error:
        raise SpecError(str(error)) from None
    images, size = (sum(numbers) for numbers in list(zip(*made, strict=True))[1:])
    told = f"{len(made)} shards, {images} images, {size / 1e6:.1f} MB; --set data.root={out}"
    console.print(Text(told), soft_wrap=True)


@app.command(epilog="Example: `ablate ledger --recipe imagenet`")
def ledger(recipe: RecipeName = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Every point where the paper's text and the released code differ, and the version that a recipe follows."""
    content = library.load_recipe(recipe or Study.model_fields["recipe"].default, tuple(sets or ())).recipe
    entries = ledger_entries(content)
    if as_json:
        print_json(entries)
        return
    show_ledger(console, content, entries)


@app.command(epilog="Example: `ablate schema recipe > recipe.schema.json`")
def schema(
    what: Annotated[Literal["study", "recipe"], typer.Argument(help="which files")],
) -> None:
    """JSON Schema for an editor's completion of the YAML files."""
    model = Study if what == "study" else Recipe
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()})


def main() -> None:
    """The console script: runs a verb, and turns errors that are the user's to mend into one line and an exit code."""
    interrupted = 130
    signal.signal(signal.SIGTERM, _as_ctrl_c)  # what batch systems and `kill` send
    try:
        code = app(standalone_mode=False) or 0
    except AblateError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        _complain(_usage(error))
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        code = interrupted
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if (told := of_the_file_system(error)) is None:
            raise
        _complain(told)
        sys.exit(1)
    if code == interrupted:  # which is also what typer makes of Ctrl-C inside a verb
        _complain("interrupted; the same command goes on from here")
    sys.exit(code)


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(sentence: str) -> None:
    """Of the command itself, beside what it shows."""
    problems.print(Text(for_a_terminal(redacted(sentence)), "dim"), soft_wrap=True)


def _show(text: str) -> None:
    console.print(Text(text), end="", soft_wrap=True)


def _complain(message: str) -> None:
    if not message:  # help was asked for, and shown
        return
    problems.print("ablate: ", end="", style="bold red")
    problems.print(for_a_terminal(redacted(message)), soft_wrap=True)


def _usage(error: Any) -> str:
    lines = str(getattr(error, "format_message", error.__str__)()).split("\n")
    context = getattr(error, "ctx", None)
    where = f" (see `{context.command_path} --help`)" if context else ""
    return " ".join(line.strip() for line in lines) + where if any(lines) else ""


def _load_either(name: str) -> Study | Recipe:
    try:
        return library.load_study(name)[0]
    except SpecError:
        with suppress(SpecError):
            return library.load_recipe(name).recipe
        raise


def _plan(
    studies: list[str],
    recipe: str | None,
    seeds: str | None,
    sets: list[str] | None,
    records_of: Callable[[StudyPlan], SeedRecords],
) -> Plan:
    """Args: records_of: where `--seeds all` looks for trainings."""
    asked = parse_seeds(seeds)
    if asked == ALL:
        return with_every_seed(studies, recipe, tuple(sets or ()), records_of)
    return make_plan(studies, recipe, asked, tuple(sets or ()))


def _allocation(
    until_decided: bool,
    studies: list[str],
    recipe: str | None,
    seeds: str | None,
    sets: list[str] | None,
    budget: str | None,
    max_seeds: int | None,
) -> Allocation | None:
    """What --until-decided asks for; None without it."""
    if not until_decided:
        for option, value in (("--budget", budget), ("--max-seeds", max_seeds)):
            if value is not None:
                raise SpecError(f"{option}: got {value} without --until-decided, expected both")
        return None
    asked = parse_seeds(seeds)
    if asked == ALL:
        raise SpecError("--seeds: got all with --until-decided, expected the first seeds, such as 0,1")
    _seconds(budget)
    from orchestrator.allocation import allocate

    return allocate(studies, recipe, asked, tuple(sets or ()), max_seeds or _MAX_SEEDS)


def _forecast(allocation: Allocation, store: Store) -> Forecast:
    from orchestrator.until_decided import forecast

    return forecast(allocation, store)


def _forecast_as_plain(expected: Forecast) -> dict[str, Any]:
    claims = expected.standing.claims or {}
    return {
        "claims": [{"plan": name, **asdict(claim)} for name, some in claims.items() for claim in some],
        "to_train_at_most": [job.trial for job in expected.at_most if job.train],
    }


def _seconds(budget: str | None) -> float | None:
    from orchestrator.until_decided import parse_budget

    return None if budget is None else parse_budget(budget)


def _refuse_inline_gangs(executor: str, footprints: Iterable[Resources]) -> None:
    gangs = [footprint.workers for footprint in footprints if footprint.workers > 1]
    if executor == "inline" and gangs:
        raise SpecError(f"--executor inline: got resources.workers = {gangs[0]}, takes 1; use auto or train")


def _check_data(recipe: Recipe, missing: list[Job]) -> None:
    """Refuse data that aren't there, or are fewer than a batch or an evaluation needs, before anything starts."""
    if not missing:
        return
    from trainers.data.datasets import DataError, check_data, check_evaluation

    trained = [(job, job.config) for job in missing if isinstance(job.config, TrialConfig)]
    batches = {(config.data, config.batch_size) for _, config in trained}
    measured = {
        (config.data.model_copy(update={"validation_images": job.validation_images[key]}), protocol)
        for job, config in trained
        for key, protocol in job.evaluations.items()
    }
    for data, check in (
        *((data, partial(check_data, data, batch_size)) for data, batch_size in batches),
        *((data, partial(check_evaluation, data, protocol)) for data, protocol in measured),
    ):
        try:
            check()
        except DataError as error:
            raise SpecError(f"recipe {recipe.name}: {error}") from None
        except OSError as error:  # a name too long, a loop of links
            raise SpecError(f"recipe {recipe.name}: data.root {data.root}: {error.strerror}") from None


def _check_tracking(uri: str | None) -> None:
    """Refuse a URI that MLflow can't take before hours of training."""
    if uri is None:
        return
    from orchestrator.mlflow_access import check_uri

    check_uri(uri)
    scheme = uri.partition(":")[0].partition("+")[0].lower()
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    if scheme not in _TRACKING_SCHEMES | plugins:
        takes = ", ".join(sorted(_TRACKING_SCHEMES))
        raise SpecError(f"--tracking-uri: got the scheme {scheme!r}, takes {takes}")


def _slots_here(recipe: Recipe) -> int:
    """Trials side by side on this machine, were it the cluster; accelerators are not looked for."""
    footprint = recipe.resources
    if footprint.gpus_per_worker:
        return 1
    return max(1, (os.cpu_count() or 1) // (footprint.cpus_per_worker * footprint.workers))


if __name__ == "__main__":
    main()
