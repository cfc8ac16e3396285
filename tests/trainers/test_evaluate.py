from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trainers.evaluate
from trainers.config import (
    AugmentConfig,
    DataConfig,
    DropoutHead,
    EvaluationConfig,
    Knn,
    LinearProbe,
    LossConfig,
    LowRankHead,
    MlpHead,
    NoHead,
    ScheduleConfig,
    Sgd,
    Spectrum,
    SubvectorHead,
    SubvectorProbe,
    ThinResNet,
    TrialConfig,
)
from trainers.data.datasets import Dataset, Split, load_dataset
from trainers.evaluate import evaluate
from trainers.evaluate.knn import knn
from trainers.evaluate.linear_probe import linear_probe
from trainers.evaluate.spectrum import collapsed_fraction, rankme, spectrum

D = 32
FAST = {"solver": "lbfgs", "weight_decay": 1e-2}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Backbone(nn.Module):
    """A fixed random projection of the pixels, D = 32, that counts the images it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, D, generator=torch.Generator().manual_seed(0)) / 8)
        self.shown = 0
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.shown += len(x)
        r = (x.flatten(1) @ self.weight).relu()
        self.dtypes.add(r.dtype)
        return r


def trial(head: object = None, precision: str = "float32", **data: int) -> TrialConfig:
    return TrialConfig(
        seed=3,
        data=DataConfig(kind="digits", image_size=8, **data),
        backbone=ThinResNet(kind="thin_resnet", width=8, blocks=(1,)),
        head=head or NoHead(kind="none"),
        augment=AugmentConfig(mode="batched"),
        loss=LossConfig(),
        optimizer=Sgd(kind="sgd", lr=0.1),
        schedule=ScheduleConfig(warmup_epochs=0),
        epochs=1,
        batch_size=16,
        precision=precision,
    )


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(trial().data)


@pytest.fixture(scope="module")
def features(dataset: Dataset) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both splits' representations, computed by hand."""
    both = []
    for split in (dataset.train, dataset.validation):
        x = (split.images.double() / 255 - dataset.mean[0]) / dataset.std[0]
        both += [(x.float().flatten(1) @ Backbone().weight.detach()).relu(), split.labels]
    return tuple(both)


def test_the_trials_backbone_is_as_wide_as_the_one_here() -> None:
    assert trial().backbone.representation_dim == D


def test_features_are_extracted_once_and_shared(dataset: Dataset) -> None:
    everything: list[EvaluationConfig] = [
        LinearProbe(kind="linear_probe", **FAST),
        LinearProbe(kind="linear_probe", epochs=1),
        SubvectorProbe(kind="subvector_probe", d0=8, **FAST),
        Knn(kind="knn"),
        Knn(kind="knn", k=5),
        Spectrum(kind="spectrum"),
    ]
    backbone = Backbone()
    assert len(evaluate(trial(), backbone, None, everything, "cpu", dataset=dataset)) == 6
    assert backbone.shown == 1297 + 500


def test_a_spectrum_alone_needs_no_training_images(dataset: Dataset) -> None:
    backbone = Backbone()
    evaluate(trial(), backbone, None, [Spectrum(kind="spectrum")], "cpu", dataset=dataset)
    assert backbone.shown == 500


def test_nothing_asked_is_nothing_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers.evaluate, "load_dataset", None)
    assert evaluate(trial(), Backbone(), None, [], "cpu") == []


def test_the_data_of_the_trial_is_loaded_where_none_is_given() -> None:
    backbone = Backbone()
    config = trial(train_images=100, validation_images=50)
    (result,) = evaluate(config, backbone, None, [Knn(kind="knn")], "cpu")
    assert backbone.shown == 150
    assert result.arrays["correct"].shape == (50,)


def test_probes_are_those_of_the_representation(dataset: Dataset, features: tuple[Tensor, ...]) -> None:
    x, y, u, v = features
    configs = [LinearProbe(kind="linear_probe", epochs=2), LinearProbe(kind="linear_probe", **FAST)]
    results = evaluate(trial(), Backbone(), nn.Linear(D, 4), configs, "cpu", dataset=dataset)
    for config, result in zip(configs, results, strict=True):
        expected = linear_probe(x, y, u, v, 10, config, seed=3)
        assert result.metrics == {
            "top1": pytest.approx(expected.top1, abs=0.21),
            "top5": pytest.approx(expected.top5, abs=0.21),
            "loss": pytest.approx(expected.loss, rel=1e-4),
        }
        assert (result.arrays["correct"] == expected.correct).mean() > 0.99


def test_a_subvector_probe_is_the_linear_probe_of_the_slice(
    dataset: Dataset, features: tuple[Tensor, ...]
) -> None:
    x, y, u, v = features
    probe = SubvectorProbe(kind="subvector_probe", d0=12, epochs=5)
    fraction = SubvectorProbe(kind="subvector_probe", d0="12/32", epochs=5)
    whole = LinearProbe(kind="linear_probe", epochs=5)
    result, same, other = evaluate(
        trial(), Backbone(), None, [probe, fraction, whole], "cpu", dataset=dataset
    )
    expected = linear_probe(x[:, :12], y, u[:, :12], v, 10, whole, seed=3)
    assert result.metrics["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert (result.arrays["correct"] == expected.correct).mean() > 0.99
    assert result.metrics == same.metrics
    assert result.metrics["loss"] > other.metrics["loss"] + 0.01


@pytest.mark.parametrize(
    ("head", "d0"),
    [
        (SubvectorHead(kind="subvector", d0=5), 5),
        (LowRankHead(kind="low_rank", d0=0.25), 8),
        (DropoutHead(kind="dropout", d0="3/32"), 3),
        (NoHead(kind="none"), D),
    ],
)
def test_the_d0_of_a_subvector_probe_is_the_heads_where_it_names_none(
    dataset: Dataset, head: object, d0: int
) -> None:
    unnamed = SubvectorProbe(kind="subvector_probe", **FAST)
    named = SubvectorProbe(kind="subvector_probe", d0=d0, **FAST)
    first, second = evaluate(trial(head), Backbone(), None, [unnamed, named], "cpu", dataset=dataset)
    assert first.metrics == second.metrics


def test_a_d0_that_cannot_be_is_refused_before_anything_is_computed(dataset: Dataset) -> None:
    backbone = Backbone()
    probe = SubvectorProbe(kind="subvector_probe")
    mlp = trial(MlpHead(kind="mlp", hidden_dim=32, out_dim=8))
    with pytest.raises(ValueError, match=r"^subvector_probe.d0: head mlp has no d0 of its own; name one$"):
        evaluate(mlp, backbone, None, [Knn(kind="knn"), probe], "cpu", dataset=dataset)
    wide = SubvectorProbe(kind="subvector_probe", d0=33)
    with pytest.raises(ValueError, match=r"^subvector_probe.d0: got 33, takes at most"):
        evaluate(trial(), backbone, None, [wide], "cpu", dataset=dataset)
    assert backbone.shown == 0


def test_neighbours_are_those_of_the_representation(dataset: Dataset, features: tuple[Tensor, ...]) -> None:
    (result,) = evaluate(trial(), Backbone(), nn.Linear(D, 4), [Knn(kind="knn")], "cpu", dataset=dataset)
    expected = knn(*features, 10, Knn(kind="knn"))
    assert result.metrics["top1"] == pytest.approx(expected.top1, abs=0.21)
    assert result.metrics["top5"] == pytest.approx(expected.top5, abs=0.21)
    assert (result.arrays["correct"] == expected.correct).mean() > 0.99


@pytest.mark.parametrize("normalize", [True, False])
def test_spectra_are_those_of_validation_representation_and_embedding(
    dataset: Dataset, features: tuple[Tensor, ...], normalize: bool
) -> None:
    head = nn.Linear(D, 4)
    (result,) = evaluate(
        trial(), Backbone(), head, [Spectrum(kind="spectrum", normalize=normalize)], "cpu", dataset=dataset
    )
    r = features[2]
    for name, x in (("representation", r), ("embedding", head(r).detach())):
        values = result.arrays[f"{name}_singular_values"]
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, spectrum(x, normalize).numpy(), rtol=1e-4, atol=1e-12)
        assert result.metrics[f"{name}/rankme"] == pytest.approx(rankme(x), rel=1e-4)
        assert result.metrics[f"{name}/collapsed_fraction"] == collapsed_fraction(spectrum(x, normalize))
    assert set(result.metrics) == {
        f"{name}/{metric}"
        for name in ("representation", "embedding")
        for metric in ("rankme", "collapsed_fraction")
    }


def test_correctness_of_every_example_is_kept(dataset: Dataset) -> None:
    configs = [
        LinearProbe(kind="linear_probe", **FAST),
        SubvectorProbe(kind="subvector_probe", d0=4, **FAST),
        Knn(kind="knn"),
    ]
    for result in evaluate(trial(), Backbone(), None, configs, "cpu", dataset=dataset):
        correct = result.arrays["correct"]
        assert (correct.dtype, correct.shape) == (np.bool_, (500,))
        assert 100 * correct.mean() == pytest.approx(result.metrics["top1"])
        assert 0 < correct.mean() < 1


def test_unlabelled_training_images_take_no_part_in_probes(dataset: Dataset) -> None:
    labels = dataset.train.labels.clone()
    labels[300:] = -1
    partial = Dataset(**(vars(dataset) | {"train": Split(dataset.train.images, None, labels)}))
    few = Split(dataset.train.images[:300], None, dataset.train.labels[:300])
    small = Dataset(**(vars(dataset) | {"train": few}))
    configs = [LinearProbe(kind="linear_probe", **FAST), Knn(kind="knn")]
    first, second = (evaluate(trial(), Backbone(), None, configs, "cpu", dataset=d) for d in (partial, small))
    assert [r.metrics for r in first] == [r.metrics for r in second]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.float32), ("fp16", torch.float32), ("float64", torch.float64)]
)
def test_half_precision_trials_are_measured_in_float32(
    dataset: Dataset, precision: str, dtype: torch.dtype
) -> None:
    backbone = Backbone().to(dtype)
    evaluate(trial(precision=precision), backbone, None, [Spectrum(kind="spectrum")], "cpu", dataset=dataset)
    assert backbone.dtypes == {dtype}


def test_repeating_an_evaluation_repeats_its_numbers_and_uses_no_global_randomness(dataset: Dataset) -> None:
    configs = [LinearProbe(kind="linear_probe", epochs=2), Knn(kind="knn"), Spectrum(kind="spectrum")]
    state = torch.get_rng_state()
    first, second = (evaluate(trial(), Backbone(), None, configs, "cpu", dataset=dataset) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first, second, strict=True):
        assert a.metrics == b.metrics
        assert all(np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays | b.arrays)
