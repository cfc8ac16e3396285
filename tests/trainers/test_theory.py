"""Oracles: loops over i and j from the paper's text, torch's autograd, mpmath at 60 digits, closed-form dynamics."""

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from trainers.config import ToyConfig, ToyRun
from trainers.theory import ToyResult, run_toys
from trainers.theory.contrast import Pairs
from trainers.theory.draws import draw_batches, draw_samples, initial_weights
from trainers.theory.measures import covariance_root, effective_rank, embedding_spectrum, growth_agreement
from trainers.theory.networks import Networks, linear_gradients

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def columns(rows: Tensor) -> Tensor:
    """(N, d) -> the (1, d, N) of the code under test."""
    return rows.T[None]


def run(
    *cases: dict[str, object], networks: int = 2, threads: int = 1, seed: int = 0, **shared: object
) -> ToyResult:
    configs = tuple(
        ToyConfig.model_validate({"samples": 500, "batch_size": 32} | shared | case) for case in cases
    )
    return run_toys(ToyRun(networks=networks, cases=configs, seed=seed), CPU, lambda metrics: None, threads)


# --- the paper's formulas, as loops ---------------------------------------------------------------


def eq2(z: Tensor, z2: Tensor) -> Tensor:
    """Eq. 2 on rows, for autograd."""
    loss = z.new_zeros(())
    for i in range(len(z)):
        positive = torch.exp(-(z[i] - z2[i]).square().sum() / 2)
        negatives = [torch.exp(-(z[i] - z[j]).square().sum() / 2) for j in range(len(z)) if j != i]
        loss = loss - torch.log(positive / (torch.stack(negatives).sum() + positive))
    return loss


def one_way_infonce(z: Tensor, z2: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(z @ z2.T / temperature, torch.arange(len(z)), reduction="sum")


def alphas(z: np.ndarray, z2: np.ndarray) -> np.ndarray:
    """alpha_ij below Eq. 4."""
    alpha = np.empty((len(z), len(z)))
    for i in range(len(z)):
        for j in range(len(z)):
            alpha[i, j] = np.exp(-np.sum((z[i] - (z2[i] if i == j else z[j])) ** 2) / 2)
        alpha[i] /= alpha[i].sum()
    return alpha


def eq6(x: np.ndarray, x2: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """X of Eq. 6, term by term."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for i in range(len(x)):
        left = np.zeros(x.shape[1])
        for j in range(len(x)):
            if j != i:
                left += alpha[i, j] * (x2[i] - x[j]) + alpha[j, i] * (x[i] - x[j])
        total += np.outer(left, x[i]) - (1 - alpha[i, i]) * np.outer(x2[i] - x[i], x2[i])
    return total


def lemma2(x: np.ndarray, x2: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sigma_0 and Sigma_1."""
    data = np.zeros((x.shape[1], x.shape[1]))
    augmentation = np.zeros_like(data)
    for i in range(len(x)):
        augmentation += (1 - alpha[i, i]) * np.outer(x2[i] - x[i], x2[i] - x[i])
        for j in range(len(x)):
            data += (i != j) * alpha[i, j] * np.outer(x[i] - x[j], x[i] - x[j])
    return data, augmentation


def batch(noise: float = 0.3, samples: int = 7, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """x and x' - x in rows, and W."""
    return normal(samples, dim), noise * normal(samples, dim, seed=1), normal(dim, dim, seed=2) / 2


# --- losses and gradients -------------------------------------------------------------------------


def test_the_loss_and_both_embedding_gradients_are_those_of_equation_2() -> None:
    x, noise, w = batch()
    z, z2 = (x @ w.T).requires_grad_(), ((x + noise) @ w.T).requires_grad_()
    loss = eq2(z, z2)
    loss.backward()
    pairs = Pairs(columns(z.detach()), columns(z2.detach()), "eq2")
    on_z, on_z2 = pairs.embedding_gradients()
    torch.testing.assert_close(pairs.loss, loss.detach()[None] / len(x), **CLOSE)
    torch.testing.assert_close(on_z, columns(z.grad), **CLOSE)
    torch.testing.assert_close(on_z2, columns(z2.grad), **CLOSE)


def test_the_released_loss_and_its_gradients_are_those_of_cross_entropy() -> None:
    x, noise, w = batch()
    z, z2 = (x @ w.T).requires_grad_(), ((x + noise) @ w.T).requires_grad_()
    loss = one_way_infonce(z, z2, 0.1)
    loss.backward()
    pairs = Pairs(columns(z.detach()), columns(z2.detach()), "inner_product", 0.1)
    on_z, on_z2 = pairs.embedding_gradients()
    torch.testing.assert_close(pairs.loss, loss.detach()[None] / len(x), **CLOSE)
    torch.testing.assert_close(on_z, columns(z.grad), **CLOSE)
    torch.testing.assert_close(on_z2, columns(z2.grad), **CLOSE)


def test_the_loss_stays_finite_where_a_positive_is_farther_than_floats_reach() -> None:
    z = columns(normal(5, 3))
    loss = Pairs(z, z + 60, "eq2").loss
    assert torch.isfinite(loss).all()
    assert 4000 < loss < 3 * 61**2 / 2


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_the_matrix_x_is_that_of_equation_6_and_the_difference_of_lemma_2(noise: float) -> None:
    x, e, w = batch(noise)
    z, z2 = x @ w.T, (x + e) @ w.T
    alpha = alphas(z.numpy(), z2.numpy())
    ours = Pairs(columns(z), columns(z2), "eq2").matrix(columns(x), columns(e))[0].numpy()
    np.testing.assert_allclose(ours, eq6(x.numpy(), (x + e).numpy(), alpha), **CLOSE)
    data, augmentation = lemma2(x.numpy(), (x + e).numpy(), alpha)
    np.testing.assert_allclose(ours, data - augmentation, **CLOSE)


def test_weak_augmentation_leaves_x_positive_and_strong_augmentation_does_not() -> None:
    def smallest(noise: float) -> float:
        x, e, w = batch(noise, samples=20)
        matrix = Pairs(columns(x @ w.T), columns((x + e) @ w.T), "eq2").matrix(columns(x), columns(e))
        return float(torch.linalg.eigvalsh(matrix).min())

    assert smallest(0.0) > 0
    assert smallest(0.1) > 0
    assert smallest(5.0) < 0


@pytest.mark.parametrize("loss", ["eq2", "inner_product"])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_gradients_of_linear_layers_are_autograds(layers: int, loss: str) -> None:
    x, noise, _ = batch()
    weights = [(normal(4, 4, seed=9 + n) * 0.6).requires_grad_() for n in range(layers)]
    z, z2 = x, x + noise
    for weight in weights:
        z, z2 = z @ weight.T, z2 @ weight.T
    total = eq2(z, z2) if loss == "eq2" else one_way_infonce(z, z2, 0.5)
    expected = torch.autograd.grad(total, weights)
    networks = Networks([weight.detach()[None] for weight in weights], [], relu=False)
    mean, gradients = networks.gradients(columns(x), columns(noise), loss, 0.5)  # type: ignore[arg-type]
    torch.testing.assert_close(mean, total.detach()[None] / len(x), **CLOSE)
    for ours, autograd in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours[0], autograd, **CLOSE)


def test_two_layers_follow_equation_8() -> None:
    w1, w2, g = normal(3, 5, 5), normal(3, 5, 5, seed=1), normal(3, 5, 5, seed=2)
    first, second = linear_gradients([w1, w2], g)
    for n in range(3):
        np.testing.assert_allclose(first[n], w2[n].numpy().T @ g[n].numpy(), **CLOSE)
        np.testing.assert_allclose(second[n], g[n].numpy() @ w1[n].numpy().T, **CLOSE)


@pytest.mark.parametrize("loss", ["eq2", "inner_product"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradients_of_layers_with_relu_and_bias_are_autograds(relu: bool, bias: bool, loss: str) -> None:
    layers = [nn.Linear(4, 4, bias=bias, dtype=torch.float64) for _ in range(3)]
    for n, layer in enumerate(layers):
        with torch.no_grad():
            layer.weight.copy_(normal(4, 4, seed=n))
            if bias:
                layer.bias.copy_(normal(4, seed=5 + n) / 3)
    gaps = [nn.ReLU() if relu else nn.Identity() for _ in range(2)]
    net = nn.Sequential(layers[0], gaps[0], layers[1], gaps[1], layers[2])
    x, noise, _ = batch()
    z, z2 = net(x), net(x + noise)
    total = eq2(z, z2) if loss == "eq2" else one_way_infonce(z, z2, 0.5)
    total.backward()
    networks = Networks(
        [layer.weight.detach()[None] for layer in layers],
        [layer.bias.detach()[None, :, None] for layer in layers] if bias else [],
        relu,
    )
    torch.testing.assert_close(networks.embed(columns(x)), columns(z.detach()), **CLOSE)
    mean, gradients = networks.gradients(columns(x), columns(noise), loss, 0.5)  # type: ignore[arg-type]
    torch.testing.assert_close(mean, total.detach()[None] / len(x), **CLOSE)
    expected = [layer.weight.grad for layer in layers]
    expected += [layer.bias.grad[:, None] for layer in layers] if bias else []
    for ours, autograd in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours[0], autograd, **CLOSE)


def test_a_step_descends_each_network_by_its_own_rate() -> None:
    networks = Networks([torch.ones(2, 3, 3, dtype=torch.float64)], [], relu=False)
    rates = torch.tensor([0.5, 2.0], dtype=torch.float64)[:, None, None]
    networks.descend([torch.full((2, 3, 3), 0.1, dtype=torch.float64)], rates)
    torch.testing.assert_close(networks.weights[0][:, 0, 0], torch.tensor([0.95, 0.8], dtype=torch.float64))


# --- draws ----------------------------------------------------------------------------------------


def test_a_pass_over_the_samples_shows_each_at_most_once() -> None:
    config = ToyConfig(samples=100, batch_size=32, dim=4, noisy_dims=4)
    indices, noise = next(draw_batches(config, 0, [3, 5], "toy_batches"))
    assert indices.shape == (32, 2, 32)
    assert noise.shape == (32, 2, 4, 32)
    for network in range(2):
        for first in range(0, 30, 3):
            assert len(set(indices[first : first + 3, network].flatten().tolist())) == 96
    assert not torch.equal(indices[:3, 0], indices[:3, 1])
    assert not torch.equal(indices[:3, 0], indices[3:6, 0])


def test_draws_of_a_network_do_not_depend_on_the_others_nor_on_depth() -> None:
    config = ToyConfig(samples=100, batch_size=32, layers=3)
    assert torch.equal(draw_samples(config, 7, [0, 4])[1], draw_samples(config, 7, [4])[0])
    shallow = initial_weights(config.model_copy(update={"layers": 2}), 7, [4])
    for deep, layer in zip(initial_weights(config, 7, [0, 4]), shallow, strict=False):
        assert torch.equal(deep[1], layer[0])
    assert not torch.equal(draw_samples(config, 7, [0]), draw_samples(config, 8, [0]))


def test_first_weights_have_the_configured_spectrum() -> None:
    decaying = ToyConfig(initial="decaying", decay=0.2, initial_scale=0.5, dim=6, noisy_dims=0)
    values = torch.linalg.svdvals(initial_weights(decaying, 0, [0, 1])[0])
    np.testing.assert_allclose(values, np.tile(0.5 * np.exp(-0.2 * np.arange(6)), (2, 1)), rtol=1e-12)
    random = initial_weights(ToyConfig(dim=64, initial_scale=3.0), 0, range(4))[0]
    assert float(random.std()) == pytest.approx(3 / 8, rel=0.03)


# --- measures -------------------------------------------------------------------------------------


def graded(dim: int, seed: int) -> Tensor:
    """A matrix whose singular values fall from 1 to 1e-8."""
    q, _ = torch.linalg.qr(normal(dim, dim, seed=seed))
    p, _ = torch.linalg.qr(normal(dim, dim, seed=seed + 1))
    return q * torch.logspace(0, -8, dim, dtype=torch.float64) @ p


def exact_spectrum(rows: mpmath.matrix) -> list[float]:
    """Eigenvalues of the covariance (Eq. 1) at 60 digits, descending."""
    n, d = rows.rows, rows.cols
    means = [mpmath.fsum(rows[i, k] for i in range(n)) / n for k in range(d)]
    centred = mpmath.matrix(n, d)
    for i in range(n):
        for k in range(d):
            centred[i, k] = rows[i, k] - means[k]
    values = mpmath.eigsy(centred.T * centred / n, eigvals_only=True)
    return sorted((float(value) for value in values), reverse=True)


def test_the_embedding_spectrum_is_exact_down_to_variances_of_1e_minus_16() -> None:
    dim = 5
    samples = normal(40, dim)
    upper, lower = graded(dim, 3), normal(dim, dim, seed=8)
    networks = Networks([lower[None], upper[None]], [], relu=False)
    ours = embedding_spectrum(networks, samples[None], covariance_root(samples)[None])[0].numpy()
    with mpmath.workdps(60):
        rows = (
            mpmath.matrix(samples.tolist())
            * (mpmath.matrix(upper.tolist()) * mpmath.matrix(lower.tolist())).T
        )
        exact = exact_spectrum(rows)
    assert exact[-1] < 1e-15 * exact[0]
    np.testing.assert_allclose(ours, exact, rtol=1e-6)


def test_the_spectrum_of_a_relu_network_is_that_of_its_embeddings() -> None:
    samples = normal(2, 60, 4)
    weights = [normal(4, 4, 4, seed=n) for n in (1, 2)]  # two cases of two networks
    networks = Networks(weights, [], relu=True)
    root = torch.cat([covariance_root(samples)] * 2)
    ours = embedding_spectrum(networks, samples, root)
    for m in range(4):
        z = np.maximum(samples[m % 2].numpy() @ weights[0][m].numpy().T, 0) @ weights[1][m].numpy().T
        expected = np.linalg.svd(np.cov(z.T, bias=True), compute_uv=False)
        np.testing.assert_allclose(ours[m], expected, rtol=1e-9)


def test_the_effective_rank_is_the_exponential_of_scipys_entropy() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=(3, 8)))
    np.testing.assert_allclose(
        effective_rank(values), np.exp(scipy.stats.entropy(values, axis=1)), rtol=1e-12
    )
    assert effective_rank(np.array([2.0, 2, 2, 0])) == pytest.approx(3)
    assert effective_rank(np.zeros(4)) == 1


def test_growth_that_follows_equation_10_is_found_to() -> None:
    """sigma_1 = sigma_2 gives sigma' = c sigma^3, that is sigma = (s^-2 - 2 c t)^(-1/2)."""
    t = np.arange(0, 50)
    c = np.array([0.002, 0.003, 0.004])
    sigma = (1.0 - 2 * c * t[:, None]) ** -0.5
    aligned = np.ones_like(sigma)
    correlation, slope = growth_agreement(t, sigma, c * sigma**3, aligned)
    assert correlation == pytest.approx(1, abs=1e-4)
    assert slope == pytest.approx(1, rel=1e-3)
    assert growth_agreement(t, sigma, c * sigma**3 / 2, aligned)[1] == pytest.approx(2, rel=1e-3)
    misled = np.where(np.arange(3) == 1, -5.0, c * sigma**3)
    assert growth_agreement(t, sigma, misled, aligned * [1, 0.5, 1])[0] == pytest.approx(1, abs=1e-4)
    assert np.isnan(growth_agreement(t, sigma, c * sigma**3, aligned * 0.5)).all()


# --- whole runs -----------------------------------------------------------------------------------


def test_small_weights_see_the_data_less_the_augmentation_noise() -> None:
    """With all alpha_ij = 1/N, X per sample has eigenvalues (1 - 1/N) (2 - k): collapse begins at k = 2."""
    noise = {"amplitude": 3.0, "noisy_dims": 2, "dim": 6}
    found = run(noise, initial_scale=1e-6, samples=10_000, batch_size=100, iterations=1, lr=1e-9, networks=10)
    eigenvalues = found.arrays["0/contrast_eigenvalues"][:, 0].mean(axis=0)
    np.testing.assert_allclose(eigenvalues[:4], 0.99 * 2, rtol=0.25)
    np.testing.assert_allclose(eigenvalues[4:], 0.99 * (2 - 3), rtol=0.25)
    assert eigenvalues[:4].mean() == pytest.approx(0.99 * 2, rel=0.05)
    assert eigenvalues[4:].mean() == pytest.approx(0.99 * (2 - 3), rel=0.1)


def test_a_run_is_a_loop_of_autograd_steps_on_its_draws() -> None:
    config = ToyConfig(
        dim=4, noisy_dims=2, amplitude=0.5, layers=2, samples=60, batch_size=10, iterations=7, lr=0.1
    )
    found = run_toys(ToyRun(networks=3, cases=(config,), seed=5), CPU, lambda metrics: None)
    samples = draw_samples(config, 5, [2])[0]
    weights = [weight[0].clone().requires_grad_() for weight in initial_weights(config, 5, [2])]
    indices, unit = next(draw_batches(config, 5, [2], "toy_batches"))
    noisy = torch.tensor([0, 0, 0.5**0.5, 0.5**0.5], dtype=torch.float64)
    for step in range(7):
        x = samples[indices[step, 0]]
        x2 = x + noisy * unit[step, 0].T.double()
        loss = eq2(x @ weights[0].T @ weights[1].T, x2 @ weights[0].T @ weights[1].T) / 10
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data -= 0.1 * gradient
    for layer in range(2):
        np.testing.assert_allclose(
            found.arrays["0/weight_singular_values"][2, -1, layer],
            torch.linalg.svdvals(weights[layer].detach()),
            rtol=1e-9,
        )


MIXED: tuple[dict[str, object], ...] = (
    {"amplitude": 0.1},
    {"layers": 3},
    {"layers": 3, "relu": True},
    {"layers": 2, "bias": True, "loss": "inner_product", "lr": 0.001},
    {"amplitude": 2.0, "lr": 0.02},
)


def test_a_run_repeats_bit_by_bit_on_any_number_of_threads() -> None:
    first, second, threaded = (
        run(*MIXED, networks=3, iterations=20, record_every=8, lr=0.05, dim=8, threads=n) for n in (1, 1, 3)
    )
    assert first.metrics == second.metrics == threaded.metrics
    for name, values in first.arrays.items():
        np.testing.assert_array_equal(values, second.arrays[name])
        np.testing.assert_array_equal(values, threaded.arrays[name])


def test_networks_and_cases_do_not_depend_on_what_they_are_batched_with() -> None:
    """Depths in one run too."""
    together = run(*MIXED, networks=5, iterations=20, record_every=8, lr=0.05, dim=8)
    for n, case in enumerate(MIXED):
        alone = run(case, networks=2, iterations=20, record_every=8, lr=0.05, dim=8)
        for name, values in alone.arrays.items():
            batched = together.arrays[f"{n}/{name.removeprefix('0/')}"]
            batched = batched if name.endswith("iterations") else batched[:2]
            np.testing.assert_allclose(batched, values, rtol=1e-11, atol=1e-12)
        for name, of_networks in alone.metrics[0].items():
            np.testing.assert_allclose(together.metrics[n][name][:2], of_networks, rtol=1e-11)


def test_arrays_have_the_shapes_that_figures_are_drawn_from() -> None:
    cases = ({}, {"layers": 3}, {"layers": 2, "relu": True}, {"bias": True})
    found = run(*cases, networks=4, iterations=25, record_every=10, lr=0.01, dim=6, noisy_dims=2)
    np.testing.assert_array_equal(found.arrays["0/iterations"], [0, 10, 20, 25])
    shapes = {name: values.shape for name, values in found.arrays.items()}
    assert shapes["0/weight_singular_values"] == (4, 4, 1, 6)
    assert shapes["1/weight_singular_values"] == (4, 4, 3, 6)
    assert shapes["1/alignment"] == (4, 2, 6, 6)
    assert shapes["1/conserved_drift"] == (4, 4)
    for n in range(4):
        assert shapes[f"{n}/embedding_spectrum"] == (4, 4, 6)
    assert shapes["2/alignment"] == (4, 1, 6, 6)
    assert "0/alignment" not in shapes
    assert "2/conserved_drift" not in shapes
    assert "theory/vanished_weight_directions" in found.metrics[3]
    assert "theory/vanished_weight_directions" not in found.metrics[2]
    assert "theory/alignment_diagonal" not in found.metrics[2]
    for metrics in found.metrics:
        assert all(len(values) == 4 and np.isfinite(values).all() for values in metrics.values())


def test_progress_is_told_in_hundredths_of_the_work() -> None:
    told: list[dict[str, float]] = []
    case = ToyConfig(dim=4, noisy_dims=0, samples=50, batch_size=8, iterations=30, record_every=1)
    cases = (case, case.model_copy(update={"layers": 2}))
    found = run_toys(ToyRun(networks=3, cases=cases), CPU, told.append, threads=2)
    epochs = [metrics["epoch"] for metrics in told]
    assert epochs == sorted(set(epochs))
    assert epochs[-1] == 99
    assert {metrics["epochs"] for metrics in told} == {100}
    assert all(metrics["seconds"] >= 0 and metrics["loss"] > 0 for metrics in told)
    assert np.mean(found.metrics[0]["theory/loss"]) > 0


def test_a_diverging_run_says_which_case_when_and_what_to_do() -> None:
    with pytest.raises(FloatingPointError, match=r"case 1, network 0: .* iteration \d+; lower lr"):
        run({}, {"lr": 1e6, "amplitude": 4.0}, dim=4, noisy_dims=4, iterations=2000, lr=0.01)


def test_an_error_of_the_listener_ends_the_run() -> None:
    def refuse(metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    case = ToyConfig(dim=4, noisy_dims=0, samples=50, batch_size=8, iterations=5000, record_every=1)
    with pytest.raises(KeyboardInterrupt):
        run_toys(ToyRun(networks=2, cases=(case,)), CPU, refuse, threads=2)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noisy_dims": 20}, "at most dim = 16"),
        ({"samples": 100}, "at most samples = 100"),
        ({"iterations": 1_000_000, "record_every": 10}, "at least 100"),
    ],
)
def test_impossible_cases_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ToyConfig.model_validate(fields)


# --- the theorems, small --------------------------------------------------------------------------


def test_strong_augmentation_makes_the_weight_vanish_in_its_directions_and_weak_does_not() -> None:
    """Theorem 1."""
    found = run(
        {"amplitude": 0.3}, {"amplitude": 6.0}, dim=6, noisy_dims=3, lr=0.2, iterations=400, networks=3
    )
    assert found.metrics[0]["theory/vanished_weight_directions"] == [0, 0, 0]
    assert found.metrics[1]["theory/vanished_weight_directions"] == [3, 3, 3]
    assert found.metrics[1]["theory/collapsed_directions"] == [3, 3, 3]
    assert (found.arrays["1/contrast_eigenvalues"][:, -1, -3:] < 0).all()


def test_layers_align_and_then_grow_as_the_theory_says() -> None:
    """Theorems 2 and 3."""
    start = {"initial": "decaying", "decay": 0.1, "initial_scale": 0.2}
    found = run(
        start,
        layers=2,
        dim=6,
        noisy_dims=6,
        amplitude=0.001,
        lr=0.03,
        iterations=600,
        record_every=10,
        networks=3,
    )
    (metrics,) = found.metrics
    assert min(metrics["theory/alignment_diagonal"]) > 0.95
    assert max(metrics["theory/alignment_off_diagonal"]) < 0.05
    assert min(metrics["theory/growth_correlation"]) > 0.97
    assert metrics["theory/growth_slope"] == pytest.approx([1, 1, 1], abs=0.15)
    assert np.mean(found.arrays["0/alignment"][:, 0].diagonal(axis1=1, axis2=2)) == pytest.approx(
        np.mean(metrics["theory/alignment_diagonal"])
    )


def test_the_conserved_matrix_drifts_by_the_steps_size_alone() -> None:
    """Gradient flow conserves it; over the same time half the step drifts half as far."""

    def drift(layers: int, lr: float, iterations: int) -> float:
        found = run({"layers": layers}, dim=4, noisy_dims=0, lr=lr, iterations=iterations, networks=4)
        return float(np.mean(found.metrics[0]["theory/conserved_drift"]))

    drifts = [drift(2, 0.04, 60), drift(2, 0.02, 120), drift(3, 0.04, 60), drift(3, 0.02, 120)]
    assert drifts[0] / drifts[1] == pytest.approx(2, rel=0.2)
    assert drifts[2] / drifts[3] == pytest.approx(2, rel=0.2)
    assert max(drifts) < 0.1


@pytest.mark.parametrize("relu", [False, True])
def test_more_layers_collapse_more_of_the_embedding(relu: bool) -> None:
    """Appendix C."""
    depths = ({"layers": 1}, {"layers": 2}, {"layers": 4})
    found = run(
        *depths, relu=relu, dim=8, noisy_dims=8, amplitude=0.01, initial_scale=0.577, lr=0.2, iterations=150
    )
    ranks = [np.mean(metrics["theory/embedding_effective_rank"]) for metrics in found.metrics]
    collapsed = [np.mean(metrics["theory/collapsed_directions"]) for metrics in found.metrics]
    assert ranks[0] > ranks[1] > ranks[2]
    assert collapsed[0] == 0
    assert collapsed[2] > 0


def test_a_linear_networks_bias_changes_nothing_under_equation_2() -> None:
    plain, biased = run(
        {}, {"bias": True}, layers=2, dim=4, noisy_dims=2, amplitude=0.5, iterations=50, lr=0.1
    ).metrics
    assert biased["theory/loss"] == pytest.approx(plain["theory/loss"], rel=1e-9)


def test_the_released_toy_tasks_run() -> None:
    """Inner products over 0.1: one layer with bias, and two with decaying singular values."""
    one = {"bias": True, "amplitude": 1.0, "lr": 0.001}
    two = {"layers": 2, "initial": "decaying", "amplitude": 0.001, "lr": 0.01}
    found = run(one, two, loss="inner_product", dim=8, noisy_dims=4, iterations=100)
    for n in range(2):
        values = found.arrays[f"{n}/weight_singular_values"]
        assert np.isfinite(values).all()
        assert not np.allclose(values[:, 0], values[:, -1])
