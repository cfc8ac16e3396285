"""Oracles: scikit-learn's LogisticRegression with the matched objective, and torch's own SGD."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from trainers.config import LinearProbe, SubvectorProbe
from trainers.evaluate.linear_probe import ProbeResult, linear_probe
from trainers.randomness import generator

Data = tuple[Tensor, Tensor, Tensor, Tensor, int]


def digits() -> Data:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.from_numpy(pixels[order]).float() / 16
    y = torch.from_numpy(labels[order]).long()
    return x[:1297], y[:1297], x[1297:], y[1297:], 10


def clusters() -> Data:
    points, labels = make_blobs(1500, 20, centers=12, cluster_std=9.0, random_state=0)
    x, y = torch.from_numpy(points).float() / 10, torch.from_numpy(labels).long()
    return x[:1000], y[:1000], x[1000:], y[1000:], 12


def network() -> Data:
    """Digits through a random two-layer network: correlated, non-negative, far from centred."""
    x, y, u, v, k = digits()
    torch_source = torch.Generator().manual_seed(0)
    first = torch.randn(64, 96, generator=torch_source) / 8
    second = torch.randn(96, 48, generator=torch_source) / 10
    a, b = (((images @ first).relu() @ second).relu() for images in (x, u))
    return a, y, b, v, k


def collapsed() -> Data:
    """Clusters turned into 60 dimensions, of which only 5 are inhabited."""
    points, labels = make_blobs(900, 5, centers=6, cluster_std=4.0, random_state=1)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))[0][:5]
    x, y = torch.from_numpy(points @ turn).float() / 5, torch.from_numpy(labels).long()
    return x[:600], y[:600], x[600:], y[600:], 6


def reference(data: Data, weight_decay: float) -> tuple[float, float, np.ndarray]:
    """scikit-learn's top-1 in percent, cross-entropy and probabilities; the bias is a decayed weight too."""
    x, y, u, v, k = data
    bordered = [np.column_stack([a.double().numpy(), np.ones(len(a))]) for a in (x, u)]
    model = LogisticRegression(
        C=1 / (weight_decay * len(x)), fit_intercept=False, solver="newton-cholesky", tol=1e-10
    )
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("error")  # an oracle that has not converged is none
        model.fit(bordered[0], y.numpy())
    p = model.predict_proba(bordered[1])
    return 100 * model.score(bordered[1], v.numpy()), log_loss(v.numpy(), p, labels=range(k)), p


def lbfgs(weight_decay: float) -> LinearProbe:
    return LinearProbe(kind="linear_probe", solver="lbfgs", weight_decay=weight_decay)


@pytest.mark.parametrize("make", [digits, clusters, network, collapsed])
@pytest.mark.parametrize("weight_decay", [1e-2, 1e-4])
def test_lbfgs_finds_scikit_learns_minimum(make, weight_decay: float) -> None:
    data = make()
    top1, loss, _ = reference(data, weight_decay)
    result = linear_probe(*data, lbfgs(weight_decay), seed=0)
    assert result.top1 == pytest.approx(top1, abs=0.21)
    assert result.loss == pytest.approx(loss, rel=1e-4)


def test_lbfgs_converges_at_the_papers_weight_decay() -> None:
    data = network()
    top1, loss, _ = reference(data, 1e-6)
    result = linear_probe(*data, lbfgs(1e-6), seed=0)
    assert result.top1 == pytest.approx(top1, abs=0.5)
    assert result.loss == pytest.approx(loss, rel=1e-2)


def test_the_minimum_depends_neither_on_the_start_nor_on_the_scale_of_useless_directions() -> None:
    x, y, u, v, k = collapsed()
    source = torch.Generator().manual_seed(0)
    noise = [torch.randn(len(a), 20, generator=source) for a in (x, u)]
    losses = []
    for seed, scale in ((0, 0.0), (1, 0.0), (0, 1e-8), (0, 1e-5)):
        a, b = (torch.cat([part, scale * more], dim=1) for part, more in zip((x, u), noise, strict=True))
        losses.append(linear_probe(a, y, b, v, k, lbfgs(1e-4), seed=seed).loss)
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


@pytest.mark.parametrize(("make", "lr"), [(digits, 0.05), (clusters, 0.02), (network, 0.05)])
def test_converged_sgd_is_within_half_a_point_of_scikit_learn(make, lr: float) -> None:
    data = make()
    decay = 1e-2
    top1, loss, _ = reference(data, decay)
    config = LinearProbe(
        kind="linear_probe", lr=lr, momentum=0.9, weight_decay=decay, epochs=100, batch_size=250
    )
    result = linear_probe(*data, config, seed=0)
    assert result.top1 == pytest.approx(top1, abs=0.5)
    assert result.loss == pytest.approx(loss, rel=0.02)


def torchs_sgd(data: Data, config: LinearProbe, seed: int) -> list[tuple[float, list[bool]]]:
    """Validation loss and correctness after each epoch of torch.optim.SGD under torch's own schedule."""
    x, y, u, v, k = data
    layer = nn.Linear(x.shape[1], k)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(k, x.shape[1], generator=generator(seed, "probe")))
        layer.bias.zero_()
    optimizer = torch.optim.SGD(
        layer.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    measured = []
    for epoch in range(config.epochs):
        order = torch.randperm(len(x), generator=generator(seed, "probe", epoch))
        for rows in order.split(config.batch_size):  # the last one is smaller
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimizer.step()
        if config.schedule == "cosine":
            cosine.step()
        with torch.no_grad():
            logits = layer(u)
        measured.append((nn.functional.cross_entropy(logits, v).item(), (logits.argmax(1) == v).tolist()))
    return measured


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_takes_the_steps_of_torchs_sgd_and_schedule(momentum: float, schedule: str) -> None:
    config = LinearProbe(epochs=5, batch_size=100, weight_decay=1e-2, momentum=momentum, schedule=schedule)
    result = linear_probe(*digits(), config, seed=5)
    loss, correct = torchs_sgd(digits(), config, seed=5)[-1]
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert result.correct.tolist() == correct
    assert result.best_epoch is None


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_best_epoch_is_the_first_with_the_most_correct_and_its_numbers_are_reported(
    schedule: str,
) -> None:
    """A rate at which accuracy goes up and down."""
    config = LinearProbe(epochs=12, batch_size=50, lr=1.0, schedule=schedule, select="best")
    measured = torchs_sgd(clusters(), config, seed=1)
    hits = [sum(correct) for _, correct in measured]
    best = hits.index(max(hits))
    assert best < 11, "the last is no test of the selection"
    result = linear_probe(*clusters(), config, seed=1)
    assert result.best_epoch == best + 1
    assert result.correct.tolist() == measured[best][1]
    assert result.top1 == pytest.approx(100 * hits[best] / 500)
    assert result.loss == pytest.approx(measured[best][0], rel=1e-4)
    last = linear_probe(*clusters(), config.model_copy(update={"select": "last"}), seed=1)
    assert last.correct.tolist() == measured[-1][1]
    assert last.top1 < result.top1


def test_of_equally_good_epochs_the_first_is_best() -> None:
    data = torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3), 3
    assert linear_probe(*data, LinearProbe(epochs=5, select="best"), seed=0).best_epoch == 1


def test_lbfgs_has_no_epochs_to_choose_from() -> None:
    chosen = lbfgs(1e-2).model_copy(update={"select": "best", "schedule": "cosine"})
    result, plain = (linear_probe(*digits(), config, seed=0) for config in (chosen, lbfgs(1e-2)))
    assert result.best_epoch is None
    assert result.loss == plain.loss


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_accuracies_and_loss_are_those_of_brute_force(solver: str) -> None:
    data = clusters()
    decay = 1e-2
    config = LinearProbe(kind="linear_probe", solver=solver, weight_decay=decay, epochs=60, lr=0.1)
    result = linear_probe(*data, config, seed=0)
    _, _, p = reference(data, decay)
    labels = data[3].tolist()
    ranks = [
        sorted(range(12), key=lambda c, row=row: -row[c]).index(y) for row, y in zip(p, labels, strict=True)
    ]
    # the fits differ a little for sgd, so a few examples near a boundary may
    assert result.top1 == pytest.approx(100 * np.mean([rank < 1 for rank in ranks]), abs=0.5)
    assert result.top5 == pytest.approx(100 * np.mean([rank < 5 for rank in ranks]), abs=0.5)
    assert result.top1 < result.top5 < 100
    assert result.correct.dtype == np.bool_
    assert 100 * result.correct.mean() == pytest.approx(result.top1, abs=1e-9)
    assert np.mean(result.correct == np.array([rank < 1 for rank in ranks])) > 0.99


def test_top5_of_fewer_than_five_classes_is_all() -> None:
    x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    result = linear_probe(x, y, x, y, 3, LinearProbe(kind="linear_probe", epochs=2), seed=0)
    assert result.top5 == 100


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_a_probe_is_deterministic_per_seed_and_uses_no_global_randomness(solver: str) -> None:
    config = LinearProbe(kind="linear_probe", solver=solver, epochs=2, weight_decay=1e-3)
    state = torch.get_rng_state()

    def run(seed: int) -> ProbeResult:
        return linear_probe(*digits(), config, seed)

    first, second, other = run(3), run(3), run(4)
    assert (first.top1, first.top5, first.loss) == (second.top1, second.top5, second.loss)
    assert np.array_equal(first.correct, second.correct)
    if solver == "sgd":
        assert first.loss != other.loss
    else:  # the minimum does not depend on the start
        assert first.loss == pytest.approx(other.loss, rel=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_features_are_left_as_they_were() -> None:
    data = digits()
    kept = [t.clone() for t in data[:4]]
    for solver in ("sgd", "lbfgs"):
        linear_probe(*data, LinearProbe(kind="linear_probe", solver=solver, epochs=1), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(data[:4], kept, strict=True))


def test_classes_without_training_examples_are_allowed() -> None:
    x, y, u, v, _ = digits()
    for solver in ("sgd", "lbfgs"):
        config = LinearProbe(kind="linear_probe", solver=solver, weight_decay=1e-3, epochs=50)
        assert linear_probe(x, y, u, v, 13, config, seed=0).top1 > 85


def test_features_of_no_variance_end_at_the_class_frequencies() -> None:
    y = torch.arange(100) % 4
    x = torch.ones(100, 6)
    result = linear_probe(x, y, x, y, 4, lbfgs(1e-4), seed=0)
    assert result.loss == pytest.approx(np.log(4), abs=1e-6)


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_diverged_fit_is_an_error_that_names_the_probe(select: str) -> None:
    x, y, u, v, k = digits()
    config = SubvectorProbe(kind="subvector_probe", lr=1e38, epochs=2, weight_decay=1.0)
    with pytest.raises(
        FloatingPointError, match=r"^subvector_probe: the classifier is not finite; lower its lr"
    ):
        linear_probe(x, y, u, v, k, config.model_copy(update={"select": select}), seed=0)
