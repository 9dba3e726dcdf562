"""Write files whole or not at all, and never overwrite a folder by accident."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumoscope.errors import UsageError


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; a pipe or a device could block for ever, or never end.

    Raises:
        OSError: it is something else, is larger, or cannot be read; `strerror` says which.
    """
    # A pipe is opened without waiting for its writer (Windows has no such flag, and no such pipes in folders).
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = file.read(limit + 1) if status.st_size <= limit else b""
        if max(status.st_size, len(content)) > limit:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes; the limit is {limit:,}", str(path))
        return content


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, even if the process is killed.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        if path.exists() and not path.is_file():  # such as /dev/null, which must not be replaced
            path.write_bytes(content)
            return
        part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as problem:
        raise _refuse(path, problem) from None


def write_text(path: Path, text: str) -> None:
    """Write text as `write_bytes` does, in UTF-8; invalid bytes, which a path may contain, are written as escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def format_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield rows with equal keys as lines of CSV, after a header; None becomes an empty field."""
    lines = _Lines()
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(lines, list(row), lineterminator="\r\n")
            writer.writeheader()
        writer.writerow(row)
        yield from lines
        lines.clear()


class _Lines(list[str]):
    """Collects rows of a CSV writer, which quotes a carriage return only if its line terminator contains one."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def check_file(path: Path, overwrite: bool = False) -> None:
    """Refuse to overwrite a file, before any long computation.

    Raises:
        UsageError: the file exists.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: already exists. Choose another path, or pass `overwrite=True`.")


def check_folder(folder: Path, names: Sequence[str], overwrite: bool = False) -> None:
    """Refuse what `claim_folder` would refuse, before any long computation."""
    if not folder.exists() or (folder.is_dir() and all(map(_is_partial, folder.iterdir()))):
        return
    check_file(folder, overwrite)
    marker = names[0]
    if not (folder / marker).is_file():
        raise UsageError(f"{folder}: not an earlier output, because it has no {marker}. Choose another path.")
    for path in folder.iterdir():
        if path.name not in names and not _is_partial(path):
            raise UsageError(
                f"{folder}: contains {path.name}, which is not part of an earlier output. Choose another path."
            )


def claim_folder(folder: Path, names: Sequence[str], overwrite: bool = False) -> None:
    """Make an output folder, or empty an earlier one if `overwrite` allows it.

    `names` is everything that an output of this kind may contain; the first is always there. A folder that contains
    anything else is never emptied.

    Raises:
        UsageError: the folder is not empty, or cannot be made.
    """
    try:
        check_folder(folder, names, overwrite)
        if folder.exists() and not all(map(_is_partial, folder.iterdir())):
            # Emptied, not removed, as it may be a mount or a link. The marker goes last, so that the folder is still
            # recognised after an interruption.
            for path in sorted(folder.iterdir(), key=lambda path: path.name == names[0]):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise _refuse(folder, problem) from None


def _refuse(path: Path, problem: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be written: {problem.strerror or problem}. Choose another path.")


def _is_partial(path: Path) -> bool:
    """Whether `write_bytes` left this file when its process was killed."""
    return path.name.startswith(".") and path.name.endswith(".part")
