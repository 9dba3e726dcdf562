"""Warnings of images that are probably inverted, burnt out or faint, and of windows that hide most of them."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from dicom_files import dicom, look_up
from PIL import Image
from pydicom.sequence import Sequence

from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.images.dicom import read_dicom
from pneumoscope.images.read import Reading, read_radiograph

CHEST = draw_phantom(3, pneumonia=True, size=128).pixels
LEVELS = np.rint(1000 + 2000 * CHEST).astype(np.uint16)


def png(pixels: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("seed", range(6))
def test_an_inverted_image_has_a_warning_until_it_is_read_inverted(seed: int) -> None:
    pixels = draw_phantom(seed, pneumonia=bool(seed % 2), size=128).pixels
    assert read_radiograph(png(pixels)).warnings == ()
    (warning,) = read_radiograph(png(1 - pixels)).warnings
    assert warning == "probably inverted (air is bright); if so, read it with `invert=True`"
    assert read_radiograph(png(1 - pixels), reading=Reading(invert=True)).warnings == ()
    assert len(read_radiograph(dicom(LEVELS, PhotometricInterpretation="MONOCHROME1")).warnings) == 1


@pytest.mark.parametrize("kind", ["turned", "noise", "ramp", "photograph", "two dark ellipses"])
def test_what_is_no_upright_chest_is_not_called_inverted(kind: str) -> None:
    y, x = np.mgrid[:128, :128] / 127
    pictures = {
        "turned": np.rot90(CHEST),
        "noise": np.random.default_rng(0).random((128, 128)),
        "ramp": 0.2 + 0.6 * x,
        "two dark ellipses": 0.8 - 0.6 * np.exp(-(((np.abs(x - 0.5) - 0.22) / 0.1) ** 2) - ((y - 0.5) / 0.25) ** 2),
        "photograph": 0.5 + 0.4 * np.sin(9 * x) * np.cos(7 * y),
    }
    assert read_radiograph(png(pictures[kind])).warnings == ()


def test_burnt_out_and_faint_images_have_a_warning() -> None:
    (burnt,) = read_radiograph(png(CHEST * 2.5)).warnings
    assert burnt.startswith("burnt out: ")
    (faint,) = read_radiograph(png(0.4 + 0.05 * CHEST)).warnings
    assert faint.startswith("hardly any contrast: grey levels 0.4")
    (blank,) = read_radiograph(png(np.zeros((64, 64)))).warnings
    assert blank == "hardly any contrast: grey levels 0.00 to 0.00"


@pytest.mark.parametrize("mode", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("centre", "width", "function", "fault"),
    [
        (1300, 100, "LINEAR", "makes"), (2900, 60, "LINEAR", "makes"), (5000, 100, "LINEAR_EXACT", "makes"),
        (0, 30, "SIGMOID", "makes"), (30000, 60000, "LINEAR", "leaves"), (2000, 2200, "LINEAR", ""),
        (2000, 4000, "LINEAR", ""), (1900, 1400, "LINEAR", ""), (2000, 900, "SIGMOID", ""),
    ],
)  # fmt: skip
def test_a_window_that_hides_most_of_the_image_is_replaced_by_the_full_range(
    centre: int, width: int, function: str, fault: str, mode: str
) -> None:
    plain: dict[str, Any] = {"PhotometricInterpretation": mode}
    window: dict[str, Any] = {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}
    found, full = read_dicom(dicom(LEVELS, **plain, **window), "image"), read_dicom(dicom(LEVELS, **plain), "image")
    assert np.array_equal(found.pixels, full.pixels) == bool(fault)
    if not fault:
        assert found.warnings == ()
    else:
        (warning,) = found.warnings
        assert warning.startswith(f"the window of the file {fault} ")
        assert warning.endswith(", so the full range of grey levels was used")


@pytest.mark.parametrize("mode", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("share", [0.2, 0.3, 0.4, 0.48])
@pytest.mark.parametrize("kind", ["window", "VOI LUT"])
def test_a_window_that_saturates_a_quarter_to_a_half_of_the_image_is_used_with_a_warning(
    share: float, kind: str, mode: str
) -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    shown = np.clip((np.arange(4096) - 2048) / (4096 * (1 - share)) + 0.5, 0, 1)
    how: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 4096 * (1 - share), "VOILUTFunction": "LINEAR_EXACT"}
    if kind == "VOI LUT":
        how = {"VOILUTSequence": Sequence([look_up(np.rint(shown * 4095), 0, 12)])}
    found = read_dicom(dicom(ramp, PhotometricInterpretation=mode, **how), "image")
    right = shown if mode == "MONOCHROME2" else 1 - shown
    np.testing.assert_allclose(found.pixels.reshape(-1), right, atol=1 / 4095)
    if share < 0.25:
        assert found.warnings == ()
    else:
        (warning,) = found.warnings
        assert re.fullmatch(rf"the {kind} of the file saturates {share:.0%} of the image; it was used", warning)


def test_a_look_up_table_may_hide_the_image_too() -> None:
    table = look_up(np.where(np.arange(4096) < 3900, 0, 4095), 0, 12)
    found = read_dicom(dicom(LEVELS, VOILUTSequence=Sequence([table])), "image")
    np.testing.assert_array_equal(found.pixels, read_dicom(dicom(LEVELS), "image").pixels)
    assert found.warnings[0].startswith("the VOI LUT of the file makes 100% of the image black or white")


def test_black_borders_and_padding_do_not_count() -> None:
    framed = np.zeros((256, 256), np.uint16)
    framed[64 : 64 + LEVELS.shape[0], 64 : 64 + LEVELS.shape[1]] = LEVELS
    window: dict[str, Any] = {"WindowCenter": 2000, "WindowWidth": 2400}
    assert read_dicom(dicom(framed, **window), "image").warnings == ()
    padded = {**window, "PixelPaddingValue": 0}
    np.testing.assert_array_equal(
        read_dicom(dicom(framed, **padded), "image").pixels, read_dicom(dicom(framed, **window), "image").pixels
    )
