"""Reads CSV and Parquet tables of images as rows of plain values."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, MissingExtraError
from pneumoscope.files import parse_rows

SUFFIXES = {".csv", ".parquet"}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_rows(table: Path, columns: Sequence[str]) -> tuple[Sequence[str], list[dict[str, Any]]]:
    """Read a `.csv` file in UTF-8, or these columns of a `.parquet` file.

    Returns:
        The names of all its columns, and its rows.

    Raises:
        DataError: it cannot be read.
        MissingExtraError: it is Parquet, and pyarrow is not installed.
    """
    if table.suffix.lower() == ".parquet":
        return _read_parquet(table, columns)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            return parse_rows(file)
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{table}: cannot be read as CSV in UTF-8: {problem}.") from None


def to_text(value: object) -> str | None:
    """A cell as text without spaces at its ends; None if it is empty."""
    if value is None or value != value:  # NaN stands for a missing value
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # with a missing value, a column of integers becomes one of floats
    return str(value).strip() or None


def to_boolean(value: object) -> bool | None:
    """A cell as true or false; None if it is empty.

    Raises:
        ValueError: it is neither.
    """
    text = to_text(value)
    if text is not None and text.lower() not in _BOOLEANS:
        raise ValueError(f"{text!r} is neither true nor false")
    return None if text is None else _BOOLEANS[text.lower()]


def _read_parquet(table: Path, columns: Sequence[str]) -> tuple[Sequence[str], list[dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError(
            f'{table}: Parquet needs pyarrow: pip install "pneumoscope[train]". Or use CSV.'
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            names: list[str] = file.schema_arrow.names
            return names, file.read([name for name in columns if name in names]).to_pylist()
    except (OSError, pyarrow.ArrowException) as problem:
        raise DataError(f"{table}: cannot be read as Parquet: {problem}.") from None
