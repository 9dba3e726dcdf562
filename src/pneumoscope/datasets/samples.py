"""Reads folders and tables of images as samples. Nothing is ever written or moved inside them."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets import tables
from pneumoscope.errors import DataError, ImageError, UsageError
from pneumoscope.files import format_rows, write_text
from pneumoscope.images.dicom import Tags, is_dicom, read_tags
from pneumoscope.images.read import SUFFIXES, Reading, is_image

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test",
    "val": "val", "valid": "val", "validation": "val", "validate": "val",
}  # fmt: skip
_RASTER_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
_DICOM_SUFFIXES = {".dcm", ".dicom"}
_COLUMNS = ("path", "label", "patient", "split", "invert", "any_modality")
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
        patient: the person it shows, or None where unknown.
        split: `train`, `val` or `test`, or None before a split is drawn.
        reading: how to read it, if it is unusual.
        tags: what its DICOM header says.
    """

    path: Path
    label: str | None = None
    patient: str | None = None
    split: str | None = None
    reading: Reading = Reading()
    tags: Tags | None = None


def read_samples(data: str | Path, patient_pattern: str | None = None, reading: Reading = Reading()) -> list[Sample]:
    """Read `root/{train,val,test}/{CLASS}/`, `root/{CLASS}/`, or a CSV or Parquet table.

    A table has the columns `path` and `label`, and optionally `patient`, `split`, `invert` and `any_modality` (`true`
    or `false`, see `Reading`); its paths are relative to it. Files with an unknown suffix are recognised by content.
    The patient is taken from the column, else from `patient_pattern` if given, else from the DICOM header, else from
    file names of the Kermany data.

    Args:
        data: folder or table.
        patient_pattern: regular expression searched in the file name; its first group (or the whole match) is the
            patient. By default only names of the Kermany data are recognised.
        reading: how to read files, unless a table says otherwise.

    Raises:
        DataError: there are no images in that layout, or a table is damaged or names a file twice.
        UsageError: the pattern is not a regular expression.
        MissingExtraError: there are DICOM files, and the extra to read them is not installed.
    """
    data, patterns = Path(data), _compile(patient_pattern)
    if data.is_file() and data.suffix.lower() in tables.SUFFIXES:
        return _read_table(data, patterns, reading, pattern_given=patient_pattern is not None)
    if data.is_file():
        raise DataError(f"{data}: not a table. Use a folder of classes, or a .csv or .parquet table.")
    classes = list(_class_folders(data))
    if not classes:
        raise DataError(
            f"{data}: no class folders. Expected {data}/CLASS/… or {data}/{{train,val,test}}/CLASS/…, such as "
            f"{data}/train/NORMAL and {data}/train/PNEUMONIA."
        )
    samples = [
        _describe(Sample(path, folder.name, None, split, reading), patterns, patient_pattern is not None)
        for split, folder in classes
        for path in _image_files(folder)  # a class may have subfolders, such as one for each patient
    ]
    if not samples:
        raise DataError(f"{data}: no images in its class folders ({', '.join(sorted({f.name for _, f in classes}))}).")
    return samples


def find_images(paths: Iterable[Path], reading: Reading = Reading()) -> list[Sample]:
    """Expand files, folders (recursively) and tables into samples, in input order; tables may override `reading`.

    Raises:
        DataError: a folder or table holds no images, or a table cannot be read.
    """
    samples: list[Sample] = []
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112 - pathlib raises where a name is too long or lies in a locked folder
            images = [Sample(file, reading=reading) for file in _image_files(path)]
            if not images:
                raise DataError(f"{path}: no images in this folder.")
            samples += images
        elif path.suffix.lower() in tables.SUFFIXES:
            samples += _read_table(path, _compile(None), reading, labelled=False)
        else:  # an unreadable file gets a row with its error and does not stop the others
            samples.append(Sample(_require_utf8(path), reading=reading))
    return samples


def find_classes(samples: Sequence[Sample], positive: str | None = None) -> tuple[tuple[str, ...], str | None]:
    """Order the class names and find the positive one.

    Returns:
        For two classes (negative, positive) and the positive one; for more the sorted names and None.

    Raises:
        DataError: fewer than two classes, or two without a PNEUMONIA and no `positive`.
        UsageError: `positive` is not one of two classes.
    """
    names = sorted({sample.label for sample in samples if sample.label is not None})
    if reserved := sorted({"uncertain", "out_of_distribution"} & set(names)):
        raise DataError(f"The class {reserved[0]} has the name of a decision. Rename the class.")
    if len(names) < 2:
        raise DataError(f"Found {len(names)} class ({', '.join(names) or 'no labels'}); at least two are needed.")
    if positive is not None and positive not in names:
        raise UsageError(f"no class is named {positive!r}. The classes are {', '.join(names)}.", "positive")
    if len(names) > 2:
        if positive is not None:
            raise UsageError(f"needs exactly two classes; found {', '.join(names)}.", "positive")
        return tuple(names), None
    positive = positive or next((name for name in names if name.upper() == "PNEUMONIA"), None)
    if positive is None:
        raise DataError(f"Unclear which class is positive, {names[0]} or {names[1]}. Choose it with `positive`.")
    return (next(name for name in names if name != positive), positive), positive


def format_samples(samples: Sequence[Sample], folder: Path) -> str:
    """Format samples as a CSV table in `folder`, which `read_samples` can read; paths are relative if possible."""
    departures = [name for name in _COLUMNS[4:] if any(getattr(sample.reading, name) for sample in samples)]
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
    """Write samples as a CSV table, completely or not at all."""
    write_text(path, format_samples(samples, path.parent))


def fingerprint_samples(samples: Sequence[Sample], digests: Sequence[str]) -> str:
    """Identify a labelled and split set of files: SHA-256 of the sorted digests, labels and splits."""
    lines = sorted(f"{digest} {s.label} {s.split}\n" for s, digest in zip(samples, digests, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def count_samples(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Count the images of each class in each split, as `{split: {class: images}}`."""
    classes = sorted({str(sample.label) for sample in samples})
    counts = Counter((sample.split, sample.label) for sample in samples)
    return {split: {name: counts[split, name] for name in classes} for split in SPLITS}


def describe_counts(samples: Sequence[Sample]) -> str:
    """One line with the number of images of each class in each split."""
    return " · ".join(
        f"{split} {sum(counts.values())} ({', '.join(f'{count} {name}' for name, count in counts.items())})"
        for split, counts in count_samples(samples).items()
    )


def find_patient(stem: str, patterns: Sequence[re.Pattern[str]] | None = None) -> str | None:
    """Read the patient from a file name, by default one of the Kermany data; None if no pattern matches."""
    for pattern in _compile(None) if patterns is None else patterns:
        if match := pattern.search(stem):
            groups = match.groupdict()
            if "number" in groups:
                return "-".join(part for part in (groups.get("series"), groups["number"]) if part)
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
        raise UsageError(f"{patient_pattern!r} is not a regular expression: {problem}.", "patient_pattern") from None


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
            _require_utf8(Path(parent, name))
            for name in sorted(names)
            if not name.startswith(".") and _may_be_image(Path(parent, name))
        ]
    return files


def _may_be_image(path: Path) -> bool:
    """Decide by suffix if it is known, else by content: archives and modalities use arbitrary names."""
    if (suffix := path.suffix.lower()) in _RASTER_SUFFIXES | _DICOM_SUFFIXES:
        return True
    if path.name.upper() == "DICOMDIR" or suffix in tables.SUFFIXES:
        return False
    return is_image(_read_head(path))


def _read_head(path: Path) -> bytes:
    """The first bytes of a file; empty if it cannot be read."""
    try:
        if not path.is_file():  # reading a pipe would block
            return b""
        with path.open("rb") as file:
            return file.read(512)
    except OSError:
        return b""


def _describe(sample: Sample, patterns: Sequence[re.Pattern[str]], pattern_given: bool = False) -> Sample:
    """Add the tags of a DICOM header, and the patient: from the given pattern, the header, or a known file name.

    The header comes before known names, since viewers export `IM-0001-0001.dcm` for everybody.
    """
    tags = None
    if sample.path.suffix.lower() not in _RASTER_SUFFIXES and is_dicom(_read_head(sample.path)):
        with suppress(ImageError):  # damage is reported when the image is read
            tags = read_tags(sample.path)
    if sample.patient is None:
        in_name, in_header = find_patient(sample.path.stem, patterns), tags.patient if tags else None
        sample = replace(sample, patient=(in_name or in_header) if pattern_given else (in_header or in_name))
    return replace(sample, tags=tags) if tags else sample


def _require_utf8(path: Path) -> Path:
    """Refuse a name that no table or report could contain."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r}: its name is not valid UTF-8. Rename the file.") from None
    return path


def _read_table(
    table: Path,
    patterns: Sequence[re.Pattern[str]],
    reading: Reading,
    pattern_given: bool = False,
    labelled: bool = True,
) -> list[Sample]:
    columns, rows = tables.read_rows(table, _COLUMNS)
    if missing := [name for name in ("path", "label")[: 1 + labelled] if name not in columns]:
        raise DataError(
            f"{table}: no column {' or '.join(missing)}; found {', '.join(columns) or 'none'}. "
            "A table has the columns path,label[,patient,split]."
        )
    samples = []
    first_rows: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        sample = _parse_row(row, reading, f"{table}: row {number}", table.parent, labelled)
        if labelled and (first := first_rows.setdefault(os.path.normpath(sample.path), number)) != number:
            raise DataError(
                f"{table}: rows {first} and {number} name the same file, {row['path']}. Keep one of them: in two "
                "splits, the network would be tested on an image that it learned from."
            )
        patterns = () if "patient" in columns else patterns
        samples.append(_describe(sample, patterns, pattern_given) if labelled else sample)
    if not samples:
        raise DataError(f"{table}: no rows.")
    return samples


def _parse_row(row: Mapping[str, object], reading: Reading, place: str, folder: Path, labelled: bool) -> Sample:
    label, patient, split = (tables.to_text(row.get(name)) for name in ("label", "patient", "split"))
    if tables.to_text(row["path"]) is None or (labelled and label is None):
        raise DataError(f"{place} has no {'label' if tables.to_text(row['path']) else 'path'}.")
    if split is not None and split.lower() not in _SPLIT_NAMES:
        raise DataError(f"{place} has the split {split!r}; valid are {', '.join(SPLITS)}.")
    for name in _COLUMNS[4:]:
        try:
            value = tables.to_boolean(row.get(name))
        except ValueError as problem:
            raise DataError(f"{place}: {name}: {problem}.") from None
        reading = reading if value is None else replace(reading, **{name: value})
    path = _require_utf8(folder / str(row["path"]))  # a name may begin or end with a space
    return Sample(path, label, patient, _SPLIT_NAMES[split.lower()] if split else None, reading)


def _relative(path: Path, folder: Path) -> str:
    """A path from the table to the file, so that both can be moved together; absolute across drives."""
    file = path.parent.resolve() / path.name  # resolved: `..` out of a linked folder leads elsewhere
    try:
        return Path(os.path.relpath(file, folder.resolve())).as_posix()
    except ValueError:
        return file.as_posix()
