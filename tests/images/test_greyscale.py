"""Greyscale: what each level becomes. How files say so, and the standard's formulas, are tested with DICOM."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.images.greyscale import LookUp, Transformations, compute_luminance, render

RAMP = np.arange(300 * 301, dtype=np.uint32).reshape(300, 301)  # more pixels than are looked up at once


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_every_pixel_of_a_large_image_is_shown(bits: int) -> None:
    levels = (RAMP % 2**bits).astype(np.uint16)
    np.testing.assert_allclose(render(levels, 0, bits, Transformations()), levels / (2**bits - 1), atol=1e-7)


def test_levels_are_counted_from_the_lowest() -> None:
    window = Transformations(window=(0, 256))
    shown = render(np.array([[0, 128, 255]], np.uint8), -128, 8, window)
    np.testing.assert_allclose(shown, [[0, 128 / 255, 1]], atol=1e-7)


def test_padding_in_a_large_image_does_not_count() -> None:
    levels = np.where(RAMP % 7 == 0, 4095, 1000 + RAMP % 11).astype(np.uint16)
    shown = render(levels, 0, 12, Transformations(padding=(4095, 4095)))
    np.testing.assert_allclose(shown, np.where(RAMP % 7 == 0, 0, RAMP % 11 / 10), atol=1e-6)


def test_an_image_of_padding_alone_is_dark() -> None:
    shown = render(np.full((2, 2), 9, np.uint16), 0, 12, Transformations(padding=(9, 9), inverted=True))
    np.testing.assert_array_equal(shown, np.zeros((2, 2)))


def test_a_table_goes_on_with_its_ends() -> None:
    table = LookUp(first=-2, entries=np.array([10.0, 20.0, 30.0]), bits=8)
    np.testing.assert_array_equal(table(np.array([-9, -2, -1, 0, 9.0])), [10, 10, 20, 30, 30])


def test_colours_weigh_as_they_do_in_pictures() -> None:
    colours = np.eye(3, dtype=np.uint16).reshape(1, 3, 3) * 1023
    np.testing.assert_allclose(compute_luminance(colours, 10), [[0.299, 0.587, 0.114]], atol=1e-6)
    white = compute_luminance(np.full((1, 1, 3), 1023, np.uint16), 10)
    np.testing.assert_allclose(white, [[1]], atol=1e-6)
    assert white.max() <= 1
