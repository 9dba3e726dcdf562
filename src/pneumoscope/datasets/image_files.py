"""Lists the image files below a folder, and what there is besides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pneumoscope.datasets import folder_names, left_out, tables
from pneumoscope.datasets.left_out import LeftOut, Reason
from pneumoscope.errors import DataError
from pneumoscope.images.read import SUFFIXES, is_image
from pneumoscope.text import is_utf8

RASTER_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
DICOM_SUFFIXES = {".dcm", ".dicom"}
_SIDECAR_SUFFIXES = tables.SUFFIXES | {
    ".db", ".doc", ".docx", ".htm", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".pdf", ".rtf", ".tsv", ".txt",
    ".xls", ".xlsx", ".xml", ".yaml", ".yml",
}  # fmt: skip
_SIDECAR_NAMES = {"DICOMDIR", "LICENSE", "LICENCE", "README", "SHA256SUMS", "MD5SUMS", "CHECKSUMS"}
_MASK_ENDINGS = ("_mask", "-mask", "_seg", "_heatmap")  # of files beside the image that they belong to


@dataclass
class Found:
    """The images below a folder, in order, and what was left out."""

    images: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def walk(folder: Path, others: Iterable[Path] = (), check: Callable[[Path], None] = lambda _: None) -> Found:
    """List the image files below a folder, in order, through links too, but each real folder once.

    Args:
        folder: where to begin.
        others: folders that links must not lead into, such as those of other classes.
        check: called with every folder below; it may refuse it.

    Raises:
        DataError: the folder itself cannot be read, or its name is not valid UTF-8.
    """
    require_utf8(folder)
    found = Found()

    def note(problem: OSError) -> None:
        if Path(problem.filename) == folder:
            raise unreadable(folder, problem) from None
        found.left_out.append(LeftOut(Path(problem.filename), left_out.LOCKED))

    visited = {identify(folder), *map(identify, others)}
    for parent, folders, names in os.walk(folder, onerror=note, followlinks=True):
        inner = []
        for path in sorted(Path(parent, name) for name in folders):
            if reason := judge_folder(path):
                found.left_out += [LeftOut(file, reason) for file in list_files(path, reason)]
            elif (identity := identify(path)) in visited:
                found.left_out.append(LeftOut(path, left_out.LINKED_AGAIN))
            else:
                check(path)
                visited.add(identity)
                inner.append(path.name)
        folders[:] = inner
        _sort_files(Path(parent), sorted(names), found)
    return found


def judge_folder(path: Path) -> Reason | None:
    """Why the images below a folder are no radiographs; None if they may be."""
    if folder_names.is_system(path.name):
        return left_out.SYSTEM
    if folder_names.names_masks(path.name):
        return left_out.MASKS
    if folder_names.is_output(path):
        return left_out.OUTPUT
    return left_out.DERIVED if folder_names.names_pictures(path.name) else None


def list_files(folder: Path, reason: Reason) -> list[Path]:
    """The images below a folder that is left out; of a folder of the system, only what looks like an image."""
    walked = sorted((Path(parent), sorted(names)) for parent, _, names in os.walk(folder))
    if reason == left_out.SYSTEM:
        return [parent / name for parent, names in walked for name in names if name.startswith("._")]
    return [
        parent / name
        for parent, names in walked
        for name in names
        if not folder_names.is_system(name) and _may_be_image(parent / name)
    ]


def list_folder(folder: Path) -> list[Path]:
    """What is in a folder, sorted, but for hidden files and those of the system.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if not folder_names.is_system(path.name))
    except OSError as problem:
        raise unreadable(folder, problem) from None


def find_direct_images(folder: Path) -> list[Path]:
    """The images that lie in a folder itself."""
    return [path for path in list_folder(folder) if not path.is_dir() and _may_be_image(path)]


def unreadable(folder: Path, problem: OSError) -> DataError:
    """The error of a folder that cannot be read."""
    return DataError(f"{folder}: cannot be read: {problem.strerror}. Check the path and its permissions.")


def identify(path: Path) -> tuple[int, int] | Path:
    """Identify the real file or folder behind a path that may be a link."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a name with a null byte is a ValueError
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else path.resolve()


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
    if not is_utf8(str(path)):
        raise DataError(f"{str(path)!r}: its name is not valid UTF-8. Rename it.") from None
    return path


def _sort_files(parent: Path, names: Sequence[str], found: Found) -> None:
    """Sort the files of a folder into images and what is left out."""
    stems = {Path(name).stem for name in names}
    for name in names:
        path = parent / name
        ending = next((each for each in _MASK_ENDINGS if path.stem.lower().endswith(each)), "")
        if name.startswith("._"):
            found.left_out.append(LeftOut(path, left_out.SYSTEM))
        elif folder_names.is_system(name):
            continue
        elif not is_utf8(str(path)):
            found.left_out.append(LeftOut(path, left_out.BAD_NAMES))
        elif not _may_be_image(path):
            sidecar = path.suffix.lower() in _SIDECAR_SUFFIXES or path.stem.upper() in _SIDECAR_NAMES
            found.left_out.append(LeftOut(path, left_out.SIDECARS if sidecar else left_out.NOT_IMAGES))
        elif ending and path.stem[: -len(ending)] in stems:
            found.left_out.append(LeftOut(path, left_out.MASKS))
        else:
            found.images.append(path)


def _may_be_image(path: Path) -> bool:
    """Decide by suffix if it is known, else by content: archives and modalities use arbitrary names."""
    if (suffix := path.suffix.lower()) in RASTER_SUFFIXES | DICOM_SUFFIXES:
        return True
    if path.name.upper() == "DICOMDIR" or suffix in tables.SUFFIXES:
        return False
    return is_image(read_head(path))
