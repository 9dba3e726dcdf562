"""Images in archives of NumPy arrays (.npz), as MedMNIST publishes them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pneumoscope.datasets.samples import SPLITS
from pneumoscope.errors import DataError, UsageError

_MAX_BYTES = 1 << 30  # of one array; the largest published one has 236 million


def read_arrays(archive: zipfile.ZipFile, labels: Sequence[str], name: str) -> dict[str, bytes]:
    """Read the arrays `{split}_images` (N, H, W) and `{split}_labels` (N, 1) of an archive, as PNG files.

    Args:
        archive: from `open_archive`.
        labels: the classes, by number.
        name: what the names of the files begin with.

    Returns:
        The files by place `split/LABEL/name`.

    Raises:
        DataError: an array is missing, damaged, or not of grey images of 8 bits.
    """
    files = {}
    for split in SPLITS:
        images, numbers = (_read(archive, f"{split}_{what}") for what in ("images", "labels"))
        numbers = numbers.reshape(len(numbers), -1)
        grey = images.ndim == 3 and images.dtype == np.uint8 and min(images.shape[1:]) > 0
        fits = numbers.shape == (len(images), 1) and numbers.dtype.kind in "iu"
        if not grey or not fits or not np.isin(numbers, range(len(labels))).all():
            raise DataError(
                f"{archive.filename}: {split} has images {images.dtype} {images.shape} and labels {numbers.dtype} "
                f"{numbers.shape}, not grey images of 8 bits with a label each. Use the .npz as published."
            )
        for i, (image, number) in enumerate(zip(images, numbers[:, 0].tolist(), strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            files[f"{split}/{labels[number]}/{name}_{split}_{i:05}.png"] = buffer.getvalue()
    return files


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray[Any, Any]:
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        found = ", ".join(archive.namelist()[:6])
        raise DataError(f"{archive.filename}: no array {name}; found {found}. Use the .npz as published.") from None
    if member.file_size > _MAX_BYTES:
        raise DataError(f"{archive.filename}: the array {name} has {member.file_size:,} bytes, too many.")
    try:
        content = io.BytesIO(archive.read(member))
        array: np.ndarray[Any, Any] = np.lib.format.read_array(content, allow_pickle=False)
    except Exception as problem:  # zipfile and NumPy raise nearly anything on a damaged file
        raise DataError(f"{archive.filename}: the array {name} is damaged ({problem}). Get it again.") from None
    if not array.ndim:
        raise DataError(f"{archive.filename}: the array {name} is a single number. Use the .npz as published.")
    return array


def write_files(files: Mapping[str, bytes], places: Collection[str], folder: Path) -> None:
    """Write some of the files to their places in a folder.

    Raises:
        UsageError: the folder cannot be written.
    """
    for place in places:
        try:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(files[place])
        except OSError as problem:
            raise UsageError(f"{folder / place}: cannot be written: {problem.strerror or problem}.", "out") from None
