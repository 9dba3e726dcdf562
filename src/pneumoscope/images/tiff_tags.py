"""Reads the first directory of TIFF files (TIFF 6.0, section 2; BigTIFF) before they are decoded."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images.checksums import check_deflated
from pneumoscope.images.jpeg_streams import MAX_SCANS, MAX_VISITS, count_scans
from pneumoscope.images.limits import MAX_PIXELS, CostError

MAX_STRIPS = 100_000  # and tiles; 100 million pixels in tiles of 32 x 32 have as many
_MAX_TAGS = 4096
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BYTES, _TEXT, _SHORT, _UNDEFINED = 1, 2, 3, 7
_PRIVATE = 32768  # Pillow does not unpack the values of private tags
_WIDTH, _HEIGHT, _COMPRESSION, _ROWS = 256, 257, 259, 278
_STRIPS, _STRIP_SIZES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES = 273, 279, 322, 323, 324, 325
_BITS, _FILL_ORDER, _SAMPLES, _PLANAR = 258, 266, 277, 284
_WANTED = (
    *(_BITS, _FILL_ORDER, _SAMPLES, _PLANAR),
    *(_WIDTH, _HEIGHT, _COMPRESSION, _ROWS),
    *(_STRIPS, _STRIP_SIZES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES),
)
_RAW, _JPEG, _DEFLATED = 1, 7, (8, 32946)
_LARGEST = 2**31 - 1  # of the numbers taken seriously, so that their products are exact
Tags = dict[int, NDArray[np.int64]]


class _Entry(NamedTuple):
    tag: int
    kind: int
    values: int
    place: bytes


def check_tiff(content: bytes) -> None:
    """Refuse a TIFF that would take too much time or memory to decode, or whose deflated strips are damaged.

    Raises:
        CostError: it has too many tags, values, strips or tiles, tiles far larger than the image, strips that share
            their bytes, or JPEG streams with too many scans.
        Exception: its directory is damaged.
    """
    tags = _read_tags(content)
    width, height = (int(tags[tag][0]) for tag in (_WIDTH, _HEIGHT))
    compression = int(tags[_COMPRESSION][0]) if _COMPRESSION in tags else _RAW
    tiled = _TILES in tags
    across, down = (tags.get(tag) for tag in ((_TILE_WIDTH, _TILE_HEIGHT) if tiled else (_WIDTH, _ROWS)))
    side = int(across[0]) if across is not None and across.size else width
    rows = min(int(down[0]) if down is not None and down.size else height, 2**32 if tiled else height)
    if side * rows and -(-width // side) * side * -(-height // rows) * rows > 2 * max(MAX_PIXELS, width * height):
        raise CostError(f"a TIFF with tiles of {side} x {rows} pixels, far larger than the image")
    offsets = tags.get(_TILES if tiled else _STRIPS, np.zeros(0, np.int64))
    sizes = tags.get(_TILE_SIZES if tiled else _STRIP_SIZES, np.zeros(0, np.int64))
    if compression == _RAW:
        return
    if len(sizes) < len(offsets):  # libtiff takes each for the rest of the file
        sizes = np.full(len(offsets), len(content))
    sizes = np.minimum(sizes[: len(offsets)], len(content))
    if sizes.sum() > 4 * len(content):
        raise CostError("a TIFF whose strips share their bytes")
    places = list(zip(offsets.tolist(), sizes.tolist(), strict=True))
    if compression in _DEFLATED and _read_number(tags, _FILL_ORDER) == 1:
        samples = _read_number(tags, _SAMPLES) if _read_number(tags, _PLANAR) == 1 else 1
        row = -(-side * samples * _read_number(tags, _BITS) // 8)
        check_deflated(content, places, row * rows)
    if compression == _JPEG:
        visits = 0
        counts: dict[tuple[int, int], int] = {}
        for place in places:
            if place not in counts:
                counts[place] = count_scans(content[place[0] : sum(place)])
            visits += counts[place] * side * rows
            if counts[place] > MAX_SCANS or visits > MAX_VISITS:
                raise CostError("a TIFF whose JPEG streams have too many scans")


def _read_number(tags: Tags, tag: int) -> int:
    """The first value of a tag; 1 if it is missing, as for all tags that this is asked of (TIFF 6.0, section 8)."""
    return int(tags[tag][0]) if tag in tags and tags[tag].size else 1


def _read_tags(content: bytes) -> Tags:
    """The numbers of the tags that say how the image is cut up."""
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack(f"{order}H", content[2:4])[0] == 43
    start = struct.unpack(f"{order}Q" if big else f"{order}I", content[8:16] if big else content[4:8])[0]
    head, entry = ("Q", f"{order}HHQ8s") if big else ("H", f"{order}HHI4s")
    count = struct.unpack_from(order + head, content, start)[0]
    if count > _MAX_TAGS:
        raise CostError(f"a TIFF with {count:,} tags")
    start += struct.calcsize(head)
    tags: Tags = {}
    for i in range(count):
        found = _Entry(*struct.unpack_from(entry, content, start + i * struct.calcsize(entry)))
        counted = found.tag < _PRIVATE and found.kind not in (_BYTES, _TEXT, _UNDEFINED)
        if counted and found.values > MAX_STRIPS:
            raise CostError(f"a TIFF with {found.values:,} values in tag {found.tag}; the limit is {MAX_STRIPS:,}")
        if found.tag in _WANTED and counted and found.kind in _SIZES:
            tags.setdefault(found.tag, _read_numbers(content, found, order))
    return tags


def _read_numbers(content: bytes, entry: _Entry, order: str) -> NDArray[np.int64]:
    size = _SIZES[entry.kind] * entry.values
    value = entry.place[:size]
    if size > len(entry.place):
        start = int.from_bytes(entry.place, "little" if order == "<" else "big")
        value = content[start : start + size]
    return np.frombuffer(value, f"{order}u{_SIZES[entry.kind]}", entry.values).clip(max=_LARGEST).astype(np.int64)
