"""Oracle: numpy.linalg in float64, from the definitions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.evaluate.spectrum import (
    StreamingCovariance,
    accumulate,
    collapsed_fraction,
    directions,
    effective_rank,
    rankme,
    spectrum,
)


def features(n: int = 500, d: int = 24, seed: int = 0) -> Tensor:
    """Correlated rows with variances over six decades, around a mean that is not zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.logspace(0, -3, d) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    return torch.from_numpy(x + rng.normal(size=d))


def of_rank(rank: int, n: int = 300, d: int = 40, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d)))


def direct_spectrum(x: np.ndarray, normalize: bool) -> np.ndarray:
    if normalize:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    centred = x - x.mean(axis=0)
    return np.linalg.svd(centred.T @ centred / len(x), compute_uv=False)


def direct_rankme(x: np.ndarray) -> float:
    s = np.linalg.svd(x, compute_uv=False)
    p = s / np.abs(s).sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("normalize", [True, False])
def test_the_spectrum_is_numpys(normalize: bool) -> None:
    x = features()
    ours = spectrum(x, normalize)
    assert ours.dtype == torch.float64
    assert (ours[:-1] >= ours[1:]).all()
    np.testing.assert_allclose(ours.numpy(), direct_spectrum(x.numpy(), normalize), rtol=1e-8, atol=1e-16)


def test_float32_features_are_summed_in_float64() -> None:
    x = (features(20_000, 8) + 1000).float()  # float32 sums would lose the small variances
    np.testing.assert_allclose(
        spectrum(x, normalize=False).numpy(), direct_spectrum(x.double().numpy(), False), rtol=1e-6
    )


def test_batches_and_merged_parts_give_the_moments_of_the_whole() -> None:
    x = features(1001)
    whole = StreamingCovariance(24)
    whole.update(x)
    streamed = StreamingCovariance(24)
    for rows in x.split(64):
        streamed.update(rows)
    left, right, empty = (StreamingCovariance(24) for _ in range(3))
    left.update(x[:300])
    right.update(x[300:])
    right.update(x[:0])
    left.merge(right)
    left.merge(empty)
    empty.merge(left)
    expected = np.cov(x.numpy().T, bias=True)
    for moments in (whole, streamed, left, empty):
        assert moments.count == 1001
        np.testing.assert_allclose(moments.mean.numpy(), x.numpy().mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance().numpy(), expected, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(
            moments.second_moment().numpy(), x.numpy().T @ x.numpy() / 1001, rtol=1e-9, atol=1e-14
        )


def test_many_rows_are_taken_in_chunks() -> None:
    x = features(20_000, 5)
    np.testing.assert_allclose(
        accumulate(x, False).covariance().numpy(), np.cov(x.numpy().T, bias=True), rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize("rank", [1, 5, 17])
def test_a_known_rank_leaves_as_many_singular_values(rank: int) -> None:
    values = spectrum(of_rank(rank), normalize=False)
    assert (values > 1e-10 * values[0]).sum() == rank
    assert collapsed_fraction(values) == pytest.approx((40 - rank) / 40)
    assert 1 <= rankme(of_rank(rank)) <= rank * 1.001


@pytest.mark.parametrize(("n", "d"), [(500, 24), (24, 24), (10, 24)])
def test_rankme_follows_its_definition(n: int, d: int) -> None:
    x = features(n, d)
    assert rankme(x) == pytest.approx(direct_rankme(x.numpy()), rel=1e-4)


def test_rankme_of_equal_singular_values_is_their_number() -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))[0]
    assert rankme(torch.from_numpy(turn[:, :32]) * 3) == pytest.approx(32, rel=1e-3)


def test_rankme_does_not_depend_on_the_scale_and_counts_the_mean() -> None:
    x = features()
    assert rankme(1000 * x) == pytest.approx(rankme(x), rel=1e-9)
    assert rankme(x + 100) < rankme(x)


def test_constant_features_are_fully_collapsed() -> None:
    x = torch.ones(50, 6)
    assert spectrum(x, normalize=True).abs().max() < 1e-15
    assert rankme(x) == pytest.approx(1, abs=1e-4)
    assert np.isfinite(rankme(torch.zeros(50, 6)))


def test_the_collapsed_fraction_counts_variances_below_a_millionth() -> None:
    assert collapsed_fraction(torch.tensor([2.0, 1.0, 3e-6, 1.9e-6, 0.0])) == pytest.approx(2 / 5)
    assert collapsed_fraction(torch.zeros(3)) == 1


@pytest.mark.parametrize("normalize", [True, False])
def test_directions_are_the_rank_that_numpy_finds_at_the_same_threshold(normalize: bool) -> None:
    """A variance above 1e-6 of the largest is a standard deviation above 1e-3 of it."""
    for x in (features(), of_rank(5), of_rank(17)):
        rows = x.numpy()
        if normalize:
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        s = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
        assert directions(spectrum(x, normalize)) == np.count_nonzero(s > 1e-3 * s[0])


def test_directions_and_the_collapsed_fraction_make_up_the_whole() -> None:
    values = spectrum(features(), normalize=False)
    assert 1 < directions(values) < 24
    assert directions(values) == round(24 * (1 - collapsed_fraction(values)))
    assert directions(torch.zeros(3)) == 0


@pytest.mark.parametrize("normalize", [True, False])
def test_the_effective_rank_follows_its_definition(normalize: bool) -> None:
    x = features()
    s = direct_spectrum(x.numpy(), normalize)
    p = s / s.sum()
    entropy = -sum(q * np.log(q) for q in p if q > 0)
    assert effective_rank(spectrum(x, normalize)) == pytest.approx(np.exp(entropy), rel=1e-9)


def test_the_effective_rank_of_equal_values_is_their_number_and_of_none_zero() -> None:
    assert effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0, 0.0], dtype=torch.float64)) == pytest.approx(3)
    assert effective_rank(torch.tensor([2.0, 0.0], dtype=torch.float64)) == 1
    assert effective_rank(torch.zeros(4, dtype=torch.float64)) == 0


def test_moments_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        StreamingCovariance(3).covariance()
