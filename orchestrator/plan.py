"""Study x recipe x seeds -> the trainings and evaluations that are needed, each once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

from orchestrator import measured
from orchestrator.errors import SpecError
from orchestrator.exhibits import cells_of, metrics_of
from orchestrator.library import RecipeSource, load_recipe, load_study, toy_case
from orchestrator.messages import did_you_mean
from orchestrator.setting import Setting, is_as_published, setting
from orchestrator.spec import (
    Cell,
    EvaluationKind,
    Limits,
    Recipe,
    Resources,
    Study,
    evaluation_key,
    toy_key,
    trial_key,
)
from orchestrator.store import Store
from trainers import EVALUATION_VERSION, NUMERICS_VERSION, THEORY_VERSION
from trainers.config import EvaluationConfig, ToyRun, TrialConfig


@dataclass(frozen=True)
class PlannedCell:
    """One cell with one seed: which trial serves it and which evaluations it shows.

    Attributes:
        case: of a theory study: the cell's place in its run of toy networks, whose n-th network has seed n.
        as_published: its data and backbone are those that the study's published numbers were measured on.
    """

    study: str
    cell: str
    label: str
    seed: int
    trial: str
    evaluations: dict[EvaluationKind, str]
    case: int | None = None
    as_published: bool = False

    @property
    def name(self) -> str:
        return f"{self.study}/{self.cell}"


@dataclass(frozen=True)
class StudyPlan:
    """One study under one recipe: a report, and a parent run in MLflow.

    Attributes:
        seed_sd: the recipe's assumed spread between seeds, points of accuracy.
        setting: the recipe in words.
    """

    study: Study
    members: tuple[Study, ...]
    recipe: str
    seeds: tuple[int, ...]
    cells: tuple[PlannedCell, ...]
    seed_sd: float = 0.2
    setting: Setting | None = None

    @property
    def name(self) -> str:
        return f"{self.study.name}@{self.recipe}"


@dataclass(frozen=True)
class Plan:
    """All that a command asks for; trials and evaluations are shared between cells and studies."""

    recipe: Recipe
    overrides: dict[str, object]
    studies: list[StudyPlan] = field(default_factory=list)
    trials: dict[str, TrialConfig | ToyRun] = field(default_factory=dict)
    evaluations: dict[str, tuple[str, EvaluationConfig]] = field(default_factory=dict)
    validation_images: dict[str, int | None] = field(default_factory=dict)  # of each evaluation
    resources: dict[str, Resources] = field(default_factory=dict)
    limits: dict[str, Limits] = field(default_factory=dict)
    toy_seconds: dict[str, float] = field(default_factory=dict)  # what their studies say that they cost

    def cells(self) -> list[PlannedCell]:
        return [cell for study in self.studies for cell in study.cells]

    def only(self, keep: Callable[[StudyPlan, PlannedCell], bool]) -> Plan:
        """Without some seeds of some cells, and without the work that only they need; toy networks stay."""
        studies = []
        for study in self.studies:
            cells = tuple(cell for cell in study.cells if cell.case is not None or keep(study, cell))
            kept = {cell.seed for cell in cells if cell.case is None}
            seeds = tuple(seed for seed in study.seeds if seed in kept) or study.seeds
            studies.append(replace(study, cells=cells, seeds=seeds))
        left = [cell for study in studies for cell in study.cells]
        trials = {cell.trial for cell in left}
        measured = {key for cell in left for key in cell.evaluations.values()}
        return replace(
            self,
            studies=studies,
            trials=_among(self.trials, trials),
            evaluations=_among(self.evaluations, measured),
            validation_images=_among(self.validation_images, measured),
            resources=_among(self.resources, trials),
            limits=_among(self.limits, trials),
            toy_seconds=_among(self.toy_seconds, trials),
        )


_Value = TypeVar("_Value")


def _among(values: dict[str, _Value], keys: Collection[str]) -> dict[str, _Value]:
    return {key: value for key, value in values.items() if key in keys}


@dataclass(frozen=True)
class Job:
    """What the store lacks of one trial: its training, some evaluations, or both.

    Attributes:
        config: of the training, to which it is all one which images are validated on.
        validation_images: so many images of the validation split each evaluation is made on, None for all.
    """

    trial: str
    config: TrialConfig | ToyRun
    train: bool
    evaluations: dict[str, EvaluationConfig]
    resources: Resources
    label: str
    limits: Limits = field(default_factory=Limits)
    validation_images: dict[str, int | None] = field(default_factory=dict)

    @property
    def is_toy(self) -> bool:
        return isinstance(self.config, ToyRun)

    @property
    def footprint(self) -> Resources:
        """What it occupies at first: a trained trial is only measured."""
        return self.resources if self.train else self.resources.evaluation


def make_plan(
    study_names: Sequence[str],
    recipe_name: str | None = None,
    seeds: tuple[int, ...] | None = None,
    sets: tuple[str, ...] = (),
) -> Plan:
    """Resolve studies under a recipe.

    Args:
        recipe_name: default: the recipe of the first study.
        seeds: default: each study's own.

    Raises:
        SpecError: anything in a study, recipe or override that can't be used.
    """
    if not study_names:
        raise SpecError("STUDY: got none, takes at least one; `ablate list` shows them")
    loaded = [load_study(name) for name in dict.fromkeys(study_names)]
    source = load_recipe(recipe_name or loaded[0][0].recipe, sets)
    plan = Plan(source.recipe, source.overrides)
    for study, file in loaded:
        plan.studies.append(_plan_study(study, file, source, seeds or study.seeds, plan))
    return plan


def jobs(plan: Plan, store: Store) -> list[Job]:
    """What is missing, in the order of the plan: seeds outermost, so that every cell has a number early."""
    labels: dict[str, str] = {}
    for cell in plan.cells():
        labels.setdefault(cell.trial, cell.label if cell.case is None else f"toy networks of {cell.study}")
    of_trial: dict[str, dict[str, EvaluationConfig]] = {key: {} for key in plan.trials}
    for evaluation, (trial, protocol) in plan.evaluations.items():
        of_trial[trial][evaluation] = protocol

    def is_trained(key: str) -> bool:
        toy = isinstance(plan.trials[key], ToyRun)
        return store.trial_record(key) is not None and (not toy or store.has_arrays(key))

    trained = dict(zip(plan.trials, store.each(is_trained, plan.trials), strict=True))
    wanted = [evaluation for evaluation, (trial, _) in plan.evaluations.items() if trained[trial]]
    measured = dict(zip(wanted, store.each(store.evaluation_record, wanted), strict=True))
    missing = []
    for key, config in sorted(plan.trials.items(), key=lambda item: item[1].seed):
        train = not trained[key]
        evaluations = {
            evaluation: protocol
            for evaluation, protocol in of_trial[key].items()
            if measured.get(evaluation) is None
        }
        if train or evaluations:
            images = {evaluation: plan.validation_images[evaluation] for evaluation in evaluations}
            missing.append(
                Job(
                    key,
                    config,
                    train,
                    evaluations,
                    plan.resources[key],
                    labels[key],
                    plan.limits[key],
                    images,
                )
            )
    return missing


@dataclass(frozen=True)
class Estimate:
    """Seconds that a plan's missing work takes, and what the figure rests on."""

    seconds: float
    basis: str


def estimate(plan: Plan, missing: list[Job], store: Store, at_once: int) -> Estimate | None:
    """Wall seconds with `at_once` trials side by side; None if nothing is known of this recipe's cost."""
    epochs = [job.config.epochs for job in missing if isinstance(job.config, TrialConfig) and job.train]
    training = store.seconds_per_epoch(plan.recipe.name) if epochs else []
    if training:
        per_epoch, basis = median(training), f"the median of {len(training)} finished trials of this recipe"
    elif epochs and plan.recipe.cost:
        per_epoch = plan.recipe.cost.seconds / plan.recipe.epochs
        basis = f"the recipe's stated cost on {plan.recipe.cost.hardware}"
    elif epochs:
        return None
    else:
        per_epoch, basis = 0.0, "what studies and finished evaluations say"
    measured = store.evaluation_seconds(plan.recipe.name)
    measuring = sum(len(job.evaluations) for job in missing) * (median(measured) if measured else 0.0)
    toys = [plan.toy_seconds.get(job.trial, 0.0) for job in missing]
    side_by_side = (per_epoch * sum(epochs) + measuring + sum(toys)) / max(1, at_once)
    return Estimate(max([side_by_side, *toys]), basis)


def _plan_study(
    study: Study, file: Path, source: RecipeSource, seeds: tuple[int, ...], plan: Plan
) -> StudyPlan:
    members = _members(study, file)
    cells = [
        planned
        for member, member_file in members
        for planned in (
            _plan_toys(member, member_file, source.recipe, plan)
            if member.toy
            else _plan_trained(member, member_file, source, seeds, plan)
        )
    ]
    for member, member_file in [(study, file), *members]:
        _refuse_unknown_cells(member, member_file, cells)
        _refuse_unknown_metrics(member, member_file, cells, _metrics_of_cells(cells, members, plan))
    return StudyPlan(
        study,
        tuple(member for member, _ in members),
        source.label,
        seeds,
        tuple(cells),
        source.recipe.seed_sd,
        setting(source.recipe, source.overrides),
    )


def _plan_trained(
    study: Study, file: Path, source: RecipeSource, seeds: tuple[int, ...], plan: Plan
) -> list[PlannedCell]:
    return [
        planned
        for cell in study.cells
        for planned in _plan_cell(study, cell, source.with_cell(cell, file), seeds, plan)
    ]


def _plan_toys(study: Study, file: Path, recipe: Recipe, plan: Plan) -> list[PlannedCell]:
    """One trial for the whole study; its seeds are its networks, whatever seeds the trainings have."""
    assert study.toy is not None
    cases = tuple(toy_case(study.toy, recipe, cell, str(file)) for cell in study.cells)
    run = study.toy.run(cases)
    key = toy_key(run, THEORY_VERSION)
    plan.trials.setdefault(key, run)
    if study.toy.cost:
        plan.toy_seconds[key] = study.toy.cost.seconds
    plan.resources.setdefault(key, Resources())  # whatever the recipe's trainings occupy
    plan.limits.setdefault(key, recipe.limits)
    return [
        PlannedCell(study.name, cell.name, cell.label, network, key, {}, case, as_published=True)
        for case, cell in enumerate(study.cells)
        for network in range(run.networks)
    ]


def _refuse_unknown_cells(study: Study, file: Path, cells: list[PlannedCell]) -> None:
    """Cells of included studies that tables, figures and claims name, which a study alone can't check."""
    known = {cell.name for cell in cells}
    for what in ("tables", "figures", "claims"):
        for shown in getattr(study, what):
            for cell in cells_of(shown):
                if "/" in cell and cell not in known:
                    raise SpecError(
                        f"{file}: {what}.{shown.name}: got cell {cell!r}{did_you_mean(cell, sorted(known))}, "
                        "takes a cell of an included study"
                    )


def _metrics_of_cells(
    cells: list[PlannedCell], members: list[tuple[Study, Path]], plan: Plan
) -> dict[str, list[str]]:
    """What is measured of each cell. A kind of evaluation that doesn't apply to a cell leaves a blank, not an error."""
    kinds = {member.name: member.evaluations for member, _ in members}
    found: dict[str, list[str]] = {}
    for cell in cells:
        config = plan.trials[cell.trial]
        if isinstance(config, ToyRun):
            assert cell.case is not None
            found[cell.name] = list(config.cases[cell.case].metrics)
            continue
        metrics = measured.of_training()
        for kind in kinds[cell.study]:
            key = cell.evaluations.get(kind)
            metrics += measured.of_evaluation(plan.evaluations[key][1]) if key else measured.of_kinds([kind])
        found[cell.name] = metrics
    return found


def _refuse_unknown_metrics(
    study: Study, file: Path, cells: list[PlannedCell], metrics: dict[str, list[str]]
) -> None:
    """Metrics that tables, figures and claims name, and that their cells' studies do not measure."""
    for what in ("tables", "figures", "claims"):
        for shown in getattr(study, what):
            where = f"{file}: {what}.{shown.name}"
            for metric, named in metrics_of(shown):
                for cell in named:
                    known = metrics[cell if "/" in cell else f"{study.name}/{cell}"]
                    if problem := measured.problem(metric, known, f"of cell {cell}"):
                        raise SpecError(f"{where}: {problem}")
                if not named and not any(
                    measured.frame_metric(metric) in known for known in metrics.values()
                ):
                    raise SpecError(f"{where}: got {metric!r}, which no cell of the study has")


def _plan_cell(
    study: Study, cell: Cell, recipe: Recipe, seeds: tuple[int, ...], plan: Plan
) -> list[PlannedCell]:
    planned = []
    as_published = is_as_published(recipe, study.published)
    for seed in seeds:
        config = recipe.trial(seed)
        key = trial_key(config, NUMERICS_VERSION)
        data = config.data.model_copy(update={"validation_images": None})
        known = plan.trials.setdefault(key, config.model_copy(update={"data": data}))
        if isinstance(known, TrialConfig) and known.data.root != config.data.root:
            raise SpecError(
                f"study {study.name}: cell {cell.name}: data.root: got {config.data.root}, where a cell with the same "
                f"training has {known.data.root}; expected one root for all of them, or an own data.name for each"
            )
        plan.resources.setdefault(key, recipe.resources)
        plan.limits.setdefault(key, recipe.limits)
        evaluations: dict[EvaluationKind, str] = {}
        for kind in study.evaluations:
            protocol = recipe.evaluation(kind)
            if protocol is not None:
                evaluations[kind] = evaluation_key(config, key, protocol, EVALUATION_VERSION)
                plan.evaluations.setdefault(evaluations[kind], (key, protocol))
                plan.validation_images.setdefault(evaluations[kind], config.data.validation_images)
        planned.append(
            PlannedCell(study.name, cell.name, cell.label, seed, key, evaluations, as_published=as_published)
        )
    return planned


def _members(study: Study, file: Path, above: tuple[str, ...] = ()) -> list[tuple[Study, Path]]:
    """The studies that a study consists of, each once, in order; itself last, if it has anything of its own."""
    if study.name in above:
        raise SpecError(f"{file}: include: {' -> '.join((*above, study.name))} goes round in a circle")
    found: dict[str, tuple[Study, Path]] = {}
    for name in study.include:
        included, included_file = load_study(name, beside=file)
        for member, member_file in _members(included, included_file, (*above, study.name)):
            found.setdefault(member.name, (member, member_file))
    if study.cells or study.tables or study.figures or study.claims:
        found[study.name] = (study, file)
    return list(found.values())
