"""Finds JPEG streams that hold too little or too much compressed data for their size.

libjpeg fills what is missing with grey and ignores what is left over. Both show that data are missing or were changed:
wrong data mostly give another number of pixels. Wrong data that give the right number are valid to every decoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images.jpeg_streams import LOSSLESS, PROGRESSIVE, SEQUENTIAL, Outline
from pneumoscope.images.limits import CostError, LimitedFile

MAX_STREAM = 128 * 2**20  # bytes of a stream that is decoded several times; 20 million pixels of 16 bits have 40 MB
MISSING = "compressed data are missing"
LEFT_OVER = "compressed data are left over after the last pixel, so some of them are wrong"
_LOOK_AHEAD = 8  # bytes that libjpeg wants to see behind the last one that it needs
_TAIL = 64  # bytes that a decoder is given one by one
_HARMLESS = 4  # bytes that sloppy encoders leave before the end
_MAX_RESTARTS = 400_000  # 20 million pixels in intervals of one block have 312,500
_RESTART = re.compile(rb"\xff(?=[\xd0-\xd7])")
# Two paddings that decode differently, whatever bits of the last byte precede them. The second is the first in reverse
# order: with one of other bits, both decode to nothing but clipped white where an image ends bright.
_PADDINGS = (bytes.fromhex("5a17c2893bd4660e91f32c"), bytes.fromhex("2cf3910e66d43b89c2175a"))
_MAX_HEIGHT = 65_500  # libjpeg's


class TailFile(LimitedFile):
    """A JPEG file from which the end of the only scan is read byte by byte, which shows when the decoder has enough.

    libjpeg goes on without an end marker, if it has seen eight more bytes. So it gets these and no marker: if it wants
    more, compressed data are missing; if it wants less, some are left over.
    """

    end = 0  # of the compressed data; before it is set, the file is read as it is
    padding = 0  # how many bytes more were read

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes; one near the end, and none behind it.

        Raises:
            CostError: it was read too often.
        """
        left = self.end - self.tell()
        if not self.end or left > _TAIL:
            return super().read(min(size, left - _TAIL) if self.end and size and size > 0 else size)
        if left > 0:
            return super().read(1)
        self.padding += 1
        return b"\0" if self.padding <= _LOOK_AHEAD else b""

    def count_left_over(self) -> int:
        """How many bytes of data, other than zeros at the end, the decoder had no need for."""
        return len(self.getvalue()[self.tell() : self.end].rstrip(b"\0"))


def check_left_over(count: int) -> str:
    """Say what bytes are left over, if they are few; empty if there are none.

    Raises:
        ValueError: they are more than sloppy encoders leave.
    """
    if count > _HARMLESS:
        raise ValueError(LEFT_OVER)
    return "a few bytes of compressed data are left over; the image may be damaged" if count else ""


def can_count(outline: Outline) -> bool:
    """Whether the pixels of a stream can be counted as `TailFile` is read: one scan, coded by Huffman's method."""
    return outline.frame in SEQUENTIAL and len(outline.scans) == 1


def check_refinement(outline: Outline) -> None:
    """Refuse a progressive stream that ends before every coefficient has its last bit (T.81, G.1.1).

    Raises:
        ValueError: it does.
    """
    if outline.frame != PROGRESSIVE:
        return
    last: dict[int, NDArray[np.int64]] = {}
    for scan in outline.scans:
        count = scan.header[0] if scan.header else 0
        if len(scan.header) < 4 + 2 * count:
            raise ValueError("the header of a scan is incomplete")
        first, final, bits = scan.header[1 + 2 * count : 4 + 2 * count]
        for component in scan.header[1 : 1 + 2 * count : 2]:
            last.setdefault(component, np.full(64, -1))[first : final + 1] = bits & 15
    if any(bits.any() for bits in last.values()):
        raise ValueError(MISSING)


def has_restarts(stream: bytes, outline: Outline) -> bool:
    """Whether restart markers divide the data.

    Raises:
        CostError: there are very many.
    """
    if not any(_RESTART.search(stream, scan.start, scan.end) for scan in outline.scans):
        return False
    count = sum(stream.count(bytes([0xFF, marker])) for marker in range(0xD0, 0xD8))
    if count > _MAX_RESTARTS:
        raise CostError(f"a JPEG with {count:,} restart markers")
    return True


def pad(stream: bytes, outline: Outline, which: int = 0, rest: int | None = None) -> bytes:
    """Insert bytes behind each part of the compressed data; they change nothing unless some are missing before them.

    Args:
        stream: the JPEG stream.
        outline: its parts.
        which: 0 or 1: different bytes.
        rest: where the stream goes on behind the last part, if not at its end.
    """
    parts, position = [], 0
    padding = _PADDINGS[which]
    for scan in outline.scans:
        parts += [
            stream[position : scan.start],
            _RESTART.sub(padding + b"\xff", stream[scan.start : scan.end]),
            padding,
        ]
        position = scan.end
    return b"".join([*parts, stream[position if rest is None else rest :] if outline.ended else b"\xff\xd9"])


def decode_whole(
    stream: bytes, outline: Outline, decode: Callable[[bytes], NDArray[Any]], faults: list[str]
) -> NDArray[Any]:
    """Decode a stream, and refuse one of too little or too much data; this decodes it two or three times.

    Where there is one scan, an image a row of blocks higher is decoded from the data and each of two paddings. The
    results differ from the first padded pixel on: it must be the first beyond the image. Otherwise the image is
    decoded with and without a padding, which must not change it. Arithmetic coding may leave data out (T.81, D.1.8).

    Args:
        stream: the JPEG stream.
        outline: its parts.
        decode: gives (H, W) or (H, W, 3).
        faults: what is unusual is added here.

    Returns:
        what `decode` gives for the stream.

    Raises:
        ValueError: data are missing or left over.
        CostError: it is very long, or there are very many restart markers.
    """
    if len(stream) > MAX_STREAM:
        raise CostError(f"a JPEG stream of {len(stream):,} bytes; the limit is {MAX_STREAM:,}")
    height, width = (int.from_bytes(stream[outline.header + at : outline.header + at + 2], "big") for at in (1, 3))
    wide, high = _measure_blocks(stream, outline)
    rows = -(-height // high)
    restarts = has_restarts(stream, outline)
    counted = outline.frame in (*SEQUENTIAL, LOSSLESS) and len(outline.scans) == 1 and (rows + 1) * high <= _MAX_HEIGHT
    if not counted:
        levels = decode(stream)
        if outline.frame in (*SEQUENTIAL, PROGRESSIVE, LOSSLESS):
            check_refinement(outline)
            if not np.array_equal(levels, decode(pad(stream, outline))):
                raise ValueError(MISSING)
        return levels
    header = stream[: outline.header + 1] + ((rows + 1) * high).to_bytes(2, "big")
    taller = header + stream[outline.header + 3 :]
    one, two = (decode(pad(taller, outline, which)) for which in (0, 1))
    first = _find_difference(one, two, wide, high)
    del two  # at most two images are held at a time
    needed = rows * -(-width // wide)
    if first < needed:
        raise ValueError(MISSING)
    if not restarts and one[:height].min() < one[:height].max():  # codes of a constant image may hold no difference
        _check_beyond(stream, outline, first - needed, faults)
        if outline.frame != LOSSLESS and stream[outline.header + 5] == 1:  # else they may be those of a colour
            _check_last_bytes(taller, outline, decode, one[: rows * high])
    return one[:height] if one.ndim == 2 else decode(stream)  # colours of the last row depend on the padding


def _count_zeros(stream: bytes, outline: Outline) -> int:
    """How many bytes of zeros end the data; an encoder may fill up with them."""
    start, end, _ = outline.scans[0]
    return end - start - len(stream[start:end].rstrip(b"\0"))


def _check_beyond(stream: bytes, outline: Outline, beyond: int, faults: list[str]) -> None:
    """Refuse a stream whose data go on for many blocks beyond the image; warn if they are few."""
    zeros = _count_zeros(stream, outline)
    most = 8 if outline.frame == LOSSLESS else 4  # in a byte: a sample has a bit at least, a block of them two
    if beyond > most * (_HARMLESS + zeros + 1):
        raise ValueError(LEFT_OVER)
    if beyond > 8 * (zeros + 1):
        faults.append(check_left_over(1))


def _check_last_bytes(
    taller: bytes, outline: Outline, decode: Callable[[bytes], NDArray[Any]], levels: NDArray[Any]
) -> None:
    """Refuse a stream whose last bytes do not matter: a block may have hundreds, so counting says little."""
    scan = outline.scans[0]
    end = max(scan.start, scan.end - _count_zeros(taller, outline) - _LOOK_AHEAD)
    end -= end > scan.start and taller[end - 1] == 0xFF
    cut = outline._replace(scans=[scan._replace(end=end)])
    for which in (1, 0):  # one may look like what it replaces, if that is white
        if not np.array_equal(levels, decode(pad(taller, cut, which, scan.end))[: len(levels)]):
            return
    raise ValueError(LEFT_OVER)


def _measure_blocks(stream: bytes, outline: Outline) -> tuple[int, int]:
    """Width and height of what is coded together, in pixels: a sample, or one or several blocks (T.81, A.2)."""
    components = stream[outline.header + 5]
    factors = stream[outline.header + 7 : outline.header + 7 + 3 * components : 3] if components > 1 else b"\x11"
    side = 1 if outline.frame == LOSSLESS else 8
    across: int = max(1, *(each >> 4 for each in factors))
    down: int = max(1, *(each & 15 for each in factors))
    return side * across, side * down


def _find_difference(one: NDArray[Any], two: NDArray[Any], wide: int, high: int) -> int:
    """The number of the first block that differs, counted along rows; beyond all if none does."""
    if one.ndim == 3:  # red is not shared by several pixels
        one, two = one[..., 0], two[..., 0]
    rows: int = -(-one.shape[0] // high)
    columns: int = -(-one.shape[1] // wide)
    for row in range(rows):
        part = slice(row * high, (row + 1) * high)
        if not np.array_equal(one[part], two[part]):
            return row * columns + int(np.argmax((one[part] != two[part]).any(0))) // wide
    return rows * columns
