"""Reads folders and tables of images as samples. Nothing is ever written or moved inside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pneumoscope.datasets import tables
from pneumoscope.datasets.folder_names import find_split
from pneumoscope.datasets.folders import read_folder
from pneumoscope.datasets.image_files import read_head, require_utf8, walk
from pneumoscope.datasets.left_out import Dataset, log_left_out
from pneumoscope.datasets.patients import compile_pattern, identify_patients
from pneumoscope.datasets.samples import COLUMNS, SPLITS, Sample
from pneumoscope.errors import DataError, ImageError, MissingExtraError
from pneumoscope.images.dicom import can_read_dicom, is_dicom, read_tags
from pneumoscope.images.dicom_elements import NEEDS_EXTRA
from pneumoscope.images.read import Reading


def read_samples(data: str | Path, patient_pattern: str | None = None, reading: Reading = Reading()) -> list[Sample]:
    """Read `root/{train,val,test}/CLASS/`, `root/CLASS/{train,val,test}/`, `root/CLASS/`, or a CSV or Parquet table.

    A table has the columns `path` and `label`, and optionally `patient`, `split`, `invert` and `any_modality` (`true`
    or `false`, see `Reading`); its paths are relative to it. Files with an unknown suffix are recognised by content.
    The patient is taken from the column, else from `patient_pattern` if given, else from the DICOM header, else from
    file names as in Kermany, NIH, CheXpert or MIMIC-CXR. What is left out is said through `logging`, with counts.

    Args:
        data: folder or table.
        patient_pattern: regular expression searched in the path below the folder (with `/`, without suffix); its first
            group (or the whole match) is the patient.
        reading: how to read files, unless a table says otherwise.

    Raises:
        DataError: there are no images in that layout, it is unclear what a folder means, or a table is damaged or names
            a file twice.
        UsageError: the pattern is not a regular expression, or finds no patient.
        MissingExtraError: all are DICOM files, and the extra to read them is not installed.
    """
    return list(read_dataset(data, patient_pattern, reading).samples)


def read_dataset(data: str | Path, patient_pattern: str | None = None, reading: Reading = Reading()) -> Dataset:
    """Read samples as `read_samples` does, and list what was left out."""
    data, pattern = Path(data), compile_pattern(patient_pattern)
    column = False
    if data.is_file() and data.suffix.lower() in tables.SUFFIXES:
        samples, column = _read_table(data, reading)
        dataset, root = Dataset(samples), data.parent
    elif data.is_file():
        raise DataError(f"{data}: not a table. Use a folder of classes, or a .csv or .parquet table.")
    else:
        dataset, root = read_folder(data, reading), data
    _require_reader(dataset.samples)
    log_left_out(dataset, root)
    samples = identify_patients([_add_tags(sample) for sample in dataset.samples], root, pattern, column)
    return replace(dataset, samples=samples)


def find_images(paths: Iterable[Path], reading: Reading = Reading()) -> list[Sample]:
    """Expand files, folders (recursively) and tables into samples, in input order; tables may override `reading`.

    Raises:
        DataError: a folder or table holds no images, or a table cannot be read.
        MissingExtraError: all are DICOM files, and the extra to read them is not installed.
    """
    samples: list[Sample] = []
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112 - pathlib raises where a name is too long or lies in a locked folder
            found = walk(path)
            if not found.images:
                raise DataError(f"{path}: no images in this folder.")
            images = [Sample(file, reading=reading) for file in found.images]
            log_left_out(Dataset(images, found.left_out), path)
            samples += images
        elif path.suffix.lower() in tables.SUFFIXES:
            samples += _read_table(path, reading, labelled=False)[0]
        else:  # an unreadable file gets a row with its error and does not stop the others
            samples.append(Sample(require_utf8(path), reading=reading))
    _require_reader(samples)
    return samples


def _add_tags(sample: Sample) -> Sample:
    """Add the tags of a DICOM header."""
    if is_dicom(read_head(sample.path)):  # whatever its suffix
        with suppress(ImageError, MissingExtraError):  # reported when the image is read
            return replace(sample, tags=read_tags(sample.path))
    return sample


def _require_reader(samples: Sequence[Sample]) -> None:
    """Stop where all images are DICOM files that cannot be read; a few of them become errors of their own later."""
    if not can_read_dicom() and samples and all(is_dicom(read_head(sample.path)) for sample in samples):
        raise MissingExtraError(f"{samples[0].path}: reading DICOM {NEEDS_EXTRA}.")


def _read_table(table: Path, reading: Reading, labelled: bool = True) -> tuple[list[Sample], bool]:
    """Read a table; also return whether it has a column of patients."""
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
        samples.append(sample)
    if not samples:
        raise DataError(f"{table}: no rows.")
    return samples, "patient" in columns


def _parse_row(row: Mapping[str, object], reading: Reading, place: str, folder: Path, labelled: bool) -> Sample:
    label, patient, split = (tables.to_text(row.get(name)) for name in ("label", "patient", "split"))
    if tables.to_text(row["path"]) is None or (labelled and label is None):
        raise DataError(f"{place} has no {'label' if tables.to_text(row['path']) else 'path'}.")
    if split is not None and find_split(split) is None:
        raise DataError(f"{place} has the split {split!r}; valid are {', '.join(SPLITS)}.")
    for name in COLUMNS[4:]:
        try:
            value = tables.to_boolean(row.get(name))
        except ValueError as problem:
            raise DataError(f"{place}: {name}: {problem}.") from None
        reading = reading if value is None else replace(reading, **{name: value})
    path = require_utf8(folder / str(row["path"]))  # a name may begin or end with a space
    return Sample(path, label, patient, find_split(split) if split else None, reading)
