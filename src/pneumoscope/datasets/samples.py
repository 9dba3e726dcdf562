"""Folders and tables become samples. Nothing is ever written or moved inside them."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError, ImageError, MissingExtraError, UsageError
from pneumoscope.files import format_rows, write_text
from pneumoscope.images.dicom import Tags, is_dicom, read_tags
from pneumoscope.images.read import Reading, is_image

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "test": "test",
}
_RASTER_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif",
    ".jp2", ".j2k", ".j2c", ".jpx",
}  # fmt: skip
_DICOM_SUFFIXES = {".dcm", ".dicom"}
_TABLE_SUFFIXES = {".csv", ".parquet"}
_DEPARTURES = ("invert", "any_modality")
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
# Kermany: `person23_bacteria_78`, `IM-0115-0001`, `NORMAL2-IM-0588-0001`. The numbers of bacteria and virus, and of IM
# and NORMAL2-IM, are separate series. Phantoms: `phantom0012_1`.
_PATIENT_PATTERNS = (
    r"(?P<number>person\d+)_(?P<series>bacteria|virus)_\d+",
    r"(?P<number>(?:NORMAL2-)?IM-\d+)-\d+",
    r"(?P<number>phantom\d+)_\d+",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One radiograph file and what is known about it.

    Attributes:
        path: the file.
        label: its class, or None where unknown.
        patient: whom it shows, or None where unknown.
        split: `train`, `val` or `test`, or None before a split is drawn.
        reading: departures from the usual way of reading it.
        tags: what a DICOM header says of it.
    """

    path: Path
    label: str | None = None
    patient: str | None = None
    split: str | None = None
    reading: Reading = Reading()
    tags: Tags | None = None


def read_samples(data: str | Path, patient_pattern: str | None = None, reading: Reading = Reading()) -> list[Sample]:
    """Read `root/{train,val,test}/{CLASS}/`, `root/{CLASS}/`, or a CSV or Parquet table.

    A table has the columns `path,label` and, if it likes, `patient`, `split`, and `invert` and `any_modality`
    (`true` or `false`, see `Reading`); its paths are relative to it. Files are known by their content where their
    name tells nothing. The patient is taken from the column, else from `patient_pattern` where it is given, else from a
    DICOM header, else from a file name of the Kermany data.

    Args:
        data: folder or table.
        patient_pattern: regular expression searched in the file name; its first group (or the whole match) is the
            patient. Without it the names of the Kermany data are known.
        reading: how to read files of which a table says nothing.

    Raises:
        DataError: nothing there, or nothing of that form, or a file that a table names twice.
        UsageError: the pattern is no regular expression.
        MissingExtraError: there are DICOM files, and what reads them is not installed.
    """
    data, patterns = Path(data), _compile(patient_pattern)
    if data.is_file() and data.suffix.lower() in _TABLE_SUFFIXES:
        return _read_table(data, patterns, reading, asked=patient_pattern is not None)
    if data.is_file():
        raise DataError(f"{data}: a file, but no table. Give a folder of classes, or a .csv or .parquet table.")
    classes = list(_class_folders(data))
    if not classes:
        raise DataError(
            f"{data}: no class folders. Expected {data}/CLASS/… or {data}/{{train,val,test}}/CLASS/…, for instance "
            f"{data}/train/NORMAL and {data}/train/PNEUMONIA."
        )
    samples = [
        _describe(Sample(path, folder.name, None, split, reading), patterns, patient_pattern is not None)
        for split, folder in classes
        for path in _image_files(folder)  # a class may have folders of its own, one a patient for instance
    ]
    if not samples:
        raise DataError(f"{data}: class folders ({', '.join(sorted({f.name for _, f in classes}))}), but no images.")
    return samples


def find_images(paths: Iterable[Path], reading: Reading = Reading()) -> list[Sample]:
    """Expand files, folders (recursively) and tables into samples, in input order.

    Args:
        paths: files, folders and tables.
        reading: how to read files of which a table says nothing.

    Raises:
        DataError: a folder or table holds no images, or a table cannot be read.
    """
    samples: list[Sample] = []
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112 - pathlib raises where a name is too long or lies in a locked folder
            found = [Sample(file, reading=reading) for file in _image_files(path)]
            if not found:
                raise DataError(f"{path}: no images in this folder.")
            samples += found
        elif path.suffix.lower() in _TABLE_SUFFIXES:
            samples += _read_table(path, _compile(None), reading, labelled=False)
        else:  # what cannot be read gets a row that says so; it does not stop the others
            samples.append(Sample(_writable(path), reading=reading))
    return samples


def find_classes(samples: Sequence[Sample], positive: str | None = None) -> tuple[tuple[str, ...], str | None]:
    """Order the class names and name the positive one.

    Returns:
        Two classes: (negative, positive) and the positive one. More: the sorted names and None.

    Raises:
        DataError: fewer than two classes, or two without a PNEUMONIA and no `positive`.
        UsageError: `positive` is no class of the data.
    """
    names = sorted({sample.label for sample in samples if sample.label is not None})
    if taken := sorted({"uncertain", "neither", "out_of_distribution"} & set(names)):
        raise DataError(f"A class is named {taken[0]}, which is what a decision without a label is called. Rename it.")
    if len(names) < 2:
        raise DataError(f"Found {len(names)} class ({', '.join(names) or 'no labels'}); two or more are needed.")
    if positive is not None and positive not in names:
        raise UsageError(f"--positive {positive}: no such class. The data has {', '.join(names)}.")
    if len(names) > 2:
        if positive is not None:
            raise UsageError(f"--positive {positive}: only two classes have a positive one; found {', '.join(names)}.")
        return tuple(names), None
    positive = positive or next((name for name in names if name.upper() == "PNEUMONIA"), None)
    if positive is None:
        raise DataError(f"Which class is positive, {names[0]} or {names[1]}? Say so with --positive.")
    return (next(name for name in names if name != positive), positive), positive


def format_samples(samples: Sequence[Sample], folder: Path) -> str:
    """Samples as a CSV table for `folder`, which `read_samples` reads again; paths are relative where they can be."""
    departures = [name for name in _DEPARTURES if any(getattr(sample.reading, name) for sample in samples)]
    rows = [
        {
            "path": _relative(sample.path, folder),
            "label": sample.label or "",
            "patient": sample.patient or "",
            "split": sample.split or "",
            **{name: str(getattr(sample.reading, name)).lower() for name in departures},
        }
        for sample in samples
    ]
    return "".join(format_rows(rows))


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples as a CSV table, whole or not at all."""
    write_text(path, format_samples(samples, path.parent))


def fingerprint_samples(samples: Sequence[Sample], digests: Sequence[str]) -> str:
    """Name a labelled and split set of files by its content: SHA-256 over sorted content, label and split."""
    lines = sorted(f"{digest} {s.label} {s.split}\n" for s, digest in zip(samples, digests, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def count_samples(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """How many images of each class each split has, as `{split: {class: images}}`."""
    classes = sorted({str(sample.label) for sample in samples})
    counts = Counter((sample.split, sample.label) for sample in samples)
    return {split: {name: counts[split, name] for name in classes} for split in SPLITS}


def describe_counts(samples: Sequence[Sample]) -> str:
    """Say how many images of each class each split has."""
    return " · ".join(
        f"{split} {sum(counts.values())} ({', '.join(f'{count} {name}' for name, count in counts.items())})"
        for split, counts in count_samples(samples).items()
    )


def find_patient(stem: str, patterns: Sequence[re.Pattern[str]] | None = None) -> str | None:
    """Read the patient from a file name, or None where no pattern fits; by default, those of the Kermany data."""
    for pattern in _compile(None) if patterns is None else patterns:
        if match := pattern.search(stem):
            named = match.groupdict()
            if "number" in named:
                return "-".join(part for part in (named.get("series"), named["number"]) if part)
            return (match.group(1) if pattern.groups else match.group(0)) or None
    return None


def cluster_by_patient(patients: Sequence[str | None] | None, n: int) -> NDArray[np.int64]:
    """Number the clusters of n images (N,) in order of appearance; an image without a patient is its own cluster.

    Raises:
        DataError: the number of patients is not n.
    """
    if patients is not None and len(patients) != n:
        raise DataError(f"patients: {n} images need {n} patients, found {len(patients)}.")
    numbers: dict[str | int, int] = {}
    keys = range(n) if patients is None else [patient or i for i, patient in enumerate(patients)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _compile(patient_pattern: str | None) -> list[re.Pattern[str]]:
    try:
        return [re.compile(p) for p in ([patient_pattern] if patient_pattern else _PATIENT_PATTERNS)]
    except re.error as problem:
        raise UsageError(f"--patient-pattern {patient_pattern!r}: not a regular expression: {problem}.") from None


def _class_folders(root: Path) -> Iterator[tuple[str | None, Path]]:
    folders = _subfolders(root)
    splits = [folder for folder in folders if folder.name.lower() in _SPLIT_NAMES]
    if not any(_SPLIT_NAMES[folder.name.lower()] == "train" or _subfolders(folder) for folder in splits):
        yield from ((None, folder) for folder in folders)
        return
    for folder in splits:
        yield from ((_SPLIT_NAMES[folder.name.lower()], inner) for inner in _subfolders(folder))


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as problem:
        raise DataError(f"{folder}: cannot be read: {problem.strerror}. Check the path and its permissions.") from None


def _image_files(folder: Path) -> list[Path]:
    def refuse(problem: OSError) -> None:
        raise DataError(
            f"{problem.filename}: cannot be read: {problem.strerror}. Check the path and its permissions."
        ) from None

    files: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            _writable(Path(parent, name))
            for name in sorted(names)
            if not name.startswith(".") and _may_be_image(Path(parent, name))
        ]
    return files


def _may_be_image(path: Path) -> bool:
    """Go by the name where it tells, else by content: what archives and modalities write has any name, or a number."""
    if (suffix := path.suffix.lower()) in _RASTER_SUFFIXES | _DICOM_SUFFIXES:
        return True
    if path.name.upper() == "DICOMDIR" or suffix in _TABLE_SUFFIXES:
        return False
    return is_image(_head(path))


def _head(path: Path) -> bytes:
    """The beginning of a file, or nothing where it cannot be read."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            return b""
        with path.open("rb") as file:
            return file.read(512)
    except OSError:
        return b""


def _describe(sample: Sample, patterns: Sequence[re.Pattern[str]], asked: bool = False) -> Sample:
    """Add what a DICOM header says, and the patient: from a pattern that was asked for, the header, or a known name.

    Headers come before known names, since viewers export `IM-0001-0001.dcm` for everybody.
    """
    tags = None
    if sample.path.suffix.lower() not in _RASTER_SUFFIXES and is_dicom(_head(sample.path)):
        with suppress(ImageError):  # what is damaged shows when it is read
            tags = read_tags(sample.path)
    if sample.patient is None:
        named, written = find_patient(sample.path.stem, patterns), tags.patient if tags else None
        sample = replace(sample, patient=(named or written) if asked else (written or named))
    return replace(sample, tags=tags) if tags else sample


def _writable(path: Path) -> Path:
    """Refuse a name that no table or report could hold."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r}: a file name that is not UTF-8. Rename it.") from None
    return path


def _read_table(
    table: Path, patterns: Sequence[re.Pattern[str]], reading: Reading, asked: bool = False, labelled: bool = True
) -> list[Sample]:
    columns, rows = _parquet_rows(table) if table.suffix.lower() == ".parquet" else _csv_rows(table)
    if missing := [name for name in ("path", "label")[: 1 + labelled] if name not in columns]:
        raise DataError(
            f"{table}: no column {' or '.join(missing)}; found {', '.join(columns) or 'none'}. "
            "A table has the columns path,label[,patient,split]."
        )
    samples = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        label, patient, split = (_text(row.get(name)) for name in ("label", "patient", "split"))
        if (path := _text(row["path"])) is None or (labelled and label is None):
            raise DataError(f"{table}: row {number} has no {'path' if path is None else 'label'}.")
        if split is not None and split.lower() not in _SPLIT_NAMES:
            raise DataError(f"{table}: row {number} has the split {split!r}; known are {', '.join(SPLITS)}.")
        # A file's name may begin or end with a blank, and is taken as it is.
        file = _writable(table.parent / str(row["path"]))
        if labelled and (first := seen.setdefault(os.path.normpath(file), number)) != number:
            raise DataError(
                f"{table}: rows {first} and {number} name the same file, {path}. Keep one of them: in two splits it "
                "would be learnt and then tested."
            )
        departures = {name: _word(row, name, table, number) for name in _DEPARTURES}
        own = replace(reading, **{name: value for name, value in departures.items() if value is not None})
        sample = Sample(file, label, patient, _SPLIT_NAMES[split.lower()] if split else None, own)
        samples.append(_describe(sample, () if "patient" in columns else patterns, asked) if labelled else sample)
    if not samples:
        raise DataError(f"{table}: no rows.")
    return samples


def _csv_rows(table: Path) -> tuple[Sequence[str], list[dict[str, Any]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            return reader.fieldnames or (), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{table}: cannot be read as CSV in UTF-8: {problem}.") from None


def _parquet_rows(table: Path) -> tuple[Sequence[str], list[dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError(
            f'{table}: Parquet needs pyarrow: pip install "pneumoscope[train]". Or use CSV.'
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            columns: list[str] = file.schema_arrow.names
            wanted = [name for name in ("path", "label", "patient", "split", *_DEPARTURES) if name in columns]
            return columns, file.read(wanted).to_pylist()
    except (OSError, pyarrow.ArrowException) as problem:
        raise DataError(f"{table}: cannot be read as Parquet: {problem}.") from None


def _word(row: dict[str, Any], name: str, table: Path, number: int) -> bool | None:
    """Read a true or false; None where nothing is said."""
    text = _text(row.get(name))
    if text is not None and text.lower() not in _WORDS:
        raise DataError(f"{table}: row {number} has {name} {text!r}; known are true and false.")
    return None if text is None else _WORDS[text.lower()]


def _text(value: object) -> str | None:
    if value is None or value != value:  # NaN is how tables write "missing"
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # and a column of integers with something missing is one of floats
    return str(value).strip() or None


def _relative(path: Path, folder: Path) -> str:
    """A path that leads from the table to the file, so that both can be moved together; absolute across drives."""
    file = path.parent.resolve() / path.name  # `..` out of a linked folder would lead elsewhere
    try:
        return Path(os.path.relpath(file, folder.resolve())).as_posix()
    except ValueError:
        return file.as_posix()
