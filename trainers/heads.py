"""Heads (projectors): what lies between the representation r and the embedding z that the loss sees.

Table 2 of the paper varies two properties: whether the projector is diagonal, and whether it is of
low rank. Random draws come from named streams of the trial's seed, so that all ranks and both views agree.
"""

from __future__ import annotations

from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from trainers import config as configs
from trainers.config import absolute
from trainers.randomness import generator


class Head(nn.Module):
    """Maps representations r (B, D) to embeddings z.

    Attributes:
        embedding_dim: length of z in evaluation, where dropout and grouped heads return all of r.
        evaluates_to_r: in evaluation z is r.
    """

    embedding_dim: int
    evaluates_to_r = False

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim

    def forward(self, r: Tensor, step: int | None = None) -> Tensor:
        """z (B, d), or (B, G, d) for a loss summed over G groups.

        Args:
            r: (B, D).
            step: of training, which random heads draw by; None draws nothing.
        """
        raise NotImplementedError


class NoHead(Head):
    """z = r: "SimCLR, no projector" (Table 1)."""

    evaluates_to_r = True

    def forward(self, r: Tensor, step: int | None = None) -> Tensor:
        return r


class MlpHead(Head):
    """2-layer nonlinear projector (Table 1): Linear, BN, ReLU, Linear, BN; no biases."""

    def __init__(
        self,
        representation_dim: int,
        hidden_dim: int,
        out_dim: int,
        source: torch.Generator,
        final_norm: bool = True,
    ) -> None:
        super().__init__(out_dim)
        self.layers = nn.Sequential(
            _linear(representation_dim, hidden_dim, source),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            _linear(hidden_dim, out_dim, source),
            nn.BatchNorm1d(out_dim) if final_norm else nn.Identity(),
        )

    def forward(self, r: Tensor, step: int | None = None) -> Tensor:
        return self.layers(r)


class LinearHead(Head):
    """1-layer linear projector (Table 1), which is the trainable projector of Table 2; no bias."""

    def __init__(self, representation_dim: int, out_dim: int, source: torch.Generator) -> None:
        super().__init__(out_dim)
        self.layer = _linear(representation_dim, out_dim, source)

    def forward(self, r: Tensor, step: int | None = None) -> Tensor:
        return self.layer(r)


class DiagonalHead(Head):
    """Trainable diagonal projector (Table 2): z = w * r, with w one at the start.

    As a one-dimensional parameter (D,), w is by the released code's rule neither adapted nor decayed by
    LARS, unlike the trainable linear projector that it is compared with. The paper leaves this open:
    `as_matrix` stores w as (1, D), which every optimizer here treats like the linear projector's matrix.
    """

    def __init__(self, representation_dim: int, as_matrix: bool = False) -> None:
        super().__init__(representation_dim)
        shape = (1, representation_dim) if as_matrix else (representation_dim,)
        self.weight = nn.Parameter(torch.ones(shape))

    def forward(self, r: Tensor, step: int | None = None) -> Tensor:
        return r * self.weight


class OrthogonalHead(Head):
    """Trainable D x D projector, orthogonal at every step (Table 2, App. F).

    W = Q exp(A) with Q a fixed random orthogonal matrix and A trained, skew-symmetric and zero at the start.
    torch stores A as the lower triangle of a parameter that starts at -I. Its diagonal never acts, but
    it gives LARS a norm to begin with: the first trust ratio is trust_coefficient * sqrt(D) / |g|, where
    that of a parameter starting at zero would be 1.
    """

    def __init__(self, representation_dim: int, source: torch.Generator) -> None:
        super().__init__(representation_dim)
        layer = nn.utils.skip_init(nn.Linear, representation_dim, representation_dim, bias=False)
        with torch.no_grad():
            layer.weight.copy_(_orthonormal(representation_dim, representation_dim, source)[0])
        self.layer = orthogonal(layer, orthogonal_map="matrix_exp")

    def forward(self, r: Tensor, step: int | None = None) -> Tensor:
        # In bf16 the series of the exponential loses orthogonality.
        with torch.autocast(r.device.type, enabled=False):
            weight: Tensor = self.layer.weight  # type: ignore[assignment]
            return F.linear(r.to(weight.dtype), weight)


class LowRankHead(Head):
    """Fixed low-rank projector (Table 2, App. F): z = U diag(1, .., 1, 0, .., 0) V^T r with d0 ones.

    U and V are fixed random orthogonal matrices; only the columns that meet a one are kept.
    """

    left: Tensor
    right: Tensor

    def __init__(self, representation_dim: int, d0: int, source: torch.Generator) -> None:
        super().__init__(representation_dim)
        left, right = _orthonormal(representation_dim, d0, source, count=2)
        self.register_buffer("left", left.float())
        self.register_buffer("right", right.float())

    def forward(self, r: Tensor, step: int | None = None) -> Tensor:
        # In bf16 the factors are off by 0.4 %, and the head would not be the projection it stands for.
        with torch.autocast(r.device.type, enabled=False):
            return r.to(self.right.dtype) @ self.right @ self.left.T  # (B, D) -> (B, d0) -> (B, D)


class SubvectorHead(Head):
    """DirectCLR (Section 6.2): z = r[:, :d0].

    To a loss of inner products it is the fixed low-rank diagonal projector of Table 2, `MaskedHead`.
    """

    def forward(self, r: Tensor, step: int | None = None) -> Tensor:
        return r[:, : self.embedding_dim]  # (B, D) -> (B, d0)


class MaskedHead(Head):
    """Fixed low-rank diagonal projector (Table 2): z = diag(1, .., 1, 0, .., 0) r with d0 ones."""

    def __init__(self, representation_dim: int, d0: int) -> None:
        super().__init__(representation_dim)
        self.d0 = d0

    def forward(self, r: Tensor, step: int | None = None) -> Tensor:
        return F.pad(r[:, : self.d0], (0, self.embedding_dim - self.d0))  # (B, D) -> (B, d0) -> (B, D)


class DropoutHead(Head):
    """d0 random features of r, redrawn each step, the same on all ranks and for both views (App. F)."""

    evaluates_to_r = True

    def __init__(self, representation_dim: int, d0: int, seed: int) -> None:
        super().__init__(representation_dim)
        self.d0, self.seed = d0, seed

    def forward(self, r: Tensor, step: int | None = None) -> Tensor:
        if step is None or not self.training:
            return r
        return r[:, _shuffled(r, self.seed, step)[: self.d0]]  # (B, D) -> (B, d0)


class GroupedHead(Head):
    """All features shuffled anew each step into groups, with a loss each: a mode of the released code."""

    evaluates_to_r = True

    def __init__(self, representation_dim: int, groups: int, seed: int) -> None:
        super().__init__(representation_dim)
        self.groups, self.seed = groups, seed

    def forward(self, r: Tensor, step: int | None = None) -> Tensor:
        if step is None or not self.training:
            return r
        return r[:, _shuffled(r, self.seed, step)].unflatten(1, (self.groups, -1))  # (B, D) -> (B, G, D / G)


def build_head(config: configs.HeadConfig, representation_dim: int, seed: int) -> Head:
    """The head of a canonical configuration (`trainers.config.canonical_head`).

    Args:
        config: a member of the `HeadConfig` union; sizes may be fractions of D.
        representation_dim: D.
        seed: the trial's; initial weights and fixed factors come from its "head" stream, the features
            of dropout and grouped heads from its "head_noise" stream at each step.

    Raises:
        ValueError: a size that is missing or does not fit D.
    """
    D = representation_dim
    source = generator(seed, "head")
    match config:
        case configs.NoHead():
            return NoHead(D)
        case configs.MlpHead():
            hidden = absolute(config.hidden_dim, D)
            return MlpHead(D, hidden, _out_dim(config, D), source, config.final_norm)
        case configs.LinearHead():
            return LinearHead(D, _out_dim(config, D), source)
        case configs.DiagonalHead():
            return DiagonalHead(D, config.as_matrix)
        case configs.OrthogonalHead():
            return OrthogonalHead(D, source)
        case configs.GroupedHead():
            if D % config.groups:
                raise ValueError(f"head.groups: D = {D} does not divide into {config.groups} groups")
            return GroupedHead(D, config.groups, seed)
        case configs.LowRankHead():
            d0 = _checked_d0(config.d0, D)
            return MaskedHead(D, d0) if config.diagonal else LowRankHead(D, d0, source)
        case configs.SubvectorHead():
            return SubvectorHead(_checked_d0(config.d0, D))
        case configs.DropoutHead():
            return DropoutHead(D, _checked_d0(config.d0, D), seed)
        case _:
            assert_never(config)


def _checked_d0(dimension: configs.Dimension, representation_dim: int) -> int:
    d0 = absolute(dimension, representation_dim)
    if d0 > representation_dim:
        raise ValueError(
            f"head.d0: got {d0}, takes at most the representation's dimension D = {representation_dim}"
        )
    return d0


def _out_dim(config: configs.MlpHead | configs.LinearHead, representation_dim: int) -> int:
    if config.out_dim is None:
        raise ValueError(
            f"head.out_dim: the {config.kind} head needs it; `canonical_head` fills in the recipe's"
        )
    return absolute(config.out_dim, representation_dim)


def _linear(in_dim: int, out_dim: int, source: torch.Generator) -> nn.Linear:
    """A bias-free layer with torch's default distribution, U(-1, 1) / sqrt(in_dim), drawn from `source`."""
    layer = nn.utils.skip_init(nn.Linear, in_dim, out_dim, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=source)
    return layer


def _orthonormal(rows: int, columns: int, source: torch.Generator, count: int = 1) -> Tensor:
    """`count` uniformly (Haar) distributed orthonormal (rows, columns) matrices, float64.

    Column j depends only on the first j draws, so that a smaller d0 keeps the leading columns of a larger.
    """
    gaussian = torch.randn(columns, count, rows, generator=source, dtype=torch.float64).permute(1, 2, 0)
    q, r = torch.linalg.qr(gaussian)
    # Signs that make diag(R) positive: without them Q is not uniform.
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def _shuffled(r: Tensor, seed: int, step: int) -> Tensor:
    """A permutation of r's features: a function of seed and step alone."""
    return torch.randperm(r.shape[1], generator=generator(seed, "head_noise", step)).to(r.device)
