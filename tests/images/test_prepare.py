"""Preparing: the published geometry for `crop`, the whole image for `pad`, and always the same result."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from pneumoscope.errors import DataError
from pneumoscope.images.prepare import InputSpec, Pixels, find_box, fit, prepare
from pneumoscope.images.read import read_pixels

Fit = Literal["crop", "pad", "squash"]
FITS: tuple[Fit, ...] = ("crop", "pad", "squash")
PLAIN = InputSpec(mean=(0, 0, 0), std=(1, 1, 1))
sizes = st.integers(32, 260)
sides = st.integers(1, 300)
seeds = st.integers(0, 2**32 - 1)


def image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise, the hardest thing to resize alike."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def pixels_of(levels: NDArray[np.uint8]) -> Pixels:
    return levels.astype(np.float32) / np.float32(255)


def on_grey_levels(levels: NDArray[np.uint8], spec: InputSpec) -> Pixels:
    """The published pipeline on an image of 8 bits, which rounds after each of two passes."""
    published = transforms.Compose(
        [
            transforms.Grayscale(3),
            transforms.Resize(spec.size),
            transforms.CenterCrop(spec.size),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    return np.asarray(published(Image.fromarray(levels)))


def on_real_numbers(pixels: Pixels, spec: InputSpec) -> Pixels:
    """The same on an image of floats, which rounds nothing, so that only the geometry can differ."""
    way = {"bilinear": transforms.InterpolationMode.BILINEAR, "bicubic": transforms.InterpolationMode.BICUBIC}
    published = transforms.Compose(
        [transforms.Resize(spec.size, way[spec.interpolation]), transforms.CenterCrop(spec.size)]
    )
    return np.asarray(published(Image.fromarray(pixels)))


# As published


@settings(max_examples=100, deadline=None)
@given(height=sides, width=sides, size=sizes, interpolation=st.sampled_from(["bilinear", "bicubic"]), seed=seeds)
@example(height=1, width=500, size=64, interpolation="bilinear", seed=0)
@example(height=3000, width=2, size=33, interpolation="bicubic", seed=0)
@example(height=229, width=224, size=224, interpolation="bilinear", seed=0)  # odd differences: rounds half to even
@example(height=227, width=224, size=224, interpolation="bilinear", seed=0)
@example(height=225, width=226, size=33, interpolation="bilinear", seed=0)
def test_crop_cuts_and_samples_where_torchvision_does(
    height: int, width: int, size: int, interpolation: Literal["bilinear", "bicubic"], seed: int
) -> None:
    spec = InputSpec(size=size, interpolation=interpolation)
    pixels = pixels_of(image(height, width, seed))
    np.testing.assert_allclose(fit(pixels, spec), np.clip(on_real_numbers(pixels, spec), 0, 1), atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(40, 400), width=st.integers(40, 400), size=sizes, seed=seeds)
def test_crop_gives_what_was_published_up_to_its_rounding(height: int, width: int, size: int, seed: int) -> None:
    spec = replace(PLAIN, size=size)
    levels = image(height, width, seed)
    np.testing.assert_allclose(prepare(pixels_of(levels), spec), on_grey_levels(levels, spec), atol=1.5 / 255)


@settings(max_examples=40, deadline=None)
@given(long=st.integers(64, 700), upright=st.booleans(), seed=seeds)
def test_where_nothing_is_resized_the_crop_is_torchvisions_to_the_bit(long: int, upright: bool, seed: int) -> None:
    shape = (long, 64) if upright else (64, long)
    spec = replace(PLAIN, size=64)
    levels = image(*shape, seed)
    np.testing.assert_array_equal(prepare(pixels_of(levels), spec), on_grey_levels(levels, spec))


@pytest.mark.parametrize("fit", FITS)
def test_a_square_image_of_the_right_size_is_only_normalised(fit: Fit) -> None:
    levels = image(224, 224)
    np.testing.assert_array_equal(prepare(pixels_of(levels), InputSpec(fit=fit)), on_grey_levels(levels, InputSpec()))


def test_real_radiographs_are_prepared_as_published(real_data: Path) -> None:
    paths = sorted((real_data / "seed-400" / "test").rglob("*.jpeg"))[::10]
    assert paths
    for path in paths:
        with Image.open(path) as picture:
            levels = np.asarray(picture.convert("L"))
        for size, tolerance in ((levels.shape[0], 0.0), (160, 1.5 / 255), (256, 1.5 / 255)):
            spec = replace(PLAIN, size=size)
            np.testing.assert_allclose(
                prepare(read_pixels(path), spec), on_grey_levels(levels, spec), rtol=0, atol=tolerance
            )


# Whole images


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, size=sizes)
def test_pad_keeps_the_whole_image_and_its_aspect_in_the_middle_of_black(height: int, width: int, size: int) -> None:
    square = fit(np.ones((height, width), np.float32), InputSpec(size=size, fit="pad"))
    rows, columns = np.flatnonzero(square.any(axis=1)), np.flatnonzero(square.any(axis=0))
    shown = (len(rows), len(columns))
    np.testing.assert_allclose(square[np.ix_(rows, columns)], 1, atol=1e-6)  # one white box
    assert max(shown) == size
    for side, whole, indices in zip(shown, (height, width), (rows, columns), strict=True):
        assert abs(side - max(1, size * whole / max(height, width))) <= 0.5
        assert abs(indices[0] - (size - 1 - indices[-1])) <= 1


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (40, 400), (50, 64)])
@pytest.mark.parametrize("fit_", ["pad", "squash"])
def test_pad_and_squash_lose_no_corner(shape: tuple[int, int], fit_: Fit) -> None:
    height, width = shape
    whole = np.zeros(shape, np.float32)
    for row in (slice(None, height // 8), slice(-(height // 8), None)):
        for column in (slice(None, width // 8), slice(-(width // 8), None)):
            whole[row, column] = 1
    square = fit(whole, InputSpec(size=128, fit=fit_))
    lit = square > 0.5
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    for row in (rows[0], rows[-1]):
        for column in (columns[0], columns[-1]):
            assert lit[row, column]
    assert square.mean() == pytest.approx(whole.mean() * (min(shape) / max(shape) if fit_ == "pad" else 1), abs=0.01)
    assert (columns[0], columns[-1]) == (0, 127) or fit_ == "pad"
    assert (rows[0], rows[-1]) == (0, 127) or fit_ == "pad"


def test_crop_keeps_the_middle_of_the_long_side() -> None:
    strip = np.zeros((100, 300), np.float32)
    strip[:, 140:160] = 1
    for turned in (strip, strip.T):
        square = fit(turned, InputSpec(size=100))
        np.testing.assert_array_equal(square if turned is strip else square.T, strip[:, 100:200])


# Every input


@settings(max_examples=80, deadline=None)
@given(
    height=sides,
    width=sides,
    size=sizes,
    fit=st.sampled_from(FITS),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    seed=seeds,
)
@example(height=1, width=500, size=224, fit="pad", interpolation="bicubic", seed=0)
@example(height=3000, width=2, size=224, fit="squash", interpolation="bicubic", seed=0)
@example(height=1, width=1, size=32, fit="crop", interpolation="bicubic", seed=0)
def test_input_is_as_promised_and_the_same_each_time(
    height: int, width: int, size: int, fit: Fit, interpolation: Literal["bilinear", "bicubic"], seed: int
) -> None:
    spec = InputSpec(size, fit, interpolation, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    pixels = pixels_of(image(height, width, seed))
    before = pixels.copy()
    first = prepare(pixels, spec)
    assert first.shape == (3, size, size)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, prepare(pixels, spec))
    np.testing.assert_array_equal(pixels, before)
    grey = np.stack([channel * std + mean for channel, mean, std in zip(first, spec.mean, spec.std, strict=True)])
    assert grey.min() >= -1e-6
    assert grey.max() <= 1 + 1e-6
    np.testing.assert_allclose(grey, np.broadcast_to(grey[0], grey.shape), atol=1e-6)


def test_normalisation_subtracts_the_mean_and_divides_by_the_deviation() -> None:
    spec = InputSpec(size=32, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    for level, expected in ((0.0, (-1, -1, 0)), (0.5, (0, 1, 0.25)), (1.0, (1, 3, 0.5))):
        given_ = prepare(np.full((40, 50), level, np.float32), spec)
        np.testing.assert_allclose(given_, np.broadcast_to(np.reshape(expected, (3, 1, 1)), (3, 32, 32)), atol=1e-6)


def test_a_fine_pattern_becomes_its_mean_not_an_alias() -> None:
    board = (np.indices((512, 512)).sum(axis=0) % 2).astype(np.float32)
    for fit_ in FITS:
        shrunk = fit(board, InputSpec(size=64, fit=fit_))
        np.testing.assert_allclose(shrunk[4:-4, 4:-4], 0.5, atol=0.01)


def test_the_fitted_image_is_augmented_before_normalisation() -> None:
    spec = InputSpec(size=48)
    pixels = pixels_of(image(60, 90))

    def mirrored(fitted: Pixels) -> Pixels:
        assert fitted.shape == (48, 48)
        assert 0 <= fitted.min() <= fitted.max() <= 1
        return fitted[:, ::-1]

    np.testing.assert_array_equal(prepare(pixels, spec, mirrored), prepare(pixels, spec)[..., ::-1])


@pytest.mark.timeout(60)
def test_a_strip_of_a_million_pixels_takes_little_memory() -> None:
    thread = np.linspace(0, 1, 10_000_000, dtype=np.float32)[None]  # as a whole, 224 x 2,240,000,000
    for pixels in (thread, thread.T):
        np.testing.assert_allclose(fit(pixels, InputSpec()), 0.5, atol=1e-5)


@pytest.mark.parametrize(
    "pixels",
    [
        image(40, 40),
        image(40, 40).astype(np.float32),
        image(40, 40) / 255,
        np.full((40, 40), -0.01, np.float32),
        np.full((40, 40), np.nan, np.float32),
        np.zeros((3, 40, 40), np.float32),
        np.zeros((0, 40), np.float32),
    ],
    ids=["uint8", "0 to 255", "float64", "below 0", "nan", "channels", "empty"],
)
def test_other_kinds_of_pixels_are_refused(pixels: Pixels) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"float32 \(H, W\) in \[0, 1\].* found "):
            prepare(pixels, InputSpec())


# Where the input lies on the image


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(40, 500),
    width=st.integers(40, 500),
    size=sizes,
    fit_=st.sampled_from(FITS),
    down=st.floats(0.1, 0.9),
    across=st.floats(0.1, 0.9),
)
@example(height=229, width=224, size=224, fit_="crop", down=0.5, across=0.5)
@example(height=40, width=500, size=260, fit_="pad", down=0.9, across=0.1)
def test_a_bright_dot_lands_where_the_box_says(
    height: int, width: int, size: int, fit_: Fit, down: float, across: float
) -> None:
    spec = InputSpec(size=size, fit=fit_)
    left, top, right, bottom = find_box((height, width), spec)
    # A dot wide enough to be seen at any scale, where the network sees it whole.
    reach = 3 * max(1, (right - left) / size, (bottom - top) / size)
    low, high = max(0, top) + reach, min(height, bottom) - reach
    first, last = max(0, left) + reach, min(width, right) - reach
    assume(low < high and first < last)
    y, x = low + down * (high - low), first + across * (last - first)
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    pixels = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * (reach / 3) ** 2)).astype(np.float32)
    square = fit(pixels, spec).astype(np.float64)
    middles = np.arange(size) + 0.5
    found = (square.sum(0) @ middles / square.sum(), square.sum(1) @ middles / square.sum())
    expected = ((x - left) / (right - left) * size, (y - top) / (bottom - top) * size)
    assert found == pytest.approx(expected, abs=0.35)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), size=sizes)
def test_a_crop_lies_inside_the_image_and_a_pad_around_it(height: int, width: int, size: int) -> None:
    for fit_ in FITS:
        left, top, right, bottom = find_box((height, width), InputSpec(size=size, fit=fit_))
        if fit_ == "squash":
            assert (left, top, right, bottom) == (0, 0, width, height)
        inside = left >= 0 and top >= 0 and right <= width + 1e-9 and bottom <= height + 1e-9
        around = left <= 0 and top <= 0 and right >= width - 1e-9 and bottom >= height - 1e-9
        assert inside if fit_ == "crop" else around
