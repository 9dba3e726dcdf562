"""What is written to disk: files whole or not at all, folders never overwritten by accident."""

from __future__ import annotations

import csv
import io
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumoscope.errors import UsageError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, even when the process is killed."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, even when the process is killed."""
    write_bytes(path, text.encode("utf-8"))


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as CSV with a header; None becomes an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def claim_folder(folder: Path, marker: str, overwrite: bool = False) -> None:
    """Make an output folder, or empty an old one where that is allowed.

    Args:
        folder: what to make.
        marker: the file by which an earlier output of the same kind is known; nothing else is ever emptied.
        overwrite: whether an earlier output may go.

    Raises:
        UsageError: the folder holds something already, or cannot be made.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not overwrite:
                raise UsageError(f"{folder}: exists already. Choose another --out, or allow it with --overwrite.")
            if not (folder / marker).is_file():
                raise UsageError(
                    f"{folder}: holds something else (no {marker} in it); it is not overwritten. Choose another --out."
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(f"{folder}: cannot be written: {problem.strerror}. Choose another --out.") from None
