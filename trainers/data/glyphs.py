"""`glyphs`: characters in sixteen typefaces, drawn here from font files that matplotlib ships.

A class is a character; twelve fonts train and four others validate, one style of each family, so that a
representation is measured on typefaces it has never seen. With hundreds of classes a collapsed representation costs
accuracy, which the ten classes of other small data sets hide. Nothing is downloaded.

Every image is a function of its place alone (seed, character, font, number of the drawing): more classes or more
drawings leave the others as they are.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, features

from trainers.config import DataConfig
from trainers.data.formats import DataError, Labelled, Split
from trainers.files import make_folder, write_atomically
from trainers.node_cache import cache_folder
from trainers.randomness import generator

TRAIN_FONTS = (
    "DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic",
)  # fmt: skip
VALIDATION_FONTS = ("DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif-Italic", "STIXGeneralBolIta")

CHARACTERS = (
    "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`"
    "abcdefghijklmnopqrstuvwxyz{|}~¡¢£¤¥¦§¨©ª«¬®¯°±²³´µ¶¸¹º»¼½¾¿ÀÃÄÅÆ"
    "ÇÈÊËÌÍÎÏÐÑÒÕ×ØÙÜÝÞßàáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿĀāĂăĄąĆćĉĊċčĎ"
    "ďđĒēĔĕĖėĘęěĜĝĞğĠġĢģĤĥĦħĨĩĪīĬĭĮįİıĲĳĴĵĶķĸĹĺĻļĽľĿŀŁłŃńŅņňŉŊŋŌōŎŏŐő"
    "ŒœŔŕŖŗřŚśŜŝŞşšŢţŤťŦŧũŪūŭŮůŰűŲųŴŵŷŸŹźŻżžſƀƈƐƒƕƙƚƛƞƠơƥƪƫƭƯưƺƻƾǀǁǂǼ"
    "ǽǾǿȷɐɑɒɓɔɕɖɗɘəɚɛɜɝɞɟɠɡɢɣɤɥɦɧɨɩɪɫɬɭɮɯɰɱɲɳɴɵɶɷɸɹɺɻɼɽɾɿʀʁʂʃʄʅʆʇʈʉʊʋ"
    "ʌʍʎʏʐʑʒʓʔʕʖʗʘʙʚʛʜʝʞʟʠʡʢʣʤʥʦʧʨʰʱʲʳʴʵʶʷʸʻˀˁˆˇ˘˙˚˛˜˝ˠˡˢˣ΅ΆΈΉΊΌΎΏΐΓΔ"
    "ΘΛΞΠΣΦΨΩάέήίΰαβγδζθικλνξπρςστυφχψωϊϋύώϐϑϒϕϖϘϙϚϛϝϞϟϠϡϰϱϴϵ϶ЂЃЄЉЊЋЌ"
    "ЎЏБДЖЗИЙКЛУФЦЧШЩЪЫЬЭЮЯбгджзийклмнптфцчшщъыьэюяђѓєљњћќўџѢѣҐґẁẃẄẅỳ"
    "‒–—’‚‛“”„‟†‡•…‰‱‹›€№™∂−␣─│┌┐└┘├┤┬┴┼═║╒╓╔╕╖╗╘╙╚╛╜╝╞╟╠╡╢╣╤╥╦╧╨╩╪╫╬"
    "ﬁﬂ"
)
"""Those that all sixteen fonts have, without spaces, marks and all but one of those drawn alike (A, Α and А)."""

REFERENCE_DIGEST = "cb23e17320cf313cb958530e08381da127254779bbe037128ae697e29e277b07"
"""Of `drawing_digest()` where the results in results/ were made, with FreeType 2.14.3."""

_SUPERSAMPLING = 2
"""Characters are drawn at this multiple of the image's size, rotated, and averaged down: smooth, and unhinted."""


class _Look(NamedTuple):
    """How one image is drawn. Lengths are shares of the image's side, grey levels are in [0, 1]."""

    size: float
    shift: tuple[float, float]
    degrees: float
    paper: float
    ink: float
    gradient: tuple[float, float]
    noise: float


def read_glyphs(config: DataConfig) -> Labelled:
    """The training and the validation split, drawn or as an earlier process on this node drew them.

    Images of a class go round its fonts, so that any number of images per class is as balanced as can be.

    Raises:
        DataError: matplotlib's fonts are not where they should be.
    """
    kept = cache_folder() / "glyphs" / f"{_identity(config)}.npz"
    try:
        with kept.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _split(arrays["train"]), _split(arrays["validation"]), tuple(map(str, arrays["names"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # not there, or cut off: drawing takes seconds
    train, validation, names = _draw_splits(config)
    with suppress(OSError):  # a cache that can't be written costs time alone
        content = io.BytesIO()
        np.savez(content, train=train, validation=validation, names=np.array(names))
        make_folder(kept.parent)
        write_atomically(kept, content.getvalue())
    return _split(train), _split(validation), names


def _identity(config: DataConfig) -> str:
    """Of all that the pixels follow from."""
    fields = config.model_dump(
        include={"image_size", "classes", "images_per_class", "validation_images_per_class", "seed"}
    )
    software = [version("matplotlib"), version("pillow"), version("torch"), features.version("freetype2")]
    content = json.dumps([sorted(fields.items()), software]).encode() + Path(__file__).read_bytes()
    return hashlib.sha256(content).hexdigest()[:32]


def _draw_splits(config: DataConfig) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """uint8 (classes, images per class, S, S) of either split, and the characters."""
    assert config.classes is not None
    assert config.images_per_class is not None
    assert config.validation_images_per_class is not None
    order = torch.randperm(len(CHARACTERS), generator=generator(config.seed, "glyphs"))
    chosen = tuple(sorted(CHARACTERS[i] for i in order[: config.classes].tolist()))
    train, validation = (
        _draw_images(chosen, fonts, count, config.image_size, config.seed)
        for fonts, count in (
            (TRAIN_FONTS, config.images_per_class),
            (VALIDATION_FONTS, config.validation_images_per_class),
        )
    )
    return train, validation, chosen


def _split(images: np.ndarray) -> Split:
    """uint8 (K, n, S, S) -> images (K n, 1, S, S) with their class numbers."""
    classes, count, size, _ = images.shape
    labels = torch.arange(classes).repeat_interleave(count)
    return Split(torch.from_numpy(images.reshape(-1, 1, size, size)), None, labels)


def drawing_digest() -> str:
    """Of a few characters in all fonts: differs where FreeType or the font files draw other pixels."""
    images = _draw_images(("A", "ж", "θ", "€"), TRAIN_FONTS + VALIDATION_FONTS, 16, 16, 0)
    return hashlib.sha256(images.tobytes()).hexdigest()


def other_pixels() -> str | None:
    """One sentence where this machine draws other pixels than those that the published results were made with."""
    if drawing_digest() == REFERENCE_DIGEST:
        return None
    return (
        f"glyphs: FreeType {features.version('freetype2')} draws other pixels here than the FreeType that "
        "results/ were made with; accuracies may differ from them"
    )


def _draw_images(
    characters: tuple[str, ...], fonts: tuple[str, ...], per_class: int, size: int, seed: int
) -> np.ndarray:
    """uint8 (K, n, S, S)."""
    folder = _font_folder()
    images = np.empty((len(characters), per_class, size, size), dtype=np.uint8)
    for position, font in enumerate(fonts):
        numbers = range(position, per_class, len(fonts))
        faces: dict[int, ImageFont.FreeTypeFont] = {}
        for label, character in enumerate(characters):
            source = generator(seed, "glyphs", ord(character), *font.encode())
            for number in numbers:
                look = _draw_look(source)
                points = round(look.size * size * _SUPERSAMPLING)
                if points not in faces:
                    faces[points] = ImageFont.truetype(
                        str(folder / f"{font}.ttf"), points, layout_engine=ImageFont.Layout.BASIC
                    )
                images[label, number] = _draw(character, faces[points], look, size, source)
    return images


def _draw_look(source: torch.Generator) -> _Look:
    u = torch.rand(9, generator=source, dtype=torch.float64).tolist()
    paper = u[4]
    # at least 0.35 between ink and paper, either of them the brighter
    darker, brighter = max(0.0, paper - 0.35), max(0.0, 0.65 - paper)
    level = u[5] * (darker + brighter)
    ink = level if level < darker else level - darker + paper + 0.35
    angle = 2 * np.pi * u[6]
    slope = 0.3 * u[7]
    return _Look(
        size=0.6 + 0.3 * u[0],
        shift=(0.2 * u[1] - 0.1, 0.2 * u[2] - 0.1),
        degrees=24 * u[3] - 12,
        paper=paper,
        ink=ink,
        gradient=(slope * np.cos(angle), slope * np.sin(angle)),
        noise=0.06 * u[8],
    )


def _draw(
    character: str, face: ImageFont.FreeTypeFont, look: _Look, size: int, source: torch.Generator
) -> np.ndarray:
    """One image, uint8 (S, S)."""
    side = size * _SUPERSAMPLING
    left, top, right, bottom = face.getbbox(character)
    mask = Image.new("L", (side, side))
    corner = (
        (side - left - right) / 2 + look.shift[0] * side,
        (side - top - bottom) / 2 + look.shift[1] * side,
    )
    ImageDraw.Draw(mask).text(corner, character, fill=255, font=face)
    mask = mask.rotate(look.degrees, Image.Resampling.BILINEAR).reduce(_SUPERSAMPLING)
    cover = np.asarray(mask, dtype=np.float32) / 255
    ramp = _ramp(size)
    shade = look.paper + look.gradient[0] * ramp[None, :] + look.gradient[1] * ramp[:, None]
    grain = torch.randn(size, size, generator=source).numpy()
    grey = shade + cover * (look.ink - look.paper) + look.noise * grain
    return np.rint(255 * grey.clip(0, 1)).astype(np.uint8)


@functools.cache
def _ramp(size: int) -> np.ndarray:
    return np.linspace(-0.5, 0.5, size, dtype=np.float32)


def _font_folder() -> Path:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    missing = [name for name in TRAIN_FONTS + VALIDATION_FONTS if not (folder / f"{name}.ttf").is_file()]
    if missing:
        raise DataError(f"{folder}: lacks {missing[0]}.ttf, which matplotlib ships; reinstall matplotlib")
    return folder
