"""Reads folders and tables of images as samples. Nothing is ever written or moved inside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pneumoscope.config import checked
from pneumoscope.datasets import tables
from pneumoscope.datasets.columns import COLUMN_NAMES, Naming
from pneumoscope.datasets.folders import adopt_splits, read_folder
from pneumoscope.datasets.image_files import identify, read_head, walk
from pneumoscope.datasets.labels import name_classes
from pneumoscope.datasets.left_out import Dataset, LeftOut, log_left_out
from pneumoscope.datasets.patients import compile_pattern, identify_patients, name_patients
from pneumoscope.datasets.samples import Sample, merge_tags
from pneumoscope.datasets.table_samples import read_listed
from pneumoscope.errors import DataError, ImageError, MissingExtraError, UsageError
from pneumoscope.images.dicom import can_read_dicom, is_dicom, read_tags
from pneumoscope.images.dicom_elements import NEEDS_EXTRA
from pneumoscope.images.read import Reading


@checked
def read_samples(
    data: str | Path, patient_pattern: str | None = None, reading: Reading = Reading(), naming: Naming = Naming()
) -> list[Sample]:
    """Read `root/{train,val,test}/CLASS/`, `root/CLASS/{train,val,test}/`, `root/CLASS/`, or a table.

    A table has the columns `path` and `label`, and optionally `patient`, `split`, `invert` and `any_modality` (`true`
    or `false`, see `Reading`), or others that `naming` or usual synonyms name; what else it says is kept with each
    sample. Its paths are relative to it. Files with an unknown suffix are recognised by content. The patient is taken
    from the column, else from `patient_pattern` if given, else from the DICOM header, else from file names as in
    Kermany, NIH, CheXpert or MIMIC-CXR. What is left out is said through `logging`, with counts.

    Args:
        data: folder or table.
        patient_pattern: regular expression searched in the path below the folder (with `/`, without suffix); its group
            `patient`, else its first (or the whole match) is the patient.
        reading: how to read files, unless a table says otherwise.
        naming: what columns and classes are called.

    Raises:
        DataError: there are no images in that layout, it is unclear what a folder or column means, a table is damaged,
            classes look the same, or one file has two labels.
        UsageError: the pattern is not a regular expression, or finds no patient, or `naming` does not fit the data.
        MissingExtraError: all are DICOM files, and the extra to read them is not installed.
    """
    return list(read_dataset(data, patient_pattern, reading, naming).samples)


def read_dataset(
    data: str | Path,
    patient_pattern: str | None = None,
    reading: Reading = Reading(),
    naming: Naming = Naming(),
    files: bool = True,
    elsewhere: bool = False,
) -> Dataset:
    """Read samples as `read_samples` does, and list what was left out.

    Without `files`, those of a table need not exist; `elsewhere` is that of `read_listed`.
    """
    data, pattern = Path(data), compile_pattern(patient_pattern)
    column, rows_left_out = False, list[LeftOut]()
    if _is_table(data):
        listed = read_listed(data, naming, reading, files=files, elsewhere=elsewhere)
        column, rows_left_out = listed.has_patients, listed.left_out
        unsplit = not listed.has_splits and naming.split_column is None
        dataset = adopt_splits(listed.samples, data, files) if unsplit else Dataset(listed.samples)
        root = data.parent
    elif data.is_file():
        raise DataError(
            f"{data} is not a table ({', '.join(sorted(tables.SUFFIXES))}). Give a table, or a folder of classes."
        )
    else:
        if given := next((name for name in COLUMN_NAMES if getattr(naming, name) is not None), None):
            raise UsageError(f"no effect, because {data} is not a table. Leave the option out.", given)
        dataset, root = read_folder(data, reading), data
    log_left_out(dataset, root)
    if files:
        _require_reader(dataset.samples)
        dataset = replace(dataset, samples=[_add_tags(sample) for sample in dataset.samples])
    named = name_classes(dataset.samples, naming.map)
    if files:
        _refuse_two_labels(named.samples)
    # Other messages give the lines of the table and the labels of the map.
    left_out = [*dataset.left_out, *rows_left_out, *named.left_out]
    return Dataset(identify_patients(named.samples, root, pattern, column), left_out)


def make_samples(
    paths: Sequence[Path], labels: Sequence[str], patients: Sequence[str | None] | None = None,
    reading: Reading = Reading(),
) -> list[Sample]:  # fmt: skip
    """Make samples of N files with their labels, as `read_samples` does from a table.

    Args:
        paths: (N,) the files; unreadable ones are found later.
        labels: (N,).
        patients: (N,) None where unknown; if not given, they come from headers and names.
        reading: how to read the files.

    Raises:
        DataError: one file has two labels.
        MissingExtraError: all are DICOM files, and the extra to read them is not installed.
    """
    known = patients or [None] * len(paths)
    samples = [
        Sample(path.absolute(), label, patient, reading=reading)
        for path, label, patient in zip(paths, labels, known, strict=True)
    ]
    _require_reader(samples)
    samples = [_add_tags(sample) for sample in samples]
    _refuse_two_labels(samples)
    root = Path(os.path.commonpath([sample.path.parent for sample in samples])) if samples else Path()
    return identify_patients(samples, root, column=patients is not None)


def find_images(paths: Iterable[Path], reading: Reading = Reading(), naming: Naming = Naming()) -> list[Sample]:
    """Expand files, folders (recursively) and tables into samples, in input order; tables may override `reading`.

    Names of files tell the patient as in `read_samples`, unless a column of a table or a DICOM header does.

    Args:
        paths: files, folders and tables.
        reading: how to read images.
        naming: the column of a table that holds the file, if it has an unusual name.

    Raises:
        DataError: a folder or table holds no images, or a table cannot be read.
        UsageError: a table has no such column.
        MissingExtraError: all are DICOM files, and the extra to read them is not installed.
    """
    samples: list[Sample] = []
    single: list[int] = []  # places of files that were given one by one
    paths = list(paths)
    if naming.path_column is not None and not any(map(_is_table, paths)):
        raise UsageError("no effect, because there is no table. Leave the option out.", "path_column")
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112 - pathlib raises where a name is too long or lies in a locked folder
            found = walk(path)
            if not found.images:
                raise DataError(f"{path}: no images in this folder.")
            images = [Sample(file, reading=reading) for file in found.images]
            log_left_out(Dataset(images, found.left_out), path)
            samples += name_patients(images, path)
        elif _is_table(path):
            listed = read_listed(path, naming, reading, labelled=False)
            samples += listed.samples if listed.has_patients else name_patients(listed.samples, path.parent)
        else:  # an unreadable file gets a row with its error and does not stop the others
            single.append(len(samples))
            samples.append(Sample(path, reading=reading))
    _require_reader(samples)
    for i, sample in zip(single, name_patients([samples[i] for i in single], None), strict=True):
        samples[i] = sample
    return samples


def _refuse_two_labels(samples: Sequence[Sample]) -> None:
    """Refuse one file that has two labels under two names, which are links."""
    firsts: dict[object, Sample] = {}
    for sample in samples:
        first = firsts.setdefault(identify(sample.path), sample)
        if first.label != sample.label:
            raise DataError(
                f"{first.path} ({first.label}) and {sample.path} ({sample.label}) are the same file, linked. Delete "
                "the one whose label is wrong."
            )


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in tables.SUFFIXES | tables.WORKBOOKS and not os.path.isdir(path)  # noqa: PTH112


def _add_tags(sample: Sample) -> Sample:
    """Add the tags of a DICOM header; what a table says fills its gaps."""
    if is_dicom(read_head(sample.path)):  # whatever its suffix
        with suppress(ImageError, MissingExtraError):  # reported when the image is read
            return replace(sample, tags=merge_tags(read_tags(sample.path), sample.tags))
    return sample


def _require_reader(samples: Sequence[Sample]) -> None:
    """Stop where all images are DICOM files that cannot be read; a few of them become errors of their own later."""
    if samples and all(is_dicom(read_head(sample.path)) for sample in samples) and not can_read_dicom():
        raise MissingExtraError(f"{samples[0].path}: reading DICOM {NEEDS_EXTRA}.")
