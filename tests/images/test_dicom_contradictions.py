"""DICOM files whose header and pixels disagree: read right with a warning, or refused, never rubbish."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_files import BIG, DEFLATED, EXPLICIT, IMPLICIT, JPEG, RLE, Levels, dicom, image, look_up, written
from PIL import Image
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from pneumoscope.errors import ImageError
from pneumoscope.images.dicom import DicomImage, read_dicom

NATIVE = [IMPLICIT, EXPLICIT, BIG, DEFLATED]


def read(content: bytes) -> DicomImage:
    return read_dicom(content, "image.dcm")


def refusal(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        read(content)
    return str(caught.value)


def changed(content: bytes, syntax: str = EXPLICIT, stream: bytes | bytearray | None = None, **elements: Any) -> bytes:
    """A file with other elements, and perhaps another compressed stream, than it was made with."""
    data = pydicom.dcmread(io.BytesIO(content))
    if stream is not None:
        data.PixelData = encapsulate([bytes(stream)])
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return written(data, syntax)


# The precision of the stream


@pytest.mark.parametrize("kind", ["57", "70", "80", "90", "201"])
@pytest.mark.parametrize("signed", [0, 1])
def test_a_stream_of_16_bits_in_a_file_that_says_12_is_read_with_16(kind: str, signed: int) -> None:
    levels, syntax = image(bits=16), JPEG + kind
    right = dicom(levels, 16, syntax, PixelRepresentation=signed)
    found = read(changed(right, syntax, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(found.pixels, read(right).pixels)
    assert found.bits == 16
    assert found.warnings == (f"BitsStored says 12, but the {found.compression} stream has 16 bits",)
    assert read(right).warnings == ()


@pytest.mark.parametrize("kind", ["50", "57", "70", "90"])
def test_a_stream_of_8_bits_in_a_file_that_says_12_is_read_with_8(kind: str) -> None:
    syntax = JPEG + kind
    right = dicom(image(bits=8), 8, syntax)
    found = read(changed(right, syntax, BitsAllocated=16, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(found.pixels, read(right).pixels)
    assert found.warnings == (f"BitsStored says 12, but the {found.compression} stream has 8 bits",)


@pytest.mark.parametrize("kind", ["80", "90", "201"])
def test_levels_that_fit_the_stated_bits_need_no_warning_whatever_the_stream_leaves_room_for(kind: str) -> None:
    syntax, levels = JPEG + kind, image()
    encode: Any = {"80": imagecodecs.jpegls_encode, "90": encode_jpeg_2000, "201": imagecodecs.htj2k_encode}[kind]
    found = read(changed(dicom(levels, 12, syntax), syntax, encode(levels)))
    np.testing.assert_array_equal(found.pixels, read(dicom(levels)).pixels)
    assert (found.bits, found.warnings) == (12, ())


def encode_jpeg_2000(levels: Levels) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(levels, level=0, reversible=True, codecformat="j2k"))


@pytest.mark.parametrize("kind", ["80", "90"])
def test_the_sign_of_12_bits_may_go_on_in_a_stream_of_16(kind: str) -> None:
    values = image().astype(np.int16) - 2048
    syntax = JPEG + kind
    encode: Any = {"80": imagecodecs.jpegls_encode, "90": encode_jpeg_2000}[kind]
    content = dicom(values.view(np.uint16) & 0xFFF, 12, syntax, PixelRepresentation=1)
    found = read(changed(content, syntax, encode(values.view(np.uint16))))
    np.testing.assert_array_equal(found.pixels, read(dicom(image())).pixels)
    assert (found.bits, found.warnings) == (12, ())


@pytest.mark.parametrize("syntax", [*NATIVE, RLE])
def test_uncompressed_bits_above_the_stored_ones_are_ignored_with_a_warning(syntax: str) -> None:
    levels = image() | np.uint16(0x5000)
    found = read(dicom(levels, 12, syntax))
    np.testing.assert_array_equal(found.pixels, read(dicom(image(), 12, syntax)).pixels)
    assert found.warnings == ("bits above the 12 of BitsStored are set (they were ignored)",)
    signed = (image().astype(np.int16) - 2048).view(np.uint16)
    assert read(dicom(signed, 12, syntax, PixelRepresentation=1)).warnings == ()
    assert read(dicom(image() << 4, 12, syntax, HighBit=15)).warnings == ()


@pytest.mark.parametrize("syntax", [*NATIVE, RLE, JPEG + "70", JPEG + "80", JPEG + "90"])
def test_negative_numbers_that_are_called_unsigned_are_read_as_signed(syntax: str) -> None:
    values = (image().astype(np.int16) - 2048).view(np.uint16)
    content = dicom(values, 16, syntax)
    found = read(changed(content, syntax, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(found.pixels, read(dicom(image())).pixels)
    assert found.bits == 12
    assert found.warnings == ("PixelRepresentation says unsigned, but the pixel data hold negative numbers",)


def test_a_signed_stream_that_is_called_unsigned_is_read_as_signed() -> None:
    values = image().astype(np.int16) - 2048
    stream = imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat="j2k", bitspersample=12)
    found = read(changed(dicom(image(), 12, JPEG + "90"), JPEG + "90", bytes(stream)))
    np.testing.assert_array_equal(found.pixels, read(dicom(image())).pixels)
    assert found.warnings == ("PixelRepresentation says unsigned, but the JPEG 2000 stream is signed",)


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("signed", [0, 1])
def test_levels_below_where_high_bit_puts_them_are_read_in_full(syntax: str, signed: int) -> None:
    levels = (image().astype(np.int16) - 2048).view(np.uint16) if signed else image()
    found = read(dicom(levels, 12, syntax, HighBit=15, PixelRepresentation=signed))
    np.testing.assert_array_equal(found.pixels, read(dicom(image())).pixels)
    assert found.warnings == ("HighBit says that levels begin at bit 4, but they begin at bit 0",)


@pytest.mark.parametrize("syntax", [*NATIVE, RLE])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("high", [11, 15])
def test_levels_above_where_high_bit_puts_them_are_read_in_full(syntax: str, signed: int, high: int) -> None:
    levels = ((image().astype(np.int32) - 2048 * signed) << 4).astype(np.uint16)
    found = read(dicom(levels, 12, syntax, HighBit=high, PixelRepresentation=signed))
    np.testing.assert_array_equal(found.pixels, read(dicom(image())).pixels)
    said = () if high == 15 else ("HighBit says that levels begin at bit 0, but they begin at bit 4",)
    assert (found.bits, found.warnings) == (12, said)


@pytest.mark.parametrize("syntax", [*NATIVE, RLE])
@pytest.mark.parametrize("bits", [10, 12])
def test_bytes_in_the_other_order_are_exchanged(syntax: str, bits: int) -> None:
    levels = image(bits=bits)
    found = read(dicom(levels.byteswap(), bits, syntax))
    np.testing.assert_array_equal(found.pixels, read(dicom(levels, bits)).pixels)
    assert found.warnings == ("the bytes of the pixel data are in the other order than the transfer syntax says",)


STREAMS = {"JPEG lossless": "70", "JPEG-LS": "80", "JPEG 2000": "90", "HTJ2K": "201"}


@pytest.mark.parametrize("stated", [*STREAMS, "RLE"])
@pytest.mark.parametrize("held", [*STREAMS, "RLE"])
def test_a_stream_is_decoded_by_its_own_kind_whatever_the_transfer_syntax_says(stated: str, held: str) -> None:
    syntax, other = (RLE if kind == "RLE" else JPEG + STREAMS[kind] for kind in (stated, held))
    content = changed(
        dicom(image(), 12, other),
        syntax,
        get_frame(pydicom.dcmread(io.BytesIO(dicom(image(), 12, other))).PixelData, 0, number_of_frames=1),
    )
    found = read(content)
    np.testing.assert_array_equal(found.pixels, read(dicom(image())).pixels)
    said = () if held == stated else (f"the transfer syntax says {stated}, but the stream is {held}",)
    assert found.warnings == said


def test_a_lossy_stream_under_a_lossless_transfer_syntax_is_decoded() -> None:
    stream = imagecodecs.jpeg8_encode(image(bits=8), level=95)
    found = read(changed(dicom(image(bits=8), 8, JPEG + "70"), JPEG + "70", stream))
    np.testing.assert_allclose(found.pixels, image(bits=8) / 255, atol=0.03)
    assert found.warnings == ("the transfer syntax says JPEG lossless, but the stream is JPEG",)


@pytest.mark.parametrize("syntax", [*NATIVE, RLE])
@pytest.mark.parametrize(("padding", "signed"), [(63536, 0), (65535, 0), (-32768, 1), (32767, 1)])
@pytest.mark.parametrize("window", [{}, {"WindowWidth": 2500}], ids=["full", "window"])
def test_padding_beyond_the_stored_bits_is_dark(syntax: str, padding: int, signed: int, window: dict[str, Any]) -> None:
    levels = image().astype(np.int32) // 2 - 1000 * signed
    inside = np.where(np.arange(32) < 4, levels.min(), levels)
    outside = np.where(np.arange(32) < 4, padding, levels).astype(np.uint16)
    how: dict[str, Any] = {"PixelRepresentation": signed, **window}
    if window:
        how["WindowCenter"] = 1000 - 1000 * signed
    found = read(dicom(outside, 12, syntax, PixelPaddingValue=padding, **how))
    right = read(dicom(inside.astype(np.uint16), 12, syntax, **how))
    np.testing.assert_array_equal(found.pixels[:, :4], 0)
    np.testing.assert_allclose(found.pixels[:, 4:], right.pixels[:, 4:], atol=1e-3)
    assert found.warnings == ("PixelPaddingValue has more than the 12 bits of BitsStored",)


# Samples, length and number of frames


@pytest.mark.parametrize("syntax", NATIVE)
def test_three_full_samples_labelled_as_two_are_read(syntax: str) -> None:
    luma = image(4, 6, 8)
    colours = np.stack([luma, np.full_like(luma, 100), np.full_like(luma, 150)], -1)
    found = read(dicom(colours, 8, syntax, PhotometricInterpretation="YBR_FULL_422"))
    np.testing.assert_allclose(found.pixels, luma / 255, atol=1e-6)
    assert found.warnings == (
        "YBR_FULL_422 has two samples for each pixel, but the pixel data hold three (all were read)",
    )


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize(
    "elements",
    [
        {"Rows": 23}, {"Rows": 25}, {"Columns": 31}, {"Columns": 33}, {"BitsAllocated": 32},
        {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
    ],
    ids=str,
)  # fmt: skip
def test_pixel_data_of_another_length_are_refused(syntax: str, elements: dict[str, Any]) -> None:
    message = refusal(dicom(image(), 12, syntax, **elements))
    assert "header and its pixel data contradict each other" in message
    assert "Export it again." in message


def test_colours_labelled_as_one_sample_are_refused_whatever_their_compression() -> None:
    colours = np.stack([image(bits=8)] * 3, -1)
    grey: dict[str, Any] = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
    assert "contradict" in refusal(dicom(colours, 8, EXPLICIT, **grey))
    assert "3 segments, expected 1" in refusal(dicom(colours, 8, RLE, **grey))
    for kind in ("50", "70", "80", "90"):
        assert "3 samples, the header says 32 x 24 of 1" in refusal(dicom(colours, 8, JPEG + kind, **grey))


@pytest.mark.parametrize("syntax", NATIVE)
def test_padding_after_the_pixels_is_ignored(syntax: str) -> None:
    data = pydicom.dcmread(io.BytesIO(dicom(image(5, 7, 8), 8, syntax)))
    assert read(written(data, syntax)).warnings == ()  # one byte makes the length even
    data.PixelData = data.PixelData[:35] + b"\1\2\3"
    found = read(written(data, syntax))
    np.testing.assert_array_equal(found.pixels, read(dicom(image(5, 7, 8), 8)).pixels)
    assert found.warnings == ("the pixel data have 3 bytes too many (they were ignored)",)


@pytest.mark.parametrize("syntax", NATIVE)
def test_fewer_frames_than_stated_leave_the_first(syntax: str) -> None:
    found = read(dicom(image(), 12, syntax, frames=2, NumberOfFrames=5))
    np.testing.assert_array_equal(found.pixels, read(dicom(image())).pixels)
    assert found.warnings == ("NumberOfFrames says 5, but the pixel data hold 2 (the first was read)",)
    assert "contradict" in refusal(dicom(image(), 12, syntax, frames=2, NumberOfFrames=None))


@pytest.mark.parametrize("kind", ["57", "70", "80", "90"])
@pytest.mark.parametrize("table", [True, False])
def test_more_compressed_frames_than_stated_leave_the_first(kind: str, table: bool) -> None:
    syntax = JPEG + kind
    data = pydicom.dcmread(io.BytesIO(dicom(image(), 12, syntax)))
    frame = get_frame(data.PixelData, 0, number_of_frames=1)
    data.PixelData = encapsulate([frame, frame], has_bot=table)
    found = read(written(data, syntax))
    np.testing.assert_array_equal(found.pixels, read(dicom(image())).pixels)
    held = "2" if table else "several"
    assert found.warnings == (f"NumberOfFrames says 1, but the pixel data hold {held} (the first was read)",)


@pytest.mark.parametrize("syntax", [RLE, JPEG + "70", JPEG + "90"])
def test_compressed_pixels_under_an_uncompressed_syntax_are_refused(syntax: str) -> None:
    stated = EXPLICIT.encode().ljust(len(syntax) + len(syntax) % 2, b"\0")
    content = dicom(image(), 12, syntax).replace(syntax.encode().ljust(len(stated), b"\0"), stated)
    assert "its pixels are compressed, but its transfer syntax says uncompressed" in refusal(content)


@pytest.mark.parametrize("syntax", [RLE, JPEG + "50", JPEG + "70", JPEG + "90"])
def test_uncompressed_pixels_under_a_compressed_syntax_are_refused(syntax: str) -> None:
    data = pydicom.dcmread(io.BytesIO(dicom(image(), 12, syntax if syntax != JPEG + "50" else JPEG + "70")))
    data.PixelData = image().tobytes()
    data["PixelData"].is_undefined_length = False
    data.file_meta.TransferSyntaxUID = pydicom.uid.UID(EXPLICIT)
    content = io.BytesIO()
    data.save_as(content, enforce_file_format=True)
    stated = syntax.encode().ljust(len(EXPLICIT) + 1, b"\0")
    head = struct.pack("<L", len(stated))[:2]
    at = content.getvalue().index(EXPLICIT.encode(), 132)
    bare = content.getvalue()
    assert "its pixels are not encapsulated" in refusal(bare[: at - 2] + head + stated + bare[at + len(EXPLICIT) + 1 :])


# Colours


def colour_stream(space: str) -> tuple[Levels, bytes]:
    colours = np.stack([image(bits=8), image(bits=8)[::-1], image(bits=8)[:, ::-1]], -1)
    how: dict[str, Any] = {"outcolorspace": "RGB"} if space == "RGB" else {}
    return colours, bytes(imagecodecs.jpeg8_encode(colours, level=98, **how))


@pytest.mark.parametrize("mode", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("space", ["RGB", "YBR"])
def test_the_markers_of_a_jpeg_stream_decide_its_colours(space: str, mode: str) -> None:
    colours, stream = colour_stream(space)
    assert (b"JFIF" in stream) == (space == "YBR")
    found = read(changed(dicom(colours, 8, JPEG + "50"), JPEG + "50", stream, PhotometricInterpretation=mode))
    np.testing.assert_allclose(found.pixels, colours @ [0.299, 0.587, 0.114] / 255, atol=0.03)
    contradicts = (space == "RGB") != (mode == "RGB")
    expected = (f"PhotometricInterpretation says {mode}, but the JPEG stream is {space}",)
    assert found.warnings == (expected if contradicts else ())
    if space == "YBR":
        theirs = pydicom.dcmread(
            io.BytesIO(changed(dicom(colours, 8, JPEG + "50"), JPEG + "50", stream, PhotometricInterpretation=mode))
        )
        np.testing.assert_allclose(found.pixels, theirs.pixel_array @ [0.299, 0.587, 0.114] / 255, atol=0.03)


@pytest.mark.parametrize("mode", ["RGB", "YBR_FULL_422"])
def test_without_markers_the_header_decides_the_colours(mode: str) -> None:
    colours, stream = colour_stream("YBR" if mode != "RGB" else "RGB")
    start = stream.index(b"\xff\xe0" if mode != "RGB" else b"\xff\xee")
    bare = stream[:start] + stream[start + 2 + int.from_bytes(stream[start + 2 : start + 4], "big") :]
    bare = bare.replace(b"\3R\x11\0G\x11\0B\x11\0", b"\3\1\x11\0\2\x11\0\3\x11\0").replace(
        b"\3R\0G\0B\0", b"\3\1\0\2\0\3\0"
    )
    found = read(changed(dicom(colours, 8, JPEG + "50"), JPEG + "50", bare, PhotometricInterpretation=mode))
    np.testing.assert_allclose(found.pixels, colours @ [0.299, 0.587, 0.114] / 255, atol=0.03)
    assert found.warnings == ()


@pytest.mark.skipif(shutil.which("dcmj2pnm") is None, reason="dcmtk is not installed")
@pytest.mark.parametrize("mode", ["RGB", "YBR_FULL_422"])
def test_dcmtk_that_guesses_colours_by_the_stream_agrees(mode: str, tmp_path: Path) -> None:
    colours, stream = colour_stream("YBR")
    content = changed(dicom(colours, 8, JPEG + "50"), JPEG + "50", stream, PhotometricInterpretation=mode)
    source, shot = tmp_path / "image.dcm", tmp_path / "image.ppm"
    source.write_bytes(content)
    subprocess.run(["dcmj2pnm", "+cg", "+op", source, shot], check=True)
    with Image.open(shot) as picture:
        theirs = np.asarray(picture) @ [0.299, 0.587, 0.114] / 255
    np.testing.assert_allclose(read(content).pixels, theirs, atol=0.02)


@pytest.mark.parametrize("mode", ["YBR_RCT", "YBR_ICT"])
@pytest.mark.parametrize("syntax", [*NATIVE, RLE, JPEG + "70", JPEG + "80", JPEG + "90"])
def test_colours_that_no_stream_transformed_are_rgb(syntax: str, mode: str) -> None:
    colours, _ = colour_stream("RGB")
    content = dicom(colours, 8, syntax, PhotometricInterpretation=mode)
    if syntax == JPEG + "90":
        stream = imagecodecs.jpeg2k_encode(colours, level=0, reversible=True, codecformat="j2k", mct=False)
        assert read(content).warnings == ()  # which was transformed
        content = changed(content, syntax, bytes(stream))
    found = read(content)
    np.testing.assert_allclose(found.pixels, colours @ [0.299, 0.587, 0.114] / 255, atol=1e-6)
    assert found.warnings == (
        f"PhotometricInterpretation says {mode}, but the pixel data are not; they were read as RGB",
    )


@pytest.mark.parametrize("mode", ["YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("kind", ["90", "201"])
def test_colours_that_a_stream_transformed_are_rgb(kind: str, mode: str) -> None:
    colours, _ = colour_stream("RGB")
    found = read(dicom(colours, 8, JPEG + kind, PhotometricInterpretation=mode))
    np.testing.assert_allclose(found.pixels, colours @ [0.299, 0.587, 0.114] / 255, atol=1e-6)
    assert found.warnings == (
        f"PhotometricInterpretation says {mode}, but the pixel data are not; they were read as RGB",
    )
    if kind == "90":
        stream = imagecodecs.jpeg2k_encode(colours, level=0, reversible=True, codecformat="j2k", mct=False)
        luma = read(changed(dicom(colours, 8, JPEG + "90", PhotometricInterpretation=mode), JPEG + "90", bytes(stream)))
        np.testing.assert_allclose(luma.pixels, colours[..., 0] / 255, atol=1e-6)
        assert luma.warnings == ()


# Rescaling and windows


def stated(tag: int, kind: str, value: bytes) -> bytes:
    """A file with a window, and an element as it is stated here."""
    content = dicom(image(), WindowCenter="2048", WindowWidth="4096", RescaleSlope="1", RescaleIntercept="0")
    data = pydicom.dcmread(io.BytesIO(content))
    data._dict[Tag(tag)] = RawDataElement(Tag(tag), kind, len(value), value, 0, False, True)  # pydicom checks others
    return written(data)


@pytest.mark.parametrize(
    ("tag", "value", "warning"),
    [
        (0x00281053, b"0 ", "RescaleSlope is 0; it was ignored"),
        (0x00281053, b"NaN ", "RescaleSlope is not a number; it was ignored"),
        (0x00281053, b"1,5 ", "RescaleSlope is not a number; it was ignored"),
        (0x00281052, b"inf ", "RescaleIntercept is not a number; it was ignored"),
        (0x00281053, b"", None),
        (0x00281052, b"  ", None),
        (0x00281051, b"0 ", "the window of the file has no centre or no positive width; it was ignored"),
        (0x00281051, b"-400", "the window of the file has no centre or no positive width; it was ignored"),
        (0x00281051, b"wide", "the window of the file has no centre or no positive width; it was ignored"),
        (0x00281050, b"", "the window of the file has no centre or no positive width; it was ignored"),
        (0x00281056, b"GAMMA ", "VOILUTFunction GAMMA is unknown; the window was read as LINEAR"),
        (0x00281056, b"linear", None),
    ],
)
def test_what_is_ignored_of_the_display_is_said(tag: int, value: bytes, warning: str | None) -> None:
    found = read(stated(tag, "CS" if tag == 0x00281056 else "DS", value))
    assert found.warnings == (() if warning is None else (warning,))
    np.testing.assert_allclose(found.pixels, image() / 4095, atol=2e-3)


# Look-up tables


def table_of(entries: Any, first: int, bits: int) -> Any:
    return Sequence([look_up(entries, first, bits)])


@pytest.mark.parametrize(("stated", "used"), [(16, 12), (16, 10), (12, 10), (16, 15), (14, 8), (12, 16)])
def test_entries_of_fewer_or_more_bits_than_stated_span_the_range_from_black_to_white(stated: int, used: int) -> None:
    entries = np.linspace(0, 2**used - 1, 4096).astype(int)
    found = read(dicom(image(), VOILUTSequence=table_of(entries, 0, stated)))
    np.testing.assert_array_equal(found.pixels, read(dicom(image(), VOILUTSequence=table_of(entries, 0, used))).pixels)
    assert found.warnings == (f"the VOI LUT says {stated} bits, but its entries have {used}",)


@pytest.mark.parametrize("held", [1, 100, 3000, 4094])
@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_table_with_fewer_entries_than_stated_is_refused(kind: str, held: int) -> None:
    item = look_up(np.arange(held), 0, 12)
    item.LUTDescriptor = [4096, 0, 12]
    elements: dict[str, Any] = {kind: Sequence([item])}
    message = refusal(dicom(image(), **elements))
    assert f"a look-up table of {held:,} entries; its descriptor says 4,096" in message


@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_table_with_more_entries_than_stated_is_refused_unless_they_are_padding(kind: str) -> None:
    item = look_up(np.arange(4096), 0, 12)
    item.LUTDescriptor = [2048, 0, 12]
    elements: dict[str, Any] = {kind: Sequence([item])}
    assert "a look-up table of 4,096 entries; its descriptor says 2,048" in refusal(dicom(image(), **elements))
    item.LUTDescriptor = [4096, 0, 12]
    item.LUTData = np.append(np.arange(4096), [0, 0, 0]).astype("<u2").tobytes()
    np.testing.assert_array_equal(read(dicom(image(), **elements)).pixels, read(dicom(image())).pixels)


def test_a_table_of_few_dark_entries_is_as_dark_as_it_says() -> None:
    found = read(dicom(np.array([[0, 1, 2, 3]]), 8, VOILUTSequence=table_of([0, 1, 2, 3], 0, 8)))
    np.testing.assert_allclose(found.pixels, [[0, 1 / 255, 2 / 255, 3 / 255]], atol=1e-7)
    assert found.warnings == ()


def test_a_palette_of_fewer_bits_than_stated_keeps_its_hues() -> None:
    palette: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for hue, entries in (("Red", [0, 255]), ("Green", [0, 100]), ("Blue", [0, 0])):
        palette[f"{hue}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        palette[f"{hue}PaletteColorLookupTableData"] = np.array(entries, "<u2").tobytes()
    found = read(dicom(np.array([[0, 1]]), 8, **palette))
    np.testing.assert_allclose(found.pixels, [[0, 0.299 + 0.587 * 100 / 255]], atol=1e-6)
    assert found.warnings == ("the palette says 16 bits, but its entries have 8",)


@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_a_first_value_without_its_sign_is_understood(syntax: str, kind: str) -> None:
    order = ">" if syntax == BIG else "<"
    signed = look_up(np.arange(4096), -2048, 12, order=order)
    unsigned = look_up(np.arange(4096), 65536 - 2048, 12, order=order)
    window: dict[str, Any] = {} if kind == "VOILUTSequence" else {"WindowCenter": 2048, "WindowWidth": 4096}
    levels = image() ^ 2048
    right, wrong = (
        read(dicom(levels, 12, syntax, **{"PixelRepresentation": 1, **window, kind: Sequence([item])}))
        for item in (signed, unsigned)
    )
    np.testing.assert_array_equal(wrong.pixels, right.pixels)
    np.testing.assert_allclose(wrong.pixels, image() / 4095, atol=1e-6)
    name = kind[: -len("LUTSequence")].replace("VOI", "VOI ").replace("Modality", "modality ") + "LUT"
    warning = (f"the first value of the {name} was read as -2048, not 63488",)
    assert wrong.warnings == (() if syntax == IMPLICIT else warning)  # which has no types: it is read as it is meant


def test_a_first_value_with_a_sign_that_it_should_not_have_is_understood() -> None:
    levels = image(bits=16) // 8 + 40000
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [8192, 40000 - 65536, 16])
    item.add_new("LUTData", "OW", (np.arange(8192) * 8).astype("<u2").tobytes())
    found = read(dicom(levels, 16, VOILUTSequence=Sequence([item])))
    np.testing.assert_allclose(found.pixels, (levels.astype(float) - 40000) * 8 / 65535, atol=1e-6)
    assert "was read as 40000, not -25536" in found.warnings[0]


def test_a_first_value_after_rescaling_may_exceed_what_is_stored() -> None:
    item = look_up(np.arange(4096), 40000, 12)
    found = read(dicom(image(), RescaleIntercept=40000, RescaleSlope=1, VOILUTSequence=Sequence([item])))
    np.testing.assert_allclose(found.pixels, image() / 4095, atol=1e-6)
    assert found.warnings == ()


@pytest.mark.skipif(shutil.which("dcmj2pnm") is None, reason="dcmtk is not installed")
@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
def test_dcmtk_understands_first_values_without_their_sign_too(kind: str, tmp_path: Path) -> None:
    table = Sequence([look_up(np.arange(4096), 65536 - 2048, 12)])
    window: dict[str, Any] = {} if kind == "VOILUTSequence" else {"WindowCenter": 2048, "WindowWidth": 4096}
    content = dicom(image(64, 48) ^ 2048, 12, **{"PixelRepresentation": 1, **window, kind: table})
    source, shot = tmp_path / "image.dcm", tmp_path / "image.pgm"
    source.write_bytes(content)
    subprocess.run(["dcmj2pnm", "+Wl" if not window else "+Wi", "1", "+opw", source, shot], check=True)
    with Image.open(shot) as picture:
        np.testing.assert_allclose(read(content).pixels, np.asarray(picture) / 65535, atol=1e-3)
