"""Reading: whatever a file holds, it gives pixels as promised or an error that names it."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dicom
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from pneumoscope.errors import ImageError
from pneumoscope.images.limits import MAX_BYTES, MAX_PIXELS
from pneumoscope.images.read import (
    Reading,
    is_image,
    read_bytes,
    read_pixels,
    read_radiograph,
)

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000")
CORPUS = Path(__file__).parent / "corpus"
IMAGE = np.add.outer(np.arange(24) * 6, np.arange(32) * 3).astype(np.uint8)


def encoded(picture: Image.Image | ArrayLike, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    picture.save(content, form, **options)
    return content.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG of these filtered rows, or of a header alone that promises them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(width: int, height: int, bits: int, data: bytes, *, white: int = 1, kind: int = 1, order: str = "<") -> bytes:
    """An uncompressed grey TIFF; `white` 0: white is zero; `kind` 1: unsigned, 2: signed, 3: float."""
    tags = (
        *((256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, white), (273, 4, 8)),
        *((277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, kind)),
    )
    entries = [
        struct.pack(order + "HHI", tag, size, 1) + struct.pack(order + ("Hxx" if size == 3 else "I"), value)
        for tag, size, value in tags
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return head + data + struct.pack(order + "H", len(tags)) + b"".join(entries) + bytes(4)


def require_promise(pixels: NDArray[np.float32]) -> None:
    assert pixels.ndim == 2
    assert pixels.size
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    assert 0 <= pixels.min() <= pixels.max() <= 1


def read_grey(levels: ArrayLike, form: str, **options: Any) -> NDArray[np.float32]:
    """Pixels as levels of 0 to 255."""
    return read_pixels(encoded(np.asarray(levels, np.uint8), form, **options)) * 255


# What a file says is what comes out


@pytest.mark.parametrize("form", FORMATS)
def test_a_grey_image_keeps_its_levels_and_size(form: str) -> None:
    pixels = read_grey(IMAGE, form, **({"lossless": True} if form == "WEBP" else {}))
    assert pixels.shape == IMAGE.shape
    np.testing.assert_allclose(pixels, IMAGE, atol=4 if form == "JPEG" else 1e-4)


@pytest.mark.parametrize("form", FORMATS)
def test_bytes_path_and_string_give_the_same_pixels(form: str, tmp_path: Path) -> None:
    path = tmp_path / "image"  # the content says what it is, not the name
    path.write_bytes(encoded(IMAGE, form))
    pixels = read_pixels(path)
    require_promise(pixels)
    np.testing.assert_array_equal(pixels, read_pixels(path.read_bytes()))
    np.testing.assert_array_equal(pixels, read_pixels(str(path)))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
@settings(deadline=None)
@given(levels=st.binary(min_size=1, max_size=64))
def test_rgb_with_equal_channels_is_the_grey_image(form: str, levels: bytes) -> None:
    grey = np.frombuffer(levels, np.uint8)[None]
    pixels = read_pixels(encoded(np.stack([grey] * 3, axis=-1), form))
    np.testing.assert_array_equal(pixels, read_pixels(encoded(grey, form)))


def test_colour_becomes_luminance() -> None:
    pixels = read_pixels(encoded(np.uint8([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]), "PNG"))  # type: ignore[arg-type]
    np.testing.assert_allclose(pixels, [[0.299, 0.587, 0.114]], atol=2 / 255)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_kept(form: str, compression: str | None) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    options = {"compression": compression} if compression and form == "TIFF" else {}
    pixels = read_pixels(encoded(levels, form, **options))
    require_promise(pixels)
    assert pixels[0, 0] == 0
    assert pixels[-1, -1] == 1
    assert np.diff(pixels.ravel()).min() > 0
    np.testing.assert_allclose(pixels, levels / 65535, atol=1e-7)


def test_sixteen_bits_of_jpeg_2000_are_kept() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_allclose(read_pixels(encoded(levels, "JPEG2000")), levels / 65535, atol=1e-7)


def test_sixteen_bits_of_either_byte_order_are_kept() -> None:
    levels = np.uint16([[0, 1, 258, 65535]])  # type: ignore[arg-type]
    big = tiff(4, 1, 16, levels.astype(">u2").tobytes(), order=">")
    little = tiff(4, 1, 16, levels.astype("<u2").tobytes())
    np.testing.assert_allclose(read_pixels(big), levels / 65535, atol=1e-7)
    np.testing.assert_array_equal(read_pixels(big), read_pixels(little))


def test_twelve_bit_tiff_fills_the_range() -> None:
    levels = (0, 4095, 1, 2000)
    packed = int("".join(f"{level:012b}" for level in levels), 2).to_bytes(6, "big")
    np.testing.assert_allclose(read_pixels(tiff(4, 1, 12, packed)), [np.array(levels) / 4095], atol=1e-7)


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_tiff_whose_zero_is_white_is_inverted(bits: int) -> None:
    width, data = (8, b"\xa5") if bits == 1 else (4, np.array([0, 2**bits - 1, 1, 100], f"<u{bits // 8}").tobytes())
    upright, inverted = (read_pixels(tiff(width, 1, bits, data, white=white)) for white in (1, 0))
    assert {upright.min(), upright.max()} == {0, 1}
    np.testing.assert_allclose(inverted, 1 - upright, atol=1e-7)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_one_bit_is_black_and_white(form: str) -> None:
    bits = np.eye(9, 17, dtype=bool)
    np.testing.assert_array_equal(read_pixels(encoded(Image.fromarray(bits), form)), bits.astype(np.float32))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_becomes_black(form: str, mode: str) -> None:
    grey, alpha = np.uint8([[200, 200, 200, 0]]), np.uint8([[255, 0, 128, 255]])  # type: ignore[arg-type]
    picture = Image.merge(mode, [Image.fromarray(band) for band in (*[grey] * (len(mode) - 1), alpha)])
    np.testing.assert_allclose(read_pixels(encoded(picture, form)) * 255, [[200, 0, 100, 0]], atol=1)


def test_a_palette_is_applied_and_its_transparency_becomes_black() -> None:
    picture = Image.fromarray(np.uint8([[0, 1, 2]]), "L").convert("P")  # type: ignore[arg-type]
    picture.putpalette([*(250,) * 3, *(10,) * 3, *(90,) * 3])
    np.testing.assert_allclose(read_pixels(encoded(picture, "PNG")) * 255, [[250, 10, 90]], atol=1e-4)
    np.testing.assert_allclose(read_pixels(encoded(picture, "PNG", transparency=0)) * 255, [[0, 10, 90]], atol=1e-4)
    halves = encoded(picture, "PNG", transparency=bytes([128, 255, 0]))
    np.testing.assert_allclose(read_pixels(halves) * 255, [[125, 10, 0]], atol=1)


@pytest.mark.parametrize(("depth", "row"), [(8, b"\0\xff\x80"), (16, b"\0\xff\xff\x80\x80")])
def test_a_transparent_grey_level_becomes_black(depth: int, row: bytes) -> None:
    clear = chunk(b"tRNS", struct.pack(">H", 2**depth - 1))
    np.testing.assert_allclose(read_pixels(png(2, 1, row, depth, extra=clear)), [[0, 128 / 255]], atol=1e-6)
    np.testing.assert_allclose(read_pixels(png(2, 1, row, depth)), [[1, 128 / 255]], atol=1e-6)


def test_cmyk_is_printed_on_white_paper() -> None:
    ink = np.zeros((16, 32, 4), np.uint8)
    ink[:, 16:, 3] = 255
    pixels = read_pixels(encoded(Image.fromarray(ink, "CMYK"), "JPEG"))
    np.testing.assert_allclose(pixels[:, [4, 28]], [[1, 0]] * 16, atol=0.02)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "deep PNG", "deep TIFF"])
@pytest.mark.parametrize(
    ("orientation", "quarters"),  # of the image stored as 0 1 / 2 3, by the EXIF standard
    [(1, "0123"), (2, "1032"), (3, "3210"), (4, "2301"), (5, "0213"), (6, "2031"), (7, "3120"), (8, "1302")],
)
def test_the_exif_orientation_is_applied(form: str, orientation: int, quarters: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    shape = (16, 32)  # sides differ, so that a turned image shows it; flat blocks, so that JPEG keeps them
    stored = np.kron(np.array([[0, 1], [2, 3]]), np.ones(shape)) * 60
    levels = (stored * 257).astype(np.uint16) if form.startswith("deep") else stored.astype(np.uint8)
    pixels = read_pixels(encoded(levels, form.removeprefix("deep "), exif=exif))
    turned = shape[::-1] if orientation > 4 else shape
    expected = np.kron(np.array([int(quarter) for quarter in quarters]).reshape(2, 2), np.ones(turned)) * 60
    np.testing.assert_allclose(pixels * 255, expected, atol=3)


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP", "GIF"])
def test_the_first_of_several_pages_is_read(form: str) -> None:
    pages = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (40, 200, 90)]
    lossless = {"lossless": True} if form == "WEBP" else {}
    content = encoded(pages[0], form, save_all=True, append_images=pages[1:], **lossless)
    np.testing.assert_allclose(read_pixels(content) * 255, np.full((8, 8), 40), atol=1)


def test_real_radiographs_are_read_as_they_are(real_data: Path) -> None:
    paths = sorted((real_data / "seed-400").rglob("*.jpeg"))[::20]
    assert paths
    for path in paths:
        pixels = read_pixels(path)
        with Image.open(path) as picture:
            np.testing.assert_array_equal(pixels, np.asarray(picture.convert("L"), np.float32) / 255)


# What a radiograph knows of its file


def colourful(red: float = 0.8, green: float = 0.5, blue: float = 0.2) -> Image.Image:
    """An image of 64 x 96 pixels, tinted."""
    image = np.add.outer(np.arange(64), np.arange(96)).astype(np.float32)
    return Image.fromarray((image[..., None] * (red, green, blue)).astype(np.uint8))


@pytest.mark.parametrize("kind", ["grey", "colour", "CMYK", "palette", "alpha", "deep", "one bit"])
def test_mode_and_size_are_those_of_the_file(kind: str) -> None:
    picture, form, mode = {
        "grey": (colourful().convert("L"), "JPEG", "L"),
        "colour": (colourful(), "JPEG", "RGB"),
        "CMYK": (colourful().convert("CMYK"), "JPEG", "CMYK"),
        "palette": (colourful().convert("P"), "PNG", "P"),
        "alpha": (colourful().convert("RGBA"), "PNG", "RGBA"),
        "deep": (Image.fromarray(np.zeros((64, 96), np.uint16)), "PNG", "I;16"),
        "one bit": (colourful().convert("1"), "TIFF", "1"),
    }[kind]
    for min_side in (None, 16):
        image = read_radiograph(encoded(picture, form), min_side=min_side)
        assert (image.format, image.mode, image.size) == (form, mode, (64, 96))
        assert image.tags is None


def test_the_size_of_a_turned_image_is_the_upright_one() -> None:
    exif = Image.Exif()
    exif[274] = 6
    image = read_radiograph(encoded(colourful(), "JPEG", exif=exif), min_side=16)
    assert image.size == (96, 64)
    assert image.pixels.shape == (24, 16)


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("quality", [30, 50, 60, 75, 85, 90, 95, 98])
def test_the_quality_of_a_jpeg_is_found_in_its_tables(quality: int, colour: bool) -> None:
    picture = colourful() if colour else colourful().convert("L")
    found = read_radiograph(encoded(picture, "JPEG", quality=quality)).quality
    assert found == pytest.approx(quality, abs=1)


@pytest.mark.parametrize("form", sorted(set(FORMATS) - {"JPEG"}))
def test_other_formats_have_no_quality(form: str) -> None:
    assert read_radiograph(encoded(colourful().convert("L"), form)).quality is None


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_colour_is_the_range_of_red_green_and_blue(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {"subsampling": 0, "quality": 98} if form == "JPEG" else {}
    levels = np.asarray(colourful(), int)
    expected = np.mean(levels.max(axis=-1) - levels.min(axis=-1)) / 255
    assert expected > 0.15
    for min_side in (None, 16):
        image = read_radiograph(encoded(colourful(), form, **options), min_side=min_side, colour=True)
        assert image.colour == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("form", FORMATS)
def test_a_grey_image_has_no_colour_however_it_is_saved(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    for mode in ("L",) if form in ("GIF", "JPEG2000") else ("L", "RGB"):
        content = encoded(colourful().convert("L").convert(mode), form, **options)
        assert read_radiograph(content, colour=True).colour == 0


def test_pure_red_is_all_colour() -> None:
    assert read_radiograph(encoded(np.full((4, 4, 3), (255, 0, 0), np.uint8), "PNG"), colour=True).colour == 1


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits"])
def test_the_compression_of_a_tiff_is_reported(compression: str) -> None:
    assert read_radiograph(encoded(IMAGE, "TIFF", compression=compression)).compression == compression


def test_a_file_of_several_jpegs_is_read_as_the_first() -> None:
    pages = [Image.fromarray(np.full((32, 48), level, np.uint8)) for level in (40, 200)]
    image = read_radiograph(encoded(pages[0], "MPO", save_all=True, append_images=pages[1:]))
    assert (image.format, image.mode) == ("JPEG", "L")
    np.testing.assert_allclose(image.pixels * 255, np.full((32, 48), 40), atol=1)


@pytest.mark.parametrize("form", FORMATS)
def test_an_image_with_air_bright_is_inverted_on_request_only(form: str) -> None:
    content = encoded(IMAGE, form)
    upright, inverted = read_pixels(content), read_pixels(content, reading=Reading(invert=True))
    require_promise(inverted)
    np.testing.assert_array_equal(inverted, 1 - upright)


def test_a_dicom_image_is_inverted_on_request_and_keeps_its_tags() -> None:
    content = dicom(np.uint16([[0, 1000], [2000, 4095]]), ViewPosition="PA")  # type: ignore[arg-type]
    upright, inverted = (read_radiograph(content, reading=Reading(invert=invert)) for invert in (False, True))
    np.testing.assert_array_equal(inverted.pixels, 1 - upright.pixels)
    assert (inverted.format, inverted.mode, inverted.size) == ("DICOM", "MONOCHROME2", (2, 2))
    assert inverted.compression == "uncompressed"
    assert inverted.tags is not None
    assert inverted.tags.view == "PA"


# Reduced scale


def smooth(height: int, width: int) -> Image.Image:
    """A tinted image whose detail survives being halved three times."""
    y, x = np.mgrid[:height, :width]
    grey = 110 + 60 * np.sin(x / width * 5) * np.cos(y / height * 4)
    return Image.fromarray(np.clip(grey[..., None] * (1.1, 1, 0.8), 0, 255).astype(np.uint8))


def jpegs(height: int, width: int) -> dict[str, bytes]:
    """The ways in which a JPEG may keep colour."""
    picture = smooth(height, width)
    return {
        "grey": encoded(picture.convert("L"), "JPEG", quality=95),
        "YCbCr": encoded(picture, "JPEG", quality=95),
        "YCbCr, colour at half the scale": encoded(picture, "JPEG", quality=95, subsampling=2),
        "progressive": encoded(picture, "JPEG", quality=95, progressive=True),
        "RGB": encoded(picture, "JPEG", quality=95, keep_rgb=True),
        "CMYK": encoded(picture.convert("CMYK"), "JPEG", quality=95),
    }


@pytest.mark.parametrize(
    ("min_side", "scale"), [(None, 1), (161, 1), (160, 1), (81, 1), (80, 2), (41, 2), (40, 4), (21, 4), (20, 8), (1, 8)]
)
def test_a_jpeg_is_read_at_the_smallest_sufficient_scale(min_side: int | None, scale: int) -> None:
    for kind, content in jpegs(160, 240).items():
        image, full = read_radiograph(content, min_side=min_side), read_pixels(content)
        assert image.size == (160, 240), kind
        require_promise(image.pixels)
        blocks = full.reshape(160 // scale, scale, 240 // scale, scale).mean(axis=(1, 3))
        assert image.pixels.shape == blocks.shape, kind
        np.testing.assert_allclose(image.pixels, blocks, atol=0.015, err_msg=kind)


@pytest.mark.parametrize(
    ("size", "scale"), [((161, 240), 1), ((160, 241), 1), ((162, 240), 2), ((164, 242), 2), ((164, 244), 4)]
)
def test_a_scale_that_would_leave_a_remainder_is_not_used(size: tuple[int, int], scale: int) -> None:
    for content in jpegs(*size).values():
        assert read_radiograph(content, min_side=20).pixels.shape == (size[0] // scale, size[1] // scale)


@pytest.mark.parametrize("form", sorted(set(FORMATS) - {"JPEG"}))
def test_other_formats_are_read_in_full(form: str) -> None:
    content = encoded(smooth(64, 96).convert("L"), form)
    np.testing.assert_array_equal(read_radiograph(content, min_side=8).pixels, read_pixels(content))


def test_the_luminance_of_a_jpeg_is_the_one_it_stores() -> None:
    for kind, content in jpegs(160, 240).items():
        with Image.open(io.BytesIO(content)) as picture:
            converted = np.asarray(picture.convert("RGB").convert("L"), np.float32)
        np.testing.assert_allclose(read_pixels(content) * 255, converted, atol=1.01, err_msg=kind)


# Odd metadata


ODD_EXIF = {
    "garbage": b"garbage!garbage",
    "cut off": b"II*\0\x08\0\0\0\xff\xff",
    "no orientation": struct.pack("<2sHIHHHII", b"II", 42, 8, 1, 274, 3, 1, 99),
    "text for orientation": struct.pack("<2sHIHHHI4sI", b"II", 42, 8, 1, 274, 2, 4, b"six\0", 0),
    "a pointer to nowhere": struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 0x8769, 4, 1, 99999, 0),
}


@pytest.mark.parametrize("exif", ODD_EXIF.values(), ids=ODD_EXIF)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_unusual_metadata_do_not_make_an_image_unreadable(form: str, exif: bytes) -> None:
    content = encoded(IMAGE, form, exif=b"Exif\0\0" + exif)
    assert exif in content
    with warnings.catch_warnings(record=True) as caught:
        pixels = read_pixels(content)
    np.testing.assert_array_equal(pixels, read_pixels(encoded(IMAGE, form)))
    assert not caught


def test_reading_in_threads_leaves_other_warnings_alone() -> None:
    content = encoded(IMAGE, "JPEG", exif=b"Exif\0\0" + ODD_EXIF["cut off"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read_pixels, [content] * 400))
        warnings.warn("one of the user's own", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["one of the user's own"]


# What cannot be read


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("form", FORMATS)
def test_truncated_file_is_an_error_that_names_it(form: str, share: float, tmp_path: Path) -> None:
    content = encoded(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8), form)
    path = tmp_path / "truncated image.x"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError, match=r"truncated image\.x: "):
        read_pixels(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"not an image", b"<svg/>", b"%PDF-1.7", b"GIF89a\1\0\1\0\0\0\0;", b"\x89PNG\r\n\x1a\n", b"BM"],
)
def test_other_content_is_an_error_that_names_the_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"image\.png: .+\."):
        read_pixels(path)
    with pytest.raises(ImageError, match=r"^upload 7: .+\."):
        read_pixels(content, "upload 7")


@pytest.mark.parametrize(("width", "height"), [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_an_image_without_pixels_is_an_error(form: str, width: int, height: int) -> None:
    bitmap = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 70, 0, 54, 40, width, height, 1, 24, 0, 16, 0, 0, 0, 0) + bytes(16)
    content = {"PNG": png(width, height, b"\0" * 8), "TIFF": tiff(width, height, 8, bytes(8)), "BMP": bitmap}[form]
    with pytest.raises(ImageError):
        read_pixels(content)


@pytest.mark.parametrize(("bits", "kind"), [(16, 2), (16, 3), (32, 1), (32, 2), (32, 3), (64, 3)])
def test_pixels_without_an_agreed_range_are_refused_with_a_remedy(bits: int, kind: int) -> None:
    with pytest.raises(ImageError, match=r"^scan: .*8 or 16 bits"):
        read_pixels(tiff(4, 1, bits, bytes(bits // 2), kind=kind), "scan")


def test_a_missing_file_and_a_dangling_link_are_errors_that_name_them(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name in ("image.png", "link.png", "loop.png"):
        with pytest.raises(ImageError, match=rf"{name}: cannot be read: (No such file|Too many levels|embedded null)"):
            read_pixels(tmp_path / name)
    for name in ("x" * 300 + ".png", "nul\0.png"):
        with pytest.raises(ImageError, match=r"\.png: "):
            read_pixels(tmp_path / name)


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_an_error_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path, tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(ImageError, match=rf"{path}: not a regular file"):
            read_pixels(path)


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="needs Linux")
def test_a_file_whose_reading_fails_is_an_error_that_names_it() -> None:
    with pytest.raises(ImageError, match="/proc/self/mem: cannot be read"):
        read_pixels(Path("/proc/self/mem"))


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.tiff"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no space on disk
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"huge\.tiff: 536,870,913 bytes"):
        read_bytes(path)
    assert time.monotonic() - started < 5


def test_files_are_known_by_their_beginning() -> None:
    for kind, content in SOURCES.items():
        assert is_image(content[:512]), kind
    assert is_image(dicom(IMAGE, 8)[:512])
    assert is_image(dicom(IMAGE, 8, meta=False)[:512])


@pytest.mark.parametrize(
    "head",
    [
        *(b"", b"B", b"BM", b"BMI of the patients, 2024\n1,2,3", b"II. Methods", b"MM", b"RIFF\x10\0\0\0WAVEfmt "),
        *(b"%PDF-1.7", b"PK\3\4", b"path,label\na.png,NORMAL\n", b"<?xml version='1.0'?>", b"\x7fELF\2", bytes(512)),
    ],
)
def test_other_files_are_not_taken_for_images(head: bytes) -> None:
    assert not is_image(head)


# Bombs


def bomb(form: str) -> bytes:
    """A small file whose header promises 30000 x 30000 pixels (WebP: as many as it can, JPEG: 65500 x 65500)."""
    side = struct.pack("<i", 30000)
    if form == "PNG":
        return png(30000, 30000, b"")
    if form == "TIFF":
        return tiff(30000, 30000, 8, b"\0")
    if form == "BMP":
        content = encoded(IMAGE, "BMP")
        return content[:18] + side * 2 + content[26:]
    if form == "JPEG":
        content = encoded(IMAGE, "JPEG")
        start = content.index(b"\xff\xc0") + 5
        return content[:start] + struct.pack(">HH", 65500, 65500) + content[start + 4 :]
    if form == "GIF":
        return b"GIF89a" + struct.pack("<HH", 30000, 30000) + bytes(3) + encoded(IMAGE, "GIF")[13:]
    if form == "JPEG2000":
        content = encoded(IMAGE, "JPEG2000")
        start = content.index(b"ihdr") + 4
        content = content[:start] + struct.pack(">II", 30000, 30000) + content[start + 8 :]
        start = content.index(b"\xff\x4f\xff\x51") + 8
        return content[:start] + struct.pack(">II", 30000, 30000) + content[start + 8 :]
    content = encoded(IMAGE, "WEBP", save_all=True, append_images=[Image.fromarray(255 - IMAGE)])
    start = content.index(b"VP8X") + 12
    return content[:start] + b"\xff\xff\x00\xfe\xff\x00" + content[start + 6 :]


@pytest.mark.parametrize("form", FORMATS)
def test_a_header_with_too_many_pixels_is_refused(form: str) -> None:
    with pytest.raises(ImageError, match=r"^image: too large; the limit is 100,000,000 pixels"):
        read_pixels(bomb(form), "image")


def test_the_limit_of_pixels_is_enforced_where_the_decoder_only_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow only warns here
        with pytest.raises(ImageError, match="the limit is 100,000,000 pixels"):
            read_pixels(png(MAX_PIXELS // 1000 + 1, 1000, b""))


def test_below_the_bound_no_warning_of_the_decoder_is_seen() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ImageError, match="truncated"):
            read_pixels(png(MAX_PIXELS // 1000, 1000, b""))
    assert not caught


def first_scan(content: bytes) -> tuple[int, bytes]:
    """Where the first scan of a progressive JPEG begins, and the scan: repeated there, it changes nothing."""
    at = content.index(b"\xff\xda")
    end = re.compile(rb"\xff[^\0]").search(content, at + 2)
    assert end is not None
    return at, content[at : end.start()]


def test_a_jpeg_with_very_many_scans_is_refused() -> None:
    """Of a few bytes each, they would take minutes: each of them visits every pixel."""
    content = encoded(IMAGE, "JPEG", progressive=True)
    at, scan = first_scan(content)
    read_pixels(content[:at] + 20 * scan + content[at:])
    with pytest.raises(ImageError, match=r"^image: a JPEG with \d{3} scans, too many"):
        read_pixels(content[:at] + 100 * scan + content[at:], "image")


def test_a_large_jpeg_may_have_fewer_scans_than_a_small_one() -> None:
    content = encoded(np.zeros((7000, 7000), np.uint8), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    assert read_pixels(content).shape == (7000, 7000)
    with pytest.raises(ImageError, match="too many for its size"):
        read_pixels(content[:-2] + 50 * scan + content[-2:])


def test_data_that_a_camera_appends_to_a_jpeg_is_ignored() -> None:
    content = encoded(IMAGE, "JPEG")
    appended = b"\xff\xda\0\x02" * 200
    np.testing.assert_array_equal(read_pixels(content + appended), read_pixels(content))
    noted = b"\xff\xfe" + struct.pack(">H", 2 + len(appended)) + appended  # a comment
    np.testing.assert_array_equal(read_pixels(content[:2] + noted + content[2:]), read_pixels(content))


def test_bombs_and_images_that_do_not_fit_are_refused_within_bounded_memory(tmp_path: Path) -> None:
    compressor = zlib.compressobj(1)
    rows = [compressor.compress(bytes(20001 * 100)) for _ in range(200)]  # 20000 x 20000, all there
    real = chunk(b"IDAT", b"".join([*rows, compressor.flush()]))
    header = png(20000, 20000, b"").split(zlib.compress(b""))[0][:33]
    (tmp_path / "real.png").write_bytes(header + real + chunk(b"IEND", b""))
    (tmp_path / "claimed.png").write_bytes(bomb("PNG"))
    (tmp_path / "large.png").write_bytes(png(9000, 9000, bytes(9000 * (9000 // 8 + 1)), depth=1))
    script = """if True:
        import resource, sys
        from pathlib import Path
        from PIL import Image, PngImagePlugin
        from pneumoscope.errors import ImageError
        from pneumoscope.images.read import read_pixels
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
        for path in sys.argv[1:]:
            try:
                read_pixels(Path(path))
            except ImageError as problem:
                print(problem)
        """
    started = time.monotonic()
    names = ("real.png", "claimed.png", "large.png")
    done = subprocess.run(
        [sys.executable, "-c", script, *names], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert time.monotonic() - started < 30
    assert done.stdout.splitlines() == [
        "real.png: too large; the limit is 100,000,000 pixels. Save it at a smaller size.",
        "claimed.png: too large; the limit is 100,000,000 pixels. Save it at a smaller size.",
        "large.png: does not fit in memory. Save it at a smaller size.",
    ]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_conversion_takes_little_memory_beyond_the_decoded_image_and_its_bytes(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGBA", (4000, 4000), (200, 100, 50, 128)).save(tmp_path / "image.png", exif=exif)
    script = """if True:
        import re, sys
        from pathlib import Path
        from pneumoscope.images.read import read_pixels
        def memory(kind):
            return int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
        read_pixels(Path(sys.argv[1]).with_name("small.png"))  # what has to be imported is
        before = memory("VmRSS")
        read_pixels(Path(sys.argv[1]))
        print(memory("VmHWM") - before)
        """
    Image.new("RGBA", (4, 4)).save(tmp_path / "small.png")
    # Through a shell: a child begins with the peak of its parent.
    command = ["/bin/sh", "-c", '"$0" "$@"; exit $?', sys.executable, "-c", script, str(tmp_path / "image.png")]
    # Commands that ran in this process have made Pillow keep memory.
    environment = {name: value for name, value in os.environ.items() if name != "PILLOW_BLOCKS_MAX"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    picture, grey = 4 * 4000 * 4000 / 2**20, 4000 * 4000 / 2**20  # the float32 pixels come when the picture has gone
    assert picture + grey - 8 < float(done.stdout) < picture + grey + 40


def test_a_text_chunk_that_swells_is_refused() -> None:
    swelling = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000), 1))
    with pytest.raises(ImageError):
        read_pixels(png(2, 1, b"\0\1\2", extra=swelling))


# Any bytes at all


def sources() -> dict[str, bytes]:
    """Small intact files of every format and kind."""
    picture = Image.fromarray(IMAGE)
    exif = Image.Exif()
    exif[274] = 6
    deep = Image.fromarray(IMAGE.astype(np.uint16) * 257)
    frames: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(255 - IMAGE)]}
    return {
        "JPEG": encoded(picture, "JPEG", exif=exif),
        "progressive JPEG": encoded(picture.convert("RGB"), "JPEG", progressive=True),
        "CMYK JPEG": encoded(picture.convert("CMYK"), "JPEG"),
        "PNG": encoded(picture, "PNG", exif=exif),
        "deep PNG": encoded(deep, "PNG"),
        "palette PNG": encoded(picture.convert("P"), "PNG", transparency=bytes(range(9))),
        "RGBA PNG": encoded(picture.convert("RGBA"), "PNG"),
        "animated PNG": encoded(picture, "PNG", **frames),
        "TIFF": encoded(picture, "TIFF", exif=exif),
        "deep TIFF": encoded(deep, "TIFF", compression="tiff_lzw"),
        "JPEG in TIFF": encoded(picture.convert("RGB"), "TIFF", compression="jpeg"),
        "fax in TIFF": encoded(picture.convert("1"), "TIFF", compression="group4"),
        "pages of TIFF": encoded(picture, "TIFF", **frames),
        "BMP": encoded(picture, "BMP"),
        "palette BMP": encoded(picture.convert("P"), "BMP"),
        "WEBP": encoded(picture, "WEBP", exif=exif),
        "lossless WEBP": encoded(picture.convert("RGBA"), "WEBP", lossless=True),
        "animated WEBP": encoded(picture, "WEBP", **frames),
        "GIF": encoded(picture, "GIF", transparency=9),
        "animated GIF": encoded(picture.convert("P"), "GIF", **frames),
        "JPEG 2000": encoded(picture, "JPEG2000"),
        "deep JPEG 2000": encoded(deep, "JPEG2000", no_jp2=True),
    }


SOURCES = sources()


def require_image_or_image_error(content: bytes) -> None:
    for reading, min_side in ((Reading(), None), (Reading(invert=True, any_modality=True), 4)):
        try:
            image = read_radiograph(content, "image", reading, min_side, colour=True)
        except ImageError as problem:
            assert str(problem).startswith("image: ")  # noqa: PT017 - either outcome is right
            assert str(problem).isprintable()  # noqa: PT017 - it goes to terminals
        else:
            require_promise(image.pixels)
            assert min(image.size) >= 1
            assert all(str(value).isprintable() for value in (asdict(image.tags) if image.tags else {}).values())
            assert image.quality is None or 1 <= image.quality <= 100
            assert image.colour is None or 0 <= image.colour <= 1


@pytest.mark.parametrize("kind", SOURCES)
def test_the_intact_files_that_are_mutated_below_are_read(kind: str) -> None:
    require_promise(read_pixels(SOURCES[kind]))


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_fuzzing_found_gives_an_image_or_an_image_error(path: Path) -> None:
    """One input of each kind of outcome that `fuzz_reading.py` met; all grew from generated images."""
    require_image_or_image_error(path.read_bytes())


@settings(max_examples=100, deadline=None)
@given(head=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"BM"]), rest=st.binary())
@example(head=b"", rest=b"")
def test_any_bytes_give_an_image_error(head: bytes, rest: bytes) -> None:
    require_image_or_image_error(head + rest)


@settings(max_examples=600, deadline=None)
@given(
    kind=st.sampled_from(sorted(SOURCES)),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["set", "cut", "insert"]), st.binary(max_size=4)),
        min_size=1,
        max_size=4,
    ),
    whole=st.booleans(),
)
def test_damaged_files_give_pixels_or_an_image_error(
    kind: str, changes: list[tuple[float, str, bytes]], whole: bool
) -> None:
    content = SOURCES[kind]
    for place, change, some in changes:
        # Half of the examples change the first bytes, where the headers are.
        at = int(place * (len(content) if whole else min(len(content), 80)))
        rest = content[at:] if change == "insert" else content[at + len(some) :]
        content = content[:at] + some + rest if change != "cut" else content[:at] + content[at + 1 + len(some) :]
    require_image_or_image_error(content)
