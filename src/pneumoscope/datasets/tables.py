"""Reads tables of images as rows of plain values: text with commas, semicolons, tabs or `|`, and Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import logging
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pneumoscope.datasets.columns import ROLES, VIEW, to_key
from pneumoscope.datasets.labels import clean
from pneumoscope.errors import DataError, MissingExtraError
from pneumoscope.files import unescape
from pneumoscope.text import counted, shorten, were

SUFFIXES = {".csv", ".tsv", ".txt", ".parquet"}
WORKBOOKS = {".xlsx", ".xls", ".xlsm", ".xlsb", ".ods"}
MAX_BYTES = 512 * 1024 * 1024  # of a text table: some millions of rows
MAX_CELL = 2**17  # characters of a text in Parquet, as Python's csv allows in a text table
_CELL = 32  # bytes that a cell of Parquet takes at least, however few there are in the file
_BATCH = 1000  # rows of a Parquet table that are decoded at a time
_DELIMITERS = (",", ";", "\t", "|")
_INDEX = re.compile(r"Unnamed: \d+")  # the name that pandas gives to an index without one
_EXCEL_TEXT = re.compile(r'="(.*)"', re.DOTALL)  # how a cell is kept as text in Excel, such as ="012"
_ABOVE = 10  # lines above the column names, at most, among which they are looked for
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_MISSING = {"", "nan", "null", "na", "n/a", "#n/a", "<na>", "nat"}  # as pandas, R and Excel write an empty cell
_IMAGE = re.compile(r".*\.(?:png|jpe?g|tiff?|bmp|dcm|dicom|webp|gif|jp2)", re.IGNORECASE)
_WORKBOOK_ADVICE = "Save the sheet as CSV (UTF-8), and use that."


@dataclass(frozen=True)
class Table:
    """The content of a table.

    Attributes:
        name: its path, for messages.
        columns: their names.
        rows: a value for each column.
        numbers: of each row, where it stands: the line of the file, or the row of a Parquet table.
        unit: what the numbers count: `line` or `row`.
        unread: columns whose values are not text, numbers or dates, with their types.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numbers: Sequence[int]
    unit: str = "line"
    unread: dict[str, str] = field(default_factory=dict)

    def place(self, index: int) -> str:
        """Where a row stands, for messages."""
        return f"{self.name}: {self.unit} {self.numbers[index]}"


def read_table(path: Path) -> Table:
    """Read a table with a line of column names, or a Parquet file.

    Text may be separated by commas, semicolons, tabs or `|`, in UTF-8, UTF-16 or, with a warning, Windows-1252. Blank
    rows are left out, and their number is logged, like lines above the column names that begin with `#`.

    Raises:
        DataError: it cannot be read, has no column names or two equal ones, or a row with too few or too many cells.
        MissingExtraError: it is Parquet, and pyarrow is not installed.
    """
    if path.suffix.lower() in WORKBOOKS:
        raise DataError(f"{path}: an Excel or LibreOffice workbook. {_WORKBOOK_ADVICE}")
    size = _measure(path)
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path, size)
    if not table.rows:
        raise DataError(f"{path}: no rows.")
    return table


def to_text(value: object) -> str | None:
    """A cell as clean text; None if it is empty or stands for a missing value, such as `nan`."""
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # with a missing value, a column of integers becomes one of floats
    text = clean(str(value))
    return None if text.casefold() in _MISSING else text


def to_boolean(value: object) -> bool | None:
    """A cell as true or false; None if it is empty.

    Raises:
        ValueError: it is neither.
    """
    text = to_text(value)
    if text is not None and text.lower() not in _BOOLEANS:
        raise ValueError(f"{text!r} is neither true nor false")
    return None if text is None else _BOOLEANS[text.lower()]


def _read_text(path: Path, size: int) -> Table:
    text = _decode(_read_bytes(path, size), path)
    text, above = _skip_comments(text, path)
    if mark := re.match(r"sep=([,;\t])\r?\n", text):  # for Excel
        text = text[mark.end() :]
    delimiter = mark[1] if mark else _find_delimiter(text)
    records = list(_parse(text, delimiter, path, first=above + (2 if mark else 1)))
    blank = [number for number, cells in records if not any(cell.strip() for cell in cells)]
    records = [(number, cells) for number, cells in records if any(cell.strip() for cell in cells)]
    if not records:
        raise DataError(f"{path}: the table is empty.")
    if blank:
        logging.getLogger("pneumoscope").info("%s: %s left out.", path, were(len(blank), "blank line"))
    (_, header), *body = records
    names = [clean(_to_cell(name)) for name in header]
    _require_header(names, path, body)
    names, body = _fit_header(names, body, path)
    _refuse_twice([name for name in names if name], path)
    rows = [_fit(cells, names, f"{path}: line {number}", delimiter) for number, cells in body]
    kept = [i for i, name in enumerate(names) if name or any(row[i].strip() for row in rows)]
    unnamed = [i for i in kept if not names[i]]
    if unnamed:
        logging.getLogger("pneumoscope").info("%s: columns without a name are left out: %d.", path, len(unnamed))
    named = [i for i in kept if names[i]]
    plain = [i for i in named if to_key(names[i]) == "path"]  # its cells are escaped in another way
    cells = [[_to_cell(row[i], i in plain) for i in named] for row in rows]
    return Table(str(path), [names[i] for i in named], cells, [number for number, _ in body])


def _skip_comments(text: str, path: Path) -> tuple[str, int]:
    """Leave out the lines above the column names that begin with `#`, unless one names columns itself."""
    count = 0
    while (mark := re.match(r"\s*#[^\r\n]*(?:\r\n|\r|\n)", text)) and not _count_known(mark[0]):
        count += len(mark[0].splitlines())
        text = text[mark.end() :]
    if count:
        logging.getLogger("pneumoscope").info("%s: comment lines are left out: %d.", path, count)
    return text, count


def _to_cell(text: str, plain: bool = False) -> str:
    """A cell without the marks of Excel or of our own writer, which is not used in the column `path`."""
    if match := _EXCEL_TEXT.fullmatch(text):
        return match[1]
    return text if plain else str(unescape(text))


def _measure(path: Path) -> int:
    """The size of a regular file in bytes."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: not a regular file.")
        with path.open("rb"):
            return status.st_size
    except (OSError, ValueError) as problem:  # a name with a null byte is a ValueError
        raise DataError(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}.") from None


def _read_bytes(path: Path, size: int) -> bytes:
    if size > MAX_BYTES:
        raise DataError(f"{path}: {size:,} bytes; the limit of a table is {MAX_BYTES:,}.")
    content = path.read_bytes()
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{path}: not text, but a workbook or archive with another suffix. {_WORKBOOK_ADVICE}")
    return content


def _decode(content: bytes, path: Path) -> str:
    advice = "Save it as CSV in UTF-8."
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif max(nulls := (content[:256:2].count(0), content[1:256:2].count(0))) > len(content[:256]) // 5:
        encoding = "utf-16-be" if nulls[0] > nulls[1] else "utf-16-le"  # as ASCII, of which names consist, looks there
    else:
        encoding = "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as problem:
        if encoding != "utf-8-sig":
            raise DataError(f"{path}: damaged text ({problem.reason} at byte {problem.start}). {advice}") from None
        try:
            text = content.decode("cp1252")
        except UnicodeDecodeError:
            raise DataError(f"{path}: text in an unknown encoding. {advice}") from None
        logging.getLogger("pneumoscope").warning(
            "%s: not in UTF-8, so it is read as Windows-1252, which Excel writes. If names look wrong, save it as CSV "
            "in UTF-8.", path,
        )  # fmt: skip
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}: line {line} has a null byte: this is not a table, or it is damaged. {advice}")
    return text


def _find_delimiter(text: str) -> str:
    """The delimiter that finds the most known columns in the first line, then the most columns."""
    first = next((line for line in io.StringIO(text) if line.strip()), "")
    return max(_DELIMITERS, key=lambda delimiter: _judge(first, delimiter))


def _judge(line: str, delimiter: str) -> tuple[int, int]:
    """How many known columns a line names, and how many columns."""
    try:
        names = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return 0, 0
    known = {*map(to_key, ROLES), *VIEW}
    return sum(to_key(name) in known for name in names), len(names)


def _count_known(line: str) -> int:
    return max(_judge(line, delimiter)[0] for delimiter in _DELIMITERS)


def _parse(text: str, delimiter: str, path: Path, first: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the number of the line where it begins."""
    spaced = re.search(rf'{re.escape(delimiter)} +"', text) is not None  # else ` "NORMAL"` keeps its quotes
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    while True:
        line = reader.line_num + first
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            raise DataError(
                f"{path}: cannot be read as CSV: in the row that begins in line {line}: {problem}. "
                'A cell that contains " needs quotes around it, and each " inside it must be doubled. Separate '
                "cells by commas, semicolons or tabs, not by spaces."
            ) from None


def _require_header(names: Sequence[str], path: Path, body: Sequence[tuple[int, list[str]]]) -> None:
    known = {*map(to_key, ROLES)}
    if not known & set(map(to_key, names)):
        for number, cells in body[:_ABOVE]:
            if len(known & set(map(to_key, cells))) > 1:
                raise DataError(
                    f"{path}: line {number} seems to name the columns ({', '.join(cells)}). Remove the lines above it."
                )
    if image := next((name for name in names if _IMAGE.fullmatch(name)), None):
        raise DataError(
            f"{path}: the first line must name the columns, but holds {image!r}. Write a line such as path,label "
            "above it."
        )


def _fit_header(
    names: list[str], body: list[tuple[int, list[str]]], path: Path
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Names without empty ones at the end that no row has; rows without the numbers that R writes before them."""
    widest = max((len(cells) for _, cells in body), default=0)
    while len(names) > widest > 0 and not names[-1]:
        names = names[:-1]
    firsts = [cells[0] for _, cells in body if len(cells) == len(names) + 1]
    if len(firsts) == len(body) and firsts == [str(number) for number in range(1, len(body) + 1)]:
        logging.getLogger("pneumoscope").info("%s: row numbers without a column name are left out.", path)
        body = [(number, cells[1:]) for number, cells in body]
    return ["" if _INDEX.fullmatch(name) else name for name in names], body


def _refuse_twice(names: Sequence[str], path: Path) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{path}: two columns are named {twice[0]!r}. Rename or remove one.")


def _fit(cells: list[str], names: Sequence[str], place: str, delimiter: str) -> list[str]:
    """A row with as many cells as there are columns; Excel leaves empty ones after the last."""
    while len(cells) > len(names) and not cells[-1].strip():
        cells.pop()
    if len(cells) != len(names):
        shown = {"\t": "a tab"}.get(delimiter, f"{delimiter!r}")
        raise DataError(
            f"{place} has {counted(len(cells), 'cell')}, but there are {len(names)} columns. "
            f"A cell that contains {shown} needs quotes around it."
        )
    return cells


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError(
            f'{path}: Parquet needs pyarrow: pip install "pneumoscope[train]". Or use CSV.'
        ) from None
    rows: list[tuple[Any, ...]] = []
    size, limits = 0, {"thrift_string_size_limit": 10**7, "thrift_container_size_limit": 10**6}
    try:
        with pyarrow.parquet.ParquetFile(path, **limits) as file:
            fields = list(file.schema_arrow)
        _refuse_twice([each.name for each in fields], path)
        unread = {each.name: str(each.type) for each in fields if not _is_plain(each.type)}
        names = [each.name for each in fields if each.name not in unread]
        texts = [each.name for each in fields if pyarrow.types.is_string(each.type)]
        # Texts stay in their dictionary: a few bytes can stand for a long text in each of a million rows.
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts, **limits) as file:
            for batch in file.iter_batches(_BATCH, columns=names):
                columns = [_to_list(column) for column in batch.columns]
                sizes = [len(value) if isinstance(value, str) else 0 for column in columns for value in column]
                size += sum(sizes) + _CELL * len(sizes)
                if max(sizes, default=0) > MAX_CELL:
                    raise DataError(f"{path} holds a text of {max(sizes):,} characters; the limit is {MAX_CELL:,}.")
                if size > MAX_BYTES:
                    raise DataError(f"{path} holds more than {MAX_BYTES:,} bytes, the limit of a table.")
                rows += zip(*columns, strict=True)
    except DataError:
        raise
    except Exception as problem:  # pyarrow raises errors of many kinds on a damaged file
        raise DataError(f"{path}: cannot be read as Parquet: {shorten(str(problem), 300)}.") from None
    return Table(str(path), names, rows, range(1, len(rows) + 1), "row", unread)


def _is_plain(kind: Any) -> bool:
    """Whether values of this type can be written in a cell; images and lists cannot."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    binary = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return not (types.is_nested(kind) or any(is_kind(kind) for is_kind in binary))


def _to_list(column: Any) -> list[Any]:
    """A column's values; dates and decimals as text, since Python has no time in nanoseconds."""
    import pyarrow
    from pyarrow import types

    kind = column.type
    if types.is_temporal(kind) or types.is_decimal(kind):
        column = column.cast(pyarrow.string())
    if types.is_dictionary(kind):  # each text once, however often it is there
        texts = _to_list(column.dictionary)
        return [None if place is None else texts[place] for place in column.indices.to_pylist()]
    values: list[Any] = column.to_pylist()
    return values
