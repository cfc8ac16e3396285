"""Oracle: torchvision's v2.functional and v2 transforms, applied image by image."""

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as V

from trainers.config import AugmentConfig, ViewConfig
from trainers.data import batched
from trainers.data.augment import (
    BatchedAugment,
    PerImageAugment,
    blur_kernel_size,
    evaluation_images,
    evaluation_photo,
    normalise,
)
from trainers.data.draws import Draws, crop_boxes, draw
from trainers.randomness import generator

ALWAYS = AugmentConfig(
    mode="batched", jitter=1.0, grayscale=0.3, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.3
)
OFF = AugmentConfig(
    mode="batched", crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0, jitter=0, grayscale=0
)
N = 24


def photos(n: int = N, channels: int = 3, height: int = 20, width: int = 20, seed: int = 0) -> Tensor:
    """uint8 images with smooth structure, noise, and some saturated areas."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=source) * 1.4 - 0.2
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noisy = smooth + 0.1 * torch.randn(n, channels, height, width, generator=source)
    return (noisy.clamp(0, 1) * 255).round().to(torch.uint8)


def floats(**kwargs: int) -> Tensor:
    return photos(**kwargs).double() / 255


def column(low: float, high: float, n: int = N) -> Tensor:
    return torch.linspace(low, high, n, dtype=torch.float64).view(-1, 1, 1, 1)


def draws(n: int, config: AugmentConfig = ALWAYS, view: ViewConfig | None = None, seed: int = 0) -> Draws:
    return draw(n, generator(seed, "augment", 0), config, view or ViewConfig(blur=0.5, solarize=0.5))


# --- pixels: each operation against torchvision -------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "size"), [(20, 20, 16), (8, 8, 16), (32, 32, 32), (17, 30, 11)])
def test_crop_resize_and_flip_equal_torchvisions(channels: int, height: int, width: int, size: int) -> None:
    images = floats(channels=channels, height=height, width=width)
    rows = draws(N, AugmentConfig())
    boxes = crop_boxes(rows, height, width, (0.75, 4 / 3))
    ours = batched.resized_crop(images, boxes, rows.flip, size)
    for image, box, flip, result in zip(images, boxes.tolist(), rows.flip, ours, strict=True):
        expected = V.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC, antialias=True)
        expected = V.horizontal_flip(expected) if flip else expected
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    assert 0 < rows.flip.sum() < N


def test_crop_in_float32_is_within_a_thousandth_of_a_grey_level() -> None:
    images = floats(height=32, width=32)
    rows = draws(N)
    boxes = crop_boxes(rows, 32, 32, (0.75, 4 / 3))
    exact = batched.resized_crop(images, boxes, rows.flip, 24)
    assert (batched.resized_crop(images.float(), boxes, rows.flip, 24) - exact).abs().max() < 1e-3 / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (batched.adjust_brightness, V.adjust_brightness, 0.0, 2.0),
        (batched.adjust_contrast, V.adjust_contrast, 0.0, 2.0),
        (batched.adjust_saturation, V.adjust_saturation, 0.0, 2.0),
    ],
)
def test_jitter_operations_equal_torchvisions(ours, theirs, low: float, high: float, channels: int) -> None:
    images, factors = floats(channels=channels), column(low, high)
    expected = torch.stack([theirs(x, f) for x, f in zip(images, factors.flatten().tolist(), strict=True)])
    torch.testing.assert_close(ours(images, factors), expected, rtol=0, atol=1e-12)


def test_hue_equals_torchvisions() -> None:
    images, shifts = floats(), column(-0.5, 0.5)
    expected = torch.stack(
        [V.adjust_hue(x, s) for x, s in zip(images, shifts.flatten().tolist(), strict=True)]
    )
    ours = batched.adjust_hue(images, shifts)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)  # torchvision's is computed in float32


@pytest.mark.parametrize("shift", [-0.5, -0.3, 0.0, 0.1, 1 / 3, 0.5])
def test_hue_equals_pythons_colorsys_also_where_channels_tie(shift: float) -> None:
    values = torch.tensor([0.0, 0.25, 0.7, 1.0], dtype=torch.float64)
    pixels = torch.cat([torch.cartesian_prod(values, values, values), floats(n=1)[0].flatten(1).t()])
    ours = batched.adjust_hue(
        pixels.t().reshape(1, 3, 1, -1), torch.full((1, 1, 1, 1), shift, dtype=torch.float64)
    )
    for before, after in zip(pixels.tolist(), ours[0, :, 0].t().tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value), abs=1e-12)


def test_grayscale_equals_torchvisions() -> None:
    images = floats()
    torch.testing.assert_close(
        batched.grayscale(images), V.rgb_to_grayscale(images, num_output_channels=1), rtol=0, atol=1e-12
    )
    one = floats(channels=1)
    assert batched.grayscale(one) is one


@pytest.mark.parametrize("kernel_size", [3, 5, 9])
def test_blur_equals_torchvisions_with_a_sigma_per_image(kernel_size: int) -> None:
    images, sigma = floats(height=17, width=20), column(0.1, 2.0)
    expected = torch.stack(
        [
            V.gaussian_blur(x, [kernel_size] * 2, [s] * 2)
            for x, s in zip(images, sigma.flatten().tolist(), strict=True)
        ]
    )
    ours = batched.gaussian_blur(images, sigma, kernel_size)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)  # torchvision's kernel is in float32


def test_blur_equals_a_float64_convolution() -> None:
    images, sigma = floats(n=4), column(0.3, 2.0, 4)
    ours = batched.gaussian_blur(images, sigma, 5)
    for image, s, result in zip(images.numpy(), sigma.flatten().tolist(), ours.numpy(), strict=True):
        kernel = np.exp(-(np.arange(-2, 3) ** 2) / (2 * s**2))
        kernel /= kernel.sum()
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
        expected = np.einsum("cyxij,i,j->cyx", windows, kernel, kernel)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-14)


def test_solarize_inverts_the_grey_levels_that_torchvision_inverts() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for dtype in (torch.float32, torch.float64):
        ours = batched.solarize(levels.to(dtype) / 255) * 255
        assert torch.equal(ours.round().to(torch.uint8), V.solarize(levels, threshold=128))


@pytest.mark.parametrize(
    ("size", "kernel"), [(8, 3), (16, 3), (32, 3), (64, 7), (96, 9), (128, 13), (224, 23)]
)
def test_the_blur_kernel_is_a_tenth_of_the_side(size: int, kernel: int) -> None:
    assert blur_kernel_size(size) == kernel


def test_on_subset_changes_the_chosen_images_alone() -> None:
    images = floats(n=6)
    chosen = torch.tensor([True, False, False, True, False, True])
    result = batched.on_subset(images.clone(), chosen, lambda x, p: x * p, torch.arange(6.0))
    for i in range(6):
        torch.testing.assert_close(result[i], images[i] * i if chosen[i] else images[i], rtol=0, atol=0)


# --- the whole view -------------------------------------------------------------------------------


def reference_view(image: Tensor, row: Draws, config: AugmentConfig, size: int) -> Tensor:
    """One image (C, H, W) in float64 by torchvision, in the published order."""
    box = crop_boxes(row, image.shape[1], image.shape[2], config.crop_ratio)[0].tolist()
    x = V.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    x = V.horizontal_flip(x) if row.flip else x
    adjust = [V.adjust_brightness, V.adjust_contrast, V.adjust_saturation, V.adjust_hue]
    for kind in row.order[0].tolist() if row.jitter else []:
        x = adjust[kind](x, row.factors[0, kind].item())
    if row.grayscale:
        x = V.rgb_to_grayscale(x, num_output_channels=x.shape[0])
    if row.blur:
        x = V.gaussian_blur(x, [blur_kernel_size(size)] * 2, [row.sigma.item()] * 2)
    return V.solarize(x, threshold=128 / 255) if row.solarize else x


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batched_view_equals_torchvisions_image_by_image(channels: int) -> None:
    config = ALWAYS.model_copy(update={"jitter": 0.7})
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    augment = BatchedAugment(config, 16, mean, std)
    images = photos(n=60, channels=channels)
    rows = draws(60, config)
    ours = augment.apply(images, rows, torch.float64)
    off = 0
    for i in range(60):
        x = reference_view(images[i].double() / 255, rows[i : i + 1], config, 16)
        expected = V.normalize(x, list(mean), list(std))
        off += int(((ours[i] - expected).abs() > 1e-5).sum())
    # torchvision's float32 blur kernel may put a pixel on the other side of the solarize threshold
    assert off <= 2


def test_the_two_modes_agree_up_to_the_rounding_of_uint8() -> None:
    config = ALWAYS.model_copy(update={"hue": 0.1, "saturation": 0.2, "contrast": 0.4, "brightness": 0.4})
    view = ViewConfig(blur=0.5)
    images = photos(n=40, height=32, width=32)
    per_image = PerImageAugment(config, 32)
    batch = BatchedAugment(config, 32, (0.0,) * 3, (1.0,) * 3)
    for i in range(40):
        theirs = per_image(images[i], generator(i, "augment"), view).double()
        ours = batch.apply(images[i : i + 1], batch.draw(1, generator(i, "augment"), view))[0].double() * 255
        # each of four jitter operations truncates to whole grey levels, and the next may scale that
        assert (theirs - ours).abs().mean() < 3
        assert (theirs - ours).abs().max() < 16


def test_no_augmentation_leaves_the_normalised_image() -> None:
    images = photos(height=16, width=16)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    augment = BatchedAugment(OFF, 16, mean, std)
    ours = augment.apply(images, draws(N, OFF, ViewConfig()), torch.float64)
    expected = V.normalize(images.double() / 255, list(mean), list(std))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert torch.equal(PerImageAugment(OFF, 16)(images[0], generator(0, "augment"), ViewConfig()), images[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_views_have_the_asked_dtype_and_half_precision_only_rounds_the_result(dtype: torch.dtype) -> None:
    augment = BatchedAugment(ALWAYS, 12, (0.5,) * 3, (0.25,) * 3)
    rows = draws(N)
    ours = augment.apply(photos(), rows, dtype)
    assert (ours.dtype, ours.shape) == (dtype, (N, 3, 12, 12))
    if dtype != torch.float64:
        assert torch.equal(ours, augment.apply(photos(), rows, torch.float32).to(dtype))


def test_autocast_around_the_augmentation_changes_nothing() -> None:
    augment = BatchedAugment(ALWAYS, 12, (0.5,) * 3, (0.25,) * 3)
    plain = augment.apply(photos(), draws(N))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment.apply(photos(), draws(N)), plain)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slices_of_a_global_batch_are_bitwise_the_slices_own(channels: int, dtype: torch.dtype) -> None:
    augment = BatchedAugment(ALWAYS, 16, (0.5,) * channels, (0.25,) * channels)
    images, rows = photos(n=61, channels=channels), draws(61)
    whole = augment.apply(images, rows, dtype)
    for size in (1, 2, 7, 20, 32):
        parts = [augment.apply(images[i : i + size], rows[i : i + size], dtype) for i in range(0, 61, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_threads_change_no_bit() -> None:
    augment = BatchedAugment(ALWAYS, 16, (0.5,) * 3, (0.25,) * 3)
    images, rows = photos(n=64), draws(64)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(augment.apply(images, rows))
    assert torch.equal(*results)


def test_the_images_are_left_as_they_were_and_no_global_randomness_is_used() -> None:
    images = photos()
    kept, state, numpy_state = images.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    BatchedAugment(ALWAYS, 16, (0.5,) * 3, (0.25,) * 3).apply(images, draws(N))
    PerImageAugment(ALWAYS, 16)(images[0], generator(0, "augment"), ViewConfig(blur=1.0, solarize=1.0))
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_saturation_hue_and_grayscale_do_nothing_to_one_channel() -> None:
    plain = ALWAYS.model_copy(update={"saturation": 0.0, "hue": 0.0, "grayscale": 0.0})
    images = photos(channels=1)
    results, singles = [], []
    for config in (ALWAYS, plain):
        rows = draws(N, config, ViewConfig())
        results.append(BatchedAugment(config, 16, (0.5,), (0.25,)).apply(images, rows))
        singles.append(PerImageAugment(config, 16)(images[0], generator(0, "augment"), ViewConfig()))
    assert torch.equal(*results)
    assert torch.equal(*singles)
    without = plain.model_copy(update={"brightness": 0.0, "contrast": 0.0})
    other = BatchedAugment(without, 16, (0.5,), (0.25,)).apply(images, draws(N, without, ViewConfig()))
    assert not torch.allclose(results[0], other)


def test_hue_leaves_gray_pixels_of_colour_images() -> None:
    gray = floats(channels=1).expand(-1, 3, -1, -1)
    assert torch.equal(batched.adjust_hue(gray, column(-0.5, 0.5)), gray)


# --- the draws ------------------------------------------------------------------------------------


MANY = 20_000
RECIPE = AugmentConfig()


@pytest.fixture(scope="module")
def many() -> Draws:
    return draws(MANY, RECIPE, ViewConfig(blur=0.1, solarize=0.2))


@pytest.mark.parametrize(
    ("name", "probability"),
    [("flip", 0.5), ("jitter", 0.8), ("grayscale", 0.2), ("blur", 0.1), ("solarize", 0.2)],
)
def test_operations_happen_as_often_as_configured(many: Draws, name: str, probability: float) -> None:
    test = stats.binomtest(int(getattr(many, name).sum()), MANY, probability)
    assert test.pvalue > 1e-4


def test_operations_are_drawn_independently(many: Draws) -> None:
    columns = [many.flip, many.jitter, many.grayscale, many.blur, many.solarize, many.sigma, *many.corner.T]
    columns += [*many.factors.T, *many.area[:, :2].T, *many.ratio[:, :2].T]
    correlation = np.corrcoef(torch.stack([c.double() for c in columns]).numpy())
    assert np.abs(correlation - np.eye(len(columns))).max() < 4.5 / math.sqrt(MANY)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_probabilities_of_none_and_all_are_exact(probability: float) -> None:
    config = AugmentConfig(flip=probability, jitter=probability, grayscale=probability)
    rows = draws(2000, config, ViewConfig(blur=probability, solarize=probability))
    for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
        assert getattr(rows, name).double().mean() == probability


@pytest.mark.parametrize(
    ("index", "low", "high"), [(0, 0.6, 1.4), (1, 0.6, 1.4), (2, 0.8, 1.2), (3, -0.1, 0.1)]
)
def test_jitter_factors_are_uniform_in_their_ranges(many: Draws, index: int, low: float, high: float) -> None:
    test = stats.kstest(many.factors[:, index].numpy(), "uniform", (low, high - low))
    assert test.pvalue > 1e-4


def test_sigma_is_uniform_in_its_range(many: Draws) -> None:
    assert stats.kstest(many.sigma.numpy(), "uniform", (0.1, 1.9)).pvalue > 1e-4


def test_candidate_areas_are_uniform_and_ratios_log_uniform(many: Draws) -> None:
    assert stats.kstest(many.area.flatten().numpy(), "uniform", (0.08, 0.92)).pvalue > 1e-4
    logs = many.ratio.flatten().log().numpy()
    assert stats.kstest(logs, "uniform", (math.log(0.75), math.log(16 / 9))).pvalue > 1e-4


def test_all_orders_of_the_jitter_are_equally_likely(many: Draws) -> None:
    assert torch.equal(many.order.sort(dim=1).values, torch.arange(4).expand(MANY, 4))
    _, counts = many.order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (40, 16), (60, 224)])
def test_crops_are_distributed_as_torchvisions(many: Draws, height: int, width: int) -> None:
    ours = crop_boxes(many, height, width, RECIPE.crop_ratio).numpy()
    assert (ours[:, 0] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] >= 0).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    assert (ours[:, 2:] > 0).all()
    image = torch.empty(1, height, width)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    theirs = [
        T.RandomResizedCrop.get_params(image, list(RECIPE.crop_scale), list(RECIPE.crop_ratio))
        for _ in range(3000)
    ]
    torch.set_rng_state(state)
    for mine, other in zip(ours.T, np.array(theirs).T, strict=True):
        values, flat = np.unique(np.concatenate([mine, other]), return_inverse=True)
        table = np.stack([np.bincount(f, minlength=len(values)) for f in (flat[:MANY], flat[MANY:])])
        common = table[:, table[1] + table[0] * 3000 / MANY >= 20]
        if common.shape[1] > 1:
            assert stats.chi2_contingency(common).pvalue > 1e-4
        assert abs(mine.mean() - other.mean()) <= 4.5 * mine.std() / math.sqrt(3000) + 1e-12


@pytest.mark.parametrize(("height", "width", "box"), [(10, 40, (0, 13, 10, 13)), (40, 10, (13, 0, 13, 10))])
def test_a_crop_that_never_fits_falls_back_to_the_centre(
    height: int, width: int, box: tuple[int, ...]
) -> None:
    config = AugmentConfig(crop_scale=(1.0, 1.0))
    boxes = crop_boxes(draws(5, config), height, width, config.crop_ratio)
    expected = T.RandomResizedCrop.get_params(torch.empty(1, height, width), [1.0, 1.0], [0.75, 4 / 3])
    assert boxes.tolist() == [list(box)] * 5 == [list(expected)] * 5


def test_a_row_of_draws_is_the_same_in_a_batch_of_any_size() -> None:
    few, more = draws(7), draws(300)
    for name in Draws.__dataclass_fields__:
        assert torch.equal(getattr(few, name), getattr(more, name)[:7])
        assert torch.equal(getattr(more[2:5], name), getattr(few[2:5], name))
    assert (len(few), len(more[10:30])) == (7, 20)


def test_different_streams_give_different_draws() -> None:
    assert not torch.equal(draws(5).factors, draws(5, seed=1).factors)


def test_the_views_differ_in_blur_and_solarize_alone() -> None:
    config = AugmentConfig()
    one, two = (draws(MANY, config, view) for view in (config.view1, config.view2))
    assert one.blur.all()
    assert not one.solarize.any()
    assert 0.08 < two.blur.double().mean() < 0.12
    assert 0.18 < two.solarize.double().mean() < 0.22


# --- evaluation -----------------------------------------------------------------------------------


def test_normalise_equals_torchvisions() -> None:
    images = photos()
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    expected = V.normalize(V.to_dtype(images, torch.float64, scale=True), mean, std)
    torch.testing.assert_close(normalise(images, mean, std, torch.float64), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        normalise(images, mean, std, torch.float32), expected.float(), rtol=0, atol=2e-6
    )
    torch.testing.assert_close(
        normalise(images.double() / 255, mean, std, torch.float64), expected, rtol=0, atol=1e-12
    )


def test_small_images_are_resized_as_pil_does() -> None:
    images = photos(n=6, height=32, width=32)
    assert evaluation_images(images, 32) is images
    for size in (16, 48):
        for image, result in zip(images, evaluation_images(images, size), strict=True):
            pil = V.to_pil_image(image).resize((size, size), Image.Resampling.BICUBIC)
            assert (V.pil_to_tensor(pil).int() - result.int()).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(90, 120), (300, 90), (50, 50)])
def test_photographs_are_resized_and_cropped_as_the_reference_does_with_pil(height: int, width: int) -> None:
    image = photos(n=1, height=height, width=width)[0]
    reference = T.Compose([T.Resize(64), T.CenterCrop(56)])(V.to_pil_image(image))
    ours = evaluation_photo(image, 56)
    assert ours.shape == (3, 56, 56)
    assert (V.pil_to_tensor(reference).int() - ours.int()).abs().max() <= 1


def test_per_image_views_are_those_of_the_v2_pipeline_in_distribution() -> None:
    """Moments of many views of one image, ours against v2's transforms with the recipe's arguments."""
    image = photos(n=1, height=16, width=16)[0]
    config = AugmentConfig()
    view = ViewConfig(blur=0.5, solarize=0.2)
    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop(16, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], 0.5),
            v2.RandomSolarize(128, 0.2),
        ]
    )
    n = 600
    state = torch.get_rng_state()
    torch.manual_seed(0)
    theirs = torch.stack([pipeline(image) for _ in range(n)]).double()
    torch.set_rng_state(state)
    augment = PerImageAugment(config, 16)
    ours = torch.stack([augment(image, generator(i, "augment"), view) for i in range(n)]).double()

    def summaries(x: Tensor) -> list[np.ndarray]:
        across = (x[..., 1:] - x[..., :-1]).abs().mean(dim=(1, 2, 3))
        return [
            s.numpy() for s in (x.mean(dim=(1, 2, 3)), x.std(dim=(1, 2, 3)), across, x[:, 0].mean(dim=(1, 2)))
        ]

    for mine, other in zip(summaries(ours), summaries(theirs), strict=True):
        assert stats.ks_2samp(mine, other).pvalue > 1e-4
