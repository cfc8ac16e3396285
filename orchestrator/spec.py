"""Recipe, study, cell, trial: what the YAML files may say. Strict, frozen, with errors for people."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

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
    TrialConfig,
    absolute,
    canonical_head,
)

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$", description="a-z, 0-9, _ . -")]
EvaluationKind = Literal["linear_probe", "subvector_probe", "knn", "spectrum"]
Executor = Literal["auto", "inline", "train"]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Resources(Config):
    """What one trial occupies. No part of a trial's key: training is invariant to it."""

    workers: int = Field(1, ge=1, le=4096)
    cpus_per_worker: int = Field(1, ge=1, le=1024)
    gpus_per_worker: float = Field(0, ge=0, le=16)
    loader_processes: int = Field(0, ge=0, le=256, description="per worker")

    @model_validator(mode="after")
    def _whole_or_shared(self) -> Resources:
        gpus = self.gpus_per_worker
        if (gpus > 1 and gpus % 1) or (0 < gpus < 1 and self.workers > 1):
            raise ValueError(
                f"gpus_per_worker: got {gpus:g} with {self.workers} worker(s), takes a whole number, or a share "
                "of one GPU for a single worker"
            )
        return self


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
    head: HeadConfig = NoHead(kind="none")
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=2, le=2**20, description="global, over all workers")
    precision: Literal["float64", "float32", "bf16", "fp16"] = "float32"
    channels_last: bool = False
    deterministic: bool = True
    online_probe: bool = True
    evaluations: Evaluations = Evaluations()
    resources: Resources = Resources()
    cost: Cost | None = None

    @model_validator(mode="after")
    def _divides(self) -> Recipe:
        if self.batch_size % self.resources.workers:
            raise ValueError(
                f"batch_size: got {self.batch_size}, takes a multiple of resources.workers = "
                f"{self.resources.workers}"
            )
        self.trial(seed=0)
        self.evaluation("subvector_probe")
        return self

    def trial(self, seed: int) -> TrialConfig:
        """This recipe with one seed, in canonical form: equivalent configurations become equal."""
        head = canonical_head(self.head, self.backbone.representation_dim, self.projector_dim)
        fields = {
            name: getattr(self, name) for name in TrialConfig.model_fields if name not in ("seed", "head")
        }
        if self.data.root is not None:
            # a worker's working directory is not the user's
            root = os.path.abspath(os.path.expanduser(self.data.root))
            fields["data"] = self.data.model_copy(update={"root": root})
        return TrialConfig(seed=seed, head=head, **fields)

    def evaluation(self, kind: EvaluationKind) -> EvaluationConfig | None:
        """The protocol of one kind, with d0 resolved; None where it doesn't apply (no subvector to probe)."""
        protocol: EvaluationConfig = getattr(self.evaluations, kind)
        if not isinstance(protocol, SubvectorProbe):
            return protocol
        dim = self.backbone.representation_dim
        head = canonical_head(self.head, dim, self.projector_dim)
        if protocol.d0 is None and not isinstance(head, SubvectorHead):
            return None
        d0 = absolute(head.d0 if protocol.d0 is None else protocol.d0, dim)
        if d0 > dim:
            raise ValueError(f"evaluations.subvector_probe.d0: got {d0}, takes at most D = {dim}")
        return protocol.model_copy(update={"d0": d0})


class Cell(Config):
    """One row of a table or point of a curve: a label and an override of the recipe."""

    name: Name
    label: str = Field(min_length=1, max_length=200)
    set: dict[str, Any] = Field({}, description="override of the recipe, nested or with dotted paths")


class TableRow(Config):
    cell: Name
    columns: tuple[Annotated[str, Field(max_length=200)], ...]
    paper: float | None = Field(None, description="the paper's published value")


class Table(Config):
    """A table of the paper: which cells, how they are named, which metric, the paper's numbers."""

    name: Name
    title: str = Field(min_length=1, max_length=300)
    source: str = Field(min_length=1, max_length=200, description="where in the paper")
    metric: str = Field("linear_probe/top1", pattern=r"^[a-z_]+(/[a-z0-9_]+)+$")
    metric_label: str = "Top-1 accuracy (%)"
    columns: tuple[Annotated[str, Field(min_length=1, max_length=60)], ...] = Field(min_length=1)
    rows: tuple[TableRow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rows_fill_columns(self) -> Table:
        for position, row in enumerate(self.rows):
            if len(row.columns) != len(self.columns):
                raise ValueError(
                    f"rows[{position}].columns: got {len(row.columns)} entries, takes {len(self.columns)}"
                )
        return self


class Study(Config):
    """What is varied and what is shown. Says nothing of scale: any study runs under any recipe."""

    name: Name
    title: str = Field(min_length=1, max_length=300)
    source: str = Field(min_length=1, max_length=300, description="where in the paper")
    include: tuple[Name, ...] = Field((), description="studies that this one consists of")
    recipe: Name = "digits"
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, max_length=1000)
    cells: tuple[Cell, ...] = Field((), max_length=10_000)
    evaluations: tuple[EvaluationKind, ...] = ("linear_probe",)
    tables: tuple[Table, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if bool(self.cells) == bool(self.include):
            raise ValueError("takes either `cells` or `include`, and one of them")
        _refuse_repeats("seeds", list(self.seeds))
        _refuse_repeats("cells", [cell.name for cell in self.cells])
        _refuse_repeats("tables", [table.name for table in self.tables])
        known = {cell.name for cell in self.cells}
        for table in self.tables:
            for position, row in enumerate(table.rows):
                if row.cell not in known:
                    raise ValueError(
                        f"tables.{table.name}.rows[{position}].cell: got {row.cell!r}, takes a cell of this "
                        f"study: {', '.join(sorted(known)) or 'there are none'}"
                    )
            kind = table.metric.split("/")[0]
            if kind not in self.evaluations:
                raise ValueError(
                    f"tables.{table.name}.metric: got {table.metric!r}, takes a metric of this study's "
                    f"evaluations: {', '.join(self.evaluations)}"
                )
        return self


def _refuse_repeats(field: str, values: list[Any]) -> None:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{field}: got {', '.join(repeated)} more than once, takes each once")


def trial_key(config: TrialConfig, numerics_version: int) -> str:
    """Content hash of everything that can change a training. Where the data lie is outside."""
    content = config.model_dump(mode="json", exclude={"data": {"root", "validation_images"}})
    return content_key({"trial": content, "numerics": numerics_version})


def evaluation_key(config: TrialConfig, trial: str, protocol: EvaluationConfig, version: int) -> str:
    """Content hash of a measurement: the key of its trial, the protocol, the images measured on."""
    content = {
        "of": trial,
        "evaluation": protocol.model_dump(mode="json"),
        "validation_images": config.data.validation_images,
        "numerics": version,
    }
    return content_key(content)


def content_key(content: dict[str, Any]) -> str:
    """80 bits of SHA-256 over canonical JSON: sorted keys, no spaces, shortest round-trip floats."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]
