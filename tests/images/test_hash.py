"""Hashing: what a hash keeps of an image, and what it does not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.images.hash import SIDE, hash_pixels, project_hashes
from pneumoscope.images.prepare import Pixels

WHOLE = np.array([[0.0, 1.0, 0.0, 1.0]])


def scene(height: int, width: int, seed: int = 0) -> Pixels:
    """A smooth random picture of any size: the same seed is the same scene, sampled more or less finely."""
    amplitude = np.random.default_rng(seed).normal(size=(6, 6))
    down, right = (np.cos(np.pi * np.arange(6)[:, None] * (np.arange(side) + 0.5) / side) for side in (height, width))
    picture = down.T @ amplitude @ right
    return np.asarray((picture - picture.min()) / np.ptp(picture), np.float32)


def compare(first: Pixels, second: Pixels, window: np.ndarray = WHOLE, frequencies: int = 16) -> float:
    described = (project_hashes(h[None], w, frequencies)[0] for h, w in ((first, WHOLE), (second, window)))
    return float(np.dot(*described))


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 900), width=st.integers(1, 900), seed=st.integers(0, 1000))
def test_a_hash_of_any_image_keeps_its_mean_and_stays_in_range(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).random((height, width), np.float32)
    found = hash_pixels(pixels)
    assert found.shape == (SIDE, SIDE)
    assert found.dtype == np.float32
    assert pixels.min() - 1e-6 <= found.min() <= found.max() <= pixels.max() + 1e-6
    if min(height, width) > 2 * SIDE:
        assert found.mean() == pytest.approx(pixels.mean(), abs=0.01)


@pytest.mark.parametrize("size", [(96, 96), (300, 200), (2500, 3000), (61, 3000)])
def test_the_hash_does_not_depend_on_the_images_size(size: tuple[int, int]) -> None:
    for seed in range(3):
        assert np.abs(hash_pixels(scene(*size, seed)) - hash_pixels(scene(480, 480, seed))).max() < 0.03


def test_a_hash_is_of_the_pixels_however_they_lie_in_memory() -> None:
    pixels = scene(200, 300)
    assert np.array_equal(hash_pixels(pixels[:, ::-1]), hash_pixels(pixels[:, ::-1].copy()))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), gain=st.floats(0.3, 1), shift=st.floats(0, 1))
def test_brightness_and_contrast_change_no_description(seed: int, gain: float, shift: float) -> None:
    image = hash_pixels(scene(200, 300, seed))
    changed = (image * gain + shift * (1 - gain)).astype(np.float32)
    assert compare(image, changed) == pytest.approx(1, abs=1e-4)
    assert compare(image, 1 - image) == pytest.approx(-1, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    edges=st.tuples(*[st.integers(0, 12)] * 4).map(lambda e: (e[0], SIDE - e[1], e[2], SIDE - e[3])),
)
def test_a_crop_is_described_like_the_window_that_it_shows(seed: int, edges: tuple[int, int, int, int]) -> None:
    pixels = scene(SIDE * 8, SIDE * 8, seed)
    top, bottom, left, right = (edge * 8 for edge in edges)
    crop = hash_pixels(pixels[top:bottom, left:right])
    assert compare(crop, hash_pixels(pixels), np.array([edges]) / SIDE, 8) > 0.998


def test_a_description_is_a_cosine_transform() -> None:
    from scipy.fft import dctn  # an independent source

    hashes = np.random.default_rng(0).random((3, SIDE, SIDE), np.float32)
    number = np.hypot(*np.mgrid[:8, :8])
    # Integrated over a pixel, a cosine is damped by a known factor of its frequency against its value at the middle.
    damping = np.outer(*[np.sinc(np.arange(8) / (2 * SIDE))] * 2)
    expected = (dctn(hashes, axes=(1, 2), norm="ortho")[:, :8, :8] * damping * number)[:, (number > 0) & (number < 8)]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(project_hashes(hashes, WHOLE, 8), expected, atol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.4])
def test_padding_that_was_saved_as_jpeg_is_left_out(level: float) -> None:
    image = scene(200, 300) * np.float32(0.9) + np.float32(0.05)
    padded = np.pad(image, ((50, 50), (20, 20)), constant_values=level)
    padded += np.where(padded == level, np.random.default_rng(0).random(padded.shape, np.float32) * 0.02, 0)
    assert np.allclose(hash_pixels(padded), hash_pixels(image), atol=1e-6)


def test_a_plain_margin_on_one_side_is_part_of_the_image() -> None:
    image = scene(200, 300)
    image[:, :100] = 0
    assert hash_pixels(image)[:, :15].max() == 0


def test_a_blank_image_has_an_empty_description() -> None:
    assert not project_hashes(np.full((1, SIDE, SIDE), 0.7, np.float32), WHOLE, 16).any()
