"""Finds the images below folders, and the splits and classes that the folders name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pneumoscope.datasets import tables
from pneumoscope.errors import DataError
from pneumoscope.images.read import SUFFIXES, is_image

SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test",
    "val": "val", "valid": "val", "validation": "val", "validate": "val",
}  # fmt: skip
RASTER_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
_DICOM_SUFFIXES = {".dcm", ".dicom"}


def class_folders(root: Path) -> Iterator[tuple[str | None, Path]]:
    """Yield the class folders below a root, each with the split that the folder above it names."""
    folders = _subfolders(root)
    splits = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    if not any(SPLIT_NAMES[folder.name.lower()] == "train" or _subfolders(folder) for folder in splits):
        yield from ((None, folder) for folder in folders)
        return
    for folder in splits:
        yield from ((SPLIT_NAMES[folder.name.lower()], inner) for inner in _subfolders(folder))


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as problem:
        raise DataError(f"{folder}: cannot be read: {problem.strerror}. Check the path and its permissions.") from None


def image_files(folder: Path) -> list[Path]:
    """List the image files below a folder, in order.

    Raises:
        DataError: a folder cannot be read, or a name is not valid UTF-8.
    """

    def refuse(problem: OSError) -> None:
        raise DataError(
            f"{problem.filename}: cannot be read: {problem.strerror}. Check the path and its permissions."
        ) from None

    files: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            require_utf8(Path(parent, name))
            for name in sorted(names)
            if not name.startswith(".") and _may_be_image(Path(parent, name))
        ]
    return files


def _may_be_image(path: Path) -> bool:
    """Decide by suffix if it is known, else by content: archives and modalities use arbitrary names."""
    if (suffix := path.suffix.lower()) in RASTER_SUFFIXES | _DICOM_SUFFIXES:
        return True
    if path.name.upper() == "DICOMDIR" or suffix in tables.SUFFIXES:
        return False
    return is_image(read_head(path))


def read_head(path: Path) -> bytes:
    """The first bytes of a file; empty if it cannot be read."""
    try:
        if not path.is_file():  # reading a pipe would block
            return b""
        with path.open("rb") as file:
            return file.read(512)
    except OSError:
        return b""


def require_utf8(path: Path) -> Path:
    """Refuse a name that no table or report could contain."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r}: its name is not valid UTF-8. Rename the file.") from None
    return path
