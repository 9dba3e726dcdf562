"""Compares the checksums of PNG chunks and of deflated strips of TIFF, which the decoders leave out."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from pneumoscope.images.limits import MAX_READS, CostError

_SIGNATURE = 8  # bytes
_EMPTY_CHUNK = 12  # bytes of a chunk without data, such as IEND
_PART = 2**18  # bytes that are unpacked at a time


def check_chunks(content: bytes) -> str:
    """Compare the checksums of the chunks of a PNG that its pixels depend on (PNG, 5.3 to 5.5).

    Returns:
        what is missing without harm; empty if nothing is.

    Raises:
        CostError: there are very many chunks.
        ValueError: a chunk is damaged or incomplete.
    """
    view = memoryview(content)
    position, before = _SIGNATURE, b""
    for _ in range(MAX_READS):
        if position >= len(content):
            return "the file ends without the end chunk of its PNG; the image is complete"
        length, kind = int.from_bytes(view[position : position + 4], "big"), content[position + 4 : position + 8]
        end, name = position + 8 + length, kind.decode("latin-1")
        if kind == b"IEND" and end + 4 <= len(content):
            return ""
        cut = len(content) - position < _EMPTY_CHUNK
        if cut and before == b"IDAT" and (b"IEND".startswith(kind) or not any(kind)):  # what is left of the end chunk
            return "the file ends without the end chunk of its PNG; the image is complete"
        if not kind[:1].islower():  # others may be ignored
            if end + 4 > len(content):
                raise ValueError(f"its chunk {name} is incomplete")
            if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
                raise ValueError(f"its chunk {name} has a wrong checksum")
        position, before = end + 4, kind
    raise CostError("made of too many small parts")


def check_deflated(content: bytes, strips: Iterable[tuple[int, int]], most: int) -> None:
    """Unpack the deflated strips of a TIFF, which compares their checksums.

    Args:
        content: the file.
        strips: where each begins, and how many bytes it has.
        most: how many bytes each may unpack to.

    Raises:
        ValueError, zlib.error: a strip is damaged, or has more than that.
    """
    view = memoryview(content)
    for start, size in strips:
        unpack, left = zlib.decompressobj(), most
        end = min(start + size, len(content))
        while start < end and not unpack.eof:
            rest: bytes | memoryview = view[start : min(start + _PART, end)]
            start += _PART
            while rest and not unpack.eof:
                left -= len(unpack.decompress(rest, _PART))
                rest = unpack.unconsumed_tail
                if left < 0:
                    raise ValueError("a strip holds more than its rows")
