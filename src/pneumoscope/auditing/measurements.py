"""What is measured of each image, in memory, or for many images with the pictures in a temporary file."""

from __future__ import annotations

import copy
import errno
import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError
from pneumoscope.images.appearance import THUMBNAIL
from pneumoscope.images.hash import SIDE

# What is measured of an image. The cache keeps it as float32, so its size is a multiple of four bytes.
FIELDS = np.dtype(
    [
        ("format", "<i4"),  # index into FORMATS
        ("mode", "<i4"),  # index into MODES
        ("compression", "<i4"),  # index into COMPRESSIONS
        ("modality", "<i4"),  # index into MODALITIES
        ("view", "<i4"),  # index into VIEWS
        ("height", "<f4"),
        ("width", "<f4"),
        ("bytes", "<f4"),  # the file's size
        ("quality", "<f4"),  # JPEG quality, 1 to 100; NaN elsewhere
        ("colour", "<f4"),  # mean difference between the colour channels, 0 to 1
        ("mean", "<f4"),  # of the pixels, 0 to 1
        ("spread", "<f4"),  # their standard deviation
        ("low", "<f4"),  # their first percentile
        ("high", "<f4"),  # their 99th percentile
        ("black", "<f4"),  # share of pixels at 0
        ("white", "<f4"),  # share of pixels at 1
        ("sharpness", "<f4"),  # mean difference of neighbouring pixels
        ("border", "<f4", 4),  # mean of the outer 4%: top, right, bottom, left
        ("hash", "<f2", (SIDE, SIDE)),
        ("thumbnail", "u1", (THUMBNAIL, THUMBNAIL)),  # the whole image, squashed
    ]
)
PICTURES = ("hash", "thumbnail")
MANY = 20_000  # images above which their pictures, 9 kB each, are not kept in memory
BLOCK = 1024  # images whose pictures are processed at once


class Pictures:
    """One picture of each image, in a file without a name: rows are read when they are asked for, as from an array."""

    def __init__(self, dtype: np.dtype[Any], count: int) -> None:
        with tempfile.TemporaryFile() as file:
            size = max(count, 1) * dtype.itemsize
            file.truncate(size)
            _reserve(file.fileno(), size)
            self._space = mmap.mmap(file.fileno(), 0)  # which outlives the file's name
        self._stored = np.frombuffer(self._space, dtype.base, count * math.prod(dtype.shape))
        self._stored = self._stored.reshape(count, *dtype.shape)
        self._rows = np.arange(count)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        found = np.array(self._stored[self._rows[rows]])
        self._release()
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return (len(self._rows), *self._stored.shape[1:])

    @property
    def ndim(self) -> int:
        """As of an array."""
        return self._stored.ndim

    def write(self, row: int, picture: NDArray[Any]) -> None:
        """Keep the picture of an image."""
        self._stored[row] = picture
        if row % BLOCK == BLOCK - 1:
            self._release()

    def choose(self, rows: Sequence[int] | NDArray[Any]) -> Pictures:
        """The pictures of some images, of the same file."""
        chosen = copy.copy(self)
        chosen._rows = self._rows[rows]
        return chosen

    def _release(self) -> None:
        """Leave what was read or written to the file, so that it does not count as this process's memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._space.madvise(mmap.MADV_DONTNEED)


def _reserve(file: int, size: int) -> None:
    """Take the space of a file now: on a full disk, writing to it as memory kills the process without a message."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # others: it cannot be done there
            return
        raise DataError(
            f"{tempfile.gettempdir()}: {size / 1e9:.1f} GB are needed there for a time ({problem.strerror}). Set "
            "TMPDIR to a folder with more space."
        ) from None


class Measurements:
    """What was measured of N images, read and written like an array of `FIELDS`."""

    def __init__(self, count: int) -> None:
        self._numbers = np.zeros(count, [(name, FIELDS[name]) for name in FIELDS.names or () if name not in PICTURES])
        self._pictures = {name: Pictures(FIELDS[name], count) for name in PICTURES}

    def __len__(self) -> int:
        return len(self._numbers)

    def __setitem__(self, i: int, values: np.void) -> None:
        for name in self._numbers.dtype.names or ():
            self._numbers[name][i] = values[name]
        for name, pictures in self._pictures.items():
            pictures.write(i, values[name])

    @overload
    def __getitem__(self, key: str) -> Any: ...
    @overload
    def __getitem__(self, key: Sequence[int] | NDArray[Any]) -> Measurements: ...
    def __getitem__(self, key: str | Sequence[int] | NDArray[Any]) -> Any:
        if isinstance(key, str):
            return self._pictures[key] if key in PICTURES else self._numbers[key]
        chosen = copy.copy(self)
        chosen._numbers = self._numbers[key]
        chosen._pictures = {name: pictures.choose(key) for name, pictures in self._pictures.items()}
        return chosen


Measured = NDArray[np.void] | Measurements


def list_blocks(count: int) -> list[slice]:
    """Slices of at most `BLOCK` images, at least one."""
    return [slice(start, start + BLOCK) for start in range(0, max(count, 1), BLOCK)]
