"""Finds the image files that a table names: without their suffix, in a subfolder, or after the data moved."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from pneumoscope.datasets.image_files import DICOM_SUFFIXES, RASTER_SUFFIXES, require_utf8
from pneumoscope.errors import DataError
from pneumoscope.text import were

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_TRIED = 100  # paths that may show where the folders of the others are


class ImageFinder:
    r"""Finds the files that the paths of one table name.

    A path is relative to the table's folder. If nothing is there, these are tried, in this order: `/` in place of `\`;
    without the first folders of the path, the same for all paths, as after the data moved; the only file in any
    subfolder whose path ends so; each also with the suffix of an image added; the path without spaces around it or with
    `%20` as a space; a file whose path differs only in capitals.

    Args:
        folder: the table's folder.
        paths: all paths of the table.
    """

    def __init__(self, folder: Path, paths: Sequence[str]) -> None:
        self.folder = folder
        self.found: Counter[str] = Counter()  # how often a file was found in another way than by its path
        self._paths = paths

    def find(self, path: str) -> Path:
        """Find the file of a path; if there is none, return the path as it was written.

        Raises:
            DataError: several files could be it, or its name is not valid UTF-8.
        """
        plain = require_utf8(self.folder / path)
        if _exists(plain):
            return plain
        slashed = _with_slashes(path)
        ways = (
            ("by writing / for \\ or by adding a suffix", self._beside),
            (f"by leaving out the leading {self._prefix}", self._after_prefix),
            ("by name, in subfolders", self._below),
            ("by removing spaces around the path or by reading %20 as a space", self._cleaned),
            ("by ignoring capitals", self._any_case),
        )
        for way, search in ways:
            if len(files := search(slashed)) > 1:
                shown = " and ".join(str(file.relative_to(self.folder)) for file in files[:2])
                raise DataError(
                    f"{path} fits {len(files)} files below {self.folder}, such as {shown}. Write paths with their "
                    "folders and suffix, relative to the table."
                )
            if files:
                self.found[way] += 1
                return files[0]
        return plain

    def log(self, table: str) -> None:
        """Say how many files were found in another way than by their path."""
        for way, count in self.found.items():
            logging.getLogger("pneumoscope").info("%s: %s found %s.", table, were(count, "image"), way)

    def describe(self, path: str) -> str:
        """What was tried for a path that leads to no file."""
        tried = [str(self.folder / path)]
        if (slashed := _with_slashes(path)) != path:
            tried.append(str(self.folder / slashed))
        if not PurePosixPath(slashed).suffix:
            tried.append("the same with the suffix of an image")
        where = "the current folder" if self.folder == Path() else self.folder
        tried.append(f"{PurePosixPath(slashed).name} in all folders below {where}")
        return "; ".join(tried)

    def _beside(self, path: str) -> list[Path]:
        return _with_suffixes(self.folder / path)

    def _after_prefix(self, path: str) -> list[Path]:
        return self._beside(path.removeprefix(self._prefix)) if self._prefix else []

    def _cleaned(self, path: str) -> list[Path]:
        cleaned = {path.strip(), unquote(path.strip())} - {path}
        return sorted({file for each in cleaned for file in self._beside(each) or self._below(each)})

    def _any_case(self, path: str) -> list[Path]:
        parts = PurePosixPath(path.strip()).parts
        if not parts or ".." in parts or path.startswith("/"):
            return []
        folded = [part.casefold() for part in parts]
        return [
            file
            for file in self._by_folded_name.get(folded[-1], [])
            if [part.casefold() for part in file.parts[-len(parts) :]] == folded
        ]

    def _below(self, path: str) -> list[Path]:
        parts = PurePosixPath(path).parts
        if not parts or ".." in parts or path.startswith("/"):
            return []
        by_name, by_stem = self._index
        named = by_name.get(parts[-1], []) or by_stem.get(parts[-1], [])
        folders = parts[:-1]
        return [file for file in named if not folders or file.parent.parts[-len(folders) :] == folders]

    @cached_property
    def _prefix(self) -> str:
        """The first folders that no path needs, such as those of the computer where the table was written."""
        paths = self._paths[:_TRIED]
        if any(_exists(self.folder / path) for path in paths):
            return ""
        for path in paths:
            parts = _with_slashes(path).split("/")
            for count in range(1, len(parts)):
                if _with_suffixes(self.folder / "/".join(parts[count:])):
                    return "/".join(parts[:count]) + "/"
        return ""

    @cached_property
    def _by_folded_name(self) -> dict[str, list[Path]]:
        by_name: dict[str, list[Path]] = {}
        for name, files in self._index[0].items():
            by_name.setdefault(name.casefold(), []).extend(files)
        return by_name

    @cached_property
    def _index(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """The image files below the folder, by name and by name without suffix."""
        by_name: dict[str, list[Path]] = {}
        by_stem: dict[str, list[Path]] = {}
        for parent, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
            for name in names:
                file = Path(parent, name)
                if not name.startswith("."):
                    by_name.setdefault(name, []).append(file)
                    if file.suffix.lower() in RASTER_SUFFIXES | DICOM_SUFFIXES:
                        by_stem.setdefault(file.stem, []).append(file)
        return by_name, by_stem


def _with_slashes(path: str) -> str:
    """A path as on Linux, without a drive."""
    return _DRIVE.sub("/", path, count=1).replace("\\", "/") if _DRIVE.match(path) else path.replace("\\", "/")


def _with_suffixes(path: Path) -> list[Path]:
    """The file itself, in either form of Unicode, or those with the suffix of an image."""
    for form in _forms(path):
        if _exists(form):
            return [form]
    if path.suffix.lower() in RASTER_SUFFIXES | DICOM_SUFFIXES:
        return []
    suffixes = sorted(RASTER_SUFFIXES | DICOM_SUFFIXES)
    return [file for each in suffixes if _exists(file := path.with_name(f"{path.name}{each}"))]


def _forms(path: Path) -> Iterator[Path]:
    yield path
    if str(path).isascii():
        return
    for form in ("NFC", "NFD"):
        yield Path(unicodedata.normalize(form, str(path)))


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, in a locked folder, or with a null byte
        return False
