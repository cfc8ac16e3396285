import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from trainers.config import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    NoHead,
    ScheduleConfig,
    Sgd,
    ThinResNet,
    TrialConfig,
    ViewConfig,
)
from trainers.data.corrupt import CorruptImages
from trainers.data.datasets import DataError, Dataset, Split, load_dataset
from trainers.data.draws import crop_boxes, draw
from trainers.data.loader import Fetcher, LoaderLostError, ViewLoader, evaluation_batches, load_image
from trainers.randomness import generator

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

IDENTITY = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "flip": 0.0,
    "jitter": 0.0,
    "grayscale": 0.0,
    "view1": ViewConfig(),
    "view2": ViewConfig(),
}
MODES = ("batched", "per_image")


def trial(
    mode: str, data: DataConfig | None = None, seed: int = 0, batch: int = 8, **augment: object
) -> TrialConfig:
    return TrialConfig(
        seed=seed,
        data=data or DataConfig(kind="cifar10", image_size=12),
        backbone=ThinResNet(kind="thin_resnet"),
        head=NoHead(kind="none"),
        augment=AugmentConfig(mode=mode, **augment),
        loss=LossConfig(),
        optimizer=Sgd(kind="sgd", lr=0.1),
        schedule=ScheduleConfig(warmup_epochs=0),
        epochs=1,
        batch_size=batch,
    )


def in_memory(n: int, channels: int = 3, size: int = 12) -> Dataset:
    """Images of noise around a level of their own; the label is the index."""
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, size, size), generator=source, dtype=torch.uint8)
    split = Split(images, None, torch.arange(n))
    names = tuple(map(str, range(n)))
    return Dataset("noise", split, split, channels, n, names, (0.5,) * channels, (0.25,) * channels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for part, name, i in itertools.product(("train", "val"), ("a", "b"), range(8)):
        (root / part / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def folder_config(root: Path) -> DataConfig:
    return DataConfig(kind="imagefolder", name="noise", root=str(root), image_size=12)


def same(left: list[tuple[Tensor, ...]], right: list[tuple[Tensor, ...]]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)
    )


# --- invariance -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("mode", MODES)
def test_the_ranks_together_see_the_batches_of_one_process(mode: str, world_size: int, channels: int) -> None:
    dataset, config = in_memory(40, channels), trial(mode)
    alone = list(ViewLoader(dataset, config).epoch(3))
    ranks = [list(ViewLoader(dataset, config, rank, world_size).epoch(3)) for rank in range(world_size)]
    assert len(ranks[0][0][0]) == 8 // world_size
    together = [
        tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*ranks, strict=True)
    ]
    assert same(together, alone)


@pytest.mark.parametrize("mode", MODES)
def test_loader_processes_change_nothing(mode: str) -> None:
    dataset, config = in_memory(40), trial(mode)
    alone = [list(ViewLoader(dataset, config).epoch(epoch)) for epoch in (0, 1)]
    for processes in (1, 3):
        loader = ViewLoader(dataset, config, loader_processes=processes)
        assert same(list(loader.epoch(0)), alone[0])
        assert same(list(loader.epoch(1)), alone[1])


def test_loader_processes_and_ranks_change_nothing_for_an_image_folder(folder: Path) -> None:
    config = trial("per_image", folder_config(folder))
    dataset = load_dataset(config.data)
    alone = list(ViewLoader(dataset, config).epoch(0))
    assert [batch[0].shape for batch in alone] == [(8, 3, 12, 12)] * 2
    ranks = [list(ViewLoader(dataset, config, r, 2, loader_processes=2).epoch(0)) for r in range(2)]
    together = [
        tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*ranks, strict=True)
    ]
    assert same(together, alone)


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_taken_up_in_the_middle_gives_the_remaining_batches(mode: str, processes: int) -> None:
    dataset, config = in_memory(40), trial(mode)
    whole = list(ViewLoader(dataset, config).epoch(2))
    for start in (1, 4, 5):
        resumed = ViewLoader(dataset, config, loader_processes=processes)
        assert same(list(resumed.epoch(2, start)), whole[start:])


@pytest.mark.parametrize("processes", [0, 2])
def test_an_epoch_left_early_does_not_disturb_the_next(processes: int) -> None:
    dataset, config = in_memory(40), trial("batched")
    loader = ViewLoader(dataset, config, loader_processes=processes)
    next(loader.epoch(0))
    assert same(list(loader.epoch(1)), list(ViewLoader(dataset, config).epoch(1)))


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_no_global_randomness_is_used(mode: str, processes: int) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(ViewLoader(in_memory(16), trial(mode), loader_processes=processes).epoch(0))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


# --- contents -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_is_a_permutation_and_epochs_and_seeds_differ(mode: str) -> None:
    dataset = in_memory(40)
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        loader = ViewLoader(dataset, trial(mode, seed=seed, batch=10))
        order = torch.cat([labels for _, _, labels in loader.epoch(epoch)])
        assert sorted(order.tolist()) == list(range(40))
        orders.append(tuple(order.tolist()))
    assert len(set(orders)) == 3


def test_an_incomplete_last_batch_is_left_out() -> None:
    loader = ViewLoader(in_memory(39), trial("batched"))
    labels = torch.cat([labels for _, _, labels in loader.epoch(0)])
    assert loader.steps_per_epoch == 4
    assert len(labels) == len(labels.unique()) == 32


@pytest.mark.parametrize("mode", MODES)
def test_views_belong_to_their_labels(mode: str) -> None:
    dataset = in_memory(16)
    for view1, view2, labels in ViewLoader(dataset, trial(mode, **IDENTITY)).epoch(0):
        expected = (dataset.train.images[labels].double() / 255 - 0.5) / 0.25
        for view in (view1, view2):
            torch.testing.assert_close(view.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_views_of_an_image_differ_between_each_other_and_between_epochs(mode: str) -> None:
    dataset, config = in_memory(8), trial(mode, view1=ViewConfig(), view2=ViewConfig())
    loader = ViewLoader(dataset, config)
    views = []
    for epoch in (0, 1):
        ((view1, view2, labels),) = loader.epoch(epoch)
        views += [view1[labels.argsort()], view2[labels.argsort()]]
    for a, b in itertools.combinations(views, 2):
        assert all(not torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_two_views_are_made_by_their_own_settings() -> None:
    solarized = IDENTITY | {"view2": ViewConfig(solarize=1.0)}
    dataset = in_memory(8)
    for mode in MODES:
        ((view1, view2, labels),) = ViewLoader(dataset, trial(mode, **solarized)).epoch(0)
        images = dataset.train.images[labels]
        levels = [(view * 0.25 + 0.5) * 255 for view in (view1, view2)]
        assert torch.equal(levels[0].round().to(torch.uint8), images)
        assert torch.equal(levels[1].round().to(torch.uint8), V.solarize(images, threshold=128))


@pytest.mark.parametrize("mode", MODES)
def test_the_augmentation_stream_is_keyed_as_documented(mode: str) -> None:
    """Crops alone, redone here with torchvision from the named stream."""
    dataset = in_memory(16)
    crops = IDENTITY | {"crop_scale": (0.2, 0.8), "crop_ratio": (0.75, 1.25)}
    config = trial(mode, seed=7, **crops)
    for step, (*views, labels) in enumerate(ViewLoader(dataset, config).epoch(5)):
        for number, view in enumerate(views, start=1):
            for row, index in enumerate(labels.tolist()):
                if mode == "batched":
                    source = generator(7, "augment", 5, step, number)
                    draws = draw(8, source, config.augment, ViewConfig())[row : row + 1]
                else:
                    source = generator(7, "augment", 5, index, number)
                    draws = draw(1, source, config.augment, ViewConfig())
                box = crop_boxes(draws, 12, 12, config.augment.crop_ratio)[0].tolist()
                image = dataset.train.images[index]
                image = image if mode == "per_image" else image.float() / 255
                image = V.resized_crop(image, *box, [12, 12], InterpolationMode.BICUBIC, antialias=True)
                level = image / 255 if mode == "per_image" else image.clamp(0, 1)
                torch.testing.assert_close(view[row], (level - 0.5) / 0.25, rtol=0, atol=1e-5)


def test_a_float64_trial_gets_float64_views() -> None:
    for mode in MODES:
        config = trial(mode).model_copy(update={"precision": "float64"})
        view1, view2, labels = next(ViewLoader(in_memory(8), config).epoch(0))
        assert (view1.dtype, view2.dtype, labels.dtype) == (torch.float64, torch.float64, torch.int64)
        assert next(ViewLoader(in_memory(8), trial(mode)).epoch(0))[0].dtype == torch.float32


# --- refusals -------------------------------------------------------------------------------------


def test_a_batch_that_does_not_divide_or_exceeds_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^batch_size: got 8, takes a multiple of 3 workers$"):
        ViewLoader(in_memory(40), trial("batched"), 0, 3)
    with pytest.raises(ValueError, match=r"^batch_size: got 8, takes at most the 7 training images$"):
        ViewLoader(in_memory(7), trial("batched"))


def _folder_with_bad_images(root: Path, good: int = 4) -> TrialConfig:
    for part in ("train", "val"):
        for shade, name in ((40, "a"), (200, "b")):
            (root / part / name).mkdir(parents=True)
            for number in range(good):
                Image.new("RGB", (20, 20), (shade + number, shade, shade)).save(
                    root / part / name / f"{number}.png"
                )
        (root / part / "a" / "1.png").write_bytes(b"\x89PNG no image")
        (root / part / "b" / f"{good - 1}.png").write_bytes(b"")
    return trial("per_image", folder_config(root), batch=2)


@pytest.mark.parametrize("processes", [0, 2])
def test_for_an_undecodable_image_stands_the_next_of_its_class(tmp_path: Path, processes: int) -> None:
    config = _folder_with_bad_images(tmp_path)
    dataset = load_dataset(config.data)
    loader = ViewLoader(dataset, config, loader_processes=processes)
    whole = list(loader.epoch(0))
    assert loader.corrupt == {1, 7}
    ranks = [ViewLoader(dataset, config, rank, 2, loader_processes=processes) for rank in range(2)]
    parts = [list(rank.epoch(0)) for rank in ranks]
    assert set.union(*(rank.corrupt for rank in ranks)) == {1, 7}
    for batch, shares in zip(whole, zip(*parts, strict=True), strict=True):
        assert all(
            torch.equal(x, torch.cat(y)) for x, y in zip(batch, zip(*shares, strict=True), strict=True)
        )
    met: set[int] = set()
    batches = evaluation_batches(dataset, "validation", config.data, 3, "cpu", processes, met.update)
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    assert met == {1, 7}
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(images[1], images[2])
    assert torch.equal(images[7], images[4])  # around, within the class


@pytest.mark.parametrize("processes", [0, 2])
def test_a_class_without_a_decodable_image_is_named_in_one_line(tmp_path: Path, processes: int) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        for name in ("bad.jpg", "worse.jpg"):
            (tmp_path / part / "a" / name).write_bytes(b"\xff\xd8\xff\xe0 no image")
    config = trial("per_image", folder_config(tmp_path), batch=2)
    dataset = load_dataset(config.data)
    with pytest.raises(DataError) as caught:
        list(ViewLoader(dataset, config, loader_processes=processes).epoch(0))
    assert "bad.jpg: cannot be decoded" in str(caught.value) or "worse.jpg: cannot" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"bad\.jpg"):
        list(evaluation_batches(dataset, "validation", config.data, 2, "cpu", processes))


@pytest.mark.parametrize("processes", [0, 2])
def test_a_root_that_vanishes_is_no_corrupt_image(tmp_path: Path, processes: int) -> None:
    root = tmp_path / "data"
    config = _folder_with_bad_images(root)
    dataset = load_dataset(config.data)
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"cannot be read \(No such file or directory\); bring data.root back"
    ):
        list(ViewLoader(dataset, config, loader_processes=processes).epoch(0))


def test_more_undecodable_images_than_allowed_end_the_work_and_are_named(tmp_path: Path) -> None:
    dataset = load_dataset(_folder_with_bad_images(tmp_path).data)
    notes: list[str] = []
    allowed = CorruptImages(dataset.train, dataset.root, 2, notes.append, ["a/0.png"])
    allowed.add({1})
    assert allowed.met() == ["a/0.png", "train/a/1.png"]
    assert allowed.met() == ["a/0.png", "train/a/1.png"]
    assert notes == [
        "1 image cannot be decoded (train/a/1.png); another of the same class stands in for each"
    ]
    with pytest.raises(
        DataError,
        match=r"3 images cannot be decoded \(a/0\.png, train/a/1\.png, train/b/3\.png\), takes at most "
        r"limits\.corrupt_images = 2; replace or remove them, or raise the limit",
    ):
        allowed.add({1, 7})


def test_of_very_many_undecodable_images_the_first_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    dataset = load_dataset(_folder_with_bad_images(tmp_path, good=7).data)
    notes: list[str] = []
    CorruptImages(dataset.train, dataset.root, 14, notes.append).add(range(14))
    allowed = CorruptImages(dataset.train, dataset.root, 14, notes.append)
    allowed.add(range(14))
    assert len(allowed.met()) == 14
    assert len(notes) == 1
    assert notes[0].startswith("14 images cannot be decoded (train/a/0.png, ")
    assert "train/b/2.png and 4 more); another" in notes[0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_images_of_any_colour_mode_are_decoded_to_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode in ("CMYK", "I;16") else "image.png")
    Image.new(mode, (5, 4)).save(path)
    image = load_image(Split(None, [str(path)], torch.zeros(1, dtype=torch.int64)), 0, set())
    assert (image.shape, image.dtype) == ((3, 4, 5), torch.uint8)


# --- evaluation -----------------------------------------------------------------------------------


def test_evaluation_batches_hold_all_images_in_order_without_augmentation() -> None:
    dataset = in_memory(10)
    batches = list(evaluation_batches(dataset, "validation", trial("batched").data, 4))
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(10))
    expected = (dataset.train.images.double() / 255 - 0.5) / 0.25
    torch.testing.assert_close(torch.cat([i for i, _ in batches]).double(), expected, rtol=0, atol=1e-6)


def test_evaluation_leaves_out_unlabelled_images() -> None:
    dataset = in_memory(6)
    labels = torch.tensor([-1, 3, -1, 0, 5, -1])
    partial = Dataset(**(vars(dataset) | {"train": Split(dataset.train.images, None, labels)}))
    ((images, kept),) = evaluation_batches(partial, "train", trial("batched").data, 4)
    assert kept.tolist() == [3, 0, 5]
    expected = (dataset.train.images[labels >= 0].float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)


def test_evaluation_resizes_small_images_to_the_training_size() -> None:
    ((images, _),) = evaluation_batches(in_memory(3, size=8), "train", trial("batched").data, 4)
    assert images.shape == (3, 3, 12, 12)


@pytest.mark.parametrize("processes", [0, 2])
def test_evaluation_of_a_folder_is_the_same_for_any_number_of_processes(folder: Path, processes: int) -> None:
    config = folder_config(folder)
    dataset = load_dataset(config)
    batches = list(evaluation_batches(dataset, "validation", config, 5, "cpu", processes))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 8 + [1] * 8
    first = Image.open(
        folder / "val" / "a" / "0.png"
    )  # 30 x 20: the short side becomes round(12 * 256 / 224)
    small = first.resize((int(14 * 30 / 20), 14), Image.Resampling.BILINEAR)
    left = round((small.width - 12) / 2)
    pixels = V.pil_to_tensor(small.crop((left, 1, left + 12, 13))).float() / 255
    mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)
    level = batches[0][0][0] * std.view(3, 1, 1) + mean.view(3, 1, 1)
    assert (level - pixels).abs().max() <= 1.01 / 255


def test_a_loader_that_dies_while_it_sends_is_told_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying:
        def __iter__(self) -> Iterator[Any]:
            yield torch.zeros(1), ()
            raise ConnectionResetError(104, "Connection reset by peer")

    fetch = Fetcher(lambda position: position, 0, False)
    monkeypatch.setattr(fetch, "_loader", Dying())
    batches = fetch([1, 2])
    next(batches)
    with pytest.raises(LoaderLostError, match="DataLoader worker is gone"):
        next(batches)
