"""DICOM: images come out as the standard means them to be seen, other objects are refused, damage is named."""

from __future__ import annotations

import io
import logging
import math
import random
import re
import shutil
import struct
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    LOSSLESS,
    LOSSY,
    RLE,
    Levels,
    dicom,
    image,
    look_up,
    written,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence

from pneumoscope.errors import ImageError, MissingExtraError
from pneumoscope.images.dicom import Tags, is_dicom, read_dicom, read_tags
from pneumoscope.images.limits import MAX_PIXELS
from pneumoscope.images.prepare import Pixels

Elements = dict[str, Any]
SOP = "1.2.840.10008.5.1.4.1.1."
CT, MG, SC, SEG, SR = SOP + "2", SOP + "1.2", SOP + "7", SOP + "66.4", SOP + "88.11"
DX, RAW_DX = SOP + "1.1", SOP + "1.1.1"


def pixels(content: bytes, any_modality: bool = False) -> Pixels:
    found = read_dicom(content, "image.dcm", any_modality).pixels
    assert found.dtype == np.float32
    assert found.ndim == 2
    assert found.flags.c_contiguous
    assert 0 <= found.min() <= found.max() <= 1
    return found


def problem(content: bytes, any_modality: bool = False) -> str:
    with pytest.raises(ImageError) as caught:
        read_dicom(content, "image.dcm", any_modality)
    assert str(caught.value).startswith("image.dcm: ")
    return str(caught.value)


def cells(values: list[int], bits: int) -> Levels:
    """One row of pixel cells, in two's complement."""
    return np.asarray(np.array([values]) & (2**bits - 1))


# How an image is shown: against the standard's formulas, one pixel at a time


def shown(value: int, bits: int, image: dict[str, Any], span: tuple[float, float]) -> float:
    """One pixel, word by word from PS3.3 C.11.1.1, C.11.2.1 and C.7.6.3.1.2; `span`: the range without a VOI."""
    first, last = image.get("padding", (1, 0))
    if first <= value <= last:
        return 0.0
    x = modality(value, image)
    if "voi" in image:
        entries, start, depth = image["voi"]
        used = max(8, max(entries).bit_length())  # entries of fewer bits than stated, which is said
        y = entry(entries, start, x) / (2 ** min(depth, used) - 1)
    elif "window" in image:
        centre, width, function = image["window"]
        if function == "SIGMOID":
            steep = -4 * (x - centre) / width
            y = 1 / (1 + math.exp(steep)) if steep < 700 else 0.0
        elif function == "LINEAR_EXACT":
            if x <= centre - width / 2:
                y = 0.0
            elif x > centre + width / 2:
                y = 1.0
            else:
                y = (x - centre) / width + 0.5
        elif x <= centre - 0.5 - (width - 1) / 2:
            y = 0.0
        elif x > centre - 0.5 + (width - 1) / 2:
            y = 1.0
        else:
            y = (x - (centre - 0.5)) / (width - 1) + 0.5
    else:
        y = (x - span[0]) / (span[1] - span[0]) if span[1] > span[0] else 0.0
    return float(1 - y if image["inverted"] else y)


def modality(value: int, image: dict[str, Any]) -> float:
    if "modality" in image:
        entries, start, _ = image["modality"]
        return entry(entries, start, value)
    slope, intercept = image.get("rescale", (1, 0))
    return float(value) * float(slope) + float(intercept)


def entry(entries: list[int], start: int, x: float) -> float:
    """Values before the first entry take it, values beyond the last take that."""
    return float(entries[min(max(round(x) - start, 0), len(entries) - 1)])


@st.composite
def images(draw: st.DrawFn) -> tuple[list[int], int, bool, str, dict[str, Any]]:
    """Stored values, their bits, whether they're signed, a transfer syntax, and how the image is to be shown."""
    bits = draw(st.integers(8, 16))
    signed = draw(st.booleans())
    low = -(2 ** (bits - 1)) if signed else 0
    levels = st.integers(low, low + 2**bits - 1)
    values = draw(st.lists(levels, min_size=1, max_size=12))
    how: dict[str, Any] = {"inverted": draw(st.booleans())}
    kind = draw(st.sampled_from(["none", "rescale", "modality"]))
    start = st.integers(max(low, -(2**15)), min(low + 2**bits, 2**15) - 1)
    if kind == "rescale":
        how["rescale"] = (draw(st.sampled_from([1, 2, 0.5, -1, -0.25])), draw(st.sampled_from([0, 7, -1024, 100.5])))
    if kind == "modality":
        depth = draw(st.sampled_from([8, 12, 16]))
        how["modality"] = (draw(st.lists(st.integers(0, 2**depth - 1), min_size=2, max_size=9)), draw(start), depth)
    voi = draw(st.sampled_from(["none", "window", "voi"]))
    if voi == "window":
        function = draw(st.sampled_from(["", "LINEAR", "LINEAR_EXACT", "SIGMOID"]))
        width = draw(st.integers(1, 2**bits)) if function in ("", "LINEAR") else draw(st.sampled_from([0.5, 3.25, 900]))
        how["window"] = (draw(st.integers(low, low + 2**bits)), width, function)
    # Half-way values are looked up on one side or the other: the standard doesn't say which.
    if voi == "voi" and how.get("rescale", (1, 0))[0] in (1, 2, -1) and how.get("rescale", (1, 0))[1] != 100.5:
        depth = draw(st.sampled_from([8, 12, 16]))
        entries = draw(st.lists(st.integers(0, 2**depth - 1), min_size=2, max_size=400))
        how["voi"] = (entries, draw(st.integers(0, 2000)) if "modality" in how else draw(start), depth)
    if draw(st.booleans()):
        ends = sorted([draw(st.sampled_from(values)), draw(levels)])
        how["padding"] = tuple(draw(st.sampled_from([ends, [ends[0]] * 2])))
    return values, bits, signed, draw(st.sampled_from([IMPLICIT, EXPLICIT, BIG, JPEG + "70"])), how


@settings(deadline=None, max_examples=150)
@given(images())
@example(([0], 16, False, IMPLICIT, {"inverted": False, "rescale": (-1, 0), "voi": ([0, 1], 1, 8)}))
def test_images_are_rendered_as_the_standard_says(
    drawn: tuple[list[int], int, bool, str, dict[str, Any]],
) -> None:
    values, bits, signed, syntax, how = drawn
    elements: Elements = {
        "PixelRepresentation": int(signed),
        "PhotometricInterpretation": "MONOCHROME1" if how["inverted"] else "MONOCHROME2",
        "PresentationLUTShape": "INVERSE" if how["inverted"] else "IDENTITY",  # says it once more, not anew
    }
    if "rescale" in how:
        elements["RescaleSlope"], elements["RescaleIntercept"] = how["rescale"]
    for kind, keyword in (("modality", "ModalityLUTSequence"), ("voi", "VOILUTSequence")):
        if kind in how:
            elements[keyword] = Sequence([look_up(*how[kind], order=">" if syntax == BIG else "<")])
    if "window" in how:
        centre, width, function = how["window"]
        elements |= {"WindowCenter": centre, "WindowWidth": width} | ({"VOILUTFunction": function} if function else {})
    if "padding" in how:
        first, last = how["padding"]
        elements |= {"PixelPaddingValue": first} | ({"PixelPaddingRangeLimit": last} if first != last else {})
    found = pixels(dicom(cells(values, bits), bits, syntax, **elements))
    first, last = how.get("padding", (1, 0))
    low = -(2 ** (bits - 1)) if signed else 0
    there = [value for value in values if not first <= value <= last]
    if bits == 8:
        reached = range(low, low + 256)
    elif "padding" in how or not there:
        reached = there  # type: ignore[assignment]
    else:
        reached = range(min(there), max(there) + 1)
    range_of = [modality(value, how) for value in reached] or [0]
    expected = [shown(value, bits, how, (min(range_of), max(range_of))) for value in values]
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


def test_an_image_is_inverted_after_its_window() -> None:
    window: Elements = {"WindowCenter": 1000.5, "WindowWidth": 2001}
    content = dicom(cells([0, 1000, 2000, 4095], 12), PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_allclose(pixels(content), [[1, 0.5, 0, 0]], atol=1e-6)


def test_the_first_of_several_windows_or_tables_is_used_and_tables_before_windows() -> None:
    levels = cells([0, 1024, 2048, 4095], 12)
    windows: Elements = {"WindowCenter": [2048, 100], "WindowWidth": [4096, 10]}
    np.testing.assert_allclose(pixels(dicom(levels, **windows)), [[0, 1024 / 4095, 2048 / 4095, 1]], atol=1e-6)
    tables = Sequence([look_up([0, 255], 1024, 8), look_up([255, 0], 0, 8)])
    np.testing.assert_array_equal(pixels(dicom(levels, VOILUTSequence=tables, **windows)), [[0, 0, 1, 1]])


def test_a_table_of_8_bit_entries_reaches_all_its_4096_levels() -> None:
    ramp = np.arange(4096) // 16
    expected = (image() // 16) / 255
    for words in (True, False):
        table = Sequence([look_up(ramp, 0, 8, words=words)])
        np.testing.assert_allclose(pixels(dicom(image(), VOILUTSequence=table)), expected, atol=1e-6)


def test_tables_of_65536_entries_or_deeper_than_stated_are_read_in_full() -> None:
    levels = image(bits=16)
    table = Sequence([look_up(np.arange(65536), 0, 16)])
    np.testing.assert_allclose(pixels(dicom(levels, 16, VOILUTSequence=table)), levels / 65535, atol=1e-6)
    table = Sequence([look_up(np.arange(4096), 0, 8)])
    np.testing.assert_allclose(pixels(dicom(image(), VOILUTSequence=table)), image() / 4095, atol=1e-6)


@pytest.mark.parametrize(
    "window", [{"WindowCenter": 40}, {"WindowWidth": 40}, {"WindowCenter": 40, "WindowWidth": 0}, {"WindowWidth": -5}]
)
def test_an_incomplete_window_is_ignored(window: Elements) -> None:
    np.testing.assert_array_equal(pixels(dicom(image(), **window)), pixels(dicom(image())))


def test_without_a_window_8_bits_are_as_in_a_png_and_more_are_stretched() -> None:
    np.testing.assert_allclose(pixels(dicom(cells([10, 60, 110], 8), 8)), [[10 / 255, 60 / 255, 110 / 255]], atol=1e-7)
    np.testing.assert_allclose(pixels(dicom(cells([10, 60, 110], 12))), [[0, 0.5, 1]], atol=1e-7)
    np.testing.assert_array_equal(pixels(dicom(cells([7, 7], 12))), [[0, 0]])


@pytest.mark.parametrize("mode", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_dark_and_not_part_of_the_range(mode: str) -> None:
    levels = cells([0, 3, 1000, 1500, 2000], 12)
    padding: Elements = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 5, "PhotometricInterpretation": mode}
    found = pixels(dicom(levels, **padding))
    rest = [0, 0.5, 1] if mode == "MONOCHROME2" else [1, 0.5, 0]
    np.testing.assert_allclose(found, [[0, 0, *rest]], atol=1e-6)


def test_padding_with_the_wrong_sign_is_understood() -> None:
    levels = cells([-2000, 0, 100], 16)
    data = pydicom.dcmread(io.BytesIO(dicom(levels, 16, PixelRepresentation=1)))
    data.add_new("PixelPaddingValue", "US", 65536 - 2000)
    np.testing.assert_allclose(pixels(written(data)), [[0, 0, 1]])


# How levels are kept


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_syntaxes_give_identical_pixels(syntax: str, signed: bool, bits: int) -> None:
    levels = image(bits=bits)
    found = read_dicom(dicom(levels, bits, syntax, PixelRepresentation=int(signed)), "image")
    half = 2 ** (bits - 1) if signed else 0
    values = (levels.astype(int) ^ half).astype(float)  # two's complement, lowest first
    if bits > 8:
        values = (values - values.min()) / (values.max() - values.min())
    else:
        values /= 255
    np.testing.assert_allclose(found.pixels, values, atol=1e-6)
    np.testing.assert_array_equal(found.pixels, pixels(dicom(levels, bits, EXPLICIT, PixelRepresentation=int(signed))))
    assert (found.compression, found.bits, found.mode) == (LOSSLESS[syntax], bits, "MONOCHROME2")


@pytest.mark.parametrize(("syntax", "bits"), [(syntax, 8 if syntax.endswith("50") else 12) for syntax in LOSSY])
def test_lossy_syntaxes_come_close(syntax: str, bits: int) -> None:
    levels = image(64, 48, bits)
    window: Elements = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    found = read_dicom(dicom(levels, bits, syntax, **window), "image")
    assert found.compression == LOSSY[syntax]
    np.testing.assert_allclose(found.pixels, levels / (2**bits - 1), atol=0.03)


def test_a_jpeg_2000_stream_decides_whether_it_is_signed() -> None:
    import imagecodecs

    values = image().astype(np.int16) - 2048
    stream = imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat="j2k", bitspersample=12)
    boxed = imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat="jp2", bitspersample=12)
    for content in (stream, boxed):
        for representation in (0, 1):
            data = pydicom.dcmread(io.BytesIO(dicom(image(), 12, JPEG + "90", PixelRepresentation=representation)))
            data.PixelData = encapsulate([bytes(content)])
            np.testing.assert_array_equal(pixels(written(data, JPEG + "90")), pixels(dicom(image())))


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG, RLE])
def test_bits_above_the_stored_ones_are_ignored(syntax: str) -> None:
    overlay = image() | (np.arange(32) % 16 << 12).astype(np.uint16)
    np.testing.assert_array_equal(pixels(dicom(overlay, 12, syntax)), pixels(dicom(image())))


def test_white_that_lossy_compression_brightened_stays_white() -> None:
    import imagecodecs

    white = np.full((16, 16), 4098, np.uint16)
    signed = white.astype(np.int16) - 2048
    for syntax, stream in (
        (JPEG + "81", imagecodecs.jpegls_encode(white)),
        (JPEG + "91", imagecodecs.jpeg2k_encode(signed, level=0, reversible=True, codecformat="j2k")),
    ):
        data = pydicom.dcmread(io.BytesIO(dicom(image(16, 16), 12, syntax, WindowCenter=0, WindowWidth=2)))
        data.PixelData = encapsulate([bytes(stream)])
        np.testing.assert_array_equal(pixels(written(data, syntax)), np.ones((16, 16)))


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG])
def test_levels_may_be_in_the_upper_bits(syntax: str) -> None:
    shifted = image() << 4 | 0b1010
    np.testing.assert_array_equal(pixels(dicom(shifted, 12, syntax, HighBit=15)), pixels(dicom(image())))


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
@pytest.mark.parametrize("allocated", [16, 32])
def test_levels_may_have_more_bits_allocated_than_needed(syntax: str, allocated: int) -> None:
    content = dicom(image(bits=8), 8, syntax, allocated=allocated)
    np.testing.assert_array_equal(pixels(content), pixels(dicom(image(bits=8), 8)))


def test_big_endian_bytes_in_words_are_swapped() -> None:
    levels = image(5, 3, 8)
    data = pydicom.dcmread(io.BytesIO(dicom(levels, 8)))
    data.PixelData = np.frombuffer(data.PixelData, ">u2").astype("<u2").tobytes()
    data["PixelData"].VR = "OW"
    np.testing.assert_array_equal(pixels(written(data, BIG)), pixels(dicom(levels, 8)))


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE, JPEG + "70", JPEG + "80", JPEG + "90"])
@pytest.mark.parametrize("planar", [0, 1])
def test_colour_becomes_luminance(syntax: str, planar: int) -> None:
    colours = np.stack([image(bits=8), image(bits=8)[::-1], image(bits=8)[:, ::-1]], -1)
    content = dicom(colours, 8, syntax, PlanarConfiguration=planar)
    if syntax == EXPLICIT and planar:
        data = pydicom.dcmread(io.BytesIO(content))
        data.PixelData = np.ascontiguousarray(np.moveaxis(colours, -1, 0)).tobytes()
        content = written(data)
    np.testing.assert_allclose(pixels(content), colours @ [0.299, 0.587, 0.114] / 255, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "YBR_FULL_422"])
def test_the_file_decides_the_colour_space_of_a_jpeg(mode: str) -> None:
    import imagecodecs

    colours = np.stack([image(bits=8), image(bits=8)[::-1], image(bits=8)[:, ::-1]], -1)
    how: Elements = {"outcolorspace": "RGB"} if mode == "RGB" else {}
    data = pydicom.dcmread(io.BytesIO(dicom(colours, 8, JPEG + "50", PhotometricInterpretation=mode)))
    data.PixelData = encapsulate([bytes(imagecodecs.jpeg8_encode(colours, level=98, **how))])
    found = pixels(written(data, JPEG + "50"))
    np.testing.assert_allclose(found, colours @ [0.299, 0.587, 0.114] / 255, atol=0.03)


def test_two_pixels_may_share_their_colours() -> None:
    luma = image(4, 6, 8)
    data = pydicom.dcmread(io.BytesIO(dicom(np.stack([luma] * 3, -1), 8, PhotometricInterpretation="YBR_FULL_422")))
    data.PixelData = np.insert(luma.reshape(-1, 2), [2, 2], 128, axis=1).tobytes()
    np.testing.assert_allclose(pixels(written(data)), luma / 255, atol=1e-6)


def test_a_palette_is_looked_up() -> None:
    palette: Elements = {"PhotometricInterpretation": "PALETTE COLOR"}
    for hue, entries in (("Red", [0, 255, 0]), ("Green", [0, 0, 255]), ("Blue", [0, 0, 0])):
        palette[f"{hue}PaletteColorLookupTableDescriptor"] = [3, 10, 16]
        palette[f"{hue}PaletteColorLookupTableData"] = (np.array(entries, "<u2") * 257).tobytes()
    np.testing.assert_allclose(
        pixels(dicom(cells([9, 10, 11, 12, 13], 8), 8, **palette)), [[0, 0, 0.299, 0.587, 0.587]], atol=1e-6
    )


@pytest.mark.parametrize("syntax", [*LOSSLESS, JPEG + "51"])
def test_the_first_of_several_frames_is_read_and_they_are_counted(
    syntax: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = read_dicom(dicom(image(), 12, syntax, frames=3), "cine.dcm")
    np.testing.assert_array_equal(found.pixels, pixels(dicom(image(), 12, syntax)))
    assert found.tags.frames == 3
    assert caplog.records == []


def test_a_frame_may_have_several_fragments() -> None:
    data = pydicom.dcmread(io.BytesIO(dicom(image(), 12, JPEG + "70")))
    frame = get_frame(data.PixelData, 0, number_of_frames=1)
    for offsets in (True, False):
        data.PixelData = encapsulate([frame], 3, has_bot=offsets)
        np.testing.assert_array_equal(pixels(written(data, JPEG + "70")), pixels(dicom(image())))


# What it is, and whose


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_a_file_without_preamble_is_recognised_by_its_content(syntax: str, tmp_path: Path) -> None:
    content = dicom(image(), 12, syntax, meta=False)
    assert content[128:132] != b"DICM"
    assert is_dicom(content[:132])
    np.testing.assert_array_equal(pixels(content), pixels(dicom(image())))
    path = tmp_path / "IM0001"
    path.write_bytes(content)
    assert read_tags(path).patient == "p1"


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_file_with_preamble_is_recognised_by_its_content(syntax: str) -> None:
    assert is_dicom(dicom(image(), 12, syntax)[:132])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"])
def test_a_picture_is_not_dicom(form: str) -> None:
    content = io.BytesIO()
    Image.fromarray(image(bits=8)).save(content, form)
    assert not is_dicom(content.getvalue()[:132])
    assert "not a DICOM file" in problem(content.getvalue())


@given(
    st.one_of(
        st.text(max_size=200).map(str.encode), st.binary(max_size=7), st.binary(max_size=200).map(b"\0\0".__add__)
    )
)
def test_text_and_scraps_are_not_dicom(content: bytes) -> None:
    if content[128:132] != b"DICM" and content[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        assert not is_dicom(content)


def test_a_text_that_begins_like_an_element_is_not_dicom() -> None:
    assert not is_dicom(b"\x08\0hello, this is no element of a data set at all")
    assert not is_dicom(b"")


def tags_of(**elements: Any) -> Tags:
    return read_dicom(dicom(image(), **elements), "image").tags


def test_tags_are_read(tmp_path: Path) -> None:
    content = dicom(
        image(),
        Modality="DX",
        SOPClassUID=DX,
        PatientID=" 0815 ",
        PatientAge="045Y",
        PatientSex="F",
        ViewPosition="PA",
        ImageLaterality="U",
    )
    expected = Tags("0815", "1.2", "1.2.3", "DX", "PA", "U", 45.0, "F", series="1.2.1")
    assert read_dicom(content, "image").tags == expected
    assert read_tags(content) == expected
    path = tmp_path / "image"
    path.write_bytes(content[:-500])  # without all of its pixels
    assert read_tags(path) == expected


def test_tags_that_are_absent_or_empty_are_none() -> None:
    content = dicom(
        image(), PatientID="", PatientSex="", StudyInstanceUID=None, SeriesInstanceUID=None, SOPInstanceUID=""
    )
    assert read_tags(content) == Tags(None, None, None, "CR", None, None, None, None)


@pytest.mark.parametrize(
    ("age", "years"),
    [
        ("045Y", 45),
        ("006M", 0.5),
        ("003W", 21 / 365.25),
        ("010D", 10 / 365.25),
        ("7Y", 7),
        ("45", 45),
        ("XY", None),
        ("000Y", 0),
        ("1200M", 100),
        ("5.5Y", 5.5),
        ("5 years", 5),
        ("18 Months", 1.5),
        ("P5Y", None),
        ("-05Y", None),
        ("5 J", None),
    ],
)
def test_ages_are_years(age: str, years: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's own, as it writes what it shouldn't
        assert tags_of(PatientAge=age).age == (None if years is None else pytest.approx(years))


def test_the_view_may_be_a_code_and_the_laterality_of_the_body_part() -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "R-10214", "SNM3", "postero-anterior"
    found = tags_of(ViewCodeSequence=Sequence([code]), Laterality="R")
    assert (found.view, found.laterality) == ("PA", "R")


@pytest.mark.parametrize(
    ("words", "view"),
    [
        ("Chest LAT", "LATERAL"), ("Lateral (L)", "LATERAL"), ("LATERAL LEFT", "LL"), ("right lateral", "RL"),
        ("XTABLE LAT", "LATERAL"), ("SEITLICH", "LATERAL"), ("PERFIL", "LATERAL"), ("PA and lateral", "LATERAL"),
        ("LLD", "LLD"), ("P.A.", "PA"), ("PA CHEST", "PA"), ("Chest AP Supine", "AP"), ("AP PORTABLE", "AP"),
        ("Antero-posterior projection", "AP"), ("POSTEROANTERIOR", "PA"), ("AP AXIAL", "AP AXIAL"), ("RAO", "RAO"),
        ("CHEST OBLIQUE", "OBLIQUE"),
        ("BILATERAL", "BILATERAL"), ("FRONTAL", "FRONTAL"), ("PA AP", "PA AP"), ("", None),
    ],
)  # fmt: skip
def test_a_view_in_words_gets_its_code_where_they_leave_no_doubt(words: str, view: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's own, as it writes what it shouldn't
        assert tags_of(ViewPosition=words).view == view
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", words or None
    assert tags_of(ViewCodeSequence=Sequence([code])).view == view


@pytest.mark.parametrize(
    ("words", "view"),
    [
        ("Chest Lateral", "LATERAL"), ("LAT", "LATERAL"), ("view: PA", "PA"), ("Thorax p.a.", "PA"), ("CHEST AP", "AP"),
        ("Standard profile", None), ("bi-lateral chest", None), ("LAT MARKER, chest PA", "PA"), ("profil", "LATERAL"),
        ("PA and lateral", None), ("PA/AP", None), ("Chest", None), ("BILATERAL", None), ("LL lobe", None), ("", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("keyword", ["SeriesDescription", "ProtocolName"])
def test_a_description_names_the_view_where_no_element_does(words: str, view: str | None, keyword: str) -> None:
    described: dict[str, Any] = {keyword: words}
    assert tags_of(**described).view == view
    assert tags_of(ViewPosition="RL", **described).view == "RL"


@pytest.mark.parametrize("part", ["TÓRAX", "Torace", "POUMONS", "pulmones", "BRUSTKORB", "胸部"])
def test_the_chest_has_names_in_other_languages(part: str) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "51185008", "SCT", part
    assert tags_of(SpecificCharacterSet="ISO_IR 192", AnatomicRegionSequence=Sequence([code])).body_part == "CHEST"


def test_patients_may_be_written_in_any_script() -> None:
    assert tags_of(SpecificCharacterSet="ISO_IR 192", PatientID="山田-1").patient == "山田-1"


@pytest.mark.parametrize(
    ("birth", "taken", "years"),
    [
        ("20200310", "20250309", 4), ("20200310", "20250310", 5), ("20200310", "20200324", 14 / 365.25),
        ("20200310", "20200309", None), ("19000101", "20250101", None), ("2020", "20250310", None),
        ("", "20250310", None),
    ],
)  # fmt: skip
def test_without_an_age_it_comes_from_the_dates_of_birth_and_study(birth: str, taken: str, years: float | None) -> None:
    for date in ("StudyDate", "AcquisitionDate"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's own, as it writes what it shouldn't
            found = tags_of(PatientBirthDate=birth, **{date: taken})
        assert found.age == (None if years is None else pytest.approx(years))
    assert tags_of(PatientBirthDate="19500101", StudyDate="20200101", PatientAge="003Y").age == 3


@pytest.mark.parametrize(
    ("dates", "found"),
    [
        ({"StudyDate": "20240229"}, "2024-02-29"),
        ({"StudyDate": "2024.02.29"}, "2024-02-29"),  # as ACR-NEMA wrote it
        ({"StudyDate": "19010101"}, "1901-01-01"),
        ({"StudyDate": "20230229", "AcquisitionDate": "20240301", "ContentDate": "20240302"}, "2024-03-01"),
        ({"StudyDate": "", "ContentDate": "20240302"}, "2024-03-02"),
        ({"StudyDate": "00000000"}, None),
        ({"StudyDate": "202415"}, None),  # 1 May or 15 January
        ({"StudyDate": "20240101-20240201"}, None),  # a range of a query
        ({"StudyDate": ["20240101", "20240102"]}, "2024-01-01"),
        ({"AcquisitionDate": "20240101120000"}, None),
        ({}, None),
    ],
)
def test_the_date_is_that_of_the_study_or_else_of_the_image(dates: Elements, found: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's own, as it writes what it shouldn't
        assert tags_of(**dates).date == found


@pytest.mark.parametrize(
    ("accession", "found"),
    [
        ("A123", "A123"),
        (" 0012 ", "0012"),
        ("", None),
        ("a\tb\x1b[31m", "ab[31m"),
        (["A1", "A2"], "A1"),
        ("検-7", "検-7"),
    ],
)
def test_the_accession_number_is_a_line_of_text(accession: str | list[str], found: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert tags_of(SpecificCharacterSet="ISO_IR 192", AccessionNumber=accession).accession == found
    assert tags_of().accession is None


@settings(deadline=None)
@given(st.binary(min_size=8, max_size=8), st.sampled_from(["StudyDate", "AccessionNumber", "ImageLaterality"]))
def test_no_bytes_in_an_identifying_tag_stop_an_image(value: bytes, keyword: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elements: Elements = {keyword: "ZZYYXXWW"}
        content = dicom(image(), **elements)
    assert content.count(b"ZZYYXXWW") == 1
    tags = read_dicom(content.replace(b"ZZYYXXWW", value), "image").tags
    assert tags.date is None or re.fullmatch(r"\d{4}-\d\d-\d\d", tags.date)
    for text in (tags.accession, tags.laterality):
        assert text is None or (text and text.isprintable() and text == text.strip())
        assert "\x00" not in (text or "")
    assert tags.instance == "1.2.3"


@pytest.mark.parametrize(
    ("part", "known"),
    [("CHEST", "CHEST"), ("PORT CHEST", "CHEST"), ("THORAX", "CHEST"), ("LUNG", "CHEST"), ("HAND", "HAND"), ("", None)],
)
def test_the_body_part_has_one_name_for_the_chest(part: str, known: str | None) -> None:
    assert tags_of(BodyPartExamined=part).body_part == known
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "51185008", "SCT", part or None
    assert tags_of(AnatomicRegionSequence=Sequence([code])).body_part == known


def test_raw_data_of_a_detector_are_told_by_their_intent_or_class() -> None:
    assert tags_of(PresentationIntentType="FOR PROCESSING").for_processing
    assert tags_of(Modality="DX", SOPClassUID=RAW_DX).for_processing
    assert not tags_of(PresentationIntentType="FOR PRESENTATION").for_processing
    assert not tags_of(Modality="DX", SOPClassUID=DX).for_processing


@pytest.mark.parametrize(
    ("modality", "sop"),
    [
        ("CR", SOP + "1"),
        ("DX", DX),
        ("DX", RAW_DX),
        ("DX", SC),
        ("RG", SC),
        ("DR", SOP + "1"),
        (None, DX),
        ("CR", None),
    ],
)
def test_radiographs_are_read(modality: str | None, sop: str | None) -> None:
    assert pixels(dicom(image(), Modality=modality, SOPClassUID=sop, meta=sop is not None)).shape == (24, 32)


@pytest.mark.parametrize(
    ("modality", "sop", "kind"),
    [
        ("CT", CT, "a CT slice"),
        ("MR", SOP + "4", "an MR slice"),
        ("MG", MG, "a mammogram"),
        ("US", SOP + "6.1", "an ultrasound image"),
        ("PT", SOP + "128", "a PET slice"),
        ("SEG", SEG, "a segmentation"),
        ("RF", SOP + "12.2", "a fluoroscopy image"),
        ("XA", SOP + "12.1", "an angiogram"),
        ("OT", SC, "an image of modality OT"),
        ("CR", CT, "an object of class CT Image"),
        (None, SC, "an image of unknown modality"),
    ],
)
def test_what_is_not_a_radiograph_is_refused_unless_requested(modality: str | None, sop: str, kind: str) -> None:
    content = dicom(image(), Modality=modality, SOPClassUID=sop)
    assert problem(content) == (
        f"image.dcm: {kind}, not a projection radiograph. Pass `any_modality=True` to read it anyway."
    )
    np.testing.assert_array_equal(pixels(content, any_modality=True), pixels(dicom(image())))


@pytest.mark.parametrize(
    ("modality", "sop", "kind"),
    [
        ("SR", SR, "a structured report"),
        ("PR", SOP + "11.1", "a presentation state"),
        ("KO", SOP + "88.59", "a key object selection"),
        ("DOC", SOP + "104.1", "an encapsulated document"),
        ("RTSTRUCT", SOP + "481.3", "a radiotherapy structure set"),
        ("CR", SOP + "104.1", "an object of class Encapsulated PDF"),
        (None, "1.2.840.10008.1.3.10", "a DICOMDIR, the index of a medium"),
        ("CR", SOP + "1", "a radiograph"),
    ],
)
def test_what_has_no_pixels_is_always_refused(modality: str | None, sop: str, kind: str) -> None:
    content = dicom(image(), Modality=modality, SOPClassUID=sop, PixelData=None)
    for any_modality in (False, True):
        assert problem(content, any_modality) == f"image.dcm: {kind} without pixels."


@pytest.mark.parametrize("part", ["HAND", "CHEST", ""])
def test_the_body_part_is_ignored(part: str) -> None:
    assert pixels(dicom(image(), BodyPartExamined=part)).shape == (24, 32)


# Missing packages


@pytest.mark.parametrize(("module", "syntax"), [("pydicom", EXPLICIT), ("imagecodecs", JPEG + "90")])
def test_a_missing_package_names_its_extra(module: str, syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = dicom(image(), 12, syntax)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'pneumoscope[dicom]'")) as caught:
        read_dicom(content, "image.dcm")
    assert str(caught.value).startswith("image.dcm: ")
    assert ("JPEG 2000" in str(caught.value)) == (module == "imagecodecs")


def test_only_compressed_images_need_a_decoder_and_dicom_is_recognised_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = dicom(image())
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert pixels(content).shape == (24, 32)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert is_dicom(content[:132])


# Damaged and false files


@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY])
def test_a_truncated_image_is_reported_as_damaged(syntax: str) -> None:
    content = dicom(image(64, 64, 8), 8, syntax)
    for share in (0.98, 0.9, 0.75):
        assert "damaged or truncated" in problem(content[: int(len(content) * share)])


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"Rows": None}, "no Rows"),
        ({"Rows": 0}, "32 x 0 pixels"),
        ({"Rows": 65535, "Columns": 65535}, f"the limit is {MAX_PIXELS:,}"),
        ({"Rows": 25}, "1,536 of 1,600 bytes"),
        ({"BitsStored": 17}, "17 bits stored in 16"),
        ({"BitsAllocated": 12}, "12 bits stored in 12"),
        ({"SamplesPerPixel": 4}, "4 samples in MONOCHROME2"),
        ({"PhotometricInterpretation": "CMYK"}, "1 samples in CMYK"),
        ({"RescaleSlope": "1e308"}, "not finite"),
        ({"VOILUTSequence": Sequence([look_up([1, 2], 0, 40)])}, "2 entries with 40 bits"),
        ({"VOILUTSequence": Sequence([Dataset()])}, "no LUTDescriptor or no LUTData"),
    ],
)
def test_invalid_elements_are_named(elements: Elements, message: str) -> None:
    assert message in problem(dicom(image(), **elements))


@pytest.mark.parametrize("keyword", ["Rows", "Columns"])
@pytest.mark.parametrize("syntax", [RLE, *(syntax for syntax in LOSSLESS if syntax.startswith(JPEG)), *LOSSY])
def test_a_stream_of_another_size_than_stated_is_refused(syntax: str, keyword: str) -> None:
    bits = 8 if syntax.endswith("50") else 12
    for size in (10_000, 1):
        elements: Elements = {keyword: size}
        assert "damaged" in problem(dicom(image(bits=bits), bits, syntax, **elements))


def test_an_unknown_transfer_syntax_is_named() -> None:
    data = pydicom.dcmread(io.BytesIO(dicom(image(), 12, JPEG + "70")))
    message = problem(written(data, "1.2.840.10008.1.2.4.102"))
    assert "unsupported transfer syntax MPEG-4 AVC/H.264" in message


def test_floating_point_pixels_are_refused() -> None:
    content = dicom(image(), PixelData=None, FloatPixelData=image().astype("<f4").tobytes())
    assert "floating-point" in problem(content)


def test_a_deflated_bomb_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = dicom(image(400, 400), 12, DEFLATED)
    monkeypatch.setattr("pneumoscope.images.limits.MAX_BYTES", 300_000)
    assert "inflates to more than 300,000 bytes" in problem(content)


def test_a_run_length_bomb_is_bounded() -> None:
    runs = struct.pack("<16L", 2, 64, 66, *[0] * 13) + b"\x81\0" * 1_000_000
    data = pydicom.dcmread(io.BytesIO(dicom(image(), 12, RLE)))
    data.PixelData = encapsulate([runs])
    assert "damaged" in problem(written(data, RLE))


def test_endless_sequences_are_reported_as_damage() -> None:
    head = dicom(image(), PixelData=None)
    nested = b"\x54\x00\x20\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    assert "damaged" in problem(head + nested)
    with pytest.raises(ImageError, match="image"):
        read_tags(head + nested, "image")


def test_endless_elements_and_fragments_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    image_in_jpeg = dicom(image(), 12, JPEG + "70")
    monkeypatch.setattr("pneumoscope.images.dicom_elements.MAX_READS", 1000)
    assert pixels(image_in_jpeg).shape == (24, 32)
    assert "too many elements" in problem(dicom(image(), PixelData=None) + b"\x09\x60\x10\x10LO\0\0" * 2000)
    start = image_in_jpeg.index(b"\xe0\x7f\x10\0") + 12
    for count in (499, 500, 2000):
        assert "too many elements" in problem(image_in_jpeg[:start] + b"\xfe\xff\0\xe0\0\0\0\0" * count)


def test_every_syntax_survives_mutations() -> None:
    """A few of the mutations that thousands were tried of: nothing but our errors, and never a fallen process."""
    outcomes = {"read": 0, "refused": 0}
    elements: Elements = {"WindowCenter": 2000, "WindowWidth": 900, "PixelPaddingValue": 3, "PatientAge": "012Y"}
    for syntax in (*LOSSLESS, *LOSSY):
        whole = dicom(image(12, 9), 8 if syntax.endswith("50") else 12, syntax, **elements)
        for seed in range(40):
            chance = random.Random(f"{syntax} {seed}")
            content = bytearray(whole)
            for _ in range(chance.choice([1, 2, 8])):
                at = chance.randrange(130, len(content))
                content[at] = chance.choice([0, 255, content[at] ^ 1 << chance.randrange(8), chance.randrange(256)])
            if chance.random() < 0.2:
                del content[chance.randrange(140, len(content)) :]
            try:
                pixels(bytes(content), any_modality=True)
                outcomes["read"] += 1
            except ImageError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 100


# What nobody else should notice


def test_unusual_elements_cause_neither_warnings_nor_log_messages(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's own, as it writes what it shouldn't
        content = dicom(image(), StudyInstanceUID="not.a.uid!", PatientAge="old", WindowCenter="2000", WindowWidth="10")
    content = content.replace(b"2000", b"2,00")
    caplog.clear()
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        found = read_dicom(content, "image")
        read_tags(content)
    assert found.tags.study == "not.a.uid!"
    np.testing.assert_array_equal(found.pixels, pixels(dicom(image())))  # a centre that is no number is no window
    assert not warned
    assert not caplog.records


def test_pydicom_still_logs_for_others(caplog: pytest.LogCaptureFixture) -> None:
    read_dicom(dicom(image()), "image")
    with caplog.at_level(logging.WARNING):
        logging.getLogger("pydicom").warning("something of theirs")
    assert [record.getMessage() for record in caplog.records] == ["something of theirs"]


def test_images_may_be_read_in_many_threads() -> None:
    contents = [dicom(image(bits=bits), bits, syntax) for syntax in LOSSLESS for bits in (8, 12, 16)] * 4
    alone = [pixels(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(alone, pool.map(pixels, contents), strict=True):
            np.testing.assert_array_equal(one, other)


def test_pydicoms_own_images_give_pixels_or_image_errors() -> None:
    folder = Path(pydicom.__file__).parent / "data"
    count = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file() and is_dicom(content := path.read_bytes()):
            try:
                pixels(content, any_modality=True)
                count += 1
            except ImageError:
                pass
    assert count > 50


# Against another reader


ENCODERS = (
    *(["dcmcjpeg", "+e1"], ["dcmcrle"], ["dcmcjpls"]),
    *(["dcmcjpeg", "+el", "+sv", str(predictor)] for predictor in range(1, 8)),
)


@pytest.mark.skipif(shutil.which("dcmcjpls") is None, reason="dcmtk is not installed")
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("encoder", ENCODERS, ids=" ".join)
def test_images_compressed_by_dcmtk_are_identical(encoder: list[str], signed: int, bits: int, tmp_path: Path) -> None:
    if signed and encoder == ["dcmcjpls"]:
        pytest.skip("dcmtk compresses no signed levels so")
    source, target = tmp_path / "image.dcm", tmp_path / "small.dcm"
    source.write_bytes(content := dicom(image(37, 45, bits), bits, PixelRepresentation=signed))
    subprocess.run([*encoder, source, target], check=True)
    assert read_dicom(target.read_bytes(), "image").compression != "uncompressed"
    np.testing.assert_array_equal(pixels(target.read_bytes()), pixels(content))


@pytest.mark.skipif(shutil.which("dcmj2pnm") is None, reason="dcmtk is not installed")
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED, RLE, JPEG + "51", JPEG + "57", JPEG + "70"])
@pytest.mark.parametrize("mode", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("voi", ["LINEAR", "SIGMOID", "table", "spread"])
def test_dcmtk_renders_images_the_same(syntax: str, mode: str, voi: str, tmp_path: Path) -> None:
    elements: Elements = {"PhotometricInterpretation": mode, "RescaleSlope": 2, "RescaleIntercept": -100}
    elements["RescaleType"] = "US"
    if voi == "table":
        elements["VOILUTSequence"] = Sequence(
            [look_up(np.arange(6000) * 4095 // 5999, 500, 12, order=">" if syntax == BIG else "<")]
        )
    elif voi != "spread":
        elements |= {"WindowCenter": 4000, "WindowWidth": 5001, "VOILUTFunction": voi}
    content = dicom(image(64, 48), 12, syntax, **elements)
    path, shot = tmp_path / "image.dcm", tmp_path / "image.pgm"
    path.write_bytes(content)
    way = {"table": ["+Wl", "1"], "spread": ["+Wm"]}.get(voi, ["+Wi", "1"])
    sigmoid = ["+Wfs"] if voi == "SIGMOID" else []
    subprocess.run(["dcmj2pnm", *way, *sigmoid, "+opw", path, shot], check=True)
    with Image.open(shot) as picture:
        theirs = np.asarray(picture) / 65535
    np.testing.assert_allclose(pixels(content), theirs, atol=2e-3)
