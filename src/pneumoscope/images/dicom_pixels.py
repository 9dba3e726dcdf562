"""Decodes the pixel data of DICOM files to stored levels.

Sections are of the DICOM standard, PS3.3 unless another part is named. docs/log.md: why not pydicom's decoders.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from pneumoscope.errors import ImageError, MissingExtraError
from pneumoscope.images import limits
from pneumoscope.images.dicom_elements import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    NEEDS_EXTRA,
    Parsed,
    read_integer,
    read_number,
    read_text,
)
from pneumoscope.images.dicom_streams import Colour, Stream, decode_stream, name_compression, read_stream
from pneumoscope.images.greyscale import Levels
from pneumoscope.images.limits import CostError

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
_MAX_OFFSETS = 2**20  # bytes: 262,144 frames
_SECOND_FRAME = re.compile(rb"\xff\xd9\0*(\xff\xd8\xff|\xff\x4f\xff\x51)")  # an end, then another beginning
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
    frames: int  # NumberOfFrames


@dataclass(frozen=True, slots=True)
class Stored:
    """The levels of an image, as stored."""

    levels: Levels  # unsigned (H, W) of grey, of a palette, or of luma, or (H, W, 3) in RGB
    lowest: int  # the stored value of level 0
    bits: int  # the depth of the levels
    warnings: list[str]  # where header and pixels disagree, and what was made of it


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
    if rows * columns > limits.MAX_PIXELS:
        raise ImageError(f"{name}: {columns} x {rows} pixels; the limit is {limits.MAX_PIXELS:,}.")
    if mode not in _MODES.get(samples, ()):
        raise ImageError(f"{name}: unsupported pixels: {samples} samples in {mode[:16]}. Export it in greyscale.")
    if allocated not in (8, 16, 32) or not 1 <= bits <= min(allocated, 16):
        raise ImageError(f"{name}: unsupported depth: {bits} bits stored in {allocated}. Export it with 8 to 16 bits.")
    compression = _COMPRESSIONS[parsed.syntax]
    high = read_integer(elements, "HighBit", bits - 1)
    layout = Layout(
        rows=rows,
        columns=columns,
        samples=samples,
        mode=mode,
        allocated=allocated,
        bits=bits,
        shift=high + 1 - bits if compression in (*_NATIVE, "RLE") and bits <= high < allocated else 0,
        signed=read_integer(elements, "PixelRepresentation", 0) == 1,
        planar=read_integer(elements, "PlanarConfiguration", 0) == 1,
        compression=compression,
        lossy=parsed.syntax in _LOSSY,
        frames=max(1, read_integer(elements, "NumberOfFrames", 1)),
    )
    _check_memory(layout, name)
    return layout


def _check_memory(layout: Layout, name: str) -> None:
    """Bound what decoding takes: the levels, twice, and what the decoder of JPEG 2000 needs.

    Raises:
        ImageError: it is too much.
    """
    cell = 2 * layout.allocated // 8 + (4 if layout.compression in ("JPEG 2000", "HTJ2K") else 0)
    if (needed := layout.rows * layout.columns * (layout.samples * cell + 4)) > limits.MAX_MEMORY:
        raise ImageError(
            f"{name}: {layout.columns} x {layout.rows} pixels of {layout.samples} x {layout.allocated} bits need "
            f"{needed:,} bytes; the limit is {limits.MAX_MEMORY:,}. Export it at a smaller size."
        )


def read_levels(parsed: Parsed, layout: Layout, name: str) -> Stored:
    """Read the stored levels of the first frame, one for each sample.

    Where header and pixels disagree, they are read as the pixels are, with a warning, or refused.

    Raises:
        ImageError: the header contradicts the pixels.
        MissingExtraError: the pixels are compressed, and imagecodecs is not installed.
        Exception: whatever the decoders raise on damaged pixels.
    """
    warnings: list[str] = []
    native = layout.compression in _NATIVE
    levels, layout = _read_native(parsed, layout, name, warnings) if native else _decode(parsed, layout, name, warnings)
    bits, signed = layout.bits, layout.signed
    half = 2 ** (bits - 1)
    if layout.lossy and levels.dtype.kind == "i":
        levels = np.clip(levels, -half, half - 1)
    elif layout.lossy and not signed:  # the mask below would turn too bright a white into black
        levels = np.clip(levels, 0, 2 * half - 1)
    levels = levels.view(f"u{levels.dtype.itemsize}")
    kind = levels.dtype.type
    if layout.shift:
        levels = levels >> kind(layout.shift)
    if bits < levels.dtype.itemsize * 8:  # the bits above, such as an overlay, are not part of the image
        levels = levels & kind(2**bits - 1)
    return Stored(levels ^ kind(half), -half, bits, warnings) if signed else Stored(levels, 0, bits, warnings)


def _read_native(parsed: Parsed, layout: Layout, name: str, warnings: list[str]) -> tuple[Levels, Layout]:
    """Levels of uncompressed pixels, and their layout, corrected."""
    if parsed.length is None:
        raise ImageError(
            f"{name}: its pixels are compressed, but its transfer syntax says uncompressed. Export it again."
        )
    size, pixels = layout.allocated // 8, layout.rows * layout.columns
    shares_colour = layout.mode == "YBR_FULL_422"  # of two pixels: Y1 Y2 Cb Cr (C.7.6.3.1.2)
    full = pixels * 3 * size * layout.frames
    if shares_colour and full <= parsed.length <= full + 1:
        warnings.append("YBR_FULL_422 has two samples for each pixel, but the pixel data hold three (all were read)")
        shares_colour = False
    count = pixels * (2 if shares_colour else layout.samples)
    _check_length(parsed.length, count * size, layout, name, warnings)
    swapped = not parsed.little and size == 1 and parsed.head[4:6] == b"OW"  # bytes in 16-bit words
    content = parsed.stream.read(count * size + (count % 2 if swapped else 0))
    if len(content) < count * size:
        raise ValueError(f"{len(content):,} of {count * size:,} bytes of pixels")
    if swapped:
        levels: Levels = np.frombuffer(content, "<u2").byteswap().view(np.uint8)[:count]
    else:
        levels = np.frombuffer(content, f"{'<' if parsed.little else '>'}u{size}", count).astype(f"u{size}", copy=False)
    levels, layout = _correct_bits(levels, layout, parsed, warnings)
    if shares_colour:
        return levels.reshape(-1, 4)[:, :2].reshape(layout.rows, layout.columns), layout
    return _find_luma(_reshape(levels, layout, layout.planar), layout, warnings), layout


def _check_length(length: int, frame: int, layout: Layout, name: str, warnings: list[str]) -> None:
    """Compare the stated length of the pixel data with that of a frame and the number of frames.

    Raises:
        ImageError: they contradict each other, so that the pixels may not be what the header says.
    """
    excess = length - frame * layout.frames
    held, rest = divmod(length, frame)
    if excess < 0 and held and rest <= 1:
        _note_frames(layout, held, warnings)
        return
    if not 0 <= excess < max(2, frame // max(layout.rows, layout.columns)):  # less than one more row or column
        of = f" in {layout.frames} frames" if layout.frames > 1 else ""
        raise ImageError(
            f"{name}: its header and its pixel data contradict each other: {length:,} of {frame * layout.frames:,} "
            f"bytes for {layout.columns} x {layout.rows} pixels of {layout.samples} x {layout.allocated} bits{of}. "
            "Export it again."
        )
    if excess > 1:
        warnings.append(f"the pixel data have {excess} bytes too many (they were ignored)")
    _note_frames(layout, layout.frames, warnings)


def _note_frames(layout: Layout, held: int | str, warnings: list[str]) -> None:
    """Warn of several frames, or of a number of them that the header does not say."""
    if held != layout.frames:
        warnings.append(f"NumberOfFrames says {layout.frames}, but the pixel data hold {held} (the first was read)")
    elif layout.frames > 1:
        warnings.append(f"the file has {layout.frames} frames (the first was read)")


def _fit(levels: Levels, bits: int, signed: bool, slack: int = 0) -> bool:
    """Whether levels fit into these bits: as they are, or as signed levels whose sign goes on to the left."""
    half = 2 ** (bits - 1)
    if levels.dtype.kind == "i":
        return bool(levels.min() >= -half - slack and levels.max() < half + slack)
    if bits == levels.dtype.itemsize * 8 or int(levels.max()) < 2 * half + slack:
        return True
    if not signed:
        return False
    values = levels.view(f"i{levels.dtype.itemsize}")
    return bool(values.min() >= -half and values.max() < half)


def _reshape(levels: Levels, layout: Layout, planar: bool) -> Levels:
    if layout.samples == 1:
        return levels.reshape(layout.rows, layout.columns)
    if planar:
        return np.moveaxis(levels.reshape(3, layout.rows, layout.columns), 0, -1)
    return levels.reshape(layout.rows, layout.columns, 3)


def _decode(parsed: Parsed, layout: Layout, name: str, warnings: list[str]) -> tuple[Levels, Layout]:
    """Levels of compressed pixels, and their layout, corrected."""
    try:
        import imagecodecs as codecs
    except ImportError:
        raise MissingExtraError(f"{name}: reading {layout.compression} compression {NEEDS_EXTRA}.") from None
    frame = _read_frame(parsed, layout, name, warnings)
    if (held := name_compression(frame)) and held != layout.compression:
        warnings.append(f"the transfer syntax says {layout.compression}, but the stream is {held}")
        layout = replace(layout, compression=held, lossy=held != "RLE", shift=layout.shift if held == "RLE" else 0)
        _check_memory(layout, name)
    if layout.compression == "RLE":
        kind, count = np.dtype(f"u{layout.allocated // 8}"), layout.rows * layout.columns * layout.samples
        if (segments := int.from_bytes(frame[:4], "little")) != kind.itemsize * layout.samples:
            raise ValueError(f"{segments} segments, expected {kind.itemsize * layout.samples}")  # PS3.5 G.2
        levels = np.frombuffer(codecs.dicomrle_decode(frame, kind, out=count * kind.itemsize), kind)
        levels, layout = _correct_bits(levels, layout, parsed, warnings)
        return _find_luma(_reshape(levels, layout, planar=True), layout, warnings), layout
    # Decoders allocate memory for the size that the stream states, so it is checked first.
    stream = read_stream(frame, layout.compression)
    if (stream.rows, stream.columns, stream.samples) != (layout.rows, layout.columns, layout.samples):
        raise ValueError(
            f"the stream has {stream.columns} x {stream.rows} pixels of {stream.samples} samples, the header says "
            f"{layout.columns} x {layout.rows} of {layout.samples}"
        )
    stated: Colour = "RGB" if layout.mode == "RGB" else "YBR"
    if stream.colour and stream.colour != stated:
        warnings.append(f"PhotometricInterpretation says {layout.mode}, but the JPEG stream is {stream.colour}")
    colour = stream.colour or ("RGB" if layout.compression == "JPEG lossless" else stated)
    levels = decode_stream(stream, layout.compression, colour, warnings)
    if levels.ndim == 3 and stream.colour != "RGB":
        levels = _find_luma(levels, layout, warnings, stream.transformed)
    return levels, _correct_by_stream(levels, stream, layout, warnings)


def _find_luma(levels: Levels, layout: Layout, warnings: list[str], transformed: bool = False) -> Levels:
    """Levels of grey, of luma, which is luminance (C.7.6.3.1.2), or of RGB, whatever the decoder gave.

    Args:
        levels: (H, W), or (H, W, 3) as the decoder gave them.
        layout: what the header says.
        warnings: what is contradictory is added here.
        transformed: whether a JPEG 2000 stream had YBR_RCT or YBR_ICT, which its decoder made RGB.
    """
    if levels.ndim == 2 or layout.mode == "RGB" or (layout.mode in ("YBR_RCT", "YBR_ICT") and transformed):
        return levels
    if layout.mode.startswith("YBR_FULL") and not transformed:
        return levels[..., 0]
    warnings.append(f"PhotometricInterpretation says {layout.mode}, but the pixel data are not; they were read as RGB")
    return levels


def _correct_bits(levels: Levels, layout: Layout, parsed: Parsed, warnings: list[str]) -> tuple[Levels, Layout]:
    """Correct HighBit, PixelRepresentation, BitsStored and the order of bytes where uncompressed levels disagree."""
    bits, kind, empty = layout.bits, levels.dtype.type, layout.allocated - layout.bits
    if layout.shift and (levels & kind(2**layout.shift - 1)).any() and _fit(levels, bits, layout.signed):
        warnings.append(f"HighBit says that levels begin at bit {layout.shift}, but they begin at bit 0")
        layout = replace(layout, shift=0)
    values = levels >> kind(layout.shift) if layout.shift else levels
    if _fit(values, bits, layout.signed):
        return levels, layout
    ends = [read_number(parsed.elements, keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    padding = sorted(int(end) % 2**layout.allocated for end in ends if end is not None)
    if padding and layout.allocated == 16:
        image = values[(values < padding[0]) | (values > padding[-1])]
        if not image.size or _fit(image, bits, layout.signed):
            warnings.append(f"PixelPaddingValue has more than the {bits} bits of BitsStored")
            return levels, replace(layout, bits=layout.allocated)
    if not layout.shift and _fit(values, bits, signed=True):
        warnings.append("PixelRepresentation says unsigned, but the pixel data hold negative numbers")
        return levels, replace(layout, signed=True)
    if not layout.shift and not (levels & kind(2**empty - 1)).any():
        warnings.append(f"HighBit says that levels begin at bit 0, but they begin at bit {empty}")
        return levels, replace(layout, shift=empty)
    if not layout.shift and _fit(swapped := levels.byteswap(), bits, layout.signed):
        warnings.append("the bytes of the pixel data are in the other order than the transfer syntax says")
        return swapped, layout
    warnings.append(f"bits above the {bits} of BitsStored are set (they were ignored)")
    return levels, layout


def _read_frame(parsed: Parsed, layout: Layout, name: str, warnings: list[str]) -> bytes:
    """The first frame of encapsulated pixel data."""
    from pydicom.encaps import get_frame, parse_basic_offsets

    start = parsed.stream.tell()
    if parsed.stream.read(4) != b"\xfe\xff\x00\xe0":
        raise ImageError(
            f"{name}: its transfer syntax says {layout.compression} compression, but its pixels are not encapsulated. "
            "Export it again."
        )
    if int.from_bytes(parsed.stream.read(4), "little") > _MAX_OFFSETS:
        raise CostError("an offset table of very many frames")
    parsed.stream.seek(start)
    offsets = len(parse_basic_offsets(parsed.stream))
    parsed.stream.seek(start)
    frame = get_frame(parsed.stream, 0, number_of_frames=layout.frames)
    parsed.stream.read(0)  # raises if the stream was read too often, which pydicom takes for the end of the fragments
    held: int | str = offsets or layout.frames
    _note_frames(layout, "several" if held == layout.frames == 1 and _SECOND_FRAME.search(frame) else held, warnings)
    return frame


def _correct_by_stream(levels: Levels, stream: Stream, layout: Layout, warnings: list[str]) -> Layout:
    """Correct BitsStored and PixelRepresentation where the stream or its levels contradict them.

    Many encoders give all 16 allocated bits to levels that have fewer, which changes nothing. Only JPEG 2000 says
    whether levels are signed.
    """
    if levels.dtype.kind == "i" and not layout.signed:
        warnings.append(f"PixelRepresentation says unsigned, but the {layout.compression} stream is signed")
        layout = replace(layout, signed=True)
    slack = 2**layout.bits // 16 if layout.lossy else 0  # lossy compression goes a little beyond the range
    if stream.bits == layout.bits or (stream.bits > layout.bits and _fit(levels, layout.bits, layout.signed, slack)):
        return layout
    if stream.bits > layout.bits and _fit(levels, layout.bits, signed=True):
        warnings.append("PixelRepresentation says unsigned, but the pixel data hold negative numbers")
        return replace(layout, signed=True)
    warnings.append(f"BitsStored says {layout.bits}, but the {layout.compression} stream has {stream.bits} bits")
    return replace(layout, bits=stream.bits)
