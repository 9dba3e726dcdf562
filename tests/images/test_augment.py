"""Augmenting: random changes that keep an image valid, depend on the seed alone, and stay within their amounts."""

from __future__ import annotations

import io
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.images.augment import Augmentation, augment
from pneumoscope.images.prepare import Pixels

EVERYTHING = Augmentation(
    rotate=15,
    shift=0.1,
    zoom=0.2,
    stretch=0.3,
    brightness=0.3,
    contrast=0.5,
    gamma=0.7,
    blur=0.9,
    noise=0.1,
    sharpen=1.0,
    compress=0.9,
    crop=0.2,
)
AMOUNTS = [field.name for field in fields(Augmentation) if field.name not in ("flip", "full_crop_from")]
HALF_THE_VIEWS = ("blur", "noise", "sharpen", "compress", "crop")
seeds = st.integers(0, 2**32 - 1)


def image(size: int = 48, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).random((size, size), np.float32)


def change(pixels: Pixels, seed: int = 0, flip: bool = False, **amounts: Any) -> Pixels:
    return augment(pixels, Augmentation(**amounts), np.random.default_rng(seed), flip)


def dot(row: float, column: float, size: int = 101) -> Pixels:
    """A soft bright spot."""
    rows, columns = np.indices((size, size))
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 18).astype(np.float32)


def centre(pixels: Pixels) -> NDArray[np.float64]:
    """Row and column of what is bright, from the middle."""
    rows, columns = np.indices(pixels.shape) - (pixels.shape[0] - 1) / 2
    return np.array([np.average(rows, weights=pixels), np.average(columns, weights=pixels)])


@settings(deadline=None)
@given(seed=seeds)
def test_without_amounts_the_image_is_unchanged_and_a_flip_mirrors_it(seed: int) -> None:
    pixels = image(seed=seed)
    np.testing.assert_array_equal(change(pixels, seed), pixels)
    np.testing.assert_array_equal(change(pixels, seed, flip=True), pixels[:, ::-1])


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(32, 65),
    seed=seeds,
    flip=st.booleans(),
    amounts=st.fixed_dictionaries(
        {
            "rotate": st.floats(0, 180),
            "shift": st.floats(0, 1),
            "zoom": st.floats(0, 0.99),
            "stretch": st.floats(0, 1),
            "blur": st.floats(0, 0.99),
            "noise": st.floats(0, 1),
            "sharpen": st.floats(0, 3),
            "compress": st.floats(0, 0.99),
            "crop": st.floats(0, 0.49),
            "brightness": st.floats(0, 1),
            "contrast": st.floats(0, 0.99),
            "gamma": st.floats(0, 3),
        }
    ),
)
def test_the_result_has_the_same_shape_and_range_and_depends_on_the_seed_alone(
    size: int, seed: int, flip: bool, amounts: dict[str, float]
) -> None:
    pixels = image(size, seed)
    before = pixels.copy()
    seen = change(pixels, seed, flip, **amounts)
    assert seen.shape == pixels.shape
    assert seen.dtype == np.float32
    assert 0 <= seen.min() <= seen.max() <= 1
    np.testing.assert_array_equal(seen, change(pixels, seed, flip, **amounts))
    np.testing.assert_array_equal(pixels, before)


def test_seeds_give_different_results_and_a_flip_mirrors_the_same_result() -> None:
    pixels = image()
    amounts = {name: getattr(EVERYTHING, name) for name in AMOUNTS}
    assert len({change(pixels, seed, **amounts).tobytes() for seed in range(20)}) == 20
    np.testing.assert_array_equal(change(pixels, 7, True, **amounts), change(pixels, 7, False, **amounts)[:, ::-1])


@pytest.mark.parametrize("amount", AMOUNTS)
def test_each_amount_changes_the_image_but_not_the_draws_of_the_others(amount: str) -> None:
    pixels = image()
    value = getattr(EVERYTHING, amount)
    changes = [np.abs(change(pixels, seed, **{amount: value}) - pixels).max() for seed in range(12)]
    assert max(changes) > 0.01
    assert min(changes) > 0 or amount in HALF_THE_VIEWS
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    augment(pixels, Augmentation(), one, False)
    augment(pixels, Augmentation(**{amount: value}), other, False)
    assert one.random() == other.random()  # as many draws, whatever the amounts


@settings(max_examples=30, deadline=None)
@given(seed=seeds, row=st.floats(-12, 12), column=st.floats(-12, 12))
def test_a_shift_moves_everything_alike_within_its_share(seed: int, row: float, column: float) -> None:
    moved = [centre(change(dot(50 + r, 50 + c), seed, shift=0.1)) - (r, c) for r, c in ((0.0, 0.0), (row, column))]
    np.testing.assert_allclose(moved[0], moved[1], atol=0.1)
    assert np.abs(moved[0]).max() <= 10.2


def test_shifts_go_in_all_directions() -> None:
    moved = np.array([centre(change(dot(50, 50), seed, shift=0.1)) for seed in range(60)])
    assert (moved.min(axis=0) < -5).all()
    assert (moved.max(axis=0) > 5).all()
    assert np.abs(moved.mean(axis=0)).max() < 2.5


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_a_rotation_turns_about_the_middle_within_its_degrees(seed: int) -> None:
    np.testing.assert_allclose(centre(change(dot(50, 50), seed, rotate=30)), 0, atol=0.05)
    turned = [centre(change(dot(*place), seed, rotate=30)) for place in ((50, 80), (20, 50))]
    np.testing.assert_allclose([np.hypot(*place) for place in turned], 30, atol=0.3)
    # What was to the right and what was above have turned by the same angle, in the same sense.
    right, above = np.degrees([np.arctan2(-turned[0][0], turned[0][1]), np.arctan2(-turned[1][1], -turned[1][0])])
    assert right == pytest.approx(above, abs=0.5)
    assert abs(right) <= 30.5


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_rotation_and_zoom_combine(seed: int) -> None:
    both, zoomed, turned = (
        np.array([centre(change(dot(*place), seed, **amounts)) for place in ((50, 78), (22, 50))])
        for amounts in ({"rotate": 40, "zoom": 0.2}, {"zoom": 0.2}, {"rotate": 40})
    )
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), np.linalg.norm(zoomed, axis=1), rtol=0.01)
    np.testing.assert_allclose(np.arctan2(*both.T), np.arctan2(*turned.T), atol=0.01)


def test_rotations_go_both_ways() -> None:
    rows = [centre(change(dot(50, 80), seed, rotate=30))[0] for seed in range(60)]
    assert min(rows) < -10
    assert max(rows) > 10


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_a_zoom_scales_every_direction_alike_about_the_middle(seed: int) -> None:
    places = [centre(change(dot(*place), seed, zoom=0.2)) for place in ((50, 70), (50, 30), (70, 50), (30, 50))]
    scales = np.array([places[0][1], -places[1][1], places[2][0], -places[3][0]]) / 20
    np.testing.assert_allclose(scales, scales[0], atol=0.01)
    assert 0.79 <= scales[0] <= 1.21


def test_what_comes_from_outside_is_black() -> None:
    white = np.ones((64, 64), np.float32)
    seen = [change(white, seed, shift=0.3) for seed in range(10)]
    assert all(((pixels == 0) | (pixels == 1)).mean() > 0.95 for pixels in seen)
    assert all(0.4 < pixels.mean() < 1 for pixels in seen)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_grey_levels_keep_their_order_and_their_bounds(seed: int) -> None:
    ramp = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    seen = change(ramp, seed, brightness=0.2, contrast=0.3, gamma=0.5).ravel()
    assert np.diff(seen).min() >= -1e-6
    brighter = change(np.full((32, 32), 0.5, np.float32), seed, brightness=0.2)
    assert abs(float(brighter.mean()) - 0.5) <= 0.2001
    curved = change(ramp, seed, gamma=0.5)
    assert curved[0, 0] == 0
    assert curved[-1, -1] == 1
    np.testing.assert_allclose(np.log(curved[16, 16]) / np.log(ramp[16, 16]), 1, atol=np.exp(0.5) - 1 + 1e-3)
    contrasted = change(0.4 + ramp * 0.2, seed, contrast=0.3)
    assert contrasted.mean() == pytest.approx(0.5, abs=1e-3)
    assert contrasted.std() == pytest.approx(0.2 * ramp.std(), rel=0.3001)


def test_stretching_changes_width_against_height_and_keeps_the_middle() -> None:
    ratios = []
    for seed in range(40):
        seen = change(dot(50, 50), seed, stretch=0.4)
        rows, columns = np.indices(seen.shape) - 50.0
        ratios.append(np.sqrt(np.average(columns**2, weights=seen) / np.average(rows**2, weights=seen)))
        np.testing.assert_allclose(centre(seen), 0, atol=0.6)
    assert np.exp(-0.41) < min(ratios) < 0.85
    assert 1.15 < max(ratios) < np.exp(0.41)


def test_blur_removes_detail_in_half_of_the_draws_and_keeps_the_brightness() -> None:
    pixels = image()
    seen = [change(pixels, seed, blur=0.5) for seed in range(40)]
    changed = [each for each in seen if (each != pixels).any()]
    assert 10 <= len(changed) <= 30
    for each in changed:
        assert each.std() < 0.95 * pixels.std()
        assert each.mean() == pytest.approx(pixels.mean(), abs=0.02)
    assert min(each.std() for each in changed) < 0.7 * pixels.std()


def test_sharpening_adds_detail_and_keeps_the_brightness() -> None:
    pixels = 0.3 + 0.4 * image()
    sharp = [change(pixels, seed, sharpen=0.5) for seed in range(20)]
    gains = np.array([seen.std() / pixels.std() for seen in sharp])
    assert (gains >= 1).all()
    assert 1.2 < gains.max() < 1.5
    assert [seen.mean() for seen in sharp] == pytest.approx([pixels.mean()] * 20, abs=0.02)
    flat = np.full((32, 32), 0.5, np.float32)
    np.testing.assert_allclose(change(flat, sharpen=2), flat, atol=1e-6)


def test_compression_is_that_of_jpeg_within_the_range_of_quality() -> None:
    pixels = image()
    files = {}
    for quality in range(20, 101):
        file = io.BytesIO()
        Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
        files[np.asarray(Image.open(file)).tobytes()] = quality
    seen = [change(pixels, seed, compress=0.8) for seed in range(40)]
    changed = [each for each in seen if (each != pixels).any()]
    assert 10 <= len(changed) <= 30
    qualities = [files[np.rint(each * 255).astype(np.uint8).tobytes()] for each in changed]
    assert min(qualities) < 45
    assert max(qualities) > 80


def test_a_crop_cuts_each_edge_and_enlarges_the_rest() -> None:
    rows, columns = np.indices((101, 101), np.float32)
    for seed in range(20):
        across, down = (
            change((ramp / 200 + 0.25).astype(np.float32), seed, crop=0.2) * 200 - 50 for ramp in (columns, rows)
        )
        for edges in (across[50], down[:, 50]):
            assert -0.6 <= edges[1] <= 21.5
            assert 78.5 <= edges[-2] <= 100.6
            assert np.diff(edges[1:-1]).std() < 0.02
        assert across[:, 50].std() < 0.1
    assert len({float(change(image(), seed, crop=0.2).sum()) for seed in range(20)}) == 20
