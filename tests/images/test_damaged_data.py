"""Compressed data that are cut off, zeroed or left out are found, in files and in DICOM; whole ones are read."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_files import JPEG, RLE, Levels, compressed, dicom, image, written
from PIL import Image
from pydicom.encaps import encapsulate
from test_read import encoded

from pneumoscope.errors import ImageError
from pneumoscope.images.read import read_radiograph

EIGHT, TWELVE, SIXTEEN = image(200, 256, 8), image(200, 256, 12), image(200, 256, 16)
END = b"\xff\xd9"


def wrap(stream: bytes, levels: Levels, bits: int, syntax: str) -> bytes:
    """A DICOM file with this stream."""
    data = pydicom.dcmread(io.BytesIO(dicom(np.zeros_like(levels), bits, syntax)))
    data.PixelData = encapsulate([stream])
    return written(data, syntax)


def plain(stream: bytes) -> bytes:
    return stream


def jpeg(**options: Any) -> bytes:
    return encoded(Image.fromarray(EIGHT), "JPEG", quality=90, **options)


Made = tuple[bytes, Callable[[bytes], bytes]]
STREAMS: dict[str, Made] = {
    "file": (jpeg(), plain),
    "file, colour": (encoded(Image.fromarray(np.stack([EIGHT, EIGHT[::-1], EIGHT], -1)), "JPEG"), plain),
    "file, optimised": (jpeg(optimize=True), plain),
    "file, restarts": (jpeg(restart_marker_rows=1), plain),
    "file, progressive": (jpeg(progressive=True), plain),
}
COMPRESSED = [
    *(("50", EIGHT, 8), ("51", TWELVE, 12), ("57", TWELVE, 12), ("70", EIGHT, 8), ("70", SIXTEEN, 16)),
    *(("80", TWELVE, 12), ("81", EIGHT, 8), ("90", TWELVE, 12), ("91", TWELVE, 12), ("201", TWELVE, 12)),
]
STREAMS |= {
    f"DICOM {kind}, {bits}": (
        compressed(levels, bits, JPEG + kind),
        partial(wrap, levels=levels, bits=bits, syntax=JPEG + kind),
    )
    for kind, levels, bits in COMPRESSED
}
STREAMS |= {
    f"DICOM, {name}": (STREAMS[f"file, {name}"][0], partial(wrap, levels=EIGHT, bits=8, syntax=JPEG + "50"))
    for name in ("progressive", "restarts")
}
STREAMS["DICOM RLE"] = (compressed(TWELVE, 12, RLE), partial(wrap, levels=TWELVE, bits=12, syntax=RLE))
HUFFMAN = [kind for kind in STREAMS if kind.startswith("file") or kind[6:8] in ("50", "51", "57", "70")]
SEQUENTIAL = [kind for kind in HUFFMAN if not kind.endswith(("restarts", "progressive"))]


def refusal(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        read_radiograph(content, "image")
    return str(caught.value)


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("ended", [False, True])
def test_an_image_of_which_a_part_is_missing_is_refused(kind: str, share: float, ended: bool) -> None:
    stream, wrapped = STREAMS[kind]
    assert not read_radiograph(wrapped(stream)).warnings
    assert "damaged or truncated" in refusal(wrapped(stream[: int(len(stream) * share)] + END * ended))


@pytest.mark.parametrize("kind", [*SEQUENTIAL, "DICOM 80, 12", "DICOM 81, 8", "DICOM 201, 12", "DICOM RLE"])
@pytest.mark.parametrize("change", [lambda part: bytes(len(part)), lambda _: b""], ids=["zeroed", "left out"])
@pytest.mark.parametrize("place", [0.3, 0.6])
def test_an_image_of_which_a_tenth_of_the_data_is_wrong_is_refused(
    kind: str, change: Callable[[bytes], bytes], place: float
) -> None:
    stream, wrapped = STREAMS[kind]
    start, end = (int(len(stream) * share) for share in (place, place + 0.1))
    assert "damaged or truncated" in refusal(wrapped(stream[:start] + change(stream[start:end]) + stream[end:]))


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_data_left_over_behind_the_last_pixel_are_refused_and_zeros_are_not(kind: str) -> None:
    stream, wrapped = STREAMS[kind]
    whole = read_radiograph(wrapped(stream))
    more = np.random.default_rng(0).integers(0, 255, 200, np.uint8).tobytes()
    assert "left over" in refusal(wrapped(stream[:-2] + more + END))
    found = read_radiograph(wrapped(stream[:-2] + bytes(6) + END))
    np.testing.assert_array_equal(found.pixels, whole.pixels)
    assert not found.warnings


@pytest.mark.parametrize("kind", [kind for kind in SEQUENTIAL if kind.startswith("file")])
def test_a_whole_jpeg_without_its_end_marker_is_read_with_a_warning(kind: str) -> None:
    stream, _ = STREAMS[kind]
    found = read_radiograph(stream[:-2])
    np.testing.assert_array_equal(found.pixels, read_radiograph(stream).pixels)
    assert found.warnings == ("the file ends without the end marker of its JPEG; the image is complete",)
    assert "damaged" in refusal(stream[:-40])


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (7, 9), (64, 64), (100, 30)])
def test_constant_images_and_those_with_an_empty_end_are_whole(level: int, shape: tuple[int, int]) -> None:
    """Their tables may have a single code, and what follows the data may look like them."""
    levels = np.full(shape, level, np.uint8)
    noisy = levels.copy()
    noisy[: shape[0] // 2] = np.random.default_rng(0).integers(0, 256, noisy[: shape[0] // 2].shape)
    for each in (levels, noisy):
        options: list[dict[str, Any]] = [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_rows": 1}]
        for option in [*options, {"optimize": True, "restart_marker_blocks": 1}]:
            stream = encoded(Image.fromarray(each), "JPEG", quality=95, **option)
            reference = np.asarray(Image.open(io.BytesIO(stream)), np.float32) / 255
            for content in (stream, wrap(stream, each, 8, JPEG + "50")):
                np.testing.assert_allclose(read_radiograph(content).pixels, reference, atol=1e-6)
        for kind in ("57", "70"):
            content = wrap(compressed(each, 8, JPEG + kind), each, 8, JPEG + kind)
            np.testing.assert_allclose(read_radiograph(content).pixels, each / 255, atol=1e-6)


@pytest.mark.parametrize("predictor", range(1, 8))
def test_lossless_jpeg_is_checked_with_every_predictor(predictor: int) -> None:
    stream = bytes(imagecodecs.jpeg8_encode(TWELVE, lossless=True, predictor=predictor, bitspersample=12))
    whole = read_radiograph(wrap(stream, TWELVE, 12, JPEG + "57"))
    low, high = int(TWELVE.min()), int(TWELVE.max())
    np.testing.assert_allclose(whole.pixels, (TWELVE.astype(float) - low) / (high - low), atol=1e-6)
    cut = stream[:-40] + END
    assert "are missing" in refusal(wrap(cut, TWELVE, 12, JPEG + "57"))


@pytest.mark.skipif(shutil.which("dcmdjpeg") is None, reason="needs dcmtk")
@pytest.mark.parametrize("kind", ["50", "57", "70"])
def test_a_whole_image_is_decoded_as_dcmtk_does(kind: str, tmp_path: Path) -> None:
    path, plainly = tmp_path / "image.dcm", tmp_path / "plain.dcm"
    path.write_bytes(dicom(EIGHT, 8, JPEG + kind, StudyID="1", PatientName="p", StudyDate="20200101"))
    subprocess.run(["dcmdjpeg", str(path), str(plainly)], check=True, capture_output=True)
    np.testing.assert_allclose(
        read_radiograph(path).pixels, pydicom.dcmread(plainly).pixel_array / 255, atol=1.01 / 255 if kind == "50" else 0
    )


# Checksums


def chunks(content: bytes) -> list[tuple[int, int]]:
    """Where each chunk of a PNG begins and ends."""
    found, at = [], 8
    while at < len(content):
        end = at + 12 + int(struct.unpack(">I", content[at : at + 4])[0])
        found.append((at, end))
        at = end
    return found


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_a_png_with_a_changed_byte_is_refused(mode: str) -> None:
    content = encoded(Image.fromarray(EIGHT if mode == "L" else SIXTEEN), "PNG", compress_level=0)
    at = len(content) // 2
    assert "wrong checksum" in refusal(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def test_a_png_without_its_end_chunk_is_read_with_a_warning() -> None:
    content = encoded(Image.fromarray(EIGHT), "PNG")
    found = read_radiograph(content[:-12])
    np.testing.assert_allclose(found.pixels, EIGHT / 255, atol=1e-6)
    assert found.warnings == ("the file ends without the end chunk of its PNG; the image is complete",)
    assert "damaged" in refusal(content[: chunks(content)[-2][1] - 1])


def test_a_png_whose_metadata_are_damaged_is_read() -> None:
    content = encoded(Image.fromarray(EIGHT), "PNG")
    end = chunks(content)[-1][0]
    damaged = content[:end] + struct.pack(">I", 3) + b"tEXta\0bxxxx" + content[end:]
    np.testing.assert_allclose(read_radiograph(damaged).pixels, EIGHT / 255, atol=1e-6)


@pytest.mark.parametrize("levels", [EIGHT, SIXTEEN, np.stack([EIGHT] * 3, -1)], ids=["8", "16", "colour"])
def test_a_deflated_tiff_with_a_changed_byte_is_refused(levels: Levels) -> None:
    content = encoded(Image.fromarray(levels), "TIFF", compression="tiff_adobe_deflate")
    assert not read_radiograph(content).warnings
    for share in (0.3, 0.5, 0.7):
        at = int(len(content) * share)
        assert "damaged" in refusal(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


@pytest.mark.parametrize("kind", ["DICOM 51, 12", "DICOM 70, 16"])
def test_a_long_stream_that_is_decoded_several_times_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, wrapped = STREAMS[kind]
    monkeypatch.setattr("pneumoscope.images.jpeg_completeness.MAX_STREAM", len(stream) + 1)
    read_radiograph(wrapped(stream))
    monkeypatch.setattr("pneumoscope.images.jpeg_completeness.MAX_STREAM", len(stream) - 2)
    assert "a JPEG stream of" in refusal(wrapped(stream))


def test_very_many_restart_markers_are_refused() -> None:
    stream, wrapped = STREAMS["DICOM, restarts"]
    for content in (stream[:-2] + b"\xff\xd0" * 400_001 + END, wrapped(stream[:-2] + b"\xff\xd0" * 400_001 + END)):
        assert "restart markers" in refusal(content)


@pytest.mark.parametrize("quality", [75, 90])
@pytest.mark.parametrize("rows", [1, 8, 30])
def test_a_whole_image_that_ends_bright_is_read(quality: int, rows: int) -> None:
    # Where the last blocks are clipped to white, whatever follows the data decodes to the same white.
    for seed in range(20):
        grey = np.random.default_rng(seed).integers(60, 200, (200, 256)).astype(np.uint8)
        grey[-rows:] = 255
        stream = encoded(Image.fromarray(grey), "JPEG", quality=quality)
        found = read_radiograph(wrap(stream, grey, 8, JPEG + "50"))
        assert found.pixels.shape == grey.shape
        assert not found.warnings


def test_what_is_left_of_the_end_chunk_of_a_png_does_no_harm() -> None:
    whole = encoded(Image.fromarray(EIGHT), "PNG")
    for content in (whole[:-12], whole[:-5], whole[:-12] + bytes(2), whole[:-1] + b"?"):
        found = read_radiograph(content)
        np.testing.assert_allclose(found.pixels, EIGHT / 255, atol=1e-6)


@pytest.mark.parametrize("left", [4, 8, 11])
def test_a_png_that_ends_within_a_chunk_of_pixels_is_refused(left: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400)).astype(np.uint8)
    whole = encoded(Image.fromarray(noise), "PNG")  # of several chunks
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4) - 4
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_radiograph(whole[: second + left])
