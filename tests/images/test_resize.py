"""Results equal Pillow's, from floats and from bytes. Weak and very strong reductions are computed by Pillow itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.images.resize import Interpolation, resize, to_float

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
INTERPOLATIONS = st.sampled_from(sorted(FILTERS))
SIDES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def draw(shape: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@settings(deadline=None)
@given(SIDES, st.floats(1, 12), st.floats(1, 12), INTERPOLATIONS, st.integers(0, 99), st.booleans(), st.data())
def test_images_are_resized_as_by_pillow(
    sides: tuple[int, int], down: float, right: float, interpolation: Interpolation, seed: int, boxed: bool,
    data: st.DataObject,
) -> None:  # fmt: skip
    height, width = (max(1, round(side * by)) for side, by in zip(sides, (down, right), strict=True))
    grey, box = draw((height, width), seed), None
    if boxed:
        left, top = (data.draw(st.floats(0, 0.4)) * side for side in (width, height))
        box = left, top, width - data.draw(st.floats(0, 0.4)) * width, height - data.draw(st.floats(0, 0.4)) * height
    pixels = to_float(grey)
    expected = np.asarray(Image.fromarray(pixels).resize(sides[::-1], FILTERS[interpolation], box))
    resized = resize(grey, sides, interpolation, box)
    assert resized.dtype == np.float32
    assert resized.flags.c_contiguous
    np.testing.assert_allclose(resized, expected.clip(0, 1), rtol=0, atol=5e-5)  # Pillow rounds the box to float32
    np.testing.assert_array_equal(resize(pixels, sides, interpolation, box), resized)


@pytest.mark.parametrize("shape", [(1500, 2000), (30_000, 900), (900, 30_000), (2048, 2048)])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_large_images_and_long_strips_are_resized_as_by_pillow(
    interpolation: Interpolation, shape: tuple[int, int]
) -> None:
    grey = draw(shape, seed=1)
    expected = np.asarray(Image.fromarray(to_float(grey)).resize((224, 224), FILTERS[interpolation]))
    np.testing.assert_allclose(resize(grey, (224, 224), interpolation), expected.clip(0, 1), rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("shape", "box", "by_pillow"),
    [
        ((800, 800), None, True),
        ((900, 900), None, False),
        ((1500, 2000), None, False),
        ((900, 30_000), (14_550, 0, 15_450, 900), False),  # the centre that `crop` keeps
        ((7168, 7168), None, False),
        ((30_000, 900), None, True),
        ((100_800, 256), None, True),
    ],
)
def test_reductions_by_4_to_32_need_no_pillow(
    shape: tuple[int, int], box: tuple[int, int, int, int] | None, by_pillow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey, called = draw(shape, seed=3), []
    expected = np.asarray(Image.fromarray(to_float(grey)).resize((224, 224), FILTERS["bicubic"], box))
    plain = Image.Image.resize

    def watch(*given: Any) -> Image.Image:
        called.append(given)
        return plain(*given)

    monkeypatch.setattr(Image.Image, "resize", watch)
    np.testing.assert_allclose(resize(grey, (224, 224), "bicubic", box), expected.clip(0, 1), rtol=0, atol=5e-6)
    assert bool(called) == by_pillow


@pytest.mark.parametrize("interpolation", FILTERS)
def test_products_are_too_small_for_threads(interpolation: Interpolation, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, plain = [], np.matmul

    def multiply(a: NDArray[np.float32], b: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        sizes.append(a.size * b.shape[1])
        plain(a, b, out=out)

    monkeypatch.setattr(np, "matmul", multiply)
    for by in (4, 10, 32):
        resize(draw((64 * by, 70 * by), seed=4), (64, 70), interpolation)
    assert 0 < max(sizes) <= 2**18


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    grey = draw((224, 224), seed=2)
    np.testing.assert_array_equal(resize(grey, (224, 224), "bicubic"), grey / np.float32(255))
    assert resize(to_float(grey), (224, 224), "bicubic").dtype == np.float32


def test_a_flat_image_stays_flat() -> None:
    for level in (0, 1, 77, 255):
        flat = np.full((999, 1700), level, np.uint8)
        np.testing.assert_allclose(resize(flat, (32, 32), "bicubic"), level / 255, rtol=0, atol=1e-6)
