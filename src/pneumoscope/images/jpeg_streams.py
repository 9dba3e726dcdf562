"""Walks through the segments of JPEG streams (ITU-T T.81, annex B) before they are decoded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pneumoscope.images.limits import MAX_SEGMENTS, CostError

MAX_SCANS = 100  # encoders write about ten; each visits every pixel, even if it has only a few bytes
MAX_VISITS = 2_000_000_000  # scans times pixels: about a second
_MARKER = re.compile(rb"\xff[^\0\x01\xd0-\xd8\xff]")  # segments that have a length, and the end of the image
_FILL = b"\xff" * 1024  # libjpeg goes through fill bytes again with every block that it is given
_SCAN, _END = 0xDA, 0xD9
_NO_FRAMES = (0xC4, 0xC8, 0xCC)  # of the markers C0 to CF
SEQUENTIAL, PROGRESSIVE, LOSSLESS = (0xC0, 0xC1), 0xC2, 0xC3  # frames, coded by Huffman's method


class Scan(NamedTuple):
    """A scan and its entropy-coded data."""

    start: int  # of the data
    end: int  # of the data: where the next marker begins, fill bytes before it left out
    header: bytes  # components, spectral selection, approximation (B.2.3)


class Outline(NamedTuple):
    """Where the parts of the first image of a stream are."""

    frame: int  # marker of the frame, such as 0xC0
    header: int  # where the frame's content begins: precision, height, width, components
    scans: list[Scan]
    ended: bool  # whether the last scan is followed by a marker


def walk_segments(stream: bytes, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yield marker and position, behind the marker, of each segment up to the end of the image.

    Args:
        stream: what holds the image; some cameras append whole images after its end.
        start: where to begin.

    Raises:
        CostError: there are very many segments, or very many fill bytes between two.
    """
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(stream, start)
        if stream.find(_FILL, start, found.start() if found else len(stream)) >= 0:
            raise CostError("a JPEG with thousands of fill bytes")
        if not found or stream[found.end() - 1] == _END:
            return
        yield stream[found.end() - 1], found.end()
        start = found.end() + int.from_bytes(stream[found.end() : found.end() + 2], "big")
    raise CostError(f"a JPEG with more than {MAX_SEGMENTS:,} segments")


def read_outline(stream: bytes) -> Outline | None:
    """Find the frame and the scans of a stream; None if it has none.

    Raises:
        CostError: as in `walk_segments`.
    """
    frame = header = 0
    scans = []
    ended = True
    for marker, at in walk_segments(stream, 2):
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES and not frame:
            frame, header = marker, at + 2
        elif marker == _SCAN:
            start = at + int.from_bytes(stream[at : at + 2], "big")
            following = _MARKER.search(stream, start)
            ended = following is not None
            end = following.start() if following else len(stream)
            while end > start and stream[end - 1] == 0xFF:
                end -= 1
            scans.append(Scan(start, end, stream[at + 2 : start]))
    return Outline(frame, header, scans, ended) if frame and scans else None


def count_scans(stream: bytes) -> int:
    """Count the scans of an image.

    Args:
        stream: what holds the image.

    Raises:
        CostError: as in `walk_segments`.
    """
    return sum(marker == _SCAN for marker, _ in walk_segments(stream))


def check_scans(stream: bytes, pixels: int) -> None:
    """Refuse a stream whose scans, each of which visits every pixel, would take long.

    Args:
        stream: what holds the image.
        pixels: its height times its width.

    Raises:
        CostError: it has too many scans for its size, or is refused by `walk_segments`.
    """
    scans = count_scans(stream)
    if scans > min(MAX_SCANS, MAX_VISITS // max(1, pixels)):
        raise CostError(f"a JPEG with {scans} scans, too many for its size")
