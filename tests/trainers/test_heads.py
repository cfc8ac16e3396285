"""Every head against an independent float64 computation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from gloo import run_ranks
from torch import Tensor, nn

from trainers import config as configs
from trainers.heads import Head, build_head
from trainers.lars import build_optimizer
from trainers.losses import info_nce

D = 24
EVERY_KIND = {
    "none": configs.NoHead(kind="none"),
    "mlp": configs.MlpHead(kind="mlp", hidden_dim=10, out_dim=6),
    "linear": configs.LinearHead(kind="linear", out_dim=6),
    "diagonal": configs.DiagonalHead(kind="diagonal"),
    "diagonal matrix": configs.DiagonalHead(kind="diagonal", as_matrix=True),
    "orthogonal": configs.OrthogonalHead(kind="orthogonal"),
    "low_rank": configs.LowRankHead(kind="low_rank", d0=7),
    "low_rank diagonal": configs.LowRankHead(kind="low_rank", d0=7, diagonal=True),
    "subvector": configs.SubvectorHead(kind="subvector", d0=7),
    "dropout": configs.DropoutHead(kind="dropout", d0=7),
    "grouped": configs.GroupedHead(kind="grouped", groups=4),
}
FIXED = ("none", "low_rank", "low_rank diagonal", "subvector", "dropout", "grouped")


def representations(rows: int = 16, dim: int = D, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(head: Head, dim: int = D) -> np.ndarray:
    """The matrix M of a linear head, z = M r, read off the identity."""
    with torch.no_grad():
        return head(torch.eye(dim, dtype=torch.float64)).numpy().T


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Pulls embeddings towards a fixed target, so that every trainable weight has a gradient to follow."""
    dtype = next(model.parameters()).dtype
    for step in range(steps):
        z = model(representations(seed=step).to(dtype))
        loss = (z - torch.linspace(-1, 1, z.shape[1], dtype=dtype)).square().mean() + z.pow(4).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# --- what all heads share -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_head_is_a_function_of_its_seed_and_leaves_global_random_state_alone(kind: str) -> None:
    before = torch.get_rng_state()
    one, same, other = (build_head(EVERY_KIND[kind], D, seed) for seed in (3, 3, 4))
    r = representations().float()
    one(r, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again = build_head(EVERY_KIND[kind], D, 3)
    state = one.state_dict()
    assert all(
        torch.equal(v, state[k])
        for k, v in again.state_dict().items()
        if "running" not in k and "num" not in k
    )
    assert torch.equal(again.eval()(r), same.eval()(r))
    if kind in ("mlp", "linear", "orthogonal", "low_rank"):
        assert not torch.equal(same.eval()(r), other.eval()(r))


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_embedding_dim_is_the_length_of_an_evaluated_embedding(kind: str) -> None:
    head = build_head(EVERY_KIND[kind], D, 0).eval()
    assert head(representations().float()).shape == (16, head.embedding_dim)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_head_tells_whether_it_evaluates_to_the_representation_itself(kind: str) -> None:
    head, r = build_head(EVERY_KIND[kind], D, 0).eval(), representations().float()
    assert (head(r) is r) == head.evaluates_to_r == (kind in ("none", "dropout", "grouped"))


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_parameters_are_float32_and_only_trainable_heads_have_them(kind: str) -> None:
    parameters = list(build_head(EVERY_KIND[kind], D, 0).parameters())
    assert (not parameters) == (kind in FIXED)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in parameters)


def test_what_does_not_fit_the_representation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"d0: got 25, takes at most the representation's dimension D = 24"):
        build_head(configs.SubvectorHead(kind="subvector", d0=25), D, 0)
    with pytest.raises(ValueError, match="D = 24 does not divide into 5 groups"):
        build_head(configs.GroupedHead(kind="grouped", groups=5), D, 0)
    with pytest.raises(ValueError, match=r"head\.out_dim: the linear head needs it"):
        build_head(configs.LinearHead(kind="linear"), D, 0)


# --- none, diagonal, subvector ------------------------------------------------------------------------


def test_no_head_returns_the_representation_itself() -> None:
    r = representations()
    assert build_head(EVERY_KIND["none"], D, 0)(r) is r


@pytest.mark.parametrize("kind", ["diagonal", "diagonal matrix"])
def test_the_diagonal_head_starts_as_the_identity_and_scales_each_feature(kind: str) -> None:
    head = build_head(EVERY_KIND[kind], D, 0).double()
    assert np.array_equal(dense(head), np.eye(D))
    train(head, torch.optim.SGD(head.parameters(), lr=0.1), steps=5)
    scales = head.weight.detach().numpy().ravel()
    assert np.abs(scales - 1).min() > 1e-4
    assert np.allclose(dense(head), np.diag(scales), rtol=0, atol=1e-15)


def test_the_diagonal_head_as_a_matrix_is_the_same_function_that_lars_moves_by_its_trust_ratio() -> None:
    vector, matrix = (build_head(EVERY_KIND[kind], D, 0) for kind in ("diagonal", "diagonal matrix"))
    r = representations().float()
    values = torch.linspace(0.5, 2, D)
    for head in (vector, matrix):
        head.weight.data = values.reshape(head.weight.shape).clone()
        head(r).pow(2).sum().backward()
    assert torch.equal(vector(r), matrix(r))
    assert torch.equal(vector.weight.grad, matrix.weight.grad[0])
    config = configs.Lars(kind="lars", lr=1.0, weight_decay=0.1)
    build_optimizer(config, matrix.parameters()).step()
    update = matrix.weight.grad[0] + 0.1 * values
    wanted = values - 0.001 * values.norm() / update.norm() * update
    torch.testing.assert_close(matrix.weight.detach()[0], wanted)


def test_directclr_takes_the_first_d0_features_in_training_and_evaluation() -> None:
    r = representations()
    head = build_head(EVERY_KIND["subvector"], D, 0)
    assert np.array_equal(head(r, 5).numpy(), r.numpy()[:, :7])
    assert np.array_equal(head.eval()(r).numpy(), r.numpy()[:, :7])
    assert dense(head).shape == (7, D)


def test_the_fixed_low_rank_diagonal_head_is_a_diagonal_matrix_of_ones_then_zeros() -> None:
    head = build_head(EVERY_KIND["low_rank diagonal"], D, 0)
    assert np.array_equal(dense(head), np.diag([1.0] * 7 + [0.0] * (D - 7)))


def test_a_fraction_of_d_is_a_count_of_features() -> None:
    head = build_head(configs.SubvectorHead(kind="subvector", d0="360/2048"), 2048, 0)
    assert head.embedding_dim == 360


# --- mlp, linear --------------------------------------------------------------------------------------


def test_the_mlp_head_is_linear_bn_relu_linear_bn_without_biases() -> None:
    head = build_head(EVERY_KIND["mlp"], D, 0).double()
    names = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert sorted(names.values()) == sorted([(10, D), (10,), (10,), (6, 10), (6,), (6,)])
    r = representations().numpy()
    linear1, bn1, _, linear2, bn2 = head.layers
    for i, norm in enumerate((bn1, bn2)):
        rng = np.random.default_rng(i)
        norm.weight.data = torch.tensor(rng.normal(size=norm.num_features))
        norm.bias.data = torch.tensor(rng.normal(size=norm.num_features))

    def batch_norm(x: np.ndarray, norm: nn.BatchNorm1d) -> np.ndarray:
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        return x * norm.weight.detach().numpy() + norm.bias.detach().numpy()

    hidden = np.maximum(batch_norm(r @ linear1.weight.detach().numpy().T, bn1), 0)
    wanted = batch_norm(hidden @ linear2.weight.detach().numpy().T, bn2)
    got = head(torch.tensor(r), 0).detach().numpy()
    assert np.abs(got - wanted).max() < 1e-12 * np.abs(wanted).max()


def test_the_mlp_head_without_its_last_norm_gives_what_enters_that_norm_otherwise() -> None:
    with_norm = build_head(EVERY_KIND["mlp"], D, 0).double()
    without = build_head(
        configs.MlpHead(kind="mlp", hidden_dim=10, out_dim=6, final_norm=False), D, 0
    ).double()
    r = torch.randn(32, D, dtype=torch.float64)
    plain = without(r)
    normed = (plain - plain.mean(0)) / (plain.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(with_norm(r), normed)


def test_the_linear_head_is_a_matrix_without_bias() -> None:
    head = build_head(EVERY_KIND["linear"], D, 0).double()
    (weight,) = head.parameters()
    assert weight.shape == (6, D)
    r = representations().numpy()
    wanted = np.einsum("od,bd->bo", weight.detach().numpy(), r)
    assert np.abs(head(torch.tensor(r)).detach().numpy() - wanted).max() < 1e-14


def test_trainable_layers_start_uniform_within_one_over_root_fan_in() -> None:
    head = build_head(configs.MlpHead(kind="mlp", hidden_dim=200, out_dim=100), 400, 0)
    for layer, fan_in in ((head.layers[0], 400), (head.layers[3], 200)):
        values = layer.weight.detach().numpy().ravel() * fan_in**0.5
        assert scipy.stats.kstest(values, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3
        assert np.abs(values).max() <= 1 + 1e-6


# --- orthogonal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-6)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_the_orthogonal_head_stays_orthogonal_while_it_trains(
    optimizer: str, dtype: torch.dtype, tolerance: float
) -> None:
    head = build_head(EVERY_KIND["orthogonal"], D, 0).to(dtype)
    start = head.layer.weight.detach().clone()
    config = {
        "sgd": configs.Sgd(kind="sgd", lr=1.0),
        "adamw": configs.AdamW(kind="adamw", lr=0.05),
        "lars": configs.Lars(kind="lars", lr=4.8),
    }[optimizer]
    train(head, build_optimizer(config, head.parameters()), steps=30)
    q = head.layer.weight.detach().double()
    error = float((q.T @ q - torch.eye(D)).norm())
    print(f"{optimizer}, {dtype}: |Q^T Q - I| = {error:.1e} after 30 steps")
    assert error < tolerance
    assert float((q - start).norm()) > 0.5, "it moved"


def test_the_orthogonal_head_is_base_times_the_exponential_of_a_skew_matrix() -> None:
    head = build_head(EVERY_KIND["orthogonal"], D, 0).double()
    start = head.layer.weight.detach().numpy().copy()
    raw = head.layer.parametrizations.weight.original
    lower = np.tril(np.random.default_rng(0).normal(size=(D, D)), -1) * 0.3
    raw.data += torch.tensor(lower)
    wanted = representations().numpy() @ (start @ scipy.linalg.expm(lower - lower.T)).T
    got = head(representations()).detach().numpy()
    assert np.abs(got - wanted).max() < 1e-12 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["orthogonal", "low_rank"])
def test_under_autocast_heads_of_orthonormal_factors_keep_float32(kind: str) -> None:
    head = build_head(EVERY_KIND[kind], D, 0)
    r = representations().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = head(r)
    assert z.dtype == torch.float32
    wanted = r.double().numpy() @ dense(head.double()).T
    assert np.abs(z.detach().numpy() - wanted).max() < 1e-6 * np.abs(wanted).max()


def test_the_orthogonal_parameter_starts_at_minus_the_identity_which_only_gives_lars_a_norm() -> None:
    head = build_head(EVERY_KIND["orthogonal"], D, 0).double()
    stored = head.layer.parametrizations.weight.original
    assert torch.equal(stored, -torch.eye(D, dtype=torch.float64))
    head(representations()).pow(4).sum().backward()
    grad = stored.grad.clone()
    assert torch.equal(grad.diagonal(), torch.zeros(D, dtype=torch.float64))
    assert float(grad.norm()) > 0
    weight = head.layer.weight.detach().clone()
    stored.data.diagonal().copy_(torch.linspace(-3, 3, D))
    assert torch.equal(head.layer.weight.detach(), weight)
    stored.data.copy_(-torch.eye(D))
    config = configs.Lars(kind="lars", lr=1.0, weight_decay=0.0)
    build_optimizer(config, head.parameters()).step()
    torch.testing.assert_close(
        stored.detach(), -torch.eye(D, dtype=torch.float64) - 0.001 * D**0.5 / grad.norm() * grad
    )


def test_lars_neither_adapts_nor_decays_the_diagonal_head_unlike_the_linear_one() -> None:
    for kind, adapted in (("diagonal", False), ("diagonal matrix", True), ("linear", True)):
        head = build_head(EVERY_KIND[kind], D, 0)
        (weight,) = head.parameters()
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        build_optimizer(configs.Lars(kind="lars", lr=1.0, weight_decay=0.1), [weight]).step()
        plain = torch.allclose(weight.detach(), before - 1)
        assert plain != adapted


# --- low rank -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("d0", [1, 7, 23])
def test_the_low_rank_head_has_d0_singular_values_one_and_the_rest_zero(d0: int) -> None:
    head = build_head(configs.LowRankHead(kind="low_rank", d0=d0), D, 0).double()
    matrix = dense(head)
    assert matrix.shape == (D, D)
    values = scipy.linalg.svdvals(matrix)
    assert np.abs(values[:d0] - 1).max() < 1e-6
    assert np.abs(values[d0:]).max() < 1e-14
    # Rebuilt from whole orthogonal matrices, as the paper writes it.
    u, v = (np.hstack([f, scipy.linalg.null_space(f.T)]) for f in (head.left.numpy(), head.right.numpy()))
    assert np.abs(u.T @ u - np.eye(D)).max() < 1e-6
    whole = u @ np.diag([1.0] * d0 + [0.0] * (D - d0)) @ v.T
    r = representations().numpy()
    assert np.abs(head(torch.tensor(r), 3).numpy() - r @ whole.T).max() < 1e-12


def test_its_left_and_right_factors_differ_and_a_smaller_d0_keeps_the_leading_columns() -> None:
    small, large = (build_head(configs.LowRankHead(kind="low_rank", d0=d0), D, 0) for d0 in (5, 9))
    torch.testing.assert_close(small.left, large.left[:, :5], rtol=0, atol=1e-6)
    torch.testing.assert_close(small.right, large.right[:, :5], rtol=0, atol=1e-6)
    assert float((large.left.T @ large.right).abs().max()) < 0.9


def test_the_factors_are_uniformly_distributed() -> None:
    """A uniform direction in three dimensions has uniform coordinates in [-1, 1]; for both factors."""
    config = configs.LowRankHead(kind="low_rank", d0=2)
    heads = [build_head(config, 3, seed) for seed in range(300)]
    for factor in ("left", "right"):
        values = torch.stack([getattr(head, factor) for head in heads]).numpy()
        for row in range(3):
            for column in range(2):
                sample = values[:, row, column]
                assert scipy.stats.kstest(sample, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-4


def test_fixed_factors_are_buffers_that_training_never_moves() -> None:
    head = build_head(EVERY_KIND["low_rank"], D, 0)
    model = nn.Sequential(nn.Linear(D, D), head)
    assert {name for name, _ in head.named_buffers()} == set(head.state_dict()) == {"left", "right"}
    before = {k: v.clone() for k, v in head.state_dict().items()}
    start = model[0].weight.detach().clone()
    train(model, build_optimizer(configs.Lars(kind="lars", lr=4.8, weight_decay=0.1), model.parameters()), 5)
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
    assert not torch.equal(model[0].weight, start)


@pytest.mark.parametrize(
    "config", [configs.LowRankHead(kind="low_rank", d0=D), EVERY_KIND["orthogonal"]], ids=lambda c: c.kind
)
def test_info_nce_under_a_full_rank_rotation_equals_info_nce_under_none(config: configs.HeadConfig) -> None:
    head = build_head(config, D, 0).double()
    r1, r2 = representations(seed=1).requires_grad_(), representations(seed=2).requires_grad_()
    results = []
    for project in (head, build_head(EVERY_KIND["none"], D, 0)):
        loss = info_nce(project(r1, 0), project(r2, 0), 0.1)
        results.append((loss.detach(), *torch.autograd.grad(loss, (r1, r2))))
    for rotated, plain in zip(*results, strict=True):  # float32 factors are orthogonal to 1e-7
        assert float((rotated - plain).abs().max() / plain.abs().max()) < 1e-6


# --- dropout, grouped ---------------------------------------------------------------------------------

INDICES = torch.arange(64.0).expand(3, -1)  # every row names its features, so that z shows what was taken


def draw(kind: str, step: int, seed: int = 0) -> Tensor:
    config = {
        "dropout": configs.DropoutHead(kind="dropout", d0=20),
        "grouped": configs.GroupedHead(kind="grouped", groups=4),
    }[kind]
    return build_head(config, 64, seed)(INDICES, step)


def draws_of_a_rank() -> dict[str, list[Tensor]]:
    torch.manual_seed(torch.distributed.get_rank())  # ranks may differ in anything global
    return {kind: [draw(kind, step) for step in range(3)] for kind in ("dropout", "grouped")}


def test_all_ranks_and_both_views_draw_the_same_features_each_step() -> None:
    here = {kind: [draw(kind, step) for step in range(3)] for kind in ("dropout", "grouped")}
    for rank in run_ranks(draws_of_a_rank, 2):
        for kind, draws in here.items():
            assert all(torch.equal(a, b) for a, b in zip(rank[kind], draws, strict=True))
    head = build_head(configs.DropoutHead(kind="dropout", d0=20), 64, 0)
    r1, r2 = representations(dim=64, seed=1), representations(dim=64, seed=2)
    taken = here["dropout"][2][0].long()
    assert torch.equal(head(r1, 2), r1[:, taken])
    assert torch.equal(head(r2, 2), r2[:, taken])


@pytest.mark.parametrize("kind", ["dropout", "grouped"])
def test_features_change_with_step_and_seed_but_not_with_what_came_before(kind: str) -> None:
    assert torch.equal(draw(kind, 7), draw(kind, 7))
    assert len({tuple(draw(kind, step)[0].flatten().tolist()) for step in range(30)}) == 30
    assert not torch.equal(draw(kind, 7), draw(kind, 7, seed=1))


def test_dropout_takes_d0_distinct_features_each_equally_often() -> None:
    counts = np.zeros(64)
    for step in range(400):
        z = draw("dropout", step)
        assert z.shape == (3, 20)
        taken = z[0].long().tolist()
        assert len(set(taken)) == 20
        counts[taken] += 1
    # Sampling without replacement varies less than the binomial, so this bound is on the safe side.
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_grouped_deals_every_feature_to_exactly_one_group() -> None:
    z = draw("grouped", 3)
    assert z.shape == (3, 4, 16)
    assert sorted(z[0].flatten().tolist()) == list(range(64))
    groups, later = (draw("grouped", step)[0].sort(-1).values for step in (3, 4))
    assert not torch.equal(groups, later)


@pytest.mark.parametrize("kind", ["dropout", "grouped"])
def test_random_heads_return_the_whole_representation_outside_training(kind: str) -> None:
    head = build_head(EVERY_KIND[kind], D, 0)
    r = representations()
    assert head(r) is r
    assert head.eval()(r, 3) is r
