"""Recipe, study, cell, trial: what the YAML files may say. Strict, frozen, with errors for people."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator import measured
from orchestrator.exhibits import Claim, Figure, Name, Statistics, Table, TrainingFigure, cells_of, metrics_of
from trainers.config import (
    AugmentConfig,
    BackboneConfig,
    Config,
    DataConfig,
    Dimension,
    EvaluationConfig,
    HeadConfig,
    Knn,
    LinearProbe,
    LossConfig,
    NoHead,
    OptimizerConfig,
    ScheduleConfig,
    Spectrum,
    SubvectorHead,
    SubvectorProbe,
    ToyConfig,
    ToyRun,
    TrialConfig,
    absolute,
    canonical_head,
    canonical_probe,
)
from trainers.locations import is_url

EvaluationKind = Literal["linear_probe", "subvector_probe", "knn", "spectrum"]
Executor = Literal["auto", "inline", "train"]
Version = Literal["as_published", "as_released", "corrected"]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Resources(Config):
    """What one trial occupies. No part of a trial's key: training is invariant to it."""

    workers: int = Field(1, ge=1, le=4096)
    cpus_per_worker: int = Field(1, ge=1, le=1024)
    gpus_per_worker: float = Field(0, ge=0, le=16)
    loader_processes: int = Field(0, ge=0, le=256, description="per worker")
    placement: Literal["pack", "strict_pack", "spread", "strict_spread"] = Field(
        "pack",
        description="of a trial's workers: on few nodes, on one (as NCCL likes it best), over many, each on another",
    )
    evaluation_cpus: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="of the process that measures a trained trial; default: as of a worker",
    )
    evaluation_gpus: float | None = Field(
        None, ge=0, le=16, description="0: it measures on CPUs, beside trainings; default: as of a worker"
    )

    @model_validator(mode="after")
    def _whole_or_shared(self) -> Resources:
        gpus = self.gpus_per_worker
        if (gpus > 1 and gpus % 1) or (0 < gpus < 1 and self.workers > 1):
            raise ValueError(
                f"gpus_per_worker: got {gpus:g} with {self.workers} worker(s), takes a whole number, or a share "
                "of one GPU for a single worker"
            )
        measuring = self.evaluation_gpus or 0
        if measuring > 1 and measuring % 1:
            raise ValueError(
                f"evaluation_gpus: got {measuring:g}, takes a whole number, or a share of one GPU"
            )
        return self

    @property
    def evaluation(self) -> Resources:
        """What the process that measures a trained trial occupies."""
        cpus, gpus = self.evaluation_cpus, self.evaluation_gpus
        return Resources(
            cpus_per_worker=self.cpus_per_worker if cpus is None else cpus,
            gpus_per_worker=self.gpus_per_worker if gpus is None else gpus,
            loader_processes=self.loader_processes,
        )


class Limits(Config):
    """How often a trial is saved, and what ends it. No part of its key: no number of a finished trial depends on it."""

    state_seconds: float = Field(
        300, ge=0, le=86_400, description="between states saved within an epoch; 0: only at the end of each"
    )
    silent_seconds: float = Field(
        1800, ge=5, le=604_800, description="without a step: the trial counts as hung and is ended"
    )
    corrupt_images: int = Field(
        10,
        ge=0,
        le=1_000_000,
        description="undecodable images that a neighbour stands in for; more end the trial",
    )


class Cost(Config):
    """What one trial cost somewhere, for estimates before anything was measured here."""

    seconds: float = Field(gt=0)
    hardware: str = Field(min_length=1, max_length=200)


class Evaluations(Config):
    """The recipe's protocol for each kind of measurement."""

    linear_probe: LinearProbe = LinearProbe(kind="linear_probe")
    subvector_probe: SubvectorProbe = SubvectorProbe(kind="subvector_probe")
    knn: Knn = Knn(kind="knn")
    spectrum: Spectrum = Spectrum(kind="spectrum")


class Recipe(Config):
    """All that is needed to train and evaluate one model at one scale."""

    name: Name
    title: str = Field(min_length=1, max_length=200)
    data: DataConfig
    backbone: BackboneConfig
    projector_dim: Dimension = Field(128, description="output of a trainable projector that names none")
    faithfulness: dict[str, Version] = Field(
        {}, description="switches of the ledger (`ablate ledger`): which version of the method to follow"
    )
    head: HeadConfig = NoHead(kind="none")
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    train_equivalents_apart: bool = Field(
        False,
        description="heads that are equal but for rounding, such as an orthogonal projector and none, each have a "
        "training of their own, as in the paper",
    )
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=2, le=2**20, description="global, over all workers")
    lr_batch: int | None = Field(
        None,
        ge=1,
        description="batch that optimizer.lr is meant for: scaled linearly to batch_size; default: not",
    )
    gradient_cache: int = Field(
        1,
        ge=1,
        le=4096,
        description="parts that a worker's share of a batch is passed through the backbone in",
    )
    precision: Literal["float64", "float32", "bf16", "fp16"] = "float32"
    channels_last: bool = False
    deterministic: bool = True
    online_probe: bool = True
    evaluations: Evaluations = Evaluations()
    seed_sd: float = Field(
        0.2,
        ge=0,
        description="points of accuracy: assumed spread of a cell between seeds, while there is only one seed",
    )
    toy: dict[str, Any] = Field({}, description="override of the toy networks of theory studies")
    resources: Resources = Resources()
    limits: Limits = Limits()
    cost: Cost | None = None

    @model_validator(mode="after")
    def _divides(self) -> Recipe:
        parts = self.resources.workers * self.gradient_cache
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size: got {self.batch_size}, takes a multiple of resources.workers x gradient_cache = {parts}"
            )
        _check_root(self.data)
        self.trial(seed=0)
        self.evaluation("subvector_probe")
        if unknown := sorted(set(self.toy) - set(ToyConfig.model_fields)):
            raise ValueError(f"toy.{unknown[0]}: unknown field; takes {', '.join(ToyConfig.model_fields)}")
        return self

    @property
    def _head(self) -> HeadConfig:
        return canonical_head(
            self.head,
            self.backbone.representation_dim,
            self.projector_dim,
            self.loss,
            self.train_equivalents_apart,
        )

    def trial(self, seed: int) -> TrialConfig:
        """This recipe with one seed, in canonical form: equivalent configurations become equal."""
        head = self._head
        fields = {
            name: getattr(self, name) for name in TrialConfig.model_fields if name not in ("seed", "head")
        }
        if self.lr_batch is not None:
            lr = self.optimizer.lr * self.batch_size / self.lr_batch
            fields["optimizer"] = self.optimizer.model_copy(update={"lr": lr})
        if self.data.root is not None and not is_url(self.data.root):
            # a worker's working directory is not the user's
            root = os.path.abspath(os.path.expanduser(self.data.root))
            fields["data"] = self.data.model_copy(update={"root": root})
        return TrialConfig(seed=seed, head=head, **fields)

    def evaluation(self, kind: EvaluationKind) -> EvaluationConfig | None:
        """The protocol of one kind, with d0 resolved; None where it doesn't apply (no subvector to probe)."""
        protocol: EvaluationConfig = getattr(self.evaluations, kind)
        if isinstance(protocol, LinearProbe):
            protocol = canonical_probe(protocol)
        if not isinstance(protocol, SubvectorProbe):
            return protocol
        dim, head = self.backbone.representation_dim, self._head
        wanted = protocol.d0
        if wanted is None:
            if not isinstance(head, SubvectorHead):
                return None
            wanted = head.d0
        d0 = absolute(wanted, dim)
        if d0 > dim:
            raise ValueError(f"evaluations.subvector_probe.d0: got {d0}, takes at most D = {dim}")
        return protocol.model_copy(update={"d0": d0})


class Cell(Config):
    """One row of a table or point of a curve: a label and an override of the recipe."""

    name: Name
    label: str = Field(min_length=1, max_length=200)
    set: dict[str, Any] = Field({}, description="override of the recipe, nested or with dotted paths")


class ToyFamily(ToyConfig):
    """What the cells of a theory study share; all its cells are one batched run, trained under any recipe."""

    networks: int = Field(10, ge=2, le=10_000, description="independent draws of data and weights a cell")
    seed: Seed = 0
    cost: Cost | None = None

    def run(self, cases: tuple[ToyConfig, ...]) -> ToyRun:
        return ToyRun(networks=self.networks, seed=self.seed, cases=cases)


class Published(Config):
    """What a study's published numbers were measured on: only there can ours be subtracted from them."""

    data: str = Field("imagenet", description="kind of data, or the name of an imagefolder")
    image_size: int = 224
    backbone: str = "resnet50"


class Study(Config):
    """What is varied and what is shown. Says nothing of scale: any study runs under any recipe."""

    name: Name
    title: str = Field(min_length=1, max_length=300)
    source: str = Field(min_length=1, max_length=300, description="where in the paper")
    about: str = Field("", max_length=2000, description="what is varied and measured, and how to read it")
    summary: str = Field(
        "", max_length=2000, description="what the paper says of it; a report quotes it as the paper's"
    )
    include: tuple[Name, ...] = Field((), description="studies that this one consists of, besides its cells")
    recipe: Name = "digits"
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, max_length=1000)
    toy: ToyFamily | None = Field(None, description="makes it a theory study: cells override these networks")
    cells: tuple[Cell, ...] = Field((), max_length=10_000)
    evaluations: tuple[EvaluationKind, ...] = ("linear_probe",)
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    claims: tuple[Claim, ...] = ()
    statistics: Statistics = Statistics()
    published: Published = Field(
        Published(),
        description="where the numbers under `paper` come from; differences are shown there alone",
    )
    not_run: tuple[Annotated[str, Field(min_length=1, max_length=500)], ...] = Field(
        (), description="what of the paper's section is not covered here, and why"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if not self.cells and not self.include:
            raise ValueError("cells: got none and no `include` either, takes one of them")
        if self.toy is not None and not 1 <= len(self.cells) <= 1000:
            raise ValueError(f"cells: got {len(self.cells)}, takes 1 to 1000 where there are toy networks")
        _refuse_repeats("seeds", list(self.seeds))
        _refuse_repeats("include", list(self.include))
        _refuse_repeats("cells", [cell.name for cell in self.cells])
        for what in ("tables", "figures", "claims"):
            shown = getattr(self, what)
            _refuse_repeats(what, [one.name for one in shown])
            for one in shown:
                self._knows_cells(f"{what}.{one.name}", cells_of(one))
                self._knows_metrics(f"{what}.{one.name}", one)
        return self

    def _knows_cells(self, where: str, cells: list[str]) -> None:
        """Own cells are checked here, those of included studies when the plan knows them."""
        known = {cell.name for cell in self.cells}
        for cell in cells:
            study, _, name = cell.rpartition("/")
            if (study in ("", self.name) and name not in known) or (
                study and study not in (self.name, *self.include)
            ):
                raise ValueError(
                    f"{where}: got cell {cell!r}, takes a cell of this study: "
                    f"{', '.join(sorted(known)) or 'there are none'}"
                    + (f"; or study/cell of {', '.join(self.include)}" if self.include else "")
                )

    def _knows_metrics(self, where: str, shown: Table | Figure | Claim) -> None:
        """Names alone; whether the cells named have them is checked when the plan knows how each is run."""
        if self.include:
            known, whose = measured.every_metric(), "that is measured"
        elif self.toy is not None:
            known, whose = list(ToyConfig(layers=2).metrics), "of toy networks"
        else:
            known = [*measured.of_kinds(self.evaluations), *measured.of_training()]
            whose = f"of this study's evaluations ({', '.join(self.evaluations)})"
        problems = [measured.problem(metric, known, whose) for metric, _ in metrics_of(shown)]
        if isinstance(shown, TrainingFigure):
            epochs = TrialConfig.EPOCH_METRICS
            problems += [measured.problem(metric, epochs, "of an epoch") for metric in shown.metrics]
        for problem in filter(None, problems):
            raise ValueError(f"{where}: {problem}")


def _check_root(data: DataConfig) -> None:
    """Refuse a URL where none is read, or with keys in it; never quotes it."""
    if data.root is None or not is_url(data.root):
        return
    if data.kind != "imagefolder":
        raise ValueError(
            "data.root: got a URL, takes a folder that all nodes see; only an imagefolder's shards may lie at a URL"
        )
    if any(sign in data.root for sign in "@?#"):
        raise ValueError(
            "data.root: got a URL with keys or a query in it, takes SCHEME://BUCKET/FOLDER alone; keys are taken from "
            "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )


def _refuse_repeats(field: str, values: list[Any]) -> None:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{field}: got {', '.join(repeated)} more than once, takes each once")


def trial_key(config: TrialConfig, numerics_version: int) -> str:
    """Content hash of everything that can change a training. Where the data lie is outside.

    Fields at their defaults are outside too, so that a field that is added later, with a default that
    changes nothing, leaves every key as it is. Whoever changes a default raises the version.
    """
    content = config.model_dump(
        mode="json", exclude_defaults=True, exclude={"data": {"root", "validation_images"}}
    )
    return content_key({"trial": content, "numerics": numerics_version})


def toy_key(run: ToyRun, version: int) -> str:
    """Content hash of a figure's toy networks."""
    return content_key({"toy": run.model_dump(mode="json", exclude_defaults=True), "numerics": version})


def evaluation_key(config: TrialConfig, trial: str, protocol: EvaluationConfig, version: int) -> str:
    """Content hash of a measurement: the key of its trial, the protocol, the images measured on."""
    content = {
        "of": trial,
        "evaluation": {"kind": protocol.kind, **protocol.model_dump(mode="json", exclude_defaults=True)},
        "validation_images": config.data.validation_images,
        "numerics": version,
    }
    return content_key(content)


def content_key(content: dict[str, Any]) -> str:
    """80 bits of SHA-256 over canonical JSON: sorted keys, no spaces, shortest round-trip floats."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]
