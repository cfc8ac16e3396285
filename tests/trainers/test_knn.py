import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_blobs
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import trainers.evaluate.knn
from trainers.config import Knn
from trainers.evaluate.knn import knn


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    noise = torch.randn(1797, 64, generator=torch.Generator().manual_seed(0))  # no two equally near
    x = torch.from_numpy(pixels[order]).float() + 0.01 * noise
    y = torch.from_numpy(labels[order]).long()
    return x[:1297], y[:1297], x[1297:], y[1297:], 10


def clusters() -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    points, labels = make_blobs(1500, 20, centers=12, cluster_std=9.0, random_state=0)
    x, y = torch.from_numpy(points).float(), torch.from_numpy(labels).long()
    return x[:1000], y[:1000], x[1000:], y[1000:], 12


@pytest.mark.parametrize("make", [digits, clusters])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (200, 0.5)])
def test_accuracy_is_that_of_scikit_learn_with_the_same_weights(make, k: int, temperature: float) -> None:
    x, y, u, v, classes = make()
    model = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    ).fit(x.double().numpy(), y.numpy())
    p = model.predict_proba(u.double().numpy())
    top1, top5, correct = knn(x, y, u, v, classes, Knn(kind="knn", k=k, temperature=temperature))
    assert top1 == pytest.approx(100 * np.mean(p.argmax(axis=1) == v.numpy()), abs=0.21)
    ranked = np.argsort(-p, axis=1, kind="stable")[:, :5]
    voted = np.take_along_axis(p, ranked, axis=1) > 0
    expected = 100 * np.mean(((ranked == v.numpy()[:, None]) & voted).any(axis=1))
    assert top5 == pytest.approx(expected, abs=0.21)
    assert 100 * correct.mean() == pytest.approx(top1, abs=1e-9)
    assert np.mean(correct == (p.argmax(axis=1) == v.numpy())) > 0.995


def test_votes_are_those_of_brute_force_in_plain_python() -> None:
    source = torch.Generator().manual_seed(0)
    x, u = torch.randn(40, 3, generator=source), torch.randn(25, 3, generator=source)
    y, v = torch.randint(0, 8, (40,), generator=source), torch.randint(0, 8, (25,), generator=source)
    first, top = [], []
    for query, label in zip(u.tolist(), v.tolist(), strict=True):
        similar = []
        for row, other in zip(x.tolist(), y.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            similar.append((dot / math.hypot(*query) / math.hypot(*row), other))
        votes: dict[int, float] = {}
        for similarity, other in sorted(similar, reverse=True)[:9]:
            votes[other] = votes.get(other, 0) + math.exp(similarity / 0.3)
        ranking = sorted(votes, key=lambda c, votes=votes: -votes[c])
        first.append(ranking[0] == label)
        top.append(label in ranking[:5])
    top1, top5, correct = knn(x, y, u, v, 8, Knn(kind="knn", k=9, temperature=0.3))
    assert correct.tolist() == first
    assert (top1, top5) == (pytest.approx(100 * np.mean(first)), pytest.approx(100 * np.mean(top)))
    assert top1 < top5 < 100


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits()
    whole = knn(*data, Knn(kind="knn"))
    for elements, least in ((1297 * 7 + 3, 1), (1, 256)):  # 7 queries at a time, and the least of them
        monkeypatch.setattr(trainers.evaluate.knn, "_CHUNK_ELEMENTS", elements)
        monkeypatch.setattr(trainers.evaluate.knn, "_MIN_QUERIES", least)
        parts = knn(*data, Knn(kind="knn"))
        assert whole[:2] == parts[:2]
        assert np.array_equal(whole.correct, parts.correct)


def test_lengths_do_not_matter() -> None:
    x, y, u, v, k = digits()
    scales = torch.linspace(0.5, 20, len(x))[:, None]
    assert knn(x * scales, y, u, v, k, Knn(kind="knn"))[:2] == knn(x, y, u, v, k, Knn(kind="knn"))[:2]


def test_a_tiny_temperature_is_the_nearest_neighbour_and_does_not_overflow() -> None:
    data = clusters()
    sharp = knn(*data, Knn(kind="knn", k=50, temperature=1e-6))
    assert np.array_equal(sharp.correct, knn(*data, Knn(kind="knn", k=1)).correct)


def test_a_class_without_a_vote_is_no_prediction() -> None:
    x, u = torch.eye(3), torch.eye(3)[:1]
    top1, top5, _ = knn(x, torch.tensor([4, 5, 6]), u, torch.tensor([0]), 7, Knn(kind="knn", k=1))
    assert (top1, top5) == (0, 0)


def test_more_neighbours_than_images_are_refused() -> None:
    x, y = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match=r"^knn.k: got 4, takes at most the 3 training images$"):
        knn(x, y, x, y, 3, Knn(kind="knn", k=4))
