"""The on-disk formats are written here byte by byte, from their published descriptions."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from trainers.config import DataConfig
from trainers.data.datasets import DataError, check_data, load_dataset
from trainers.data.formats import _idx

FASHION = Path("/usr/share/datasets/fashion-mnist")
RNG = np.random.default_rng(0)


def config(kind: str, root: Path | None = None, **fields: object) -> DataConfig:
    return DataConfig(kind=kind, root=None if root is None else str(root), image_size=8, **fields)


def idx_bytes(array: np.ndarray) -> bytes:
    return (
        struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


def write_fashion(root: Path, zipped: bool = False) -> dict[str, np.ndarray]:
    root.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train-images-idx3-ubyte": RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.array([0, 9, 3, 3, 1, 2], dtype=np.uint8),
        "t10k-images-idx3-ubyte": RNG.integers(0, 256, (2, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.array([5, 7], dtype=np.uint8),
    }
    for name, array in arrays.items():
        data = idx_bytes(array)
        (root / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return arrays


def write_cifar10(folder: Path, per_batch: int = 3) -> tuple[list[int], list[np.ndarray]]:
    folder.mkdir(parents=True)
    labels, images = [], []
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        content = b""
        for _ in range(per_batch):
            label, image = int(RNG.integers(10)), RNG.integers(0, 256, (3, 32, 32), dtype=np.uint8)
            content += bytes([label])
            for channel in image:  # all of red, then green, then blue; each row by row
                for row in channel:
                    content += bytes(row.tolist())
            labels.append(label)
            images.append(image)
        (folder / f"{name}.bin").write_bytes(content)
    return labels, images


def write_stl10(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    images = {}
    for part, n in (("train", 2), ("test", 3), ("unlabeled", 4)):
        images[part] = RNG.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8)
        column_by_column = b"".join(
            channel[:, x].tobytes() for image in images[part] for channel in image for x in range(96)
        )
        (folder / f"{part}_X.bin").write_bytes(column_by_column)
    (folder / "train_y.bin").write_bytes(bytes([1, 10]))
    (folder / "test_y.bin").write_bytes(bytes([3, 2, 1]))
    return images


def write_folder(root: Path, sizes: tuple[int, int] = (40, 30)) -> Path:
    for part, count in (("train", 3), ("val", 2)):
        for name in ("cat", "ant"):
            for i in range(count):
                place = root / part / name / ("deeper" if i == 0 else ".")
                place.mkdir(parents=True, exist_ok=True)
                pixels = RNG.integers(0, 256, (sizes[1], sizes[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.{'PNG' if i % 2 else 'jpg'}")
    (root / "train" / "ant" / "notes.txt").write_text("no image")
    return root


def test_digits_are_all_of_scikit_learns_in_a_stratified_split() -> None:
    dataset = load_dataset(config("digits"))
    pixels, labels = load_digits(return_X_y=True)
    assert (len(dataset.train), len(dataset.validation)) == (1297, 500)
    both = torch.cat([dataset.train.images, dataset.validation.images]).flatten(1).double() * 16 / 255
    rows = {tuple(row) for row in both.round().int().tolist()}
    assert rows == {tuple(row) for row in pixels.astype(int).tolist()}
    assert (both - both.round()).abs().max() <= 16 / 255 / 2 + 1e-9
    expected = np.bincount(labels) * 500 / 1797
    assert np.abs(dataset.validation.labels.bincount().numpy() - expected).max() < 1


def test_the_split_of_the_digits_is_fixed_for_good() -> None:
    digest = hashlib.sha256(load_dataset(config("digits")).validation.labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "bd2e9b7c2aa9b6b5"


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
def test_idx_files_are_read_plain_and_gzipped(tmp_path: Path, zipped: bool, folder: str) -> None:
    arrays = write_fashion(tmp_path / folder, zipped)
    dataset = load_dataset(config("fashion_mnist", tmp_path))
    assert np.array_equal(dataset.train.images[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert dataset.train.labels.tolist() == [0, 9, 3, 3, 1, 2]
    assert dataset.validation.labels.tolist() == [5, 7]
    assert (dataset.channels, dataset.num_classes, len(dataset.class_names)) == (1, 10, 10)


def test_cifar10_binary_batches_are_read_in_order(tmp_path: Path) -> None:
    labels, images = write_cifar10(tmp_path / "cifar-10-batches-bin")
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (tmp_path / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    for root in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        dataset = load_dataset(config("cifar10", root))
        assert np.array_equal(dataset.train.images.numpy(), np.stack(images[:15]))
        assert np.array_equal(dataset.validation.images.numpy(), np.stack(images[15:]))
        assert dataset.train.labels.tolist() + dataset.validation.labels.tolist() == labels
        assert dataset.class_names == tuple(names)


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    images = RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    records = [bytes([19, 90 + i]) + image.tobytes() for i, image in enumerate(images)]
    (folder / "train.bin").write_bytes(b"".join(records[:3]))
    (folder / "test.bin").write_bytes(records[3])
    dataset = load_dataset(config("cifar100", tmp_path))
    assert dataset.train.labels.tolist() == [90, 91, 92]
    assert dataset.validation.labels.tolist() == [93]
    assert np.array_equal(dataset.train.images.numpy(), images[:3])
    assert dataset.num_classes == 100


def test_stl10_is_transposed_and_trains_on_unlabelled_images_too(tmp_path: Path) -> None:
    images = write_stl10(tmp_path / "stl10_binary")
    dataset = load_dataset(config("stl10", tmp_path))
    assert np.array_equal(
        dataset.train.images.numpy(), np.concatenate([images["unlabeled"], images["train"]])
    )
    assert dataset.train.labels.tolist() == [-1] * 4 + [0, 9]
    assert np.array_equal(dataset.validation.images.numpy(), images["test"])
    assert dataset.validation.labels.tolist() == [2, 1, 0]


def test_an_image_folder_lists_files_by_class_in_sorted_order(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train" / ".cache").mkdir()
    dataset = load_dataset(config("imagefolder", tmp_path, name="animals"))
    assert (dataset.name, dataset.class_names, dataset.channels) == ("animals", ("ant", "cat"), 3)
    assert dataset.train.images is None
    relative = [Path(path).relative_to(tmp_path / "train").as_posix() for path in dataset.train.paths]
    assert relative == [
        f"{name}/{file}" for name in ("ant", "cat") for file in ("1.PNG", "2.jpg", "deeper/0.jpg")
    ]
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.validation.labels.tolist() == [0, 0, 1, 1]


def test_the_fingerprint_follows_contents_and_not_the_place(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "first")
    here = load_dataset(config("imagefolder", first, name="a")).fingerprint()
    first.rename(tmp_path / "second")
    there = config("imagefolder", tmp_path / "second", name="a")
    assert load_dataset(there).fingerprint() == here
    with (tmp_path / "second" / "val" / "ant" / "1.PNG").open("ab") as file:
        file.write(b"x")
    assert load_dataset(there).fingerprint() != here


def test_the_fingerprint_is_the_same_under_a_home_and_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "images")
    whole = load_dataset(config("imagefolder", tmp_path / "images", name="a"))
    monkeypatch.setenv("HOME", str(tmp_path))
    home = load_dataset(config("imagefolder", Path("~/images"), name="a"))
    assert home.fingerprint() == whole.fingerprint()


def test_the_files_of_a_folder_are_not_looked_at_before_the_fingerprint_is_asked_for(tmp_path: Path) -> None:
    dataset = load_dataset(config("imagefolder", write_folder(tmp_path), name="a"))
    Path(dataset.validation.paths[0]).unlink()
    with pytest.raises(DataError):
        dataset.fingerprint()


def test_the_fingerprint_sees_one_pixel_and_one_label(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    prints = {load_dataset(config("fashion_mnist", tmp_path)).fingerprint()}
    for name, place in (("train-images-idx3-ubyte", 16), ("t10k-labels-idx1-ubyte", 8)):
        data = bytearray((tmp_path / name).read_bytes())
        data[place] = (data[place] + 1) % 10
        (tmp_path / name).write_bytes(data)
        prints.add(load_dataset(config("fashion_mnist", tmp_path)).fingerprint())
    assert len(prints) == 3


def test_subsets_are_fixed_nested_and_told_apart() -> None:
    whole = load_dataset(config("digits"))
    small = load_dataset(config("digits", train_images=50, validation_images=20))
    again = load_dataset(config("digits", train_images=50, validation_images=20))
    large = load_dataset(config("digits", train_images=200))
    assert small.fingerprint() == again.fingerprint()
    assert len({d.fingerprint() for d in (whole, small, large)}) == 3
    assert (len(small.train), len(small.validation)) == (50, 20)

    def rows(dataset: object) -> set[bytes]:
        return {image.numpy().tobytes() for image in dataset.train.images}

    assert rows(small) < rows(large) < rows(whole)
    assert small.mean == whole.mean
    assert len(small.train.labels.unique()) == 10  # random, not the first of a sorted list


def test_a_subset_of_a_folder_keeps_paths_and_labels_together(tmp_path: Path) -> None:
    dataset = load_dataset(config("imagefolder", write_folder(tmp_path), name="a", train_images=4))
    assert [Path(p).relative_to(tmp_path / "train").parts[0] for p in dataset.train.paths] == [
        dataset.class_names[label] for label in dataset.train.labels.tolist()
    ]


def test_mean_and_std_are_those_of_the_training_pixels(tmp_path: Path) -> None:
    _, images = write_cifar10(tmp_path / "cifar-10-batches-bin")
    dataset = load_dataset(config("cifar10", tmp_path))
    pixels = np.stack(images[:15]).astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, pixels.std(axis=(0, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize("kind", ["fashion_mnist", "cifar10", "cifar100", "stl10", "imagefolder"])
@pytest.mark.parametrize("look", [lambda data: check_data(data, 8), load_dataset], ids=["check", "load"])
def test_missing_data_is_one_line_with_place_and_remedy(tmp_path: Path, kind: str, look: object) -> None:
    fields = {"name": "a"} if kind == "imagefolder" else {}
    with pytest.raises(DataError) as caught:
        look(config(kind, tmp_path / "nowhere", **fields))
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "nowhere") in message
    assert ";" in message
    if kind != "fashion_mnist":
        with pytest.raises(DataError, match=r"^data.root: .*set data.root"):
            look(config(kind, **fields))


def test_check_data_reads_nothing_but_sees_a_missing_file(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin").write_bytes(b"")
    check_data(config("cifar10", tmp_path), 256)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_2.bin"):
        check_data(config("cifar10", tmp_path), 256)
    check_data(config("digits"), 256)


def test_pickled_batches_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "exploded",)

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="pickled batches are not read"):
        load_dataset(config("cifar10", tmp_path))
    assert not (tmp_path / "exploded").exists()


def test_malformed_files_are_named(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    whole, names = images.read_bytes(), labels.read_bytes()

    def message() -> str:
        with pytest.raises(DataError) as caught:
            load_dataset(config("fashion_mnist", tmp_path))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    images.write_bytes(whole[:-1])
    assert "train-images" in message()
    images.write_bytes(b"\x00\x00\x0d\x03" + whole[4:])
    assert "not an idx file" in message()
    images.write_bytes(names)
    assert "rank 1, expected 3" in message()
    images.write_bytes(whole)
    labels.write_bytes(idx_bytes(np.array([0, 1, 2], dtype=np.uint8)))
    assert "6 images but 3 labels" in message()
    labels.write_bytes(idx_bytes(np.array([0, 1, 2, 3, 4, 10], dtype=np.uint8)))
    assert "outside 0..9" in message()
    labels.unlink()
    labels.with_name(labels.name + ".gz").write_bytes(gzip.compress(names)[:-9])
    assert "cannot be read" in message()


def test_records_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    with (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"data_batch_3.bin: 9220 bytes are not whole records of 3073"):
        load_dataset(config("cifar10", tmp_path))


def test_a_validation_class_unknown_to_training_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "val" / "bee").mkdir()
    with pytest.raises(DataError, match="class bee is not in train/"):
        load_dataset(config("imagefolder", tmp_path, name="a"))


@pytest.mark.parametrize(("here", "there"), [("train", "val"), ("val", "train")])
def test_classes_of_one_split_alone_are_refused_before_anything_is_read(
    tmp_path: Path, here: str, there: str
) -> None:
    write_folder(tmp_path)
    (tmp_path / here / "bee").mkdir()
    with pytest.raises(
        DataError, match=rf"{here}: class bee is not in {there}/ \(\d classes in train/, \d in val/\)"
    ):
        check_data(config("imagefolder", tmp_path, name="a"), 2)


def test_a_class_without_images_in_one_split_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / "bee").mkdir()
    (tmp_path / "train" / "bee" / "a.jpg").touch()
    with pytest.raises(
        DataError, match=r"val/bee: no images \(\.jpg, .*remove the class from train/ and val/"
    ):
        load_dataset(config("imagefolder", tmp_path, name="a"))


def test_a_root_that_is_gone_is_told_from_one_of_another_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"away: imagefolder a is not there; bring data\.root back"):
        check_data(config("imagefolder", tmp_path / "away", name="a"), 2)
    with pytest.raises(DataError, match=r"lacks the folder train/; lay images out as"):
        check_data(config("imagefolder", tmp_path, name="a"), 2)


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("zipped", [False, True])
def test_labels_that_are_not_as_many_as_images_are_refused_by_their_head(
    tmp_path: Path, part: str, zipped: bool
) -> None:
    write_fashion(tmp_path)
    check_data(config("fashion_mnist", tmp_path, train_images=6), 2)
    labels = tmp_path / f"{part}-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(5, dtype=np.uint8)))
    if zipped:
        labels.with_name(labels.name + ".gz").write_bytes(gzip.compress(labels.read_bytes()))
        labels.unlink()
    with pytest.raises(DataError, match=rf"{part}-images-idx3-ubyte: \d images but 5 labels; fetch both"):
        check_data(config("fashion_mnist", tmp_path, train_images=6), 2)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="no images"):
        load_dataset(config("imagefolder", tmp_path, name="a"))


def test_a_subset_larger_than_the_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"data.train_images: got 2000, takes at most the split's 1297"):
        load_dataset(config("digits", train_images=2000))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=64),
        st.binary(max_size=64).map(lambda tail: b"\x00\x00\x08" + tail),
        st.lists(st.integers(0, 3), min_size=1, max_size=4).map(lambda s: idx_bytes(np.zeros(s, np.uint8))),
    )
)
def test_any_bytes_are_an_idx_array_or_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    try:
        array = _idx(path)
    except DataError:
        return
    assert idx_bytes(array) == content


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_is_found_without_a_root() -> None:
    dataset = load_dataset(config("fashion_mnist"))
    assert (len(dataset.train), len(dataset.validation)) == (60_000, 10_000)
    assert dataset.train.labels.bincount().tolist() == [6000] * 10
    assert dataset.mean[0] == pytest.approx(0.2860, abs=1e-4)  # as published for Fashion-MNIST
    assert dataset.std[0] == pytest.approx(0.3530, abs=1e-4)


def test_a_batch_larger_than_the_data_is_refused_without_reading_it() -> None:
    with pytest.raises(DataError, match="got 2000, takes at most the 1297 training images"):
        check_data(config("digits"), 2000)
    with pytest.raises(DataError, match="got 101, takes at most the 100 training images"):
        check_data(config("digits", train_images=100), 101)
    with pytest.raises(DataError, match=r"data\.train_images: got 1298, takes at most the split's 1297"):
        check_data(config("digits", train_images=1298), 8)


def test_the_known_size_of_digits_is_its_size() -> None:
    check_data(config("digits"), len(load_dataset(config("digits")).train))
