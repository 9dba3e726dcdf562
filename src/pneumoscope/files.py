"""What is written to disk: files whole or not at all, folders never overwritten by accident."""

from __future__ import annotations

import csv
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumoscope.errors import UsageError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, even when the process is killed.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        if path.exists() and not path.is_file():  # /dev/null is written to, never replaced
            path.write_bytes(content)
            return
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as problem:
        raise UsageError(f"{path}: cannot be written: {problem.strerror or problem}. Choose another --out.") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all, even when the process is killed.

    A path that is not UTF-8 may be part of the text: its odd bytes are written as escapes.

    Raises:
        UsageError: it cannot be written.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def format_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Rows of equal keys as lines of CSV with a header; None becomes an empty field."""
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
    """Takes the rows of a CSV writer, which quotes a carriage return only where its line terminator has one."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def check_folder(folder: Path, names: Sequence[str], overwrite: bool = False) -> None:
    """Refuse what `claim_folder` would refuse, and touch nothing: for work that takes long before it writes.

    Raises:
        UsageError: the folder holds something already.
    """
    if not folder.exists() or (folder.is_dir() and all(_left_by_a_kill(each) for each in folder.iterdir())):
        return
    if not overwrite:
        raise UsageError(f"{folder}: exists already. Choose another --out, or allow it with --overwrite.")
    marker = names[0]
    if not (folder / marker).is_file():
        raise UsageError(
            f"{folder}: holds something else (no {marker} in it); it is not overwritten. Choose another --out."
        )
    for each in folder.iterdir():
        if each.name not in names and not _left_by_a_kill(each):
            raise UsageError(
                f"{folder}: holds {each.name}, which is of no earlier output; nothing is overwritten. "
                "Choose another --out."
            )


def claim_folder(folder: Path, names: Sequence[str], overwrite: bool = False) -> None:
    """Make an output folder, or empty an old one where that is allowed.

    Args:
        folder: what to make.
        names: all that an output of this kind may hold; the first is always there. A folder with anything else in it
            is never emptied.
        overwrite: whether an earlier output may go.

    Raises:
        UsageError: the folder holds something already, or cannot be made.
    """
    try:
        check_folder(folder, names, overwrite)
        if folder.exists() and not all(_left_by_a_kill(each) for each in folder.iterdir()):
            # Emptied, not removed: it may be a mount or a link. The marker goes last, so that what an interruption
            # leaves is still known.
            for each in sorted(folder.iterdir(), key=lambda each: each.name == names[0]):
                if each.is_dir() and not each.is_symlink():
                    shutil.rmtree(each)
                else:
                    each.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(f"{folder}: cannot be written: {problem.strerror or problem}. Choose another --out.") from None


def _left_by_a_kill(path: Path) -> bool:
    """Whether a file is what `write_bytes` had written when its process was killed."""
    return path.name.startswith(".") and path.name.endswith(".part")
