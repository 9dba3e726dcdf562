"""The rows of a table as samples: files, labels, patients, splits, and what else its columns say."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pneumoscope.datasets import tables
from pneumoscope.datasets.columns import AGE, NONE, ROLES, SEX, VIEW, Naming, find_columns, to_key
from pneumoscope.datasets.folder_names import find_split, seems_split
from pneumoscope.datasets.image_files import require_utf8
from pneumoscope.datasets.image_paths import ImageFinder
from pneumoscope.datasets.labels import SEPARATOR, clean, look
from pneumoscope.datasets.left_out import NO_LABEL, REPEATED, LeftOut
from pneumoscope.datasets.samples import SPLITS, Sample
from pneumoscope.errors import DataError
from pneumoscope.images.ages import parse_age
from pneumoscope.images.dicom import LATERAL_VIEWS, Tags
from pneumoscope.images.read import Reading
from pneumoscope.text import were

_SEXES = {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F", "O": "O", "OTHER": "O"}
_VIEWS = {"L": "LATERAL", "LAT": "LATERAL", "POSTEROANTERIOR": "PA", "ANTEROPOSTERIOR": "AP"}
_KNOWN_VIEWS = {"AP", "PA", *LATERAL_VIEWS}
_LIST = re.compile(r"""\[\s*(?:['"][^'"]*['"](?:\s*,\s*['"][^'"]*['"])*)?\s*\]""")
_TOTALS = {"total", "totals", "sum", "summe", "gesamt", "grand total", "somme", "suma", "totale", "count"}
_NOBODY = {
    NONE,
    "unknown",
    "anonymous",
    "anonymized",
    "anonymised",
    "unbekannt",
    "-",
    "--",
    "?",
    ".",
    "#ref!",
    "#value!",
}
_CONTESTS = {"public", "private"}  # tests of a contest
_CONTEST_NAMES = {"usage", "leaderboard", "subset", "set"}  # of columns that say which; hospitals are public, too
_UNSAID = {"UNKNOWN", "U", "FRONTAL", "NONE", "-"}  # says nothing about age, sex or view


@dataclass(frozen=True)
class Listed:
    """The samples of a table, and the rows left out of it; whether columns name their patients and splits."""

    samples: list[Sample]
    left_out: list[LeftOut]
    has_patients: bool
    has_splits: bool


def read_listed(
    path: Path, naming: Naming, reading: Reading, labelled: bool = True, files: bool = True, elsewhere: bool = False
) -> Listed:
    """Read the samples of a table.

    Rows without a label are left out if there must be labels, and so are rows that repeat a row; both are counted in
    the log, like files that do not exist and whatever was found in another way than the table says.

    Args:
        path: the table.
        naming: its columns, where they have unusual names.
        reading: how to read images, unless the table says otherwise.
        labelled: whether there must be labels; then patients, splits and repeated rows are checked too.
        files: whether the files matter; otherwise the paths are names, and no file is looked for.
        elsewhere: whether other columns have a use of their own, and the caller says what is left.

    Raises:
        DataError: it cannot be read, a column is missing or unclear, a cell is not valid, one file has two labels,
            patients or splits, or no file exists.
        UsageError: `naming` names a column that does not exist.
    """
    table = tables.read_table(path)
    flags = [name for i, name in enumerate(table.columns) if _is_flag(row[i] for row in table.rows)]
    columns = find_columns([*table.columns, *table.unread], table.name, naming, labelled, flags)
    if wrong := [(role, name) for role, name in columns.items() if name in table.unread]:
        role, name = wrong[0]
        raise DataError(f"{path}: the column {name!r} holds {table.unread[name]}, from which no {role} can be read.")
    table = _drop_total(table, columns["path"])
    cells = _Cells(table, columns)
    if labelled and naming.split_column is None and "split" not in columns:
        _refuse_hidden_split(cells)
    rows = _read_rows(cells, path.parent, reading, labelled, files)
    left_out: list[LeftOut] = []
    if labelled:
        if files:
            _refuse_folders(rows, table)
        rows, left_out = _leave_out(rows, table)
        if files:
            _check_files(rows, table, cells)
        _compare_folders([sample for _, sample in rows], table)
        _compare_splits([sample for _, sample in rows], table, path.parent)
    _log_columns(cells, path, elsewhere)
    samples = [sample for _, sample in rows]
    return Listed(samples, left_out, any(sample.patient for sample in samples), "split" in columns)


def _drop_total(table: tables.Table, path_column: str) -> tables.Table:
    """A table without the line of totals that a spreadsheet may have at its end."""
    words = [(tables.to_text(cell) or "").strip(":").casefold() for cell in table.rows[-1]]
    if len(words) == 1 or not _TOTALS & set(words) or words[table.columns.index(path_column)] not in {"", *_TOTALS}:
        return table
    logging.getLogger("pneumoscope").warning("%s is a line of totals, and is left out.", table.place(-1))
    return replace(table, rows=table.rows[:-1], numbers=table.numbers[:-1])


def _is_flag(cells: Iterable[Any]) -> bool:
    """Whether a column says yes or no (or, with -1, uncertain) of a finding."""
    found = False
    for text in filter(None, map(tables.to_text, cells)):
        if look(text) not in {"0", "1", "-1"}:  # mostly in the first row
            return False
        found = True
    return found


class _Cells:
    """The cells of a table by role, and its other columns."""

    def __init__(self, table: tables.Table, columns: Mapping[str, str]) -> None:
        self.table = table
        self._places = {role: table.columns.index(name) for role, name in columns.items()}
        used = set(self._places.values())
        self.others = {name: i for i, name in enumerate(table.columns) if i not in used}
        keys = {to_key(name): i for name, i in reversed(self.others.items())}
        self._facts = {
            fact: [keys[key] for key in names if key in keys]
            for fact, names in (("age", AGE), ("sex", SEX), ("view", VIEW))
        }
        self.unclear: Counter[str] = Counter()  # cells of age, sex and view that say nothing that is known
        self.renamed = [f"{role} from {name}" for role, name in columns.items() if name != role]

    def get(self, role: str, row: Sequence[Any]) -> Any:
        place = self._places.get(role)
        return None if place is None else row[place]

    def get_facts(self, row: Sequence[Any]) -> Tags | None:
        """Age, sex and view, as far as the row says them."""
        values: dict[str, Any] = {}
        for fact, places in self._facts.items():
            for text in filter(None, (tables.to_text(row[place]) for place in places)):
                value = _READERS[fact](text.upper())
                if value is not None:
                    values[fact] = value
                    break
                if text.upper() not in _UNSAID:
                    self.unclear[fact] += 1
        return Tags(**values) if values else None

    def get_metadata(self, row: Sequence[Any]) -> dict[str, str]:
        """The other columns; their names and values are shared between rows."""
        texts = ((name, tables.to_text(row[place])) for name, place in self.others.items())
        return {_rename(name): sys.intern(text) for name, text in texts if text is not None}


def to_tags(cells: Mapping[str, str]) -> Tags | None:
    """Age, sex and view, as far as a row's cells say them, by the names of their columns."""
    found = {to_key(name): text.upper() for name, text in cells.items()}
    values: dict[str, Any] = {
        fact: next((value for key in keys if key in found and (value := _READERS[fact](found[key])) is not None), None)
        for fact, keys in (("age", AGE), ("sex", SEX), ("view", VIEW))
    }
    return Tags(**values) if any(value is not None for value in values.values()) else None


def _rename(name: str) -> str:
    """Another name for a column that has the name of a role, so that both can be written to one table."""
    return f"{name} (table)" if name in ROLES else name


def _read_rows(cells: _Cells, folder: Path, reading: Reading, labelled: bool, files: bool) -> list[tuple[int, Sample]]:
    table = cells.table
    paths = [_to_path(cells.get("path", row)) for row in table.rows]
    finder = ImageFinder(folder, [path for path in paths if path])
    rows = []
    for i, (row, path) in enumerate(zip(table.rows, paths, strict=True)):
        if path is None:
            raise DataError(f"{table.place(i)} has no path.")
        label, patient, split = (tables.to_text(cells.get(role, row)) for role in ("label", "patient", "split"))
        sample = Sample(
            finder.find(path) if files else require_utf8(folder / path),
            _to_label(label),
            None if patient and patient.casefold() in _NOBODY else patient,
            _to_split(split, table.place(i)) if labelled else None,
            _to_reading(cells, row, reading, table.place(i)),
            cells.get_facts(row),
            cells.get_metadata(row),
        )
        rows.append((i, sample))
    finder.log(table.name)
    return rows


def _to_path(cell: object) -> str | None:
    """A path as it stands: a name may begin or end with a space."""
    return None if tables.to_text(cell) is None else str(cell)


def _to_label(text: str | None) -> str | None:
    """A label; several findings in brackets, as in PadChest's `['pneumonia', 'effusion']`, get `|` between them."""
    if text is None or not _LIST.fullmatch(text):
        return text
    return SEPARATOR.join(clean(each) for each in re.findall(r"""['"]([^'"]*)['"]""", text)) or None


def _to_split(text: str | None, place: str) -> str | None:
    if text is not None and find_split(text) is None:
        raise DataError(
            f"{place} has the split {text!r}; valid are {', '.join(SPLITS)}. If another column holds it, name that "
            f"with `split_column`; if none does, pass `split_column='{NONE}'`."
        )
    return find_split(text) if text else None


def _to_reading(cells: _Cells, row: Sequence[Any], reading: Reading, place: str) -> Reading:
    for name in ("invert", "any_modality"):
        try:
            value = tables.to_boolean(cells.get(name, row))
        except ValueError as problem:
            raise DataError(f"{place}: {name}: {problem}.") from None
        reading = reading if value is None else replace(reading, **{name: value})
    return reading


def _leave_out(
    rows: Sequence[tuple[int, Sample]], table: tables.Table
) -> tuple[list[tuple[int, Sample]], list[LeftOut]]:
    """Divide rows into those that are kept, and those without a label or that repeat another one.

    Raises:
        DataError: no row has a label, or two rows say different things about one file.
    """
    labelled = [(i, sample) for i, sample in rows if sample.label is not None]
    if not labelled:
        raise DataError(f"{table.name}: no row has a label.")
    if unlabelled := len(rows) - len(labelled):
        first = next(i for i, sample in rows if sample.label is None)
        logging.getLogger("pneumoscope").warning(
            "%s: %d of %d images have no label and are left out, the first in %s %d.",
            table.name, unlabelled, len(rows), table.unit, table.numbers[first],
        )  # fmt: skip
    left_out = [LeftOut(sample.path, NO_LABEL) for _, sample in rows if sample.label is None]
    firsts: dict[str, tuple[int, Sample]] = {}
    for i, sample in labelled:
        j, other = firsts.setdefault(os.path.normpath(sample.path), (i, sample))
        left_out += [LeftOut(sample.path, REPEATED, sample.label)] if j != i else []
        for what in ("label", "patient", "split", "reading"):
            if getattr(sample, what) != getattr(other, what):
                raise DataError(
                    f"{table.name}: {table.unit}s {table.numbers[j]} and {table.numbers[i]} name the same file, "
                    f"{sample.path}, but differ in {what}: {_name(other, what)} and {_name(sample, what)}. Keep one of "
                    "them."
                )
    if repeated := len(labelled) - len(firsts):
        logging.getLogger("pneumoscope").warning("%s: repeated rows are left out: %d.", table.name, repeated)
    return list(firsts.values()), left_out


def _name(sample: Sample, what: str) -> str:
    value = getattr(sample, what)
    return "none" if value is None else str(value)


def _check_files(rows: Sequence[tuple[int, Sample]], table: tables.Table, cells: _Cells) -> None:
    """Count the files that do not exist, by class.

    Raises:
        DataError: none exists.
    """
    missing = [(i, sample) for i, sample in rows if not os.path.isfile(sample.path)]  # noqa: PTH113 - no error if locked
    if not missing:
        return
    i, _ = missing[0]
    path = str(cells.get("path", table.rows[i]))
    tried = ImageFinder(Path(table.name).parent, []).describe(path)
    first = f"The first, in {table.unit} {table.numbers[i]}, is {path!r}; tried: {tried}."
    if len(missing) == len(rows):
        raise DataError(
            f"{table.name}: none of its {len(rows)} images exists. {first} Paths are relative to the table's folder: "
            "move the table, or write absolute paths."
        )
    lost, total = (Counter(str(sample.label) for _, sample in each) for each in (missing, rows))
    shares = ", ".join(f"{lost[label]} of {total[label]} {label}" for label in sorted(lost))
    logging.getLogger("pneumoscope").warning(
        "%s: %d of %d images do not exist (%s). %s", table.name, len(missing), len(rows), shares, first
    )


def _refuse_folders(rows: Sequence[tuple[int, Sample]], table: tables.Table) -> None:
    for i, sample in rows:
        if os.path.isdir(sample.path):  # noqa: PTH112 - no error if locked
            raise DataError(
                f"{table.place(i)}: {sample.path} is a folder, not an image. Give the path of each image, or name the "
                "column that holds it with `path_column`."
            )


def _compare_folders(samples: Sequence[Sample], table: tables.Table) -> None:
    """Warn of images in a folder that has the name of another class than their label."""
    classes = {look(sample.label): sample.label for sample in samples if sample.label}
    wrong = [
        (sample, label)
        for sample in samples
        if (label := classes.get(look(sample.path.parent.name)))
        and label not in (sample.label or "").split(SEPARATOR)  # of several findings, the map decides
    ]
    if wrong:
        sample, label = wrong[0]
        logging.getLogger("pneumoscope").warning(
            "%s: %d images lie in a folder with the name of another class, such as %s, which the table calls %s. The "
            "table counts.", table.name, len(wrong), sample.path, sample.label,
        )  # fmt: skip


def _compare_splits(samples: Sequence[Sample], table: tables.Table, root: Path) -> None:
    """Warn of images in a folder that has the name of another split than theirs."""
    wrong = []
    known: dict[str, set[str | None]] = {}  # the splits that a folder names, by folder
    for sample in samples:
        if not sample.split:
            continue
        place = os.path.dirname(sample.path)  # noqa: PTH120 - `parent` takes long for millions
        if place not in known:
            folders = sample.path.parent
            below = folders.relative_to(root) if folders.is_relative_to(root) else Path(folders.name)
            known[place] = {find_split(part) for part in below.parts} - {None}
        if known[place] and known[place] != {sample.split}:
            wrong.append(sample)
    if wrong:
        logging.getLogger("pneumoscope").warning(
            "%s: %d of %d images lie in a folder with the name of another split, such as %s, which the table puts into "
            "%s. The table counts.", table.name, len(wrong), len(samples), wrong[0].path, wrong[0].split,
        )  # fmt: skip


def _refuse_hidden_split(cells: _Cells) -> None:
    """Refuse to leave a column that holds names of splits, or marks some images as one."""
    for name, place in cells.others.items():
        texts = {tables.to_text(cell) for cell in {row[place] for row in cells.table.rows}}
        values = {text for text in texts if text}
        splits = {find_split(value) for value in values} - {None}
        named = "train" in splits or None in texts  # not of images that are all of one split
        hidden = {value.casefold() for value in values} & _CONTESTS
        listed = all(seems_split(value) or value.casefold() in _CONTESTS for value in values)
        if (splits and named and (len(splits) > 1 or listed)) or (
            listed and len(hidden) > 1 and to_key(name) in _CONTEST_NAMES
        ):
            raise DataError(
                f"{cells.table.name}: the column {name!r} holds {', '.join(sorted(values))}. If it is the split, pass "
                f"`split_column={name!r}`; if not, pass `split_column='{NONE}'`."
            )


def log_others(path: Path, names: Iterable[str]) -> None:
    """Log the columns that have no meaning here."""
    if listed := ", ".join(names):
        logging.getLogger("pneumoscope").info("%s: columns kept as metadata: %s.", path, listed)


def _log_columns(cells: _Cells, path: Path, elsewhere: bool) -> None:
    logger = logging.getLogger("pneumoscope")
    if cells.renamed:
        logger.info("%s: columns used: %s.", path, ", ".join(cells.renamed))
    if not elsewhere:
        log_others(path, cells.others)
    if cells.table.unread:
        logger.warning("%s: columns that are not read because of their type: %s.", path, ", ".join(cells.table.unread))
    for fact, count in cells.unclear.items():
        logger.warning("%s: %s not understood (%s).", path, were(count, "cell"), fact)


def _to_view(text: str) -> str | None:
    words = [word for word in re.split(r"[^A-Z]+", text) if word]
    plain = "".join(words)
    if plain.startswith("LATERAL"):
        return "LATERAL"
    view = _VIEWS.get(plain, words[0] if words else "")  # `AP Supine` is AP
    return view if view in _KNOWN_VIEWS else None


_READERS: Mapping[str, Any] = {"age": parse_age, "sex": _SEXES.get, "view": _to_view}
