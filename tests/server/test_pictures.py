"""Pictures for the browser: all levels, at the image's own size, reduced only if it is very large."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from dicom_files import dicom
from PIL import Image

from pneumoscope.images.read import ImageBytes, Reading, read_radiograph
from pneumoscope.inference.features import Extract
from pneumoscope.server.inference.pictures import render_picture


def render(content: bytes, reading: Reading = Reading(), min_side: int | None = None) -> tuple[Any, dict[str, Any]]:
    """The levels of the picture of a file, and its facts."""
    found, image = read_radiograph(content, reading=reading, min_side=min_side), ImageBytes(content, reading=reading)
    extract = Extract(image, pixels=found.pixels, display=found.display, size=found.size, format=found.format)
    picture = Image.open(io.BytesIO(render_picture(extract, image)))
    return np.asarray(picture, int), json.loads(picture.info["pneumoscope"])


def test_levels_are_those_of_the_file_whatever_its_window() -> None:
    levels = np.random.default_rng(0).integers(0, 4096, (40, 50)).astype(np.uint16)
    shown, facts = render(dicom(levels, WindowCenter=100, WindowWidth=50, RescaleSlope=2, RescaleIntercept=-5, KVP=110))
    assert (shown == levels).all()
    assert (facts["slope"], facts["intercept"], facts["kvp"]) == (2, -5, 110)
    assert facts["windows"] == [{"centre": 100, "width": 50, "name": ""}]
    assert facts["start"] == "full"  # it would hide nearly all
    assert facts["full"] == [2 * int(levels.min()) - 5, 2 * int(levels.max()) - 5]


def test_signed_levels_begin_at_their_lowest() -> None:
    levels = np.linspace(-500, 500, 600).astype(np.int16).reshape(20, 30)
    shown, facts = render(dicom(levels, bits=12, PixelRepresentation=1))
    assert (shown + facts["lowest"] == levels).all()


def test_an_image_in_colour_and_one_with_a_palette_have_levels_without_windows() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    shown, facts = render(dicom(colours, bits=8, WindowCenter=100, WindowWidth=50))
    assert shown.shape == (16, 16)
    assert "windows" not in facts


def test_a_jpeg_that_is_classified_at_a_reduced_scale_is_shown_at_its_own_size() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 2))).save(stream, "JPEG", quality=95)
    assert read_radiograph(stream.getvalue(), min_side=64).pixels.shape == (64, 128)
    shown, _ = render(stream.getvalue(), min_side=64)
    assert shown.shape == (256, 512)


def test_inverted_images_keep_the_values_of_their_file() -> None:
    grey = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "PNG")
    shown, facts = render(stream.getvalue(), Reading(invert=True))
    assert (shown == grey).all()
    assert facts["inverted"]


def test_a_very_large_image_is_reduced_by_a_whole_factor() -> None:
    levels = np.zeros((3001, 4001), np.uint16)
    levels[:2, :2] = [[1000, 2000], [3000, 4000]]
    levels[-1, -1] = 700
    shown, facts = render(dicom(levels, PixelSpacing=[0.1, 0.1]))
    assert shown.shape == (1501, 2001)
    assert facts["reduced"] == 2
    assert (shown[0, 0], shown[-1, -1]) == (2500, 700)
    assert facts["spacing"] == {"rows": 0.1, "columns": 0.1, "plane": "unknown"}  # of the file's own pixels


def test_damaged_facts_for_display_do_no_harm() -> None:
    levels = np.linspace(0, 4095, 600).astype(np.uint16).reshape(20, 30)
    elements: dict[str, Any] = {
        "PixelSpacing": [0, 0.1],
        "ImagerPixelSpacing": [0.1, 50.0],
        "KVP": -3,
        "PatientOrientation": ["X", "Q"],
    }
    _, facts = render(dicom(levels, WindowCenter=[10, 20], WindowWidth=[0, 5], **elements))
    assert (facts["spacing"], facts["kvp"], facts["orientation"], facts["aspect"]) == (None, None, None, 1)
    assert facts["windows"] == [{"centre": 20, "width": 5, "name": ""}]
