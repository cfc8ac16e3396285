"""What one trial is: frozen, validated, serialisable. Imports no torch, so that planning is instant.

Sizes that should scale with the backbone are a `Dimension`: an absolute integer, or a fraction of
the representation's dimension D, written "360/2048".
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, TypeVar, assert_never

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


_FRACTION = re.compile(r"[0-9]{1,9}/[0-9]{1,9}")


def _check_dimension(value: Any) -> int | str:
    # A float is refused, since 1.0 would be all of D where 1 is a single feature.
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= 2**20:
            raise ValueError("expected an absolute dimension from 1 to 1048576")
        return value
    if not isinstance(value, str) or not _FRACTION.fullmatch(value):
        raise ValueError('expected an integer, or a fraction of D such as "360/2048"')
    numerator, denominator = map(int, value.split("/"))
    if not 0 < numerator <= denominator:
        raise ValueError("expected a fraction of D in (0, 1]")
    return value


Dimension = Annotated[int | str, BeforeValidator(_check_dimension)]
Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]


def absolute(dimension: int | str, representation_dim: int) -> int:
    """A Dimension as a count of features: fractions of D are rounded to the nearest, at least 1."""
    if isinstance(dimension, int):
        return dimension
    return max(1, round(Fraction(dimension) * representation_dim))


# --- data ---------------------------------------------------------------------------------------

MOST_GLYPHS = 642
"""Characters that differ in shape and that all fonts of the data set `glyphs` have."""


class DataConfig(Config):
    """Where images come from. `root` is where they lie on this machine and is no part of a trial's key."""

    kind: Literal["digits", "glyphs", "fashion_mnist", "cifar10", "cifar100", "stl10", "imagefolder"]
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="what an imagefolder holds")
    root: str | None = None
    image_size: int = Field(ge=4, le=1024, description="side in pixels after the crop")
    train_images: int | None = Field(None, ge=2, description="use a fixed random subset of this size")
    validation_images: int | None = Field(None, ge=2)
    classes: int | None = Field(None, ge=2, le=MOST_GLYPHS, description="of glyphs: how many characters")
    images_per_class: int | None = Field(None, ge=1, le=10_000, description="of glyphs, to train on")
    validation_images_per_class: int | None = Field(None, ge=1, le=10_000, description="of glyphs")
    seed: int = Field(0, ge=0, lt=2**31, description="of glyphs: which characters, and how each is drawn")

    @model_validator(mode="after")
    def _drawn(self) -> DataConfig:
        for field in ("classes", "images_per_class", "validation_images_per_class"):
            if self.kind == "glyphs" and getattr(self, field) is None:
                raise ValueError(f"{field}: expected a number for kind glyphs, got none")
            if self.kind != "glyphs" and getattr(self, field) is not None:
                raise ValueError(f"{field}: is for kind glyphs alone, got kind {self.kind}")
        if self.kind != "glyphs" and self.seed:
            raise ValueError(f"seed: is for kind glyphs alone, got kind {self.kind}")
        return self

    @model_validator(mode="after")
    def _named_and_located(self) -> DataConfig:
        if self.kind == "imagefolder" and not self.name:
            raise ValueError("an imagefolder needs a `name` (its trials are shared under it)")
        if self.kind != "imagefolder" and self.name:
            raise ValueError(f"`name` is for kind imagefolder; {self.kind} has its own")
        return self


# --- backbones ----------------------------------------------------------------------------------


class ResNet(Config):
    """A torchvision ResNet; zero-initialised residual BN as in the released code."""

    kind: Literal["resnet18", "resnet34", "resnet50"]
    zero_init_residual: bool = True

    @property
    def ends_in_identity_shortcut(self) -> bool:
        """Their last stages have two or three blocks."""
        return True

    @property
    def representation_dim(self) -> int:
        match self.kind:
            case "resnet18" | "resnet34":
                return 512
            case "resnet50":
                return 2048
            case _:
                assert_never(self.kind)


class ThinResNet(Config):
    """A bottleneck ResNet for small images: 3x3 stem, and the 4x expansion of ResNet-50's last block."""

    kind: Literal["thin_resnet"]
    width: int = Field(16, ge=1, le=256)
    blocks: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((2, 2, 2, 2), min_length=1, max_length=4)
    stem_stride: Literal[1, 2] = 1
    zero_init_residual: bool = True

    @property
    def ends_in_identity_shortcut(self) -> bool:
        """Whether r[d0:] of DirectCLR is trained (Figure 10): a stage's first block has a convolution instead."""
        return self.blocks[-1] > 1

    @property
    def representation_dim(self) -> int:
        return 4 * self.width * 2 ** (len(self.blocks) - 1)


BackboneConfig = Annotated[ResNet | ThinResNet, Field(discriminator="kind")]


# --- heads --------------------------------------------------------------------------------------


class NoHead(Config):
    """The loss acts on the whole representation ("SimCLR, no projector")."""

    kind: Literal["none"]


class MlpHead(Config):
    """2-layer nonlinear projector: Linear, BN, ReLU, Linear, BN; no biases."""

    kind: Literal["mlp"]
    hidden_dim: Dimension = "1/1"
    out_dim: Dimension | None = Field(None, description="default: the recipe's projector_dim")
    final_norm: bool = Field(
        True, description="batch norm after the last layer, too, as in the released code"
    )


class LinearHead(Config):
    """1-layer linear projector, trainable, no bias."""

    kind: Literal["linear"]
    out_dim: Dimension | None = Field(None, description="default: the recipe's projector_dim")


class DiagonalHead(Config):
    """Trainable diagonal projector (Table 2), initialised to ones.

    Under LARS a vector is neither adapted nor decayed; `as_matrix` has it treated like the linear projector.
    """

    kind: Literal["diagonal"]
    as_matrix: bool = False


class OrthogonalHead(Config):
    """D x D projector kept orthogonal by the matrix exponential (App. F)."""

    kind: Literal["orthogonal"]


class LowRankHead(Config):
    """Fixed U diag(1,..,1,0,..,0) V^T with d0 ones (App. F); `diagonal` drops U and V, which is DirectCLR."""

    kind: Literal["low_rank"]
    d0: Dimension
    diagonal: bool = False


class SubvectorHead(Config):
    """DirectCLR: z = r[:d0] (Section 6.2)."""

    kind: Literal["subvector"]
    d0: Dimension


class DropoutHead(Config):
    """d0 random features, redrawn each iteration, the same for both views and all ranks (App. F)."""

    kind: Literal["dropout"]
    d0: Dimension


class GroupedHead(Config):
    """The released code's extra mode: features shuffled each step into groups, InfoNCE summed over them."""

    kind: Literal["grouped"]
    groups: int = Field(8, ge=1, le=4096)


HeadConfig = Annotated[
    NoHead
    | MlpHead
    | LinearHead
    | DiagonalHead
    | OrthogonalHead
    | LowRankHead
    | SubvectorHead
    | DropoutHead
    | GroupedHead,
    Field(discriminator="kind"),
]


def canonical_head(
    head: HeadConfig, representation_dim: int, projector_dim: Dimension, loss: LossConfig, apart: bool = False
) -> HeadConfig:
    """The one configuration that stands for all heads with the same training.

    Dimensions become absolute, and DirectCLR with d0 = D is no projector, whatever the loss. What changes no
    inner product of normalised embeddings changes nothing under a loss of these alone: appended zeros (the
    fixed low-rank diagonal projector is DirectCLR), and rotations and permutations of all features (an
    orthogonal projector, trainable or fixed, is no projector: its own gradient is zero but for rounding).

    Args:
        head: a member of the `HeadConfig` union.
        representation_dim: D.
        projector_dim: output dimension of a trainable projector that names none.
        loss: what the embeddings are for.
        apart: keep rotations and permutations, which are no projector up to rounding only.

    Raises:
        ValueError: d0 > D, or D not divisible into the groups.
    """
    head = _sized(head, representation_dim, projector_dim)
    if loss.of_normalised_inner_products:
        if isinstance(head, LowRankHead) and head.diagonal:
            head = SubvectorHead(kind="subvector", d0=head.d0)
        if not apart and _permutes_or_rotates(head, representation_dim):
            head = NoHead(kind="none")
    if isinstance(head, SubvectorHead) and head.d0 == representation_dim:
        return NoHead(kind="none")
    return head


def _sized(head: HeadConfig, representation_dim: int, projector_dim: Dimension) -> HeadConfig:
    """A head whose dimensions are absolute, and fit the representation."""
    D = representation_dim
    match head:
        case NoHead() | DiagonalHead() | OrthogonalHead():
            return head
        case MlpHead():
            out = absolute(projector_dim if head.out_dim is None else head.out_dim, D)
            hidden = absolute(head.hidden_dim, D)
            return head.model_copy(update={"hidden_dim": hidden, "out_dim": out})
        case LinearHead():
            out = absolute(projector_dim if head.out_dim is None else head.out_dim, D)
            return LinearHead(kind="linear", out_dim=out)
        case GroupedHead():
            if D % head.groups:
                raise ValueError(f"head.groups: D = {D} does not divide into {head.groups} groups")
            return head
        case LowRankHead() | SubvectorHead() | DropoutHead():
            d0 = absolute(head.d0, D)
            if d0 > D:
                raise ValueError(f"head.d0: got {d0}, takes at most the representation's dimension D = {D}")
            return head.model_copy(update={"d0": d0})
        case _:
            assert_never(head)


def _permutes_or_rotates(head: HeadConfig, representation_dim: int) -> bool:
    """Whether a head with absolute sizes is an orthogonal matrix at every step."""
    match head:
        case OrthogonalHead():
            return True
        case LowRankHead() | DropoutHead():
            return head.d0 == representation_dim
        case GroupedHead():
            return head.groups == 1
        case NoHead() | MlpHead() | LinearHead() | DiagonalHead() | SubvectorHead():
            return False
        case _:
            assert_never(head)


# --- views, loss, optimisation ------------------------------------------------------------------


class ViewConfig(Config):
    blur: Probability = 0.0
    solarize: Probability = 0.0


class AugmentConfig(Config):
    """The paper's asymmetric views (defaults are those of the released code).

    `per_image` runs torchvision v2 on each image in the loader's processes; `batched` does the same
    operations for a whole batch on the training device, with independent parameters per image.
    """

    mode: Literal["per_image", "batched"] = "per_image"
    crop_scale: tuple[Probability, Probability] = (0.08, 1.0)
    crop_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.75, 4 / 3)
    flip: Probability = 0.5
    jitter: Probability = 0.8
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grayscale: Probability = 0.2
    blur_sigma: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.1, 2.0)
    view1: ViewConfig = ViewConfig(blur=1.0, solarize=0.0)
    view2: ViewConfig = ViewConfig(blur=0.1, solarize=0.2)

    @model_validator(mode="after")
    def _ranges_ordered(self) -> AugmentConfig:
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: got [{low}, {high}], takes 0 < low <= high")
        return self


class LossConfig(Config):
    """Which negatives an image has: the other view's (`infonce`, N - 1, as released), both views'
    (`ntxent`, 2N - 2, SimCLR) or its own view's (`same_view`, N - 1, the paper's Eq. 2 and Section 6.2).
    """

    kind: Literal["infonce", "ntxent", "same_view"] = "infonce"
    temperature: float = Field(0.1, gt=0, le=100)

    @property
    def of_normalised_inner_products(self) -> bool:
        """Whether the loss depends on inner products of normalised embeddings alone.

        Heads are equivalent under such losses only (`canonical_head`). A loss that is not listed here has no
        equivalent heads.
        """
        return self.kind in ("infonce", "ntxent", "same_view")


class Lars(Config):
    """Trust ratio trust * |p| / |g + wd p| (`of_sum`), or over |g| + wd |p| (`sum_of_norms`, You et al. 2017).

    1-d parameters are neither decayed nor adapted.
    """

    kind: Literal["lars"]
    lr: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-6, ge=0)
    trust_coefficient: float = Field(0.001, gt=0)
    norm: Literal["of_sum", "sum_of_norms"] = "of_sum"


class Sgd(Config):
    kind: Literal["sgd"]
    lr: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)


class AdamW(Config):
    kind: Literal["adamw"]
    lr: float = Field(gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(1e-2, ge=0)


OptimizerConfig = Annotated[Lars | Sgd | AdamW, Field(discriminator="kind")]


class ScheduleConfig(Config):
    """Per step: linear warm-up from 0, then cosine down to lr * final_factor."""

    warmup_epochs: float = Field(10, ge=0)
    final_factor: float = Field(0.001, ge=0, le=1)


class TrialConfig(Config):
    """One cell resolved under a recipe with one seed. `batch_size` is global, whatever the world size.

    Attributes:
        EPOCH_METRICS: what each epoch's entry of the history may hold; `online_top1` where there are labels and
            an online probe.
    """

    EPOCH_METRICS: ClassVar[tuple[str, ...]] = (
        "loss",
        "online_top1",
        "representation_rankme",
        "embedding_rankme",
        "epoch",
        "lr",
        "seconds",
        "images_per_second",
        "corrupt_images",
    )

    seed: int = Field(ge=0, lt=2**31)
    data: DataConfig
    backbone: BackboneConfig
    head: HeadConfig
    augment: AugmentConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=2, le=2**20)
    precision: Literal["float64", "float32", "bf16", "fp16"] = "float32"
    channels_last: bool = False
    deterministic: bool = True
    online_probe: bool = True
    gradient_cache: int = Field(
        1, ge=1, le=4096, description="parts that each step's batch is passed through the backbone in"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrialConfig:
        if self.data.kind == "imagefolder" and self.augment.mode == "batched":
            raise ValueError(
                "augment.mode: batched needs a data set held in memory; imagefolder takes per_image"
            )
        if self.schedule.warmup_epochs > self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs: got {self.schedule.warmup_epochs}, takes at most epochs = {self.epochs}"
            )
        return self


# --- evaluations --------------------------------------------------------------------------------


_Probe = TypeVar("_Probe", bound="LinearProbe")


class LinearProbe(Config):
    """Linear classifier on frozen features, all weights N(0, 0.01) at the start.

    `cached` trains on features of unaugmented images, computed once; `reference` on new random crops and
    flips each epoch, as the released code does, at the cost of a pass through the backbone each.
    `sgd` has the paper's hyper-parameters; `lbfgs` minimises the same objective to convergence (cached
    only). The released code builds a cosine schedule and never steps it (`constant`), and reports the
    best epoch on the very validation set (`best`).
    """

    kind: Literal["linear_probe"] = "linear_probe"
    protocol: Literal["cached", "reference"] = "cached"
    solver: Literal["sgd", "lbfgs"] = "sgd"
    schedule: Literal["constant", "cosine"] = "constant"
    select: Literal["last", "best"] = Field("last", description="epoch that is reported")
    crop_scale: tuple[Probability, Probability] = Field((0.08, 1.0), description="of the reference protocol")
    flip: Probability = Field(0.5, description="of the reference protocol")
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-6, ge=0)
    batch_size: int = Field(256, ge=1)
    epochs: int = Field(100, ge=1, le=100_000)
    tolerance: float = Field(
        1e-7, gt=0, le=1e-2, description="of lbfgs: it has converged where no entry of the gradient is larger"
    )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what it measures."""
        best = ("best_epoch",) if self.solver == "sgd" and self.select == "best" else ()
        return ("top1", "top5", "loss", *best)

    @model_validator(mode="after")
    def _solvable(self) -> LinearProbe:
        if self.protocol == "reference" and self.solver == "lbfgs":
            raise ValueError("solver: got 'lbfgs', takes sgd under protocol reference, whose images change")
        low, high = self.crop_scale
        if not 0 < low <= high:
            raise ValueError(f"crop_scale: got [{low}, {high}], takes 0 < low <= high")
        return self


def canonical_probe(probe: _Probe) -> _Probe:
    """The one configuration that stands for all with the same result: what a protocol ignores is at its default."""
    ignored: list[str] = []
    match probe.protocol:
        case "cached":
            ignored += ["crop_scale", "flip"]
        case "reference":
            pass
        case _:
            assert_never(probe.protocol)
    match probe.solver:
        case "lbfgs":
            ignored += ["schedule", "select", "lr", "momentum", "batch_size", "epochs"]
        case "sgd":
            pass
        case _:
            assert_never(probe.solver)
    return probe.model_copy(update={name: LinearProbe.model_fields[name].default for name in ignored})


class SubvectorProbe(LinearProbe):
    """The linear probe on r[:d0] alone (App. F); d0 defaults to the head's own."""

    kind: Literal["subvector_probe"] = "subvector_probe"  # type: ignore[assignment]
    d0: Dimension | None = None


class Knn(Config):
    """Cosine-weighted k nearest neighbours: votes exp(similarity / temperature)."""

    kind: Literal["knn"] = "knn"
    k: int = Field(20, ge=1, le=10_000)
    temperature: float = Field(0.07, gt=0)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what it measures."""
        return ("top1", "top5")


class Spectrum(Config):
    """Singular values of the covariance (Eq. 1) and RankMe, of representation and embedding."""

    kind: Literal["spectrum"] = "spectrum"
    normalize: bool = Field(True, description="L2-normalise each vector first, as the released code does")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what it measures."""
        names = ("rankme", "effective_rank", "directions", "collapsed_fraction")
        return tuple(f"{space}/{name}" for space in ("representation", "embedding") for name in names)


EvaluationConfig = Annotated[
    LinearProbe | SubvectorProbe | Knn | Spectrum,
    Field(discriminator="kind"),
]


# --- the theory's toy networks ------------------------------------------------------------------


class ToyConfig(Config):
    """One case of a theory figure: L square layers on Gaussian data, trained by plain SGD (Sections 4, 5, App. C).

    x ~ N(0, I) and x' = x + e with cov(e) = amplitude * I on the last `noisy_dims` dimensions and 0 on the
    others (Section 4.2), so that the covariance of x' - x is the paper's block_diag(0, k I). Eq. 2 is a sum over
    the batch; `lr` is that of the mean, so that it means the same at every batch size.
    """

    dim: int = Field(16, ge=2, le=256)
    layers: int = Field(1, ge=1, le=16)
    relu: bool = Field(False, description="between layers (App. C)")
    bias: bool = Field(False, description="as the released code's first toy task has it; starts at 0")
    amplitude: float = Field(0.0, ge=0, le=1000, description="k: variance of the augmentation noise")
    noisy_dims: int = Field(8, ge=0, le=256)
    loss: Literal["eq2", "inner_product"] = Field(
        "eq2", description="Eq. 2: squared distances; inner_product: the released toy code's one-way InfoNCE"
    )
    temperature: float = Field(0.1, gt=0, le=100, description="of inner_product")
    initial: Literal["random", "decaying"] = Field(
        "random", description="random: N(0, 1/dim); decaying: random singular vectors, values exp(-decay k)"
    )
    decay: float = Field(0.35, ge=0, le=10)
    initial_scale: float = Field(
        1.0, gt=0, le=100, description="multiplies the first weights; 0.577 is the variance of torch's Linear"
    )
    samples: int = Field(10_000, ge=2, le=1_000_000)
    batch_size: int = Field(128, ge=2, le=8192)
    iterations: int = Field(10_000, ge=1, le=10_000_000)
    lr: float = Field(
        0.001, gt=0, description="of the loss averaged over the batch; stable below 2 / amplitude"
    )
    record_every: int = Field(100, ge=1)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what is measured; those of growth are left out where no pair of directions aligned."""
        names = [
            "loss",
            "collapsed_directions",
            "collapsed_directions_at_start",
            "newly_collapsed_directions",
            "embedding_effective_rank",
        ]
        affine = not self.relu or self.layers == 1
        if affine:
            names += ["vanished_weight_directions", "smallest_weight_ratio"]
        if affine and not self.bias and self.layers > 1:
            names += [
                "alignment_diagonal",
                "alignment_top_diagonal",
                "alignment_off_diagonal",
                "conserved_drift",
                "growth_correlation",
                "growth_slope",
            ]
        return tuple(f"theory/{name}" for name in names)

    @model_validator(mode="after")
    def _fits(self) -> ToyConfig:
        if self.noisy_dims > self.dim:
            raise ValueError(f"noisy_dims: got {self.noisy_dims}, takes at most dim = {self.dim}")
        if self.batch_size > self.samples:
            raise ValueError(f"batch_size: got {self.batch_size}, takes at most samples = {self.samples}")
        if self.iterations > 10_000 * self.record_every:
            least = -(-self.iterations // 10_000)
            raise ValueError(
                f"record_every: got {self.record_every}, takes at least {least} for {self.iterations} iterations"
            )
        return self


class ToyRun(Config):
    """All cases of a figure, each with `networks` independent draws of data and weights, in one batched run."""

    networks: int = Field(10, ge=1, le=10_000)
    seed: int = Field(0, ge=0, lt=2**31)
    cases: tuple[ToyConfig, ...] = Field(min_length=1, max_length=1000)
