"""Samples: image files with what is known about them; their classes, counts and tables."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import format_rows, relative_paths, write_text
from pneumoscope.images.dicom import Tags
from pneumoscope.images.read import Reading

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "patient", "split", "invert", "any_modality")


@dataclass(frozen=True, slots=True)
class Sample:
    """One radiograph file and what is known about it.

    Attributes:
        path: the file.
        label: its class, or None where unknown.
        patient: the person it shows, or None where unknown.
        split: `train`, `val` or `test`, or None before a split is drawn.
        reading: how to read it, if it is unusual.
        tags: what its DICOM header says, and age, sex and view from its table where the header does not say them.
        metadata: the other columns of its table, by name; cells without a value are left out.
    """

    path: Path
    label: str | None = None
    patient: str | None = None
    split: str | None = None
    reading: Reading = Reading()
    tags: Tags | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)


def merge_tags(header: Tags | None, known: Tags | None) -> Tags | None:
    """What a DICOM header says, completed by what is known otherwise."""
    if header is None or known is None:
        return header or known
    gaps = {each.name: getattr(known, each.name) for each in fields(Tags) if getattr(header, each.name) is None}
    return replace(header, **gaps)


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
        raise DataError(f"{_find_root(samples)}: {_describe_classes(names)}; at least two classes are needed.")
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


def number_patients(samples: Sequence[Sample]) -> list[Sample]:
    """The same samples with numbers in place of patients, in order of appearance, for pages that must not name them."""
    numbers: dict[str, int] = {}
    return [
        replace(each, patient=str(numbers.setdefault(each.patient, len(numbers) + 1))) if each.patient else each
        for each in samples
    ]


def _find_root(samples: Sequence[Sample]) -> str:
    """The folder that all images are in."""
    return os.path.commonpath([sample.path.parent for sample in samples]) if samples else "The data"


def _describe_classes(names: Sequence[str]) -> str:
    return f"the only class is {names[0]}" if names else "no image has a label"


def format_samples(samples: Sequence[Sample], folder: Path, excel: bool = False) -> str:
    """Format samples as a CSV table in `folder`, which `read_samples` can read; paths are relative if possible.

    With `excel` it begins with a byte order mark.
    """
    departures = [name for name in COLUMNS[4:] if any(getattr(sample.reading, name) for sample in samples)]
    others = list(dict.fromkeys(name for sample in samples for name in sample.metadata))
    rows = [
        {
            "path": path,
            "label": sample.label or "",
            "patient": sample.patient or "",
            "split": sample.split or "",
            **{name: str(getattr(sample.reading, name)).lower() for name in departures},
            **{name: sample.metadata.get(name, "") for name in others},
        }
        for sample, path in zip(samples, relative_paths((each.path for each in samples), folder), strict=True)
    ]
    return "".join(format_rows(rows, excel))


def write_samples(path: Path, samples: Sequence[Sample], excel: bool = False) -> None:
    """Write samples as a CSV table, completely or not at all; with `excel` it begins with a byte order mark."""
    write_text(path, format_samples(samples, path.parent, excel))


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
