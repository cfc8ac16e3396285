"""The released code's linear evaluation. Oracles: torchvision's crops, torch.nn.Linear, torch.optim.SGD."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_trial
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from trainers.config import LinearProbe, SubvectorProbe, TrialConfig, ViewConfig
from trainers.data.augment import evaluation_photo
from trainers.data.crops import CropLoader
from trainers.data.datasets import Dataset, Split, load_dataset
from trainers.data.draws import crop_boxes, draw
from trainers.evaluate import evaluate
from trainers.randomness import generator

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

MODES = ("batched", "per_image")
D = 16


class Backbone(nn.Module):
    """A fixed random projection of the pixels, then batch norm, that counts the images it is shown."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(pixels, D, generator=torch.Generator().manual_seed(0)) / 8)
        self.norm = nn.BatchNorm1d(D)
        self.norm.running_mean.copy_(torch.linspace(-1, 1, D))
        self.shown = 0

    def forward(self, x: Tensor) -> Tensor:
        self.shown += len(x)
        return self.norm(x.flatten(1) @ self.weight).relu()


def trial(mode: str = "per_image", seed: int = 4, **data: Any) -> TrialConfig:
    fields = {"kind": "digits", "image_size": 8, "train_images": 300, "validation_images": 100} | data
    return tiny_trial(seed=seed, data=fields, augment={"mode": mode})


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(trial().data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for part, name, i in itertools.product(("train", "val"), ("a", "b", "c"), range(8)):
        (root / part / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def folder_trial(root: Path, seed: int = 4) -> TrialConfig:
    data = {"kind": "imagefolder", "name": "noise", "root": str(root), "image_size": 12}
    return tiny_trial(seed=seed, data=data, augment={"mode": "per_image"})


def measured(config: TrialConfig, dataset: Dataset, *probes: LinearProbe, processes: int = 0) -> list[Any]:
    pixels = dataset.channels * config.data.image_size**2
    return list(evaluate(config, Backbone(pixels), None, list(probes), "cpu", processes, dataset))


def normalised(images: Tensor, dataset: Dataset) -> Tensor:
    mean, std = (torch.tensor(moment).view(-1, 1, 1) for moment in (dataset.mean, dataset.std))
    return (images.float() / 255 - mean) / std


# --- the whole protocol -----------------------------------------------------------------------------


def by_hand(config: TrialConfig, dataset: Dataset, probe: LinearProbe, images: list[Tensor]) -> list[Any]:
    """Validation loss and correctness after each epoch, with crops of torchvision's from the named stream.

    The crops of batched mode are not rounded to 8 bits.
    """
    size = config.data.image_size
    batched = config.augment.mode == "batched"
    crops = config.augment.model_copy(
        update={"crop_scale": probe.crop_scale, "crop_ratio": (3 / 4, 4 / 3), "flip": probe.flip}
    )
    pixels = dataset.channels * size**2
    backbone = Backbone(pixels).eval()
    layer = nn.Linear(D, dataset.num_classes)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(layer.weight.shape, generator=generator(config.seed, "probe")))
        layer.bias.zero_()
    optimizer = torch.optim.SGD(
        layer.parameters(), lr=probe.lr, momentum=probe.momentum, weight_decay=probe.weight_decay
    )
    results = []
    for epoch in range(probe.epochs):
        together = draw(len(images), generator(config.seed, "augment", epoch), crops, ViewConfig())
        views = []
        for index, image in enumerate(images):
            alone = draw(1, generator(config.seed, "augment", epoch, index), crops, ViewConfig())
            draws = together[index : index + 1] if batched else alone
            box = crop_boxes(draws, *image.shape[1:], crops.crop_ratio)[0].tolist()
            source = image.double() / 255 if batched else image
            view = V.resized_crop(source, *box, [size, size], InterpolationMode.BILINEAR, antialias=True)
            view = V.horizontal_flip(view) if draws.flip else view
            views.append(view * 255 if batched else view)
        order = torch.randperm(len(images), generator=generator(config.seed, "probe", epoch))
        for rows in order.split(probe.batch_size):
            x = normalised(torch.stack([views[i] for i in rows.tolist()]), dataset)
            with torch.no_grad():
                r = backbone(x)
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(r), dataset.train.labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            logits = layer(backbone(normalised(validation_images(dataset, size), dataset)))
        loss = nn.functional.cross_entropy(logits, dataset.validation.labels).item()
        results.append((loss, (logits.argmax(1) == dataset.validation.labels).numpy()))
    return results


def validation_images(dataset: Dataset, size: int) -> Tensor:
    if dataset.validation.images is not None:
        return dataset.validation.images
    return torch.stack([evaluation_photo(decoded(path), size) for path in dataset.validation.paths])


def decoded(path: str) -> Tensor:
    return V.pil_to_tensor(Image.open(path))


@pytest.mark.parametrize("mode", MODES)
def test_it_is_torchs_classifier_on_torchvisions_crops(digits: Dataset, mode: str) -> None:
    config = trial(mode)
    probe = LinearProbe(protocol="reference", epochs=3, batch_size=64, crop_scale=(0.3, 0.9))
    (result,) = measured(config, digits, probe)
    loss, correct = by_hand(config, digits, probe, list(digits.train.images))[-1]
    assert result.metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert np.array_equal(result.arrays["correct"], correct)
    assert result.metrics["top1"] == pytest.approx(100 * correct.mean())


def test_it_is_torchs_classifier_on_torchvisions_crops_of_photographs(folder: Path) -> None:
    config = folder_trial(folder)
    dataset = load_dataset(config.data)
    probe = LinearProbe(protocol="reference", epochs=3, batch_size=10)
    (result,) = measured(config, dataset, probe)
    loss, correct = by_hand(config, dataset, probe, [decoded(path) for path in dataset.train.paths])[-1]
    assert result.metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert np.array_equal(result.arrays["correct"], correct)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [LinearProbe, SubvectorProbe])
def test_on_whole_unflipped_images_it_is_the_cached_protocol(digits: Dataset, mode: str, kind: type) -> None:
    fields = {"epochs": 4, "batch_size": 50, "schedule": "cosine", "crop_scale": (1.0, 1.0), "flip": 0.0}
    if kind is SubvectorProbe:
        fields["d0"] = 5
    probes = [kind(protocol=protocol, **fields) for protocol in ("cached", "reference")]
    cached, reference = measured(trial(mode), digits, *probes)
    assert reference.metrics == {
        name: pytest.approx(value, rel=1e-4) for name, value in cached.metrics.items()
    }
    assert np.array_equal(reference.arrays["correct"], cached.arrays["correct"])


def test_the_best_epoch_of_many_is_reported(digits: Dataset) -> None:
    config = trial()
    probe = LinearProbe(protocol="reference", epochs=6, batch_size=20, lr=1.0, select="best")
    (result,) = measured(config, digits, probe)
    hits = [correct for _, correct in by_hand(config, digits, probe, list(digits.train.images))]
    best = int(np.argmax([correct.sum() for correct in hits]))
    assert result.metrics["best_epoch"] == best + 1
    assert np.array_equal(result.arrays["correct"], hits[best])


# --- sharing ----------------------------------------------------------------------------------------


def test_probes_that_see_the_same_crops_share_one_pass_an_epoch(digits: Dataset) -> None:
    whole = LinearProbe(protocol="reference", epochs=3)
    probes = [
        whole,
        SubvectorProbe(protocol="reference", epochs=3, d0=4),
        SubvectorProbe(protocol="reference", epochs=2, d0=8, lr=0.3),
        SubvectorProbe(epochs=2, d0=4),  # cached
    ]
    backbone = Backbone(64)
    together = list(evaluate(trial(), backbone, None, probes, "cpu", dataset=digits))
    assert backbone.shown == 100 + 3 * 300 + 300  # validation, crops, unaugmented
    for probe, result in zip(probes, together, strict=True):
        (alone,) = measured(trial(), digits, probe)
        assert result.metrics == alone.metrics
        assert np.array_equal(result.arrays["correct"], alone.arrays["correct"])


def test_probes_with_other_crops_get_a_pass_of_their_own(digits: Dataset) -> None:
    whole = LinearProbe(protocol="reference", epochs=2)
    other = SubvectorProbe(protocol="reference", epochs=2, d0=D, crop_scale=(0.5, 1.0))
    backbone = Backbone(64)
    first, second = evaluate(trial(), backbone, None, [whole, other], "cpu", dataset=digits)
    assert backbone.shown == 100 + 4 * 300
    assert first.metrics["loss"] != second.metrics["loss"]


def test_a_probe_that_diverges_does_not_lose_the_one_it_shares_crops_with(digits: Dataset) -> None:
    probes = [
        LinearProbe(protocol="reference", epochs=2),
        SubvectorProbe(protocol="reference", epochs=2, d0=4, lr=1e38, weight_decay=1.0),
    ]
    results = evaluate(trial(), Backbone(64), None, probes, "cpu", dataset=digits)
    (alone,) = measured(trial(), digits, probes[0])
    assert next(results).metrics == alone.metrics
    with pytest.raises(FloatingPointError, match=r"^subvector_probe: the classifier is not finite"):
        next(results)


def test_the_backbone_is_left_in_its_mode_and_unchanged(digits: Dataset) -> None:
    backbone = Backbone(64).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    probe = LinearProbe(protocol="reference", epochs=1)
    list(evaluate(trial(), backbone, None, [probe], "cpu", dataset=digits))
    assert backbone.training
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def test_a_float64_trial_is_probed_in_float64(digits: Dataset) -> None:
    probe = LinearProbe(protocol="reference", epochs=1)
    double = trial().model_copy(update={"precision": "float64"})
    (result,) = evaluate(double, Backbone(64).double(), None, [probe], "cpu", dataset=digits)
    (single,) = measured(trial(), digits, probe)
    assert result.metrics["loss"] == pytest.approx(single.metrics["loss"], rel=1e-5)


# --- crops ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_crops_depend_on_seed_epoch_and_image_alone(digits: Dataset, mode: str) -> None:
    """Whatever the order, the batches and the loader's processes."""

    def crops(epoch: int, order: Tensor, batch: int, processes: int = 0, seed: int = 4) -> Tensor:
        loader = CropLoader(digits, trial(mode, seed), (0.1, 1.0), 0.5, "cpu", processes)
        images, labels = (torch.cat(part) for part in zip(*loader.epoch(epoch, order, batch), strict=True))
        assert torch.equal(labels, digits.train.labels[order])
        return images[order.argsort()]

    forwards = torch.arange(300)
    first = crops(0, forwards, 300)
    assert (first.shape, first.dtype) == ((300, 1, 8, 8), torch.float32)
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(crops(0, shuffled, 37), first)
    assert torch.equal(crops(0, shuffled, 37, processes=2), first)
    for other in (crops(1, forwards, 300), crops(0, forwards, 300, seed=5)):
        same = [torch.equal(a, b) for a, b in zip(other, first, strict=True)]
        assert np.mean(same) < 0.1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [8, 40], ids=["shrunk", "enlarged"])
def test_crops_are_torchvisions_bilinear_ones(mode: str, size: int) -> None:
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 24, 20), generator=noise, dtype=torch.uint8)
    split = Split(images, None, torch.arange(6))
    dataset = Dataset("noise", split, split, 3, 6, tuple("abcdef"), (0.5,) * 3, (0.25,) * 3)
    config = trial(mode, image_size=size)
    loader = CropLoader(dataset, config, (0.2, 0.8), 1.0)
    ((crops, _),) = loader.epoch(2, torch.arange(6), 6)
    settings = config.augment.model_copy(update={"crop_scale": (0.2, 0.8), "flip": 1.0})
    together = draw(6, generator(4, "augment", 2), settings, ViewConfig())
    for index, image in enumerate(images):
        alone = draw(1, generator(4, "augment", 2, index), settings, ViewConfig())
        draws = together[index : index + 1] if mode == "batched" else alone
        box = crop_boxes(draws, 24, 20, (3 / 4, 4 / 3))[0].tolist()
        source = image.double() if mode == "batched" else image
        view = V.resized_crop(source, *box, [size, size], InterpolationMode.BILINEAR, antialias=True)
        expected = (V.horizontal_flip(view).double() / 255 - 0.5) / 0.25
        torch.testing.assert_close(crops[index].double(), expected, rtol=0, atol=1e-5)


def test_loader_processes_change_nothing_for_an_image_folder(folder: Path) -> None:
    config = folder_trial(folder)
    dataset = load_dataset(config.data)
    probe = LinearProbe(protocol="reference", epochs=2, batch_size=10)
    (alone,), (helped,) = (measured(config, dataset, probe, processes=n) for n in (0, 2))
    assert alone.metrics == helped.metrics


@pytest.mark.parametrize("mode", MODES)
def test_no_global_randomness_is_used(digits: Dataset, mode: str) -> None:
    state = torch.get_rng_state()
    measured(trial(mode), digits, LinearProbe(protocol="reference", epochs=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", MODES)
def test_unlabelled_images_are_left_out(digits: Dataset, mode: str) -> None:
    labels = digits.train.labels.clone()
    labels[100:] = -1
    partial = Dataset(**(vars(digits) | {"train": Split(digits.train.images, None, labels)}))
    few = Split(digits.train.images[:100], None, labels[:100])
    small = Dataset(**(vars(digits) | {"train": few}))
    probe = LinearProbe(protocol="reference", epochs=2)
    (first,), (second,) = (measured(trial(mode), dataset, probe) for dataset in (partial, small))
    assert first.metrics == second.metrics
    none = Dataset(**(vars(digits) | {"train": Split(digits.train.images, None, labels * 0 - 1)}))
    with pytest.raises(ValueError, match=r"^linear_probe: no training image has a label$"):
        measured(trial(mode), none, probe)
