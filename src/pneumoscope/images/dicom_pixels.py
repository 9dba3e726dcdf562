"""Decodes the pixel data of DICOM files to stored levels, and reads how to display them.

Sections are of the DICOM standard, PS3.3 unless another part is named. docs/log.md: why not pydicom's decoders.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pneumoscope.errors import ImageError, MissingExtraError
from pneumoscope.images.dicom_elements import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    Parsed,
    read_first,
    read_integer,
    read_number,
    read_text,
)
from pneumoscope.images.greyscale import Levels, LookUp, Transformations

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_PIXELS = 100_000_000  # as in `images.read`
_JPEG = "1.2.840.10008.1.2.4."
_COMPRESSIONS = {
    **dict.fromkeys(("", IMPLICIT, "1.2.840.10008.1.2.1", BIG_ENDIAN), "uncompressed"),
    DEFLATED: "deflated",
    "1.2.840.10008.1.2.5": "RLE",
    **dict.fromkeys((_JPEG + "50", _JPEG + "51"), "JPEG"),
    **dict.fromkeys((_JPEG + "57", _JPEG + "70"), "JPEG lossless"),
    **dict.fromkeys((_JPEG + "80", _JPEG + "81"), "JPEG-LS"),
    **dict.fromkeys((_JPEG + "90", _JPEG + "91"), "JPEG 2000"),
    **dict.fromkeys((_JPEG + "201", _JPEG + "202", _JPEG + "203"), "HTJ2K"),
}
_NATIVE = ("uncompressed", "deflated")
_LOSSY = (_JPEG + "50", _JPEG + "51", _JPEG + "81", _JPEG + "91", _JPEG + "203")
_MODES = {
    1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
    3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The Image Pixel module (C.7.6.3), checked."""

    rows: int  # height
    columns: int  # width
    samples: int  # per pixel: 1, or 3 for colour
    mode: str  # PhotometricInterpretation
    allocated: int  # BitsAllocated: 8, 16 or 32
    bits: int  # BitsStored, at most 16
    shift: int  # how many bits lie below the lowest stored one
    signed: bool  # whether levels are two's complement
    planar: bool  # whether colours are stored one plane after the other
    compression: str  # `uncompressed`, `deflated`, `RLE`, `JPEG`, `JPEG lossless`, `JPEG-LS`, `JPEG 2000` or `HTJ2K`
    lossy: bool  # whether decoded levels may differ a little from the original ones


def read_layout(parsed: Parsed, name: str) -> Layout:
    """Read and check the layout of the pixels, before memory is allocated for them.

    Raises:
        ImageError: too many pixels, or of an unsupported kind.
        ValueError: an element is missing.
    """
    from pydicom.uid import UID

    elements = parsed.elements
    if parsed.head[:4] not in (b"\xe0\x7f\x10\0", b"\x7f\xe0\0\x10"):
        raise ImageError(f"{name}: floating-point pixels have no defined range. Export it with 8 to 16 bits.")
    if parsed.syntax not in _COMPRESSIONS:
        known = UID(parsed.syntax).name[:64]
        raise ImageError(f"{name}: unsupported transfer syntax {known}. Export it uncompressed.")
    rows, columns, samples, allocated = (
        read_integer(elements, keyword) for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    )
    bits = read_integer(elements, "BitsStored", allocated)
    mode = read_text(elements, "PhotometricInterpretation").upper()
    if min(rows, columns) < 1:
        raise ImageError(f"{name}: {columns} x {rows} pixels. Export it again.")
    if rows * columns > MAX_PIXELS:
        raise ImageError(f"{name}: {columns} x {rows} pixels; the limit is {MAX_PIXELS:,}.")
    if mode not in _MODES.get(samples, ()):
        raise ImageError(f"{name}: unsupported pixels: {samples} samples in {mode[:16]}. Export it in greyscale.")
    if allocated not in (8, 16, 32) or not 1 <= bits <= min(allocated, 16):
        raise ImageError(f"{name}: unsupported depth: {bits} bits stored in {allocated}. Export it with 8 to 16 bits.")
    compression = _COMPRESSIONS[parsed.syntax]
    high = read_integer(elements, "HighBit", bits - 1)
    return Layout(
        rows=rows,
        columns=columns,
        samples=samples,
        mode=mode,
        allocated=allocated,
        bits=bits,
        shift=high + 1 - bits if compression in _NATIVE and bits <= high < allocated else 0,
        signed=read_integer(elements, "PixelRepresentation", 0) == 1,
        planar=read_integer(elements, "PlanarConfiguration", 0) == 1,
        compression=compression,
        lossy=parsed.syntax in _LOSSY,
    )


def read_levels(parsed: Parsed, layout: Layout, name: str) -> tuple[Levels, int]:
    """Read the first frame.

    Returns:
        levels: unsigned (H, W), luma if colours are stored as YBR, or (H, W, 3) in RGB.
        lowest: the stored value of level 0.

    Raises:
        MissingExtraError: the pixels are compressed, and imagecodecs is not installed.
        Exception: whatever the decoders raise on damaged pixels.
    """
    levels = _read_native(parsed, layout) if layout.compression in _NATIVE else _decode(parsed, layout, name)
    if levels.ndim == 3 and layout.mode.startswith("YBR_FULL"):
        levels = levels[..., 0]  # full-range luma is luminance (C.7.6.3.1.2)
    # A JPEG 2000 stream states whether it is signed, and wins: exporters get the element wrong.
    signed = layout.signed if levels.dtype.kind == "u" else True
    half = 2 ** (layout.bits - 1)
    if layout.lossy and levels.dtype.kind == "i":
        levels = np.clip(levels, -half, half - 1)
    elif layout.lossy and not signed:  # the mask below would turn too bright a white into black
        levels = np.clip(levels, 0, 2 * half - 1)
    levels = levels.view(f"u{levels.dtype.itemsize}")
    kind = levels.dtype.type
    if layout.shift:
        levels = levels >> kind(layout.shift)
    if layout.bits < levels.dtype.itemsize * 8:  # the bits above, such as an overlay, are not part of the image
        levels = levels & kind(2**layout.bits - 1)
    return (levels ^ kind(half), -half) if signed else (levels, 0)


def read_transformations(parsed: Parsed, layout: Layout, lowest: int) -> Transformations:
    """Read how to display the levels (C.11.1, C.11.2, C.7.5.1.1.2); of several windows or LUTs the first."""
    elements, little = parsed.elements, parsed.little
    centre, width = read_number(elements, "WindowCenter"), read_number(elements, "WindowWidth")
    modality, voi = (read_first(elements, f"{kind}LUTSequence") for kind in ("Modality", "VOI"))
    hues = ("Red", "Green", "Blue") if layout.mode == "PALETTE COLOR" else ()
    return Transformations(
        modality=None if modality is None else _read_table(modality, "LUT", little),
        slope=read_number(elements, "RescaleSlope") or 1.0,  # 0 would erase the image
        intercept=read_number(elements, "RescaleIntercept") or 0.0,
        voi=None if voi is None else _read_table(voi, "LUT", little),
        window=None if centre is None or width is None or width <= 0 else (centre, width),
        function=read_text(elements, "VOILUTFunction").upper(),
        inverted=layout.mode == "MONOCHROME1",
        padding=_read_padding(elements, lowest),
        palette=tuple(_read_table(elements, f"{hue}PaletteColorLookupTable", little) for hue in hues),
    )


def _read_native(parsed: Parsed, layout: Layout) -> Levels:
    size, pixels = layout.allocated // 8, layout.rows * layout.columns
    shares_colour = layout.mode == "YBR_FULL_422"  # of two pixels: Y1 Y2 Cb Cr (C.7.6.3.1.2)
    count = pixels * (2 if shares_colour else layout.samples)
    swapped = not parsed.little and size == 1 and parsed.head[4:6] == b"OW"  # bytes in 16-bit words
    content = parsed.stream.read(count * size + (count % 2 if swapped else 0))
    if len(content) < count * size:
        raise ValueError(f"{len(content):,} of {count * size:,} bytes of pixels")
    if swapped:
        levels: Levels = np.frombuffer(content, "<u2").byteswap().view(np.uint8)[:count]
    else:
        levels = np.frombuffer(content, f"{'<' if parsed.little else '>'}u{size}", count).astype(f"u{size}", copy=False)
    if shares_colour:
        return levels.reshape(-1, 4)[:, :2].reshape(layout.rows, layout.columns)
    return _reshape(levels, layout, layout.planar)


def _reshape(levels: Levels, layout: Layout, planar: bool) -> Levels:
    if layout.samples == 1:
        return levels.reshape(layout.rows, layout.columns)
    if planar:
        return np.moveaxis(levels.reshape(3, layout.rows, layout.columns), 0, -1)
    return levels.reshape(layout.rows, layout.columns, 3)


def _decode(parsed: Parsed, layout: Layout, name: str) -> Levels:
    from pydicom.encaps import get_frame

    try:
        import imagecodecs as codecs
    except ImportError:
        raise MissingExtraError(
            f"{name}: reading {layout.compression} compression needs an extra: pip install 'pneumoscope[dicom]'."
        ) from None
    frame = get_frame(parsed.stream, 0, number_of_frames=read_integer(parsed.elements, "NumberOfFrames", 1))
    parsed.stream.read(0)  # raises if the stream was read too often, which pydicom takes for the end of the fragments
    if layout.compression == "RLE":
        kind, count = np.dtype(f"u{layout.allocated // 8}"), layout.rows * layout.columns * layout.samples
        levels = np.frombuffer(codecs.dicomrle_decode(frame, kind, out=count * kind.itemsize), kind)
        return _reshape(levels, layout, planar=True)  # PS3.5 G.2
    # Decoders allocate memory for the size that the stream states, so it is checked first.
    frame, *shape = _strip_stream(frame, layout.compression)
    if shape != [layout.rows, layout.columns, layout.samples]:
        raise ValueError(f"{shape} rows, columns and samples, expected {layout.rows} x {layout.columns}")
    if layout.compression == "JPEG-LS":
        levels = codecs.jpegls_decode(frame)
    elif layout.compression in ("JPEG 2000", "HTJ2K"):  # htj2k_decode returns rubbish for damaged streams
        levels = codecs.jpeg2k_decode(frame)
    elif layout.samples == 1:
        levels = codecs.jpeg8_decode(frame)
    elif layout.mode == "RGB" or layout.compression == "JPEG lossless":
        levels = codecs.jpeg8_decode(frame, colorspace="RGB", outcolorspace="RGB")
    else:
        levels = codecs.jpeg8_decode(frame, colorspace="YCBCR", outcolorspace="GRAYSCALE")
    if levels.shape[:2] != (layout.rows, layout.columns) or levels.dtype.kind not in "iu" or levels.dtype.itemsize > 2:
        raise ValueError(f"decoded to {levels.dtype} {levels.shape}")
    return levels


def _strip_stream(frame: bytes, compression: str) -> tuple[bytes, int, int, int]:
    """Strip extra bytes around a compressed stream; also return its rows, columns and samples.

    Raises:
        ValueError: its header is missing (ITU-T T.81 B.2.2, T.87 C.2.2, T.800 A.5.1), or its end.
    """
    end = frame.rfind(b"\xff\xd9")
    if compression in ("JPEG 2000", "HTJ2K"):
        start = frame.find(b"\xff\x4f\xff\x51")  # some exporters keep the boxes of a JP2 file around it
        if start < 0 or end < start or len(frame) < start + 42:
            raise ValueError("no complete JPEG 2000 stream")
        right, bottom, left, top, samples = struct.unpack(">4I16xH", frame[start + 8 : start + 42])
        return frame[start:], bottom - top, right - left, samples
    if end < len(frame) - 64:  # a margin for padding; libjpeg fills what is missing with grey
        raise ValueError("the compressed pixels are incomplete")
    position = frame.find(b"\xff\xd8") + 2
    while frame[position : position + 1] == b"\xff":
        marker = frame[position + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, samples = struct.unpack(">HHB", frame[position + 5 : position + 10])
            return frame, rows, columns, samples
        position += 1 if marker == 0xFF else 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    raise ValueError("no complete JPEG stream")


def _read_padding(elements: Dataset, lowest: int) -> tuple[int, int] | None:
    ends = [read_number(elements, keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    levels = [int(ends[0] if end is None else end) for end in ends]
    for index, level in enumerate(levels):  # exporters confuse signed and unsigned
        if lowest < 0 and level >= 2**15:
            levels[index] -= 2**16
        elif lowest == 0 and level < 0:
            levels[index] += 2**16
    return min(levels), max(levels)


def _read_table(elements: Dataset, name: str, little: bool) -> LookUp:
    """Read a look-up table (C.11.1.1, C.11.2.1.1, C.7.6.3.1.5); exporters do not always write it as specified."""
    order = "<" if little else ">"
    described, data = (elements.get(f"{name}{part}") for part in ("Descriptor", "Data"))
    if described is None or data is None:
        raise ValueError(f"no {name}Descriptor or no {name}Data")
    if isinstance(described, bytes):
        described = struct.unpack(f"{order}3H", described)
    count, start, bits = (int(value) for value in described)
    count = (count & 0xFFFF) or 65536
    if isinstance(data, bytes):  # one entry in a word, or two of 8 bits
        data = np.frombuffer(data, f"{order}u2" if len(data) >= 2 * count else np.uint8)
    entries = np.atleast_1d(np.asarray(data)).astype(np.int64)[:count] & 0xFFFF
    if not entries.size or not 1 <= bits <= 16:
        raise ValueError(f"a look-up table of {entries.size} entries with {bits} bits")
    return LookUp(start, entries.astype(np.float64), max(bits, int(entries.max()).bit_length()))
