"""Reads and decodes compressed streams of DICOM pixel data; what a stream says of itself counts, not the elements."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from pneumoscope.images.greyscale import Levels
from pneumoscope.images.jpeg2000_streams import check_stream
from pneumoscope.images.jpeg_completeness import decode_whole
from pneumoscope.images.jpeg_streams import check_scans, read_outline, walk_segments

Colour: TypeAlias = Literal["RGB", "YBR", ""]
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_DISCRETE_COSINE = (0xC0, 0xC1, 0xC2)  # JPEG whose colours are usually converted; lossless ones are not


@dataclass(frozen=True, slots=True)
class Stream:
    """A compressed image and its own header."""

    content: bytes  # without what surrounds it
    rows: int  # height
    columns: int  # width
    samples: int  # per pixel
    bits: int  # precision of each sample
    transformed: bool = False  # whether a JPEG 2000 stream turned RGB into YBR_RCT or YBR_ICT
    colour: Colour = ""  # what the markers of a JPEG say its three samples are; empty where they say nothing


def name_compression(frame: bytes) -> str:
    """Name what a frame is compressed with, by its own first bytes, as `Layout.compression` does; empty if unknown."""
    if frame[4:8] == b"\x40\0\0\0" and 1 <= int.from_bytes(frame[:4], "little") <= 15:  # PS3.5 G.5
        return "RLE"
    if frame.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")):
        start = frame.find(b"\xff\x4f\xff\x51")
        return "HTJ2K" if frame[start + 6 : start + 7] and frame[start + 6] & 0x40 else "JPEG 2000"  # T.814 A.2
    if frame.startswith(b"\xff\xd8"):
        for marker, _ in walk_segments(frame, 2):
            if marker == 0xF7:
                return "JPEG-LS"
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                return "JPEG lossless" if marker in _LOSSLESS else "JPEG"
    return ""


def read_stream(frame: bytes, compression: str) -> Stream:
    """Read the header of a compressed stream, and strip extra bytes around it.

    Raises:
        ValueError: its header is missing (ITU-T T.81 B.2.2, T.87 C.2.2, T.800 A.5.1), or its end.
    """
    end = frame.rfind(b"\xff\xd9")
    if compression in ("JPEG 2000", "HTJ2K"):
        start = frame.find(b"\xff\x4f\xff\x51")  # some exporters keep the boxes of a JP2 file around it
        if start < 0 or end < start or len(frame) < start + 43:
            raise ValueError("no complete JPEG 2000 stream")
        right, bottom, left, top, samples = struct.unpack(">4I16xH", frame[start + 8 : start + 42])
        depths = {1 + (depth & 0x7F) for depth in frame[start + 42 : start + 42 + 3 * samples : 3]}
        if len(depths) != 1:
            raise ValueError("samples of different depths")
        style = frame.find(b"\xff\x52", start + 42 + 3 * samples)
        transformed = style >= 0 and frame[style + 8 : style + 9] == b"\1"  # A.6.1: multiple component transformation
        return Stream(frame[start:], bottom - top, right - left, samples, depths.pop(), transformed)
    if end < len(frame) - 64:  # a margin for padding; libjpeg fills what is missing with grey
        raise ValueError("the compressed pixels are incomplete")
    jfif, adobe = False, None
    for marker, at in walk_segments(frame, frame.find(b"\xff\xd8") + 2):
        segment = frame[at + 2 : at + 16]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, rows, columns, samples = struct.unpack(">BHHB", segment[:6])
            ids = frame[at + 8 : at + 8 + 3 * samples : 3]
            colour = _find_colour(jfif, adobe, ids) if marker in _DISCRETE_COSINE and samples == 3 else ""
            return Stream(frame, rows, columns, samples, bits, colour=colour)
        jfif |= marker == 0xE0 and segment.startswith(b"JFIF\0")
        if marker == 0xEE and segment.startswith(b"Adobe") and len(segment) > 11:
            adobe = segment[11]
    raise ValueError("no complete JPEG stream")


def _find_colour(jfif: bool, adobe: int | None, ids: bytes) -> Colour:
    """What three samples are, by the rules of libjpeg (`jdapimin.c`)."""
    if jfif:
        return "YBR"
    if adobe is not None:
        return "RGB" if adobe == 0 else "YBR"
    return "RGB" if ids in (b"RGB", b"rgb") else ""


def decode_stream(stream: Stream, compression: str, colour: Colour, warnings: list[str]) -> Levels:
    """Decode a stream to levels (H, W), (H, W, 3) in RGB, or (H, W) of luma if a JPEG's `colour` is YBR.

    What is unusual is added to `warnings`.

    Raises:
        ImportError: imagecodecs is not installed.
        CostError: it would take too much time or memory.
        Exception: whatever the decoders raise on damaged streams.
    """
    import imagecodecs as codecs

    if compression in ("JPEG 2000", "HTJ2K"):
        check_stream(stream.content)
    elif compression != "JPEG-LS":  # each scan of which holds a component of its own
        check_scans(stream.content, stream.rows * stream.columns)
    if compression == "JPEG-LS":
        levels = codecs.jpegls_decode(stream.content)
    elif compression in ("JPEG 2000", "HTJ2K"):  # htj2k_decode returns rubbish for damaged streams
        levels = codecs.jpeg2k_decode(stream.content)
    else:
        if stream.samples == 1:
            decode = codecs.jpeg8_decode
        elif colour == "RGB":
            decode = partial(codecs.jpeg8_decode, colorspace="RGB", outcolorspace="RGB")
        else:
            decode = partial(codecs.jpeg8_decode, colorspace="YCBCR", outcolorspace="GRAYSCALE")
        if (outline := read_outline(stream.content)) is None:
            raise ValueError("no complete JPEG stream")
        levels = decode_whole(stream.content, outline, decode, warnings)
    if levels.shape[:2] != (stream.rows, stream.columns) or levels.dtype.kind not in "iu" or levels.dtype.itemsize > 2:
        raise ValueError(f"decoded to {levels.dtype} {levels.shape}")
    return np.asarray(levels)
