import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import trainers.evaluate
from trainers import EVALUATION_VERSION
from trainers.config import (
    AugmentConfig,
    DataConfig,
    EvaluationConfig,
    Knn,
    LinearProbe,
    LossConfig,
    NoHead,
    ScheduleConfig,
    Sgd,
    Spectrum,
    SubvectorProbe,
    ThinResNet,
    TrialConfig,
)
from trainers.data.datasets import DataError, Dataset, Split, load_dataset
from trainers.evaluate import EvaluationResult, evaluate
from trainers.evaluate.knn import knn
from trainers.evaluate.linear_probe import linear_probe
from trainers.evaluate.spectrum import collapsed_fraction, directions, effective_rank, rankme, spectrum

D = 32
FAST = {"solver": "lbfgs", "weight_decay": 1e-2}


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
    assert len(list(evaluate(trial(), backbone, None, everything, "cpu", dataset=dataset))) == 6
    assert backbone.shown == 1297 + 500


def test_a_spectrum_alone_needs_no_training_images(dataset: Dataset) -> None:
    backbone = Backbone()
    list(evaluate(trial(), backbone, None, [Spectrum(kind="spectrum")], "cpu", dataset=dataset))
    assert backbone.shown == 500


def test_nothing_asked_is_nothing_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers.evaluate, "load_dataset", None)
    assert list(evaluate(trial(), Backbone(), None, [], "cpu")) == []


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
    whole = LinearProbe(kind="linear_probe", epochs=5)
    result, other = evaluate(trial(), Backbone(), None, [probe, whole], "cpu", dataset=dataset)
    expected = linear_probe(x[:, :12], y, u[:, :12], v, 10, whole, seed=3)
    assert result.metrics["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert (result.arrays["correct"] == expected.correct).mean() > 0.99
    assert result.metrics["loss"] > other.metrics["loss"] + 0.01


@pytest.mark.parametrize("d0", [None, "12/32", 33])
def test_a_d0_that_is_not_resolved_or_exceeds_d_is_refused_before_anything_is_computed(
    dataset: Dataset, d0: int | str | None
) -> None:
    backbone = Backbone()
    probes = [Knn(), SubvectorProbe(d0=d0)]
    with pytest.raises(
        ValueError, match=rf"^subvector_probe\.d0: got {d0}, takes a number of features up to .* D = 32$"
    ):
        evaluate(trial(), backbone, None, probes, "cpu", dataset=dataset)
    assert backbone.shown == 0


def test_a_failing_evaluation_does_not_lose_the_ones_before_it(dataset: Dataset) -> None:
    results = evaluate(
        trial(), Backbone(), None, [LinearProbe(**FAST), Knn(k=10_000)], "cpu", dataset=dataset
    )
    assert next(results).metrics["top1"] > 50
    with pytest.raises(ValueError, match=r"^knn\.k: got 10000, takes at most the 1297 training images$"):
        next(results)


class Counting(nn.Module):
    """A head that counts the images it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = 0

    def forward(self, r: Tensor) -> Tensor:
        self.shown += len(r)
        return r[:, :4]


class Grey(Backbone):
    """The same of the first channel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :1])


def test_each_result_names_the_undecodable_images_that_it_is_of_and_each_split_is_told_of_once(
    tmp_path: Path,
) -> None:
    for part, name, number in itertools.product(("train", "val"), ("a", "b"), range(6)):
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / part / name / f"{number}.png")
    for spoilt in ("train/a/2.png", "val/b/0.png"):
        (tmp_path / spoilt).write_bytes(b"")
    data = DataConfig(kind="imagefolder", name="grey", root=str(tmp_path), image_size=8)
    folder = trial().model_copy(update={"data": data})
    reference = {"protocol": "reference", "epochs": 2, "batch_size": 4}
    protocols = [
        Spectrum(kind="spectrum"),
        LinearProbe(kind="linear_probe", **FAST),
        LinearProbe(kind="linear_probe", **reference),
    ]
    notes: list[str] = []
    results = list(evaluate(folder, Grey(), None, protocols, "cpu", corrupt_images=1, note=notes.append))
    both = ["train/a/2.png", "val/b/0.png"]
    assert [result.corrupt_images for result in results] == [both[1:], both, both]
    assert sorted(note.split("(")[1].split(")")[0] for note in notes) == both
    with pytest.raises(DataError, match=r"1 image cannot be decoded \(val/b/0\.png\), takes at most"):
        list(evaluate(folder, Grey(), None, protocols[:1], "cpu", corrupt_images=0))


def test_the_head_is_never_shown_the_training_images(dataset: Dataset) -> None:
    head = Counting()
    list(evaluate(trial(), Backbone(), head, [Knn(), Spectrum()], "cpu", dataset=dataset))
    assert head.shown == 500


def test_tf32_is_off_while_something_is_measured_and_untouched_between(dataset: Dataset) -> None:
    products = torch.backends.cuda.matmul
    before, seen = products.allow_tf32, set()

    class Watching(Backbone):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(products.allow_tf32)
            return super().forward(x)

    products.allow_tf32 = True
    try:
        for _ in evaluate(trial(), Watching(), None, [Spectrum(), Knn()], "cpu", dataset=dataset):
            assert products.allow_tf32
    finally:
        products.allow_tf32 = before
    assert seen == {False}


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
        own = spectrum(x, normalize)
        assert result.metrics[f"{name}/collapsed_fraction"] == collapsed_fraction(own)
        assert result.metrics[f"{name}/directions"] == directions(own)
        assert result.metrics[f"{name}/effective_rank"] == pytest.approx(effective_rank(own), rel=1e-4)
    assert set(result.metrics) == {
        f"{name}/{metric}"
        for name in ("representation", "embedding")
        for metric in ("rankme", "effective_rank", "directions", "collapsed_fraction")
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
    list(evaluate(trial(precision=precision), backbone, None, [Spectrum()], "cpu", dataset=dataset))
    assert backbone.dtypes == {dtype}


GOLDEN_PROTOCOLS: dict[str, EvaluationConfig] = {
    "sgd": LinearProbe(epochs=2),
    "lbfgs": LinearProbe(**FAST),
    "subvector": SubvectorProbe(d0=8, epochs=2),
    "knn": Knn(),
    "spectrum": Spectrum(),
    "spectrum as it is": Spectrum(normalize=False),
    "reference": LinearProbe(protocol="reference", epochs=3, schedule="cosine", select="best"),
}
GOLDEN: dict[int, dict[str, dict[str, float]]] = {
    2: {
        "sgd": {"top1": 79.4, "top5": 98.0, "loss": 1.2269845},
        "lbfgs": {"top1": 89.2, "top5": 99.2, "loss": 0.5334756},
        "subvector": {"top1": 32.6, "top5": 87.2, "loss": 1.9858715},
        "knn": {"top1": 93.6, "top5": 99.8},
        "spectrum": {
            "representation/rankme": 19.579564,
            "representation/effective_rank": 13.222273,
            "representation/directions": 32.0,
            "representation/collapsed_fraction": 0.0,
            "embedding/rankme": 3.1854922,
            "embedding/effective_rank": 3.0572452,
            "embedding/directions": 4.0,
            "embedding/collapsed_fraction": 0.0,
            "representation_singular_values": 0.38543673,
            "embedding_singular_values": 0.32691138,
        },
        "spectrum as it is": {
            "representation/rankme": 19.579564,
            "representation/effective_rank": 13.073607,
            "representation/directions": 32.0,
            "representation/collapsed_fraction": 0.0,
            "embedding/rankme": 3.1854922,
            "embedding/effective_rank": 3.0170975,
            "embedding/directions": 4.0,
            "embedding/collapsed_fraction": 0.0,
            "representation_singular_values": 7.4324505,
            "embedding_singular_values": 1.2629212,
        },
        "reference": {"top1": 32.4, "top5": 87.4, "loss": 2.0553502, "best_epoch": 3.0},
    }
}


def golden_numbers(result: EvaluationResult) -> dict[str, float]:
    """Metrics, and the sum of each spectrum."""
    sums = {name: float(array.sum()) for name, array in result.arrays.items() if name != "correct"}
    return result.metrics | sums


def test_measurements_change_only_with_their_version(dataset: Dataset) -> None:
    """Golden run. If it fails, numbers changed: raise trainers.EVALUATION_VERSION and record the new ones here.

    Features are float32: accuracies may differ by one image of 500 between processors, the rest by 1e-4.
    """
    results = evaluate(
        trial(), Backbone(), Counting(), list(GOLDEN_PROTOCOLS.values()), "cpu", dataset=dataset
    )
    for name, result in zip(GOLDEN_PROTOCOLS, results, strict=True):
        wanted = GOLDEN[EVALUATION_VERSION][name]
        assert golden_numbers(result) == {
            number: pytest.approx(value, abs=0.21) if "top" in number else pytest.approx(value, rel=1e-4)
            for number, value in wanted.items()
        }, name


def test_repeating_an_evaluation_repeats_its_numbers_and_uses_no_global_randomness(dataset: Dataset) -> None:
    configs = [LinearProbe(kind="linear_probe", epochs=2), Knn(kind="knn"), Spectrum(kind="spectrum")]
    state = torch.get_rng_state()
    first, second = (evaluate(trial(), Backbone(), None, configs, "cpu", dataset=dataset) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first, second, strict=True):
        assert a.metrics == b.metrics
        assert all(np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays | b.arrays)
