"""Reads what runs predicted, and pairs it image by image."""

from __future__ import annotations

import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Len
from numpy.typing import NDArray

from pneumoscope.config import Fraction, build
from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.errors import DataError
from pneumoscope.files import parse_rows
from pneumoscope.inference.prediction import Prediction, index_labels

LISTED = 3  # images that an error names


@dataclass(frozen=True)
class Predictions:
    """What one run or evaluation predicted; threshold nan and positive None for more than two classes."""

    folder: Path
    classes: tuple[str, ...]
    positive: str | None
    threshold: float
    rows: tuple[Prediction, ...]  # an unreadable image has no probabilities
    by_name: bool = False  # whether a table without the images' content named them


@dataclass(frozen=True)
class _Metrics:
    """What a comparison needs of `metrics.json`."""

    classes: Annotated[tuple[str, ...], Len(2)]
    positive: str | None
    threshold: Fraction | None


@dataclass(frozen=True)
class Pairing:
    """The predictions of M runs on the N images that all of them could read."""

    runs: tuple[Predictions, ...]
    classes: tuple[str, ...]  # if there are two, the second is positive
    labels: NDArray[np.int64]  # (N,) indices into `classes`
    probabilities: NDArray[np.float64]  # (M, N) of the positive class, or (M, N, C) with C > 2
    predicted: NDArray[np.int64]  # (M, N) indices into `classes`
    paths: tuple[str, ...]  # (N,) as the first run names them
    clusters: NDArray[np.int64]  # (N,) numbers of the patients; an image without one counts as its own patient
    patients: int | None  # number of distinct known patients
    paired_by: Literal["content", "path", "name"]
    unread: tuple[int, ...]  # (M,) how many images each run could not read


def read_predictions(folder: Path) -> Predictions:
    """Read `metrics.json` and `predictions.csv` of a run or an evaluation.

    Raises:
        DataError: one of them is missing, damaged, or does not fit the other.
    """
    metrics, table = folder / "metrics.json", folder / "predictions.csv"
    for path in (metrics, table):
        if not path.is_file():
            raise DataError(f"{folder}: {path.name} is missing. Give a finished run, or an evaluation.")
    try:
        known = _check_metrics(json.loads(metrics.read_text(encoding="utf-8")), metrics)
    except (OSError, ValueError, RecursionError) as problem:
        raise DataError(f"{metrics}: damaged: {problem}. Evaluate again.") from None
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            found, lines = parse_rows(file)
    except (OSError, ValueError, csv.Error) as problem:
        raise DataError(f"{table}: damaged: {problem}. Evaluate again.") from None
    columns = ("path", "label", "predicted_label", "error", *_name_columns(known.classes).values())
    if lines and (lacking := [name for name in columns if name not in found]):
        raise DataError(f"{table} has no column {', '.join(lacking)}. Give a finished run, or an evaluation.")
    rows = [_read_row(line, known.classes, folder, f"{table}, line {i}") for i, line in enumerate(lines, start=2)]
    threshold = math.nan if known.threshold is None else known.threshold
    return Predictions(folder, known.classes, known.positive, threshold, tuple(rows))


def _check_metrics(values: object, path: Path) -> _Metrics:
    """Check what the comparison needs of a `metrics.json`, which may be another program's."""
    names = [field.name for field in fields(_Metrics)]
    missing = [name for name in names if not isinstance(values, dict) or name not in values]
    if not isinstance(values, dict) or missing:
        raise DataError(
            f"{path} has no {', '.join(missing)}, so `pneumoscope train` or `evaluate` did not write it. Give a "
            "finished run, or an evaluation."
        )
    known = build(_Metrics, {name: values[name] for name in names}, str(path), DataError)
    two = len(known.classes) == 2
    if len(set(known.classes)) < len(known.classes) or known.positive != (known.classes[1] if two else None):
        raise DataError(
            f"{path}: the classes {', '.join(known.classes)} and the positive class {known.positive} do not fit "
            "together. Evaluate again."
        )
    if (known.threshold is None) == two:
        raise DataError(f"{path}: a threshold belongs to two classes, and only to two. Evaluate again.")
    return known


def _name_columns(classes: Sequence[str]) -> dict[str, str]:
    """The columns of `predictions.csv` with probabilities, by class."""
    return {classes[1]: "probability"} if len(classes) == 2 else {name: f"probability_{name}" for name in classes}


def _read_row(line: Mapping[str, Any], classes: Sequence[str], folder: Path, where: str) -> Prediction:
    try:
        label, predicted = line["label"], line["predicted_label"]
        columns = _name_columns(classes)
        texts = [line[column] for column in columns.values()]
        values = [] if line["error"] else [float(text) for text in texts]
        path = Path(os.path.normpath(folder / line["path"]))
        patient, sha256 = line.get("patient") or None, line.get("sha256") or ""
    except (ValueError, TypeError) as problem:
        raise DataError(f"{where}: damaged: {problem}. Evaluate again.") from None
    if not all(0 <= value <= 1 for value in values):
        raise DataError(f"{where}: a probability must lie between 0 and 1, found {texts}. Evaluate again.")
    if label not in classes or (values and predicted not in classes):
        raise DataError(
            f"{where}: label {label!r} or predicted label {predicted!r} is none of the classes ({', '.join(classes)}). "
            "Evaluate again."
        )
    probabilities = dict(zip(columns, values, strict=True)) if values else None
    return Prediction(
        path=path, label=label, predicted_label=predicted, probabilities=probabilities, patient=patient, sha256=sha256
    )


def pair_predictions(runs: Sequence[Predictions]) -> Pairing:
    """Pair what runs predicted for the same images.

    Images are identified by content where every run recorded it, else by path. Copies of one file are paired in the
    order of their labels and paths. An image that any run could not read is left out.

    Raises:
        DataError: different classes or images, or another label for the same image.
    """
    first = runs[0]
    for run in runs[1:]:
        if set(run.classes) != set(first.classes) or run.positive != first.positive:
            raise DataError(
                f"{run.folder}: its classes are {_name_classes(run)}, those of {first.folder} {_name_classes(first)}. "
                "Only runs with the same classes can be compared."
            )
    hashed = all(row.sha256 for run in runs for row in run.rows if row.probabilities)
    paired_by: Literal["content", "path"] = "content" if hashed else "path"
    rows = _match(runs, paired_by)
    if not rows:
        raise DataError(f"{first.folder}: there is no image that all runs could read. predictions.csv says why.")
    _check_labels(runs, rows)
    classes = first.classes
    named = classes if len(classes) > 2 else classes[1:]
    probabilities = np.array(
        [[[(each.probabilities or {})[name] for name in named] for each in run] for run in zip(*rows, strict=True)]
    )
    known = [next((each.patient for each in row if each.patient), None) for row in rows]
    # Copies of one file certainly show one patient.
    clusters = [patient or row[0].sha256 or None for patient, row in zip(known, rows, strict=True)]
    return Pairing(
        runs=tuple(runs),
        classes=classes,
        labels=index_labels([row[0] for row in rows], classes),
        probabilities=probabilities[:, :, 0] if len(classes) == 2 else probabilities,
        predicted=np.array([[classes.index(str(each.predicted_label)) for each in row] for row in rows]).T,
        paths=tuple(_write_path(row[0]) for row in rows),
        clusters=cluster_by_patient(clusters, len(rows)),
        patients=len({patient for patient in known if patient}) or None,
        paired_by="name" if any(run.by_name for run in runs) else paired_by,
        unread=tuple(sum(not row.probabilities for row in run.rows) for run in runs),
    )


def _check_labels(runs: Sequence[Predictions], rows: Sequence[tuple[Prediction, ...]]) -> None:
    differing = [row for row in rows if len({each.label for each in row}) > 1]
    if differing:
        first, *others = differing[0]
        run, other = next((run, row) for run, row in zip(runs[1:], others, strict=True) if row.label != first.label)
        raise DataError(
            f"{_write_path(other)}: {other.label} in {run.folder}, but {first.label} in {runs[0].folder} "
            f"(images that differ: {len(differing)}). Evaluate both on the same labels."
        )


def _name_classes(run: Predictions) -> str:
    return ", ".join(run.classes) + (f" (positive: {run.positive})" if run.positive else "")


def _match(runs: Sequence[Predictions], paired_by: str) -> list[tuple[Prediction, ...]]:
    """Match the rows of the same image, one per run.

    A file that could not be read may have no hash; then its path or name identifies it.
    """
    tables = [_index_rows(run, paired_by) for run in runs]
    failed = [{name for row in run.rows if not row.probabilities for name in _identify(row, paired_by)} for run in runs]
    matched = []
    missing: dict[int, list[Prediction]] = defaultdict(list)
    for key in dict.fromkeys(key for rows in tables for key in rows):
        present = [rows[key] for rows in tables if key in rows]
        lacking = [i for i, rows in enumerate(tables) if key not in rows]
        if not lacking:
            matched.append(tuple(present))
        for i in lacking:
            if not _identify(present[0], paired_by) & failed[i]:
                missing[i].append(present[0])
    for i, rows in missing.items():
        names = ", ".join(map(_write_path, rows[:LISTED])) + (", …" if len(rows) > LISTED else "")
        raise DataError(
            f"{runs[i].folder}: it has no predictions for {len(rows)} of the other runs' test images"
            f"{' (paired by path)' if paired_by == 'path' else ''}: {names}. "
            "Evaluate both on the same images: pneumoscope evaluate DATA --model RUN --out DIR."
        )
    return matched


def _write_path(row: Prediction) -> str:
    return "" if row.path is None else row.path.as_posix()


def _find_name(row: Prediction) -> str:
    """The file's name without its folder, on whatever system it was written."""
    return _write_path(row).replace("\\", "/").rpartition("/")[2]


def _identify(row: Prediction, paired_by: str) -> set[str]:
    """Return what may identify an image; if that is its content, its folder may have another name."""
    path = _write_path(row)
    return {path} if paired_by == "path" else {path, _find_name(row), row.sha256} - {""}


def _index_rows(run: Predictions, paired_by: str) -> dict[tuple[str, int], Prediction]:
    """Readable rows by hash or path, and by the number of the copy."""
    copies: dict[str, list[Prediction]] = defaultdict(list)
    for row in run.rows:
        if row.probabilities:
            copies[row.sha256 if paired_by == "content" else _write_path(row)].append(row)
    return {
        (key, number): row
        for key, rows in copies.items()
        for number, row in enumerate(sorted(rows, key=lambda row: (row.label, _find_name(row), _write_path(row))))
    }
