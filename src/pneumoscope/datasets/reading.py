"""Reads folders and tables of images as samples. Nothing is ever written or moved inside them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pneumoscope.datasets import tables
from pneumoscope.datasets.folders import (
    RASTER_SUFFIXES,
    SPLIT_NAMES,
    class_folders,
    image_files,
    read_head,
    require_utf8,
)
from pneumoscope.datasets.patients import compile_patterns, find_patient
from pneumoscope.datasets.samples import COLUMNS, SPLITS, Sample
from pneumoscope.errors import DataError, ImageError
from pneumoscope.images.dicom import is_dicom, read_tags
from pneumoscope.images.read import Reading


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
    data, patterns = Path(data), compile_patterns(patient_pattern)
    if data.is_file() and data.suffix.lower() in tables.SUFFIXES:
        return _read_table(data, patterns, reading, pattern_given=patient_pattern is not None)
    if data.is_file():
        raise DataError(f"{data}: not a table. Use a folder of classes, or a .csv or .parquet table.")
    classes = list(class_folders(data))
    if not classes:
        raise DataError(
            f"{data}: no class folders. Expected {data}/CLASS/… or {data}/{{train,val,test}}/CLASS/…, such as "
            f"{data}/train/NORMAL and {data}/train/PNEUMONIA."
        )
    samples = [
        _describe(Sample(path, folder.name, None, split, reading), patterns, patient_pattern is not None)
        for split, folder in classes
        for path in image_files(folder)  # a class may have subfolders, such as one for each patient
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
            images = [Sample(file, reading=reading) for file in image_files(path)]
            if not images:
                raise DataError(f"{path}: no images in this folder.")
            samples += images
        elif path.suffix.lower() in tables.SUFFIXES:
            samples += _read_table(path, compile_patterns(None), reading, labelled=False)
        else:  # an unreadable file gets a row with its error and does not stop the others
            samples.append(Sample(require_utf8(path), reading=reading))
    return samples


def _describe(sample: Sample, patterns: Sequence[re.Pattern[str]], pattern_given: bool = False) -> Sample:
    """Add the tags of a DICOM header, and the patient: from the given pattern, the header, or a known file name.

    The header comes before known names, since viewers export `IM-0001-0001.dcm` for everybody.
    """
    tags = None
    if sample.path.suffix.lower() not in RASTER_SUFFIXES and is_dicom(read_head(sample.path)):
        with suppress(ImageError):  # damage is reported when the image is read
            tags = read_tags(sample.path)
    if sample.patient is None:
        in_name, in_header = find_patient(sample.path.stem, patterns), tags.patient if tags else None
        sample = replace(sample, patient=(in_name or in_header) if pattern_given else (in_header or in_name))
    return replace(sample, tags=tags) if tags else sample


def _read_table(
    table: Path,
    patterns: Sequence[re.Pattern[str]],
    reading: Reading,
    pattern_given: bool = False,
    labelled: bool = True,
) -> list[Sample]:
    columns, rows = tables.read_rows(table, COLUMNS)
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
    if split is not None and split.lower() not in SPLIT_NAMES:
        raise DataError(f"{place} has the split {split!r}; valid are {', '.join(SPLITS)}.")
    for name in COLUMNS[4:]:
        try:
            value = tables.to_boolean(row.get(name))
        except ValueError as problem:
            raise DataError(f"{place}: {name}: {problem}.") from None
        reading = reading if value is None else replace(reading, **{name: value})
    path = require_utf8(folder / str(row["path"]))  # a name may begin or end with a space
    return Sample(path, label, patient, SPLIT_NAMES[split.lower()] if split else None, reading)
