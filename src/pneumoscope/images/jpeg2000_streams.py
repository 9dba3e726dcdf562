"""Reads the headers of JPEG 2000 streams (ITU-T T.800, annexes A, B and I) before they are decoded.

OpenJPEG takes some hundred bytes of memory for each code-block and each precinct, and two for each packet, whatever the
stream holds. A header of 300 bytes can ask for billions of them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images.limits import MAX_PIXELS, MAX_SEGMENTS, CostError

MAX_BLOCKS = 500_000  # code-blocks and precincts: about 300 MB; 100 million pixels in blocks of 32 x 32 have 100,000
_MAX_TILES = 10_000  # 10 KB each
_MAX_PACKETS = 20_000_000  # 2 bytes each
_MAX_WORK = 450_000_000  # samples times bit planes: ten seconds; 20 million pixels of 16 bits have 380 million
_MAX_PLANES = 30  # OpenJPEG decodes no more
_MAX_STYLES = 16
_MAX_BOXES = 1000
_TILE_PART = re.compile(rb"\xff\x90\0\x0a")  # cannot occur in compressed data
_SIZ, _COD, _COC, _QCD, _QCC = 0xFF51, 0xFF52, 0xFF53, 0xFF5C, 0xFF5D
_RGN, _POC, _SOT, _SOD, _EOC = 0xFF5E, 0xFF5F, 0xFF90, 0xFF93, 0xFFD9
_OTHERS = (0xFF50, 0xFF55, 0xFF57, 0xFF58, 0xFF59, 0xFF60, 0xFF61, 0xFF63, 0xFF64)  # CAP, TLM, PLM to COM
_KNOWN = (_SIZ, _COD, _COC, _QCD, _QCC, _RGN, _POC, *_OTHERS)  # a decoder skips only known segments by their length


class _Grid(NamedTuple):
    """Where the tiles of a component begin and end, in its samples."""

    columns: NDArray[np.int64]  # (tiles in a row + 1,)
    rows: NDArray[np.int64]  # (tiles in a column + 1,)


class _Style(NamedTuple):
    """How a component is cut up."""

    levels: int
    block: tuple[int, int]  # exponents of the width and height of code-blocks
    precincts: bytes  # exponents of the width (low) and height (high half) of precincts, for each resolution


def find_stream(content: bytes) -> int:
    """Find where the stream begins in a file, which may be a JP2 (T.800, I.4).

    Raises:
        CostError: it has very many boxes.
        ValueError: there is no stream.
    """
    if content[:4] == b"\xff\x4f\xff\x51":
        return 0
    for kind, start, end in _walk_boxes(content, 0, len(content)):
        if kind == b"jp2c":
            return start
        if kind == b"jp2h":
            for inner, first, last in _walk_boxes(content, start, end):
                if inner == b"res " and last - first > 100:
                    raise CostError("a JPEG 2000 file with a large box of its resolution")
    raise ValueError("no JPEG 2000 stream")


def check_stream(stream: bytes, start: int = 0) -> None:
    """Refuse a stream that would take too much time or memory to decode.

    Args:
        stream: what holds the stream.
        start: where it begins.

    Raises:
        CostError: it has too many pixels, tiles, code-blocks, precincts, packets, bit planes, styles or segments.
        ValueError: its headers are damaged or unknown.
    """
    grids: list[_Grid] = []
    styles: set[_Style] = set()
    layers, planes, orders = 1, 0, 1
    for marker, segment in _walk_headers(stream, start):
        if marker == _SIZ:
            grids = grids or _read_grids(segment)
        elif marker in (_COD, _COC):
            style = segment[5:] if marker == _COD else segment[2:]
            defined = segment[0 if marker == _COD else 1] & 1
            styles.add(_Style(style[0], (2 + (style[1] & 15), 2 + (style[2] & 15)), style[5:] if defined else b""))
            layers = max(layers, int.from_bytes(segment[2:4], "big")) if marker == _COD else layers
        elif marker in (_QCD, _QCC):
            planes = max(planes, _count_planes(segment[marker == _QCC :]))
        elif marker == _RGN:
            planes = _MAX_PLANES
        elif marker == _POC:
            orders += len(segment) // 7
    if not grids or not styles:
        raise ValueError("an incomplete JPEG 2000 header")
    if len(styles) > _MAX_STYLES:
        raise CostError(f"a JPEG 2000 stream with {len(styles)} coding styles")
    samples = sum(int(grid.columns[-1] - grid.columns[0]) * int(grid.rows[-1] - grid.rows[0]) for grid in grids)
    if samples * min(planes, _MAX_PLANES) > _MAX_WORK:
        raise CostError(f"a JPEG 2000 stream of {samples:,} samples with {planes} bit planes; too many")
    blocks, packets = map(max, zip(*(_count_blocks(grids, style) for style in styles), strict=True))
    if blocks > MAX_BLOCKS:
        raise CostError(f"a JPEG 2000 stream with {blocks:,} code-blocks and precincts; the limit is {MAX_BLOCKS:,}")
    if packets * max(layers, orders) > _MAX_PACKETS:
        raise CostError(f"a JPEG 2000 stream with {packets * max(layers, orders):,} packets")


def _walk_boxes(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the content of each box."""
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        length, kind = struct.unpack(">I4s", content[start : start + 8])
        head = 8
        if length == 1:
            length, head = int.from_bytes(content[start + 8 : start + 16], "big"), 16
        length = length or end - start
        if length < head:
            raise ValueError("a damaged JPEG 2000 box")
        yield kind, start + head, min(start + length, end)
        start += length
    raise CostError(f"a JPEG 2000 file with more than {_MAX_BOXES:,} boxes")


def _walk_headers(stream: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield the segments of the main header and of the headers of all tile-parts."""
    left = MAX_SEGMENTS
    parts = (part.start() + 12 for part in _TILE_PART.finditer(stream, start))
    for at in chain([start + 2], parts):
        position = at
        while (marker := int.from_bytes(stream[position : position + 2], "big")) not in (_SOT, _SOD, _EOC):
            left -= 1
            length = int.from_bytes(stream[position + 2 : position + 4], "big")
            if left < 0:
                raise CostError(f"a JPEG 2000 stream with more than {MAX_SEGMENTS:,} segments")
            if marker not in _KNOWN or length < 2:
                raise ValueError(f"a damaged JPEG 2000 header, marker {marker:04x}")
            yield marker, stream[position + 4 : position + 2 + length]
            position += 2 + length
        left -= 1


def _read_grids(segment: bytes) -> list[_Grid]:
    """The tiles of each component (T.800, A.5.1 and B.3)."""
    right, bottom, left, top, width, height, tile_left, tile_top, count = struct.unpack(">2x8IH", segment[:36])
    if not (right - left >= 0 and bottom - top >= 0 and width and height):
        raise ValueError("a damaged JPEG 2000 size")
    if (right - left) * (bottom - top) > MAX_PIXELS or count > 4:
        raise CostError(f"a JPEG 2000 stream of {right - left} x {bottom - top} pixels with {count} components")
    counts = [-(-(end - first) // side) for end, first, side in ((right, tile_left, width), (bottom, tile_top, height))]
    if min(counts) < 1 or counts[0] * counts[1] > _MAX_TILES:
        raise CostError(f"a JPEG 2000 stream with {counts[0]} x {counts[1]} tiles; the limit is {_MAX_TILES:,}")
    columns = np.clip(tile_left + width * np.arange(counts[0] + 1), left, right)
    rows = np.clip(tile_top + height * np.arange(counts[1] + 1), top, bottom)
    steps = [segment[36 + 3 * i + 1 : 36 + 3 * i + 3] for i in range(count)]
    if any(len(step) < 2 or not all(step) for step in steps):
        raise ValueError("a damaged JPEG 2000 component")
    return [_Grid(_divide(columns, step[0]), _divide(rows, step[1])) for step in steps]


def _count_planes(segment: bytes) -> int:
    """The largest number of bit planes that a quantisation allows (T.800, A.6.4 and E.1)."""
    style, steps = segment[0] & 31, segment[1:]
    exponents = [step >> 3 for step in (steps if style == 0 else steps[::2])]
    return max(exponents, default=0) + (segment[0] >> 5) - 1


def _count_blocks(grids: list[_Grid], style: _Style) -> tuple[int, int]:
    """Count the code-blocks and precincts of all bands, and the packets of a layer (T.800, B.5 to B.7)."""
    if style.levels > 32 or (style.precincts and len(style.precincts) <= style.levels):
        raise ValueError("a damaged JPEG 2000 coding style")
    blocks = packets = 0
    for grid in grids:
        most = 0
        for resolution in range(style.levels + 1):
            size = style.precincts[resolution] if style.precincts else 0xFF
            width, height = size & 15, size >> 4
            depth = style.levels - resolution
            columns, rows = _divide(grid.columns, 2**depth), _divide(grid.rows, 2**depth)
            precincts = _count_cells(columns, width) * _count_cells(rows, height)
            most = max(most, precincts)
            bands = [(0, 0)]
            if resolution:  # precincts are cut into three bands of half their size
                bands, depth, width, height = [(1, 0), (0, 1), (1, 1)], depth + 1, max(1, width) - 1, max(1, height) - 1
            for across, down in bands:
                columns = _divide(grid.columns - (across << depth >> 1), 2**depth)
                rows = _divide(grid.rows - (down << depth >> 1), 2**depth)
                wide, high = min(style.block[0], width), min(style.block[1], height)
                blocks += precincts + _count_cells(columns, wide) * _count_cells(rows, high)
        packets += most * (style.levels + 1)
    return blocks, packets


def _count_cells(edges: NDArray[np.int64], exponent: int) -> int:
    """How many cells of 2**exponent the parts between the edges touch, added up."""
    low, high = edges[:-1], edges[1:]
    return int(np.where(high > low, _divide(high, 2**exponent) - (low >> exponent), 0).sum())


def _divide(values: NDArray[np.int64], divisor: int) -> NDArray[np.int64]:
    """Divide and round up."""
    return -(-values // divisor)
