"""What is measured of each image, in memory, or for many images with the pictures in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

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
BLOCK = 4096  # images whose pictures are processed at once


class Pictures:
    """One picture of each image, in a file: rows are read when they are asked for, as from an array."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any], rows: NDArray[np.intp]) -> None:
        self._file, self._dtype, self._rows = file, dtype, rows
        self.shape = (len(rows), *dtype.shape)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        self._file.flush()
        count = self._file.seek(0, 2) // self._dtype.itemsize
        stored = np.memmap(self._file, self._dtype.base, "r", shape=(count, *self._dtype.shape))
        return np.array(stored[self._rows[rows]])  # a copy: the file does not stay in memory


class Measurements:
    """What was measured of N images, read and written like an array of `FIELDS`."""

    def __init__(self, count: int) -> None:
        self._numbers = np.zeros(count, [(name, FIELDS[name]) for name in FIELDS.names or () if name not in PICTURES])
        self._rows = np.arange(count)
        self._files: dict[str, IO[bytes]] = {name: tempfile.TemporaryFile() for name in PICTURES}  # noqa: SIM115
        for name, file in self._files.items():
            file.truncate(count * FIELDS[name].itemsize)

    def __len__(self) -> int:
        return len(self._rows)

    def __setitem__(self, i: int, values: np.void) -> None:
        for name in self._numbers.dtype.names or ():
            self._numbers[name][i] = values[name]
        for name, file in self._files.items():
            file.seek(i * FIELDS[name].itemsize)
            file.write(values[name].tobytes())

    @overload
    def __getitem__(self, key: str) -> Any: ...
    @overload
    def __getitem__(self, key: Sequence[int] | NDArray[Any]) -> Measurements: ...
    def __getitem__(self, key: str | Sequence[int] | NDArray[Any]) -> Any:
        if isinstance(key, str):
            return Pictures(self._files[key], FIELDS[key], self._rows) if key in PICTURES else self._numbers[key]
        chosen = object.__new__(Measurements)
        chosen._files, chosen._rows, chosen._numbers = self._files, self._rows[key], self._numbers[key]
        return chosen


Measured = NDArray[np.void] | Measurements


def list_blocks(count: int) -> list[slice]:
    """Slices of at most `BLOCK` images, at least one."""
    return [slice(start, start + BLOCK) for start in range(0, max(count, 1), BLOCK)]
