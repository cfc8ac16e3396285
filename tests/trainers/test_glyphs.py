"""The oracle on characters is fontTools, which reads the fonts' own tables."""

import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.ttLib import TTFont
from PIL import ImageFont
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from trainers.config import MOST_GLYPHS, DataConfig
from trainers.data import glyphs
from trainers.data.datasets import DataError, Dataset, check_data, load_dataset
from trainers.data.glyphs import CHARACTERS, TRAIN_FONTS, VALIDATION_FONTS

FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FONTS = TRAIN_FONTS + VALIDATION_FONTS


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(
    classes: int = 6, images: int = 24, validation: int = 8, size: int = 16, seed: int = 0
) -> DataConfig:
    return DataConfig(
        kind="glyphs",
        image_size=size,
        classes=classes,
        images_per_class=images,
        validation_images_per_class=validation,
        seed=seed,
    )


def by_character(dataset: Dataset) -> dict[str, torch.Tensor]:
    assert dataset.train.images is not None
    return {
        name: dataset.train.images[dataset.train.labels == label]
        for label, name in enumerate(dataset.class_names)
    }


def ink(font: str, character: str) -> bytes:
    """The character's pixels at 64 px, cut to their bounding box."""
    face = ImageFont.truetype(str(FOLDER / f"{font}.ttf"), 64, layout_engine=ImageFont.Layout.BASIC)
    mask = face.getmask(character, mode="L")
    pixels = np.array(mask, dtype=np.uint8).reshape(mask.size[::-1])
    rows, columns = pixels.any(axis=1).nonzero()[0], pixels.any(axis=0).nonzero()[0]
    cut = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.array(cut.shape).tobytes() + cut.tobytes()


def test_every_font_has_every_character() -> None:
    for font in FONTS:
        missing = set(map(ord, CHARACTERS)) - set(TTFont(FOLDER / f"{font}.ttf").getBestCmap())
        assert not missing, (font, sorted(map(chr, missing)))


def test_no_character_is_a_space_or_mark_and_none_occurs_twice() -> None:
    assert len(set(CHARACTERS)) == len(CHARACTERS) == MOST_GLYPHS
    assert not {unicodedata.category(character)[0] for character in CHARACTERS} & set("ZMC")


def test_no_two_characters_have_the_same_shape_in_most_fonts() -> None:
    shapes = {character: [ink(font, character) for font in FONTS] for character in CHARACTERS}
    alike: dict[bytes, list[str]] = {}
    for character, drawn in shapes.items():
        alike.setdefault(drawn[0], []).append(character)
    for group in alike.values():
        for first in group:
            for second in group[group.index(first) + 1 :]:
                same = sum(a == b for a, b in zip(shapes[first], shapes[second], strict=True))
                assert same <= len(FONTS) / 2, f"{first} and {second} are drawn alike in {same} fonts"


def test_validation_is_one_style_of_each_family_and_no_font_is_in_both_splits() -> None:
    families = ("DejaVuSansMono", "DejaVuSerif", "STIXGeneral", "DejaVuSans")
    found = [next(family for family in families if font.startswith(family)) for font in VALIDATION_FONTS]
    assert sorted(found) == sorted(families)
    assert not set(TRAIN_FONTS) & set(VALIDATION_FONTS)
    assert (len(set(TRAIN_FONTS)), len(set(VALIDATION_FONTS))) == (12, 4)


def test_splits_have_the_sizes_asked_for_and_every_class_as_often() -> None:
    dataset = load_dataset(config(classes=5, images=30, validation=6, size=20))
    assert dataset.train.images is not None
    assert dataset.validation.images is not None
    assert dataset.train.images.shape == (150, 1, 20, 20)
    assert dataset.validation.images.shape == (30, 1, 20, 20)
    assert dataset.train.labels.bincount().tolist() == [30] * 5
    assert dataset.validation.labels.bincount().tolist() == [6] * 5
    assert dataset.num_classes == len(set(dataset.class_names)) == 5


def test_the_same_configuration_draws_the_same_pixels_and_another_seed_others() -> None:
    assert load_dataset(config()).fingerprint() == load_dataset(config()).fingerprint()
    assert load_dataset(config()).fingerprint() != load_dataset(config(seed=1)).fingerprint()


def test_what_was_drawn_once_is_read_again_and_a_damaged_copy_is_drawn_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = load_dataset(config())
    (kept,) = (cache / "glyphs").iterdir()
    with monkeypatch.context() as without_fonts:
        without_fonts.setattr("trainers.data.datasets.other_pixels", lambda: None)  # which draws some, too
        without_fonts.setattr(glyphs, "_draw", lambda *arguments: pytest.fail("drawn again"))
        again = load_dataset(config())
    assert (again.fingerprint(), again.class_names) == (drawn.fingerprint(), drawn.class_names)
    kept.write_bytes(kept.read_bytes()[:1000])
    assert load_dataset(config()).fingerprint() == drawn.fingerprint()
    assert len(kept.read_bytes()) > 1000


def test_more_classes_leave_the_images_of_the_others_as_they_are() -> None:
    few, many = by_character(load_dataset(config(classes=4))), by_character(load_dataset(config(classes=9)))
    assert set(few) < set(many)
    for character, images in few.items():
        assert torch.equal(images, many[character])


def test_more_drawings_leave_the_earlier_ones_as_they_are() -> None:
    few, many = by_character(load_dataset(config(images=13))), by_character(load_dataset(config(images=40)))
    for character, images in few.items():
        assert torch.equal(images, many[character][:13])


def test_no_image_is_empty_and_either_polarity_occurs() -> None:
    images = by_character(load_dataset(config(classes=40, images=12)))
    brighter = []
    for drawn in images.values():
        levels = drawn.float()
        assert (levels.amax((1, 2, 3)) - levels.amin((1, 2, 3))).min() > 40
        border = torch.cat([levels[:, 0, 0], levels[:, 0, -1]], dim=1).mean(1)
        brighter += (levels[:, 0, 4:12, 4:12].mean((1, 2)) > border).tolist()
    assert 0.3 < np.mean(brighter) < 0.7


def test_characters_can_be_told_apart_in_fonts_never_seen_but_not_easily() -> None:
    dataset = load_dataset(config(classes=20, images=48, validation=16))
    assert dataset.train.images is not None
    assert dataset.validation.images is not None
    train, validation = (
        (images.flatten(1).double() / 255).sub(images.flatten(1).double().mean(1, keepdim=True) / 255).abs()
        for images in (dataset.train.images, dataset.validation.images)
    )
    classifier = LogisticRegression(C=1, max_iter=300).fit(train.numpy(), dataset.train.labels.numpy())
    accuracy = classifier.score(validation.numpy(), dataset.validation.labels.numpy())
    assert 3 / 20 < accuracy < 0.9


def test_the_published_drawings_have_the_published_digest_or_a_sentence_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (glyphs.other_pixels() is None) == (glyphs.drawing_digest() == glyphs.REFERENCE_DIGEST)
    monkeypatch.setattr(glyphs, "REFERENCE_DIGEST", "0" * 64)
    sentence = glyphs.other_pixels()
    assert sentence is not None
    assert "FreeType" in sentence


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "glyphs"}, "classes: expected a number"),
        ({"kind": "glyphs", "classes": 5}, "images_per_class: expected a number"),
        ({"kind": "digits", "classes": 5}, "classes: is for kind glyphs"),
        ({"kind": "digits", "seed": 5}, "seed: is for kind glyphs"),
        ({"kind": "glyphs", "classes": MOST_GLYPHS + 1}, "less than or equal to 642"),
    ],
)
def test_fields_that_are_missing_or_belong_to_another_kind_are_refused(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"image_size": 16, **fields})


def test_a_batch_larger_than_the_drawn_split_is_refused() -> None:
    check_data(config(classes=4, images=8), 32)
    with pytest.raises(DataError, match="32 training images"):
        check_data(config(classes=4, images=8), 33)


def test_fonts_that_are_gone_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"DejaVuSans\.ttf"):
        load_dataset(config())
