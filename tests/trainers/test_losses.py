"""InfoNCE, NT-Xent and the paper's own form against vectors of the released code and a brute force in float64."""

from __future__ import annotations

import json
import math
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.config import LossConfig
from trainers.distributed import world
from trainers.losses import contrastive_loss, info_nce, nt_xent, same_view

Array = NDArray[np.float64]
VECTORS = json.loads((Path(__file__).parents[1] / "fixtures" / "infonce.json").read_text())["cases"]
KINDS = ("infonce", "ntxent", "same_view")


# --- oracles: loops over pairs, gradients by hand -----------------------------------------------------


def normalised(z: Array) -> tuple[Array, Array]:
    norms = np.array([max(math.sqrt(sum(x * x for x in row)), 1e-12) for row in z])
    return z / norms[:, None], norms


def through_norm(grad: Array, unit: Array, norms: Array) -> Array:
    return np.stack([(g - (g @ u) * u) / n for g, u, n in zip(grad, unit, norms, strict=True)])


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(v - top) for v in values]
    return [w / math.fsum(weights) for w in weights]


def brute_info_nce(z1: Array, z2: Array, temperature: float) -> tuple[float, Array, Array]:
    (a, a_norms), (b, b_norms) = normalised(z1), normalised(z2)
    n = len(a)
    loss, grad_a, grad_b = 0.0, np.zeros_like(a), np.zeros_like(b)
    for anchors, others, grad_anchors, grad_others in ((a, b, grad_a, grad_b), (b, a, grad_b, grad_a)):
        for i in range(n):
            p = softmax([float(anchors[i] @ others[j]) / temperature for j in range(n)])
            loss -= math.log(p[i]) / (2 * n)
            for j in range(n):
                slope = (p[j] - (i == j)) / (2 * n * temperature)
                grad_anchors[i] += slope * others[j]
                grad_others[j] += slope * anchors[i]
    return loss, through_norm(grad_a, a, a_norms), through_norm(grad_b, b, b_norms)


def brute_nt_xent(z1: Array, z2: Array, temperature: float) -> tuple[float, Array, Array]:
    u, norms = normalised(np.concatenate([z1, z2]))
    n = len(z1)
    loss, grad = 0.0, np.zeros_like(u)
    for k in range(2 * n):
        others = [m for m in range(2 * n) if m != k]
        partner = (k + n) % (2 * n)
        p = softmax([float(u[k] @ u[m]) / temperature for m in others])
        loss -= math.log(p[others.index(partner)]) / (2 * n)
        for m, probability in zip(others, p, strict=True):
            slope = (probability - (m == partner)) / (2 * n * temperature)
            grad[k] += slope * u[m]
            grad[m] += slope * u[k]
    grad = through_norm(grad, u, norms)
    return loss, grad[:n], grad[n:]


def brute_same_view(z1: Array, z2: Array, temperature: float) -> tuple[float, Array, Array]:
    (a, a_norms), (b, b_norms) = normalised(z1), normalised(z2)
    n = len(a)
    loss, grad_a, grad_b = 0.0, np.zeros_like(a), np.zeros_like(b)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        candidates = [b[i], *(a[j] for j in others)]
        p = softmax([float(a[i] @ candidate) / temperature for candidate in candidates])
        loss -= math.log(p[0]) / n
        slopes = (np.array(p) - np.eye(n)[0]) / (n * temperature)
        for slope, candidate in zip(slopes, candidates, strict=True):
            grad_a[i] += slope * candidate
        grad_b[i] += slopes[0] * a[i]
        for slope, j in zip(slopes[1:], others, strict=True):
            grad_a[j] += slope * a[i]
    return loss, through_norm(grad_a, a, a_norms), through_norm(grad_b, b, b_norms)


BRUTE = {"infonce": brute_info_nce, "ntxent": brute_nt_xent, "same_view": brute_same_view}


def brute(kind: str, z1: Array, z2: Array, temperature: float) -> tuple[float, Array, Array]:
    """(b, d), or (b, G, d) summed over groups."""
    oracle = BRUTE[kind]
    if z1.ndim == 2:
        return oracle(z1, z2, temperature)
    parts = [oracle(z1[:, g], z2[:, g], temperature) for g in range(z1.shape[1])]
    return (
        sum(p[0] for p in parts),
        np.stack([p[1] for p in parts], axis=1),
        np.stack([p[2] for p in parts], axis=1),
    )


def relative(got: Tensor | float, wanted: Array | float) -> float:
    """Largest deviation, relative to the largest entry."""
    got = got.detach().numpy() if isinstance(got, Tensor) else got
    return float(np.max(np.abs(got - wanted)) / np.max(np.abs(wanted)))


def loss_and_gradients(kind: str, z1: Array, z2: Array, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    t1, t2 = torch.tensor(z1, requires_grad=True), torch.tensor(z2, requires_grad=True)
    loss = contrastive_loss(t1, t2, LossConfig(kind=kind, temperature=temperature))
    grad1, grad2 = torch.autograd.grad(loss, (t1, t2))
    return loss.detach(), grad1, grad2


# --- one process --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS, ids=lambda c: f"{len(c['z1'])}x{len(c['z1'][0])}")
def test_info_nce_meets_the_released_codes_vectors(case: dict) -> None:
    got = loss_and_gradients("infonce", np.array(case["z1"]), np.array(case["z2"]), case["temperature"])
    wanted = (case["loss"], np.array(case["grad_z1"]), np.array(case["grad_z2"]))
    assert max(relative(g, w) for g, w in zip(got, wanted, strict=True)) < 1e-10


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 7),
    d=st.integers(2, 6),
    groups=st.sampled_from([None, 1, 3]),
    temperature=st.floats(0.05, 5),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**16),
)
def test_losses_and_gradients_equal_a_brute_force_over_pairs(
    kind: str, n: int, d: int, groups: int | None, temperature: float, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (n, d) if groups is None else (n, groups, d)
    z1, z2 = scale * rng.normal(size=shape), scale * rng.normal(size=shape)
    wanted = brute(kind, z1, z2, temperature)
    got = loss_and_gradients(kind, z1, z2, temperature)
    # The gradient is a difference of probabilities: near a perfect match its absolute error remains.
    floor = 1e-13 / temperature / scale
    assert abs(float(got[0]) - wanted[0]) < 1e-12 * max(1.0, 1 / temperature)
    for g, w in zip(got[1:], wanted[1:], strict=True):
        assert np.abs(g.numpy() - w).max() < 1e-11 * np.abs(w).max() + floor


def test_info_nce_and_same_view_have_n_minus_1_negatives_and_nt_xent_2n_minus_2() -> None:
    z = torch.ones(6, 3, dtype=torch.float64)  # all similarities equal: the loss counts the candidates
    assert float(info_nce(z, z, 0.1)) == pytest.approx(math.log(6), rel=1e-12)
    assert float(same_view(z, z, 0.1)) == pytest.approx(math.log(6), rel=1e-12)
    assert float(nt_xent(z, z, 0.1)) == pytest.approx(math.log(11), rel=1e-12)


def test_same_view_is_the_papers_equation_2_where_embeddings_are_normalised() -> None:
    """With |z| = 1 half the squared distance is 1 - cosine: Eq. 2 as printed, at temperature 1, summed."""
    rng = np.random.default_rng(0)
    z1, z2 = (normalised(rng.normal(size=(5, 3)))[0] for _ in range(2))
    total = 0.0
    for i in range(5):
        positive = math.exp(-(np.linalg.norm(z1[i] - z2[i]) ** 2) / 2)
        negatives = sum(math.exp(-(np.linalg.norm(z1[i] - z1[j]) ** 2) / 2) for j in range(5) if j != i)
        total -= math.log(positive / (negatives + positive))
    assert 5 * float(same_view(torch.tensor(z1), torch.tensor(z2), 1.0)) == pytest.approx(total, rel=1e-12)


def test_same_view_takes_its_negatives_from_view_1_alone() -> None:
    z1 = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]], dtype=torch.float64)
    apart = torch.tensor([[0, 0, 1.0, 0], [0, 0, 0, 1.0]], dtype=torch.float64)
    together = torch.tensor([[0, 0, 1.0, 0], [0, 0, 1.0, 0]], dtype=torch.float64)
    assert float(same_view(z1, apart, 0.1)) == float(same_view(z1, together, 0.1))
    assert float(same_view(together, z1, 0.1)) > float(same_view(apart, z1, 0.1)) + 1


def test_info_nce_ignores_similarities_within_a_view() -> None:
    """Rotating one view's embeddings in a way that keeps cross-view products: only NT-Xent may notice."""
    z1 = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]], dtype=torch.float64)
    # Same cosines to z1's rows in both cases; within the view orthogonal in one, equal in the other.
    apart = torch.tensor([[0, 0, 1.0, 0], [0, 0, 0, 1.0]], dtype=torch.float64)
    together = torch.tensor([[0, 0, 1.0, 0], [0, 0, 1.0, 0]], dtype=torch.float64)
    assert float(info_nce(z1, apart, 0.1)) == pytest.approx(float(info_nce(z1, together, 0.1)), rel=1e-12)
    assert float(nt_xent(z1, together, 0.1)) > float(nt_xent(z1, apart, 0.1)) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_embedding_gives_a_finite_loss_and_gradient(kind: str) -> None:
    rng = np.random.default_rng(0)
    z1, z2 = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    z1[1] = 0
    loss, grad1, grad2 = loss_and_gradients(kind, z1, z2, 0.1)
    wanted = brute(kind, z1, z2, 0.1)
    assert float(loss) == pytest.approx(wanted[0], rel=1e-12)
    assert torch.isfinite(grad1).all()
    assert relative(grad2, wanted[2]) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_temperature_stays_finite_in_float32(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(16, 8, generator=generator, requires_grad=True) for _ in range(2))
    loss = contrastive_loss(z1, z2, LossConfig(kind=kind, temperature=0.001))
    loss.backward()
    assert torch.isfinite(loss)
    assert z1.grad is not None
    assert torch.isfinite(z1.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_the_logits_keep_float32(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(24, 16, generator=generator).bfloat16() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(z1, z2, LossConfig(kind=kind))
    wanted = brute(kind, z1.double().numpy(), z2.double().numpy(), 0.1)[0]
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(wanted, rel=2e-6)  # bf16 logits would miss by 1e-3


def test_views_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(4, 3\) and \(5, 3\)"):
        info_nce(torch.randn(4, 3), torch.randn(5, 3), 0.1)


# --- several ranks ------------------------------------------------------------------------------------


class TwoViews(nn.Module):
    def __init__(self, weight: Array) -> None:
        super().__init__()
        self.layer = nn.Linear(*reversed(weight.shape), bias=False, dtype=torch.float64)
        self.layer.weight.data = torch.tensor(weight)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x1), self.layer(x2)


def problem(groups: int | None) -> tuple[Array, Array, Array]:
    """Inputs (8, 5) of both views and the weight that embeds them, (d, 5) or (G * d, 5)."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(8, 5)), rng.normal(size=(8, 5)), rng.normal(size=(4 * (groups or 1), 5))


def embed(x: Array, weight: Array, groups: int | None) -> Array:
    z = x @ weight.T
    return z if groups is None else z.reshape(len(z), groups, -1)


@pytest.mark.parametrize("kind", typing.get_args(LossConfig.model_fields["kind"].annotation))
def test_a_loss_declared_to_see_inner_products_alone_is_blind_to_rotations_permutations_and_zeros(
    kind: str,
) -> None:
    """What `canonical_head` merges heads by: the loss, and its gradient on what lies before the head."""
    config = LossConfig(kind=kind, temperature=0.3)
    assert config.of_normalised_inner_products
    rng = np.random.default_rng(3)
    views = [torch.tensor(rng.normal(size=(9, 6)), requires_grad=True) for _ in range(2)]
    rotation = torch.tensor(np.linalg.qr(rng.normal(size=(6, 6)))[0])
    order = torch.tensor(rng.permutation(6))
    found = []
    for head in (
        lambda z: z,
        lambda z: z @ rotation,
        lambda z: z[:, order],
        lambda z: torch.cat([z, torch.zeros(9, 3)], dim=1),
    ):
        loss = contrastive_loss(*(head(z) for z in views), config)
        found.append((loss, *torch.autograd.grad(loss, views)))
    for other in found[1:]:
        for got, wanted in zip(other, found[0], strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def rank_losses(kind: str, groups: int | None) -> tuple[float, Array, Array, Array, int]:
    """This rank's loss, its rows' gradients, the weight's under DDP, and the number of exchanges forward."""
    rank, world_size = world()
    x1, x2, weight = problem(groups)
    mine = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    config = LossConfig(kind=kind)
    z1, z2 = (torch.tensor(embed(x, weight, groups)[mine], requires_grad=True) for x in (x1, x2))
    exchanges = []
    gather = torch.distributed.all_gather
    torch.distributed.all_gather = lambda *args: (exchanges.append(1), gather(*args))[1]
    loss = contrastive_loss(z1, z2, config)
    torch.distributed.all_gather = gather
    grad1, grad2 = torch.autograd.grad(loss, (z1, z2))

    model = DistributedDataParallel(TwoViews(weight))
    outputs = model(torch.tensor(x1[mine]), torch.tensor(x2[mine]))
    if groups is not None:
        outputs = tuple(z.unflatten(1, (groups, -1)) for z in outputs)
    contrastive_loss(*outputs, config).backward()
    weight_grad = model.module.layer.weight.grad
    # DDP averages over ranks, and so is the loss of the batch the mean over ranks.
    scale = 1 / world_size
    return loss.item(), grad1.numpy() * scale, grad2.numpy() * scale, weight_grad.numpy(), len(exchanges)


def all_rank_losses() -> dict[tuple[str, int | None], tuple[float, Array, Array, Array, int]]:
    return {(kind, groups): rank_losses(kind, groups) for kind in KINDS for groups in (None, 3)}


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_gradients_equal_the_full_matrix_at_any_world_size(world_size: int) -> None:
    ranks = run_ranks(all_rank_losses, world_size)
    worst = 0.0
    for (kind, groups), _ in ranks[0].items():
        x1, x2, weight = problem(groups)
        z1, z2 = embed(x1, weight, groups), embed(x2, weight, groups)
        loss, grad1, grad2 = brute(kind, z1, z2, 0.1)
        weight_grad = grad1.reshape(8, -1).T @ x1 + grad2.reshape(8, -1).T @ x2
        results = [r[kind, groups] for r in ranks]
        errors = [
            relative(float(np.mean([r[0] for r in results])), loss),
            relative(np.concatenate([r[1] for r in results]), grad1),
            relative(np.concatenate([r[2] for r in results]), grad2),
            *(relative(r[3], weight_grad) for r in results),
        ]
        worst = max(worst, *errors)
        assert {r[4] for r in results} == {0 if world_size == 1 else 1}, "one packed gather"
    print(f"world size {world_size}: largest relative error {worst:.1e}")
    assert worst < 1e-12
